//! What every greedy run keeps, whatever its objective and its search: picks, their mean, when to stop.

use super::conditions::Conditions;
use super::conflict::SelectedMean;
#[cfg(any(test, fuzzing))]
use super::limits::Books;
use super::limits::Ledger;
use super::merit::{Merit, score};
use super::near_duplicates::NearDuplicates;
use super::pick::{NearDuplicate, Pick, StopReason};
use super::places::{Place, Slot};
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::linalg::Kernels;
use crate::monitor::Monitor;
use crate::rows::{DatasetRow, Position};
use crate::survey::{FAINT, Survey};

/// What to do about picks that this run cannot have made.
pub(super) const RESUME_REMEDY: &str = "Start anew, without the picks of an earlier run.";

/// A row that was scored at the current prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Where the search keeps the row.
    pub(super) slot: Slot,
    pub(super) position: Position,
    pub(super) row: DatasetRow,
    pub(super) gain: f64,
    /// The score without its penalty.
    pub(super) merit: f64,
    pub(super) score: f64,
}

impl Candidate {
    /// The order of picks: the larger score, then the lower dataset row. Total, so that a best
    /// candidate does not depend on the order in which candidates are compared.
    pub(super) fn beats(&self, other: &Self) -> bool {
        self.score > other.score || (self.score == other.score && self.row < other.row)
    }
}

/// A row that enters the selection without a contest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forced {
    /// Selected before the run: it enters F and the mean, and is no pick.
    Initial,
    /// One of the first picks, as asked for.
    Included,
}

/// What an earlier run leaves to this one.
#[derive(Clone, Copy, Default)]
pub(super) struct Past<'a> {
    /// Its picks.
    pub(super) made: &'a [Pick],
    /// The near-duplicates that it skipped on the way.
    pub(super) near_duplicates: &'a [NearDuplicate],
    /// The rows that it chose from, (n,), if there are more now: the picks are made again, against the new rows.
    pub(super) old: Option<&'a [bool]>,
}

impl<'a> Past<'a> {
    /// Picks that are taken without a search.
    pub(super) const fn replayed(&self) -> &'a [Pick] {
        if self.old.is_none() { self.made } else { &[] }
    }
}

/// What a run ends with.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) picks: Vec<Pick>,
    pub(super) stop: StopReason,
}

/// Δ of a value.
pub(super) fn gain(alpha: f64, value: f64) -> f64 {
    (alpha * value.max(0.0)).ln_1p()
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
    pub(super) merit: Merit<'a>,
    pub(super) conditions: &'a Conditions,
    ledger: Option<Ledger<'a>>,
    near_duplicates: Option<NearDuplicates>,
    early_stop: Option<f64>,
    /// Picks and initial rows.
    selected: usize,
    picks: Vec<Pick>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        survey: &'a Survey<'a>,
        settings: &Settings,
        penalty: f64,
        conditions: &'a Conditions,
        monitor: &'a Monitor,
    ) -> Self {
        Self {
            survey,
            kernels: survey.kernels(),
            alpha: settings.alpha,
            penalty,
            monitor,
            mean: SelectedMean::new(survey.dim()),
            merit: conditions.merit(),
            conditions,
            ledger: conditions.limits.as_ref().map(Ledger::new),
            near_duplicates: conditions.max_similarity.map(NearDuplicates::new),
            early_stop: settings.early_stop,
            selected: 0,
            picks: Vec::new(),
        }
    }

    pub(super) fn gain(&self, value: f64) -> f64 {
        gain(self.alpha, value)
    }

    /// The value whose Δ is `gain`: the inverse of [`Run::gain`].
    pub(super) fn value(&self, gain: f64) -> f64 {
        gain.exp_m1() / self.alpha
    }

    /// The value below which a row's merit is below `merit`; negative if it never is.
    pub(super) fn value_at(&self, position: Position, merit: f64) -> f64 {
        let gain = self.merit.gain(position, merit);
        // So small a gain has not the digits to bound anything by.
        if gain > 0.0 && gain < FAINT { 0.0 } else { self.value(gain) }
    }

    /// conflict of a row at the current prefix; `cells` holds the row.
    pub(super) fn conflict(&self, position: Position, cells: &[f64]) -> f64 {
        self.mean.conflict(
            self.kernels,
            cells,
            self.survey.norm_sq(position),
            self.survey.weight(position),
        )
    }

    /// The least conflict of a row whose cosine to the mean is at most `−against`, while ‖m‖ ≥ `mean_norm`.
    pub(super) fn least_conflict(&self, position: Position, against: f64, mean_norm: f64) -> f64 {
        let (norm_sq, weight) = (self.survey.norm_sq(position), self.survey.weight(position));
        self.mean.least_conflict(against, norm_sq, weight, mean_norm)
    }

    /// A row of the given Δ and conflict.
    pub(super) fn candidate(
        &self,
        slot: Slot,
        position: Position,
        gain: f64,
        conflict: f64,
    ) -> Candidate {
        let merit = self.merit.of(position, gain);
        let score = score(merit, self.penalty, conflict);
        Candidate { slot, position, row: self.survey.dataset_row(position), gain, merit, score }
    }

    /// Equal for rows that nothing but their cells can tell apart, and mostly for no others.
    pub(super) fn terms_key(&self, position: Position) -> u64 {
        let (multiplier, bonus) = self.merit.key(position);
        let (group, cost) = self.terms(position);
        // Rows of one product √w·g may differ in w, and so in what they do to the mean.
        let weight = self.survey.weight(position);
        let parts = [multiplier, bonus, group as u64, cost.to_bits(), weight.to_bits()];
        parts
            .into_iter()
            .fold(0, |key: u64, part| (key.rotate_left(17) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Whether two rows are the same in everything that decides on them but their dataset row.
    pub(super) fn are_alike(&self, a: Position, b: Position) -> bool {
        self.merit.key(a) == self.merit.key(b)
            && self.terms(a) == self.terms(b)
            && self.survey.same(a, b)
    }

    /// Group and cost of a row.
    fn terms(&self, position: Position) -> (usize, f64) {
        let limits = self.conditions.limits.as_ref();
        limits.map_or((0, 1.0), |limits| (limits.group(position), limits.cost(position)))
    }

    /// Whether the limits let the row be picked next. Once false, it stays so.
    pub(super) fn admits(&self, position: Position) -> bool {
        self.ledger.as_ref().is_none_or(|ledger| ledger.admits(position))
    }

    /// Whether some row may have become ineligible without being picked.
    pub(super) const fn is_limited(&self) -> bool {
        self.ledger.is_some()
    }

    /// Whether the row is too similar to a selected one; enters it as skipped if so. `value` is its q, if it is known.
    pub(super) fn is_near_duplicate(&self, position: Position, value: Option<f64>) -> bool {
        let Some(known) = &self.near_duplicates else { return false };
        if value.is_some_and(|value| known.is_far(value, self.survey.norm_sq(position))) {
            return false;
        }
        let Some((of, cosine)) = known.of(position, self.survey) else { return false };
        let (row, of) = (self.survey.dataset_row(position), self.survey.dataset_row(of));
        self.monitor.add_near_duplicate(NearDuplicate {
            position,
            row,
            of,
            cosine,
            picks: self.picks.len(),
        });
        true
    }

    /// Whether nothing is selected, nor was initially.
    pub(super) const fn is_blank(&self) -> bool {
        self.mean.is_blank()
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
        self.survey.load(best.position, cells);
        let conflict = self.conflict(best.position, cells);
        self.take(best, conflict, overruled, rows_read, cells);
        None
    }

    /// Adds a row of value `value` that competes with none; `cells` gets it.
    pub(super) fn force(&mut self, position: Position, value: f64, forced: Forced, cells: &mut [f64]) {
        self.survey.load(position, cells);
        match forced {
            Forced::Initial => self.add(position, cells),
            Forced::Included => {
                let conflict = self.conflict(position, cells);
                let candidate = self.alone(position, value, conflict);
                self.take(&candidate, conflict, false, 1, cells);
            }
        }
    }

    /// A row that competes with none, and so has no slot that matters.
    fn alone(&self, position: Position, value: f64, conflict: f64) -> Candidate {
        self.candidate(Slot::new(0), position, self.gain(value), conflict)
    }

    fn take(&mut self, best: &Candidate, conflict: f64, overruled: bool, rows_read: u64, cells: &[f64]) {
        let pick = Pick {
            position: best.position,
            row: best.row,
            gain: best.gain,
            base: self.base(best.position),
            conflict,
            score: best.score,
            overruled,
            rows_read,
        };
        // Before anything is done with it: a time limit that passes meanwhile must not lose the pick.
        self.monitor.accept(pick);
        self.record(pick, cells);
    }

    /// Records a pick of an earlier run, whose row has `value` now; `cells` gets its row.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if its numbers are not those of the pick: the search goes on from them; whatever stops a run.
    pub(super) fn replay(&mut self, pick: &Pick, value: f64, cells: &mut [f64]) -> Result<()> {
        self.check()?;
        self.survey.load(pick.position, cells);
        let conflict = self.conflict(pick.position, cells);
        let candidate = self.alone(pick.position, value, conflict);
        let base = self.base(pick.position);
        for (name, found, expected, scale) in [
            ("gain", pick.gain, candidate.gain, base),
            ("base", pick.base, base, base),
            ("conflict", pick.conflict, conflict, 1.0),
            ("score", pick.score, candidate.score, base.max(candidate.score.abs()).max(self.penalty)),
        ] {
            let difference = (found - expected).abs();
            // Digits beyond these may differ between processors.
            if difference.is_nan() || difference > 1e-6 * scale {
                let field = format!("{name} of row {} in the picks to resume from", pick.row);
                return Err(Error::invalid(field, found, expected, RESUME_REMEDY));
            }
        }
        self.record(*pick, cells);
        Ok(())
    }

    fn record(&mut self, pick: Pick, cells: &[f64]) {
        self.add(pick.position, cells);
        if let Some(ledger) = &mut self.ledger {
            ledger.spend(pick.position);
        }
        self.picks.push(pick);
    }

    fn add(&mut self, position: Position, cells: &[f64]) {
        self.selected += 1;
        self.mean.push(self.kernels, cells, self.survey.weight(position));
        if let Some(known) = &mut self.near_duplicates {
            known.push(position, self.survey, self.alpha);
        }
    }

    /// log(1 + α‖g‖²).
    fn base(&self, position: Position) -> f64 {
        gain(self.alpha, self.survey.norm_sq(position))
    }

    /// How much the score fell from one pick to the next, on average over the latest `picks` picks.
    pub(super) fn decline(&self, picks: usize) -> f64 {
        let competed = &self.picks[self.conditions.include.len().min(self.picks.len())..];
        let latest = &competed[competed.len().saturating_sub(picks)..];
        match latest {
            [first, .., last] => (first.score - last.score) / (latest.len() - 1) as f64,
            _ => 0.0,
        }
    }

    /// No row that can still be picked has a larger value, as the latest pick tells; infinite if that was included.
    pub(super) fn most_value(&self) -> f64 {
        match self.picks.last() {
            Some(pick) if self.picks.len() > self.conditions.include.len() => {
                self.value(self.merit.most_gain(pick.score + self.penalty))
            }
            _ => f64::INFINITY,
        }
    }

    /// No row that competes with a winner of this score has a smaller value, unless this is negative.
    pub(super) fn least_value(&self, score: f64) -> f64 {
        self.value(self.merit.least_gain(score))
    }

    /// Number of picks and of initial rows.
    pub(super) const fn selected(&self) -> usize {
        self.selected
    }

    pub(super) fn picks(&self) -> usize {
        self.picks.len()
    }

    /// A run by the same rules, with nothing selected: what an owner elsewhere goes by.
    #[cfg(any(test, fuzzing))]
    pub(super) fn follower(&self) -> Self {
        Self {
            mean: SelectedMean::new(self.survey.dim()),
            merit: self.conditions.merit(),
            ledger: self.conditions.limits.as_ref().map(Ledger::new),
            near_duplicates: None,
            early_stop: None,
            selected: 0,
            picks: Vec::new(),
            ..*self
        }
    }

    /// Goes on from where another run is.
    #[cfg(any(test, fuzzing))]
    pub(super) fn follow(&mut self, selected: usize, mean: SelectedMean, books: Option<Books>) {
        (self.selected, self.mean) = (selected, mean);
        if let (Some(ledger), Some(books)) = (&mut self.ledger, books) {
            ledger.follow(books);
        }
    }

    /// What its limits have been used up to.
    #[cfg(any(test, fuzzing))]
    pub(super) fn books(&self) -> Option<Books> {
        self.ledger.as_ref().map(Ledger::books)
    }

    pub(super) fn finish(self, stop: StopReason) -> Outcome {
        Outcome { picks: self.picks, stop }
    }
}
