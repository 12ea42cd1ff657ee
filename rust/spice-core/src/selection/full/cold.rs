//! The rows that wait: an upper bound of each row's q, and what is known of its angle to the mean.
//!
//! A bound is of the time when the row was last looked at, and stays one: Δ never grows, and the angle to
//! the mean changes no faster than the mean turns. `refresh` brings bounds up to date.

use rayon::prelude::*;

use super::drift::Turn;
use super::refresh::Factor;
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
    /// exp(score) − 1 of the smallest score of interest.
    pub(super) reach: f64,
    /// How far a computed q may be off.
    pub(super) slack: f64,
    /// How far the mean has turned, and may still turn, since each of the means; empty if unknown.
    pub(super) turns: &'a [Turn],
    /// Smallest ‖m‖ that the mean may take.
    pub(super) mean_norm: f64,
}

impl Bar<'_> {
    /// Bounds of q below this one are below the bar whatever the conflict; not negative.
    pub(super) fn least_value(&self, run: &Run<'_>) -> f64 {
        (self.reach / run.alpha / (1.0 + self.slack) * (1.0 - 1e-12)).max(0.0)
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

    /// Upper bound of exp(score) − 1 while `bar` holds: the order of scores, mostly without a logarithm.
    pub(super) fn reach(&self, name: usize, bar: Bar<'_>, run: &Run<'_>) -> f64 {
        let odds = run.alpha * self.values[name] * (1.0 + bar.slack);
        let mean = self.mean[name];
        if mean == UNKNOWN || bar.turns.is_empty() || self.cosines[name] >= 0.0 {
            return odds;
        }
        let against = -bar.turns[usize::from(mean)].cosine(f64::from(self.cosines[name]));
        if against <= 0.0 {
            return odds;
        }
        let conflict = run.mean.least_conflict(against, self.norm_sq(name, run), bar.mean_norm);
        // Beyond, exp(score) − 1 is −1 in float64 and tells scores apart no more; a smaller penalty only bounds less.
        let penalty = -(run.penalty * conflict).min(20.0);
        odds * penalty.exp() + penalty.exp_m1()
    }

    pub(super) fn norm_sq(&self, name: usize, run: &Run<'_>) -> f64 {
        run.survey.norm_sq()[self.rows[name]]
    }

    /// Upper bound of Δ.
    pub(super) fn gain(&self, name: usize, slack: f64, run: &Run<'_>) -> f64 {
        run.gain(self.values[name] * (1.0 + slack))
    }

    /// All waiting rows that reach above the bar, with what they reach, in the order of rows.
    pub(super) fn above(&self, bar: Bar<'_>, run: &Run<'_>) -> Vec<(f64, usize)> {
        let least = bar.least_value(run);
        let chunks = self.values.par_chunks(1 << 12).enumerate();
        let found: Vec<Vec<(f64, usize)>> = chunks
            .map(|(chunk, values)| {
                let names = (chunk << 12..).zip(values).filter(|&(_, &value)| value >= least);
                let reaches = names.map(|(name, _)| (self.reach(name, bar, run), name));
                reaches.filter(|&(reach, _)| reach > bar.reach).collect()
            })
            .collect();
        found.concat()
    }

    /// The names of all waiting rows whose Δ may exceed `gain`, largest bound first.
    pub(super) fn with_gain_above(&self, gain: f64, slack: f64, run: &Run<'_>) -> Vec<usize> {
        let above = |name: &usize| self.values[*name] >= 0.0 && self.gain(*name, slack, run) > gain;
        let mut names: Vec<usize> = (0..self.values.len()).filter(above).collect();
        names.sort_by(|&a, &b| self.values[b].total_cmp(&self.values[a]));
        names
    }

    /// The cosine of a row, if it is to the latest mean; also of a row that has left.
    pub(super) fn latest_cosine(&self, name: usize) -> Option<f64> {
        let latest = self.mean[name] != UNKNOWN && usize::from(self.mean[name]) + 1 == self.means.len();
        latest.then(|| f64::from(self.cosines[name]))
    }

    /// The waiting row of the largest Δ(∅), the lowest dataset index first: the first pick.
    pub(super) fn first(&self, run: &Run<'_>) -> usize {
        let largest = self.values.iter().copied().fold(0.0, f64::max);
        // Norms that differ by rounding alone may have one Δ.
        let near = (0..self.values.len()).filter(|&name| self.values[name] >= largest * (1.0 - 1e-12));
        let order = |&a: &usize, &b: &usize| {
            let index = |name: usize| run.survey.index(self.rows[name]);
            let gain = |name: usize| run.gain(self.values[name]);
            gain(a).total_cmp(&gain(b)).then(index(b).cmp(&index(a)))
        };
        near.max_by(order).unwrap_or(0)
    }

    /// The largest bound of Δ among waiting rows; 0 if there is none.
    pub(super) fn largest_gain(&self, slack: f64, run: &Run<'_>) -> f64 {
        let largest = self.values.par_iter().copied().reduce(|| 0.0, f64::max);
        run.gain(largest * (1.0 + slack))
    }

    /// The largest bound of Δ, and the one that `count` waiting rows reach (or all, if they are fewer).
    pub(super) fn gains_of_rank(&self, count: usize, slack: f64, run: &Run<'_>) -> (f64, f64) {
        let mut values: Vec<f64> = self.values.iter().copied().filter(|&value| value >= 0.0).collect();
        if values.is_empty() {
            return (0.0, 0.0);
        }
        let rank = count.min(values.len()) - 1;
        let (larger, &mut value, _) = values.select_nth_unstable_by(rank, |a, b| b.total_cmp(a));
        let top = larger.iter().copied().fold(value, f64::max);
        (run.gain(top * (1.0 + slack)), run.gain(value * (1.0 + slack)))
    }

    /// The epoch is over.
    pub(super) fn restart(&mut self) {
        self.factor = None;
    }
}
