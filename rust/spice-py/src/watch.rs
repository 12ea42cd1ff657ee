//! Runs long work off the main thread, so that Ctrl-C and progress get through.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use spice_core::monitor::Monitor;
use spice_core::{Error, Result, memory};

use crate::errors::to_py;

/// Time between two looks at Python's signals.
const POLL: Duration = Duration::from_millis(50);

/// What a watcher does between two looks at Python's signals.
pub(crate) trait Observer {
    /// Called some twenty times a second, and once more when the work is done.
    fn look(&mut self, monitor: &Monitor) -> PyResult<()>;

    /// Called when the work has ended without a result, with what has ended it; returns what to raise.
    fn failed(&mut self, _monitor: &Monitor, error: PyErr) -> PyErr {
        error
    }
}

/// Nobody looks.
impl Observer for () {
    fn look(&mut self, _: &Monitor) -> PyResult<()> {
        Ok(())
    }
}

/// Runs `work` on `threads` threads (all cores if `None`) while this thread watches.
///
/// Python's signal handlers run and the observer looks some twenty times a second. If either raises, the
/// work is cancelled and the exception goes on.
pub(crate) fn watch<T: Send>(
    py: Python<'_>,
    monitor: &Monitor,
    threads: Option<usize>,
    mut observer: impl Observer,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let mut builder = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = threads {
        builder = builder.num_threads(threads);
    }
    let wanted = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    memory::check_threads(wanted).map_err(to_py)?;
    let refused = |error: &dyn std::fmt::Display| {
        let found = format!("{wanted}, which the system does not start ({error})");
        let expected = "as many as it lets this process have";
        to_py(Error::invalid("threads", found, expected, "Use fewer threads, or raise the limit."))
    };
    let pool = builder.build().map_err(|error| refused(&error))?;
    let watcher = thread::current();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, || {
            // Tells the watcher on every way out, a panic included.
            let _wake = OnDrop(|| {
                done.store(true, Ordering::Release);
                watcher.unpark();
            });
            pool.install(work)
        });
        let worker = worker.map_err(|error| refused(&error))?;
        let mut raised = None;
        while !done.load(Ordering::Acquire) {
            py.detach(|| thread::park_timeout(POLL));
            if raised.is_none()
                && let Err(error) = py.check_signals().and_then(|()| observer.look(monitor))
            {
                raised = Some(error);
                monitor.cancel();
            }
        }
        let result = py.detach(|| worker.join());
        let result = match (raised, result) {
            (Some(error), _) => Err(error),
            (None, Ok(result)) => result.map_err(to_py),
            (None, Err(panic)) => Err(internal_error(panic.as_ref())),
        };
        let looked = result.and_then(|result| observer.look(monitor).map(|()| result));
        looked.map_err(|error| observer.failed(monitor, error))
    })
}

/// A panic of the core is a bug of ours: it must not look like the user's mistake, nor end the process.
fn internal_error(panic: &(dyn Any + Send)) -> PyErr {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    pyo3::exceptions::PyRuntimeError::new_err(format!("internal error, please report it: {text}"))
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
