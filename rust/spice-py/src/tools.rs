//! What `spice_rs.store` does with whole stores, as JSON; and whether memory suffices.

use std::path::PathBuf;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use spice_core::{Error, memory, store};

use crate::errors::to_py;
use crate::store::{Store, json, stored_dtype, watched};

#[pyfunction]
#[pyo3(signature = (sources, path, differing, progress))]
pub(crate) fn merge(
    py: Python<'_>,
    sources: Vec<PathBuf>,
    path: PathBuf,
    differing: &str,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let differing = store::Differing::from_name(differing).ok_or_else(|| {
        let expected = "\"refuse\", \"first\" or \"last\"";
        to_py(Error::invalid("differing", format!("{differing:?}"), expected, "Choose one of these."))
    })?;
    json(&watched(py, progress, |observer| store::merge(&sources, &path, differing, observer))?)
}

#[pyfunction]
#[pyo3(signature = (source, path, dtype, progress))]
pub(crate) fn convert(
    py: Python<'_>,
    source: &Bound<'_, Store>,
    path: PathBuf,
    dtype: &str,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let dtype = stored_dtype(dtype).map_err(to_py)?;
    let reader = source.get().reader.clone();
    // The columns are copied once, behind locks; with the GIL nobody forks meanwhile.
    reader.scale();
    reader.known();
    watched(py, progress, |observer| store::convert(&reader, &path, dtype, observer))
}

#[pyfunction]
#[pyo3(signature = (path, bytes_per_shard, progress))]
pub(crate) fn compact(
    py: Python<'_>,
    path: PathBuf,
    bytes_per_shard: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let bytes = bytes_per_shard.unwrap_or(store::WriterOptions::default().bytes_per_shard);
    json(&watched(py, progress, |observer| store::compact(&path, bytes, observer))?)
}

#[pyfunction]
#[pyo3(signature = (path, index, progress))]
pub(crate) fn delete(
    py: Python<'_>,
    path: PathBuf,
    index: PyReadonlyArray1<'_, i64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let index = index.as_slice()?;
    json(&watched(py, progress, |observer| store::delete(&path, index, observer))?)
}

#[pyfunction]
#[pyo3(signature = (path, progress))]
pub(crate) fn repair(py: Python<'_>, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<String> {
    json(&watched(py, progress, |observer| store::repair(&path, observer))?)
}

/// Raises InvalidInputError for `field` if `needed` bytes are more than this process can still take.
#[pyfunction]
#[pyo3(signature = (field, found, needed, remedy))]
pub(crate) fn check_memory(field: &str, found: &str, needed: f64, remedy: &str) -> PyResult<()> {
    memory::check(field, || found.to_string(), needed, remedy).map_err(to_py)
}
