//! Runs long work off the main thread, so that Ctrl-C and progress get through.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use spice_core::monitor::Monitor;
use spice_core::{Error, Result, memory};

use crate::errors::to_py;
use crate::files::Files;

/// Time between two looks at Python's signals.
const POLL: Duration = Duration::from_millis(50);

/// Threads for each core beyond which more are a slip: they bring nothing, and starting thousands takes minutes.
const MOST_PER_CORE: usize = 16;

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

/// Runs `work` on `threads` threads (see [`pool_size`]) while this thread watches.
///
/// Python's signal handlers run and the observer looks some twenty times a second. If either raises, or if a file of the rows
/// has changed, the work is cancelled and the exception goes on. Of changed rows nothing is reported to the observer.
pub(crate) fn watch<T: Send>(
    py: Python<'_>,
    monitor: &Monitor,
    threads: Option<usize>,
    mut files: Files,
    mut observer: impl Observer,
    work: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    // With the GIL: nobody forks meanwhile.
    spice_core::settle();
    py.detach(|| files.check()).map_err(to_py)?;
    let count = pool_size(threads);
    memory::check_threads(count).map_err(to_py)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .map_err(|error| no_threads(count, &error))?;
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
        let worker = worker.map_err(|error| no_threads(1, &error))?;
        let mut raised = None;
        let mut changed = None;
        while !done.load(Ordering::Acquire) {
            let found = py.detach(|| {
                thread::park_timeout(POLL);
                files.check()
            });
            if changed.is_none()
                && let Err(error) = found
            {
                changed = Some(error);
                monitor.cancel();
            }
            if raised.is_none()
                && changed.is_none()
                && let Err(error) = py.check_signals().and_then(|()| observer.look(monitor))
            {
                raised = Some(error);
                monitor.cancel();
            }
        }
        let (result, found) = py.detach(|| (worker.join(), files.check_end()));
        if let Some(error) = changed.or(found.err()) {
            return Err(to_py(error));
        }
        let result = match (raised, result) {
            (Some(error), _) => Err(error),
            (None, Ok(result)) => result.map_err(to_py),
            (None, Err(panic)) => Err(internal_error(panic.as_ref())),
        };
        let looked = result.and_then(|result| observer.look(monitor).map(|()| result));
        looked.map_err(|error| observer.failed(monitor, error))
    })
}

/// The threads of a pool: as many as asked for, by the argument, by `RAYON_NUM_THREADS` or by the number of cores, but
/// never so many that starting them takes longer than the work.
fn pool_size(threads: Option<usize>) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let wanted = threads.or_else(|| std::env::var("RAYON_NUM_THREADS").ok()?.trim().parse().ok());
    wanted.filter(|&count| count > 0).unwrap_or(cores).min(MOST_PER_CORE * cores)
}

/// The system refuses to start threads: what a person can do is ask for fewer.
fn no_threads(count: usize, error: &dyn std::error::Error) -> PyErr {
    let expected = format!("{count} that the system starts");
    let remedy = "Give fewer, or raise the system's limits of threads and memory.";
    to_py(Error::invalid("threads", error, expected, remedy))
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
