//! Read-only views of gradient rows, wherever they live.
//!
//! A [`RowBlock`] is a borrowed, C-contiguous matrix in one of the stored dtypes: a memory map, a
//! numpy array, a vector. A [`Pool`] is a list of blocks seen as one matrix with a dataset row and
//! a scale for every row. Rows leave a pool as `f64`, converted exactly, so what a computation sees
//! does not depend on how the rows are spread over blocks.

use std::collections::HashMap;
use std::ops::Range;

use crate::convert::{brains, bytes, halves, scale_doubles, singles};
use crate::error::{Error, Result};
use crate::rows::{DatasetRow, Position};

/// Bytes that memory gives at a time.
const LINE: usize = 64;

/// The element type of stored rows; all little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// A signed byte; means little without the scale of its row.
    I8,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64; for arrays in memory, never stored.
    F64,
}

impl Dtype {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The name used in Python and in `store.json`: `int8`, `float16`, `bfloat16`, `float32`, `float64`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I8 => "int8",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The inverse of [`Dtype::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::I8, Self::F16, Self::BF16, Self::F32, Self::F64].into_iter().find(|d| d.name() == name)
    }
}

/// The cells of a block, cast once so that reading a row needs no checks.
#[derive(Clone, Copy)]
enum Cells<'a> {
    I8(&'a [i8]),
    F16(&'a [half::f16]),
    BF16(&'a [half::bf16]),
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// What is known of the rows of a block from when they were written, to be held against what is read.
pub trait Written: Sync {
    /// What the rows from `first` on add to the sum that [`Written::check`] takes, modulo 2⁶⁴.
    ///
    /// Of each row its number in the data and the XXH3-64 of its stored bytes with that as the seed: many rows at a time, since to ask
    /// for one costs more than its checksum.
    fn sum(&self, first: usize, hashed: &[(i64, u64)]) -> u64;

    /// Compares the sum over all rows, modulo 2⁶⁴, with that of the rows that were written.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] if they are not the same rows any more.
    fn check(&self, sum: u64) -> Result<()>;
}

/// A borrowed C-contiguous matrix of `rows × dim` cells.
#[derive(Clone, Copy)]
pub struct RowBlock<'a> {
    cells: Cells<'a>,
    rows: usize,
    dim: usize,
    written: Option<&'a dyn Written>,
}

impl<'a> RowBlock<'a> {
    /// Views `bytes` as `rows × dim` little-endian cells of `dtype`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the length is not `rows · dim · dtype.size()`, if `dim` is 0 or if
    /// the bytes are not aligned to the cell size.
    pub fn new(bytes: &'a [u8], dtype: Dtype, rows: usize, dim: usize) -> Result<Self> {
        let wanted = rows.checked_mul(dim).and_then(|cells| cells.checked_mul(dtype.size()));
        if dim == 0 || wanted != Some(bytes.len()) {
            return Err(Error::invalid(
                "gradients",
                format!("{} bytes", bytes.len()),
                format!("{rows} rows × {dim} columns of {} (at least one column)", dtype.name()),
                "Check the shape and the dtype of the source.",
            ));
        }
        let misaligned = |_| {
            Error::invalid(
                "gradients",
                "memory that is not aligned to its cells",
                format!("an address divisible by {}", dtype.size()),
                "Copy the rows into a fresh array.",
            )
        };
        // No bytes may come from anywhere; an empty slice of u64 suits every cell.
        let bytes = if bytes.is_empty() { bytemuck::cast_slice::<u64, u8>(&[]) } else { bytes };
        let cells = match dtype {
            Dtype::I8 => Cells::I8(bytemuck::cast_slice(bytes)),
            Dtype::F16 => Cells::F16(bytemuck::try_cast_slice(bytes).map_err(misaligned)?),
            Dtype::BF16 => Cells::BF16(bytemuck::try_cast_slice(bytes).map_err(misaligned)?),
            Dtype::F32 => Cells::F32(bytemuck::try_cast_slice(bytes).map_err(misaligned)?),
            Dtype::F64 => Cells::F64(bytemuck::try_cast_slice(bytes).map_err(misaligned)?),
        };
        Ok(Self { cells, rows, dim, written: None })
    }

    /// The block with what is known of its rows, which whoever reads all of them compares.
    pub fn with_written(mut self, written: Option<&'a dyn Written>) -> Self {
        self.written = written;
        self
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// The element type.
    const fn dtype(&self) -> Dtype {
        match self.cells {
            Cells::I8(_) => Dtype::I8,
            Cells::F16(_) => Dtype::F16,
            Cells::BF16(_) => Dtype::BF16,
            Cells::F32(_) => Dtype::F32,
            Cells::F64(_) => Dtype::F64,
        }
    }

    /// The stored bytes of row `row`.
    pub fn bytes(&self, row: usize) -> &[u8] {
        let range = row * self.dim..(row + 1) * self.dim;
        match self.cells {
            Cells::I8(cells) => bytemuck::cast_slice(&cells[range]),
            Cells::F16(cells) => bytemuck::cast_slice(&cells[range]),
            Cells::BF16(cells) => bytemuck::cast_slice(&cells[range]),
            Cells::F32(cells) => bytemuck::cast_slice(&cells[range]),
            Cells::F64(cells) => bytemuck::cast_slice(&cells[range]),
        }
    }

    /// Writes row `row` to `out` (`dim` cells), converted exactly.
    ///
    /// # Panics
    /// If `row` or the length of `out` is out of range; callers have checked both.
    pub fn load(&self, row: usize, out: &mut [f64]) {
        self.load_part(row, 0..self.dim, 1.0, out);
    }

    /// Writes the columns `part` of row `row`, times `factor`, to `out`.
    fn load_part(&self, row: usize, part: Range<usize>, factor: f64, out: &mut [f64]) {
        let range = row * self.dim + part.start..row * self.dim + part.end;
        match self.cells {
            Cells::I8(cells) => bytes::widen(&cells[range], factor, out),
            Cells::F16(cells) => halves::widen(&cells[range], factor, out),
            Cells::BF16(cells) => brains::widen(&cells[range], factor, out),
            Cells::F32(cells) => singles::widen(&cells[range], factor, out),
            Cells::F64(cells) => {
                out.iter_mut().zip(&cells[range]).for_each(|(out, cell)| *out = cell * factor);
            }
        }
    }

    /// Writes row `row` times `factor` to `out` (`dim` cells) in single precision.
    fn load_narrow(&self, row: usize, factor: f64, out: &mut [f32]) {
        let range = row * self.dim..(row + 1) * self.dim;
        match self.cells {
            Cells::I8(cells) => bytes::scale(&cells[range], factor, out),
            Cells::F16(cells) => halves::scale(&cells[range], factor, out),
            Cells::BF16(cells) => brains::scale(&cells[range], factor, out),
            Cells::F32(cells) => singles::scale(&cells[range], factor, out),
            Cells::F64(cells) => scale_doubles(&cells[range], factor, out),
        }
    }
}

/// One matrix made of blocks, with a dataset row and a scale for every position.
pub struct Pool<'a> {
    blocks: Vec<RowBlock<'a>>,
    /// `starts[b]` is the first row of block `b`; the last entry is the number of rows.
    starts: Vec<usize>,
    dim: usize,
    index: Option<Vec<i64>>,
    scale: Option<Vec<f64>>,
    /// Powers of two that the cells of some rows are multiplied by before their scale, which could not be a number
    /// otherwise.
    lifts: HashMap<Position, f64>,
}

impl<'a> Pool<'a> {
    /// A pool over `blocks`, rows numbered in their order, dataset row = position, scale 1.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is no row or if two blocks differ in their width.
    pub fn new(blocks: Vec<RowBlock<'a>>) -> Result<Self> {
        let mut starts = vec![0];
        for block in &blocks {
            starts.push(starts[starts.len() - 1] + block.rows);
            if block.dim != blocks[0].dim {
                return Err(Error::invalid(
                    "gradients",
                    format!("blocks of {} and {} columns", blocks[0].dim, block.dim),
                    "one width for all rows",
                    "Put rows of different projections into different stores.",
                ));
            }
        }
        if starts[starts.len() - 1] == 0 {
            return Err(Error::invalid(
                "gradients",
                "no row",
                "at least one row",
                "Extract gradients into the source first.",
            ));
        }
        Ok(Self { dim: blocks[0].dim, blocks, starts, index: None, scale: None, lifts: HashMap::new() })
    }

    /// Gives every position its dataset row: what ties are broken by.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the length is not the number of rows.
    pub fn with_index(mut self, index: Vec<i64>) -> Result<Self> {
        self.check_length("index", index.len())?;
        self.index = Some(index);
        Ok(self)
    }

    /// Gives every row a factor that [`Pool::load`] multiplies its cells by.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the length is not the number of rows.
    pub fn with_scale(mut self, scale: Vec<f64>) -> Result<Self> {
        self.check_length("scale", scale.len())?;
        self.scale = Some(scale);
        Ok(self)
    }

    /// Multiplies the scale of every row by its factor; `factors` yields one for each row.
    pub(crate) fn rescale(&mut self, factors: impl Iterator<Item = f64>) {
        self.scale = Some(match self.scale.take() {
            Some(scale) => {
                scale.into_iter().zip(factors).map(|(scale, factor)| scale * factor).collect()
            }
            None => factors.collect(),
        });
    }

    /// Multiplies the cells of a row by a power of two before they are scaled.
    pub(crate) fn lift(&mut self, position: Position, power: f64) {
        self.lifts.insert(position, power);
    }

    /// The power of two that the cells of a row are multiplied by first; mostly none.
    fn lift_of(&self, position: Position) -> Option<f64> {
        if self.lifts.is_empty() { None } else { self.lifts.get(&position).copied() }
    }

    fn check_length(&self, field: &str, found: usize) -> Result<()> {
        if found == self.len() {
            return Ok(());
        }
        Err(Error::invalid(
            field,
            format!("{found} values"),
            format!("{}, one for each row", self.len()),
            "Give one value for each row of the source.",
        ))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Always false: a pool has at least one row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of columns.
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// The dataset row at `position`.
    pub fn dataset_row(&self, position: Position) -> DatasetRow {
        let place = position.get();
        DatasetRow::new(self.index.as_ref().map_or(place as i64, |index| index[place]))
    }

    /// Rows that follow each other as parts of blocks: the number of each block and its rows.
    pub(crate) fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let first = self.starts.partition_point(|&start| start <= rows.start) - 1;
        let ends = self.starts[first + 1..].iter().zip(&self.starts[first..]).enumerate();
        ends.take_while(move |&(_, (_, &start))| start < rows.end).filter_map(
            move |(more, (&end, &start))| {
                let part = rows.start.max(start) - start..rows.end.min(end) - start;
                (!part.is_empty()).then_some((first + more, part))
            },
        )
    }

    /// The block that holds a row, and the row's number in it.
    fn locate(&self, position: Position) -> (&RowBlock<'a>, usize) {
        let place = position.get();
        let block = self.starts.partition_point(|&start| start <= place) - 1;
        (&self.blocks[block], place - self.starts[block])
    }

    /// Whether two rows are the same bytes with the same scale.
    pub(crate) fn same(&self, a: Position, b: Position) -> bool {
        let ((block_a, local_a), (block_b, local_b)) = (self.locate(a), self.locate(b));
        let scales =
            self.scale.as_ref().is_none_or(|scale| scale[a.get()].to_bits() == scale[b.get()].to_bits())
                && self.lift_of(a) == self.lift_of(b);
        scales && block_a.dtype() == block_b.dtype() && block_a.bytes(local_a) == block_b.bytes(local_b)
    }

    /// A hash of the stored bytes of a row alone.
    pub(crate) fn content_hash(&self, position: Position) -> u64 {
        let (block, local) = self.locate(position);
        xxhash_rust::xxh3::xxh3_64(block.bytes(local))
    }

    /// The factor that a row is multiplied by.
    pub(crate) fn scale(&self, position: Position) -> f64 {
        self.scale.as_ref().map_or(1.0, |scale| scale[position.get()])
    }

    /// A hash of the stored bytes of a row and of its number in the data.
    pub(crate) fn hash(&self, position: Position) -> u64 {
        let (block, local) = self.locate(position);
        xxhash_rust::xxh3::xxh3_64_with_seed(block.bytes(local), self.dataset_row(position).get() as u64)
    }

    /// The dataset row and [`Pool::hash`], for row `local` of block `block`; writes the row, scaled, to `out`.
    pub(crate) fn hash_and_load(&self, block: usize, local: usize, out: &mut [f64]) -> (i64, u64) {
        let (rows, position) = (&self.blocks[block], Position::new(self.starts[block] + local));
        let row = self.dataset_row(position).get();
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(rows.bytes(local), row as u64);
        rows.load_part(local, 0..self.dim, self.scale(position), out);
        (row, hash)
    }

    /// What rows of block `block` from its row `first` on add to the block's sum: see [`Written::sum`].
    pub(crate) fn written_sum(&self, block: usize, first: usize, hashed: &[(i64, u64)]) -> u64 {
        self.blocks[block].written.map_or(0, |written| written.sum(first, hashed))
    }

    /// Compares the sums of the rows' checksums, one for each block, with those of the rows that were written.
    ///
    /// # Errors
    /// [`Error::CorruptStore`] for the first block that has changed.
    pub(crate) fn check_written(&self, sums: impl Iterator<Item = u64>) -> Result<()> {
        (self.blocks.iter().zip(sums))
            .try_for_each(|(block, sum)| block.written.map_or(Ok(()), |written| written.check(sum)))
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Writes the row at `position`, scaled and times `factor`, to `out` (`dim` cells) in single precision.
    pub(crate) fn load_narrow(&self, position: Position, factor: f64, out: &mut [f32]) {
        let (block, local) = self.locate(position);
        let scale = self.scale(position);
        match self.lift_of(position) {
            None => block.load_narrow(local, scale * factor, out),
            Some(_) => {
                let mut wide = vec![0.0; self.dim];
                self.load(position, &mut wide);
                scale_doubles(&wide, factor, out);
            }
        }
    }

    /// Brings a row into the caches, as soon as memory can.
    pub(crate) fn touch(&self, position: Position) {
        let (block, local) = self.locate(position);
        let mut mix = 0;
        for line in block.bytes(local).chunks(LINE) {
            mix ^= line[0];
        }
        std::hint::black_box(mix);
    }

    /// Writes the row at `position`, scaled, to `out` (`dim` cells).
    pub fn load(&self, position: Position, out: &mut [f64]) {
        self.load_part(position, 0..self.dim, out);
    }

    /// Writes the columns `part` of the row at `position`, scaled, to `out`.
    pub(crate) fn load_part(&self, position: Position, part: Range<usize>, out: &mut [f64]) {
        let (block, local) = self.locate(position);
        match self.lift_of(position) {
            None => block.load_part(local, part, self.scale(position), out),
            Some(lift) => {
                block.load_part(local, part, lift, out);
                out.iter_mut().for_each(|cell| *cell *= self.scale(position));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_do_not_depend_on_how_they_are_split_into_blocks() {
        let cells: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&cells);
        let whole = Pool::new(vec![RowBlock::new(bytes, Dtype::F32, 4, 3).unwrap()]).unwrap();
        let parts = Pool::new(vec![
            RowBlock::new(&bytes[..12], Dtype::F32, 1, 3).unwrap(),
            RowBlock::new(&[], Dtype::F32, 0, 3).unwrap(),
            RowBlock::new(&bytes[12..], Dtype::F32, 3, 3).unwrap(),
        ])
        .unwrap();
        for row in 0..4 {
            let (mut a, mut b) = ([0.0; 3], [0.0; 3]);
            whole.load(Position::new(row), &mut a);
            parts.load(Position::new(row), &mut b);
            assert_eq!(a, b);
            assert_eq!(a[0], 3.0 * row as f64);
        }
    }

    #[test]
    fn parts_of_blocks_are_all_rows_in_order() {
        let bytes = [0_u8; 4 * 12];
        let sizes = [0, 3, 0, 1, 5, 0, 0, 2, 1, 0];
        let blocks =
            sizes.map(|rows| RowBlock::new(&bytes[..4 * rows], Dtype::F32, rows, 1).unwrap()).to_vec();
        let pool = Pool::new(blocks).unwrap();
        for first in 0..12 {
            for end in first..=12 {
                let parts = pool.parts(first..end);
                let rows = parts.flat_map(|(block, rows)| rows.map(move |row| (block, row)));
                let found: Vec<usize> = rows.map(|(block, row)| pool.starts[block] + row).collect();
                assert_eq!(found, (first..end).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn lifted_rows_are_read_as_they_are_meant() {
        let cells = [5e-324, -1e-310, 1e300, 2.0];
        let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F64, 2, 2).unwrap();
        let mut pool = Pool::new(vec![block]).unwrap();
        let power = 2.0_f64.powi(1000);
        pool.lift(Position::new(0), power);
        pool.rescale([3.0, 0.5].into_iter());
        let (mut wide, mut narrow) = ([0.0; 2], [0.0; 2]);
        pool.load(Position::new(0), &mut wide);
        assert_eq!(wide, [5e-324 * power * 3.0, -1e-310 * power * 3.0]);
        pool.load_part(Position::new(0), 1..2, &mut wide[..1]);
        assert_eq!(wide[0], wide[1]);
        pool.load_narrow(Position::new(0), 1e20, &mut narrow);
        assert_eq!(narrow[1], (wide[1] * 1e20) as f32);
        pool.load(Position::new(1), &mut wide);
        assert_eq!(wide, [0.5e300, 1.0]);
    }

    #[test]
    fn halves_are_read_exactly_and_scaled() {
        let cells = [half::f16::from_f32(0.5), half::f16::from_f32(-65504.0)];
        let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F16, 1, 2).unwrap();
        let pool = Pool::new(vec![block]).unwrap().with_scale(vec![2.0]).unwrap();
        let mut out = [0.0; 2];
        pool.load(Position::new(0), &mut out);
        assert_eq!(out, [1.0, -131008.0]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(RowBlock::new(&[0; 7], Dtype::F32, 1, 2).is_err());
        assert!(RowBlock::new(&[], Dtype::F32, usize::MAX, usize::MAX).is_err());
        assert!(Pool::new(vec![]).is_err());
    }
}
