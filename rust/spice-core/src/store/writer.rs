//! Rows in, committed shards out.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::buffer::Buffer;
use super::cells::{self, Cells, MAX_NORM, Measure};
use super::compact::no_cells;
use super::folder::{self, SCHEMA_FILE, Temporary};
use super::reader::{self, Reader};
use super::schema::Schema;
use crate::error::{Error, Result};

/// When a shard is committed, and who writes it.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Commit when this many rows are buffered.
    pub rows_per_shard: Option<usize>,
    /// Commit when this many bytes are buffered.
    pub bytes_per_shard: usize,
    /// Commit when the oldest buffered row has waited this long; looked at whenever rows are appended.
    pub max_delay: Duration,
    /// The writer's part of the names of its shards: 1 to 64 of `A-Z a-z 0-9 . _ -`. `None` makes a unique one.
    pub writer: Option<String>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            rows_per_shard: None,
            bytes_per_shard: 64 << 20,
            max_delay: Duration::from_secs(30),
            writer: None,
        }
    }
}

/// Appends rows to a store, in shards that appear complete or not at all.
///
/// A row `x` is stored as `scale · round(x / scale)`, for floats with a power of two as scale. The error of a cell is at most
/// `2⁻¹¹ |x|` (`float16`) or `2⁻⁸ |x|` (`bfloat16`), or, for the smallest cells of a row, `2⁻²⁵ scale` or
/// `2⁻¹³⁴ scale`; `float32` is exact. `int8` has the scale `m / 127`, with `m` the row's largest cell, rounded up by at most
/// `2⁻¹⁵` of itself, and an error of at most `0.50004 scale`. Values that came from the stored dtype come back unchanged.
///
/// Buffered rows are committed by [`Writer::close`]; dropping the writer tries to, and cannot say if it fails.
pub struct Writer {
    folder: PathBuf,
    schema: Schema,
    options: WriterOptions,
    name: String,
    sequence: u64,
    /// All rows of the store that this writer knows of.
    seen: HashSet<i64>,
    buffer: Buffer,
    /// Whether rows come with (`num_tokens`, `loss`); known from earlier shards or after the first rows.
    optional: [Option<bool>; 2],
    /// A forked child must not commit its parent's rows a second time.
    process: u32,
}

impl Writer {
    /// Creates the store at `path`, or joins it if it exists with the same schema.
    ///
    /// # Errors
    /// [`Error::StoreMismatch`] if the store has another schema, [`Error::InvalidInput`] for a schema or options
    /// that cannot be used, [`Error::CorruptStore`], [`Error::Store`] and [`Error::Io`] as [`Reader::open`].
    pub fn create(path: &Path, schema: Schema, options: WriterOptions) -> Result<Self> {
        let text = schema.encode(super::WRITTEN_BY)?;
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
            Temporary::write(path, &[&text])?.publish(SCHEMA_FILE)?;
            folder::sync_folder(path)?;
        }
        let store = Reader::open(path)?;
        store.schema().join(path, &schema)?;

        let sequences = store.shard_names().filter_map(|shard| folder::shard_sequence(shard, &name));
        let optional = if store.is_empty() {
            [None; 2]
        } else {
            // A column that only some shards have is lost already; nothing to insist on.
            [store.num_tokens().map(|_| true), store.loss().map(|_| true)]
        };
        Ok(Self {
            folder: path.to_path_buf(),
            sequence: sequences.max().map_or(0, |last| last.saturating_add(1)),
            seen: store.index().iter().copied().collect(),
            buffer: Buffer::new(cells),
            optional,
            process: std::process::id(),
            schema,
            options,
            name,
        })
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

    /// Appends `index.len()` rows, `rows` being C-contiguous; all of them, or none if one is invalid.
    ///
    /// Commits a shard when the buffer is full. If that fails, rows before the failure stay buffered, for
    /// another [`Writer::commit`]; the rest has not been appended ([`Writer::contains`] tells).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for lengths that disagree, NaN or Inf (with the dataset index and the column), a norm
    /// above 2¹²⁷, an index that is negative or already there, a negative number of tokens, or optional
    /// values that come with some rows and not with others. [`Error::Io`] if a shard cannot be written.
    pub fn append(
        &mut self,
        rows: &[f32],
        index: &[i64],
        num_tokens: Option<&[i32]>,
        loss: Option<&[f32]>,
    ) -> Result<()> {
        let dim = self.schema.dim;
        check_length("rows", rows.len(), index.len().checked_mul(dim))?;
        check_length("num_tokens", num_tokens.map_or(index.len(), <[i32]>::len), Some(index.len()))?;
        check_length("loss", loss.map_or(index.len(), <[f32]>::len), Some(index.len()))?;
        if index.is_empty() {
            return Ok(());
        }
        let given = [num_tokens.is_some(), loss.is_some()];
        self.check_optional(given)?;
        for (position, &index) in index.iter().enumerate() {
            check_values(
                index,
                num_tokens.map(|values| values[position]),
                loss.map(|values| values[position]),
            )?;
        }
        let measures: Vec<Measure> = rows
            .chunks_exact(dim)
            .zip(index)
            .map(|(row, &index)| check_row(row, index))
            .collect::<Result<_>>()?;
        self.reserve(index)?;
        self.optional = given.map(Some);

        for (position, (row, measure)) in rows.chunks_exact(dim).zip(measures).enumerate() {
            let scale = cells::scale_for(self.schema.dtype, measure.largest);
            self.buffer.push(
                row,
                scale,
                measure.norm as f32,
                index[position],
                num_tokens.map(|values| values[position]),
                loss.map(|values| values[position]),
            );
            if self.is_full()
                && let Err(error) = self.commit()
            {
                index[position + 1..].iter().for_each(|index| _ = self.seen.remove(index));
                return Err(error);
            }
        }
        if self.buffer.age() >= self.options.max_delay {
            self.commit()?;
        }
        Ok(())
    }

    /// Makes all buffered rows a shard, on disk when this returns. Without buffered rows it does nothing.
    ///
    /// # Errors
    /// [`Error::Io`]; the rows stay buffered unless only the folder could not be synced.
    pub fn commit(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let file = self.buffer.write(&self.folder, &self.schema, &[])?;
        file.publish_shard(&self.name, &mut self.sequence)?;
        // The rows are in the store now, whatever becomes of the folder's entry.
        self.buffer.clear();
        folder::sync_folder(&self.folder)
    }

    /// Commits what is buffered.
    ///
    /// # Errors
    /// [`Error::Io`], as [`Writer::commit`].
    pub fn close(mut self) -> Result<()> {
        self.commit()
    }

    fn is_full(&self) -> bool {
        self.options.rows_per_shard.is_some_and(|rows| self.buffer.rows() >= rows)
            || self.buffer.bytes() >= self.options.bytes_per_shard
    }

    /// Refuses rows whose optional values are missing or new.
    fn check_optional(&self, given: [bool; 2]) -> Result<()> {
        for ((field, expected), given) in ["num_tokens", "loss"].iter().zip(self.optional).zip(given) {
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

impl Drop for Writer {
    fn drop(&mut self) {
        if self.process == std::process::id() && !std::thread::panicking() {
            // Nobody is left to tell; `close` reports.
            let _ = self.commit();
        }
    }
}

/// Creates the folder of a store and its parents.
fn create_folder(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Err(reader::no_store(path, "a file"));
    }
    fs::create_dir_all(path).map_err(Error::io(path, "create"))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => folder::sync_folder(parent),
        _ => Ok(()),
    }
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

fn check_values(index: i64, num_tokens: Option<i32>, loss: Option<f32>) -> Result<()> {
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
    match (num_tokens, loss) {
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
