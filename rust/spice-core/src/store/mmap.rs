//! Read-only memory maps: the only unsafe code of the crate.
//!
//! Contract: the bytes behind a [`Mapped`] do not change and the file does not become shorter while the map lives.
//! The store keeps it from its side: a shard gets its name when it is complete, is never opened for writing
//! again, and is removed (which leaves maps valid) but not shortened. Another program that breaks the contract
//! makes reads return changed bytes, which [`verify`](super::Reader::verify) looks for, or raises SIGBUS.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::path::Path;

use super::folder;
use crate::error::{Error, Result};

/// The bytes of a file.
pub(super) struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps the regular file at `path`; a link is refused.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = folder::open_regular(path)?;
        // SAFETY: the map is read-only and is only seen as `&[u8]`; that nobody changes or shortens the
        // file is the contract above.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
