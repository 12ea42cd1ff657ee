//! Rows that wait to become a shard.

use std::path::Path;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::Xxh3;

use super::cells::Cells;
use super::checksum;
use super::folder::{self, Temporary};
use super::header::{self, Replaced};
use super::known::{Kinds, KnownRow};
use super::reader::Reader;
use super::schema::Schema;
use crate::error::{Error, Result};

/// Rows of the next shard.
pub(super) struct Buffer {
    index: Vec<i64>,
    scale: Vec<f32>,
    norm: Vec<f32>,
    loss: Vec<f32>,
    num_tokens: Vec<i32>,
    record: Vec<i64>,
    cells: Cells,
    /// Of the rows so far, see [`checksum::of_row`].
    rows_checksum: u64,
    /// When the first of the rows came.
    since: Option<Instant>,
}

impl Buffer {
    /// An empty buffer for rows of the dtype of `cells`.
    pub(super) fn new(cells: Cells) -> Self {
        Self {
            index: Vec::new(),
            scale: Vec::new(),
            norm: Vec::new(),
            loss: Vec::new(),
            num_tokens: Vec::new(),
            record: Vec::new(),
            cells,
            rows_checksum: 0,
            since: None,
        }
    }

    /// Adds a row; what is known of it is there for all rows or for none.
    pub(super) fn push(&mut self, row: &[f32], scale: f32, norm: f32, index: i64, known: KnownRow) {
        let start = self.cells.as_bytes().len();
        self.cells.push(row, scale);
        self.push_values(start, scale, norm, index, known);
    }

    /// Adds the row at `position` of a store of the same dtype as it is, with those of `kinds` that `reader` has.
    pub(super) fn push_stored(&mut self, reader: &Reader, position: usize, kinds: Kinds) {
        let start = self.cells.as_bytes().len();
        self.cells.push_stored(reader.stored(position));
        self.push_values(
            start,
            reader.scale()[position],
            reader.norm()[position],
            reader.index()[position],
            reader.known().row(position).only(kinds),
        );
    }

    /// Adds what belongs to the cells from `start` on.
    fn push_values(&mut self, start: usize, scale: f32, norm: f32, index: i64, known: KnownRow) {
        let KnownRow { num_tokens, loss, record } = known;
        self.index.push(index);
        self.scale.push(scale);
        self.norm.push(norm);
        self.num_tokens.extend(num_tokens);
        self.loss.extend(loss);
        self.record.extend(record);
        let optional = [loss.map(f32::to_le_bytes), num_tokens.map(i32::to_le_bytes)];
        let [loss, tokens] = optional.map(|value| value.unwrap_or(checksum::ABSENT));
        let values = [scale.to_le_bytes(), norm.to_le_bytes(), loss, tokens];
        let record = record.map(i64::to_le_bytes);
        let cells = checksum::of_cells(index.to_le_bytes(), &self.cells.as_bytes()[start..]);
        let row = checksum::of_row(values, record, cells);
        self.rows_checksum = self.rows_checksum.wrapping_add(row);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.index.len()
    }

    /// Whether there is nothing to commit.
    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How long the oldest row has been here.
    pub(super) fn age(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Size of a shard with these rows, without its header.
    pub(super) fn bytes(&self) -> usize {
        self.index.len() * 24 + self.record.len() * 8 + self.cells.as_bytes().len()
    }

    /// Forgets the rows and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.scale.clear();
        self.norm.clear();
        self.loss.clear();
        self.num_tokens.clear();
        self.record.clear();
        self.cells.clear();
        self.rows_checksum = 0;
        self.since = None;
    }

    /// Writes the rows to a complete file under a temporary name, synced if asked for: a shard in place of `supersedes`.
    pub(super) fn write(
        &self,
        folder: &Path,
        schema: &Schema,
        supersedes: &[Replaced],
        fsync: bool,
    ) -> Result<Temporary> {
        let columns: [&[u8]; 6] = [
            bytemuck::cast_slice(&self.index),
            bytemuck::cast_slice(&self.record),
            bytemuck::cast_slice(&self.scale),
            bytemuck::cast_slice(&self.norm),
            bytemuck::cast_slice(&self.loss),
            bytemuck::cast_slice(&self.num_tokens),
        ];
        let mut hasher = Xxh3::new();
        columns.iter().for_each(|column| hasher.update(column));
        let columns_checksum = hasher.digest();
        hasher.update(self.cells.as_bytes());
        let content = header::Content {
            rows: self.index.len(),
            dim: schema.dim,
            dtype: schema.dtype,
            kinds: Kinds {
                num_tokens: !self.num_tokens.is_empty(),
                loss: !self.loss.is_empty(),
                record: !self.record.is_empty(),
            },
            schema_id: &schema.id(),
            columns_checksum,
            data_checksum: hasher.digest(),
            rows_checksum: Some(self.rows_checksum),
            nonce: Some(folder::chance()),
            supersedes,
        };
        let header = header::encode(&content).ok_or_else(|| {
            Error::invalid(
                "dim",
                schema.dim,
                "rows that fit a file",
                "Project the gradients to fewer columns.",
            )
        })?;
        let [index, record, scale, norm, loss, num_tokens] = columns;
        let parts = [&header, index, record, scale, norm, loss, num_tokens, self.cells.as_bytes()];
        Temporary::write(folder, &parts, fsync)
    }
}
