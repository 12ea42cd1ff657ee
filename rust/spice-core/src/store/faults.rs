//! The error for a file of a store that is not what it was when it was written.

use std::path::Path;

use super::names;
use crate::error::Error;

/// What a repair can do something about: shards.
const OF_A_SHARD: &str = "The shard was cut short or altered: restore it from a copy, or let GradientStore.repair set it aside \
                          and extract again, which computes its rows anew.";
const OF_ANOTHER_FILE: &str = "The file was cut short or altered: restore it from a copy, or move it away and compute its \
                               rows again.";

/// An [`Error::CorruptStore`] with the remedy for files of its kind.
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
        remedy: if is_shard(path) { OF_A_SHARD } else { OF_ANOTHER_FILE }.to_string(),
    }
}

/// Whether a file is a shard of a store, and no file of rows with the name of one.
fn is_shard(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(names::is_shard_name) && path.with_file_name(names::SCHEMA_FILE).exists()
}
