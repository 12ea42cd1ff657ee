//! Properties of the parts: what is claimed of bounds, of hot rows, of epochs and of angles.

use super::cold::{Bar, Cold};
use super::directions::Directions;
use super::drift::Turn;
use super::epoch::Epoch;
use super::gram::Gram;
use super::hot::Hot;
use crate::linalg::{Cholesky, add_outer_products};
use crate::matrix::{Dtype, Pool, RowBlock};
use crate::monitor::Monitor;
use crate::selection::run::Run;
use crate::selection::{Conditions, Settings, Survey};

/// Numbers in [−1, 1) that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
    }

    fn below(&mut self, end: usize) -> usize {
        (((self.next() + 1.0) / 2.0 * end as f64) as usize).min(end - 1)
    }

    /// Rows near a few directions, every fourth one the twin or the opposite of another, one of zeros; norms
    /// are 10 to a power between the two given ones.
    fn rows(&mut self, n: usize, dim: usize, powers: (f64, f64)) -> Vec<f64> {
        let centres: Vec<f64> = (0..3 * dim).map(|_| self.next()).collect();
        let mut cells = Vec::with_capacity(n * dim);
        for row in 0..n {
            let (from, sign) = (self.below(row.max(1)), self.next().signum());
            if row % 4 == 3 {
                cells.extend_from_within(from * dim..(from + 1) * dim);
                cells[row * dim..].iter_mut().for_each(|cell| *cell *= sign);
                continue;
            }
            let centre = &centres[self.below(3) * dim..][..dim];
            let mut fresh: Vec<f64> =
                centre.iter().map(|cell| sign * cell + 0.5 * self.next()).collect();
            let norm = fresh.iter().map(|cell| cell * cell).sum::<f64>().sqrt();
            let power = (powers.0 + powers.1 + self.next() * (powers.1 - powers.0)) / 2.0;
            let scale = if row == 5 { 0.0 } else { 10_f64.powf(power) / norm };
            fresh.iter_mut().for_each(|cell| *cell *= scale);
            cells.extend(fresh);
        }
        cells
    }
}

/// Calls `check` with a run over `cells` on which nothing is picked yet.
fn with_run(cells: &[f64], dim: usize, alpha: f64, penalty: f64, check: impl FnOnce(Run<'_>)) {
    let block = RowBlock::new(bytemuck::cast_slice(cells), Dtype::F64, cells.len() / dim, dim).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    let settings = Settings { alpha, conflict_penalty: penalty, ..Settings::default() };
    let conditions = Conditions::default();
    check(Run::new(&survey, &settings, penalty, &conditions, &monitor));
}

/// An epoch and the directions of its picks, for which rows are picked by hand.
struct Picked<'a> {
    epoch: Epoch<'a>,
    directions: Directions,
    rows: Vec<usize>,
    epochs: usize,
}

impl<'a> Picked<'a> {
    fn new(run: &Run<'a>) -> Self {
        let (survey, monitor) = (run.survey, run.monitor);
        let epoch = Epoch::new(survey, run.alpha, survey.len(), monitor);
        Self { epoch, directions: Directions::new(survey.dim()), rows: Vec::new(), epochs: 1 }
    }

    /// Picks a row; returns whether an epoch ended with it.
    fn push(&mut self, row: usize, run: &Run<'_>) -> bool {
        let mut hot = Hot::new(self.epoch.row_len(), self.epoch.picks() + 1);
        hot.insert(std::iter::once((0, row)), &self.epoch, run).unwrap();
        self.epoch.push(row, hot.whitened(0), hot.coordinates(0), hot.values[0]);
        self.rows.push(row);
        if !self.epoch.is_over() {
            return false;
        }
        self.restart(run);
        true
    }

    fn restart(&mut self, run: &Run<'_>) {
        self.directions.extend(&self.epoch).unwrap();
        self.directions.restart(2 * run.survey.dim());
        self.epoch.restart().unwrap();
        self.epochs += 1;
    }

    /// q of rows by a factor of I + αF, the definition.
    fn values(&self, rows: &[usize], run: &Run<'_>) -> Vec<f64> {
        let dim = run.survey.dim();
        let mut matrix = vec![0.0; dim * dim];
        (0..dim).for_each(|i| matrix[i * dim + i] = 1.0);
        let mut cells = vec![0.0; dim];
        for &row in &self.rows {
            run.survey.load(row, &mut cells);
            add_outer_products(&mut matrix, dim, &cells, run.alpha);
        }
        let factor = Cholesky::new(matrix, dim, || Ok(())).unwrap().unwrap();
        let value = |&row: &usize| {
            run.survey.load(row, &mut cells);
            factor.solve_lower(&mut cells);
            cells.iter().map(|cell| cell * cell).sum()
        };
        rows.iter().map(value).collect()
    }
}

/// A bar that asks for `score` and knows of no angles.
fn bar(score: f64, slack: f64) -> Bar<'static> {
    Bar { score, slack, turns: &[], mean_norm: 0.0 }
}

#[test]
fn a_refreshed_bound_is_above_the_value_and_close_to_it() {
    let mut random = Random(1);
    for (dim, powers, alpha) in [
        (1, (0.0, 0.0), 1.0),
        (6, (-1.0, 1.0), 1.0),
        (6, (-6.0, 4.0), 1.0),
        (40, (-6.0, -6.0), 30.0),
        (40, (2.0, 4.0), 1.0),
        (150, (-1.0, 1.0), 0.1),
        (600, (0.0, 1.0), 1.0),
    ] {
        let (n, picks) = (160, 120);
        let cells = random.rows(n, dim, powers);
        with_run(&cells, dim, alpha, 0.0, |run| {
            let mut cold = Cold::new((0..n).collect(), &run);
            let mut picked = Picked::new(&run);
            let (mut by_directions, mut by_factor) = (0, 0);
            for count in 1..=picks {
                if picked.push(random.below(n), &run) {
                    cold.restart();
                }
                if count % 20 != 0 && count != 3 {
                    continue;
                }
                // Rows of all ages: some were refreshed lately, some long ago, some never.
                let names: Vec<usize> = (0..n).filter(|name| (count / 20 + name) % 3 != 0).collect();
                let aged =
                    |cold: &Cold| names.iter().filter(|&&name| !cold.is_fresh(name, count)).count();
                assert!(aged(&cold) > 0);
                picked.directions.extend(&picked.epoch).unwrap();
                let Picked { epoch, directions, .. } = &picked;
                let slack = epoch.slack();
                cold.refresh(&names, bar(0.0, slack), directions, epoch, &run).unwrap();
                if epoch.inverse().is_none() {
                    by_directions += 1
                } else {
                    by_factor += 1
                }
                assert_eq!(aged(&cold), 0);
                for (&name, value) in names.iter().zip(picked.values(&names, &run)) {
                    let bound = cold.reach(name, bar(0.0, slack), &run).exp_m1() / alpha;
                    assert!(bound >= value * (1.0 - 1e-12), "{dim} {powers:?} {count}: {bound} {value}");
                    // What f32 may lose is a small part of ‖g‖ for the norm of a whitened row, once for
                    // each pick since.
                    let loss = 1e-5 * run.survey.norm_sq()[name] * (dim as f64 / 40.0).max(1.0);
                    let near = slack < 1e-3;
                    assert!(
                        !near || bound <= value + 20.0 * loss,
                        "{dim} {powers:?} {count}: {bound} {value}"
                    );
                }
            }
            assert!(by_directions > 0 || powers.1 > 2.0);
            assert!(by_factor > 0 || dim > 200, "{dim}: one epoch");
        });
    }
}

#[test]
fn a_row_that_has_missed_more_picks_than_are_kept_starts_from_the_factor() {
    let (n, dim) = (140, 4);
    let cells = Random(2).rows(n, dim, (-1.0, 1.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut cold = Cold::new((0..n).collect(), &run);
        let mut picked = Picked::new(&run);
        (0..100).for_each(|row| {
            picked.push(row, &run);
        });
        picked.directions.extend(&picked.epoch).unwrap();
        assert!(picked.directions.first() > 0);
        let names: Vec<usize> = (100..n).collect();
        let slack = picked.epoch.slack();
        cold.refresh(&names, bar(0.0, slack), &picked.directions, &picked.epoch, &run).unwrap();
        for (&name, value) in names.iter().zip(picked.values(&names, &run)) {
            let bound = cold.reach(name, bar(0.0, slack), &run).exp_m1();
            assert!(
                bound >= value * (1.0 - 1e-12) && bound <= value + 1e-5 * run.survey.norm_sq()[name]
            );
        }
    });
}

#[test]
fn a_row_that_stops_below_the_bar_keeps_a_valid_bound() {
    let (n, dim) = (200, 80);
    let mut random = Random(3);
    let cells = random.rows(n, dim, (0.0, 1.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut cold = Cold::new((0..n).collect(), &run);
        let mut picked = Picked::new(&run);
        let names: Vec<usize> = (0..n).collect();
        let mut stopped = 0;
        for count in 1..=150 {
            if picked.push(random.below(n), &run) {
                cold.restart();
            }
            if count % 50 != 0 {
                continue;
            }
            picked.directions.extend(&picked.epoch).unwrap();
            let slack = picked.epoch.slack();
            let bar = bar(0.5, slack);
            cold.refresh(&names, bar, &picked.directions, &picked.epoch, &run).unwrap();
            for (&name, value) in names.iter().zip(picked.values(&names, &run)) {
                let reach = cold.reach(name, bar, &run);
                assert!(reach.exp_m1() >= value * (1.0 - 1e-12));
                let fresh = cold.is_fresh(name, count);
                assert!(fresh || reach <= bar.score, "a row above the bar is up to date");
                stopped += usize::from(!fresh);
            }
        }
        assert!(stopped > 50);
    });
}

#[test]
fn hot_values_do_not_depend_on_when_a_row_became_hot() {
    for (dim, powers) in [(3, (0.0, 0.0)), (20, (-6.0, 3.0)), (90, (-1.0, 1.0))] {
        let (n, picks) = (100, 80);
        let cells = Random(4).rows(n, dim, powers);
        with_run(&cells, dim, 1.0, 0.0, |run| {
            let mut picked = Picked::new(&run);
            let width = picked.epoch.width(picks);
            let all = |hot: &mut Hot, epoch: &Epoch<'_>| {
                hot.insert((picks..n).map(|row| (row, row)), epoch, &run).unwrap();
            };
            let (mut always, mut lagging) = (Hot::new(dim, width), Hot::new(dim, width));
            all(&mut always, &picked.epoch);
            all(&mut lagging, &picked.epoch);
            for row in 0..picks {
                let ended = picked.push(row, &run);
                lagging.leave_below((0.02 * (row % 7) as f64).ln_1p(), &run);
                for hot in [&mut always, &mut lagging] {
                    if ended {
                        hot.whiten(0, &picked.epoch, &run).unwrap();
                    } else {
                        hot.follow(&picked.epoch, &run);
                    }
                }
                if row % 9 != 0 {
                    continue;
                }
                lagging.catch_up(&picked.epoch, &run);
                let mut late = Hot::new(dim, width);
                all(&mut late, &picked.epoch);
                for slot in 0..n - picks {
                    let count = picked.epoch.picks();
                    let bits = |hot: &Hot| {
                        let numbers = hot.coordinates(slot)[..count].iter().chain(hot.whitened(slot));
                        let numbers = numbers.chain([&hot.values[slot], &hot.gains[slot]]);
                        numbers.map(|number| number.to_bits()).collect::<Vec<_>>()
                    };
                    assert_eq!(bits(&always), bits(&late), "{dim}, pick {row}, slot {slot}");
                    assert_eq!(bits(&lagging), bits(&late), "{dim}, pick {row}, slot {slot}");
                }
            }
            assert!(picked.epochs > 1);
        });
    }
}

#[test]
fn a_row_that_leaves_takes_nothing_of_the_others_with_it() {
    let (n, dim) = (40, 7);
    let cells = Random(5).rows(n, dim, (0.0, 0.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut picked = Picked::new(&run);
        let mut hot = Hot::new(dim, 16);
        hot.insert((10..n).map(|row| (row, row)), &picked.epoch, &run).unwrap();
        for row in 0..10 {
            picked.push(row, &run);
            hot.follow(&picked.epoch, &run);
            hot.remove(row % hot.len());
            hot.remove(hot.len() - 1);
            for slot in 0..hot.len() {
                let mut alone = Hot::new(dim, 16);
                alone.insert(std::iter::once((0, hot.rows[slot])), &picked.epoch, &run).unwrap();
                assert_eq!(hot.names[slot], hot.rows[slot]);
                assert_eq!(hot.values[slot].to_bits(), alone.values[0].to_bits());
                assert_eq!(hot.whitened(slot), alone.whitened(0));
            }
        }
    });
}

#[test]
fn what_a_pick_takes_from_a_value_is_its_direction_squared() {
    for (dim, powers) in [(5, (-1.0, 1.0)), (70, (0.0, 1.0)), (150, (-3.0, 2.0))] {
        let (n, picks) = (130, 110);
        let cells = Random(6).rows(n, dim, powers);
        with_run(&cells, dim, 1.0, 0.0, |run| {
            let mut picked = Picked::new(&run);
            let rest: Vec<usize> = (picks..n).collect();
            let mut before = picked.values(&rest, &run);
            let mut row_cells = vec![0.0; dim];
            for pick in 0..picks {
                picked.push(pick, &run);
                picked.directions.extend(&picked.epoch).unwrap();
                assert_eq!(picked.directions.end(), pick + 1);
                let after = picked.values(&rest, &run);
                let (direction, errors) = picked.directions.range(pick, pick + 1);
                let norm = direction.iter().map(|&cell| f64::from(cell).powi(2)).sum::<f64>().sqrt();
                assert!(norm < 1.0 + 1e-6);
                for ((&row, before), after) in rest.iter().zip(&before).zip(&after) {
                    run.survey.load(row, &mut row_cells);
                    let along: f64 =
                        row_cells.iter().zip(direction).map(|(g, &w)| g * f64::from(w)).sum();
                    let length = run.survey.norm_sq()[row].sqrt();
                    let fall = (before - after).max(0.0);
                    // (|g·w| ± e‖g‖)², and what the difference of the two values has lost.
                    let (error, lost) = (f64::from(errors[0]) * length, 1e-9 * before);
                    let (least, most) = ((along.abs() - error).max(0.0), along.abs() + error);
                    assert!(least * least <= fall + lost, "{dim}, pick {pick}: {along} {fall}");
                    assert!(most * most >= fall - lost, "{dim}, pick {pick}: {along} {fall}");
                }
                before = after;
            }
            assert!(picked.epochs > 1);
        });
    }
}

#[test]
fn one_epoch_or_many_give_the_same_values_but_for_rounding() {
    for (dim, alpha) in [(4, 1.0), (64, 0.1), (100, 5.0)] {
        let (n, picks) = (150, 120);
        let cells = Random(7).rows(n, dim, (-0.5, 0.5));
        with_run(&cells, dim, alpha, 0.0, |run| {
            let mut many = Picked::new(&run);
            let mut one = Picked::new(&run);
            one.epoch = Epoch::new(run.survey, alpha, 0, run.monitor);
            assert!(one.epoch.is_endless() && !many.epoch.is_endless());
            let rest: Vec<usize> = (picks..n).collect();
            for pick in 0..picks {
                many.push(pick, &run);
                one.push(pick, &run);
                let values = |epoch: &Epoch<'_>| {
                    let mut hot = Hot::new(dim, epoch.picks().max(1));
                    hot.insert(rest.iter().map(|&row| (row, row)), epoch, &run).unwrap();
                    hot.values
                };
                let (of_many, of_one) = (values(&many.epoch), values(&one.epoch));
                let expected = many.values(&rest, &run);
                for ((&row, expected), (many, one)) in
                    rest.iter().zip(&expected).zip(of_many.iter().zip(&of_one))
                {
                    assert!(
                        (many - expected).abs() <= 1e-11 * expected,
                        "{dim}, pick {pick}, row {row}"
                    );
                    // In one epoch digits are lost as q falls.
                    let lost = 1e-13 * run.survey.norm_sq()[row];
                    assert!((one - expected).abs() <= lost + 1e-11 * expected);
                }
            }
            assert!(many.epochs > 1 && one.epochs == 1);
        });
    }
}

#[test]
fn an_epoch_is_doubtful_before_a_winner_has_lost_its_digits() {
    let (n, dim) = (60, 30);
    let cells = Random(8).rows(n, dim, (3.0, 4.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut picked = Picked::new(&run);
        let mut rest: Vec<usize> = (0..n).collect();
        let (mut kept, mut doubts) = (0, 0);
        while rest.len() > 10 {
            let winner = |picked: &Picked<'_>| {
                let mut hot = Hot::new(dim, picked.epoch.picks().max(1));
                hot.insert(rest.iter().map(|&row| (row, row)), &picked.epoch, &run).unwrap();
                let best = (0..rest.len()).max_by(|&a, &b| hot.values[a].total_cmp(&hot.values[b]));
                (best.unwrap(), hot.values[best.unwrap()])
            };
            let (mut best, mut value) = winner(&picked);
            if picked.epoch.is_doubtful(value) {
                picked.restart(&run);
                doubts += 1;
                (best, value) = winner(&picked);
                assert!(!picked.epoch.is_doubtful(value), "at the start of an epoch nothing is lost");
            } else {
                kept += 1;
            }
            let expected = picked.values(&rest, &run);
            let excused = 1e-10_f64
                .max(1e-16 * picked.rows.iter().map(|&row| run.survey.norm_sq()[row]).sum::<f64>());
            let most = expected.iter().copied().fold(0.0, f64::max);
            assert!((value / most - 1.0).abs() <= excused, "{value} {most}");
            picked.epoch.limit(value);
            picked.push(rest.swap_remove(best), &run);
        }
        assert!((1..20).contains(&doubts), "{doubts}");
        assert!(kept > 25, "long rows alone are no reason to start anew: {kept}");
    });
}

#[test]
fn inner_products_taken_at_once_are_those_taken_one_by_one() {
    let (n, dim) = (75, 9000); // three tiles of rows, three chunks of columns
    let cells = Random(9).rows(n, dim, (-1.0, 1.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let rows: Vec<usize> = (0..n).rev().collect();
        let mut by_gram = Epoch::new(run.survey, 1.0, n, run.monitor);
        by_gram.use_gram(Gram::new(&rows, &run).unwrap());
        let by_rows = Epoch::new(run.survey, 1.0, n, run.monitor);
        assert!(by_rows.is_endless());
        let hot = |epoch: Epoch<'_>| {
            let (mut epoch, mut hot) = (epoch, Hot::new(1, 1));
            let mut values = Vec::new();
            for pick in 0..30 {
                hot = Hot::new(epoch.row_len(), 40);
                hot.insert((pick..n).map(|row| (row, row)), &epoch, &run).unwrap();
                values.extend(hot.values.iter().map(|value| value.to_bits()));
                epoch.push(pick, hot.whitened(0), hot.coordinates(0), hot.values[0]);
            }
            assert!(hot.len() > 0);
            values
        };
        assert_eq!(hot(by_gram), hot(by_rows));
    });
}

/// Calls `check` at every pick of a run whose picks wander over `n` rows of `dim` cells.
fn wander(
    seed: u64,
    (n, dim, picks): (usize, usize, usize),
    penalty: f64,
    mut check: impl FnMut(usize, &mut Random, &Run<'_>),
) {
    let mut random = Random(seed);
    let cells = random.rows(n, dim, (-2.0, 1.0));
    with_run(&cells, dim, 1.0, penalty, |mut run| {
        let mut row = vec![0.0; dim];
        for pick in 0..picks {
            run.survey.load(random.below(n), &mut row);
            run.mean.push(run.kernels, &row, 1.0);
            check(pick, &mut random, &run);
        }
    });
}

fn conflict(row: usize, run: &Run<'_>) -> f64 {
    let mut cells = vec![0.0; run.survey.dim()];
    run.survey.load(row, &mut cells);
    run.conflict(row, &cells)
}

fn cosine(row: usize, run: &Run<'_>) -> f64 {
    let mut cells = vec![0.0; run.survey.dim()];
    run.survey.load(row, &mut cells);
    run.mean.cosine(run.kernels, &cells, run.survey.norm_sq()[row])
}

#[test]
fn the_least_conflict_after_any_turn_of_the_mean_is_no_more_than_the_conflict() {
    for dim in [1, 2, 5, 30] {
        let n = 60;
        let mut old: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
        let (mut positive, mut close) = (0, 0);
        wander(10, (n, dim, 80), 1.0, |_, _, run| {
            let Some(present) = run.mean.direction() else { return };
            old.push((present.clone(), (0..n).map(|row| cosine(row, run)).collect()));
            for (mean, cosines) in &old {
                let turn = Turn::between(mean, &present, 0.0);
                for (row, &cosine) in cosines.iter().enumerate() {
                    let norm_sq = run.survey.norm_sq()[row];
                    let least =
                        run.mean.least_conflict(-turn.cosine(cosine), norm_sq, 1.0, run.mean.norm());
                    let conflict = conflict(row, run);
                    assert!(least <= conflict, "{dim}: {least} {conflict}");
                    positive += usize::from(least > 0.0);
                    close += usize::from(least > 0.9 * conflict && conflict > 0.0);
                }
            }
        });
        assert!(positive > 1000 && close > 100, "{dim}: {positive} {close}");
    }
}

#[test]
fn what_a_cold_row_reaches_is_no_less_than_its_score_however_many_means_there_were() {
    for (dim, penalty) in [(2, 0.1), (3, 2.0), (12, 10.0)] {
        let (n, picks) = (50, 400);
        let mut cold = None;
        let (mut lowered, mut measured) = (0, 0);
        wander(11, (n, dim, picks), penalty, |_, random, run| {
            let cold = cold.get_or_insert_with(|| Cold::new((0..n).collect(), run));
            let Some(present) = run.mean.direction() else { return };
            cold.add_mean(&present);
            // A few angles are measured at every pick: others stay old, or very old.
            for _ in 0..2 {
                let name = random.below(n * n).isqrt(); // some names seldom
                cold.set_angle(name, Some(cosine(name, run)));
                measured += 1;
            }
            let turns = cold.turns(&present, 0.0);
            let bar = Bar { score: 0.0, slack: 0.0, turns: &turns, mean_norm: run.mean.norm() };
            for name in 0..n {
                let gain = (run.alpha * run.survey.norm_sq()[name]).ln_1p();
                let score = gain - penalty * conflict(name, run);
                let reach = cold.reach(name, bar, run);
                assert!(reach >= score - 1e-15 * gain, "{dim}: {reach} {score}");
                lowered += usize::from(reach < gain * (1.0 - 1e-6));
            }
        });
        assert!(measured > 3 * 64 && lowered > 2000, "{dim}: {lowered}");
    }
}

#[test]
fn what_a_cold_row_reaches_allows_for_turns_to_come() {
    let (n, penalty, allowance) = (60, 1.0, 0.4);
    for dim in [2, 8] {
        let mut cold = None;
        let mut since: Option<(Vec<Turn>, Vec<f64>, f64)> = None;
        let (mut kept, mut lowered) = (0, 0);
        wander(12, (n, dim, 300), penalty, |_, _, run| {
            let cold = cold.get_or_insert_with(|| Cold::new((0..n).collect(), run));
            let Some(present) = run.mean.direction() else { return };
            let holds = since.as_ref().is_some_and(|(_, mean, norm)| {
                super::drift::angle(mean, &present) <= allowance && run.mean.norm() >= *norm
            });
            if !holds {
                cold.add_mean(&present);
                (0..n).for_each(|name| cold.set_angle(name, Some(cosine(name, run))));
                let turns = cold.turns(&present, allowance);
                since = Some((turns, present, 0.5 * run.mean.norm()));
                return;
            }
            let Some((turns, _, mean_norm)) = &since else { return };
            kept += 1;
            let bar = Bar { score: 0.0, slack: 0.0, turns, mean_norm: *mean_norm };
            for name in 0..n {
                let gain = (run.alpha * run.survey.norm_sq()[name]).ln_1p();
                let score = gain - penalty * conflict(name, run);
                let reach = cold.reach(name, bar, run);
                assert!(reach >= score - 1e-15 * gain, "{dim}: {reach} {score}");
                lowered += usize::from(reach < gain * (1.0 - 1e-6));
            }
        });
        assert!(kept > 100 && lowered > 500, "{dim}: {kept} {lowered}");
    }
}

#[test]
fn a_row_taken_back_is_bounded_by_what_it_was_when_it_left() {
    let (n, dim) = (40, 6);
    let cells = Random(13).rows(n, dim, (-1.0, 1.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut cold = Cold::new((0..n).collect(), &run);
        let mut picked = Picked::new(&run);
        for name in 0..20 {
            let row = cold.take(name);
            assert!(!cold.waits(name));
            let value = picked.values(&[row], &run)[0];
            cold.put(name, value * (1.0 + picked.epoch.slack()), picked.rows.len(), None);
            assert!(cold.waits(name) && cold.is_fresh(name, picked.rows.len()));
            if picked.push(20 + name, &run) {
                cold.restart();
            }
        }
        assert_eq!(cold.waiting, n);
        let names: Vec<usize> = (0..n).collect();
        picked.directions.extend(&picked.epoch).unwrap();
        let bar = bar(0.0, picked.epoch.slack());
        for fresh in [false, true] {
            if fresh {
                cold.refresh(&names, bar, &picked.directions, &picked.epoch, &run).unwrap();
            }
            for (&name, value) in names.iter().zip(picked.values(&names, &run)) {
                assert!(cold.reach(name, bar, &run).exp_m1() >= value * (1.0 - 1e-12));
            }
        }
        let above = cold.above(bar, &run);
        assert!(above.windows(2).all(|pair| pair[0].1 < pair[1].1));
        assert!(above.iter().all(|&(reach, name)| reach == cold.reach(name, bar, &run)));
        assert_eq!(above.len(), names.iter().filter(|&&name| cold.reach(name, bar, &run) > 0.0).count());
    });
}
