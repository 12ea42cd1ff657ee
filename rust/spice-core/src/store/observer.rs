//! Who is told how far long work on a store has come, and can end it.

use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// Is told (rows done, all rows) every few MiB, and can end the work.
pub type Observer<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// Tells `observer`.
///
/// # Errors
/// [`Error::Interrupted`] if it ends the work.
pub(super) fn observe(observer: &mut Observer<'_>, done: usize, total: usize) -> Result<()> {
    match observer(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}
