//! Reading everything that an open store has mapped, against every checksum.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use xxhash_rust::xxh3::Xxh3;

use super::faults::corrupt;
use super::header::Header;
use super::observer::{Observer, observe};
use super::reader::Reader;
use super::shard::Shard;
use super::{cells, checksum, folder, header};
use crate::error::{Error, Result};

/// What [`Reader::verify`] has checked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Number of shards.
    pub shards: usize,
    /// Number of rows.
    pub rows: usize,
    /// Bytes of the shards.
    pub bytes: u64,
    /// Shards that others replace; a repair or a compaction removes them.
    pub superseded: Vec<String>,
    /// Unfinished files of writers that run or were killed; a repair removes the latter.
    pub leftovers: Vec<String>,
}

/// Bytes of gradients between two calls of the observer.
const CHUNK: usize = 8 << 20;
/// Bytes of gradients for which another thread pays.
const LEAST: usize = 1 << 20;
/// No disk is faster than so many threads.
const MOST_THREADS: usize = 8;

impl Reader {
    /// Reads the whole store: checksums, NaN and Inf, and the scale and the norm of each row.
    ///
    /// `observer` is told (rows done, all rows) every few MiB and can end the work.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] with the file, and with the row where one is to blame; [`Error::Interrupted`];
    /// [`Error::Store`] or [`Error::Io`] if the folder went away after the store was opened; shards that were compacted since
    /// are still read.
    pub fn verify(&self, observer: &mut Observer<'_>) -> Result<Verified> {
        let opened = self.schema().id();
        let found = super::reader::read_schema(self.path())?.map(|file| file.schema.id());
        if found.as_ref() != Some(&opened) {
            let found = found.unwrap_or("nothing".to_string());
            return Err(corrupt(self.path(), "schema_id in store.json", found, opened));
        }
        let leftovers = folder::list(self.path())?.leftovers;
        let superseded = self.superseded().to_vec();
        let mut bytes = 0;
        for (shard, &start) in self.shards.iter().zip(&self.starts) {
            let mut told = |done: usize| observe(observer, start + done, self.len());
            self.verify_shard(shard, &mut told)?;
            bytes += shard.map.len() as u64;
        }
        Ok(Verified { shards: self.shards.len(), rows: self.len(), bytes, superseded, leftovers })
    }

    /// Looks whether the files are as long as they were when the store was opened; to be called before each pass over the rows.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] for the first that is not.
    pub fn check_lengths(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_length)
    }

    /// Reads the shards again that somebody has written to since the store was opened, against their checksums; to be called
    /// when a pass has ended.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] if one is not what it was.
    pub fn check_touched(&self) -> Result<()> {
        self.check_lengths()?;
        let mut touched = self.shards.iter().filter(|shard| shard.was_touched());
        touched.try_for_each(|shard| self.verify_shard(shard, &mut |_| Ok(())))
    }

    /// Reads one shard against its checksums.
    pub(super) fn verify_shard(
        &self,
        shard: &Shard,
        observe: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        shard.check_length()?;
        if header::parse(&shard.path, &shard.map)? != shard.header {
            return Err(corrupt(
                &shard.path,
                "header",
                "another one",
                "the one read when it was opened",
            ));
        }
        let mut hasher = Xxh3::new();
        hasher.update(shard.bytes(shard.header.columns()));
        let row_bytes = shard.header.dim * shard.header.dtype.size();
        let rows_per_chunk = (CHUNK / row_bytes).max(1);
        let place = |row: usize| {
            (shard.header.gradients.start + row * row_bytes).min(shard.header.gradients.end)
        };
        // A wrong checksum explains wrong values, not the other way round; so values wait for it.
        let mut wrong_row = None;
        let mut rows_checksum = 0u64;
        for first in (0..shard.header.rows).step_by(rows_per_chunk) {
            let end = (first + rows_per_chunk).min(shard.header.rows);
            self.will_read(place(end) - place(first));
            shard.map.will_need(place(end)..place(end + rows_per_chunk));
            let hash = || hasher.update(shard.bytes(place(first)..place(end)));
            for (checksum, wrong) in
                side_by_side(first..end, row_bytes, hash, |rows| check_rows(shard, rows))
            {
                rows_checksum = rows_checksum.wrapping_add(checksum);
                wrong_row = wrong_row.or(wrong);
            }
            observe(end)?;
        }
        let (found, expected) = (hasher.digest(), shard.header.data_checksum);
        if found != expected {
            let (found, expected) = (checksum::text(found), checksum::text(expected));
            return Err(corrupt(&shard.path, "data_checksum", found, expected));
        }
        match (wrong_row, shard.header.rows_checksum) {
            (Some(wrong), _) => Err(wrong),
            (None, Some(expected)) if rows_checksum != expected => {
                let (found, expected) = (checksum::text(rows_checksum), checksum::text(expected));
                Err(corrupt(&shard.path, "rows_checksum", found, expected))
            }
            _ => Ok(()),
        }
    }
}

/// What `check` finds in parts of `rows`, in their order, looked at by as many threads as pay, while `hash` runs too.
fn side_by_side<T: Send>(
    rows: Range<usize>,
    row_bytes: usize,
    hash: impl FnOnce(),
    check: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<T> {
    // Asking takes the system longer than some chunks. No lock guards it, which a forked child might find held for good.
    static CORES: AtomicUsize = AtomicUsize::new(0);
    if CORES.load(Ordering::Relaxed) == 0 {
        CORES.store(thread::available_parallelism().map_or(1, usize::from), Ordering::Relaxed);
    }
    let most = CORES.load(Ordering::Relaxed).min(MOST_THREADS);
    let threads = (rows.len() * row_bytes / LEAST).clamp(1, most).min(rows.len());
    let per_thread = rows.len().div_ceil(threads);
    let mut parts = (0..threads).map(|part| {
        let start = rows.start + part * per_thread;
        start.min(rows.end)..(start + per_thread).min(rows.end)
    });
    let own = parts.next().unwrap_or_default();
    // Threads of our own and of this moment: a pool would be lost to a process that forks.
    thread::scope(|scope| {
        let check = &check;
        let start = |part: Range<usize>| {
            let its = part.clone();
            thread::Builder::new().spawn_scoped(scope, move || check(its)).map_err(|_| part)
        };
        let others: Vec<_> = parts.map(start).collect();
        hash();
        let mut found = vec![check(own)];
        let joined = others.into_iter().map(|other| match other {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(part) => check(part), // the system starts no more threads
        });
        found.extend(joined);
        found
    })
}

/// The sum of the rows' checksums, and what is wrong with the first row that is.
fn check_rows(shard: &Shard, rows: Range<usize>) -> (u64, Option<Error>) {
    let mut row = vec![0.0; shard.header.dim];
    let mut wrong = None;
    let mut sum = 0u64;
    for number in rows {
        sum = sum.wrapping_add(shard.row_checksum(number));
        if wrong.is_none() {
            wrong = check_row(shard, number, &mut row).err();
        }
    }
    (sum, wrong)
}

impl Shard {
    /// The error for rows whose checksums do not add up any more; it names the first that shows it in its numbers.
    pub(super) fn changed(&self, found: u64, expected: u64) -> Error {
        let mut row = vec![0.0; self.header.dim];
        let wrong = (0..self.header.rows).find(|&number| check_row(self, number, &mut row).is_err());
        let at = wrong.map_or(String::new(), |number| {
            let index = i64::from_le_bytes(self.values(&self.header.index)[number]);
            format!(", row {number} of the file (index {index})")
        });
        let (found, expected) = (checksum::text(found), checksum::text(expected));
        corrupt(&self.path, format!("rows_checksum{at}"), found, expected)
    }
}

/// Checks the values of row `number` of `shard`.
fn check_row(shard: &Shard, number: usize, row: &mut [f32]) -> Result<()> {
    let Header { dim, dtype, .. } = shard.header;
    let value = |column: &Range<usize>| f32::from_le_bytes(shard.values(column)[number]);
    let (scale, norm) = (value(&shard.header.scale), value(&shard.header.norm));
    cells::load(shard.row(number), dtype, scale, row);
    let found = cells::measure(row).norm;
    let index = || i64::from_le_bytes(shard.values(&shard.header.index)[number]);
    let at = || format!("row {number} of the file (index {})", index());
    if !found.is_finite()
        && let Some(column) = row.iter().position(|cell| !cell.is_finite())
    {
        let field = format!("gradients, {}, column {column}", at());
        return Err(corrupt(&shard.path, field, row[column], "a finite number"));
    }
    if let Some(column) = cells::rounded(shard.row(number), dtype, scale, row) {
        let (found, times) = (format!("{scale:e}"), format!("gradients, column {column}"));
        let expected = format!("one whose product with {times} is exact in float32");
        return Err(corrupt(&shard.path, format!("scale, {}", at()), found, expected));
    }
    let tolerance = cells::norm_tolerance(dtype, dim, scale, norm);
    if (found - f64::from(norm)).abs() > tolerance {
        let expected = format!("{found:e}, the norm of the gradients");
        return Err(corrupt(&shard.path, format!("norm, {}", at()), format!("{norm:e}"), expected));
    }
    Ok(())
}
