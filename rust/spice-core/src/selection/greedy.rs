//! A greedy run over an objective that scores rows one by one, without memory of their own.

use std::collections::HashSet;

use super::objective::{Marginal, Objective};
use super::run::{Candidate, Run};
use super::{Pick, StopReason};
use crate::error::Result;

/// Rows that are loaded and updated together: they share the reading of what updates them.
pub(super) const GROUP: usize = 8;

/// The best candidate so far and the largest Δ of any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leader {
    pub(super) best: Option<Candidate>,
    pub(super) largest_gain: f64,
}

impl Leader {
    pub(super) fn consider(&mut self, candidate: &Candidate) {
        self.largest_gain = self.largest_gain.max(candidate.gain);
        if self.best.is_none_or(|best| candidate.beats(&best)) {
            self.best = Some(*candidate);
        }
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.largest_gain = self.largest_gain.max(other.largest_gain);
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

    /// Scores one row, whose cells are at hand, as [`Greedy::score`] does; a row of Δ below `least` without its
    /// conflict.
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
        let gain = run.gain(marginal.value);
        // With λ = 0 only the pick's conflict is of interest; `accept` computes it.
        let conflict = if run.penalty > 0.0 && gain >= least { run.conflict(row, cells) } else { 0.0 };
        Candidate { slot, row, index: run.survey.index(row), gain, score: gain - run.penalty * conflict }
    }

    /// Adds the leader to the selected set, unless early stop says that the run is over.
    pub(super) fn accept(&mut self, leader: Leader, rows_read: u64) -> Result<Option<StopReason>> {
        let Some(best) = leader.best else { return Ok(Some(StopReason::Exhausted)) };
        let overruled = leader.largest_gain > best.gain;
        let stop = self.run.accept(&best, overruled, rows_read, &mut self.picked);
        if stop.is_none() {
            self.objective.push(&self.picked);
        }
        Ok(stop)
    }

    /// Takes the picks that an earlier run has `made` and drops them from `rows`, the candidates.
    ///
    /// Nothing is searched: a row's value is a function of the row and the picks before it.
    pub(super) fn replay(&mut self, made: &[Pick], rows: &mut Vec<usize>) -> Result<()> {
        let mut loaded = Vec::new();
        for pick in made {
            let mut marginal = [self.start(pick.row)];
            self.score(&[pick.row], &mut marginal, 0, &mut loaded, |_| ());
            self.run.replay(pick, marginal[0].value, &mut self.picked)?;
            self.objective.push(&self.picked);
        }
        let taken: HashSet<usize> = made.iter().map(|pick| pick.row).collect();
        rows.retain(|row| !taken.contains(row));
        Ok(())
    }
}
