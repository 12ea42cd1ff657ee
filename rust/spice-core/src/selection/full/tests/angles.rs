//! Angles to the mean: what an old one still says about a conflict.

use std::collections::BTreeSet;

use super::{Random, names, row_of, rows, with_run};
use crate::rows::Position;
use crate::selection::conflict::SelectedMean;
use crate::selection::full::cold::{Angle, Bar, Cold};
use crate::selection::full::drift::{Turn, angle};
use crate::selection::full::means::Means;
use crate::selection::full::messages::News;
use crate::selection::full::owners::Deal;
use crate::selection::full::{Search, Strategy};
use crate::selection::places::{Name, Place};
use crate::selection::run::{Past, Run};

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
            run.survey.load(Position::new(random.below(n)), &mut row);
            run.mean.push(run.kernels, &row, 1.0);
            check(pick, &mut random, &run);
        }
    });
}

fn cells_of(row: Position, run: &Run<'_>) -> Vec<f64> {
    let mut cells = vec![0.0; run.survey.dim()];
    run.survey.load(row, &mut cells);
    cells
}

fn conflict(row: Position, run: &Run<'_>) -> f64 {
    run.conflict(row, &cells_of(row, run))
}

fn cosine(row: Position, run: &Run<'_>) -> f64 {
    run.mean.cosine(run.kernels, &cells_of(row, run), run.survey.norm_sq(row))
}

/// As a search and its owners do it.
fn add_mean(cold: &mut Cold, means: &mut Means, mean: &[f64]) {
    if let Some(turns) = means.make_room() {
        cold.merge_means(&turns);
    }
    means.add(mean);
}

fn angle_to(means: &Means, cosine: f64) -> Option<Angle> {
    means.latest().map(|mean| Angle { mean, cosine })
}

/// Checks that no waiting row has a larger score than it is said to reach while nothing is picked; returns how
/// many are held below what their Δ alone would reach.
fn rows_held(cold: &Cold, bar: Bar<'_>, run: &Run<'_>) -> usize {
    let mut held = 0;
    for name in cold.names().filter(|&name| cold.waits(name)) {
        let gain = run.gain(cold.norm_sq(name, run));
        let score = gain - run.penalty * conflict(cold.position(name), run);
        let reach = cold.reach(name, bar, run);
        assert!(reach >= score - 1e-15 * gain, "{name:?}: {reach} {score}");
        held += usize::from(reach < gain * (1.0 - 1e-6));
    }
    held
}

#[test]
fn the_least_conflict_after_any_turn_of_the_mean_is_no_more_than_the_conflict() {
    for dim in [1, 2, 5, 30] {
        let n = 60;
        let mut old: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
        let (mut positive, mut close) = (0, 0);
        wander(10, (n, dim, 80), 1.0, |_, _, run| {
            let Some(present) = run.mean.direction() else { return };
            old.push((present.clone(), rows(0..n).map(|row| cosine(row, run)).collect()));
            for (mean, cosines) in &old {
                let turn = Turn::between(mean, &present, 0.0);
                for (row, &cosine) in rows(0..n).zip(cosines) {
                    let norm_sq = run.survey.norm_sq(row);
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
        let (mut cold, mut means) = (None, Means::default());
        let (mut held, mut measured) = (0, 0);
        wander(11, (n, dim, picks), penalty, |_, random, run| {
            let cold = cold.get_or_insert_with(|| Cold::new(rows(0..n).collect(), run));
            let Some(present) = run.mean.direction() else { return };
            add_mean(cold, &mut means, &present);
            // A few angles are measured at every pick: others stay old, or very old.
            for _ in 0..2 {
                let name = Name::new(random.below(n * n).isqrt()); // some names seldom
                cold.set_angle(name, angle_to(&means, cosine(row_of(name), run)));
                measured += 1;
            }
            let turns = means.turns(&present, 0.0);
            let bar = Bar { score: 0.0, slack: 0.0, turns: &turns, mean_norm: run.mean.norm() };
            held += rows_held(cold, bar, run);
        });
        assert!(measured > 3 * 64 && held > 2000, "{dim}: {held}");
    }
}

#[test]
fn what_a_cold_row_reaches_allows_for_turns_to_come() {
    let (n, penalty, allowance) = (60, 1.0, 0.4);
    for dim in [2, 8] {
        let (mut cold, mut means) = (None, Means::default());
        let mut since: Option<(Vec<Turn>, Vec<f64>, f64)> = None;
        let (mut kept, mut held) = (0, 0);
        wander(12, (n, dim, 300), penalty, |_, _, run| {
            let cold = cold.get_or_insert_with(|| Cold::new(rows(0..n).collect(), run));
            let Some(present) = run.mean.direction() else { return };
            let holds = since.as_ref().is_some_and(|(_, mean, norm)| {
                angle(mean, &present) <= allowance && run.mean.norm() >= *norm
            });
            if !holds {
                add_mean(cold, &mut means, &present);
                names(0..n).for_each(|name| {
                    cold.set_angle(name, angle_to(&means, cosine(row_of(name), run)));
                });
                let turns = means.turns(&present, allowance);
                since = Some((turns, present, 0.5 * run.mean.norm()));
                return;
            }
            let Some((turns, _, mean_norm)) = &since else { return };
            kept += 1;
            let bar = Bar { score: 0.0, slack: 0.0, turns, mean_norm: *mean_norm };
            held += rows_held(cold, bar, run);
        });
        assert!(kept > 100 && held > 500, "{dim}: {kept} {held}");
    }
}

#[test]
fn rows_sent_back_are_bounded_whatever_mean_their_angles_were_measured_from() {
    let (n, dim, penalty) = (60, 5, 1.0);
    let mut random = Random(14);
    let cells = random.rows(n, dim, (-1.0, 1.0));
    with_run(&cells, dim, 1.0, penalty, |run| {
        let strategy = Strategy {
            exhaustive: false,
            capacity: Some(n / 4),
            angles: true,
            epsilon: 0.0,
            sampling: None,
        };
        let (deal, candidates) = (Deal::new(n, 1, |_| 0), rows(0..n).collect());
        let mut search =
            Search::new(run, candidates, n, Past::default(), strategy, deal, &|local| Box::new(local))
                .unwrap();
        let (mut with_angle, mut without, mut held) = (0, 0, 0);
        for _ in 0..400 {
            // The mean of one row: it may be anywhere the next time.
            search.run.mean = SelectedMean::new(dim);
            search.run.mean.push(
                search.run.kernels,
                &cells_of(Position::new(random.below(n)), &search.run),
                1.0,
            );
            search.angles.present = search.run.mean.direction();
            let Some(present) = search.angles.present.clone() else { continue };
            match random.below(3) {
                0 => {
                    // As at the start of a period.
                    let news = News::of(&search.run, &search.directions, &search.epoch);
                    search.waiting.add_mean(&present, news).unwrap();
                    search.measure_angles().unwrap();
                    search.angles.shared = true;
                }
                1 => search.measure_angles().unwrap(), // as within one
                _ => {}
            }
            let names: BTreeSet<Name> = (0..8).map(|_| Name::new(random.below(n))).collect();
            search.promote(names.into_iter()).unwrap();
            let latest: Vec<Name> = if random.below(2) == 0 {
                let hot = search.hot.slots().filter_map(|slot| search.hot.name(slot)).collect();
                search.evict(f64::INFINITY, 0, 0.0);
                hot
            } else {
                Vec::new()
            };
            // Whatever is asked next tells the owner of rows that have been sent back.
            let news = News::of(&search.run, &search.directions, &search.epoch);
            search.waiting.largest_merit(0.0, news).unwrap();
            let cold = search.waiting.here().0[0].cold();
            let mean = search.waiting.means().latest();
            let known = latest.iter().filter(|&&name| cold.cosine_to(mean, name).is_some()).count();
            with_angle += known;
            without += latest.len() - known;
            let turns = search.waiting.turns(&present, 0.0);
            let bar = Bar { score: 0.0, slack: 0.0, turns: &turns, mean_norm: search.run.mean.norm() };
            held += rows_held(cold, bar, &search.run);
        }
        assert!(with_angle > 500 && without > 500 && held > 100, "{with_angle} {without} {held}");
    });
}
