//! Reading a pool from end to end: the sums of outer products and inner products that analyses start from.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linalg::{Whitening, add_many_outer_products, stride_of};
use crate::memory;
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::selection::check_alpha;
use crate::survey::{AHEAD, Survey, check_scale};

/// Cells of rows that are added to M together.
const BATCH_CELLS: usize = 1 << 20;

/// Most rows that one task takes through a factor: each block of the factor is made ready once for all of them.
const MOST_ROWS: usize = 512;

/// Tasks that there should be at least, for many threads.
const TASKS: usize = 64;

/// The rows of a pool under one α.
#[derive(Clone, Copy)]
pub(super) struct Passes<'a> {
    pub(super) survey: &'a Survey<'a>,
    pub(super) alpha: f64,
    pub(super) monitor: &'a Monitor,
}

impl<'a> Passes<'a> {
    /// # Errors
    /// [`Error::InvalidInput`] if α is not positive or too large for the rows.
    pub(super) fn new(survey: &'a Survey<'a>, alpha: f64, monitor: &'a Monitor) -> Result<Self> {
        check_alpha(alpha)?;
        check_scale(survey, alpha)?;
        Ok(Self { survey, alpha, monitor })
    }

    /// α‖g‖² of a row.
    pub(super) fn signal(&self, position: Position) -> f64 {
        self.alpha * self.survey.norm_sq(position)
    }

    /// Rows that are added to M together.
    fn batch(&self) -> usize {
        (BATCH_CELLS / self.survey.dim()).clamp(64, 1024)
    }

    /// Rows that one task takes through a factor; it depends on the pool alone, as do the bits of a result.
    pub(super) fn chunk(&self) -> usize {
        let rows = self.survey.len().div_ceil(TASKS).next_multiple_of(64);
        rows.min(MOST_ROWS).min((4 * BATCH_CELLS / self.survey.dim()).next_multiple_of(64))
    }

    /// Terms that a cell of I + α Σ ggᵀ over `count` rows sums up, batch by batch.
    pub(super) fn terms(&self, count: usize) -> usize {
        self.batch().min(count) + count.div_ceil(self.batch()) + 8
    }

    /// Adds α Σ ggᵀ over some rows to the lower triangle of `matrix` (d × d).
    pub(super) fn add_rows(&self, matrix: &mut [f64], positions: &[Position]) -> Result<()> {
        let dim = self.survey.dim();
        let stride = stride_of(dim);
        let mut cells = vec![0.0; self.batch().min(positions.len()) * stride];
        for batch in positions.chunks(self.batch()) {
            self.monitor.check()?;
            let cells = &mut cells[..batch.len() * stride];
            let parts = batch.par_chunks(AHEAD).zip(cells.par_chunks_mut(AHEAD * stride));
            parts.for_each(|(positions, cells)| self.load(positions, cells, stride));
            add_many_outer_products(matrix, dim, cells, self.alpha);
            self.monitor.add_surveyed(batch.len());
        }
        Ok(())
    }

    /// The rows themselves, `stride` cells from one to the next.
    fn load(&self, positions: &[Position], cells: &mut [f64], stride: usize) {
        let dim = self.survey.dim();
        for (ahead, cells) in positions.chunks(AHEAD).zip(cells.chunks_mut(AHEAD * stride)) {
            self.survey.fetch(ahead.iter().copied());
            let places = ahead.iter().zip(cells.chunks_exact_mut(stride));
            places.for_each(|(&position, cells)| self.survey.load(position, &mut cells[..dim]));
        }
    }

    /// Calls `work` with every chunk of the pool's rows, as (first row, cells, its part of `out`), on all threads; `out`
    /// has `width` numbers for each row.
    pub(super) fn map_rows(
        &self,
        width: usize,
        out: &mut [f64],
        work: impl Fn(&mut [f64], &mut [f64]) -> Result<()> + Sync,
    ) -> Result<()> {
        let dim = self.survey.dim();
        let chunks = out.par_chunks_mut(self.chunk() * width).enumerate();
        chunks.with_max_len(1).try_for_each_init(Vec::new, |cells, (chunk, out)| {
            self.monitor.check()?;
            let first = chunk * self.chunk();
            let positions: Vec<Position> =
                (first..first + out.len() / width).map(Position::new).collect();
            cells.resize(positions.len() * dim, 0.0);
            self.load(&positions, cells, dim);
            work(cells, out)?;
            self.monitor.add_surveyed(positions.len());
            Ok(())
        })
    }

    /// I + αGGᵀ, G the matrix of some rows: its lower triangle, column after column.
    pub(super) fn gram(&self, positions: &[Position]) -> Result<Vec<f64>> {
        let (dim, count) = (self.survey.dim(), positions.len());
        let mut matrix = identity(count);
        // In bands of columns: a band, transposed, is a list of rows of `count` cells.
        let band = (BATCH_CELLS / count + 1).next_multiple_of(64).min(dim);
        let mut done = 0;
        for first in (0..dim).step_by(band) {
            self.monitor.check()?;
            let columns = self.transposed(positions, first, band.min(dim - first), stride_of(count));
            add_many_outer_products(&mut matrix, count, &columns, self.alpha);
            let share = count * (first + band).min(dim) / dim;
            self.monitor.add_surveyed(share - done);
            done = share;
        }
        Ok(matrix)
    }

    /// The columns `first .. first + width` of some rows, `stride` cells from one to the next.
    pub(super) fn transposed(
        &self,
        positions: &[Position],
        first: usize,
        width: usize,
        stride: usize,
    ) -> Vec<f64> {
        let mut columns = vec![0.0; width * stride];
        let mut cells = vec![0.0; AHEAD * width];
        for (part, positions) in positions.chunks(AHEAD).enumerate() {
            self.survey.fetch(positions.iter().copied());
            for (&position, cells) in positions.iter().zip(cells.chunks_exact_mut(width)) {
                self.survey.load_part(position, first..first + width, cells);
            }
            for (j, column) in columns.chunks_exact_mut(stride).enumerate() {
                let column = &mut column[part * AHEAD..][..positions.len()];
                column
                    .iter_mut()
                    .zip(cells[j..].iter().step_by(width))
                    .for_each(|(to, &cell)| *to = cell);
            }
        }
        columns
    }

    /// Factors the lower triangle of a matrix of cells that sum up `terms` terms.
    pub(super) fn factor(&self, matrix: Vec<f64>, size: usize, terms: usize) -> Result<Whitening> {
        Whitening::new(matrix, size, terms, || self.monitor.check())?.ok_or_else(|| {
            Error::invalid(
                "alpha",
                self.alpha,
                "I + alpha F within float64",
                "Lower alpha, or use normalize=\"unit\".",
            )
        })
    }

    /// # Errors
    /// [`Error::InvalidInput`] if `bytes` are more memory than there is.
    pub(super) fn check_memory(&self, bytes: f64) -> Result<()> {
        let found = || format!("{} rows of {} columns to analyse", self.survey.len(), self.survey.dim());
        let remedy = "Project the gradients to fewer columns, or analyse fewer rows.";
        memory::check("source", found, bytes, remedy)
    }
}

pub(super) fn identity(size: usize) -> Vec<f64> {
    let mut matrix = vec![0.0; size * size];
    (0..size).for_each(|i| matrix[i * size + i] = 1.0);
    matrix
}
