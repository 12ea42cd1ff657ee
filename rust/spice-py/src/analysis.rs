//! `_core.curvature` and `_core.certify`: numpy arrays in, numpy arrays out.

use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::analysis;
use spice_core::matrix::Pool;
use spice_core::monitor::Monitor;
use spice_core::selection::Survey;

use crate::files::Files;
use crate::selection::{Rows, numbers_of, pool, rows_of};
use crate::watch::{Observer, watch};

/// Tells Python how many rows the passes have read, and how many they will have.
struct Told<'py>(Option<Bound<'py, PyAny>>);

impl Observer for Told<'_> {
    fn look(&mut self, monitor: &Monitor) -> PyResult<()> {
        match &self.0 {
            Some(progress) if monitor.planned() > 0 => {
                let done = monitor.surveyed().min(monitor.planned());
                progress.call1((done, monitor.planned())).map(drop)
            }
            _ => Ok(()),
        }
    }
}

fn survey<'a>(
    pool: Pool<'a>,
    unit: bool,
    weights: Option<Vec<f64>>,
    monitor: &Monitor,
) -> spice_core::Result<Survey<'a>> {
    let survey = Survey::new(pool, unit, monitor)?;
    match weights {
        Some(weights) => survey.with_weights(weights),
        None => Ok(survey),
    }
}

/// The curvature of U over a pool; see `spice_rs.curvature`. The row is the place in the source, or None.
#[pyfunction]
#[pyo3(signature = (source, *, dim, index, scale, unit, weights, alpha, threads, progress))]
#[expect(clippy::too_many_arguments, reason = "one per keyword of the Python function")]
pub(crate) fn curvature<'py>(
    py: Python<'py>,
    source: Vec<Rows<'py>>,
    dim: usize,
    index: Option<PyReadonlyArray1<'py, i64>>,
    scale: Option<PyReadonlyArray1<'py, f64>>,
    unit: bool,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    alpha: f64,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let pool = pool(&source, dim, index, scale)?;
    let weights = weights.as_ref().map(numbers_of);
    let monitor = Monitor::default();
    let found = watch(py, &monitor, threads, Files::of(&source), Told(progress), || {
        analysis::curvature(&survey(pool, unit, weights, &monitor)?, alpha, &monitor)
    })?;
    let out = PyDict::new(py);
    out.set_item("total", found.total)?;
    out.set_item("error", found.error)?;
    out.set_item("guarantee", found.guarantee())?;
    out.set_item("row", found.row)?;
    out.set_item("leverages", found.leverages.into_pyarray(py))?;
    out.set_item("ratios", found.ratios.into_pyarray(py))?;
    Ok(out)
}

/// Bounds of U over any k rows; see `spice_rs.certify`.
#[pyfunction]
#[pyo3(signature = (source, *, dim, index, scale, unit, weights, alpha, initial, picks, prefixes, steps, threads, progress))]
#[expect(clippy::too_many_arguments, reason = "one per keyword of the Python function")]
pub(crate) fn certify<'py>(
    py: Python<'py>,
    source: Vec<Rows<'py>>,
    dim: usize,
    index: Option<PyReadonlyArray1<'py, i64>>,
    scale: Option<PyReadonlyArray1<'py, f64>>,
    unit: bool,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    alpha: f64,
    initial: PyReadonlyArray1<'py, i64>,
    picks: PyReadonlyArray1<'py, i64>,
    prefixes: PyReadonlyArray1<'py, i64>,
    steps: usize,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let pool = pool(&source, dim, index, scale)?;
    let weights = weights.as_ref().map(numbers_of);
    let (initial, picks, prefixes) = (rows_of(&initial), rows_of(&picks), rows_of(&prefixes));
    let monitor = Monitor::default();
    let (found, fingerprint) = watch(py, &monitor, threads, Files::of(&source), Told(progress), || {
        let survey = survey(pool, unit, weights, &monitor)?;
        let found = analysis::certify(&survey, alpha, &initial, &picks, &prefixes, steps, &monitor)?;
        Ok((found, survey.fingerprint()))
    })?;
    let out = PyDict::new(py);
    out.set_item("upper_bound", found.upper_bound())?;
    out.set_item("ratio", found.ratio())?;
    out.set_item("log_dets", found.log_dets.into_pyarray(py))?;
    out.set_item("submodular", found.submodular.into_pyarray(py))?;
    out.set_item("concave", found.concave.into_pyarray(py))?;
    out.set_item("relaxed", found.relaxed.into_pyarray(py))?;
    out.set_item("fingerprint", fingerprint)?;
    Ok(out)
}
