//! The rows that wait: an upper bound of each row's q, and what is known of its angle to the mean.
//!
//! A bound is of the time when the row was last looked at, and stays one: Δ never grows, and the angle to
//! the mean changes no faster than the mean turns. `refresh` brings bounds up to date.

use rayon::prelude::*;

use super::drift::Turn;
use super::factor::Factor;
use crate::selection::run::Run;

/// Means that angles may be measured from at one time.
const MEANS: usize = 64;
/// Stands for no mean: the row's angle is not known.
const UNKNOWN: u16 = u16::MAX;

/// All rows that are neither hot nor picked. A row is known by its name, its place in `rows`.
pub(super) struct Cold {
    pub(super) rows: Vec<usize>,
    /// Upper bound of q after the first `seen` picks; negative for rows that have left.
    pub(super) values: Vec<f64>,
    pub(super) seen: Vec<u32>,
    /// Upper bound of the cosine to the mean numbered `mean`.
    cosines: Vec<f32>,
    mean: Vec<u16>,
    /// Unit means that angles were measured from, oldest first.
    means: Vec<Vec<f64>>,
    /// Of the present epoch, once it was asked for.
    pub(super) factor: Option<Factor>,
    /// Number of rows that have not left.
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
    pub(super) fn least_value(&self, row: usize, run: &Run<'_>) -> f64 {
        (run.value_at(row, self.score) / (1.0 + self.slack) * (1.0 - 1e-12)).max(0.0)
    }
}

impl Cold {
    pub(super) fn new(rows: Vec<usize>, run: &Run<'_>) -> Self {
        let values: Vec<f64> = rows.iter().map(|&row| run.survey.norm_sq()[row]).collect();
        let len = rows.len();
        Self {
            rows,
            values,
            seen: vec![0; len],
            cosines: vec![0.0; len],
            mean: vec![UNKNOWN; len],
            means: Vec::new(),
            factor: None,
            waiting: len,
        }
    }

    /// The row of the pool that `name` stands for.
    pub(super) fn row(&self, name: usize) -> usize {
        self.rows[name]
    }

    /// Whether the row has not left.
    pub(super) fn waits(&self, name: usize) -> bool {
        self.values[name] >= 0.0
    }

    /// Takes a row out; returns its row of the pool.
    pub(super) fn take(&mut self, name: usize) -> usize {
        self.values[name] = -1.0;
        self.waiting -= 1;
        self.rows[name]
    }

    /// All rows, those that have left included.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Remembers that a row that has left will not come back.
    pub(super) fn pick(&mut self, name: usize) {
        self.values[name] = f64::NEG_INFINITY;
    }

    /// Whether that was remembered.
    pub(super) fn is_picked(&self, name: usize) -> bool {
        self.values[name] == f64::NEG_INFINITY
    }

    /// Takes a row back whose q was at most `value` after `seen` picks.
    pub(super) fn put(&mut self, name: usize, value: f64, seen: usize, cosine: Option<f64>) {
        self.values[name] = value.max(0.0);
        self.seen[name] = seen as u32;
        self.set_angle(name, cosine);
        self.waiting += 1;
    }

    /// Remembers a row's cosine to the latest mean.
    pub(super) fn set_angle(&mut self, name: usize, cosine: Option<f64>) {
        match (cosine, self.means.len()) {
            (Some(cosine), 1..) => {
                self.cosines[name] = cosine as f32 + 1e-6;
                self.mean[name] = (self.means.len() - 1) as u16;
            }
            _ => self.mean[name] = UNKNOWN,
        }
    }

    /// The present unit mean becomes one that angles may be measured from.
    pub(super) fn add_mean(&mut self, mean: &[f64]) {
        if self.means.len() == MEANS {
            self.merge_means();
        }
        self.means.push(mean.to_vec());
    }

    /// Halves the number of means: angles to every other one are moved over to the next.
    fn merge_means(&mut self) {
        let turns: Vec<Turn> =
            self.means.chunks_exact(2).map(|pair| Turn::between(&pair[0], &pair[1], 0.0)).collect();
        for (mean, cosine) in self.mean.iter_mut().zip(&mut self.cosines) {
            if *mean != UNKNOWN {
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
    pub(super) fn is_fresh(&self, name: usize, picks: usize) -> bool {
        self.seen[name] as usize == picks
    }

    /// Upper bound of the score while `bar` holds.
    pub(super) fn reach(&self, name: usize, bar: Bar<'_>, run: &Run<'_>) -> f64 {
        let (merit, mean) = (self.merit(name, bar.slack, run), self.mean[name]);
        if mean == UNKNOWN || bar.turns.is_empty() || self.cosines[name] >= 0.0 {
            return merit;
        }
        let against = -bar.turns[usize::from(mean)].cosine(f64::from(self.cosines[name]));
        if against <= 0.0 {
            return merit;
        }
        merit - run.penalty * run.least_conflict(self.rows[name], against, bar.mean_norm)
    }

    pub(super) fn norm_sq(&self, name: usize, run: &Run<'_>) -> f64 {
        run.survey.norm_sq()[self.rows[name]]
    }

    /// Upper bound of the merit.
    pub(super) fn merit(&self, name: usize, slack: f64, run: &Run<'_>) -> f64 {
        run.merit.of(self.rows[name], run.gain(self.values[name] * (1.0 + slack)))
    }

    /// All waiting rows that reach above the bar, with what they reach, in the order of rows.
    pub(super) fn above(&self, bar: Bar<'_>, run: &Run<'_>) -> Vec<(f64, usize)> {
        // Mostly without a logarithm: no value below this one is enough for any row.
        let least = (run.least_value(bar.score) / (1.0 + bar.slack) * (1.0 - 1e-12)).max(0.0);
        let chunks = self.values.par_chunks(1 << 12).enumerate();
        let found: Vec<Vec<(f64, usize)>> = chunks
            .map(|(chunk, values)| {
                let names = (chunk << 12..).zip(values).filter(|&(_, &value)| value >= least);
                let reaches = names.map(|(name, _)| (self.reach(name, bar, run), name));
                reaches.filter(|&(reach, _)| reach > bar.score).collect()
            })
            .collect();
        found.concat()
    }

    /// The names of all waiting rows whose merit may exceed `merit`, largest bound first.
    pub(super) fn with_merit_above(&self, merit: f64, slack: f64, run: &Run<'_>) -> Vec<usize> {
        let names = (0..self.values.len()).filter(|&name| self.waits(name));
        let mut above: Vec<(f64, usize)> = names
            .map(|name| (self.merit(name, slack, run), name))
            .filter(|&(bound, _)| bound > merit)
            .collect();
        above.sort_by(|a, b| b.0.total_cmp(&a.0));
        above.into_iter().map(|(_, name)| name).collect()
    }

    /// The cosine of a row, if it is to the latest mean; also of a row that has left.
    pub(super) fn latest_cosine(&self, name: usize) -> Option<f64> {
        let latest = self.mean[name] != UNKNOWN && usize::from(self.mean[name]) + 1 == self.means.len();
        latest.then(|| f64::from(self.cosines[name]))
    }

    /// The waiting row of the largest merit with Δ(∅), the lowest dataset index first: the first pick.
    pub(super) fn first(&self, run: &Run<'_>) -> Option<usize> {
        let merit = |name: usize| self.merit(name, 0.0, run);
        let waiting = (0..self.values.len()).filter(|&name| self.waits(name));
        let order = |a: &(f64, usize), b: &(f64, usize)| {
            let index = |name: usize| run.survey.index(self.rows[name]);
            a.0.total_cmp(&b.0).then_with(|| index(b.1).cmp(&index(a.1)))
        };
        waiting.map(|name| (merit(name), name)).max_by(order).map(|(_, name)| name)
    }

    /// The largest bound of the merit among waiting rows; −∞ if there is none.
    pub(super) fn largest_merit(&self, slack: f64, run: &Run<'_>) -> f64 {
        if run.merit.is_gain() {
            let largest = self.values.par_iter().copied().reduce(|| -1.0, f64::max);
            return if largest < 0.0 { f64::NEG_INFINITY } else { run.gain(largest * (1.0 + slack)) };
        }
        let waiting = (0..self.values.len()).into_par_iter().filter(|&name| self.waits(name));
        waiting.map(|name| self.merit(name, slack, run)).reduce(|| f64::NEG_INFINITY, f64::max)
    }

    /// The largest bound of the merit, and the one that `count` waiting rows reach (or all, if they are fewer).
    pub(super) fn merits_of_rank(&self, count: usize, slack: f64, run: &Run<'_>) -> (f64, f64) {
        let waiting = (0..self.values.len()).filter(|&name| self.waits(name));
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
