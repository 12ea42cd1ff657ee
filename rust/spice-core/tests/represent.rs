//! The second moment of a pool and its geometry, against naive loops.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::needless_range_loop, reason = "matrices read best with their indices")]

use rayon::ThreadPoolBuilder;
use spice_core::Error;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::represent::{Geometry, NOTHING, SecondMoment};
use spice_core::rows::Position;
use spice_core::survey::Survey;

fn rows(count: usize, dim: usize) -> Vec<f32> {
    let mut state = 9_u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.3
    };
    (0..count * dim).map(|at| next() / (1.0 + (at % dim) as f32)).collect()
}

fn survey<'a>(blocks: &[&'a [f32]], dim: usize, index: Option<Vec<i64>>) -> Survey<'a> {
    let blocks = blocks.iter().map(|cells| {
        RowBlock::new(bytemuck::cast_slice(cells), Dtype::F32, cells.len() / dim, dim).unwrap()
    });
    let mut pool = Pool::new(blocks.collect()).unwrap();
    if let Some(index) = index {
        pool = pool.with_index(index).unwrap();
    }
    Survey::new(pool, true, &Monitor::default()).unwrap()
}

/// F of unit rows, cell by cell.
fn naive_moment(survey: &Survey<'_>) -> Vec<f64> {
    let dim = survey.dim();
    let (mut sum, mut row) = (vec![0.0; dim * dim], vec![0.0; dim]);
    for position in (0..survey.len()).map(Position::new) {
        survey.load(position, &mut row);
        for i in 0..dim {
            for j in 0..dim {
                sum[i * dim + j] += row[i] * row[j];
            }
        }
    }
    sum
}

fn transformed(geometry: &Geometry, survey: &Survey<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; survey.len() * geometry.columns()];
    geometry.transform(survey, &mut out, &Monitor::default()).unwrap();
    out
}

#[test]
fn eigenvectors_and_values_are_those_of_the_naive_sum() {
    for (count, dim) in [(1, 1), (3, 5), (400, 7), (700, 300)] {
        let cells = rows(count, dim);
        let survey = survey(&[&cells], dim, None);
        let moment = naive_moment(&survey);
        let found = SecondMoment::new(&survey, &Monitor::default()).unwrap();
        let trace: f64 = (0..dim).map(|i| moment[i * dim + i]).sum();
        let largest = trace / found.spectrum.iter().sum::<f64>();
        assert!((found.spectrum[0] - 1.0).abs() < 1e-15);
        assert!(found.spectrum.is_sorted_by(|a, b| a >= b));
        // γ = 0: the eigenvectors themselves.
        let geometry = found.geometry(0.0, None);
        let vectors: Vec<&[f64]> = geometry.directions().chunks_exact(dim).collect();
        assert_eq!(vectors.len(), count.min(dim));
        for (i, a) in vectors.iter().enumerate() {
            let image = |row: usize| -> f64 { (0..dim).map(|j| moment[row * dim + j] * a[j]).sum() };
            for row in 0..dim {
                let error = (image(row) - largest * found.spectrum[i] * a[row]).abs();
                assert!(error < 1e-11 * largest * dim as f64, "{count} × {dim}: vector {i}: {error}");
            }
            for (j, b) in vectors.iter().enumerate() {
                let product: f64 = a.iter().zip(*b).map(|(a, b)| a * b).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-11);
            }
        }
    }
}

#[test]
fn rows_are_products_with_the_directions_rounded_once() {
    let (count, dim) = (500, 40);
    let cells = rows(count, dim);
    let survey = survey(&[&cells], dim, None);
    let found = SecondMoment::new(&survey, &Monitor::default()).unwrap();
    for (gamma, rank) in [(0.5, None), (1.0, Some(7)), (4.0, None)] {
        let geometry = found.geometry(gamma, rank);
        assert_eq!(geometry.columns(), rank.unwrap_or(dim));
        let out = transformed(&geometry, &survey);
        let mut row = vec![0.0; dim];
        for i in 0..count {
            survey.load(Position::new(i), &mut row);
            for (j, direction) in geometry.directions().chunks_exact(dim).enumerate() {
                let product: f64 = direction.iter().zip(&row).map(|(a, b)| a * b).sum();
                let error = (f64::from(out[i * geometry.columns() + j]) - product).abs();
                assert!(error <= 6.0e-8 * product.abs() + 1e-15, "{i}, {j}: {error}");
            }
        }
    }
}

#[test]
fn no_bit_depends_on_threads_blocks_or_the_place_of_a_row() {
    let (count, dim) = (1111, 70);
    let mut cells = rows(count, dim);
    // The same row, and its opposite, at all places of a block of products.
    let one = cells[..dim].to_vec();
    for place in 300..900 {
        let sign = if place % 3 == 0 { -1.0 } else { 1.0 };
        let own = cells[place * dim..].iter_mut().zip(&one);
        own.take(dim).for_each(|(cell, first)| *cell = sign * first);
    }
    let whole = survey(&[&cells], dim, None);
    let all = |survey: &Survey<'_>, threads: usize| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let found = SecondMoment::new(survey, &Monitor::default()).unwrap();
            let geometry = found.geometry(1.0, None);
            (found.spectrum.clone(), geometry.directions().to_vec(), transformed(&geometry, survey))
        })
    };
    let expected = all(&whole, 1);
    for threads in [2, 5] {
        assert_eq!(all(&whole, threads), expected);
    }
    // The rows in another order of blocks, with their numbers.
    let (first, second) = cells.split_at(401 * dim);
    let index = (401..count as i64).chain(0..401).collect();
    let turned = all(&survey(&[second, first], dim, Some(index)), 3);
    assert_eq!((&turned.0, &turned.1), (&expected.0, &expected.1));
    assert_eq!(turned.2[(count - 401) * dim..], expected.2[..401 * dim]);
    assert_eq!(turned.2[..(count - 401) * dim], expected.2[401 * dim..]);
    for place in 300..900 {
        let own = expected.2[place * dim..][..dim].iter().zip(&expected.2);
        let sign = if place % 3 == 0 { -1.0 } else { 1.0 };
        assert!(own.clone().all(|(cell, first)| *cell == sign * first));
    }
}

#[test]
fn directions_without_energy_are_no_columns() {
    let mut cells = rows(60, 10);
    cells.chunks_exact_mut(10).for_each(|row| row[4..].fill(0.0));
    let pool = survey(&[&cells], 10, None);
    let found = SecondMoment::new(&pool, &Monitor::default()).unwrap();
    assert!(found.spectrum[4..].iter().all(|&share| share <= NOTHING));
    assert_eq!(found.geometry(1.0, None).columns(), 4);
    assert_eq!(found.geometry(1.0, Some(9)).columns(), 4);
    let nothing = [0.0; 30];
    let pool = survey(&[&nothing], 10, None);
    let geometry = SecondMoment::new(&pool, &Monitor::default()).unwrap().geometry(1.0, None);
    assert_eq!(transformed(&geometry, &pool), [0.0; 3]);
}

#[test]
fn whoever_is_told_to_stop_stops() {
    let cells = rows(50, 400);
    let pool = survey(&[&cells], 400, None);
    let geometry = SecondMoment::new(&pool, &Monitor::default()).unwrap().geometry(1.0, None);
    let monitor = Monitor::default();
    monitor.cancel();
    assert!(matches!(SecondMoment::new(&pool, &monitor), Err(Error::Interrupted)));
    let mut out = vec![0.0; 50 * geometry.columns()];
    assert!(matches!(geometry.transform(&pool, &mut out, &monitor), Err(Error::Interrupted)));
    assert!(geometry.transform(&pool, &mut out[1..], &Monitor::default()).is_err());
    assert!(Geometry::known(vec![1.0; 7], 3).is_err());
    assert!(Geometry::known(vec![], 3).is_err());
}
