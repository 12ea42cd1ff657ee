//! An open store: the columns in memory, the gradients on disk.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

use super::budget::Budget;
use super::cells;
use super::duplicates::twice;
use super::folder::{self, SCHEMA_FILE};
use super::header::Header;
use super::known::{Kinds, Known};
use super::opening;
use super::schema::{self, Reduction, Schema, StoreFile};
use super::shard::{Shard, superseded};
use super::version::FORMAT_VERSION;
use crate::error::{Error, Result};
use crate::matrix::{Dtype, RowBlock, Written};

/// Values that a thread reads at a time: for fewer it does not pay to start one.
const VALUES_PER_PART: usize = 1 << 18;

/// A store as it was when it was opened; rows that writers add later are seen by opening it again.
///
/// Rows have positions `0..len()`: shards in the order of their names, rows as in the file.
pub struct Reader {
    path: PathBuf,
    schema: Schema,
    schema_id: String,
    written_by: String,
    pub(super) shards: Vec<Shard>,
    /// `starts[s]` is the position of the first row of shard `s`; the last entry is the number of rows.
    pub(super) starts: Vec<usize>,
    index: Vec<i64>,
    /// Of the other columns each is checked when the store is opened and copied when it is asked for.
    scale: OnceLock<Vec<f32>>,
    norm: OnceLock<Vec<f32>>,
    loss: Option<OnceLock<Vec<f32>>>,
    num_tokens: Option<OnceLock<Vec<i32>>>,
    record: Option<OnceLock<Vec<i64>>>,
    superseded: Vec<String>,
    leftovers: Vec<String>,
    budget: Option<Budget>,
    opened: Instant,
    /// When the length of each shard's file was looked at last, in ms since the store was opened.
    looked: Vec<AtomicU32>,
}

/// What there is to know about a store without reading it.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// The folder.
    pub path: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub dim: usize,
    /// `int8`, `float16`, `bfloat16` or `float32`.
    pub dtype: &'static str,
    /// Reduction of the loss over tokens, if known.
    pub reduction: Option<Reduction>,
    /// Names of the columns beside the gradients.
    pub columns: Vec<&'static str>,
    /// Number of shards.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Hash of the schema.
    pub schema_id: String,
    /// See [`Reader::fingerprint`].
    pub fingerprint: String,
    /// Version of the format.
    pub format_version: u32,
    /// The program that created the store.
    pub written_by: String,
    /// Shards that others replace; they can be deleted.
    pub superseded: Vec<String>,
    /// Unfinished files; they can be deleted when no writer is running.
    pub leftovers: Vec<String>,
    /// Where the rows come from.
    pub provenance: Map<String, Value>,
}

/// The error for a path that is not a store.
pub(super) fn no_store(path: &Path, found: &str) -> Error {
    Error::Store {
        path: path.to_path_buf(),
        field: "store".to_string(),
        found: found.to_string(),
        expected: format!("a folder with {SCHEMA_FILE}"),
        remedy: "Check the path, or extract gradients into it first.".to_string(),
    }
}

/// Parses `store.json` in `folder`; `None` if there is none.
pub(super) fn read_schema(folder: &Path) -> Result<Option<StoreFile>> {
    let path = folder.join(SCHEMA_FILE);
    let Some(bytes) = folder::read_small(&path, schema::MAX_BYTES)? else { return Ok(None) };
    Schema::decode(&path, &bytes).map(Some)
}

impl Reader {
    /// Opens the store in the folder `path`. Costs a look at each shard and its columns; reads no gradients.
    ///
    /// # Errors
    /// [`Error::Store`] if the path is no store, is of another version, or has a row twice; [`Error::CorruptStore`]
    /// if a file contradicts itself, `store.json` or the size on disk; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_within(path, None)
    }

    /// [`Reader::open`] for a reader that takes at most about `memory_limit` bytes: its columns, [`Reader::rows_at_a_time`],
    /// and the pages that [`Reader::read`] and [`Reader::verify`] map. What others read through [`Reader::blocks`] is their
    /// business.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the columns alone take more; else as [`Reader::open`].
    pub fn open_within(path: &Path, memory_limit: Option<usize>) -> Result<Self> {
        let reader = Self::open_with_duplicates(path, memory_limit)?;
        reader.check_duplicates()?;
        Ok(reader)
    }

    /// [`Reader::open_within`] without the look for two rows of one dataset index.
    pub(super) fn open_with_duplicates(path: &Path, memory_limit: Option<usize>) -> Result<Self> {
        let path = &std::path::absolute(path).map_err(Error::io(path, "resolve"))?;
        if !path.is_dir() {
            return Err(no_store(path, if path.exists() { "a file" } else { "nothing" }));
        }
        let file = read_schema(path)?.ok_or_else(|| no_store(path, "a folder without store.json"))?;
        let (mut shards, listing) = opening::open_shards(path, &file.schema, folder::list)?;
        let superseded = superseded(path, &shards)?;
        shards.retain(|shard| superseded.binary_search(&shard.name).is_err());
        let budget = memory_limit.map(|limit| Budget::new(path, limit, &shards)).transpose()?;
        let reader = Self::over(path, file, shards)?;
        if budget.is_some() {
            // The columns are copied.
            reader.shards.iter().for_each(|shard| shard.map.release());
        }
        Ok(Self { superseded, leftovers: listing.leftovers, budget, ..reader })
    }

    /// The store that these shards make up, whatever else is in the folder.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] if the columns of a shard do not hold.
    pub(super) fn over(path: &Path, file: StoreFile, shards: Vec<Shard>) -> Result<Self> {
        let mut starts = vec![0];
        let mut index = Vec::with_capacity(shards.iter().map(|shard| shard.header.rows).sum());
        for shard in &shards {
            let header = &shard.header;
            shard.check_columns()?;
            shard.check_values("index", &header.index, i64::from_le_bytes, |row| row >= 0)?;
            shard.check_values("scale", &header.scale, f32::from_le_bytes, |x| {
                x.is_finite() && x > 0.0
            })?;
            shard
                .check_values("norm", &header.norm, f32::from_le_bytes, |x| x.is_finite() && x >= 0.0)?;
            if let Some(loss) = &header.loss {
                shard.check_values("loss", loss, f32::from_le_bytes, f32::is_finite)?;
            }
            if let Some(num_tokens) = &header.num_tokens {
                shard.check_values("num_tokens", num_tokens, i32::from_le_bytes, |n| n >= 0)?;
            }
            index.extend(shard.values(&header.index).iter().map(|&row| i64::from_le_bytes(row)));
            starts.push(index.len());
        }
        // Without rows there is no column to speak of.
        let with_rows = shards.iter().map(|shard| &shard.header).filter(|header| header.rows > 0);
        let kinds = with_rows.map(Header::kinds).reduce(Kinds::and).unwrap_or_default();
        Ok(Self {
            path: path.to_path_buf(),
            schema_id: file.schema.id(),
            schema: file.schema,
            written_by: file.written_by,
            loss: kinds.loss.then(OnceLock::new),
            num_tokens: kinds.num_tokens.then(OnceLock::new),
            record: kinds.record.then(OnceLock::new),
            scale: OnceLock::new(),
            norm: OnceLock::new(),
            opened: Instant::now(),
            looked: shards.iter().map(|_| AtomicU32::new(0)).collect(),
            shards,
            starts,
            index,
            superseded: Vec::new(),
            leftovers: Vec::new(),
            budget: None,
        })
    }

    /// The error for two rows with one index, which are the same or not.
    pub(super) fn contradiction(&self, a: usize, b: usize) -> Error {
        let [first, second] =
            [a, b].map(|position| self.place_of(position).0.path.display().to_string());
        let path = self.path().display();
        let (found, remedy) = if self.is_copy(a, b) {
            let remedy =
                format!("GradientStore.repair (`spice-rs repair {path}`) keeps one of each such pair.");
            (format!("the same row in {first} and in {second}"), remedy)
        } else {
            let remedy = format!(
                "Nothing tells which is right. Merge the store into a new one and say which to keep, differing=\"first\" or \
                 \"last\" (`spice-rs merge NEW {path} --differing first`); or move one of the two files out of the folder, and \
                 compute its rows again."
            );
            (format!("one row in {first} and another in {second}"), remedy)
        };
        Error::Store {
            path: self.path().to_path_buf(),
            field: format!("index {}", self.index()[a]),
            found,
            expected: "one row for each index".to_string(),
            remedy,
        }
    }

    /// Whether the rows at two positions are the same to the bit.
    pub(super) fn is_copy(&self, a: usize, b: usize) -> bool {
        let ((first, row), (second, other)) = (self.place_of(a), self.place_of(b));
        first.has_same_row(row, second, other)
    }

    /// Refuses a store in which two rows have one dataset index.
    fn check_duplicates(&self) -> Result<()> {
        match twice(self.index()).first() {
            Some((_, places)) => Err(self.contradiction(places[0], places[1])),
            None => Ok(()),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no row yet.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Number of columns.
    pub fn dim(&self) -> usize {
        self.schema.dim
    }

    /// Type of the stored cells.
    pub fn dtype(&self) -> Dtype {
        self.schema.dtype
    }

    /// Reduction of the loss over tokens, if the store records it.
    pub fn reduction(&self) -> Option<Reduction> {
        self.schema.reduction
    }

    /// The folder of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What all rows have in common.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The dataset index of each row, by position.
    pub fn index(&self) -> &[i64] {
        &self.index
    }

    /// What the stored cells of each row are to be multiplied by; the products are exact in `f32`.
    pub fn scale(&self) -> &[f32] {
        self.scale.get_or_init(|| self.gather(|header| Some(&header.scale), f32::from_le_bytes))
    }

    /// The 2-norm of each row before rounding.
    pub fn norm(&self) -> &[f32] {
        self.norm.get_or_init(|| self.gather(|header| Some(&header.norm), f32::from_le_bytes))
    }

    /// The loss of each row, if all shards with rows record it.
    pub fn loss(&self) -> Option<&[f32]> {
        let gather = || self.gather(|header| header.loss.as_ref(), f32::from_le_bytes);
        self.loss.as_ref().map(|loss| &**loss.get_or_init(gather))
    }

    /// The number of learned tokens of each row, if all shards with rows record it.
    pub fn num_tokens(&self) -> Option<&[i32]> {
        let gather = || self.gather(|header| header.num_tokens.as_ref(), i32::from_le_bytes);
        self.num_tokens.as_ref().map(|tokens| &**tokens.get_or_init(gather))
    }

    /// The hash of what each row was learned from, if all shards with rows record it.
    pub fn record(&self) -> Option<&[i64]> {
        let gather = || self.gather(|header| header.record.as_ref(), i64::from_le_bytes);
        self.record.as_ref().map(|record| &**record.get_or_init(gather))
    }

    /// All that is known of the rows besides their gradients, by position.
    pub fn known(&self) -> Known<'_> {
        Known { num_tokens: self.num_tokens(), loss: self.loss(), record: self.record() }
    }

    /// A column of all shards, one after the other.
    fn gather<T, const N: usize>(
        &self,
        column: impl Fn(&Header) -> Option<&Range<usize>>,
        decode: fn([u8; N]) -> T,
    ) -> Vec<T> {
        let mut values = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let found = column(&shard.header).map(|range| shard.values(range)).unwrap_or_default();
            values.extend(found.iter().map(|&value| decode(value)));
        }
        values
    }

    /// Names of the shards that others replace.
    pub(super) fn superseded(&self) -> &[String] {
        &self.superseded
    }

    /// File names of the shards in the order of positions.
    pub fn shard_names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| &*shard.name)
    }

    /// The stored cells of all rows, one block for each shard, without a copy; to be multiplied by [`Reader::scale`].
    ///
    /// # Errors
    /// None for a store that [`Reader::open`] has accepted.
    pub fn blocks(&self) -> Result<Vec<RowBlock<'_>>> {
        (self.shards.iter())
            .map(|shard| {
                let Shard { header, map, .. } = shard;
                let bytes = map.get(header.gradients.clone()).unwrap_or_default();
                let block = RowBlock::new(bytes, header.dtype, header.rows, header.dim)?;
                Ok(block.with_written(header.rows_checksum.map(|_| shard as &dyn Written)))
            })
            .collect()
    }

    /// Writes the rows at `positions`, scaled, to `out`: `positions.len() × dim` values, on all cores if they are many.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a position that is not there, or a length of `out` that is not that;
    /// [`Error::CorruptStore`] if a file with one of them has become shorter.
    pub fn read(&self, positions: &[usize], out: &mut [f32]) -> Result<()> {
        let dim = self.dim();
        if positions.len().checked_mul(dim) != Some(out.len()) {
            let expected = format!("{} rows of {dim} values", positions.len());
            return Err(Error::invalid(
                "out",
                format!("{} values", out.len()),
                expected,
                "Resize the output.",
            ));
        }
        if let Some(position) = positions.iter().find(|&&position| position >= self.len()) {
            let expected = format!("less than {}, the number of rows", self.len());
            let remedy =
                "Positions count the rows of the store; `index` says which is which row of the data.";
            return Err(Error::invalid("positions", position, expected, remedy));
        }
        self.check_lengths_of(positions)?;
        let scale = self.scale();
        let rows = (VALUES_PER_PART / dim).max(1);
        let parts = Mutex::new(positions.chunks(rows).zip(out.chunks_mut(rows * dim)));
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((positions, out)) = next() {
                for (&position, out) in positions.iter().zip(out.chunks_exact_mut(dim)) {
                    let stored = self.stored(position);
                    self.will_read(stored.len());
                    cells::load(stored, self.dtype(), scale[position], out);
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        // Threads of this call alone: a process that is forked inherits none that it would wait for.
        thread::scope(|scope| {
            for _ in 1..threads.min(positions.len().div_ceil(rows)) {
                if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        Ok(())
    }

    /// Looks whether the files of the rows at `positions` are as long as when they were opened, each some twenty times a second.
    fn check_lengths_of(&self, positions: &[usize]) -> Result<()> {
        const AGAIN: u32 = 50;
        let now = self.opened.elapsed().as_millis() as u32;
        let mut here = 0..0;
        for position in positions {
            if here.contains(position) {
                continue;
            }
            let shard = self.shard_of(*position);
            here = self.starts[shard]..self.starts[shard + 1];
            let looked = &self.looked[shard];
            if now.wrapping_sub(looked.load(Ordering::Relaxed)) >= AGAIN {
                self.shards[shard].check_length()?;
                looked.store(now, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Rows that the memory limit allows to hold at a time; whoever calls [`Reader::read`] holds them.
    pub fn rows_at_a_time(&self) -> usize {
        let row = self.dim().saturating_mul(size_of::<f32>());
        self.budget.as_ref().map_or(usize::MAX, |budget| budget.rows() / row)
    }

    /// Counts so many bytes of gradients that are about to be read in one go.
    pub(super) fn will_read(&self, bytes: usize) {
        if let Some(budget) = &self.budget {
            budget.read(&self.shards, bytes);
        }
    }

    /// The stored cells of the row at `position`.
    pub(super) fn stored(&self, position: usize) -> &[u8] {
        let (shard, row) = self.place_of(position);
        shard.row(row)
    }

    /// The shard that has the row at `position`, and its number there.
    pub(super) fn place_of(&self, position: usize) -> (&Shard, usize) {
        let shard = self.shard_of(position);
        (&self.shards[shard], position - self.starts[shard])
    }

    /// The number of the shard that has the row at `position`.
    pub(super) fn shard_of(&self, position: usize) -> usize {
        self.starts.partition_point(|&start| start <= position) - 1
    }

    /// A hash over the schema id and all rows with all that is known of them: 32 hex digits.
    ///
    /// The order of rows and their spread over shards have no part in it: it is taken over the sum of the shards'
    /// `rows_checksum`. Of shards without one, which earlier versions wrote, the sorted header checksums follow: those cover
    /// the checksum of the data, and a compaction changes them.
    pub fn fingerprint(&self) -> String {
        let (mut sum, mut others) = (None, Vec::new());
        for header in self.shards.iter().map(|shard| &shard.header) {
            match header.rows_checksum {
                // A shard without rows changes nothing.
                Some(rows) if header.rows > 0 => sum = Some(rows.wrapping_add(sum.unwrap_or(0))),
                Some(_) => {}
                None => others.push(header.header_checksum),
            }
        }
        others.sort_unstable();
        let mut hasher = Xxh3::new();
        hasher.update(self.schema_id.as_bytes());
        sum.iter().chain(&others).for_each(|checksum| hasher.update(&checksum.to_le_bytes()));
        format!("{:032x}", hasher.digest128())
    }

    /// What there is to know about the store without reading it.
    pub fn info(&self) -> Info {
        let optional = [
            ("loss", self.loss.is_some()),
            ("num_tokens", self.num_tokens.is_some()),
            ("record", self.record.is_some()),
        ];
        let mut columns = vec!["index", "scale", "norm"];
        columns.extend(optional.into_iter().filter_map(|(name, there)| there.then_some(name)));
        Info {
            path: self.path.display().to_string(),
            rows: self.len(),
            dim: self.dim(),
            dtype: self.dtype().name(),
            reduction: self.reduction(),
            columns,
            shards: self.shards.len(),
            bytes: self.shards.iter().map(|shard| shard.map.len() as u64).sum(),
            schema_id: self.schema_id.clone(),
            fingerprint: self.fingerprint(),
            format_version: FORMAT_VERSION,
            written_by: self.written_by.clone(),
            superseded: self.superseded.clone(),
            leftovers: self.leftovers.clone(),
            provenance: self.schema.provenance.clone(),
        }
    }
}
