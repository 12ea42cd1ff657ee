//! `_core.select` and what is known of rows alone: numpy arrays in, numpy arrays out.

use std::time::{Duration, Instant};

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::monitor::Monitor;
use spice_core::rows::Position;
use spice_core::selection::{self, NearDuplicate, Pick, StopReason};

use crate::errors::to_py;
use crate::options::{ConstraintOptions, ObjectiveOptions, WindowOptions};
use crate::past::PastOptions;
use crate::pool::{PoolOptions, positions_of};
use crate::watch::{Observer, watch};

/// `spice_rs.selection.options.Control`: who watches, and when to stop.
#[derive(FromPyObject)]
pub(crate) struct ControlOptions<'py> {
    threads: Option<usize>,
    time_limit: Option<f64>,
    progress: Option<Bound<'py, PyAny>>,
    checkpoint: Option<Bound<'py, PyAny>>,
    checkpoint_interval: f64,
}

/// Selects rows; see `spice_rs.selection.options` for what the arguments hold.
#[pyfunction]
#[pyo3(signature = (pool, objective, constraints, *, windows, past, control))]
pub(crate) fn select<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    objective: ObjectiveOptions,
    constraints: ConstraintOptions<'py>,
    windows: Option<WindowOptions<'py>>,
    past: PastOptions<'py>,
    control: ControlOptions<'py>,
) -> PyResult<Bound<'py, PyDict>> {
    let (settings, k) = (objective.settings()?, objective.k);
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let conditions = constraints.conditions(k.unwrap_or(pool.len()))?;
    let windows = windows.map(|windows| (windows.positions(), windows.size.max(1), windows.per_window));
    let (made, near_duplicates, old) = past.of(&pool).map_err(to_py)?;
    let monitor = match control.time_limit {
        Some(seconds) => Monitor::with_time_limit(seconds).map_err(to_py)?,
        None => Monitor::default(),
    };
    let work = || {
        let survey = scaling.survey(pool, &monitor)?;
        let selection = match (windows, &old) {
            (Some((order, size, per_window)), _) => {
                let windows: Vec<&[Position]> = order.chunks(size).collect();
                selection::select_windows(&survey, &settings, &windows, per_window, &monitor)?
            }
            (None, Some(old)) => selection::extend(&survey, &settings, k, &made, old, &monitor)?,
            (None, None) => selection::resume(
                &survey,
                &settings,
                &conditions,
                k,
                (&made, &near_duplicates),
                &monitor,
            )?,
        };
        Ok((selection, survey.norms_sq().to_vec(), survey.fingerprint()))
    };
    let interval = Duration::try_from_secs_f64(control.checkpoint_interval).unwrap_or(Duration::MAX);
    let observer = Follower {
        py,
        progress: control.progress,
        checkpoint: control.checkpoint,
        interval,
        saved: Instant::now(),
        saved_picks: made.len(),
    };
    let (selection, norm_sq, fingerprint) = watch(py, &monitor, control.threads, files, observer, work)?;

    let out = series(py, &selection.picks, &selection.near_duplicates)?;
    out.set_item("log_dets", selection.log_dets.into_pyarray(py))?;
    out.set_item(
        "stop_reason",
        match selection.stop {
            StopReason::Budget => "budget",
            StopReason::EarlyStop => "early_stop",
            StopReason::Exhausted => "exhausted",
            StopReason::TimeLimit => "time_limit",
        },
    )?;
    out.set_item("log_det", selection.log_det)?;
    out.set_item("norm_sq", norm_sq.into_pyarray(py))?;
    out.set_item("fingerprint", fingerprint)?;
    Ok(out)
}

/// U of the rows at `positions`.
#[pyfunction]
#[pyo3(signature = (pool, *, positions, alpha, threads))]
pub(crate) fn log_det(
    py: Python<'_>,
    pool: PoolOptions<'_>,
    positions: PyReadonlyArray1<'_, i64>,
    alpha: f64,
    threads: Option<usize>,
) -> PyResult<f64> {
    let (scaling, files, positions) = (pool.scaling(), pool.files(), positions_of(&positions));
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let work = || selection::log_det(&scaling.survey(pool, &monitor)?, alpha, &positions, &monitor);
    watch(py, &monitor, threads, files, (), work)
}

/// U of the first t + 1 of the rows at `positions`, for every t.
#[pyfunction]
#[pyo3(signature = (pool, *, positions, alpha, threads))]
pub(crate) fn log_dets<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    positions: PyReadonlyArray1<'py, i64>,
    alpha: f64,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (scaling, files, positions) = (pool.scaling(), pool.files(), positions_of(&positions));
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let work = || selection::log_dets(&scaling.survey(pool, &monitor)?, alpha, &positions, &monitor);
    Ok(watch(py, &monitor, threads, files, (), work)?.into_pyarray(py))
}

/// Δ(∅) of every row.
#[pyfunction]
#[pyo3(signature = (pool, *, alpha, threads))]
pub(crate) fn single_gains<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    alpha: f64,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let work = || selection::single_gains(&scaling.survey(pool, &monitor)?, alpha);
    Ok(watch(py, &monitor, threads, files, (), work)?.into_pyarray(py))
}

/// w‖g‖² of every row.
#[pyfunction]
#[pyo3(signature = (pool, *, threads))]
pub(crate) fn norms_sq<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let work = || {
        let survey = scaling.survey(pool, &monitor)?;
        survey.check_squares()?;
        Ok(survey.norms_sq().to_vec())
    };
    Ok(watch(py, &monitor, threads, files, (), work)?.into_pyarray(py))
}

/// What [`select`] returns as "fingerprint", of rows that nobody selects from, as they are stored; of those at `positions`
/// if given.
#[pyfunction]
#[pyo3(signature = (pool, *, threads, positions=None))]
pub(crate) fn fingerprint(
    py: Python<'_>,
    pool: PoolOptions<'_>,
    threads: Option<usize>,
    positions: Option<PyReadonlyArray1<'_, i64>>,
) -> PyResult<String> {
    let (files, positions) = (pool.files(), positions.as_ref().map(positions_of));
    let pool = pool.open()?;
    let monitor = Monitor::default();
    watch(py, &monitor, threads, files, (), || {
        selection::fingerprint(&pool, positions.as_deref(), &monitor)
    })
}

/// Reports to Python: to the caller of [`select`] and to whoever keeps its picks.
struct Follower<'py> {
    py: Python<'py>,
    progress: Option<Bound<'py, PyAny>>,
    checkpoint: Option<Bound<'py, PyAny>>,
    interval: Duration,
    saved: Instant,
    saved_picks: usize,
}

impl Follower<'_> {
    /// Hands over all picks so far if there are new ones.
    fn save(&mut self, monitor: &Monitor) -> PyResult<()> {
        if let Some(checkpoint) = &self.checkpoint
            && monitor.picks() > self.saved_picks
        {
            let picks = monitor.log();
            // Read a moment later: what was skipped after the last of these picks is no part of them.
            let mut near_duplicates = monitor.near_duplicates();
            near_duplicates.retain(|found| found.picks <= picks.len());
            checkpoint.call1((series(self.py, &picks, &near_duplicates)?,))?;
            self.saved_picks = picks.len();
        }
        self.saved = Instant::now();
        Ok(())
    }
}

impl Observer for Follower<'_> {
    fn look(&mut self, monitor: &Monitor) -> PyResult<()> {
        if let Some(progress) = &self.progress {
            progress.call1((
                monitor.surveyed(),
                monitor.picks(),
                monitor.gain(),
                monitor.rows_read(),
            ))?;
        }
        if self.saved.elapsed() >= self.interval { self.save(monitor) } else { Ok(()) }
    }

    /// Saves what is there; if that fails too, says so, and what came first is its cause.
    fn failed(&mut self, monitor: &Monitor, error: PyErr) -> PyErr {
        match self.save(monitor) {
            Ok(()) => error,
            Err(unsaved) => {
                unsaved.set_cause(self.py, Some(error));
                unsaved
            }
        }
    }
}

/// The numbers of picks and near-duplicates as arrays, under the names of `spice_rs.selection.saved_run`.
fn series<'py>(
    py: Python<'py>,
    picks: &[Pick],
    near_duplicates: &[NearDuplicate],
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    let floats = |of: fn(&Pick) -> f64| picks.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    out.set_item("indices", picks.iter().map(|p| p.row.get()).collect::<Vec<_>>().into_pyarray(py))?;
    out.set_item("gains", floats(|p| p.gain))?;
    out.set_item("base", floats(|p| p.base))?;
    out.set_item("conflict", floats(|p| p.conflict))?;
    out.set_item("scores", floats(|p| p.score))?;
    out.set_item("overruled", picks.iter().map(|p| p.overruled).collect::<Vec<_>>().into_pyarray(py))?;
    let rows_read: Vec<i64> = picks.iter().map(|p| p.rows_read as i64).collect();
    out.set_item("rows_read", rows_read.into_pyarray(py))?;
    let whole = |of: fn(&NearDuplicate) -> i64| {
        near_duplicates.iter().map(of).collect::<Vec<_>>().into_pyarray(py)
    };
    out.set_item("duplicate_rows", whole(|found| found.row.get()))?;
    out.set_item("duplicate_of", whole(|found| found.of.get()))?;
    out.set_item("duplicate_ranks", whole(|found| found.picks as i64))?;
    let cosines: Vec<f64> = near_duplicates.iter().map(|found| found.cosine).collect();
    out.set_item("duplicate_cosines", cosines.into_pyarray(py))?;
    Ok(out)
}
