//! The first pass: every row is read once, checked, measured and, if asked for, made a unit row.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linalg::Kernels;
use crate::matrix::Pool;
use crate::memory;
use crate::monitor::Monitor;
use crate::rows::{DatasetRow, Position};

/// Rows that one task reads between two looks at the monitor.
const CHUNK: usize = 256;

/// 2¹⁰⁰⁰: a factor between this and its inverse has all its digits.
const LIFT: f64 = f64::from_bits((1023 + 1000) << 52);

/// What to do about rows that are too many for the memory.
const FEWER: &str = "Split the source, and select from its parts.";

/// Below this, ‖g‖² may have lost digits: the squares of cells are not all numbers.
pub(crate) const FAINT: f64 = 1e-290;

/// 2⁶⁰⁰: rows whose squares have lost digits have squares of all digits times this.
const RAISE: f64 = f64::from_bits((1023 + 600) << 52);

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
    /// [`Error::CorruptStore`] if rows of a store are not those that were written; [`Error::InvalidInput`] naming the first
    /// row that holds a NaN or an infinity or whose squared norm overflows; [`Error::Interrupted`].
    pub fn new(mut pool: Pool<'a>, unit: bool, monitor: &Monitor) -> Result<Self> {
        let kernels = Kernels::default();
        // What is found of each row, its scale and its norm, and what a search keeps of it.
        memory::check("source", || format!("{} rows", pool.len()), 72.0 * pool.len() as f64, FEWER)?;
        let mut measured = vec![(0.0, 1.0); pool.len()]; // (‖g‖², factor)
        let sums: Vec<AtomicU64> = (0..pool.blocks()).map(|_| AtomicU64::new(0)).collect();
        let chunks = measured.par_chunks_mut(CHUNK).enumerate();
        let hashes = chunks.map_init(
            || (vec![0.0; pool.dim()], Vec::with_capacity(CHUNK)),
            |(row, hashed), (chunk, measured)| {
                monitor.check()?;
                let (first, count) = (chunk * CHUNK, measured.len());
                let (mut hash, mut slots) = (0_u64, measured.iter_mut());
                for (block, locals) in pool.parts(first..first + count) {
                    hashed.clear();
                    for (local, slot) in locals.clone().zip(&mut slots) {
                        hashed.push(pool.hash_and_load(block, local, row));
                        *slot = measure(kernels, row, unit);
                    }
                    hash = hashed.iter().fold(hash, |hash, &(_, row)| hash.wrapping_add(row));
                    // Threads meet once a part of a block, not once a row.
                    let sum = pool.written_sum(block, locals.start, hashed);
                    sums[block].fetch_add(sum, Ordering::Relaxed);
                }
                monitor.add_surveyed(count);
                Ok(hash)
            },
        );
        // A sum, so that the order of rows and their spread over files do not matter.
        let fingerprint = hashes.try_reduce(|| 0, |a, b| Ok(a.wrapping_add(b)))?;
        pool.check_written(sums.into_iter().map(AtomicU64::into_inner))?;
        if let Some(place) = measured.iter().position(|(norm_sq, _)| !norm_sq.is_finite()) {
            return Err(refuse(&pool, Position::new(place)));
        }
        if unit {
            lift(&mut pool, kernels, &mut measured);
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
    pub(crate) fn weight(&self, position: Position) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[position.get()])
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

    /// Writes the row at `position` to `out` (`dim` cells).
    pub fn load(&self, position: Position, out: &mut [f64]) {
        self.pool.load(position, out);
    }

    /// Brings the next few of some rows into the caches. Rows that lie anywhere come sooner if memory is asked for
    /// several at once: to be called before every [`AHEAD`]th of them is read.
    pub(crate) fn fetch(&self, positions: impl Iterator<Item = Position>) {
        positions.take(AHEAD).for_each(|position| self.pool.touch(position));
    }

    /// Writes the columns `part` of the row at `position` to `out`.
    pub(crate) fn load_part(&self, position: Position, part: Range<usize>, out: &mut [f64]) {
        self.pool.load_part(position, part, out);
    }

    /// Writes the row at `position` divided by its norm to `out` (`dim` cells), in single precision; a zero row stays
    /// zero.
    pub(crate) fn load_unit(&self, position: Position, out: &mut [f32]) {
        let norm = self.norm_sq(position).sqrt();
        self.pool.load_narrow(position, if norm > 0.0 { 1.0 / norm } else { 0.0 }, out);
    }

    /// Writes the row at `position` to `out`, times a power of two if its square has lost digits; returns the norm of what is written.
    pub(super) fn load_measured(&self, position: Position, out: &mut [f64]) -> f64 {
        self.load(position, out);
        if self.norm_sq(position) >= FAINT {
            return self.norm_sq(position).sqrt();
        }
        out.iter_mut().for_each(|cell| *cell *= RAISE);
        self.kernels.dot(out, out).sqrt()
    }

    /// [`Survey::load_unit`] of rows however small.
    pub(super) fn load_direction(&self, position: Position, out: &mut [f32]) {
        if self.norm_sq(position) >= FAINT {
            return self.load_unit(position, out);
        }
        let mut cells = vec![0.0; self.dim()];
        let norm = self.load_measured(position, &mut cells);
        let factor = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        out.iter_mut().zip(&cells).for_each(|(out, cell)| *out = (cell * factor) as f32);
    }

    /// The dataset row at `position`.
    pub fn dataset_row(&self, position: Position) -> DatasetRow {
        self.pool.dataset_row(position)
    }

    /// Some positions in the order of the dataset.
    pub(crate) fn in_dataset_order(&self, wanted: impl Fn(Position) -> bool) -> Vec<Position> {
        let mut positions: Vec<Position> =
            Position::all(self.len()).filter(|&position| wanted(position)).collect();
        if !positions.is_sorted_by_key(|&position| self.dataset_row(position)) {
            positions.par_sort_unstable_by_key(|&position| self.dataset_row(position));
        }
        positions
    }

    /// ‖g‖² of a row.
    pub fn norm_sq(&self, position: Position) -> f64 {
        self.norm_sq[position.get()]
    }

    /// ‖g‖² of every row, (n,).
    pub fn norms_sq(&self) -> &[f64] {
        &self.norm_sq
    }

    /// Checks that float64 holds the squares of the longest rows, unless all are zero.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it does not: their ‖g‖² has lost digits.
    pub fn check_squares(&self) -> Result<()> {
        if self.largest >= FAINT {
            return Ok(());
        }
        let mut cells = vec![0.0; self.dim()];
        let mut is_zero = |position| {
            self.load(position, &mut cells);
            cells.iter().all(|&cell| cell == 0.0)
        };
        if Position::all(self.len()).all(&mut is_zero) {
            return Ok(());
        }
        Err(Error::invalid(
            "gradients",
            format!("rows of ‖g‖² up to {:e}", self.largest),
            format!("rows of at least {FAINT:e}: below, float64 loses the squares of their cells"),
            "Scale the rows up, or use normalize=\"unit\".",
        ))
    }

    /// max ‖g‖².
    pub(crate) const fn largest_norm_sq(&self) -> f64 {
        self.largest
    }

    /// Equal for rows that are the same to the bit, and mostly for no others.
    pub(crate) fn norm_key(&self, position: Position) -> u64 {
        // The norm of unit rows is in their scale.
        self.norm_sq(position).to_bits() ^ self.pool.scale(position).to_bits().rotate_left(32)
    }

    /// A hash of the stored bytes of a row.
    pub(crate) fn content_hash(&self, position: Position) -> u64 {
        self.pool.content_hash(position)
    }

    /// Whether two rows are the same to the bit.
    pub(crate) fn same(&self, a: Position, b: Position) -> bool {
        self.pool.same(a, b)
    }

    /// A hash of all rows as stored and of their numbers in the data, whatever their order.
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
pub fn fingerprint(
    pool: &Pool<'_>,
    positions: Option<&[Position]>,
    monitor: &Monitor,
) -> Result<String> {
    let count = positions.map_or(pool.len(), <[Position]>::len);
    if let Some(row) = positions.and_then(|rows| rows.iter().find(|row| row.get() >= pool.len())) {
        let expected = format!("rows from 0 to {}", pool.len() - 1);
        return Err(Error::invalid("rows", row, expected, "Name rows of the source."));
    }
    let chunks = (0..count).into_par_iter().step_by(CHUNK).map(|first| {
        monitor.check()?;
        let places = first..(first + CHUNK).min(count);
        let at = |place: usize| positions.map_or(Position::new(place), |positions| positions[place]);
        Ok(places.fold(0_u64, |sum, place| sum.wrapping_add(pool.hash(at(place)))))
    });
    chunks.try_reduce(|| 0, |a, b| Ok(a.wrapping_add(b))).map(show)
}

/// ‖g‖² of a row, and what it is to be multiplied by; `row` is left in an unspecified state.
fn measure(kernels: Kernels, row: &mut [f64], unit: bool) -> (f64, f64) {
    if unit
        && row.iter().all(|cell| cell.is_finite())
        && let Some(largest) = row.iter().map(|cell| cell.abs()).reduce(f64::max)
        && largest > 0.0
    {
        // By the largest cell first: the square of the norm may not be a number yet.
        row.iter_mut().for_each(|cell| *cell /= largest);
        // Exactly 1, so that rows of equal length tie instead of competing by rounding.
        return (1.0, 1.0 / largest / kernels.dot(row, row).sqrt());
    }
    (kernels.dot(row, row), 1.0)
}

/// Measures rows again, times a power of two, that are so small or so large that the factor which makes them unit rows
/// has lost digits or is no number.
fn lift(pool: &mut Pool<'_>, kernels: Kernels, measured: &mut [(f64, f64)]) {
    let mut cells = vec![0.0; pool.dim()];
    for (position, measured) in Position::all(pool.len()).zip(measured) {
        let factor = measured.1;
        if !(1.0 / LIFT..=LIFT).contains(&factor) {
            pool.lift(position, if factor > 1.0 { LIFT } else { 1.0 / LIFT });
            pool.load(position, &mut cells);
            *measured = measure(kernels, &mut cells, true);
        }
    }
}

fn show(fingerprint: u64) -> String {
    format!("xxh3-64:{fingerprint:016x}")
}

fn refuse(pool: &Pool<'_>, position: Position) -> Error {
    let mut cells = vec![0.0; pool.dim()];
    pool.load(position, &mut cells);
    let row = pool.dataset_row(position);
    match cells.iter().position(|cell| !cell.is_finite()) {
        Some(column) => Error::invalid(
            format!("row {row}, column {column}"),
            cells[column],
            "a finite number",
            "Leave this row out of the source; in a store, `spice-rs verify` names a damaged file to move away.",
        ),
        None => Error::invalid(
            format!("row {row}"),
            "a squared norm that overflows float64",
            "rows of norms below 1e150",
            "Scale the rows down, or select with normalize=\"unit\".",
        ),
    }
}

pub(crate) fn check_positions(survey: &Survey<'_>, positions: &[Position]) -> Result<()> {
    match positions.iter().find(|position| position.get() >= survey.len()) {
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

/// Smallest α‖g‖² of the longest row: below, a gain has lost digits, or all of them.
const LEAST_SIGNAL: f64 = f64::MIN_POSITIVE;

/// Checks that float64 holds α‖g‖² of the rows.
pub(crate) fn check_scale(survey: &Survey<'_>, alpha: f64) -> Result<()> {
    survey.check_squares()?;
    let largest = alpha * survey.largest_norm_sq();
    let (expected, remedy) = if largest > LARGEST_SIGNAL {
        let expected =
            format!("at most {LARGEST_SIGNAL:e}: beyond, float64 loses the 1 in 1 + alpha·‖g‖²");
        (expected, "Lower alpha, or use normalize=\"unit\".")
    } else if largest < LEAST_SIGNAL && survey.largest_norm_sq() > 0.0 {
        (
            format!("at least {LEAST_SIGNAL:e}: below, float64 has too few digits for gains"),
            "Raise alpha, or use alpha=\"auto\".",
        )
    } else {
        return Ok(());
    };
    let alpha = if (1e-4..1e6).contains(&alpha) { alpha.to_string() } else { format!("{alpha:e}") };
    let found = format!("{alpha} with rows up to alpha·‖g‖² = {largest:e}");
    Err(Error::invalid("alpha", found, expected, remedy))
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
