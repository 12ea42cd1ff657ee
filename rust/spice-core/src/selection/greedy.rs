//! The state of a greedy run, and the one place where rows are scored and picks accepted.

use std::collections::HashSet;

use super::conflict::SelectedMean;
use super::objective::{Marginal, Objective};
use super::survey::Survey;
use super::{Pick, RESUME_REMEDY, Settings, StopReason};
use crate::error::{Error, Result};
use crate::linalg::Kernels;
use crate::monitor::Monitor;

/// Rows that are loaded and updated together: they share the reading of what updates them.
pub(super) const GROUP: usize = 8;

/// A row that was scored at the current prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Where the search keeps the row.
    pub(super) slot: usize,
    pub(super) row: usize,
    pub(super) index: i64,
    pub(super) value: f64,
    pub(super) gain: f64,
    pub(super) score: f64,
}

impl Candidate {
    /// The order of picks: the larger score, then the lower dataset index. Total, so that a best
    /// candidate does not depend on the order in which candidates are compared.
    pub(super) fn beats(&self, other: &Self) -> bool {
        self.score > other.score || (self.score == other.score && self.index < other.index)
    }
}

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

/// Buffers of one worker.
#[derive(Default)]
pub(super) struct Scratch {
    rows: Vec<f64>,
    solved: Vec<f64>,
}

/// A greedy run in progress.
pub(super) struct Greedy<'a, O> {
    survey: &'a Survey<'a>,
    kernels: Kernels,
    alpha: f64,
    penalty: f64,
    early_stop: Option<f64>,
    objective: O,
    mean: SelectedMean,
    monitor: &'a Monitor,
    picks: Vec<Pick>,
}

impl<'a, O: Objective> Greedy<'a, O> {
    /// `penalty` is λ as it acts on scores; conflicts are recorded whatever it is.
    pub(super) fn new(
        survey: &'a Survey<'a>,
        settings: &Settings,
        penalty: f64,
        objective: O,
        monitor: &'a Monitor,
    ) -> Self {
        Self {
            survey,
            kernels: survey.kernels(),
            alpha: settings.alpha,
            penalty,
            early_stop: settings.early_stop,
            objective,
            mean: SelectedMean::new(survey.dim()),
            monitor,
            picks: Vec::new(),
        }
    }

    /// The marginal of `row` while nothing is selected; reads no row.
    pub(super) fn start(&self, row: usize) -> Marginal {
        Marginal::start(self.objective.start(self.survey.norm_sq()[row]))
    }

    pub(super) fn gain(&self, value: f64) -> f64 {
        (self.alpha * value.max(0.0)).ln_1p()
    }

    /// The largest score that a row whose Δ was `gain` at some earlier pick can have now.
    pub(super) fn bound(&self, gain: f64) -> f64 {
        gain * (1.0 + self.objective.slack())
    }

    pub(super) fn index(&self, row: usize) -> i64 {
        self.survey.index(row)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.monitor.check()
    }

    /// Scores up to [`GROUP`] `rows`, bringing `marginals` up to date; `slot` is the first row's.
    pub(super) fn score(
        &self,
        rows: &[usize],
        marginals: &mut [Marginal],
        slot: usize,
        scratch: &mut Scratch,
        mut each: impl FnMut(Candidate),
    ) {
        let dim = self.survey.dim();
        scratch.rows.resize(rows.len() * dim, 0.0);
        for (&row, cells) in rows.iter().zip(scratch.rows.chunks_exact_mut(dim)) {
            self.survey.load(row, cells);
        }
        self.objective.refresh(&scratch.rows, marginals, &mut scratch.solved);
        let loaded = scratch.rows.chunks_exact(dim);
        for (offset, ((&row, cells), marginal)) in rows.iter().zip(loaded).zip(marginals).enumerate() {
            let gain = self.gain(marginal.value);
            // With λ = 0 only the pick's conflict is of interest; `accept` computes it.
            let conflict = if self.penalty > 0.0 { self.conflict(row, cells) } else { 0.0 };
            each(Candidate {
                slot: slot + offset,
                row,
                index: self.survey.index(row),
                value: marginal.value,
                gain,
                score: gain - self.penalty * conflict,
            });
        }
    }

    /// Adds the leader to the selected set, unless early stop says that the run is over.
    pub(super) fn accept(&mut self, leader: Leader, rows_read: u64) -> Result<Option<StopReason>> {
        let Some(best) = leader.best else { return Ok(Some(StopReason::Exhausted)) };
        if let (Some(omega), Some(first)) = (self.early_stop, self.picks.first())
            && best.gain <= omega * first.gain
        {
            return Ok(Some(StopReason::EarlyStop));
        }
        let mut cells = vec![0.0; self.survey.dim()];
        self.survey.load(best.row, &mut cells);
        let pick = Pick {
            row: best.row,
            index: best.index,
            gain: best.gain,
            base: self.base(best.row),
            conflict: self.conflict(best.row, &cells),
            score: best.score,
            overruled: leader.largest_gain > best.gain,
            rows_read,
        };
        // First of all: a time limit that passes while the pick is worked in must not lose it.
        self.monitor.accept(pick);
        self.add(pick, &cells, best.value)?;
        Ok(None)
    }

    /// Takes the picks that an earlier run has `made` and drops them from `rows`, the candidates.
    ///
    /// Nothing is searched: a row's value is a function of the row and the picks before it.
    pub(super) fn replay(&mut self, made: &[Pick], rows: &mut Vec<usize>) -> Result<()> {
        let mut scratch = Scratch::default();
        let mut cells = vec![0.0; self.survey.dim()];
        let mut taken = HashSet::new();
        for pick in made {
            self.check()?;
            let mut marginal = [self.start(pick.row)];
            self.score(&[pick.row], &mut marginal, 0, &mut scratch, |_| ());
            let value = marginal[0].value;
            // Digits beyond these may differ between processors.
            let difference = (self.gain(value) - pick.gain).abs();
            if difference.is_nan() || difference > 1e-6 * self.base(pick.row) {
                return Err(Error::invalid(
                    format!("gain of row {} in the picks to resume from", pick.index),
                    pick.gain,
                    self.gain(value),
                    RESUME_REMEDY,
                ));
            }
            self.survey.load(pick.row, &mut cells);
            self.add(*pick, &cells, value)?;
            taken.insert(pick.row);
        }
        rows.retain(|row| !taken.contains(row));
        Ok(())
    }

    fn add(&mut self, pick: Pick, cells: &[f64], value: f64) -> Result<()> {
        self.picks.push(pick);
        self.objective.push(cells, value)?;
        self.mean.push(self.kernels, cells);
        Ok(())
    }

    /// log(1 + α‖g‖²).
    fn base(&self, row: usize) -> f64 {
        (self.alpha * self.survey.norm_sq()[row]).ln_1p()
    }

    fn conflict(&self, row: usize, cells: &[f64]) -> f64 {
        self.mean.conflict(self.kernels, cells, self.survey.norm_sq()[row])
    }

    pub(super) fn picks(&self) -> usize {
        self.picks.len()
    }

    pub(super) fn finish(self, stop: StopReason) -> (Vec<Pick>, StopReason) {
        (self.picks, stop)
    }
}
