//! Rows in, committed shards out.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::background::{Background, Batch};
use super::buffer::Buffer;
use super::cells::{self, Cells, MAX_NORM, Measure};
use super::folder::{self, SCHEMA_FILE, Temporary};
use super::known::{Kinds, Known, KnownRow};
use super::observer::Observer;
use super::options::WriterOptions;
use super::reader::{self, Reader};
use super::schema::{Schema, no_cells};
use super::version::WRITTEN_BY;
use crate::error::{Error, Result};

/// Bytes of rows that are handed to the thread at a time.
const BATCH: usize = 16 << 20;

/// Appends rows to a store, in shards that appear complete or not at all.
///
/// A row `x` is stored as `scale · round(x / scale)`, for floats with a power of two as scale. The error of a cell is at most
/// `2⁻¹¹ |x|` (`float16`) or `2⁻⁸ |x|` (`bfloat16`), or, for the smallest cells of a row, `2⁻²⁵ scale` or
/// `2⁻¹³⁴ scale`; `float32` is exact. `int8` has the scale `m / 127`, with `m` the row's largest cell, rounded up by at most
/// `2⁻¹⁵` of itself, and an error of at most `0.50004 scale`. Values that came from the stored dtype come back unchanged.
///
/// Rows are checked and copied by the caller's thread; a thread of the writer's converts and writes them. If it fails, the
/// next call says so, whatever it is, and has done nothing itself; the rows stay in memory and the call after that tries
/// again to write them.
///
/// What was appended is committed by [`Writer::close`]; dropping the writer tries to, and cannot say if it fails. Rows whose
/// failure was told are not tried again by that: whoever was told may have written them with another writer.
pub struct Writer {
    folder: PathBuf,
    schema: Schema,
    /// All rows of the store that this writer knows of.
    seen: HashSet<i64>,
    /// Whether rows come with each of what may be known of them, in the order of [`named`]; told by earlier shards or by the
    /// first rows.
    optional: [Option<bool>; 3],
    background: Background,
}

impl Writer {
    /// Creates the store at `path`, or joins it if it exists with the same schema.
    ///
    /// # Errors
    /// [`Error::StoreMismatch`] if the store has another schema, [`Error::InvalidInput`] for a schema or options
    /// that cannot be used, [`Error::CorruptStore`], [`Error::Store`] and [`Error::Io`] as [`Reader::open`].
    pub fn create(path: &Path, schema: Schema, options: WriterOptions) -> Result<Self> {
        let text = schema.encode(WRITTEN_BY)?;
        let cells = Cells::new(schema.dtype);
        let cells = cells.ok_or_else(|| no_cells(&schema))?;
        let name = match &options.writer {
            Some(name) => checked_name(name)?,
            None => folder::unique_writer(),
        };
        if options.rows_per_shard == Some(0) {
            return Err(Error::invalid(
                "rows_per_shard",
                0,
                "at least 1",
                "Give 1 or more, or leave it out.",
            ));
        }

        // What the current folder is later must not matter.
        let path = &std::path::absolute(path).map_err(Error::io(path, "resolve"))?;
        create_folder(path)?;
        // Shards are looked for first: a creator that is faster makes its store.json before them.
        let has_shards = !folder::list(path)?.shards.is_empty();
        if reader::read_schema(path)?.is_none() {
            if has_shards {
                return Err(reader::no_store(path, "shards without store.json"));
            }
            // False if another creator was faster; what counts is what is there afterwards.
            Temporary::write(path, &[&text], true)?.publish(SCHEMA_FILE)?;
            folder::sync_folder(path)?;
        }
        let store = Reader::open(path)?;
        store.schema().join(path, &schema)?;

        let sequences = store.shard_names().filter_map(|shard| folder::shard_sequence(shard, &name));
        let optional = if store.is_empty() {
            [None; 3]
        } else {
            // A column that only some shards have is lost already; nothing to insist on.
            named(store.known().kinds()).map(|(_, there)| there.then_some(true))
        };
        let sequence = sequences.max().map_or(0, |last| last.saturating_add(1));
        let (folder, buffer) = (path.to_path_buf(), Buffer::new(cells));
        let background =
            Background::start(folder.clone(), schema.clone(), options, name, sequence, buffer)?;
        let seen = store.index().iter().copied().collect();
        Ok(Self { folder, schema, seen, optional, background })
    }

    /// The folder of the store.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The schema of the store.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Whether the store had the row `index` when this writer was created, or this writer has got it since.
    pub fn contains(&self, index: i64) -> bool {
        self.seen.contains(&index)
    }

    /// [`Writer::append_observed`], not to be interrupted.
    ///
    /// # Errors
    /// As there.
    pub fn append(&mut self, rows: &[f32], index: &[i64], known: Known<'_>) -> Result<()> {
        self.append_observed(rows, index, known, &mut |_, _| ControlFlow::Continue(()))
    }

    /// Appends `index.len()` rows, `rows` being C-contiguous; all of them, or none if one is invalid.
    ///
    /// Waits while the queue is full. `observer` is told (rows committed, rows appended) by this writer meanwhile.
    /// If an error ends the wait, the rows before are appended and the rest is not ([`Writer::contains`] tells).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for lengths that disagree, NaN or Inf (with the dataset index and the column), a norm
    /// above 2¹²⁷, an index that is negative or already there, a negative number of tokens, or optional
    /// values that come with some rows and not with others. [`Error::Io`] if a shard of earlier rows could not be written;
    /// [`Error::Interrupted`].
    pub fn append_observed(
        &mut self,
        rows: &[f32],
        index: &[i64],
        known: Known<'_>,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let dim = self.schema.dim;
        check_length("rows", rows.len(), index.len().checked_mul(dim))?;
        for (field, length) in known.lengths() {
            check_length(field, length.unwrap_or(index.len()), Some(index.len()))?;
        }
        if index.is_empty() {
            return Ok(());
        }
        let given = named(known.kinds());
        self.check_optional(given)?;
        for (position, &index) in index.iter().enumerate() {
            check_values(index, known.row(position))?;
        }
        let measures: Vec<Measure> = rows
            .chunks_exact(dim)
            .zip(index)
            .map(|(row, &index)| check_row(row, index))
            .collect::<Result<_>>()?;
        self.reserve(index)?;
        self.optional = given.map(|(_, there)| Some(there));

        let rows_per_batch = (BATCH / dim / size_of::<f32>()).max(1);
        for start in (0..index.len()).step_by(rows_per_batch) {
            let part = start..(start + rows_per_batch).min(index.len());
            let batch = Batch {
                rows: rows[part.start * dim..part.end * dim].to_vec(),
                measures: measures[part.clone()].to_vec(),
                index: index[part.clone()].to_vec(),
                known: part.map(|position| known.row(position)).collect(),
            };
            if let Err(error) = self.background.hand(batch, observer) {
                index[start..].iter().for_each(|index| _ = self.seen.remove(index));
                return Err(error);
            }
        }
        Ok(())
    }

    /// [`Writer::commit_observed`], not to be interrupted.
    ///
    /// # Errors
    /// As there.
    pub fn commit(&mut self) -> Result<()> {
        self.commit_observed(&mut |_, _| ControlFlow::Continue(()))
    }

    /// Makes what was appended a shard, on disk when this returns. Without new rows it does nothing.
    ///
    /// `observer` is told (rows committed, rows appended) by this writer while it waits.
    ///
    /// # Errors
    /// [`Error::Io`]: the rows stay in memory, and another call tries again. [`Error::Interrupted`]: the thread goes on.
    pub fn commit_observed(&mut self, observer: &mut Observer<'_>) -> Result<()> {
        self.background.commit(observer)
    }

    /// Commits what was appended and ends the thread.
    ///
    /// # Errors
    /// [`Error::Io`], as [`Writer::commit`].
    pub fn close(mut self) -> Result<()> {
        self.commit()
    }

    /// Refuses rows whose optional values are missing or new.
    fn check_optional(&self, given: [(&str, bool); 3]) -> Result<()> {
        for ((field, given), expected) in given.into_iter().zip(self.optional) {
            if expected.is_some_and(|expected| expected != given) {
                let word = |given: bool| if given { "values" } else { "none" };
                return Err(Error::invalid(
                    field,
                    word(given),
                    format!("{}, as for the rows before", word(!given)),
                    "Give it for all rows of the store or for none.",
                ));
            }
        }
        Ok(())
    }

    /// Marks rows as seen: all, or none if one was.
    fn reserve(&mut self, index: &[i64]) -> Result<()> {
        for (position, &row) in index.iter().enumerate() {
            if !self.seen.insert(row) {
                index[..position].iter().for_each(|row| _ = self.seen.remove(row));
                return Err(Error::invalid(
                    "index",
                    format!("row {row} a second time"),
                    "rows that the store does not have",
                    "Append each row of the dataset once; skip the rows that are there.",
                ));
            }
        }
        Ok(())
    }
}

/// What may be known of rows, by name, and whether it is.
fn named(kinds: Kinds) -> [(&'static str, bool); 3] {
    [("num_tokens", kinds.num_tokens), ("loss", kinds.loss), ("record", kinds.record)]
}

/// Creates the folder of a store and its parents.
fn create_folder(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Err(reader::no_store(path, "a file"));
    }
    folder::create_all(path)
}

/// A writer's name that is safe in a file name.
fn checked_name(name: &str) -> Result<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(name.to_string());
    }
    Err(Error::invalid(
        "writer",
        format!("{name:?}"),
        "1 to 64 of A-Z a-z 0-9 . _ -",
        "Leave it out to get a unique name.",
    ))
}

fn check_length(field: &str, found: usize, expected: Option<usize>) -> Result<()> {
    if Some(found) == expected {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("{found} values"),
        expected.map_or("fewer".to_string(), |expected| expected.to_string()),
        "Give one row, and one of each value, for each index.",
    ))
}

fn check_values(index: i64, known: KnownRow) -> Result<()> {
    let invalid = |field: &str, found: &dyn std::fmt::Display, expected: &str| {
        let field = format!("{field} of row {index}");
        Err(Error::invalid(
            field,
            found,
            expected,
            "Leave this row out, or find out where the value comes from.",
        ))
    };
    if index < 0 {
        return invalid("index", &index, "0 or more");
    }
    match (known.num_tokens, known.loss) {
        (Some(tokens), _) if tokens < 0 => invalid("num_tokens", &tokens, "0 or more"),
        (_, Some(loss)) if !loss.is_finite() => invalid("loss", &loss, "a finite number"),
        _ => Ok(()),
    }
}

fn check_row(row: &[f32], index: i64) -> Result<Measure> {
    let measure = cells::measure(row);
    if measure.norm <= MAX_NORM {
        return Ok(measure);
    }
    let (field, found) = match row.iter().position(|cell| !cell.is_finite()) {
        Some(column) => (format!("row {index}, column {column}"), row[column].to_string()),
        None => (format!("row {index}"), format!("a norm of {:e}", measure.norm)),
    };
    Err(Error::invalid(
        field,
        found,
        "finite float32 numbers and a norm below 1.7e38",
        "Leave this row out; the training diverged there, or its loss has no learned tokens.",
    ))
}
