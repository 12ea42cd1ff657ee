//! `_core.second_moment` and `_core.transform`: the geometry of representative picks, numpy arrays in, numpy arrays out.

use numpy::{IntoPyArray, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::monitor::Monitor;
use spice_core::represent::{Geometry, SecondMoment};

use crate::analysis::PassProgress;
use crate::errors::to_py;
use crate::pool::{PoolOptions, numbers_of};
use crate::watch::watch;

/// The directions of C^{γ/2} of a pool of unit rows, and the eigenvalues of C; see `spice_rs.selection.represent`.
#[pyfunction]
#[pyo3(signature = (pool, *, gamma, rank, threads, progress))]
pub(crate) fn second_moment<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    gamma: f64,
    rank: Option<usize>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let (geometry, spectrum, fingerprint) =
        watch(py, &monitor, threads, files, PassProgress(progress), || {
            monitor.plan(2 * pool.len());
            let survey = scaling.survey(pool, &monitor)?;
            let found = SecondMoment::new(&survey, &monitor)?;
            Ok((found.geometry(gamma, rank), found.spectrum, survey.fingerprint()))
        })?;
    let out = PyDict::new(py);
    out.set_item("columns", geometry.columns())?;
    out.set_item("directions", geometry.directions().to_vec().into_pyarray(py))?;
    out.set_item("spectrum", spectrum.into_pyarray(py))?;
    out.set_item("fingerprint", fingerprint)?;
    Ok(out)
}

/// Writes the rows of a pool in the geometry of some directions, (r · d,), to `out`, (n · r,).
#[pyfunction]
#[pyo3(signature = (pool, directions, out, *, threads, progress))]
pub(crate) fn transform<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    directions: PyReadonlyArray1<'py, f64>,
    mut out: PyReadwriteArray1<'py, f32>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<()> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let geometry = Geometry::known(numbers_of(&directions), pool.dim()).map_err(to_py)?;
    let out = out.as_slice_mut()?;
    let monitor = Monitor::default();
    watch(py, &monitor, threads, files, PassProgress(progress), || {
        monitor.plan(2 * pool.len());
        geometry.transform(&scaling.survey(pool, &monitor)?, out, &monitor)
    })
}
