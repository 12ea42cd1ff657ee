//! A file that is read through a map, as it was when that was made: has it become shorter, was it written to?

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::faults::corrupt;
use super::sigbus::Named;
use crate::error::{Error, Result};

/// What tells whether a file is still what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) bytes: u64,
    modified: Option<SystemTime>,
}

impl State {
    pub(super) fn of(found: &fs::Metadata) -> Self {
        Self { bytes: found.len(), modified: found.modified().ok() }
    }
}

/// The file behind a map that somebody else has made.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    /// Held, so that another file that gets the name is not taken for it.
    file: File,
    state: State,
    /// Whether it counts as damage if it is written to.
    constant: bool,
    _named: Named,
}

impl MappedFile {
    /// Takes note of the file at `path`, of which `bytes` are mapped. It must go before the map does.
    ///
    /// A file that is not `constant` is its owner's to write to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::CorruptStore`] if it is shorter than the map by now.
    pub fn new(path: &Path, bytes: &[u8], constant: bool) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let state = State::of(&file.metadata().map_err(Error::io(path, "open"))?);
        if state.bytes < bytes.len() as u64 {
            return Err(shorter(path, state.bytes, bytes.len() as u64));
        }
        Ok(Self { path: path.to_path_buf(), file, state, constant, _named: Named::new(bytes, path) })
    }

    /// Looks whether the file is what it was when it was mapped: as long, and not written to.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] if it is not; [`Error::Io`].
    pub fn check(&self) -> Result<()> {
        let now = State::of(&self.file.metadata().map_err(Error::io(&self.path, "look at"))?);
        if now.bytes < self.state.bytes {
            return Err(shorter(&self.path, now.bytes, self.state.bytes));
        }
        if self.constant && now != self.state {
            let remedy = "Read it again when nobody writes to it, or work on a copy.".to_string();
            return Err(Error::CorruptStore {
                path: self.path.clone(),
                field: "content".to_string(),
                found: "a file that was written to while it was read".to_string(),
                expected: "the one that was opened".to_string(),
                remedy,
            });
        }
        Ok(())
    }
}

/// The error for a file that has become shorter while it is mapped.
pub(super) fn shorter(path: &Path, found: u64, expected: u64) -> Error {
    let expected = format!("{expected} bytes, as when it was opened");
    corrupt(path, "file size", format!("{found} bytes"), expected)
}
