//! Curvature and certificates against their definitions, by elimination and by looking at every subset.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::needless_range_loop, reason = "elimination reads best with its indices")]

use proptest::prelude::*;
use spice_core::Error;
use spice_core::analysis::{certify, curvature, guarantee};
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::rows::Position;
use spice_core::selection::Survey;

/// A survey of rows given as one list of cells, cut into blocks after every `cut` rows, for `work`.
fn with_survey<T>(cells: &[f64], dim: usize, cut: usize, work: impl FnOnce(&Survey<'_>) -> T) -> T {
    let blocks = cells
        .chunks(dim * cut)
        .map(|part| {
            RowBlock::new(bytemuck::cast_slice(part), Dtype::F64, part.len() / dim, dim).unwrap()
        })
        .collect();
    work(&Survey::new(Pool::new(blocks).unwrap(), false, &Monitor::default()).unwrap())
}

/// U of some rows by elimination of I + GGᵀ, nothing shared with the crate.
fn log_det(rows: &[&[f64]], chosen: &[usize]) -> f64 {
    let size = chosen.len();
    let mut matrix = vec![vec![0.0; size]; size];
    for i in 0..size {
        for j in 0..size {
            let product: f64 = rows[chosen[i]].iter().zip(rows[chosen[j]]).map(|(a, b)| a * b).sum();
            matrix[i][j] = product + f64::from(u8::from(i == j));
        }
    }
    let mut sum = 0.0;
    for i in 0..size {
        sum += matrix[i][i].ln();
        for j in i + 1..size {
            let factor = matrix[j][i] / matrix[i][i];
            for k in i..size {
                let cell = matrix[i][k];
                matrix[j][k] -= factor * cell;
            }
        }
    }
    sum
}

/// All subsets of `0..n` with `k` members.
fn subsets(n: usize, k: usize) -> Vec<Vec<usize>> {
    (0_u32..1 << n)
        .filter(|mask| mask.count_ones() as usize == k)
        .map(|mask| (0..n).filter(|i| mask >> i & 1 == 1).collect())
        .collect()
}

/// Few rows from few values, so that twins, opposite rows and zero rows abound.
fn pools() -> impl Strategy<Value = (Vec<f64>, usize)> {
    (1_usize..12, 1_usize..9, prop::sample::select(vec![1e-3, 1.0, 1e3])).prop_flat_map(
        |(dim, n, scale)| {
            let cell = (-2_i32..3).prop_map(move |cell| f64::from(cell) * scale);
            (prop::collection::vec(cell, dim * n), Just(dim))
        },
    )
}

fn at(places: &[usize]) -> Vec<Position> {
    places.iter().copied().map(Position::new).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_curvature_is_that_of_the_definition((cells, dim) in pools(), cut in 1_usize..5) {
        let rows: Vec<&[f64]> = cells.chunks(dim).collect();
        let n = rows.len();
        let found = with_survey(&cells, dim, cut, |survey| {
            curvature(survey, 1.0, &Monitor::default()).unwrap()
        });
        let all: Vec<usize> = (0..n).collect();
        let longest = rows.iter().map(|row| row.iter().map(|cell| cell * cell).sum()).fold(0.0, f64::max);
        let mut smallest = f64::INFINITY;
        let mut most_error = 1e-6_f64;
        for x in 0..n {
            let alone = log_det(&rows, &[x]);
            let others: Vec<usize> = (0..n).filter(|&row| row != x).collect();
            if alone == 0.0 {
                prop_assert!(found.ratios[x].is_nan());
                continue;
            }
            let gain = log_det(&rows, &all) - log_det(&rows, &others);
            let ratio = gain / alone;
            // With more rows than columns αh comes from a d × d matrix, and 1 − αh = e^−gain is its small rest.
            if n > dim {
                let condition = 1.0 + n as f64 * longest;
                most_error = most_error.max(1e-14 * condition * gain.exp() / alone);
            }
            prop_assert!((found.ratios[x] - ratio).abs() < 1e-6, "{} {ratio}", found.ratios[x]);
            smallest = smallest.min(found.ratios[x]);
        }
        if let Some(position) = found.position {
            prop_assert_eq!(found.total, 1.0 - smallest);
            prop_assert_eq!(found.ratios[position.get()], smallest);
        }
        prop_assert!(found.error >= 0.0 && found.error < most_error, "{} {most_error}", found.error);
        prop_assert!(found.guarantee() <= guarantee(found.total));
    }

    #[test]
    fn no_subset_is_better_than_the_certificate((cells, dim) in pools(), k in 1_usize..5, first in 0_usize..9) {
        let rows: Vec<&[f64]> = cells.chunks(dim).collect();
        let n = rows.len();
        let k = k.min(n);
        // Any rows are picks.
        let picks: Vec<usize> = (0..k).map(|i| (first + 2 * i) % n).collect();
        let unique = picks.iter().collect::<std::collections::HashSet<_>>().len() == k;
        let prefixes: Vec<usize> = (0..=k).collect();
        let found = with_survey(&cells, dim, 3, |survey| {
            certify(survey, 1.0, &[], &at(&picks), &prefixes, 4, &Monitor::default())
        });
        if !unique {
            let refused = matches!(found, Err(Error::InvalidInput { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let found = found.unwrap();
        let best = subsets(n, k).iter().map(|chosen| log_det(&rows, chosen)).fold(0.0, f64::max);
        for (submodular, concave) in found.submodular.iter().zip(&found.concave) {
            prop_assert!(*submodular >= best * (1.0 - 1e-9) && *concave >= best * (1.0 - 1e-9));
        }
        prop_assert!(found.upper_bound() >= best * (1.0 - 1e-9));
        if best > 0.0 {
            prop_assert!(found.ratio() <= log_det(&rows, &picks) / best * (1.0 + 1e-9));
        }
    }
}

#[test]
fn guarantees_run_from_all_to_what_greedy_always_has() {
    assert_eq!(guarantee(0.0), 1.0);
    assert!((guarantee(1e-13) - 1.0).abs() < 1e-12 && (guarantee(1e-9) - 1.0).abs() < 1e-9);
    assert!((guarantee(1.0) - (1.0 - (-1.0_f64).exp())).abs() < 1e-15);
    assert!(guarantee(0.3) > guarantee(0.31));
}

#[test]
fn the_guarantee_of_a_pool_is_never_above_the_formula() {
    // The error of c is a few bits in the first of them, so that rounding alone decides.
    for cells in [&[2e3, -2e3, 2e3, -1e3][..], &[1.0], &[3.0, 1.0, -2.0], &[1e-3, 2e-3]] {
        let found =
            with_survey(cells, 1, 1, |survey| curvature(survey, 1.0, &Monitor::default()).unwrap());
        assert!(found.guarantee() <= guarantee(found.total), "{cells:?}");
        assert!(found.guarantee() >= 1.0 - (-1.0_f64).exp() - 1e-6);
    }
    // No rows but zero rows: U is 0 of any picks, and greedy has all of it.
    with_survey(&[0.0; 3], 1, 2, |survey| {
        assert_eq!(curvature(survey, 1.0, &Monitor::default()).unwrap().guarantee(), 1.0);
    });
}

#[test]
fn threads_and_blocks_do_not_show() {
    let (dim, n) = (17, 900);
    let mut state = 3_u64;
    let cells: Vec<f64> = (0..n * dim)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        })
        .collect();
    let picks: Vec<usize> = (0..60).map(|i| i * 13).collect();
    let run = |threads: usize, cut: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            with_survey(&cells, dim, cut, |survey| {
                let monitor = Monitor::default();
                let found = curvature(survey, 1.0, &monitor).unwrap();
                let prefixes = [0, 3, 8, 15, 60];
                let certificate =
                    certify(survey, 1.0, &at(&[1, 2]), &at(&picks), &prefixes, 4, &Monitor::default())
                        .unwrap();
                (found.ratios, certificate.submodular, certificate.concave, certificate.relaxed)
            })
        })
    };
    let first = run(1, 900);
    assert_eq!(first, run(2, 7));
    assert_eq!(first, run(3, 100));
}

#[test]
fn a_monitor_stops_an_analysis() {
    let cells = vec![1.0; 50 * 4];
    with_survey(&cells, 4, 50, |survey| {
        let monitor = Monitor::default();
        monitor.cancel();
        assert!(matches!(curvature(survey, 1.0, &monitor), Err(Error::Interrupted)));
        let stopped = certify(survey, 1.0, &[], &at(&[3, 4]), &[0, 2], 4, &monitor);
        assert!(matches!(stopped, Err(Error::Interrupted)));
    });
}

#[test]
fn prefixes_and_settings_out_of_range_are_refused() {
    let cells = vec![1.0; 5 * 4];
    with_survey(&cells, 4, 5, |survey| {
        let monitor = Monitor::default();
        for prefixes in [&[0, 1][..], &[2, 1, 3], &[]] {
            assert!(certify(survey, 1.0, &[], &at(&[0, 1, 2]), prefixes, 4, &monitor).is_err());
        }
        assert!(certify(survey, 1.0, &[], &at(&[0, 5]), &[2], 4, &monitor).is_err());
        assert!(curvature(survey, 0.0, &monitor).is_err());
        assert!(curvature(survey, f64::NAN, &monitor).is_err());
    });
}
