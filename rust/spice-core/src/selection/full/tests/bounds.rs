//! Bounds of cold rows: never below the value, and close to it once refreshed.

use super::{Picked, Random, names, row_of, rows, with_run};
use crate::rows::Position;
use crate::selection::full::cold::{Bar, Cold};
use crate::selection::full::messages::News;
use crate::selection::places::{Name, Place};
use crate::selection::run::Run;

/// A bar that asks for `score` and knows of no angles.
fn bar(score: f64, slack: f64) -> Bar<'static> {
    Bar { score, slack, turns: &[], mean_norm: 0.0 }
}

/// Cold rows, all of a run, beside an epoch for which rows are picked by hand.
struct Waiting<'a> {
    cold: Cold,
    picked: Picked<'a>,
}

impl<'a> Waiting<'a> {
    fn new(run: &Run<'a>) -> Self {
        Self { cold: Cold::new(rows(0..run.survey.len()).collect(), run), picked: Picked::new(run) }
    }

    fn push(&mut self, row: Position, run: &Run<'_>) {
        self.picked.push(row, run);
    }

    /// Brings rows up to date as far as `reach` asks for; returns the bar.
    fn refresh(&mut self, names: &[Name], score: f64, run: &Run<'_>) -> Bar<'static> {
        let Picked { epoch, directions, .. } = &mut self.picked;
        directions.extend(epoch).unwrap();
        let bar = bar(score, epoch.slack());
        let news = News::of(run, directions, epoch);
        self.cold.refresh(names, bar, &news).unwrap();
        bar
    }

    /// The bound of q and q itself of each row.
    fn bounds(&self, names: &[Name], bar: Bar<'_>, run: &Run<'_>) -> Vec<(f64, f64)> {
        let bounds = names.iter().map(|&name| self.cold.reach(name, bar, run).exp_m1() / run.alpha);
        let rows: Vec<Position> = names.iter().copied().map(row_of).collect();
        bounds.zip(self.picked.values(&rows, run)).collect()
    }
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
            let mut waiting = Waiting::new(&run);
            let (mut by_directions, mut by_factor) = (0, 0);
            for count in 1..=picks {
                waiting.push(Position::new(random.below(n)), &run);
                if count % 20 != 0 && count != 3 {
                    continue;
                }
                // Rows of all ages: some were refreshed lately, some long ago, some never.
                let names: Vec<Name> =
                    names(0..n).filter(|name| (count / 20 + name.get()) % 3 != 0).collect();
                let aged =
                    |cold: &Cold| names.iter().filter(|&&name| !cold.is_fresh(name, count)).count();
                assert!(aged(&waiting.cold) > 0);
                let bar = waiting.refresh(&names, 0.0, &run);
                if waiting.picked.epoch.inverse().is_none() {
                    by_directions += 1
                } else {
                    by_factor += 1
                }
                assert_eq!(aged(&waiting.cold), 0);
                for (&name, (bound, value)) in names.iter().zip(waiting.bounds(&names, bar, &run)) {
                    assert!(bound >= value * (1.0 - 1e-12), "{dim} {powers:?} {count}: {bound} {value}");
                    // What f32 may lose is a small part of ‖g‖ for the norm of a whitened row, once for
                    // each pick since.
                    let loss = 1e-5 * run.survey.norm_sq(row_of(name)) * (dim as f64 / 40.0).max(1.0);
                    let near = bar.slack < 1e-3;
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
        let mut waiting = Waiting::new(&run);
        rows(0..100).for_each(|row| waiting.push(row, &run));
        let names: Vec<Name> = names(100..n).collect();
        let bar = waiting.refresh(&names, 0.0, &run);
        assert!(waiting.picked.directions.window().first() > 0);
        for (&name, (bound, value)) in names.iter().zip(waiting.bounds(&names, bar, &run)) {
            assert!(
                bound >= value * (1.0 - 1e-12)
                    && bound <= value + 1e-5 * run.survey.norm_sq(row_of(name))
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
        let mut waiting = Waiting::new(&run);
        let names: Vec<Name> = names(0..n).collect();
        let mut stopped = 0;
        for count in 1..=150 {
            waiting.push(Position::new(random.below(n)), &run);
            if count % 50 != 0 {
                continue;
            }
            let bar = waiting.refresh(&names, 0.5, &run);
            for (&name, (bound, value)) in names.iter().zip(waiting.bounds(&names, bar, &run)) {
                assert!(bound >= value * (1.0 - 1e-12));
                let fresh = waiting.cold.is_fresh(name, count);
                assert!(
                    fresh || bound <= run.value(bar.score) * (1.0 + 1e-12),
                    "a row above the bar is up to date"
                );
                stopped += usize::from(!fresh);
            }
        }
        assert!(stopped > 50);
    });
}

#[test]
fn a_row_taken_back_is_bounded_by_what_it_was_when_it_left() {
    let (n, dim) = (40, 6);
    let cells = Random(13).rows(n, dim, (-1.0, 1.0));
    with_run(&cells, dim, 1.0, 0.0, |run| {
        let mut waiting = Waiting::new(&run);
        for name in names(0..20) {
            let Waiting { cold, picked } = &mut waiting;
            let row = cold.take(name);
            assert!(!cold.waits(name));
            let value = picked.values(&[row], &run)[0];
            cold.put(name, value * (1.0 + picked.epoch.slack()), picked.rows.len(), None);
            assert!(cold.waits(name) && cold.is_fresh(name, picked.rows.len()));
            waiting.push(Position::new(20 + name.get()), &run);
        }
        assert_eq!(waiting.cold.waiting, n);
        let names: Vec<Name> = names(0..n).collect();
        let stale = waiting.bounds(&names, bar(0.0, waiting.picked.epoch.slack()), &run);
        let bar = waiting.refresh(&names, 0.0, &run);
        let fresh = waiting.bounds(&names, bar, &run);
        assert!(stale.iter().chain(&fresh).all(|(bound, value)| *bound >= value * (1.0 - 1e-12)));
        let reach = |name: Name| waiting.cold.reach(name, bar, &run);
        let above = waiting.cold.above(bar, &run);
        assert!(above.windows(2).all(|pair| pair[0].1 < pair[1].1));
        assert!(above.iter().all(|&(its_reach, name)| its_reach == reach(name)));
        assert_eq!(above.len(), names.iter().filter(|&&name| reach(name) > 0.0).count());
    });
}
