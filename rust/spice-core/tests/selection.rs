//! The two searches against each other and against a naive loop, on random and adversarial pools.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::needless_range_loop, reason = "elimination reads best with its indices")]

use proptest::prelude::*;
use spice_core::Error;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::selection::{
    Fisher, Method, Search, Selection, Settings, StopReason, Survey, select, select_windows,
};

fn settings(fisher: Fisher, search: Search, conflict_penalty: f64) -> Settings {
    Settings { alpha: 1.0, conflict_penalty, early_stop: None, fisher, method: Method::Greedy, search }
}

/// Selects from rows given as one list of cells, cut into blocks after every `cut` rows.
fn run(cells: &[f64], dim: usize, cut: usize, k: usize, settings: &Settings) -> Selection {
    let blocks = cells
        .chunks(dim * cut)
        .map(|part| {
            RowBlock::new(bytemuck::cast_slice(part), Dtype::F64, part.len() / dim, dim).unwrap()
        })
        .collect();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(blocks).unwrap(), false, &monitor).unwrap();
    select(&survey, settings, Some(k), &monitor).unwrap()
}

/// Δ and score of every row by Gaussian elimination on I + αF, nothing shared with the crate.
fn naive_scores(rows: &[&[f64]], picked: &[usize], penalty: f64) -> Vec<(f64, f64)> {
    let dim = rows[0].len();
    let mut matrix = vec![vec![0.0; dim]; dim];
    for (i, line) in matrix.iter_mut().enumerate() {
        for (j, cell) in line.iter_mut().enumerate() {
            *cell = f64::from(u8::from(i == j))
                + picked.iter().map(|&p| rows[p][i] * rows[p][j]).sum::<f64>();
        }
    }
    let mean: Vec<f64> = (0..dim)
        .map(|j| picked.iter().map(|&p| rows[p][j]).sum::<f64>() / picked.len().max(1) as f64)
        .collect();
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    rows.iter()
        .map(|row| {
            let solution = solve(matrix.clone(), row.to_vec());
            let q: f64 = row.iter().zip(&solution).map(|(a, b)| a * b).sum();
            let against = -row.iter().zip(&mean).map(|(a, b)| a * b).sum::<f64>();
            let conflict = (against / (norm(row) * norm(&mean) + 1e-8)).max(0.0);
            (q.ln_1p(), q.ln_1p() - penalty * conflict)
        })
        .collect()
}

fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for j in i + 1..n {
            let factor = a[j][i] / a[i][i];
            for k in i..n {
                let cell = a[i][k];
                a[j][k] -= factor * cell;
            }
            b[j] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        for j in i + 1..n {
            b[i] -= a[i][j] * b[j];
        }
        b[i] /= a[i][i];
    }
    b
}

/// Rows drawn from few values and directions, so that twins, opposite rows, zero rows and ties abound.
fn pools() -> impl Strategy<Value = (Vec<f64>, usize)> {
    (1_usize..7, 1_usize..40).prop_flat_map(|(dim, n)| {
        let cell = prop_oneof![
            4 => -3.0..3.0_f64,
            2 => prop::sample::select(vec![-1.0, 0.0, 0.0, 1.0]),
            1 => prop::sample::select(vec![1e-6, 30.0]),
        ];
        let copies =
            prop::collection::vec((0..n, 0..n, prop::sample::select(vec![1.0, -1.0, 0.0])), 0..6);
        (prop::collection::vec(cell, n * dim), copies).prop_map(move |(mut cells, copies)| {
            for (from, to, sign) in copies {
                for j in 0..dim {
                    cells[to * dim + j] = sign * cells[from * dim + j];
                }
            }
            (cells, dim)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_pick_is_best_and_both_searches_agree(
        (cells, dim) in pools(),
        penalty in prop::sample::select(vec![0.0, 0.1, 1.0, 10.0]),
        cut in 1_usize..10,
    ) {
        let rows: Vec<&[f64]> = cells.chunks(dim).collect();
        let k = rows.len();
        let eager = run(&cells, dim, k, k, &settings(Fisher::Full, Search::Eager, penalty));
        let lazy = run(&cells, dim, cut, k, &settings(Fisher::Full, Search::Lazy, penalty));
        let mut picked = Vec::new();
        for (a, b) in eager.picks.iter().zip(&lazy.picks) {
            prop_assert_eq!(a.row, b.row);
            prop_assert_eq!(a.gain.to_bits(), b.gain.to_bits());
            prop_assert_eq!(a.score.to_bits(), b.score.to_bits());
            prop_assert_eq!(a.overruled, b.overruled);
            let scores = naive_scores(&rows, &picked, penalty);
            let best = (0..k).filter(|row| !picked.contains(row)).map(|row| scores[row].1);
            let best = best.fold(f64::NEG_INFINITY, f64::max);
            prop_assert!((scores[a.row].0 - a.gain).abs() < 1e-9 * (1.0 + a.gain));
            prop_assert!(scores[a.row].1 >= best - 1e-9 * (1.0 + best.abs()));
            picked.push(a.row);
        }
        prop_assert_eq!(picked.len(), k);
    }

    #[test]
    fn the_diagonal_mode_is_lazy_without_a_difference(
        (cells, dim) in pools(),
        penalty in prop::sample::select(vec![0.0, 0.5]),
    ) {
        let k = cells.len() / dim;
        let eager = run(&cells, dim, k, k, &settings(Fisher::Diagonal, Search::Eager, penalty));
        let lazy = run(&cells, dim, 3, k, &settings(Fisher::Diagonal, Search::Lazy, penalty));
        let order = |selection: &Selection| selection.picks.iter().map(|p| p.row).collect::<Vec<_>>();
        prop_assert_eq!(order(&eager), order(&lazy));
    }
}

#[test]
fn a_cancelled_run_is_interrupted() {
    let cells = vec![1.0; 64];
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, 16, 4).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    monitor.cancel();
    for search in [Search::Eager, Search::Lazy] {
        let result = select(&survey, &settings(Fisher::Full, search, 0.1), Some(3), &monitor);
        assert!(matches!(result, Err(Error::Interrupted)));
    }
}

#[test]
fn windows_out_of_range_are_refused() {
    let cells = vec![1.0; 8];
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, 2, 4).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    let settings = settings(Fisher::Full, Search::Lazy, 0.1);
    assert!(select_windows(&survey, &settings, &[&[0, 2]], 1, &monitor).is_err());
    assert!(select_windows(&survey, &settings, &[&[0, 1]], 3, &monitor).is_err());
    let done = select_windows(&survey, &settings, &[&[0], &[1]], 1, &monitor).unwrap();
    assert_eq!((done.picks.len(), done.stop), (2, StopReason::Budget));
}
