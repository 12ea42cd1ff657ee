//! One step: the best of the hot rows.
//!
//! Δ of every hot row is at hand; a conflict takes a reading of the row. So conflicts are computed in the
//! order of what a row can still score, and only while that reaches the best score found.

use rayon::prelude::*;

use super::Search;
use super::drift::Turn;
use crate::error::Result;
use crate::selection::run::{Candidate, Run};

/// Conflicts computed at once.
const CONFLICTS: usize = 64;
/// Rows made hot at once to find one with a larger Δ.
const WITNESSES: usize = 32;

/// The best hot row, and the largest Δ of any hot row that is up to date.
pub(super) struct Found {
    pub(super) best: Candidate,
    pub(super) largest_gain: f64,
}

impl Search<'_> {
    /// The best hot row.
    pub(super) fn best(&mut self) -> Result<Option<Found>> {
        let penalty = self.run.penalty;
        let eligible =
            |slot: usize| self.sample.as_ref().is_none_or(|sample| sample[self.hot.names[slot]]);
        let active = |slot: &usize| self.hot.values[*slot] >= self.floor && eligible(*slot);
        let slots = (0..self.hot.len()).filter(active);
        if penalty == 0.0 {
            let best = slots.map(|slot| self.candidate(slot, 0.0)).reduce(better);
            return Ok(best.map(|best| Found { best, largest_gain: best.gain }));
        }
        let turn = match (&self.reference, &self.present) {
            (Some(reference), Some(present)) if self.strategy.angles => {
                Some(Turn::between(reference, present, 0.0))
            }
            _ => None,
        };
        let norm = self.run.mean.norm();
        let mut largest_gain = 0.0_f64;
        let mut bounds: Vec<(f64, usize)> = slots
            .map(|slot| {
                let gain = self.hot.gains[slot];
                largest_gain = largest_gain.max(gain);
                let against = turn.map_or(0.0, |turn| -turn.cosine(self.hot.cosines[slot]));
                let bound = if against > 0.0 {
                    let norm_sq = self.run.survey.norm_sq()[self.hot.rows[slot]];
                    gain - penalty * self.run.mean.least_conflict(against, norm_sq, norm)
                } else {
                    gain
                };
                (bound, slot)
            })
            .collect();
        if self.strategy.exhaustive {
            let best = self.conflicting(&bounds)?;
            return Ok(best.map(|best| Found { best, largest_gain }));
        }
        // In the order of bounds, in growing portions, while a bound reaches the best score.
        let mut best: Option<Candidate> = None;
        let (mut done, mut portion) = (0, 1);
        while done < bounds.len() {
            let rest = &mut bounds[done..];
            if let Some(best) = best {
                let reaching = move_to_front(rest, |&(bound, _)| bound >= best.score);
                if reaching == 0 {
                    break;
                }
                bounds.truncate(done + reaching);
            }
            let rest = &mut bounds[done..];
            let count = portion.min(rest.len());
            if count < rest.len() {
                rest.select_nth_unstable_by(count - 1, |a, b| b.0.total_cmp(&a.0));
            }
            let found = self.conflicting(&bounds[done..done + count])?;
            self.conflicts += count;
            best = best.into_iter().chain(found).reduce(better);
            done += count;
            portion = (4 * portion).min(CONFLICTS);
        }
        if self.conflicts > self.hot.len() {
            self.measure_angles()?;
        }
        Ok(best.map(|best| Found { best, largest_gain }))
    }

    fn candidate(&self, slot: usize, conflict: f64) -> Candidate {
        let (row, gain) = (self.hot.rows[slot], self.hot.gains[slot]);
        Candidate {
            slot,
            row,
            index: self.run.survey.index(row),
            gain,
            score: gain - self.run.penalty * conflict,
        }
    }

    /// The best of some hot rows, their conflicts computed.
    fn conflicting(&self, slots: &[(f64, usize)]) -> Result<Option<Candidate>> {
        let evaluate = |cells: &mut Vec<f64>, slots: &[(f64, usize)]| {
            self.run.check()?;
            cells.resize(self.run.survey.dim(), 0.0);
            let candidates = slots.iter().map(|&(_, slot)| {
                let row = self.hot.rows[slot];
                self.run.survey.load(row, cells);
                self.candidate(slot, self.run.conflict(row, cells))
            });
            Ok(candidates.reduce(better))
        };
        if slots.len() < 16 {
            return evaluate(&mut Vec::new(), slots);
        }
        let best = slots.par_chunks(8).map_init(Vec::new, evaluate);
        best.try_reduce(|| None, |a, b| Ok(a.into_iter().chain(b).reduce(better)))
    }

    /// Measures all hot rows' angles to the present mean.
    pub(super) fn measure_angles(&mut self) -> Result<()> {
        self.conflicts = 0;
        self.shared = false;
        if self.run.penalty == 0.0 || !self.strategy.angles {
            return Ok(());
        }
        self.reference.clone_from(&self.present);
        let cosines = cosines(&self.run, &self.hot.rows)?;
        self.hot.cosines = cosines;
        Ok(())
    }

    /// Whether a row with a larger Δ than the best one's lost by its conflict.
    pub(super) fn overruled(&mut self, found: &Found) -> Result<bool> {
        let gain = found.best.gain;
        if self.run.penalty == 0.0 || found.largest_gain > gain {
            return Ok(self.run.penalty > 0.0);
        }
        // Rows whose angle has kept them cold may have a larger Δ all the same.
        while self.cold_gain > gain {
            let slack = self.epoch.slack();
            let mut names = self.cold.with_gain_above(gain, slack, &self.run);
            names.truncate(WITNESSES);
            let first = self.hot.len();
            self.promote(names.into_iter())?;
            self.cold_gain = self.cold.largest_gain(slack, &self.run);
            if self.cold.waiting == 0 {
                // No period will follow that would catch up with the hot rows left behind.
                self.cutoff = f64::NEG_INFINITY;
                self.floor = f64::NEG_INFINITY;
                self.hot.follow(self.floor, &self.epoch, &self.run);
            }
            if self.hot.gains[first..].iter().any(|&other| other > gain) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn better(a: Candidate, b: Candidate) -> Candidate {
    if b.beats(&a) { b } else { a }
}

/// Moves what satisfies `condition` to the front; returns how much that is.
fn move_to_front<T>(items: &mut [T], condition: impl Fn(&T) -> bool) -> usize {
    let mut front = 0;
    for i in 0..items.len() {
        if condition(&items[i]) {
            items.swap(front, i);
            front += 1;
        }
    }
    front
}

/// Cosines of rows to the mean.
pub(super) fn cosines(run: &Run<'_>, rows: &[usize]) -> Result<Vec<f64>> {
    rows.par_iter()
        .with_min_len(16)
        .map_init(Vec::new, |cells, &row| {
            run.check()?;
            cells.resize(run.survey.dim(), 0.0);
            run.survey.load(row, cells);
            Ok(run.mean.cosine(run.kernels, cells, run.survey.norm_sq()[row]))
        })
        .collect()
}
