//! A greedy run over an objective that scores rows one by one, without memory of their own.

use std::collections::HashSet;

use super::objective::{Marginal, Objective};
use super::pick::{Pick, StopReason};
use super::run::{Candidate, Run};
use crate::error::Result;

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

    /// The marginal of `row` while nothing is selected; reads no row.
    pub(super) fn start(&self, row: usize) -> Marginal {
        Marginal::start(self.objective.start(self.run.survey.norm_sq()[row]))
    }

    pub(super) fn index(&self, row: usize) -> i64 {
        self.run.survey.index(row)
    }

    /// Scores up to [`GROUP`] `rows`, bringing `marginals` up to date; `slot` is the first row's.
    pub(super) fn score(
        &self,
        rows: &[usize],
        marginals: &mut [Marginal],
        slot: usize,
        loaded: &mut Vec<f64>,
        mut each: impl FnMut(Candidate),
    ) {
        let dim = self.run.survey.dim();
        loaded.resize(rows.len() * dim, 0.0);
        for (&row, cells) in rows.iter().zip(loaded.chunks_exact_mut(dim)) {
            self.run.survey.load(row, cells);
        }
        self.objective.refresh(loaded, marginals);
        let loaded = loaded.chunks_exact(dim);
        for (offset, ((&row, cells), marginal)) in rows.iter().zip(loaded).zip(marginals).enumerate() {
            each(self.candidate(row, cells, marginal, slot + offset, f64::NEG_INFINITY));
        }
    }

    /// Scores one row, whose cells are at hand, as [`Greedy::score`] does; a row of merit below `least` without
    /// its conflict.
    pub(super) fn score_one(
        &self,
        row: usize,
        cells: &[f64],
        marginal: &mut Marginal,
        slot: usize,
        least: f64,
    ) -> Candidate {
        self.objective.refresh(cells, std::slice::from_mut(marginal));
        self.candidate(row, cells, marginal, slot, least)
    }

    fn candidate(
        &self,
        row: usize,
        cells: &[f64],
        marginal: &Marginal,
        slot: usize,
        least: f64,
    ) -> Candidate {
        let run = &self.run;
        let candidate = run.candidate(slot, row, run.gain(marginal.value), 0.0);
        // With λ = 0 only the pick's conflict is of interest; `accept` computes it.
        if run.penalty == 0.0 || candidate.merit < least {
            return candidate;
        }
        run.candidate(slot, row, candidate.gain, run.conflict(row, cells))
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

    /// Adds the rows that are owned or forced and the picks that an earlier run has `made`, without a search, and drops
    /// those from `rows`, the candidates.
    ///
    /// A row's value is a function of the row and the picks before it.
    pub(super) fn begin(&mut self, made: &[Pick], rows: &mut Vec<usize>) -> Result<()> {
        let conditions = self.run.conditions;
        for &row in &conditions.initial {
            self.run.check()?;
            self.run.force(row, 0.0, false, &mut self.picked);
            self.objective.push(&self.picked);
        }
        for pick in made {
            let value = self.value(pick.row);
            self.run.replay(pick, value, &mut self.picked)?;
            self.objective.push(&self.picked);
        }
        for &row in conditions.include.iter().skip(made.len()) {
            self.run.check()?;
            let value = self.value(row);
            self.run.force(row, value, true, &mut self.picked);
            self.objective.push(&self.picked);
        }
        let taken: HashSet<usize> = made.iter().map(|pick| pick.row).collect();
        rows.retain(|row| !taken.contains(row));
        Ok(())
    }

    /// The value of a row at the current prefix.
    fn value(&self, row: usize) -> f64 {
        let mut marginal = [self.start(row)];
        self.score(&[row], &mut marginal, 0, &mut Vec::new(), |_| ());
        marginal[0].value
    }
}
