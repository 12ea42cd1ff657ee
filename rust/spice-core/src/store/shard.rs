//! One mapped shard: its columns, its rows, and which shards it replaces.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::{self, Header};
use super::mmap::Mapped;
use super::schema::Schema;
use super::{checksum, corrupt};
use crate::error::Result;
use crate::matrix::Dtype;

/// A shard that is part of the store.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) header: Header,
    pub(super) map: Mapped,
}

impl Shard {
    /// Maps the shard `name` in `folder` and checks its header against the store's schema.
    pub(super) fn open(folder: &Path, name: String, schema: &Schema, schema_id: &str) -> Result<Self> {
        let path = folder.join(&name);
        let map = Mapped::open(&path)?;
        let header = header::parse(&path, &map)?;
        let found = (&*header.schema_id, header.dim, header.dtype);
        let expected = (schema_id, schema.dim, schema.dtype);
        if found != expected {
            let show =
                |(id, dim, dtype): (&str, usize, Dtype)| format!("{id} ({dim} × {})", dtype.name());
            let expected = format!("{}, as in store.json", show(expected));
            return Err(corrupt(&path, "schema_id", show(found), expected));
        }
        Ok(Self { name, path, header, map })
    }

    /// Compares the columns before the gradients with their checksum.
    pub(super) fn check_columns(&self) -> Result<()> {
        let (found, expected) =
            (checksum::of(self.bytes(self.header.columns())), self.header.columns_checksum);
        if found == expected {
            return Ok(());
        }
        Err(corrupt(&self.path, "columns_checksum", checksum::text(found), checksum::text(expected)))
    }

    /// A part of the file that its header has laid out.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.map[range]
    }

    /// The stored cells of row `row` of this shard.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        let size = self.header.dim * self.header.dtype.size();
        &self.map[self.header.gradients.clone()][row * size..(row + 1) * size]
    }
}

/// Appends a column of a shard to `out`, checking each value.
pub(super) fn extend<T: std::fmt::Display, const N: usize>(
    out: &mut Vec<T>,
    shard: &Shard,
    field: &str,
    range: &Range<usize>,
    decode: fn([u8; N]) -> T,
    valid: impl Fn(&T) -> bool,
) -> Result<()> {
    let start = out.len();
    let (cells, _) = shard.bytes(range.clone()).as_chunks::<N>();
    out.extend(cells.iter().map(|&cell| decode(cell)));
    match out[start..].iter().position(|value| !valid(value)) {
        Some(row) => {
            let field = format!("{field}, row {row} of the file");
            Err(corrupt(&shard.path, field, &out[start + row], "a finite number that is not negative"))
        }
        None => Ok(()),
    }
}

/// [`extend`] for a column that counts as absent if one shard lacks it.
pub(super) fn extend_optional<T: std::fmt::Display, const N: usize>(
    out: &mut Option<Vec<T>>,
    shard: &Shard,
    field: &str,
    range: &Option<Range<usize>>,
    decode: fn([u8; N]) -> T,
    valid: impl Fn(&T) -> bool,
) -> Result<()> {
    match (&mut *out, range) {
        (Some(values), Some(range)) => extend(values, shard, field, range, decode, valid),
        _ => {
            *out = None;
            Ok(())
        }
    }
}

/// The shards that others replace, sorted by name.
pub(super) fn superseded(path: &Path, shards: &[Shard]) -> Result<Vec<String>> {
    let named: HashSet<&str> =
        shards.iter().flat_map(|shard| &shard.header.supersedes).map(String::as_str).collect();
    // Follow the lists from the shards that count; a superseded shard that is never reached is in a cycle.
    let mut reached: Vec<&Shard> = shards.iter().filter(|shard| !named.contains(&*shard.name)).collect();
    let mut seen: HashSet<&str> = reached.iter().map(|shard| &*shard.name).collect();
    while let Some(shard) = reached.pop() {
        for name in &shard.header.supersedes {
            if let Ok(next) = shards.binary_search_by(|other| other.name.cmp(name))
                && seen.insert(&shards[next].name)
            {
                reached.push(&shards[next]);
            }
        }
    }
    if let Some(shard) = shards.iter().find(|shard| !seen.contains(&*shard.name)) {
        let found = format!("{} in a circle of shards that replace each other", shard.name);
        return Err(corrupt(path, "supersedes", found, "shards that replace older ones"));
    }
    let mut superseded: Vec<String> = shards
        .iter()
        .map(|shard| &shard.name)
        .filter(|name| named.contains(name.as_str()))
        .cloned()
        .collect();
    superseded.sort_unstable();
    Ok(superseded)
}
