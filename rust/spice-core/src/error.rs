//! The one error type of the crate: every variant says where, what was found, what was expected
//! and what to do about it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Variants map one to one to Python's exception classes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a value in the caller's rows cannot be used.
    #[error("{field}: found {found}, expected {expected}. {remedy}")]
    InvalidInput {
        /// The argument or place, such as `k` or `row 17`.
        field: String,
        /// What was found there.
        found: String,
        /// What would have been accepted.
        expected: String,
        /// What the user can do now; a full sentence.
        remedy: String,
    },
    /// The path is no store, or the store cannot serve the request.
    #[error("{}: {field}: found {found}, expected {expected}. {remedy}", path.display())]
    Store {
        /// The file or folder concerned.
        path: PathBuf,
        /// The field or part of the file.
        field: String,
        /// What was found there.
        found: String,
        /// What would have been accepted.
        expected: String,
        /// What the user can do now; a full sentence.
        remedy: String,
    },
    /// A file of the store contradicts itself: cut short, overwritten or altered.
    #[error("{}: {field}: found {found}, expected {expected}. {remedy}", path.display())]
    CorruptStore {
        /// The file concerned.
        path: PathBuf,
        /// The field or part of the file.
        field: String,
        /// What was found there.
        found: String,
        /// What would have been accepted.
        expected: String,
        /// What the user can do now; a full sentence.
        remedy: String,
    },
    /// The store is sound but was made with other settings than those asked for.
    #[error("{}: {field}: found {found}, expected {expected}. {remedy}", path.display())]
    StoreMismatch {
        /// The file or folder concerned.
        path: PathBuf,
        /// The setting that differs.
        field: String,
        /// What the store holds.
        found: String,
        /// What was asked for.
        expected: String,
        /// What the user can do now; a full sentence.
        remedy: String,
    },
    /// The operating system refused.
    #[error("{}: found no way to {action} it ({source}), expected one. {}", path.display(), remedy(source))]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was attempted, such as `rename`.
        action: &'static str,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The caller's observer asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The time limit passed. A selection ends with what it has; no caller of one sees this.
    #[error("the time limit has passed")]
    TimeLimit,
}

/// What to do where the operating system refused.
fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "Give this user the permission, or name another path."
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "Make room, or name a path on another disk."
        }
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            "Check the path, and whether somebody has moved it."
        }
        _ => "Look at the disk, and try again.",
    }
}

impl Error {
    /// An [`Error::InvalidInput`] from anything that displays.
    pub fn invalid(
        field: impl ToString,
        found: impl ToString,
        expected: impl ToString,
        remedy: impl ToString,
    ) -> Self {
        Self::InvalidInput {
            field: field.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// Wraps an [`std::io::Error`] with the path and the action; for `map_err`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }
}
