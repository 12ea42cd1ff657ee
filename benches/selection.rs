//! `cargo bench`: searches over one synthetic pool, and the kernels that they rest on.
//!
//! One function a subject; `criterion_group!` at the end lists them. A new search goes into [`SEARCHES`], a new kernel
//! into [`kernels`] by one call of [`rate`], which states how much work a call does.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use spice_core::analysis::{certify, curvature};
use spice_core::linalg::{Cholesky, Kernels, add_outer_products, products_of};
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::rows::Position;
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

/// The parts of a selection with rows of 1024 cells; throughput in cells read or in multiplications.
fn kernels(criterion: &mut Criterion) {
    let kernels = Kernels::default();
    let (matrix, monitor) = (Matrix::clustered(4_096, CELLS), Monitor::default());
    let mut group = criterion.benchmark_group(format!("kernels, rows of {CELLS} cells"));
    let cells = |rows: usize| Throughput::Elements((rows * CELLS) as u64);

    rate(&mut group, "first pass: norms, checks and hash of 4096 rows", cells(matrix.rows), || {
        Survey::new(matrix.pool(), false, &monitor).expect("finite rows")
    });

    let (a, b) = (vec![1.25; 512 * CELLS], vec![0.5; 48 * CELLS]);
    let rows: Vec<&[f64]> = a.chunks_exact(CELLS).collect();
    let others: Vec<&[f64]> = b.chunks_exact(CELLS).collect();
    let mut out = vec![0.0; 512 * 48];
    rate(&mut group, "dot", cells(1), || kernels.dot(black_box(rows[0]), black_box(others[0])));
    rate(&mut group, "hot step: 512 rows against a pick", cells(512), || {
        kernels.dots(black_box(&rows), black_box(&others[..1]), &mut out);
    });
    rate(&mut group, "whitening: 16 rows against 48 of X", cells(16 * 48), || {
        kernels.dots(black_box(&rows[..16]), black_box(&others), &mut out);
    });

    let (units, directions) = (vec![0.03_f32; 128 * CELLS], vec![0.02_f32; 64 * CELLS]);
    let mut products = vec![0.0; 128 * 64];
    rate(&mut group, "refresh: 128 unit rows against 64 directions", cells(128 * 64), || {
        products_of(black_box(&units), CELLS, black_box(&directions), CELLS, &mut products);
    });
    group.finish();

    let mut group = criterion.benchmark_group(format!("new epoch, {CELLS} columns"));
    group.sample_size(10);
    let cube = (CELLS * CELLS * CELLS / 3) as u64;
    let mut matrix = vec![0.0; CELLS * CELLS];
    (0..CELLS).for_each(|i| matrix[i * CELLS + i] = 1.0);
    rate(&mut group, "outer products of 512 rows", cells(512 * CELLS / 2), || {
        add_outer_products(&mut matrix, CELLS, black_box(&a), 1e-9);
    });
    rate(&mut group, "Cholesky factor", Throughput::Elements(cube / 2), || {
        Cholesky::new(matrix.clone(), CELLS, || Ok(())).expect("uninterrupted").expect("definite")
    });
    let factor = Cholesky::new(matrix, CELLS, || Ok(())).expect("uninterrupted").expect("definite");
    rate(&mut group, "inverse of the factor", Throughput::Elements(cube / 2), || {
        factor.inverse(|| Ok(())).expect("uninterrupted")
    });
    group.finish();
}

/// What analyses take, beside faer's own product on all threads; throughput in multiplications.
fn passes(criterion: &mut Criterion) {
    const ROWS: usize = 16_384;
    let (matrix, monitor) = (Matrix::clustered(ROWS, CELLS), Monitor::default());
    let survey = Survey::new(matrix.pool(), false, &monitor).expect("finite rows");
    let mut group = criterion.benchmark_group(format!("passes over {ROWS} x {CELLS}"));
    group.sample_size(10);
    let squares = |rows: usize| Throughput::Elements((rows * CELLS * CELLS) as u64);

    let (a, b) = (vec![1.25; 4096 * CELLS], vec![0.5; CELLS * CELLS]);
    let mut product = vec![0.0; 4096 * CELLS];
    rate(&mut group, "product of 4096 rows with a matrix", squares(4096), || {
        let lhs = MatRef::from_column_major_slice(&b, CELLS, CELLS);
        let rhs = MatRef::from_column_major_slice(&a, CELLS, 4096);
        let target = MatMut::from_column_major_slice_mut(&mut product, CELLS, 4096);
        matmul(target, Accum::Replace, black_box(lhs), rhs, 1.0, Par::rayon(0));
    });
    // Half a square for M, half a square for the whitening.
    rate(&mut group, "curvature", squares(ROWS), || {
        curvature(&survey, 1.0, &monitor).expect("a curvature")
    });
    let picks: Vec<Position> = (0..200).map(|i| Position::new(i * 80)).collect();
    let prefixes = [0, 1, 4, 14, 53, 200];
    let cells = Throughput::Elements((ROWS * CELLS * picks.len()) as u64);
    rate(&mut group, "certificate of 200 picks", cells, || {
        certify(&survey, 1.0, &[], &picks, &prefixes, 4, &monitor).expect("a certificate")
    });
    group.finish();
}

criterion_group!(benches, searches, kernels, passes);
criterion_main!(benches);
