//! `_core.Prefixes` and `_core.near_duplicates`: what a search knows of rows, of any rows and afterwards.

use numpy::{
    IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use spice_core::Error;
use spice_core::monitor::Monitor;
use spice_core::selection::{self, Formula};

use crate::errors::to_py;
use crate::files::Files;
use crate::options::parse;
use crate::pool::{PoolOptions, numbers_of};
use crate::watch::watch;

/// The first rows of a pool, as many as each of `ends` says, ready to measure any rows against.
#[pyclass(frozen, module = "spice_rs._core")]
pub(crate) struct Prefixes {
    inner: selection::Prefixes,
    count: usize,
    threads: Option<usize>,
}

#[pymethods]
impl Prefixes {
    /// `signal`: largest αw‖g‖² of the rows that will be measured.
    #[new]
    #[pyo3(signature = (pool, *, ends, alpha, reading, signal, threads))]
    fn new(
        py: Python<'_>,
        pool: PoolOptions<'_>,
        ends: PyReadonlyArray1<'_, i64>,
        alpha: f64,
        reading: &str,
        signal: f64,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let reading = parse(
            "reading",
            reading,
            &[
                ("full", Formula::Full),
                ("alone", Formula::Alone),
                ("scalar", Formula::Scalar),
                ("diagonal", Formula::Diagonal),
            ],
        )?;
        let ends: Vec<usize> = ends.as_array().iter().map(|&end| end as usize).collect();
        let (scaling, files) = (pool.scaling(), pool.files());
        let pool = pool.open()?;
        let monitor = Monitor::default();
        let inner = watch(py, &monitor, threads, files, (), || {
            let survey = scaling.survey(pool, &monitor)?;
            selection::Prefixes::new(&survey, alpha, &ends, reading, signal, &monitor)
        })?;
        Ok(Self { inner, count: ends.len(), threads })
    }

    /// What (b, d) rows of (b,) weights are at each prefix: gain, conflict and cosine, (b, s) each, and base, (b,).
    #[pyo3(signature = (rows, weights))]
    fn measure<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray2<'py, f64>,
        weights: Option<PyReadonlyArray1<'py, f64>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let count = rows.shape()[0];
        let cells = rows.as_slice().map_err(|_| {
            to_py(Error::invalid("rows", "strided memory", "contiguous rows", "Copy them first."))
        })?;
        let weights = weights.as_ref().map(numbers_of);
        let monitor = Monitor::default();
        let found = watch(py, &monitor, self.threads, Files::default(), (), || {
            self.inner.measure(cells, weights.as_deref(), &monitor)
        })?;
        let out = PyDict::new(py);
        for (name, values) in
            [("gain", found.gains), ("conflict", found.conflicts), ("cosine", found.cosines)]
        {
            out.set_item(name, values.into_pyarray(py).reshape([count, self.count])?)?;
        }
        out.set_item("base", found.bases.into_pyarray(py))?;
        Ok(out)
    }
}

/// Place and cosine of the first of the `listed` rows of a pool that each later one is a near-duplicate of; −1 and 0 for none.
#[pyfunction]
#[pyo3(signature = (pool, *, listed, max_similarity, threads))]
#[expect(clippy::type_complexity, reason = "two arrays")]
pub(crate) fn near_duplicates<'py>(
    py: Python<'py>,
    pool: PoolOptions<'py>,
    listed: usize,
    max_similarity: f64,
    threads: Option<usize>,
) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>)> {
    let (scaling, files) = (pool.scaling(), pool.files());
    let pool = pool.open()?;
    let monitor = Monitor::default();
    let found = watch(py, &monitor, threads, files, (), || {
        selection::near_duplicates(&scaling.survey(pool, &monitor)?, listed, max_similarity, &monitor)
    })?;
    let places: Vec<i64> = found.iter().map(|of| of.map_or(-1, |(place, _)| place as i64)).collect();
    let cosines: Vec<f64> = found.iter().map(|of| of.map_or(0.0, |(_, cosine)| cosine)).collect();
    Ok((places.into_pyarray(py), cosines.into_pyarray(py)))
}
