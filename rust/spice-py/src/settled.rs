//! What is found out once, behind locks, when the objects of Python that functions take are read for the first time.

use pyo3::prelude::*;

use crate::analysis::ChoiceOptions;
use crate::options::{ConstraintOptions, ObjectiveOptions, WindowOptions};
use crate::past::PastOptions;
use crate::pool::PoolOptions;
use crate::selection::ControlOptions;
use crate::store::{SchemaOptions, ShardOptions};

type Run<'py> = (
    PoolOptions<'py>,
    ObjectiveOptions,
    ConstraintOptions<'py>,
    WindowOptions<'py>,
    PastOptions<'py>,
    ControlOptions<'py>,
);

/// Reads one of each, and does nothing with them.
///
/// The names of attributes and numpy's own interface are kept behind locks that are let go of the GIL for: a child that is
/// forked in that moment would find them taken for good. So they are read while the package is imported.
#[pyfunction]
#[pyo3(signature = (run, choice, writer))]
#[expect(unused_variables, reason = "to be read is all")]
pub(crate) fn settle<'py>(
    run: Run<'py>,
    choice: ChoiceOptions<'py>,
    writer: (SchemaOptions, ShardOptions),
) {
}
