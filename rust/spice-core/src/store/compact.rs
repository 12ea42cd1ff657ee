//! Shards in place of other shards: fewer and larger ones, or the same without some rows.
//!
//! Each new shard names those that it replaces, and they are all that it replaces. So the moment in which it gets its own
//! name is the moment in which they stop to count: no reader sees a row twice or not at all, and a process killed
//! between two steps leaves either the old shards or the new one. The old files are removed afterwards.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use super::buffer::Buffer;
use super::cells::Cells;
use super::folder;
use super::header::Replaced;
use super::known::Kinds;
use super::lock::Lock;
use super::observer::{Observer, observe};
use super::reader::{self, Reader};
use super::schema::{Schema, no_cells};
use super::shard::Shard;
use crate::error::Result;

/// The most shards in place of which one can come: their names have to fit its header.
const MAX_GROUP: usize = 4096;

/// What [`compact`] or [`delete`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Compacted {
    /// Shards before.
    pub shards_before: usize,
    /// Shards now.
    pub shards: usize,
    /// Rows that were deleted.
    pub deleted: usize,
}

/// Replaces shards of less than `bytes_per_shard` by as few of about this size as can be.
///
/// The store stays readable and may be appended to meanwhile; positions of rows change. What is copied is verified.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::verify`]; [`Error::Store`](crate::Error::Store) while another process compacts, deletes or repairs;
/// [`Error::Interrupted`](crate::Error::Interrupted). The store then has all its rows, compacted or not.
pub fn compact(path: &Path, bytes_per_shard: usize, observer: &mut Observer<'_>) -> Result<Compacted> {
    let (mut work, store) = Work::begin(path, observer)?;
    let groups = groups(&store.shards, bytes_per_shard);
    let total = groups.iter().flatten().map(|shard| shard.header.rows).sum();
    let (mut done, mut shards) = (0, store.shards.len());
    for group in groups {
        shards = shards + 1 - group.len();
        let group = work.replace(&group, |_| true, &mut |rows| observe(observer, done + rows, total))?;
        done += group;
    }
    Ok(Compacted { shards_before: store.shards.len(), shards, deleted: 0 })
}

/// Deletes the rows with these dataset indices; those that the store does not have are none of its business.
///
/// Shards with deleted rows are written again without them, one after the other: a process that is killed on its
/// way has deleted some of the rows, and the same call deletes the rest.
///
/// # Errors
/// As [`compact`].
pub fn delete(path: &Path, index: &[i64], observer: &mut Observer<'_>) -> Result<Compacted> {
    let (mut work, store) = Work::begin(path, observer)?;
    let unwanted: HashSet<i64> = index.iter().copied().collect();
    let rows = |shard: usize| &store.index()[store.starts[shard]..store.starts[shard + 1]];
    let touched: Vec<usize> = (0..store.shards.len())
        .filter(|&shard| rows(shard).iter().any(|row| unwanted.contains(row)))
        .collect();
    let total = touched.iter().map(|&shard| rows(shard).len()).sum();
    let (mut done, mut shards, mut deleted) = (0, store.shards.len(), 0);
    for shard in touched {
        let keep = |row: usize| !unwanted.contains(&rows(shard)[row]);
        let gone = (0..rows(shard).len()).filter(|&row| !keep(row)).count();
        deleted += gone;
        shards -= usize::from(gone == rows(shard).len());
        let told = &mut |rows| observe(observer, done + rows, total);
        work.thin_out(&store.shards[shard], keep, told)?;
        done += rows(shard).len();
    }
    Ok(Compacted { shards_before: store.shards.len(), shards, deleted })
}

/// A store whose shards are being replaced.
pub(super) struct Work {
    folder: std::path::PathBuf,
    schema: Schema,
    writer: String,
    sequence: u64,
    lock: Lock,
}

impl Work {
    /// Locks and opens the store, and removes what is superseded already.
    fn begin(path: &Path, observer: &mut Observer<'_>) -> Result<(Self, Reader)> {
        // Opened first, so that nothing is created in a folder that is no store.
        let folder = Reader::open(path)?.path().to_path_buf();
        let lock = Lock::take(&folder)?;
        let store = Reader::open(&folder)?;
        if !store.superseded().is_empty() {
            // What replaces them must be sound before they go: if it is not, a repair brings them back.
            let gone = |replaced: &Replaced| store.superseded().binary_search(&replaced.name).is_ok();
            for shard in store.shards.iter().filter(|shard| shard.header.supersedes.iter().any(gone)) {
                store.verify_shard(shard, &mut |_| observe(observer, 0, store.len()))?;
            }
            // Whoever has replaced them may have been killed before the names of the new ones were safe.
            folder::sync_folder(&folder)?;
            lock.announce(&folder)?;
            folder::remove(&folder, store.superseded())?;
        }
        Ok((Self::on(&store, lock), store))
    }

    /// Work on a store that is locked, and has no superseded shards.
    pub(super) fn on(store: &Reader, lock: Lock) -> Self {
        let (folder, schema) = (store.path().to_path_buf(), store.schema().clone());
        Self { folder, schema, writer: folder::unique_writer(), sequence: 0, lock }
    }

    /// Puts a shard in the place of this one that has those of its rows alone that are to be kept, or none if that is none.
    ///
    /// `keep` is asked by the row's number in the shard.
    pub(super) fn thin_out(
        &mut self,
        shard: &Shard,
        keep: impl Fn(usize) -> bool,
        told: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        if (0..shard.header.rows).any(&keep) {
            return self.replace(&[shard], keep, told).map(drop);
        }
        // Nothing is left to put in its place, and what it replaced itself is removed already.
        self.lock.announce(&self.folder)?;
        folder::remove(&self.folder, std::slice::from_ref(&shard.name))
    }

    /// Writes one shard in place of `shards`, with those of their rows that are to be kept, counted one shard after the other.
    ///
    /// All `shards` have the same columns. Returns the number of their rows.
    fn replace(
        &mut self,
        shards: &[&Shard],
        keep: impl Fn(usize) -> bool,
        told: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<usize> {
        let file = reader::read_schema(&self.folder)?
            .ok_or_else(|| reader::no_store(&self.folder, "a folder without store.json"))?;
        let opened = (shards.iter())
            .map(|shard| Shard::open(&self.folder, shard.name.clone(), &self.schema, &self.schema.id()))
            .collect::<Result<_>>()?;
        let part = Reader::over(&self.folder, file, opened)?;
        let cells = Cells::new(self.schema.dtype).ok_or_else(|| no_cells(&self.schema))?;
        let mut buffer = Buffer::new(cells);
        for (shard, &start) in part.shards.iter().zip(&part.starts) {
            // What is damaged must not get a checksum that says it is not.
            part.verify_shard(shard, &mut |rows| told(start + rows))?;
            for position in start..start + shard.header.rows {
                if keep(position) {
                    buffer.push_stored(&part, position, Kinds::ALL);
                }
            }
        }
        let supersedes: Vec<_> = part.shards.iter().map(Shard::identity).collect();
        let file = buffer.write(&self.folder, &self.schema, &supersedes, true)?;
        file.publish_shard(&self.writer, &mut self.sequence)?;
        // The names of the old shards go only after the name of the new one is safe.
        folder::sync_folder(&self.folder)?;
        self.lock.announce(&self.folder)?;
        let names: Vec<String> = supersedes.into_iter().map(|replaced| replaced.name).collect();
        folder::remove(&self.folder, &names)?;
        Ok(part.len())
    }
}

/// Runs of shards to put one in the place of, each with the same columns.
fn groups(shards: &[Shard], bytes_per_shard: usize) -> Vec<Vec<&Shard>> {
    let mut groups: Vec<Vec<&Shard>> = Vec::new();
    let kinds: BTreeSet<Kinds> = shards.iter().map(|shard| shard.header.kinds()).collect();
    for kinds in kinds {
        let (mut group, mut bytes) = (Vec::new(), 0);
        for shard in shards.iter().filter(|shard| shard.header.kinds() == kinds) {
            let size = shard.header.gradients.end - shard.header.index.start;
            if size >= bytes_per_shard {
                continue;
            }
            if bytes + size > bytes_per_shard || group.len() == MAX_GROUP {
                groups.push(std::mem::take(&mut group));
                bytes = 0;
            }
            group.push(shard);
            bytes += size;
        }
        groups.push(group);
    }
    groups.retain(|group| group.len() > 1);
    groups
}
