//! The two searches against each other and against a naive loop, on random and adversarial pools.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::needless_range_loop, reason = "elimination reads best with its indices")]

use proptest::prelude::*;
use spice_core::Error;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::rows::Position;
use spice_core::selection::{
    Conditions, Fisher, Method, Search, Selection, Settings, StopReason, Survey, fingerprint, log_det,
    resume, select, select_windows,
};

fn settings(fisher: Fisher, search: Search, conflict_penalty: f64) -> Settings {
    Settings { conflict_penalty, fisher, search, ..Settings::default() }
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

/// Many rows of few columns on both sides of an axis, some of them with their opposites: once gains are
/// small, conflicts decide, and the mean turns far and may come back to zero.
fn camps() -> impl Strategy<Value = (Vec<f64>, usize)> {
    (
        1_usize..5,
        20_usize..100,
        0.05..1.5_f64,
        0.0..1.0_f64,
        (prop::sample::select(vec![1.0, 1.0, 1e-4, 1e-6]), any::<u64>()),
    )
        .prop_map(|(dim, n, spread, pairs, (scale, seed))| {
            let mut state = seed;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
            };
            let axis: Vec<f64> = (0..dim).map(|_| next()).collect();
            let mut cells: Vec<f64> = Vec::with_capacity(n * dim);
            while cells.len() < n * dim {
                let opposite = next().abs() < pairs && !cells.is_empty();
                let side = (next() + 0.4).signum() * (0.2 + 2.0 * next().abs());
                for &along in &axis {
                    let last = if cells.is_empty() { 0.0 } else { cells[cells.len().max(dim) - dim] };
                    cells.push(if opposite { -last } else { scale * (side * along + spread * next()) });
                }
            }
            (cells, dim)
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
            prop_assert_eq!(a.position, b.position);
            prop_assert_eq!(a.gain.to_bits(), b.gain.to_bits());
            prop_assert_eq!(a.score.to_bits(), b.score.to_bits());
            prop_assert_eq!(a.overruled, b.overruled);
            let scores = naive_scores(&rows, &picked, penalty);
            let best = (0..k).filter(|row| !picked.contains(row)).map(|row| scores[row].1);
            let best = best.fold(f64::NEG_INFINITY, f64::max);
            prop_assert!((scores[a.position.get()].0 - a.gain).abs() < 1e-9 * (1.0 + a.gain));
            prop_assert!(scores[a.position.get()].1 >= best - 1e-9 * (1.0 + best.abs()));
            picked.push(a.position.get());
        }
        prop_assert_eq!(picked.len(), k);
    }

    #[test]
    fn neither_the_order_of_rows_nor_blocks_hot_rows_and_searches_matter(
        (cells, dim) in prop_oneof![pools(), camps()],
        penalty in prop::sample::select(vec![0.0, 0.01, 0.1, 1.0, 10.0]),
        cuts in prop::collection::vec(0_usize..100, 0..6),
        keys in prop::collection::vec(any::<u32>(), 100),
        hot_rows in prop::sample::select(vec![1_usize, 2, 3, 5, 9, 20, 45]),
        early_stop in prop::sample::select(vec![None, None, Some(0.3)]),
    ) {
        let n = cells.len() / dim;
        let with = |search, hot_rows| Settings {
            hot_rows, early_stop, ..settings(Fisher::Full, search, penalty)
        };
        let eager = run(&cells, dim, n, n, &with(Search::Eager, None));
        // The rows in another order, cut anywhere, empty blocks among them.
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&row| keys[row]);
        let moved: Vec<f64> =
            order.iter().flat_map(|&row| &cells[row * dim..(row + 1) * dim]).copied().collect();
        let mut ends: Vec<usize> = cuts.iter().map(|&cut| cut.min(n)).chain([n]).collect();
        ends.sort_unstable();
        let mut start = 0;
        let blocks = ends.iter().map(|&end| {
            let part = &moved[start * dim..end * dim];
            let rows = end - start;
            start = end;
            RowBlock::new(bytemuck::cast_slice(part), Dtype::F64, rows, dim).unwrap()
        });
        let pool = Pool::new(blocks.collect()).unwrap();
        let pool = pool.with_index(order.iter().map(|&row| row as i64).collect()).unwrap();
        let monitor = Monitor::default();
        let survey = Survey::new(pool, false, &monitor).unwrap();
        for search in [Search::Lazy, Search::LazyGain] {
            let other = select(&survey, &with(search, Some(hot_rows)), Some(n), &monitor).unwrap();
            prop_assert_eq!(other.stop, eager.stop);
            prop_assert_eq!(other.picks.len(), eager.picks.len());
            for (a, b) in eager.picks.iter().zip(&other.picks) {
                prop_assert_eq!(a.row, b.row);
                prop_assert_eq!(a.overruled, b.overruled);
                for (a, b) in [(a.gain, b.gain), (a.score, b.score), (a.conflict, b.conflict), (a.base, b.base)] {
                    prop_assert_eq!(a.to_bits(), b.to_bits());
                }
            }
        }
    }

    #[test]
    fn the_diagonal_mode_is_lazy_without_a_difference(
        (cells, dim) in pools(),
        penalty in prop::sample::select(vec![0.0, 0.5]),
    ) {
        let k = cells.len() / dim;
        let eager = run(&cells, dim, k, k, &settings(Fisher::Diagonal, Search::Eager, penalty));
        let lazy = run(&cells, dim, 3, k, &settings(Fisher::Diagonal, Search::Lazy, penalty));
        let order = |selection: &Selection| selection.picks.iter().map(|p| p.position).collect::<Vec<_>>();
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
    let [first, second, third] = [0, 1, 2].map(Position::new);
    assert!(select_windows(&survey, &settings, &[&[first, third]], 1, &monitor).is_err());
    assert!(select_windows(&survey, &settings, &[&[first, second]], 3, &monitor).is_err());
    let done = select_windows(&survey, &settings, &[&[first], &[second]], 1, &monitor).unwrap();
    assert_eq!((done.picks.len(), done.stop), (2, StopReason::Budget));
}

/// A pool of `n` rows with twins, opposite rows and a zero row.
fn pool_of_twins(n: usize, dim: usize) -> Vec<f64> {
    let mut cells: Vec<f64> =
        (0..n * dim).map(|i| ((i * i * 7 + i * 13) % 101) as f64 / 40.0 - 1.2).collect();
    let first: Vec<f64> = cells[..dim].to_vec();
    cells[5 * dim..6 * dim].copy_from_slice(&first);
    for (cell, twin) in cells[9 * dim..10 * dim].iter_mut().zip(&first) {
        *cell = -twin;
    }
    cells[12 * dim..13 * dim].fill(0.0);
    cells
}

#[test]
fn a_run_resumed_after_any_pick_ends_with_the_same_bits() {
    let (n, dim) = (90, 4); // many epochs of the full Fisher information
    let cells = pool_of_twins(n, dim);
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, n, dim).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    for (fisher, method, search) in [
        (Fisher::Full, Method::Greedy, Search::Lazy),
        (Fisher::Full, Method::Greedy, Search::Eager),
        (Fisher::Diagonal, Method::Greedy, Search::Lazy),
        (Fisher::Scalar, Method::Greedy, Search::Lazy),
        (Fisher::Full, Method::TopK, Search::Lazy),
    ] {
        for early_stop in [None, Some(0.2)] {
            let settings = Settings { method, early_stop, ..settings(fisher, search, 0.3) };
            let whole = select(&survey, &settings, None, &monitor).unwrap();
            for cut in 0..=whole.picks.len() {
                let watched = Monitor::default();
                let resumed = resume(
                    &survey,
                    &settings,
                    &Conditions::default(),
                    None,
                    (&whole.picks[..cut], &[]),
                    &watched,
                )
                .unwrap();
                let of = |selection: &Selection| {
                    let blind = |pick: &_| spice_core::selection::Pick { rows_read: 0, ..*pick };
                    selection.picks.iter().map(blind).collect::<Vec<_>>()
                };
                assert_eq!(of(&resumed), of(&whole), "{fisher:?} {method:?} {search:?} {cut}");
                assert_eq!(resumed.picks[..cut], whole.picks[..cut]);
                assert_eq!((resumed.stop, &resumed.log_dets), (whole.stop, &whole.log_dets));
                assert_eq!(watched.log(), resumed.picks);
            }
        }
    }
}

#[test]
fn a_run_over_more_rows_than_are_hot_resumes_to_the_same_bits() {
    let (n, dim, k) = (3000, 16, 150);
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
    };
    let mut cells: Vec<f64> = (0..n * dim).map(|_| next()).collect();
    cells.copy_within(..500 * dim, 2000 * dim); // twins
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, n, dim).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    for penalty in [0.0, 0.5] {
        let settings = settings(Fisher::Full, Search::Lazy, penalty);
        let whole = select(&survey, &settings, Some(k), &monitor).unwrap();
        for cut in [1, 2, 7, 31, 32, 33, 64, 100, 149, 150] {
            let resumed = resume(
                &survey,
                &settings,
                &Conditions::default(),
                Some(k),
                (&whole.picks[..cut], &[]),
                &Monitor::default(),
            )
            .unwrap();
            for (found, expected) in resumed.picks.iter().zip(&whole.picks) {
                let blind = spice_core::selection::Pick { rows_read: expected.rows_read, ..*found };
                assert_eq!(blind, *expected, "λ {penalty}, {cut}");
            }
            assert_eq!(resumed.log_dets, whole.log_dets);
        }
    }
}

#[test]
fn approximate_runs_are_not_resumed() {
    let cells = pool_of_twins(20, 4);
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, 20, 4).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    for method in [Method::EpsilonLazy, Method::Stochastic] {
        let settings = Settings { method, ..settings(Fisher::Full, Search::Lazy, 0.1) };
        let whole = select(&survey, &settings, Some(8), &monitor).unwrap();
        let from = |count: usize| {
            resume(
                &survey,
                &settings,
                &Conditions::default(),
                Some(8),
                (&whole.picks[..count], &[]),
                &Monitor::default(),
            )
        };
        assert_eq!(from(0).unwrap().picks, whole.picks);
        let error = from(3).unwrap_err().to_string();
        assert!(error.starts_with("picks to resume from: found 3 of an approximate run"), "{error}");
    }
}

#[test]
fn picks_that_no_run_can_have_made_are_refused() {
    let cells = pool_of_twins(20, 4);
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, 20, 4).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    let settings = settings(Fisher::Full, Search::Lazy, 0.1);
    let made = select(&survey, &settings, Some(8), &monitor).unwrap().picks;
    let refused = |made: &[_]| {
        let result = resume(
            &survey,
            &settings,
            &Conditions::default(),
            Some(8),
            (made, &[]),
            &Monitor::default(),
        );
        matches!(result, Err(Error::InvalidInput { .. }))
    };
    assert!(!refused(&made));
    assert!(refused(&[made[0], made[0]]));
    assert!(refused(&[made[0], spice_core::selection::Pick { position: Position::new(20), ..made[1] }]));
    assert!(refused(&[made[1], made[0]]), "the gains are those of another order");
    assert!(refused(&[spice_core::selection::Pick { gain: f64::NAN, ..made[0] }]));
    assert!(
        resume(&survey, &settings, &Conditions::default(), Some(7), (&made, &[]), &Monitor::default())
            .is_err()
    );
}

#[test]
fn a_time_limit_that_has_passed_keeps_what_was_made() {
    let cells = pool_of_twins(40, 4);
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, 40, 4).unwrap();
    let pool = Pool::new(vec![block]).unwrap();
    let late = || {
        let monitor = Monitor::with_time_limit(1e-9).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        monitor
    };
    let survey = Survey::new(pool, false, &late()).unwrap();
    let settings = settings(Fisher::Full, Search::Lazy, 0.1);
    let whole = select(&survey, &settings, Some(30), &Monitor::default()).unwrap();
    for (made, stop) in
        [(0, StopReason::TimeLimit), (29, StopReason::TimeLimit), (30, StopReason::Budget)]
    {
        let limited = resume(
            &survey,
            &settings,
            &Conditions::default(),
            Some(30),
            (&whole.picks[..made], &[]),
            &late(),
        )
        .unwrap();
        assert_eq!((limited.picks.as_slice(), limited.stop), (&whole.picks[..made], stop));
        assert_eq!(limited.log_dets, whole.log_dets[..made]);
    }
    for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Monitor::with_time_limit(seconds).is_err());
    }
    assert!(Monitor::with_time_limit(f64::MAX).is_ok());
}

#[test]
fn log_dets_are_log_det_of_every_prefix_whatever_the_rank() {
    for (n, dim) in [(30, 64), (30, 30), (90, 7), (50, 1)] {
        let cells = pool_of_twins(n, dim);
        let settings = Settings { method: Method::TopK, ..settings(Fisher::Full, Search::Lazy, 0.0) };
        let selection = run(&cells, dim, n, n, &settings);
        let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, n, dim).unwrap();
        let monitor = Monitor::default();
        let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
        let rows: Vec<Position> = selection.picks.iter().map(|pick| pick.position).collect();
        for (t, found) in selection.log_dets.iter().enumerate() {
            let expected = log_det(&survey, 1.0, &rows[..=t], &monitor).unwrap();
            assert!((found - expected).abs() <= 1e-12 * expected, "{n} × {dim}, {t}");
        }
    }
}

#[test]
fn the_fingerprint_alone_is_the_one_of_a_survey() {
    let cells = pool_of_twins(700, 3); // several chunks
    let pool = |cut: usize| {
        let parts = cells.chunks(3 * cut).map(|part| {
            RowBlock::new(bytemuck::cast_slice(part), Dtype::F64, part.len() / 3, 3).unwrap()
        });
        Pool::new(parts.collect()).unwrap()
    };
    let monitor = Monitor::default();
    let expected = Survey::new(pool(700), false, &monitor).unwrap().fingerprint();
    assert_eq!(fingerprint(&pool(700), None, &monitor).unwrap(), expected);
    assert_eq!(fingerprint(&pool(33), None, &monitor).unwrap(), expected);
}
