//! `_core.select`: numpy arrays in, numpy arrays out.

use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::selection::{self, Fisher, Method, Pick, Search, Settings, StopReason, Survey};
use spice_core::{Error, Result};

use crate::errors::to_py;
use crate::store::Store;
use crate::watch::watch;

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
                    search, order, pool_size, select_per_window, threads, progress))]
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
    order: Option<PyReadonlyArray1<'py, i64>>,
    pool_size: Option<usize>,
    select_per_window: Option<usize>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
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
        method: parse("method", method, &[("greedy", Method::Greedy), ("top_k", Method::TopK)])?,
        search: parse("search", search, &[("lazy", Search::Lazy), ("eager", Search::Eager)])?,
    };
    let pool = pool(&source, dim, index, scale)?;
    let order: Option<Vec<usize>> =
        order.map(|order| order.as_array().iter().map(|&row| row as usize).collect());
    let monitor = Monitor::default();
    let work = || {
        let survey = Survey::new(pool, unit, &monitor)?;
        let selection = match (order, pool_size, select_per_window) {
            (Some(order), Some(size), Some(per_window)) if size > 0 => {
                let windows: Vec<&[usize]> = order.chunks(size).collect();
                selection::select_windows(&survey, &settings, &windows, per_window, &monitor)?
            }
            _ => selection::select(&survey, &settings, k, &monitor)?,
        };
        Ok((selection, survey.norm_sq().to_vec(), survey.fingerprint()))
    };
    let (selection, norm_sq, fingerprint) = watch(py, &monitor, threads, progress, work)?;

    let picks = &selection.picks;
    let out = PyDict::new(py);
    let series = |of: fn(&Pick) -> f64| picks.iter().map(of).collect::<Vec<_>>().into_pyarray(py);
    out.set_item("indices", picks.iter().map(|p| p.index).collect::<Vec<_>>().into_pyarray(py))?;
    out.set_item("gains", series(|p| p.gain))?;
    out.set_item("base", series(|p| p.base))?;
    out.set_item("conflict", series(|p| p.conflict))?;
    out.set_item("scores", series(|p| p.score))?;
    out.set_item("overruled", picks.iter().map(|p| p.overruled).collect::<Vec<_>>().into_pyarray(py))?;
    out.set_item(
        "rows_read",
        picks.iter().map(|p| p.rows_read as i64).collect::<Vec<_>>().into_pyarray(py),
    )?;
    out.set_item(
        "stop_reason",
        match selection.stop {
            StopReason::Budget => "budget",
            StopReason::EarlyStop => "early_stop",
            StopReason::Exhausted => "exhausted",
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
    watch(py, &monitor, threads, None, work)
}

fn pool<'a>(
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
