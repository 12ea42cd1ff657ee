//! The rows that wait: an upper bound of each row's q, and what is known of its angle to the mean.
//!
//! This is lazy greedy (Minoux 1978; CELF, Leskovec et al. 2007), with bounds that are brought up to date in part.
//!
//! A bound is of the time when the row was last looked at, and stays one: Δ never grows, and the angle to
//! the mean changes no faster than the mean turns. `refresh` brings bounds up to date.

use rayon::prelude::*;

use super::drift::Turn;
use super::standing::Standing;
use crate::rows::Position;
use crate::selection::places::{Name, Place, PlaceVec};
use crate::selection::run::Run;

/// Rows that one task goes through.
const CHUNK: usize = 1 << 12;

/// All rows that are neither hot nor picked, by their names.
pub(super) struct Cold {
    positions: PlaceVec<Name, Position>,
    /// Where a row is, and an upper bound of its q after the first `seen` picks.
    pub(super) standings: PlaceVec<Name, Standing>,
    pub(super) seen: PlaceVec<Name, u32>,
    /// Upper bound of the cosine to the mean numbered `mean`.
    cosines: PlaceVec<Name, f32>,
    /// Number of the mean that the row's angle was measured from; `None` if the angle is not known.
    mean: PlaceVec<Name, Option<u8>>,
    /// Number of rows that wait.
    pub(super) waiting: usize,
}

/// The cosine of a row to one of the means.
#[derive(Clone, Copy, Debug)]
pub(super) struct Angle {
    /// The mean's number.
    pub(super) mean: u8,
    pub(super) cosine: f64,
}

/// What a row must reach to be worth more work.
#[derive(Clone, Copy)]
pub(super) struct Bar<'a> {
    /// The smallest score of interest.
    pub(super) score: f64,
    /// How far a computed q may be off.
    pub(super) slack: f64,
    /// How far the mean has turned, and may still turn, since each of the means; empty if unknown.
    pub(super) turns: &'a [Turn],
    /// Smallest ‖m‖ that the mean may take.
    pub(super) mean_norm: f64,
}

impl Bar<'_> {
    /// Bounds of the row's q below this one are below the bar whatever the conflict; not negative.
    pub(super) fn least_value(&self, position: Position, run: &Run<'_>) -> f64 {
        (run.value_at(position, self.score) / (1.0 + self.slack) * (1.0 - 1e-12)).max(0.0)
    }
}

impl Cold {
    pub(super) fn new(positions: Vec<Position>, run: &Run<'_>) -> Self {
        let standing = |&position| Standing::waiting(run.survey.norm_sq(position));
        let len = positions.len();
        Self {
            standings: PlaceVec::new(positions.iter().map(standing).collect()),
            positions: PlaceVec::new(positions),
            seen: PlaceVec::new(vec![0; len]),
            cosines: PlaceVec::new(vec![0.0; len]),
            mean: PlaceVec::new(vec![None; len]),
            waiting: len,
        }
    }

    /// The names of all rows, those that do not wait included.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = Name> + use<> {
        self.positions.places()
    }

    /// Their number.
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    /// The positions of all rows, by name.
    pub(super) const fn positions(&self) -> &PlaceVec<Name, Position> {
        &self.positions
    }

    pub(super) fn position(&self, name: Name) -> Position {
        self.positions[name]
    }

    /// Whether the row has not left.
    pub(super) fn waits(&self, name: Name) -> bool {
        self.standings[name].is_waiting()
    }

    /// Takes a row out; returns its position.
    pub(super) fn take(&mut self, name: Name) -> Position {
        self.standings[name] = Standing::AWAY;
        self.waiting -= 1;
        self.positions[name]
    }

    /// Takes a row back whose q was at most `value` after `seen` picks, and whose cosine to a mean is known.
    pub(super) fn put(&mut self, name: Name, value: f64, seen: usize, angle: Option<Angle>) {
        self.standings[name] = Standing::waiting(value);
        self.seen[name] = seen as u32;
        self.set_angle(name, angle);
        self.waiting += 1;
    }

    /// Remembers a row's cosine to a mean.
    pub(super) fn set_angle(&mut self, name: Name, angle: Option<Angle>) {
        self.mean[name] = angle.map(|angle| angle.mean);
        if let Some(angle) = angle {
            self.cosines[name] = angle.cosine as f32 + 1e-6;
        }
    }

    /// Moves angles to every other mean over to the next, `turns` away; then half of the numbers are left.
    pub(super) fn merge_means(&mut self, turns: &[Turn]) {
        for (mean, cosine) in self.mean.vec_mut().iter_mut().zip(self.cosines.vec_mut()) {
            if let Some(mean) = mean {
                if *mean % 2 == 0 {
                    *cosine = turns[usize::from(*mean / 2)].cosine(f64::from(*cosine)) as f32 + 1e-6;
                }
                *mean /= 2;
            }
        }
    }

    /// Whether the row's bound is up to date after `picks` picks.
    pub(super) fn is_fresh(&self, name: Name, picks: usize) -> bool {
        self.seen[name] as usize == picks
    }

    /// Upper bound of the score while `bar` holds.
    pub(super) fn reach(&self, name: Name, bar: Bar<'_>, run: &Run<'_>) -> f64 {
        let merit = self.merit(name, bar.slack, run);
        let Some(mean) = self.mean[name] else { return merit };
        if bar.turns.is_empty() || self.cosines[name] >= 0.0 {
            return merit;
        }
        let against = -bar.turns[usize::from(mean)].cosine(f64::from(self.cosines[name]));
        if against <= 0.0 {
            return merit;
        }
        merit - run.penalty * run.least_conflict(self.positions[name], against, bar.mean_norm)
    }

    pub(super) fn norm_sq(&self, name: Name, run: &Run<'_>) -> f64 {
        run.survey.norm_sq(self.positions[name])
    }

    /// Upper bound of the merit.
    pub(super) fn merit(&self, name: Name, slack: f64, run: &Run<'_>) -> f64 {
        run.merit.of(self.positions[name], run.gain(self.standings[name].bound() * (1.0 + slack)))
    }

    /// All waiting rows that reach above the bar, with what they reach, in the order of rows.
    pub(super) fn above(&self, bar: Bar<'_>, run: &Run<'_>) -> Vec<(f64, Name)> {
        // Mostly without a logarithm: no value below this one is enough for any row.
        let least = (run.least_value(bar.score) / (1.0 + bar.slack) * (1.0 - 1e-12)).max(0.0);
        let chunks = self.standings.as_slice().par_chunks(CHUNK).enumerate();
        let found: Vec<Vec<(f64, Name)>> = chunks
            .map(|(chunk, standings)| {
                let names = (chunk * CHUNK..).zip(standings);
                let able = names.filter(|&(_, standing)| standing.may_reach(least));
                let named = able.map(|(place, _)| Name::new(place));
                let reaches = named.map(|name| (self.reach(name, bar, run), name));
                reaches.filter(|&(reach, _)| reach > bar.score).collect()
            })
            .collect();
        found.concat()
    }

    /// The waiting rows whose merit may exceed `merit`, with their bounds, the `count` largest first.
    pub(super) fn with_merit_above(
        &self,
        merit: f64,
        slack: f64,
        count: usize,
        run: &Run<'_>,
    ) -> Vec<(f64, Name)> {
        let names = self.names().filter(|&name| self.waits(name));
        let mut above: Vec<(f64, Name)> = names
            .map(|name| (self.merit(name, slack, run), name))
            .filter(|&(bound, _)| bound > merit)
            .collect();
        above.sort_by(|a, b| b.0.total_cmp(&a.0));
        above.truncate(count);
        above
    }

    /// Upper bound of the cosine of a row, if it is to the `latest` mean; also of a row that has left.
    pub(super) fn cosine_to(&self, latest: Option<u8>, name: Name) -> Option<f64> {
        let known = latest.is_some() && self.mean[name] == latest;
        known.then(|| f64::from(self.cosines[name]))
    }

    /// The waiting row of the largest merit with Δ(∅), the lowest dataset row first, and that merit.
    pub(super) fn first(&self, run: &Run<'_>) -> Option<(f64, Name)> {
        let merit = |name: Name| self.merit(name, 0.0, run);
        let waiting = self.names().filter(|&name| self.waits(name));
        let order = |a: &(f64, Name), b: &(f64, Name)| {
            let row = |name: Name| run.survey.dataset_row(self.positions[name]);
            a.0.total_cmp(&b.0).then_with(|| row(b.1).cmp(&row(a.1)))
        };
        waiting.map(|name| (merit(name), name)).max_by(order)
    }

    /// The largest bound of the merit among waiting rows; −∞ if there is none.
    pub(super) fn largest_merit(&self, slack: f64, run: &Run<'_>) -> f64 {
        if run.merit.is_gain() {
            let all = self.standings.as_slice().par_iter().copied();
            let largest = all.reduce(|| Standing::AWAY, Standing::larger);
            return if largest.is_waiting() {
                run.gain(largest.bound() * (1.0 + slack))
            } else {
                f64::NEG_INFINITY
            };
        }
        let names = (0..self.len()).into_par_iter().map(Name::new);
        let waiting = names.filter(|&name| self.waits(name));
        waiting.map(|name| self.merit(name, slack, run)).reduce(|| f64::NEG_INFINITY, f64::max)
    }

    /// The `count` largest bounds of the merit (or all, if they are fewer), in no order.
    pub(super) fn largest_merits(&self, count: usize, slack: f64, run: &Run<'_>) -> Vec<f64> {
        let waiting = self.names().filter(|&name| self.waits(name));
        let mut merits: Vec<f64> = waiting.map(|name| self.merit(name, slack, run)).collect();
        if count < merits.len() {
            merits.select_nth_unstable_by(count, |a, b| b.total_cmp(a));
            merits.truncate(count);
        }
        merits
    }
}
