//! The version of the format, and what is said of files of another one.

use std::path::Path;

use crate::error::Error;

/// The version of the format that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// What a store says of the program that made it.
pub(super) const WRITTEN_BY: &str = concat!("spice-rs ", env!("CARGO_PKG_VERSION"));

/// The error for a file that says it has another format version.
pub(super) fn other_version(path: &Path, found: impl ToString) -> Error {
    Error::Store {
        path: path.to_path_buf(),
        field: "format_version".to_string(),
        found: found.to_string(),
        expected: FORMAT_VERSION.to_string(),
        remedy: "Another version of spice-rs wrote this; read it with that version or a newer one."
            .to_string(),
    }
}
