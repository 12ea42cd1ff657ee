//! One step: the best of the hot rows.
//!
//! The merit of every hot row is at hand; a conflict takes a reading of the row. So conflicts are computed in the
//! order of what a row can still score, and only while that reaches the best score found.

use rayon::prelude::*;

use super::angles::cosines;
use super::messages::News;
use super::search::{Found, Search};
use crate::error::Result;
use crate::selection::places::Slot;
use crate::selection::run::Candidate;

/// Conflicts computed at once.
const CONFLICTS: usize = 64;
/// Rows made hot at once to find one with a larger merit.
const WITNESSES: usize = 32;

impl Search<'_> {
    /// The best hot row.
    pub(super) fn best(&mut self) -> Result<Option<Found>> {
        let penalty = self.run.penalty;
        let takes_part = |slot: Slot| match (&self.sample, self.hot.name(slot)) {
            (Some(sample), Some(name)) => sample[name],
            _ => true,
        };
        let eligible = |slot: Slot| self.run.admits(self.hot.position(slot)) && takes_part(slot);
        let active = |slot: &Slot| self.hot.is_active(*slot) && eligible(*slot);
        let slots = self.hot.slots().filter(active);
        if penalty == 0.0 {
            let best = slots.map(|slot| self.candidate(slot, 0.0)).reduce(better);
            return Ok(best.map(|best| Found { best, largest_merit: best.merit }));
        }
        let turn = if self.strategy.angles { self.angles.turn() } else { None };
        let norm = self.run.mean.norm();
        let mut largest_merit = f64::NEG_INFINITY;
        let mut bounds: Vec<(f64, Slot)> = slots
            .map(|slot| {
                let position = self.hot.position(slot);
                let merit = self.run.merit.of(position, self.hot.gain(slot));
                largest_merit = largest_merit.max(merit);
                let against = turn.map_or(0.0, |turn| -turn.cosine(self.hot.cosine(slot)));
                let bound = if against > 0.0 {
                    merit - penalty * self.run.least_conflict(position, against, norm)
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
            self.angles.conflicts += count;
            best = best.into_iter().chain(found).reduce(better);
            done += count;
            portion = (4 * portion).min(CONFLICTS);
        }
        if self.angles.conflicts > self.hot.len() {
            self.measure_angles()?;
        }
        Ok(best.map(|best| Found { best, largest_merit }))
    }

    fn candidate(&self, slot: Slot, conflict: f64) -> Candidate {
        self.run.candidate(slot, self.hot.position(slot), self.hot.gain(slot), conflict)
    }

    /// The best of some hot rows, their conflicts computed.
    fn conflicting(&self, slots: &[(f64, Slot)]) -> Result<Option<Candidate>> {
        let evaluate = |cells: &mut Vec<f64>, slots: &[(f64, Slot)]| {
            self.run.check()?;
            cells.resize(self.run.survey.dim(), 0.0);
            let candidates = slots.iter().map(|&(_, slot)| {
                let position = self.hot.position(slot);
                self.run.survey.load(position, cells);
                self.candidate(slot, self.run.conflict(position, cells))
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
        self.angles.conflicts = 0;
        self.angles.shared = false;
        if self.run.penalty == 0.0 || !self.strategy.angles {
            return Ok(());
        }
        self.angles.reference.clone_from(&self.angles.present);
        let cosines = cosines(&self.run, self.hot.positions())?;
        self.hot.set_cosines(cosines);
        Ok(())
    }

    /// Whether a row with a larger merit than the best one's lost by its conflict.
    pub(super) fn overruled(&mut self, found: &Found) -> Result<bool> {
        let merit = found.best.merit;
        if self.run.penalty == 0.0 || found.largest_merit > merit {
            return Ok(self.run.penalty > 0.0);
        }
        // Rows whose angle has kept them cold may have a larger merit all the same.
        while self.ceiling.merit > merit {
            let slack = self.epoch.slack();
            self.retire()?;
            let news = News::of(&self.run, &self.directions, &self.epoch);
            let names = self.waiting.with_merit_above(merit, slack, WITNESSES, news)?;
            let first = self.hot.len();
            self.promote(names.into_iter())?;
            let news = News::of(&self.run, &self.directions, &self.epoch);
            self.ceiling.merit = self.waiting.largest_merit(slack, news)?;
            if self.waiting.is_empty() {
                // No period will follow that would catch up with the hot rows left behind.
                self.ceiling.score = f64::NEG_INFINITY;
                self.hot.catch_up(&self.epoch, &self.run);
            }
            let larger =
                |slot: Slot| self.run.merit.of(self.hot.position(slot), self.hot.gain(slot)) > merit;
            if self.hot.slots_from(first).any(larger) {
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
