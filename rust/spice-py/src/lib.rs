//! `spice_rs._core`: convert, release the GIL, delegate to `spice-core`.

mod analysis;
mod errors;
mod files;
mod options;
mod past;
mod pool;
mod prefixes;
mod relevance;
mod represent;
mod selection;
mod settled;
mod store;
mod tools;
mod watch;

use pyo3::prelude::*;

/// The compiled half of `spice_rs`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("ROUNDING", spice_core::selection::ROUNDING)?;
    module.add("SLACK", spice_core::selection::SLACK)?;
    module.add("MOST_SIGNAL", spice_core::selection::MOST_SIGNAL)?;
    module.add("MOST_GROWTH", spice_core::selection::MOST_GROWTH)?;
    module.add_function(wrap_pyfunction!(settled::settle, module)?)?;
    module.add_function(wrap_pyfunction!(options::allowances, module)?)?;
    module.add_function(wrap_pyfunction!(options::scores, module)?)?;
    module.add_function(wrap_pyfunction!(selection::select, module)?)?;
    module.add_function(wrap_pyfunction!(selection::log_det, module)?)?;
    module.add_function(wrap_pyfunction!(selection::log_dets, module)?)?;
    module.add_function(wrap_pyfunction!(selection::single_gains, module)?)?;
    module.add_class::<prefixes::Prefixes>()?;
    module.add_function(wrap_pyfunction!(prefixes::near_duplicates, module)?)?;
    module.add_function(wrap_pyfunction!(selection::fingerprint, module)?)?;
    module.add_function(wrap_pyfunction!(selection::norms_sq, module)?)?;
    module.add_function(wrap_pyfunction!(relevance::relevance, module)?)?;
    module.add_function(wrap_pyfunction!(relevance::relevance_to, module)?)?;
    module.add_function(wrap_pyfunction!(represent::second_moment, module)?)?;
    module.add_function(wrap_pyfunction!(represent::transform, module)?)?;
    module.add_function(wrap_pyfunction!(analysis::curvature, module)?)?;
    module.add_function(wrap_pyfunction!(analysis::certify, module)?)?;
    module.add_function(wrap_pyfunction!(tools::merge, module)?)?;
    module.add_function(wrap_pyfunction!(tools::convert, module)?)?;
    module.add_function(wrap_pyfunction!(tools::compact, module)?)?;
    module.add_function(wrap_pyfunction!(tools::delete, module)?)?;
    module.add_function(wrap_pyfunction!(tools::repair, module)?)?;
    module.add_class::<files::MappedFile>()?;
    module.add_function(wrap_pyfunction!(tools::check_memory, module)?)?;
    module.add_class::<store::Store>()?;
    module.add_class::<store::StoreWriter>()?;
    Ok(())
}
