//! What a long computation tells the outside, and how the outside stops it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::selection::pick::{NearDuplicate, Pick};

/// Shared between a computation and whoever watches it; every field is updated as work goes on.
///
/// The watcher polls, so a slow watcher never slows the computation.
#[derive(Debug, Default)]
pub struct Monitor {
    cancelled: AtomicBool,
    surveyed: AtomicUsize,
    /// Rows that passes over the pool will have read in all; 0 if that was not said.
    planned: AtomicUsize,
    picks: AtomicUsize,
    gain: AtomicU64,
    rows_read: AtomicU64,
    /// Every accepted pick. A run that ends in the middle of a step has its result here.
    log: Mutex<Vec<Pick>>,
    /// The same of every near-duplicate that was skipped.
    near_duplicates: Mutex<Vec<NearDuplicate>>,
    deadline: Option<Instant>,
    /// Whether the deadline counts now; see [`Monitor::within_limit`].
    limited: AtomicBool,
}

impl Monitor {
    /// A monitor whose run of picks ends `seconds` from now, if it has not ended before.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if that is no positive, finite number.
    pub fn with_time_limit(seconds: f64) -> Result<Self> {
        if !(seconds.is_finite() && seconds > 0.0) {
            let remedy = "None lets the run take as long as it needs.";
            return Err(Error::invalid("time_limit", seconds, "a positive number of seconds", remedy));
        }
        // Further away than the clock can count: no limit.
        let length = Duration::try_from_secs_f64(seconds).ok();
        let deadline = length.and_then(|length| Instant::now().checked_add(length));
        Ok(Self { deadline, ..Self::default() })
    }

    /// Asks the computation to stop; it ends with [`Error::Interrupted`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Rows that the first pass over the pool has read; of an analysis, those of all passes.
    pub fn surveyed(&self) -> usize {
        self.surveyed.load(Relaxed)
    }

    /// Rows that all passes of an analysis will have read, the first one included; 0 before it is known.
    pub fn planned(&self) -> usize {
        self.planned.load(Relaxed)
    }

    /// Picks so far.
    pub fn picks(&self) -> usize {
        self.picks.load(Relaxed)
    }

    /// Δ of the latest pick.
    pub fn gain(&self) -> f64 {
        f64::from_bits(self.gain.load(Relaxed))
    }

    /// Rows that were evaluated after the first pass.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Relaxed)
    }

    /// A copy of the picks so far, in pick order (of windows: in the order in which they were made).
    pub fn log(&self) -> Vec<Pick> {
        self.entries().clone()
    }

    /// Fails once [`Monitor::cancel`] was called or, within [`Monitor::within_limit`], the deadline has passed.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        match self.deadline {
            Some(deadline) if self.limited.load(Relaxed) && Instant::now() >= deadline => {
                Err(Error::TimeLimit)
            }
            _ => Ok(()),
        }
    }

    /// Does `work` under the time limit: [`Monitor::check`] fails with [`Error::TimeLimit`] once it has passed.
    pub(crate) fn within_limit<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.limited.store(true, Relaxed);
        let result = work();
        self.limited.store(false, Relaxed);
        result
    }

    /// Says how many rows all passes will have read: what [`Monitor::planned`] tells.
    pub fn plan(&self, rows: usize) {
        self.planned.store(rows, Relaxed);
    }

    pub(crate) fn add_surveyed(&self, rows: usize) {
        self.surveyed.fetch_add(rows, Relaxed);
    }

    /// Takes note of a pick, at the moment when it is decided.
    pub(crate) fn accept(&self, pick: Pick) {
        self.entries().push(pick);
        self.picks.fetch_add(1, Relaxed);
        self.gain.store(pick.gain.to_bits(), Relaxed);
        self.rows_read.fetch_add(pick.rows_read, Relaxed);
    }

    /// Takes note of a near-duplicate that is skipped.
    pub(crate) fn add_near_duplicate(&self, found: NearDuplicate) {
        self.near_duplicates.lock().unwrap_or_else(PoisonError::into_inner).push(found);
    }

    /// Near-duplicates that were skipped so far, in that order.
    pub fn near_duplicates(&self) -> Vec<NearDuplicate> {
        self.near_duplicates.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Pick>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
