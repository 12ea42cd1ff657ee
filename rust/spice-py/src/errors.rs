//! Where errors of the core become Python exceptions; the only place that knows both.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use spice_core::Error;

/// Converts an error of the core to the exception class of `spice_rs.errors` that stands for it.
///
/// [`Error::Interrupted`] becomes whatever exception the interrupting signal handler has raised.
pub(crate) fn to_py(error: Error) -> PyErr {
    Python::attach(|py| match error {
        Error::Interrupted => match PyErr::take(py) {
            Some(raised) => raised,
            None => pyo3::exceptions::PyKeyboardInterrupt::new_err(()),
        },
        Error::InvalidInput { .. } => raise(py, "InvalidInputError", &error),
        Error::CorruptStore { .. } => raise(py, "CorruptStoreError", &error),
        Error::StoreMismatch { .. } => raise(py, "StoreMismatchError", &error),
        _ => raise(py, "StoreError", &error),
    })
}

fn raise(py: Python<'_>, class: &str, error: &Error) -> PyErr {
    static MODULE: PyOnceLock<Py<pyo3::types::PyModule>> = PyOnceLock::new();
    let class = MODULE
        .get_or_try_init(py, || py.import("spice_rs.errors").map(Bound::unbind))
        .and_then(|module| module.bind(py).getattr(class)?.cast_into::<PyType>().map_err(Into::into));
    match class {
        Ok(class) => PyErr::from_type(class, error.to_string()),
        Err(import_failed) => import_failed,
    }
}
