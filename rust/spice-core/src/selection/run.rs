//! What every greedy run keeps, whatever its objective and its search: picks, their mean, when to stop.

use super::conflict::SelectedMean;
use super::survey::Survey;
use super::{Pick, RESUME_REMEDY, Settings, StopReason};
use crate::error::{Error, Result};
use crate::linalg::Kernels;
use crate::monitor::Monitor;

/// A row that was scored at the current prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Where the search keeps the row.
    pub(super) slot: usize,
    pub(super) row: usize,
    pub(super) index: i64,
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

/// A greedy run in progress.
pub(super) struct Run<'a> {
    pub(super) survey: &'a Survey<'a>,
    pub(super) kernels: Kernels,
    pub(super) alpha: f64,
    /// λ as it acts on scores; conflicts are recorded whatever it is.
    pub(super) penalty: f64,
    pub(super) monitor: &'a Monitor,
    pub(super) mean: SelectedMean,
    early_stop: Option<f64>,
    picks: Vec<Pick>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        survey: &'a Survey<'a>,
        settings: &Settings,
        penalty: f64,
        monitor: &'a Monitor,
    ) -> Self {
        Self {
            survey,
            kernels: survey.kernels(),
            alpha: settings.alpha,
            penalty,
            monitor,
            mean: SelectedMean::new(survey.dim()),
            early_stop: settings.early_stop,
            picks: Vec::new(),
        }
    }

    pub(super) fn gain(&self, value: f64) -> f64 {
        (self.alpha * value.max(0.0)).ln_1p()
    }

    /// The value whose Δ is `gain`: the inverse of [`Run::gain`].
    pub(super) fn value(&self, gain: f64) -> f64 {
        gain.exp_m1() / self.alpha
    }

    /// conflict of `row` at the current prefix; `cells` holds the row.
    pub(super) fn conflict(&self, row: usize, cells: &[f64]) -> f64 {
        self.mean.conflict(self.kernels, cells, self.survey.norm_sq()[row])
    }

    pub(super) fn check(&self) -> Result<()> {
        self.monitor.check()
    }

    /// Records the best candidate as a pick, unless early stop says that the run is over; `cells` gets
    /// its row.
    pub(super) fn accept(
        &mut self,
        best: &Candidate,
        overruled: bool,
        rows_read: u64,
        cells: &mut [f64],
    ) -> Option<StopReason> {
        if let (Some(omega), Some(first)) = (self.early_stop, self.picks.first())
            && best.gain <= omega * first.gain
        {
            return Some(StopReason::EarlyStop);
        }
        self.survey.load(best.row, cells);
        let pick = Pick {
            row: best.row,
            index: best.index,
            gain: best.gain,
            base: self.base(best.row),
            conflict: self.conflict(best.row, cells),
            score: best.score,
            overruled,
            rows_read,
        };
        // Before anything is done with it: a time limit that passes meanwhile must not lose the pick.
        self.monitor.accept(pick);
        self.record(pick, cells);
        None
    }

    /// Records a pick of an earlier run, whose row has `value` now; `cells` gets its row.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the value is not the one that the pick's Δ came from; whatever stops a run.
    pub(super) fn replay(&mut self, pick: &Pick, value: f64, cells: &mut [f64]) -> Result<()> {
        self.check()?;
        let gain = self.gain(value);
        let difference = (gain - pick.gain).abs();
        // Digits beyond these may differ between processors.
        if difference.is_nan() || difference > 1e-6 * self.base(pick.row) {
            let field = format!("gain of row {} in the picks to resume from", pick.index);
            return Err(Error::invalid(field, pick.gain, gain, RESUME_REMEDY));
        }
        self.survey.load(pick.row, cells);
        self.record(*pick, cells);
        Ok(())
    }

    fn record(&mut self, pick: Pick, cells: &[f64]) {
        self.mean.push(self.kernels, cells);
        self.picks.push(pick);
    }

    /// log(1 + α‖g‖²).
    fn base(&self, row: usize) -> f64 {
        (self.alpha * self.survey.norm_sq()[row]).ln_1p()
    }

    /// How much the score fell from one pick to the next, on average over the latest `picks` picks.
    pub(super) fn decline(&self, picks: usize) -> f64 {
        let latest = &self.picks[self.picks.len().saturating_sub(picks)..];
        match latest {
            [first, .., last] => (first.score - last.score) / (latest.len() - 1) as f64,
            _ => 0.0,
        }
    }

    /// The score of the latest pick; 0 if there is none.
    pub(super) fn latest_score(&self) -> f64 {
        self.picks.last().map_or(0.0, |pick| pick.score)
    }

    pub(super) fn picks(&self) -> usize {
        self.picks.len()
    }

    pub(super) fn finish(self, stop: StopReason) -> (Vec<Pick>, StopReason) {
        (self.picks, stop)
    }
}
