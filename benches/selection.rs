//! `cargo bench`: searches over one synthetic pool, and the kernels that they rest on.
//!
//! One function a subject; `criterion_group!` at the end lists them. A new search goes into [`SEARCHES`], a new kernel
//! into [`kernels`] by one call of [`rate`], which states how much work a call does.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use spice_core::linalg::Kernels;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::selection::{Search, Settings, Survey, select};

/// Every search of the full objective, by name.
const SEARCHES: [(&str, Search); 2] = [("eager", Search::Eager), ("lazy", Search::Lazy)];

/// Cells of a vector that a kernel is timed on.
const CELLS: usize = 1024;

/// A matrix of float32 cells as it lies in a file.
struct Matrix {
    bytes: Vec<u8>,
    rows: usize,
    dim: usize,
}

impl Matrix {
    /// Rows around 50 centres with a decaying spectrum; a fixed sequence of pseudo-random numbers.
    fn clustered(rows: usize, dim: usize) -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut uniform = move || {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut normal = move || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
        let spectrum: Vec<f32> = (0..dim).map(|j| ((j + 1) as f32).powf(-0.7)).collect();
        let centres: Vec<f32> = (0..50 * dim).map(|cell| normal() * spectrum[cell % dim]).collect();
        let mut bytes = Vec::with_capacity(rows * dim * size_of::<f32>());
        for row in 0..rows {
            let size = (0.6 * normal()).exp();
            let centre = &centres[row % 50 * dim..][..dim];
            for (c, s) in centre.iter().zip(&spectrum) {
                bytes.extend((size * (c + s * normal())).to_le_bytes());
            }
        }
        Self { bytes, rows, dim }
    }

    fn pool(&self) -> Pool<'_> {
        let block =
            RowBlock::new(&self.bytes, Dtype::F32, self.rows, self.dim).expect("an aligned matrix");
        Pool::new(vec![block]).expect("a pool")
    }
}

/// Times `call`, which does `work` each time, and reports work per second.
fn rate<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    work: Throughput,
    mut call: impl FnMut() -> T,
) {
    group.throughput(work);
    group.bench_function(name, |bencher| bencher.iter(&mut call));
}

fn searches(criterion: &mut Criterion) {
    const PICKS: usize = 200;
    let matrix = Matrix::clustered(4_000, 256);
    let monitor = Monitor::default();
    let survey = Survey::new(matrix.pool(), false, &monitor).expect("finite rows");

    let mut group =
        criterion.benchmark_group(format!("select {PICKS} of {} x {}", matrix.rows, matrix.dim));
    group.sample_size(10);
    for (name, search) in SEARCHES {
        let settings = Settings { search, ..Settings::default() };
        rate(&mut group, name, Throughput::Elements(PICKS as u64), || {
            select(&survey, &settings, Some(PICKS), &monitor).expect("a selection")
        });
    }
    group.finish();
}

fn kernels(criterion: &mut Criterion) {
    let kernels = Kernels::default();
    let (a, b) = (vec![1.25; CELLS], vec![0.5; CELLS]);
    let mut group = criterion.benchmark_group(format!("kernels, {CELLS} cells"));
    rate(&mut group, "dot", Throughput::Elements(CELLS as u64), || {
        kernels.dot(black_box(&a), black_box(&b))
    });
    // Multiplications a second, for the tile that whitens rows.
    let (left, right) = (vec![1.25; 16 * CELLS], vec![0.5; 48 * CELLS]);
    let left: Vec<&[f64]> = left.chunks_exact(CELLS).collect();
    let right: Vec<&[f64]> = right.chunks_exact(CELLS).collect();
    let mut out = vec![0.0; 16 * 48];
    rate(&mut group, "dots, 16 rows against 48", Throughput::Elements((16 * 48 * CELLS) as u64), || {
        kernels.dots(black_box(&left), black_box(&right), &mut out);
    });
    rate(&mut group, "dots, 16 rows against 1", Throughput::Elements((16 * CELLS) as u64), || {
        kernels.dots(black_box(&left), black_box(&right[..1]), &mut out);
    });
    group.finish();
}

criterion_group!(benches, searches, kernels);
criterion_main!(benches);
