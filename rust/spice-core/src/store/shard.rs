//! One mapped shard: its columns, its rows, and which shards it replaces.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::bytes::FileBytes;
use super::checksum;
use super::faults::corrupt;
use super::folder::FileId;
use super::header::{self, Header, Replaced};
use super::known::KnownRow;
use super::mapped_file::{self, State};
use super::schema::Schema;
use crate::error::Result;
use crate::matrix::{Dtype, Written};

/// A shard that is part of the store.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) header: Header,
    pub(super) map: FileBytes,
}

impl Shard {
    /// Maps the shard `name` in `folder` and checks its header against the store's schema.
    pub(super) fn open(folder: &Path, name: String, schema: &Schema, schema_id: &str) -> Result<Self> {
        let map = FileBytes::open(&folder.join(&name))?;
        Self::over(folder, name, map, schema, schema_id)
    }

    /// [`Shard::open`] for a file that is mapped already.
    pub(super) fn over(
        folder: &Path,
        name: String,
        map: FileBytes,
        schema: &Schema,
        schema_id: &str,
    ) -> Result<Self> {
        let path = folder.join(&name);
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

    /// Whether its name is not another file's by now, as far as the system tells: compaction frees names.
    pub(super) fn has_its_name(&self) -> bool {
        FileId::at(&self.path) == self.map.id()
    }

    /// Looks whether the file is as long as its map: reading that behind the end would end the process.
    ///
    /// By its name, as a store may have more shards than a process can hold open. A shard that was replaced meanwhile is
    /// looked at no more: it is gone, and nobody can shorten it.
    pub(super) fn check_length(&self) -> Result<()> {
        match self.state_now() {
            Some((then, now)) if now.bytes != then.bytes => {
                Err(mapped_file::shorter(&self.path, now.bytes, then.bytes))
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody has written to the file since it was opened.
    pub(super) fn was_touched(&self) -> bool {
        self.state_now().is_some_and(|(then, now)| then != now)
    }

    /// What the file was, and what it is.
    fn state_now(&self) -> Option<(State, State)> {
        let then = self.map.mapped_state()?;
        let found = fs::symlink_metadata(&self.path).ok()?;
        (FileId::from_metadata(&found) == self.map.id()).then(|| (then, State::of(&found)))
    }

    /// What a list of superseded shards says of this one.
    pub(super) fn identity(&self) -> Replaced {
        Replaced { name: self.name.clone(), header_checksum: self.header.header_checksum }
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

    /// The bytes of each value of a column.
    pub(super) fn values<const N: usize>(&self, column: &Range<usize>) -> &[[u8; N]] {
        self.bytes(column.clone()).as_chunks().0
    }

    /// Looks at each value of a column.
    pub(super) fn check_values<T: std::fmt::Display + Copy, const N: usize>(
        &self,
        field: &str,
        column: &Range<usize>,
        decode: fn([u8; N]) -> T,
        valid: impl Fn(T) -> bool,
    ) -> Result<()> {
        let values = self.values(column);
        // All of them first, which compilers turn into a few instructions; then the one to name.
        if values.iter().fold(true, |so_far, &value| so_far & valid(decode(value))) {
            return Ok(());
        }
        let wrong =
            values.iter().map(|&value| decode(value)).enumerate().find(|&(_, value)| !valid(value));
        let (row, value) = wrong.map_or((0, String::new()), |(row, value)| (row, value.to_string()));
        let field = format!("{field}, row {row} of the file");
        Err(corrupt(&self.path, field, value, "a finite number that is not negative"))
    }

    /// What row `row` of this shard adds to its `rows_checksum`.
    pub(super) fn row_checksum(&self, row: usize) -> u64 {
        let index = self.values(&self.header.index)[row];
        self.sum(row, &[(i64::from_le_bytes(index), checksum::of_cells(index, self.row(row)))])
    }

    /// Whether row `row` is row `other_row` of another shard of the store, to the bit, with all that both know of it.
    pub(super) fn has_same_row(&self, row: usize, other: &Self, other_row: usize) -> bool {
        let values = |shard: &Self, row: usize| {
            let header = &shard.header;
            [&header.scale, &header.norm].map(|column| shard.values::<4>(column)[row])
        };
        values(self, row) == values(other, other_row)
            && self.known(row).agrees(other.known(other_row))
            && self.row(row) == other.row(other_row)
    }

    /// All that this shard knows of row `row`.
    fn known(&self, row: usize) -> KnownRow {
        let Header { num_tokens, loss, record, .. } = &self.header;
        KnownRow {
            num_tokens: num_tokens.as_ref().map(|column| i32::from_le_bytes(self.values(column)[row])),
            loss: loss.as_ref().map(|column| f32::from_le_bytes(self.values(column)[row])),
            record: record.as_ref().map(|column| i64::from_le_bytes(self.values(column)[row])),
        }
    }

    /// The stored cells of row `row` of this shard.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        let size = self.header.dim * self.header.dtype.size();
        &self.map[self.header.gradients.clone()][row * size..(row + 1) * size]
    }
}

impl Written for Shard {
    fn sum(&self, first: usize, hashed: &[(i64, u64)]) -> u64 {
        let header = &self.header;
        let rows = first..first + hashed.len();
        let column = |range: &Range<usize>| &self.values::<4>(range)[rows.clone()];
        let optional = |range: &Option<Range<usize>>| range.as_ref().map(&column);
        let (indices, scales, norms) = (
            &self.values::<8>(&header.index)[rows.clone()],
            column(&header.scale),
            column(&header.norm),
        );
        let (losses, tokens) = (optional(&header.loss), optional(&header.num_tokens));
        let records = header.record.as_ref().map(|range| &self.values::<8>(range)[rows.clone()]);
        let value =
            |column: Option<&[[u8; 4]]>, row: usize| column.map_or(checksum::ABSENT, |of| of[row]);
        let checksum = |(row, &(index, cells)): (usize, &(i64, u64))| {
            // Whoever numbers the rows anew has hashed them with another seed.
            let cells = if index.to_le_bytes() == indices[row] {
                cells
            } else {
                checksum::of_cells(indices[row], self.row(first + row))
            };
            let values = [scales[row], norms[row], value(losses, row), value(tokens, row)];
            checksum::of_row(values, records.map(|of| of[row]), cells)
        };
        hashed.iter().enumerate().map(checksum).fold(0, u64::wrapping_add)
    }

    fn check(&self, sum: u64) -> Result<()> {
        match self.header.rows_checksum {
            Some(expected) if expected != sum => Err(self.changed(sum, expected)),
            _ => Ok(()),
        }
    }
}

/// The shards that others replace, sorted by name; `shards` are.
pub(super) fn superseded(path: &Path, shards: &[Shard]) -> Result<Vec<String>> {
    let nodes: Vec<(Replaced, &[Replaced])> =
        shards.iter().map(|shard| (shard.identity(), &*shard.header.supersedes)).collect();
    match replaced(&nodes) {
        Ok(names) => Ok(names.into_iter().map(str::to_string).collect()),
        Err(name) => {
            let found = format!("{name} in a circle of shards that replace each other");
            Err(corrupt(path, "supersedes", found, "shards that replace older ones"))
        }
    }
}

/// Which of the shards (each with its list) are in the list of another; or one that is in a circle of lists.
fn replaced<'a>(shards: &'a [(Replaced, &[Replaced])]) -> Result<Vec<&'a str>, &'a str> {
    let named: HashSet<&Replaced> = shards.iter().flat_map(|(_, list)| *list).collect();
    let places: HashMap<&Replaced, usize> =
        shards.iter().enumerate().map(|(place, (shard, _))| (shard, place)).collect();
    // Follow the lists from the shards that count; a superseded shard that is never reached is in a circle.
    let mut left: Vec<usize> =
        (0..shards.len()).filter(|&place| !named.contains(&shards[place].0)).collect();
    let mut seen: HashSet<usize> = left.iter().copied().collect();
    while let Some(place) = left.pop() {
        let next = shards[place].1.iter().filter_map(|replaced| places.get(replaced));
        left.extend(next.filter(|&&place| seen.insert(place)));
    }
    if let Some(place) = (0..shards.len()).find(|place| !seen.contains(place)) {
        return Err(&shards[place].0.name);
    }
    let names = shards.iter().filter(|(shard, _)| named.contains(shard));
    Ok(names.map(|(shard, _)| &*shard.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(name: &str, header_checksum: u64) -> Replaced {
        Replaced { name: name.to_string(), header_checksum }
    }

    #[test]
    fn a_later_shard_of_a_replaced_name_counts() {
        let list = [shard("a", 1), shard("gone", 7)];
        assert_eq!(replaced(&[(shard("a", 1), &[]), (shard("b", 2), &list)]), Ok(vec!["a"]));
        assert_eq!(replaced(&[(shard("a", 3), &[]), (shard("b", 2), &list)]), Ok(vec![]));
    }

    #[test]
    fn lists_of_replaced_shards_count_and_circles_are_found() {
        let (a, b, c) = (shard("a", 1), shard("b", 2), shard("c", 3));
        let [of_a, of_b, of_c] = [&a, &b, &c].map(|shard| vec![shard.clone()]);
        let chain = [(a.clone(), &[][..]), (b.clone(), &of_a), (c.clone(), &of_b)];
        assert_eq!(replaced(&chain), Ok(vec!["a", "b"]));
        assert_eq!(replaced(&[(a.clone(), &of_c), (b, &of_a), (c, &of_b)]), Err("a"));
        assert_eq!(replaced(&[(a, &of_a)]), Err("a"));
    }
}
