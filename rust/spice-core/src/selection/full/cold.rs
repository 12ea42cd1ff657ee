//! The rows that wait: an upper bound of each row's q, and what is known of its angle to the mean.
//!
//! This is lazy greedy (Minoux 1978; CELF, Leskovec et al. 2007), with bounds that are brought up to date in part.
//!
//! A bound is of the time when the row was last looked at, and stays one: Δ never grows, and the angle to
//! the mean changes no faster than the mean turns. `refresh` brings bounds up to date.

use rayon::prelude::*;

use super::drift::Turn;
use super::factor::Factor;
use super::standing::Standing;
use crate::rows::Position;
use crate::selection::places::{Name, Place, PlaceVec};
use crate::selection::run::Run;

/// Means that angles may be measured from at one time.
const MEANS: u8 = 64;
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
    /// Unit means that angles were measured from, oldest first.
    means: Vec<Vec<f64>>,
    /// Of the present epoch, once it was asked for.
    pub(super) factor: Option<Factor>,
    /// Number of rows that wait.
    pub(super) waiting: usize,
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
            means: Vec::new(),
            factor: None,
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

    /// Whether the row was picked.
    pub(super) fn is_picked(&self, name: Name) -> bool {
        self.standings[name].is_picked()
    }

    /// Takes a row out; returns its position.
    pub(super) fn take(&mut self, name: Name) -> Position {
        self.standings[name] = Standing::AWAY;
        self.waiting -= 1;
        self.positions[name]
    }

    /// Remembers that a row that has left will not come back.
    pub(super) fn pick(&mut self, name: Name) {
        self.standings[name] = Standing::PICKED;
    }

    /// Takes a row back whose q was at most `value` after `seen` picks.
    pub(super) fn put(&mut self, name: Name, value: f64, seen: usize, cosine: Option<f64>) {
        self.standings[name] = Standing::waiting(value);
        self.seen[name] = seen as u32;
        self.set_angle(name, cosine);
        self.waiting += 1;
    }

    /// Remembers a row's cosine to the latest mean.
    pub(super) fn set_angle(&mut self, name: Name, cosine: Option<f64>) {
        match (cosine, self.means.len()) {
            (Some(cosine), 1..) => {
                self.cosines[name] = cosine as f32 + 1e-6;
                self.mean[name] = Some((self.means.len() - 1) as u8);
            }
            _ => self.mean[name] = None,
        }
    }

    /// The present unit mean becomes one that angles may be measured from.
    pub(super) fn add_mean(&mut self, mean: &[f64]) {
        if self.means.len() == usize::from(MEANS) {
            self.merge_means();
        }
        self.means.push(mean.to_vec());
    }

    /// Halves the number of means: angles to every other one are moved over to the next.
    fn merge_means(&mut self) {
        let turns: Vec<Turn> =
            self.means.chunks_exact(2).map(|pair| Turn::between(&pair[0], &pair[1], 0.0)).collect();
        for (mean, cosine) in self.mean.vec_mut().iter_mut().zip(self.cosines.vec_mut()) {
            if let Some(mean) = mean {
                if *mean % 2 == 0 {
                    *cosine = turns[usize::from(*mean / 2)].cosine(f64::from(*cosine)) as f32 + 1e-6;
                }
                *mean /= 2;
            }
        }
        let mut number = 0;
        self.means.retain(|_| {
            number += 1;
            number % 2 == 0
        });
    }

    /// How far each mean is from `present`, and `more` beyond that.
    pub(super) fn turns(&self, present: &[f64], more: f64) -> Vec<Turn> {
        self.means.iter().map(|mean| Turn::between(mean, present, more)).collect()
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

    /// The names of all waiting rows whose merit may exceed `merit`, largest bound first.
    pub(super) fn with_merit_above(&self, merit: f64, slack: f64, run: &Run<'_>) -> Vec<Name> {
        let names = self.names().filter(|&name| self.waits(name));
        let mut above: Vec<(f64, Name)> = names
            .map(|name| (self.merit(name, slack, run), name))
            .filter(|&(bound, _)| bound > merit)
            .collect();
        above.sort_by(|a, b| b.0.total_cmp(&a.0));
        above.into_iter().map(|(_, name)| name).collect()
    }

    /// The cosine of a row, if it is to the latest mean; also of a row that has left.
    pub(super) fn latest_cosine(&self, name: Name) -> Option<f64> {
        let latest = self.mean[name].is_some_and(|mean| usize::from(mean) + 1 == self.means.len());
        latest.then(|| f64::from(self.cosines[name]))
    }

    /// The waiting row of the largest merit with Δ(∅), the lowest dataset row first: the first pick.
    pub(super) fn first(&self, run: &Run<'_>) -> Option<Name> {
        let merit = |name: Name| self.merit(name, 0.0, run);
        let waiting = self.names().filter(|&name| self.waits(name));
        let order = |a: &(f64, Name), b: &(f64, Name)| {
            let row = |name: Name| run.survey.dataset_row(self.positions[name]);
            a.0.total_cmp(&b.0).then_with(|| row(b.1).cmp(&row(a.1)))
        };
        waiting.map(|name| (merit(name), name)).max_by(order).map(|(_, name)| name)
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

    /// The largest bound of the merit, and the one that `count` waiting rows reach (or all, if they are fewer).
    pub(super) fn merits_of_rank(&self, count: usize, slack: f64, run: &Run<'_>) -> (f64, f64) {
        let waiting = self.names().filter(|&name| self.waits(name));
        let mut merits: Vec<f64> = waiting.map(|name| self.merit(name, slack, run)).collect();
        if merits.is_empty() {
            return (0.0, 0.0);
        }
        let rank = count.min(merits.len()) - 1;
        let (larger, &mut merit, _) = merits.select_nth_unstable_by(rank, |a, b| b.total_cmp(a));
        (larger.iter().copied().fold(merit, f64::max), merit)
    }

    /// The epoch is over.
    pub(super) fn restart(&mut self) {
        self.factor = None;
    }
}
