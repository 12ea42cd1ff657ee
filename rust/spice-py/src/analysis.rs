//! `_core.curvature` and `_core.certify`: numpy arrays in, numpy arrays out.

use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::analysis;
use spice_core::monitor::Monitor;
use spice_core::rows::Position;

use crate::pool::{PoolOptions, positions_of};
use crate::watch::{Observer, watch};

/// Tells Python how many rows the passes have read, and how many they will have.
pub(crate) struct PassProgress<'py>(pub(crate) Option<Bound<'py, PyAny>>);

impl Observer for PassProgress<'_> {
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

/// The curvature of U over a pool; see `spice_rs.curvature`. The position is None if all rows are zero.
#[pyfunction]
#[pyo3(signature = (pool, *, alpha, threads, progress))]
pub(crate) fn curvature<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    alpha: f64,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let found = watch(py, &monitor, threads, files, PassProgress(progress), || {
        analysis::curvature(&scaling.survey(pool, &monitor)?, alpha, &monitor)
    })?;
    let out = PyDict::new(py);
    out.set_item("total", found.total)?;
    out.set_item("error", found.error)?;
    out.set_item("guarantee", found.guarantee())?;
    out.set_item("position", found.position.map(Position::get))?;
    out.set_item("leverages", found.leverages.into_pyarray(py))?;
    out.set_item("ratios", found.ratios.into_pyarray(py))?;
    Ok(out)
}

/// `spice_rs.analysis.certificate.Choice`: the picks, the initial rows, and the sizes of prefixes.
#[derive(FromPyObject)]
pub(crate) struct ChoiceOptions<'py> {
    initial: PyReadonlyArray1<'py, i64>,
    picks: PyReadonlyArray1<'py, i64>,
    prefixes: PyReadonlyArray1<'py, i64>,
}

/// Bounds of U over any k rows; see `spice_rs.certify`.
#[pyfunction]
#[pyo3(signature = (pool, choice, *, alpha, steps, threads, progress))]
pub(crate) fn certify<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    choice: ChoiceOptions<'py>,
    alpha: f64,
    steps: usize,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let (initial, picks) = (positions_of(&choice.initial), positions_of(&choice.picks));
    let prefixes: Vec<usize> = choice.prefixes.as_array().iter().map(|&size| size as usize).collect();
    let monitor = Monitor::default();
    let (found, fingerprint) = watch(py, &monitor, threads, files, PassProgress(progress), || {
        let survey = scaling.survey(pool, &monitor)?;
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
