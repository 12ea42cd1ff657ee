//! The error for a file of a store that is not what it was when it was written.

use std::path::Path;

use crate::error::Error;

/// An [`Error::CorruptStore`] with the remedy that all damaged files share.
pub(super) fn corrupt(
    path: &Path,
    field: impl ToString,
    found: impl ToString,
    expected: impl ToString,
) -> Error {
    Error::CorruptStore {
        path: path.to_path_buf(),
        field: field.to_string(),
        found: found.to_string(),
        expected: expected.to_string(),
        remedy:
            "The file was cut short or altered: restore it from a copy, or move it away and compute its \
                 rows again."
                .to_string(),
    }
}
