//! A greedy run over an objective that scores rows one by one, without memory of their own.

use std::collections::HashSet;

use super::objective::{Marginal, Objective};
use super::pick::{Pick, StopReason};
use super::places::{Place, Slot};
use super::run::{Candidate, Forced, Run};
use crate::error::Result;
use crate::rows::{DatasetRow, Position};

/// Rows that are loaded and updated together: they share the reading of what updates them.
pub(super) const GROUP: usize = 8;

/// The best candidate so far and the largest merit of any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leader {
    pub(super) best: Option<Candidate>,
    largest_merit: f64,
    /// Whether a row that was not considered is known to have a larger merit.
    pub(super) overruled: bool,
}

impl Default for Leader {
    fn default() -> Self {
        Self { best: None, largest_merit: f64::NEG_INFINITY, overruled: false }
    }
}

impl Leader {
    pub(super) fn consider(&mut self, candidate: &Candidate) {
        self.largest_merit = self.largest_merit.max(candidate.merit);
        if self.best.is_none_or(|best| candidate.beats(&best)) {
            self.best = Some(*candidate);
        }
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.largest_merit = self.largest_merit.max(other.largest_merit);
        if let Some(candidate) = other.best {
            self.consider(&candidate);
        }
        self
    }
}

/// A greedy run in progress.
pub(super) struct Greedy<'a, O> {
    pub(super) run: Run<'a>,
    objective: O,
    /// Room for the row of a pick.
    picked: Vec<f64>,
}

impl<'a, O: Objective> Greedy<'a, O> {
    pub(super) fn new(run: Run<'a>, objective: O) -> Self {
        let picked = vec![0.0; run.survey.dim()];
        Self { run, objective, picked }
    }

    /// The marginal of a row while nothing is selected; reads no row.
    pub(super) fn start(&self, position: Position) -> Marginal {
        Marginal::start(self.objective.start(self.run.survey.norm_sq(position)))
    }

    pub(super) fn dataset_row(&self, position: Position) -> DatasetRow {
        self.run.survey.dataset_row(position)
    }

    /// Scores up to [`GROUP`] rows, bringing `marginals` up to date; `slot` is the first row's.
    pub(super) fn score(
        &self,
        positions: &[Position],
        marginals: &mut [Marginal],
        slot: Slot,
        loaded: &mut Vec<f64>,
        mut each: impl FnMut(Candidate),
    ) {
        let dim = self.run.survey.dim();
        loaded.resize(positions.len() * dim, 0.0);
        for (&position, cells) in positions.iter().zip(loaded.chunks_exact_mut(dim)) {
            self.run.survey.load(position, cells);
        }
        self.objective.refresh(loaded, marginals);
        let loaded = loaded.chunks_exact(dim);
        for (offset, ((&position, cells), marginal)) in
            positions.iter().zip(loaded).zip(marginals).enumerate()
        {
            each(self.candidate(position, cells, marginal, slot.later(offset), f64::NEG_INFINITY));
        }
    }

    /// Scores one row, whose cells are at hand, as [`Greedy::score`] does; a row of merit below `least` without
    /// its conflict.
    pub(super) fn score_one(
        &self,
        position: Position,
        cells: &[f64],
        marginal: &mut Marginal,
        slot: Slot,
        least: f64,
    ) -> Candidate {
        self.objective.refresh(cells, std::slice::from_mut(marginal));
        self.candidate(position, cells, marginal, slot, least)
    }

    fn candidate(
        &self,
        position: Position,
        cells: &[f64],
        marginal: &Marginal,
        slot: Slot,
        least: f64,
    ) -> Candidate {
        let run = &self.run;
        let candidate = run.candidate(slot, position, run.gain(marginal.value), 0.0);
        // With λ = 0 only the pick's conflict is of interest; `accept` computes it.
        if run.penalty == 0.0 || candidate.merit < least {
            return candidate;
        }
        run.candidate(slot, position, candidate.gain, run.conflict(position, cells))
    }

    /// Adds the leader to the selected set, unless early stop says that the run is over.
    pub(super) fn accept(&mut self, leader: Leader, rows_read: u64) -> Result<Option<StopReason>> {
        let Some(best) = leader.best else { return Ok(Some(StopReason::Exhausted)) };
        let overruled = leader.overruled || leader.largest_merit > best.merit;
        let stop = self.run.accept(&best, overruled, rows_read, &mut self.picked);
        if stop.is_none() {
            self.objective.push(&self.picked);
        }
        Ok(stop)
    }

    /// Adds the forced rows and the picks that an earlier run has `made`, without a search, and drops the latter from the
    /// `candidates`.
    ///
    /// A row's value is a function of the row and the picks before it.
    pub(super) fn begin(&mut self, made: &[Pick], candidates: &mut Vec<Position>) -> Result<()> {
        let conditions = self.run.conditions;
        for &position in &conditions.initial {
            self.run.check()?;
            self.run.force(position, 0.0, Forced::Initial, &mut self.picked);
            self.objective.push(&self.picked);
        }
        for pick in made {
            let value = self.value(pick.position);
            self.run.replay(pick, value, &mut self.picked)?;
            self.objective.push(&self.picked);
        }
        for &position in conditions.include.iter().skip(made.len()) {
            self.run.check()?;
            let value = self.value(position);
            self.run.force(position, value, Forced::Included, &mut self.picked);
            self.objective.push(&self.picked);
        }
        let taken: HashSet<Position> = made.iter().map(|pick| pick.position).collect();
        candidates.retain(|position| !taken.contains(position));
        Ok(())
    }

    /// The value of a row at the current prefix.
    fn value(&self, position: Position) -> f64 {
        let mut marginal = [self.start(position)];
        self.score(&[position], &mut marginal, Slot::new(0), &mut Vec::new(), |_| ());
        marginal[0].value
    }
}
