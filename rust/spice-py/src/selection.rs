//! `_core.select`: numpy arrays in, numpy arrays out.

use std::time::{Duration, Instant};

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::selection::{
    self, Conditions, Fisher, Limits, Method, NearDuplicate, Pick, Search, Settings, StopReason, Survey,
};
use spice_core::{Error, Result};

use crate::errors::to_py;
use crate::store::Store;
use crate::watch::{Observer, watch};

/// Rows of one source.
#[derive(FromPyObject)]
pub(crate) enum Rows<'py> {
    /// An open store.
    Store(Bound<'py, Store>),
    /// Memory: cells as bytes, dtype name, number of rows.
    Array(PyReadonlyArray1<'py, u8>, String, usize),
}

/// Selects rows; see `spice_rs.select` for what the arguments mean and what they default to.
#[pyfunction]
#[pyo3(signature = (source, *, dim, index, scale, unit, k, alpha, conflict_penalty, early_stop, fisher, method,
                    search, hot_rows, epsilon, seed, order, pool_size, select_per_window, threads, progress, time_limit, made, checkpoint, checkpoint_interval,
                    weights=None, multiplier=None, bonus=None, initial=None, include=None, exclude=None, groups=None,
                    minima=None, maxima=None, costs=None, budget=None, max_similarity=None, old=None, left_out=None))]
#[expect(clippy::too_many_arguments, reason = "one per keyword of the Python function")]
pub(crate) fn select<'py>(
    py: Python<'py>,
    source: Vec<Rows<'py>>,
    dim: usize,
    index: Option<PyReadonlyArray1<'py, i64>>,
    scale: Option<PyReadonlyArray1<'py, f64>>,
    unit: bool,
    k: Option<usize>,
    alpha: f64,
    conflict_penalty: f64,
    early_stop: Option<f64>,
    fisher: &str,
    method: &str,
    search: &str,
    hot_rows: Option<usize>,
    epsilon: f64,
    seed: u64,
    order: Option<PyReadonlyArray1<'py, i64>>,
    pool_size: Option<usize>,
    select_per_window: Option<usize>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
    time_limit: Option<f64>,
    made: Option<Made<'py>>,
    checkpoint: Option<Bound<'py, PyAny>>,
    checkpoint_interval: f64,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    multiplier: Option<PyReadonlyArray1<'py, f64>>,
    bonus: Option<PyReadonlyArray1<'py, f64>>,
    initial: Option<PyReadonlyArray1<'py, i64>>,
    include: Option<PyReadonlyArray1<'py, i64>>,
    exclude: Option<PyReadonlyArray1<'py, i64>>,
    groups: Option<PyReadonlyArray1<'py, i64>>,
    minima: Option<PyReadonlyArray1<'py, f64>>,
    maxima: Option<PyReadonlyArray1<'py, f64>>,
    costs: Option<PyReadonlyArray1<'py, f64>>,
    budget: Option<f64>,
    max_similarity: Option<f64>,
    old: Option<PyReadonlyArray1<'py, bool>>,
    left_out: Option<LeftOut<'py>>,
) -> PyResult<Bound<'py, PyDict>> {
    let settings = Settings {
        alpha,
        conflict_penalty,
        early_stop,
        fisher: parse(
            "fisher",
            fisher,
            &[("full", Fisher::Full), ("diagonal", Fisher::Diagonal), ("scalar", Fisher::Scalar)],
        )?,
        method: parse(
            "method",
            method,
            &[
                ("greedy", Method::Greedy),
                ("top_k", Method::TopK),
                ("epsilon_lazy", Method::EpsilonLazy),
                ("stochastic", Method::Stochastic),
            ],
        )?,
        search: parse(
            "search",
            search,
            &[("lazy", Search::Lazy), ("lazy_gain", Search::LazyGain), ("eager", Search::Eager)],
        )?,
        hot_rows,
        epsilon,
        seed,
    };
    let pool = pool(&source, dim, index, scale)?;
    let order = order.map(|order| rows_of(&order));
    let rows = |rows: &Option<PyReadonlyArray1<'_, i64>>| rows.as_ref().map_or_else(Vec::new, rows_of);
    let limited = groups.is_some() || budget.is_some();
    let conditions = Conditions {
        multiplier: multiplier.as_ref().map(numbers_of),
        bonus: bonus.as_ref().map(numbers_of),
        initial: rows(&initial),
        include: rows(&include),
        exclude: rows(&exclude),
        limits: limited.then(|| Limits {
            groups: groups.as_ref().map(rows_of),
            minima: minima.as_ref().map_or_else(|| vec![0.0], numbers_of),
            maxima: maxima.as_ref().map_or_else(|| vec![f64::INFINITY], numbers_of),
            costs: costs.as_ref().map(numbers_of),
            budget: budget.unwrap_or(k.unwrap_or(pool.len()) as f64),
        }),
        max_similarity,
    };
    let weights = weights.as_ref().map(numbers_of);
    let old: Option<Vec<bool>> = old.map(|old| old.as_array().to_vec());
    let monitor = match time_limit {
        Some(seconds) => Monitor::with_time_limit(seconds).map_err(to_py)?,
        None => Monitor::default(),
    };
    let made = made.map(|made| made.picks(&pool)).transpose().map_err(to_py)?.unwrap_or_default();
    let left_out =
        left_out.map(|rows| rows.duplicates(&pool)).transpose().map_err(to_py)?.unwrap_or_default();
    let work = || {
        let mut survey = Survey::new(pool, unit, &monitor)?;
        if let Some(weights) = weights {
            survey = survey.with_weights(weights)?;
        }
        let selection = match (order, pool_size, select_per_window) {
            (Some(order), Some(size), Some(per_window)) if size > 0 => {
                let windows: Vec<&[usize]> = order.chunks(size).collect();
                selection::select_windows(&survey, &settings, &windows, per_window, &monitor)?
            }
            _ => match &old {
                None => {
                    let past = (made.as_slice(), left_out.as_slice());
                    selection::resume(&survey, &settings, &conditions, k, past, &monitor)?
                }
                Some(old) => selection::extend(&survey, &settings, k, &made, old, &monitor)?,
            },
        };
        Ok((selection, survey.norm_sq().to_vec(), survey.fingerprint()))
    };
    let interval = Duration::try_from_secs_f64(checkpoint_interval).unwrap_or(Duration::MAX);
    let observer =
        Follower { py, progress, checkpoint, interval, saved: Instant::now(), saved_picks: made.len() };
    let (selection, norm_sq, fingerprint) = watch(py, &monitor, threads, observer, work)?;

    let out = series(py, &selection.picks, &selection.duplicates)?;
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
#[pyo3(signature = (source, *, dim, scale, unit, positions, alpha, threads))]
#[expect(clippy::too_many_arguments, reason = "one per keyword of the Python function")]
pub(crate) fn log_det(
    py: Python<'_>,
    source: Vec<Rows<'_>>,
    dim: usize,
    scale: Option<PyReadonlyArray1<'_, f64>>,
    unit: bool,
    positions: PyReadonlyArray1<'_, i64>,
    alpha: f64,
    threads: Option<usize>,
) -> PyResult<f64> {
    let pool = pool(&source, dim, None, scale)?;
    let rows: Vec<usize> = positions.as_array().iter().map(|&row| row as usize).collect();
    let monitor = Monitor::default();
    let work = || {
        let survey = Survey::new(pool, unit, &monitor)?;
        selection::log_det(&survey, alpha, &rows, &monitor)
    };
    watch(py, &monitor, threads, (), work)
}

/// w‖g‖² of every row.
#[pyfunction]
#[pyo3(signature = (source, *, dim, index, scale, unit, weights, threads))]
#[expect(clippy::too_many_arguments, reason = "one per keyword of the Python function")]
pub(crate) fn norms_sq<'py>(
    py: Python<'py>,
    source: Vec<Rows<'py>>,
    dim: usize,
    index: Option<PyReadonlyArray1<'py, i64>>,
    scale: Option<PyReadonlyArray1<'py, f64>>,
    unit: bool,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let pool = pool(&source, dim, index, scale)?;
    let weights = weights.as_ref().map(numbers_of);
    let monitor = Monitor::default();
    let work = || {
        let survey = Survey::new(pool, unit, &monitor)?;
        let survey = match weights {
            Some(weights) => survey.with_weights(weights)?,
            None => survey,
        };
        survey.check_squares()?;
        Ok(survey.norm_sq().to_vec())
    };
    Ok(watch(py, &monitor, threads, (), work)?.into_pyarray(py))
}

/// What [`select`] returns as "fingerprint", of rows that nobody selects from; of those at `positions` if given.
#[pyfunction]
#[pyo3(signature = (source, *, dim, index, threads, positions=None))]
pub(crate) fn fingerprint(
    py: Python<'_>,
    source: Vec<Rows<'_>>,
    dim: usize,
    index: Option<PyReadonlyArray1<'_, i64>>,
    threads: Option<usize>,
    positions: Option<PyReadonlyArray1<'_, i64>>,
) -> PyResult<String> {
    let rows = positions.as_ref().map(rows_of);
    let pool = pool(&source, dim, index, None)?;
    let monitor = Monitor::default();
    watch(py, &monitor, threads, (), || selection::fingerprint(&pool, rows.as_deref(), &monitor))
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
            checkpoint.call1((series(self.py, &picks, &monitor.left_out())?,))?;
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

/// The picks of an earlier run, column by column: positions, gains, base, conflict, scores, overruled, rows read.
#[derive(FromPyObject)]
pub(crate) struct Made<'py>(
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, bool>,
    PyReadonlyArray1<'py, i64>,
);

impl Made<'_> {
    fn picks(&self, pool: &Pool<'_>) -> Result<Vec<Pick>> {
        let Self(rows, gains, base, conflict, scores, overruled, rows_read) = self;
        let (rows, overruled, rows_read) = (rows.as_array(), overruled.as_array(), rows_read.as_array());
        let (gains, base) = (gains.as_array(), base.as_array());
        let (conflict, scores) = (conflict.as_array(), scores.as_array());
        let lengths =
            [gains.len(), base.len(), conflict.len(), scores.len(), overruled.len(), rows_read.len()];
        let outside = rows.iter().any(|&row| usize::try_from(row).map_or(true, |row| row >= pool.len()));
        if outside || lengths != [rows.len(); 6] {
            let expected = "columns of one length and positions of the source";
            return Err(Error::invalid("made", "something else", expected, "Start anew."));
        }
        let pick = |i: usize| Pick {
            row: rows[i] as usize,
            index: pool.index(rows[i] as usize),
            gain: gains[i],
            base: base[i],
            conflict: conflict[i],
            score: scores[i],
            overruled: overruled[i],
            rows_read: rows_read[i] as u64,
        };
        Ok((0..rows.len()).map(pick).collect())
    }
}

/// Near-duplicates that an earlier run left out, column by column: positions, the dataset rows that they are too similar
/// to, cosines, and how many picks there were.
#[derive(FromPyObject)]
pub(crate) struct LeftOut<'py>(
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, i64>,
);

impl LeftOut<'_> {
    fn duplicates(&self, pool: &Pool<'_>) -> Result<Vec<NearDuplicate>> {
        let Self(rows, of, cosines, picks) = self;
        let (rows, of) = (rows.as_array(), of.as_array());
        let (cosines, picks) = (cosines.as_array(), picks.as_array());
        let outside = rows.iter().any(|&row| usize::try_from(row).map_or(true, |row| row >= pool.len()));
        if outside || [of.len(), cosines.len(), picks.len()] != [rows.len(); 3] {
            let expected = "columns of one length and positions of the source";
            return Err(Error::invalid("left_out", "something else", expected, "Start anew."));
        }
        let duplicate = |i: usize| NearDuplicate {
            row: rows[i] as usize,
            index: pool.index(rows[i] as usize),
            of: of[i],
            cosine: cosines[i],
            picks: picks[i] as usize,
        };
        Ok((0..rows.len()).map(duplicate).collect())
    }
}

/// Positions or numbers of groups; whether they are in range is for the core to say.
pub(crate) fn rows_of(rows: &PyReadonlyArray1<'_, i64>) -> Vec<usize> {
    rows.as_array().iter().map(|&row| row as usize).collect()
}

pub(crate) fn numbers_of(numbers: &PyReadonlyArray1<'_, f64>) -> Vec<f64> {
    numbers.as_array().to_vec()
}

/// The numbers of picks and near-duplicates as arrays, under the names of `spice_rs.selection.saved`.
fn series<'py>(
    py: Python<'py>,
    picks: &[Pick],
    left_out: &[NearDuplicate],
) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    let floats = |of: fn(&Pick) -> f64| picks.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    out.set_item("indices", picks.iter().map(|p| p.index).collect::<Vec<_>>().into_pyarray(py))?;
    out.set_item("gains", floats(|p| p.gain))?;
    out.set_item("base", floats(|p| p.base))?;
    out.set_item("conflict", floats(|p| p.conflict))?;
    out.set_item("scores", floats(|p| p.score))?;
    out.set_item("overruled", picks.iter().map(|p| p.overruled).collect::<Vec<_>>().into_pyarray(py))?;
    let rows_read: Vec<i64> = picks.iter().map(|p| p.rows_read as i64).collect();
    out.set_item("rows_read", rows_read.into_pyarray(py))?;
    let whole =
        |of: fn(&NearDuplicate) -> i64| left_out.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    out.set_item("duplicate_rows", whole(|found| found.index))?;
    out.set_item("duplicate_of", whole(|found| found.of))?;
    out.set_item("duplicate_ranks", whole(|found| found.picks as i64))?;
    let cosines: Vec<f64> = left_out.iter().map(|found| found.cosine).collect();
    out.set_item("duplicate_cosines", cosines.into_pyarray(py))?;
    Ok(out)
}

pub(crate) fn pool<'a>(
    source: &'a [Rows<'_>],
    dim: usize,
    index: Option<PyReadonlyArray1<'_, i64>>,
    scale: Option<PyReadonlyArray1<'_, f64>>,
) -> PyResult<Pool<'a>> {
    let mut blocks = Vec::new();
    for rows in source {
        match rows {
            Rows::Store(store) => blocks.extend(store.get().reader.blocks().map_err(to_py)?),
            Rows::Array(cells, dtype, rows) => {
                let dtype = parse_dtype(dtype).map_err(to_py)?;
                let bytes = cells.as_slice().map_err(|_| {
                    let expected = "contiguous rows";
                    to_py(Error::invalid("source", "strided memory", expected, "Copy the array first."))
                })?;
                blocks.push(RowBlock::new(bytes, dtype, *rows, dim).map_err(to_py)?);
            }
        }
    }
    let mut pool = Pool::new(blocks).map_err(to_py)?;
    if let Some(index) = index {
        pool = pool.with_index(index.as_array().to_vec()).map_err(to_py)?;
    }
    if let Some(scale) = scale {
        pool = pool.with_scale(scale.as_array().to_vec()).map_err(to_py)?;
    }
    Ok(pool)
}

fn parse_dtype(name: &str) -> Result<Dtype> {
    Dtype::from_name(name).ok_or_else(|| {
        Error::invalid("dtype", name, "float16, bfloat16, float32 or float64", "Convert the rows first.")
    })
}

fn parse<T: Copy>(field: &str, found: &str, legal: &[(&str, T)]) -> PyResult<T> {
    if let Some((_, value)) = legal.iter().find(|(name, _)| *name == found) {
        return Ok(*value);
    }
    let names: Vec<String> = legal.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let error = Error::invalid(field, format!("{found:?}"), names.join(" or "), "Choose one of these.");
    Err(to_py(error))
}
