//! The first pass: every row is read once, checked, measured and, if asked for, made a unit row.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linalg::Kernels;
use crate::matrix::Pool;
use crate::monitor::Monitor;

/// Rows that one task reads between two looks at the monitor.
const CHUNK: usize = 256;

/// Rows that memory is asked for together.
pub(crate) const AHEAD: usize = 8;

/// A pool whose rows are finite, scaled for good, and of known norm.
pub struct Survey<'a> {
    pool: Pool<'a>,
    /// ‖g‖², (n,).
    norm_sq: Vec<f64>,
    /// max ‖g‖².
    largest: f64,
    /// Weight of each row, (n,); all 1 if `None`.
    weights: Option<Vec<f64>>,
    fingerprint: u64,
    kernels: Kernels,
}

impl<'a> Survey<'a> {
    /// Reads all rows of `pool`, each multiplied by `1/‖g‖` if `unit` (zero rows stay zero).
    ///
    /// Rows of a store are held against what their shard says of them: a bit that a disk or memory has flipped changes
    /// picks, and nobody would see it.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] if rows of a store are not those that were written; [`Error::InvalidInput`] naming the first row that holds a NaN or an infinity or whose squared
    /// norm overflows; [`Error::Interrupted`].
    pub fn new(mut pool: Pool<'a>, unit: bool, monitor: &Monitor) -> Result<Self> {
        let kernels = Kernels::default();
        let mut measured = vec![(0.0, 1.0); pool.len()]; // (‖g‖², factor)
        let sums: Vec<AtomicU64> = (0..pool.blocks()).map(|_| AtomicU64::new(0)).collect();
        let chunks = measured.par_chunks_mut(CHUNK).enumerate();
        let hashes = chunks.map_init(
            || vec![0.0; pool.dim()],
            |row, (chunk, measured)| {
                monitor.check()?;
                let mut hash = 0_u64;
                let mut sum = BlockSum::new(&sums);
                for (offset, slot) in measured.iter_mut().enumerate() {
                    let (row_hash, written) = pool.hash_and_checksum(chunk * CHUNK + offset);
                    hash = hash.wrapping_add(row_hash);
                    if let Some((block, checksum)) = written {
                        sum.add(block, checksum);
                    }
                    pool.load(chunk * CHUNK + offset, row);
                    let mut norm_sq = kernels.dot(row, row);
                    let mut factor = 1.0;
                    if unit
                        && row.iter().all(|cell| cell.is_finite())
                        && let Some(largest) = row.iter().map(|cell| cell.abs()).reduce(f64::max)
                        && largest > 0.0
                    {
                        // By the largest cell first: the square of the norm may not be a number yet.
                        row.iter_mut().for_each(|cell| *cell /= largest);
                        factor = 1.0 / largest / kernels.dot(row, row).sqrt();
                        // Exactly, so that rows of equal length tie instead of competing by rounding.
                        norm_sq = 1.0;
                    }
                    *slot = (norm_sq, factor);
                }
                monitor.add_surveyed(measured.len());
                Ok(hash)
            },
        );
        // A sum, so that the order of rows and their spread over files do not matter.
        let fingerprint = hashes.try_reduce(|| 0, |a, b| Ok(a.wrapping_add(b)))?;
        pool.check_written(sums.into_iter().map(AtomicU64::into_inner))?;
        if let Some(row) = measured.iter().position(|(norm_sq, _)| !norm_sq.is_finite()) {
            return Err(refuse(&pool, row));
        }
        if unit {
            pool.rescale(measured.iter().map(|&(_, factor)| factor));
        }
        let norm_sq: Vec<f64> = measured.into_iter().map(|(norm_sq, _)| norm_sq).collect();
        let largest = norm_sq.iter().copied().fold(0.0, f64::max);
        Ok(Self { pool, norm_sq, largest, weights: None, fingerprint, kernels })
    }

    /// Gives every row a weight w > 0: F = Σ w ggᵀ, and the mean is weighted too. From now on rows are read times √w,
    /// and norms are of such rows.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the first weight that is not positive, or if there is not one for each row.
    pub fn with_weights(mut self, weights: Vec<f64>) -> Result<Self> {
        check_numbers("weights", Some(&weights), self.len(), true)?;
        self.pool.rescale(weights.iter().map(|weight| weight.sqrt()));
        self.norm_sq.iter_mut().zip(&weights).for_each(|(norm_sq, weight)| *norm_sq *= weight);
        self.largest = self.norm_sq.iter().copied().fold(0.0, f64::max);
        self.weights = Some(weights);
        Ok(self)
    }

    /// Weight of a row.
    pub(crate) fn weight(&self, row: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[row])
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.norm_sq.len()
    }

    /// Always false: a pool has at least one row.
    pub fn is_empty(&self) -> bool {
        self.norm_sq.is_empty()
    }

    /// Number of columns.
    pub const fn dim(&self) -> usize {
        self.pool.dim()
    }

    /// Writes row `row` to `out` (`dim` cells).
    pub fn load(&self, row: usize, out: &mut [f64]) {
        self.pool.load(row, out);
    }

    /// Brings the next few of some rows into the caches. Rows that lie anywhere come sooner if memory is asked for
    /// several at once: to be called before every [`AHEAD`]th of them is read.
    pub(crate) fn fetch(&self, rows: impl Iterator<Item = usize>) {
        rows.take(AHEAD).for_each(|row| self.pool.touch(row));
    }

    /// Writes the columns `part` of row `row` to `out`.
    pub(crate) fn load_part(&self, row: usize, part: Range<usize>, out: &mut [f64]) {
        self.pool.load_part(row, part, out);
    }

    /// Writes row `row` divided by its norm to `out` (`dim` cells), in single precision; a zero row stays
    /// zero.
    pub(crate) fn load_unit(&self, row: usize, out: &mut [f32]) {
        let norm = self.norm_sq[row].sqrt();
        self.pool.load_narrow(row, if norm > 0.0 { 1.0 / norm } else { 0.0 }, out);
    }

    /// The dataset index of `row`.
    pub fn index(&self, row: usize) -> i64 {
        self.pool.index(row)
    }

    /// ‖g‖² of every row, (n,).
    pub fn norm_sq(&self) -> &[f64] {
        &self.norm_sq
    }

    /// max ‖g‖².
    pub(crate) const fn largest_norm_sq(&self) -> f64 {
        self.largest
    }

    /// Equal for rows that are the same to the bit, and mostly for no others.
    pub(crate) fn norm_key(&self, row: usize) -> u64 {
        // The norm of unit rows is in their scale.
        self.norm_sq[row].to_bits() ^ self.pool.scale(row).to_bits().rotate_left(32)
    }

    /// A hash of the stored bytes of `row`.
    pub(crate) fn content_hash(&self, row: usize) -> u64 {
        self.pool.content_hash(row)
    }

    /// Whether two rows are the same to the bit.
    pub(crate) fn same(&self, a: usize, b: usize) -> bool {
        self.pool.same(a, b)
    }

    /// A hash of all rows as stored and of their dataset indices, whatever their order.
    pub fn fingerprint(&self) -> String {
        show(self.fingerprint)
    }

    pub(crate) const fn kernels(&self) -> Kernels {
        self.kernels
    }
}

/// [`Survey::fingerprint`] of the rows of `pool`, or of some of them, without a survey: nothing is measured or checked.
///
/// # Errors
/// [`Error::InvalidInput`] if a row is out of range; [`Error::Interrupted`].
pub fn fingerprint(pool: &Pool<'_>, rows: Option<&[usize]>, monitor: &Monitor) -> Result<String> {
    let count = rows.map_or(pool.len(), <[usize]>::len);
    if let Some(row) = rows.and_then(|rows| rows.iter().find(|&&row| row >= pool.len())) {
        let expected = format!("rows from 0 to {}", pool.len() - 1);
        return Err(Error::invalid("rows", row, expected, "Name rows of the source."));
    }
    let chunks = (0..count).into_par_iter().step_by(CHUNK).map(|first| {
        monitor.check()?;
        let places = first..(first + CHUNK).min(count);
        let row = |place: usize| rows.map_or(place, |rows| rows[place]);
        Ok(places.fold(0_u64, |sum, place| sum.wrapping_add(pool.hash(row(place)))))
    });
    chunks.try_reduce(|| 0, |a, b| Ok(a.wrapping_add(b))).map(show)
}

/// The rows of one task, summed up by block: threads meet once a block, not once a row.
struct BlockSum<'a> {
    sums: &'a [AtomicU64],
    block: usize,
    sum: u64,
}

impl<'a> BlockSum<'a> {
    fn new(sums: &'a [AtomicU64]) -> Self {
        Self { sums, block: 0, sum: 0 }
    }

    fn add(&mut self, block: usize, checksum: u64) {
        if block != self.block {
            self.flush();
            self.block = block;
        }
        self.sum = self.sum.wrapping_add(checksum);
    }

    fn flush(&mut self) {
        self.sums[self.block].fetch_add(std::mem::take(&mut self.sum), Ordering::Relaxed);
    }
}

impl Drop for BlockSum<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

fn show(fingerprint: u64) -> String {
    format!("xxh3-64:{fingerprint:016x}")
}

fn refuse(pool: &Pool<'_>, row: usize) -> Error {
    let mut cells = vec![0.0; pool.dim()];
    pool.load(row, &mut cells);
    let index = pool.index(row);
    match cells.iter().position(|cell| !cell.is_finite()) {
        Some(column) => Error::invalid(
            format!("row {index}, column {column}"),
            cells[column],
            "a finite number",
            "Leave this row out of the source; in a store, `spice-rs verify` names a damaged file to move away.",
        ),
        None => Error::invalid(
            format!("row {index}"),
            "a squared norm that overflows float64",
            "rows of norms below 1e150",
            "Scale the rows down, or select with normalize=\"unit\" after scaling.",
        ),
    }
}

pub(crate) fn check_rows(survey: &Survey<'_>, rows: &[usize]) -> Result<()> {
    match rows.iter().find(|&&row| row >= survey.len()) {
        None => Ok(()),
        Some(row) => Err(Error::invalid(
            "rows",
            row,
            format!("rows from 0 to {}", survey.len() - 1),
            "Name rows of the source.",
        )),
    }
}

/// Largest α‖g‖²: beyond, the I of I + αF is lost in the rounding of αF.
const LARGEST_SIGNAL: f64 = 1e13;

pub(crate) fn check_scale(survey: &Survey<'_>, alpha: f64) -> Result<()> {
    let largest = alpha * survey.largest_norm_sq();
    if largest <= LARGEST_SIGNAL {
        return Ok(());
    }
    Err(Error::invalid(
        "alpha",
        format!("{alpha} with rows up to alpha·‖g‖² = {largest:e}"),
        format!("at most {LARGEST_SIGNAL:e}: beyond, float64 loses the 1 in 1 + alpha·‖g‖²"),
        "Lower alpha, or use normalize=\"unit\".",
    ))
}

/// Checks numbers that belong to rows.
pub(crate) fn check_numbers(
    field: &str,
    values: Option<&[f64]>,
    n: usize,
    positive: bool,
) -> Result<()> {
    let Some(values) = values else { return Ok(()) };
    let kind = if positive { "positive" } else { "finite" };
    let expected = format!("{n} {kind} numbers, one for each row");
    let remedy = "Give one number for every row of the source.";
    if values.len() != n {
        return Err(Error::invalid(field, format!("{} numbers", values.len()), expected, remedy));
    }
    match values.iter().position(|value| !value.is_finite() || (positive && *value <= 0.0)) {
        None => Ok(()),
        Some(row) => Err(Error::invalid(format!("{field} of row {row}"), values[row], expected, remedy)),
    }
}
