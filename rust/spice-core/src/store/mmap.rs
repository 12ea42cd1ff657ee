//! Read-only memory maps. This and what is said when one breaks (`sigbus.rs`) are the only unsafe code of the crate.
//!
//! Contract: the bytes behind a [`Mapped`] do not change and the file does not become shorter while the map lives.
//! The store keeps it from its side: a shard gets its name when it is complete, is never opened for writing
//! again, and is removed (which leaves maps valid) but not shortened. Another program that breaks the contract
//! makes reads return changed bytes, which [`verify`](super::Reader::verify) looks for, or raises SIGBUS.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use super::sigbus::Named;
use crate::error::{Error, Result};

/// The bytes of a file.
pub(super) struct Mapped {
    /// Goes first, as fields go in their order.
    _named: Named,
    map: memmap2::Mmap,
}

impl Mapped {
    /// Maps a regular file; `path` is for messages.
    pub(super) fn of(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the map is read-only and is only seen as `&[u8]`; that nobody changes or shortens the
        // file is the contract above.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(Error::io(path, "map"))?;
        Ok(Self { _named: Named::new(&map, path), map })
    }

    /// Tells the system that a part will be read soon, so that the disk works meanwhile; a hint.
    pub(super) fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.start < range.end && range.end <= self.map.len() {
            // It may not be able to: then the part is read when it is looked at.
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives the pages that are mapped back; whoever reads on gets them from the file again.
    pub(super) fn release(&self) {
        #[cfg(unix)]
        {
            // SAFETY: dangerous for memory that was written to. This map is shared and read-only, so its pages hold
            // nothing but the file's bytes, which do not change: the same bytes are seen before and after.
            let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
