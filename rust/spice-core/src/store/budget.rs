//! What an open store may take of the process's memory.
//!
//! Columns are held, rows are returned, and pages of the maps are counted to the process as long as they are mapped, though
//! the system could take them back at any time. Under a limit a reader gives them back itself.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::shard::Shard;
use crate::error::{Error, Result};

/// Around a cell that is read the system maps what it has of so many bytes.
const AROUND: usize = 64 << 10;

/// A limit, and how far mapped pages have come.
pub(super) struct Budget {
    limit: usize,
    /// For the columns, which are held as long as the store is open.
    columns: usize,
    /// Bytes of pages that may be mapped since the last release.
    mapped: AtomicUsize,
}

impl Budget {
    /// The budget of a reader of these shards.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if not even the columns fit.
    pub(super) fn new(path: &Path, limit: usize, shards: &[Shard]) -> Result<Self> {
        let columns: usize = shards.iter().map(|shard| shard.header.columns().len()).sum();
        let rows: usize = shards.iter().map(|shard| shard.header.rows).sum();
        // Each is mapped and copied; to find rows that are there twice takes 16 bytes for each.
        let needed = 2 * columns + 16 * rows;
        if needed > limit {
            return Err(Error::invalid(
                "memory_limit",
                format!("{limit} bytes"),
                format!("at least {needed} for the columns of {rows} rows in {}", path.display()),
                "Allow more.",
            ));
        }
        Ok(Self { limit, columns, mapped: AtomicUsize::new(0) })
    }

    /// What there is beside the columns.
    fn room(&self) -> usize {
        self.limit - self.columns
    }

    /// Bytes of rows that may be returned at once: three quarters of what there is; the last is for pages.
    pub(super) fn rows(&self) -> usize {
        self.room() - self.room() / 4
    }

    /// Counts `bytes` of a map that are about to be read in one go; gives the pages of all maps back when there are too many.
    pub(super) fn read(&self, shards: &[Shard], bytes: usize) {
        let bytes = bytes + 2 * AROUND;
        if self.mapped.fetch_add(bytes, Ordering::Relaxed) + bytes > self.room() / 4 {
            self.mapped.store(bytes, Ordering::Relaxed);
            shards.iter().for_each(|shard| shard.map.release());
        }
    }
}
