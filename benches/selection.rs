//! `cargo bench`: both searches of the full objective on one synthetic pool, and the kernels they rest on.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use spice_core::linalg::Kernels;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::selection::{Fisher, Method, Search, Settings, Survey, select};

const ROWS: usize = 4_000;
const DIM: usize = 256;
const PICKS: usize = 200;

/// Rows around 50 centres with a decaying spectrum; a fixed sequence of pseudo-random numbers.
fn clustered() -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut normal = move || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    let spectrum: Vec<f32> = (0..DIM).map(|j| ((j + 1) as f32).powf(-0.7)).collect();
    let centres: Vec<f32> = (0..50 * DIM).map(|cell| normal() * spectrum[cell % DIM]).collect();
    let mut rows = Vec::with_capacity(ROWS * DIM);
    for row in 0..ROWS {
        let size = (0.6 * normal()).exp();
        let centre = &centres[row % 50 * DIM..][..DIM];
        rows.extend(centre.iter().zip(&spectrum).map(|(c, s)| size * (c + s * normal())));
    }
    rows
}

fn searches(criterion: &mut Criterion) {
    let rows = clustered();
    let bytes: Vec<u8> = rows.iter().flat_map(|cell| cell.to_le_bytes()).collect();
    let pool = || {
        let block = RowBlock::new(&bytes, Dtype::F32, ROWS, DIM).expect("an aligned matrix");
        Pool::new(vec![block]).expect("a pool")
    };
    let monitor = Monitor::default();
    let survey = Survey::new(pool(), false, &monitor).expect("finite rows");

    let mut group = criterion.benchmark_group(format!("select {PICKS} of {ROWS} x {DIM}"));
    group.sample_size(10);
    for (name, search) in [("eager", Search::Eager), ("lazy", Search::Lazy)] {
        let settings = Settings {
            alpha: 1.0,
            conflict_penalty: 0.1,
            early_stop: None,
            fisher: Fisher::Full,
            method: Method::Greedy,
            search,
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| select(&survey, &settings, Some(PICKS), &monitor).expect("a selection"));
        });
    }
    group.finish();
}

fn kernels(criterion: &mut Criterion) {
    let kernels = Kernels::default();
    let (a, b) = (vec![1.25; 1024], vec![0.5; 1024]);
    let mut group = criterion.benchmark_group("kernels, 1024 cells");
    group.throughput(Throughput::Elements(1024));
    group.bench_function("dot", |bencher| bencher.iter(|| kernels.dot(black_box(&a), black_box(&b))));
    group.finish();
}

criterion_group!(benches, searches, kernels);
criterion_main!(benches);
