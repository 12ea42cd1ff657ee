//! What a long computation tells the outside, and how the outside stops it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::error::{Error, Result};

/// Shared between a computation and whoever watches it; every field is updated as work goes on.
///
/// The watcher polls, so a slow watcher never slows the computation.
#[derive(Debug, Default)]
pub struct Monitor {
    cancelled: AtomicBool,
    surveyed: AtomicUsize,
    picks: AtomicUsize,
    gain: AtomicU64,
    rows_read: AtomicU64,
}

impl Monitor {
    /// Asks the computation to stop; it ends with [`Error::Interrupted`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Rows that the first pass over the pool has read.
    pub fn surveyed(&self) -> usize {
        self.surveyed.load(Relaxed)
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

    /// Fails once [`Monitor::cancel`] was called.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.load(Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    pub(crate) fn add_surveyed(&self, rows: usize) {
        self.surveyed.fetch_add(rows, Relaxed);
    }

    pub(crate) fn add_pick(&self, gain: f64, rows_read: u64) {
        self.picks.fetch_add(1, Relaxed);
        self.gain.store(gain.to_bits(), Relaxed);
        self.rows_read.fetch_add(rows_read, Relaxed);
    }
}
