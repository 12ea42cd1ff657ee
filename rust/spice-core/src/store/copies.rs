//! Rows that a store has twice: one of each two that are the same is enough.

use std::collections::{BTreeMap, BTreeSet};

use super::compact::Work;
use super::duplicates::twice;
use super::observer::{Observer, observe};
use super::reader::Reader;
use crate::error::Result;

/// Copies of rows that a repair has dropped from one shard.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Dropped {
    /// The name that the shard had; it is gone, or another is there in its place.
    pub name: String,
    /// Dataset indices of the rows, in their order.
    pub rows: Vec<i64>,
    /// The shards that have had the same rows and keep them, by the names that they had.
    pub kept_in: Vec<String>,
    /// Bytes of the rows, with all that is known of them.
    pub bytes: u64,
}

/// Keeps one of the rows of each index, if they are copies of each other: the one of which most is known, else the first.
///
/// Shards are replaced one after the other: a process that is killed on its way has dropped some copies, every row is still
/// there, and the same call drops the rest.
///
/// # Errors
/// [`Error::Store`], with nothing dropped, if two rows of one index are not the same; as [`super::compact`].
pub(super) fn drop_copies(
    work: &mut Work,
    store: &Reader,
    observer: &mut Observer<'_>,
) -> Result<Vec<Dropped>> {
    // For each shard the rows that go, and the shards that keep them.
    let mut copies: BTreeMap<usize, (BTreeSet<usize>, BTreeSet<usize>)> = BTreeMap::new();
    for (_, places) in twice(store.index()) {
        let most_known = |&&position: &&usize| store.place_of(position).0.header.kinds().count();
        // Of equals the first: the search goes backwards and takes the last.
        let Some(&kept) = places.iter().rev().max_by_key(most_known) else { continue };
        for &position in places.iter().filter(|&&position| position != kept) {
            if !store.is_copy(kept, position) {
                return Err(store.contradiction(kept.min(position), kept.max(position)));
            }
            let (rows, kept_in) = copies.entry(store.shard_of(position)).or_default();
            rows.insert(position - store.starts[store.shard_of(position)]);
            kept_in.insert(store.shard_of(kept));
        }
    }
    let total = copies.keys().map(|&shard| store.shards[shard].header.rows).sum();
    let (mut done, mut dropped) = (0, Vec::new());
    for (number, (rows, kept_in)) in copies {
        let (shard, start) = (&store.shards[number], store.starts[number]);
        let told = &mut |rows| observe(observer, done + rows, total);
        work.thin_out(shard, |row| !rows.contains(&row), told)?;
        done += shard.header.rows;
        let header = &shard.header;
        let row_bytes = (header.gradients.end - header.index.start) / header.rows;
        dropped.push(Dropped {
            name: shard.name.clone(),
            rows: rows.iter().map(|&row| store.index()[start + row]).collect(),
            kept_in: kept_in.into_iter().map(|shard| store.shards[shard].name.clone()).collect(),
            bytes: (rows.len() * row_bytes) as u64,
        });
    }
    Ok(dropped)
}
