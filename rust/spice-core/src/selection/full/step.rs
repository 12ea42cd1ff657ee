//! One step: the best of the hot rows.
//!
//! The merit of every hot row is at hand; a conflict takes a reading of the row. So conflicts are computed in the
//! order of what a row can still score, and only while that reaches the best score found.

use rayon::prelude::*;

use super::angles::cosines;
use super::drift::Turn;
use super::search::{Found, Search};
use crate::error::Result;
use crate::selection::run::Candidate;

/// Conflicts computed at once.
const CONFLICTS: usize = 64;
/// Rows made hot at once to find one with a larger merit.
const WITNESSES: usize = 32;

impl Search<'_> {
    /// The best hot row.
    pub(super) fn best(&mut self) -> Result<Option<Found>> {
        let penalty = self.run.penalty;
        let eligible = |slot: usize| {
            self.run.admits(self.hot.rows[slot])
                && self.sample.as_ref().is_none_or(|sample| sample[self.hot.names[slot]])
        };
        let active = |slot: &usize| self.hot.is_active(*slot) && eligible(*slot);
        let slots = (0..self.hot.len()).filter(active);
        if penalty == 0.0 {
            let best = slots.map(|slot| self.candidate(slot, 0.0)).reduce(better);
            return Ok(best.map(|best| Found { best, largest_merit: best.merit }));
        }
        let turn = match (&self.reference, &self.present) {
            (Some(reference), Some(present)) if self.strategy.angles => {
                Some(Turn::between(reference, present, 0.0))
            }
            _ => None,
        };
        let norm = self.run.mean.norm();
        let mut largest_merit = f64::NEG_INFINITY;
        let mut bounds: Vec<(f64, usize)> = slots
            .map(|slot| {
                let row = self.hot.rows[slot];
                let merit = self.run.merit.of(row, self.hot.gains[slot]);
                largest_merit = largest_merit.max(merit);
                let against = turn.map_or(0.0, |turn| -turn.cosine(self.hot.cosines[slot]));
                let bound = if against > 0.0 {
                    merit - penalty * self.run.least_conflict(row, against, norm)
                } else {
                    merit
                };
                (bound, slot)
            })
            .collect();
        if self.strategy.exhaustive {
            let best = self.conflicting(&bounds)?;
            return Ok(best.map(|best| Found { best, largest_merit }));
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
        Ok(best.map(|best| Found { best, largest_merit }))
    }

    fn candidate(&self, slot: usize, conflict: f64) -> Candidate {
        self.run.candidate(slot, self.hot.rows[slot], self.hot.gains[slot], conflict)
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

    /// Whether a row with a larger merit than the best one's lost by its conflict.
    pub(super) fn overruled(&mut self, found: &Found) -> Result<bool> {
        let merit = found.best.merit;
        if self.run.penalty == 0.0 || found.largest_merit > merit {
            return Ok(self.run.penalty > 0.0);
        }
        // Rows whose angle has kept them cold may have a larger merit all the same.
        while self.cold_merit > merit {
            let slack = self.epoch.slack();
            self.retire();
            let mut names = self.cold.with_merit_above(merit, slack, &self.run);
            names.truncate(WITNESSES);
            let first = self.hot.len();
            self.promote(names.into_iter())?;
            self.cold_merit = self.cold.largest_merit(slack, &self.run);
            if self.cold.waiting == 0 {
                // No period will follow that would catch up with the hot rows left behind.
                self.cutoff = f64::NEG_INFINITY;
                self.hot.catch_up(&self.epoch, &self.run);
            }
            let larger = |slot| self.run.merit.of(self.hot.rows[slot], self.hot.gains[slot]) > merit;
            if (first..self.hot.len()).any(larger) {
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
