//! `_core.relevance` and `_core.relevance_to`: numpy arrays in, numpy arrays out.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::monitor::Monitor;
use spice_core::relevance::Contrast;

use crate::analysis::PassProgress;
use crate::errors::to_py;
use crate::pool::{PoolOptions, numbers_of};
use crate::watch::watch;

/// What the unit rows of `pool` are worth to `count` groups of rows of `target`; see `spice_rs.selection.target`.
#[pyfunction]
#[pyo3(signature = (pool, target, groups, count, *, threads, progress))]
pub(crate) fn relevance<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    target: PoolOptions<'py>,
    groups: PyReadonlyArray1<'py, i64>,
    count: usize,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let (scaling, aims) = (pool.scaling(), target.scaling());
    let (files, groups) = (
        pool.files().and(target.files()),
        groups.as_array().iter().map(|&group| group as usize).collect::<Vec<_>>(),
    );
    let (pool, target) = (pool.open()?, target.open()?);
    let monitor = Monitor::default();
    let (contrast, values, overlaps, zero_rows, fingerprints) =
        watch(py, &monitor, threads, files, PassProgress(progress), || {
            monitor.plan(3 * pool.len() + 2 * target.len());
            let (pool, target) = (scaling.survey(pool, &monitor)?, aims.survey(target, &monitor)?);
            let contrast = Contrast::new(&pool, &target, &groups, count, &monitor)?;
            let (values, overlaps) = contrast.relevance_beside(&pool, &target, &monitor)?;
            let zero_rows = target.norms_sq().iter().filter(|&&norm_sq| norm_sq == 0.0).count();
            Ok((contrast, values, overlaps, zero_rows, [pool.fingerprint(), target.fingerprint()]))
        })?;
    let [pool, target] = fingerprints;
    let out = PyDict::new(py);
    out.set_item("values", values.into_pyarray(py))?;
    out.set_item("mean", contrast.mean.into_pyarray(py))?;
    out.set_item("directions", contrast.directions.into_pyarray(py))?;
    out.set_item("norms", contrast.norms.into_pyarray(py))?;
    out.set_item("noise", contrast.noise.into_pyarray(py))?;
    let rows: Vec<i64> = overlaps.iter().map(|found| found.position.get() as i64).collect();
    let of: Vec<i64> = overlaps.iter().map(|found| found.target.get() as i64).collect();
    let cosines: Vec<f64> = overlaps.iter().map(|found| found.cosine).collect();
    out.set_item("overlap_rows", rows.into_pyarray(py))?;
    out.set_item("overlap_of", of.into_pyarray(py))?;
    out.set_item("overlap_cosines", cosines.into_pyarray(py))?;
    out.set_item("zero_rows", zero_rows)?;
    out.set_item("fingerprint", pool)?;
    out.set_item("target_fingerprint", target)?;
    Ok(out)
}

/// The same by a mean and directions that are known: r of each row to each direction, (n · g,).
#[pyfunction]
#[pyo3(signature = (pool, mean, directions, *, threads, progress))]
pub(crate) fn relevance_to<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    mean: PyReadonlyArray1<'py, f64>,
    directions: PyReadonlyArray1<'py, f64>,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let contrast = Contrast::known(numbers_of(&mean), numbers_of(&directions)).map_err(to_py)?;
    let monitor = Monitor::default();
    let values = watch(py, &monitor, threads, files, PassProgress(progress), || {
        monitor.plan(2 * pool.len());
        contrast.relevance(&scaling.survey(pool, &monitor)?, &monitor)
    })?;
    Ok(values.into_pyarray(py))
}
