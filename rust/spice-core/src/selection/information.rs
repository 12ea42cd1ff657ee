//! U = log det(I + αF) of sets of rows and of all their prefixes, from the definition: the criterion of D-optimal design, and the
//! log-probability of a DPP but for its constant.

use rayon::prelude::*;

use super::settings::check_alpha;
use crate::error::{Error, Result};
use crate::linalg::{Cholesky, LogDets, add_outer_products};
use crate::memory;
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{AHEAD, Survey, check_positions, check_scale};

/// Rows that are added to M together.
const BATCH: usize = 256;

/// Cells of rows that [`gram`] multiplies with each other in one go.
const BAND_CELLS: usize = 1 << 20;

/// Rows of a chunk of [`log_dets`], where there are more rows than columns.
const LONGEST_CHUNK: usize = 4096;

/// U(S) = log det(I + αF_S) of any rows, by the smaller of the two Gram matrices.
///
/// # Errors
/// [`Error::InvalidInput`] if a row is out of range or α is not positive; [`Error::Interrupted`].
pub fn log_det(
    survey: &Survey<'_>,
    alpha: f64,
    positions: &[Position],
    monitor: &Monitor,
) -> Result<f64> {
    check_alpha(alpha)?;
    check_scale(survey, alpha)?;
    check_positions(survey, positions)?;
    if positions.is_empty() {
        return Ok(0.0);
    }
    let dim = survey.dim();
    check_memory(positions.len(), dim, (dim.min(positions.len()) as f64).powi(2))?;
    let (_, log_dets) = if dim <= positions.len() {
        let mut matrix = vec![0.0; dim * dim];
        add_rows(&mut matrix, survey, alpha, positions, monitor)?;
        factor(matrix, dim, alpha, monitor)?
    } else {
        factor(gram(survey, alpha, positions, monitor)?, positions.len(), alpha, monitor)?
    };
    Ok(log_dets.last())
}

/// U of every prefix of a list of rows: the t-th number is U of the first t + 1 rows.
///
/// The leading minors of I + αGGᵀ are the determinants wanted, and a Cholesky factor has them all on its
/// diagonal. Where there are more rows than columns, the rows go in chunks: with M = LLᵀ what the chunks before
/// amount to and z = L⁻¹g, det(M + αGᵀG) = det(M)·det(I + αZZᵀ). So a chunk never has more rows than there are
/// columns, no digits are lost to the rank, and all of it costs some three times what the last number alone does.
///
/// # Errors
/// As [`log_det`].
pub fn log_dets(
    survey: &Survey<'_>,
    alpha: f64,
    positions: &[Position],
    monitor: &Monitor,
) -> Result<Vec<f64>> {
    check_alpha(alpha)?;
    check_positions(survey, positions)?;
    if positions.is_empty() {
        return Ok(Vec::new());
    }
    let dim = survey.dim();
    let length = if positions.len() <= dim { positions.len() } else { dim.min(LONGEST_CHUNK) };
    let square = |size: usize| (size as f64).powi(2);
    let more = if positions.len() > dim { 2.0 * (square(dim) + (length * dim) as f64) } else { 0.0 };
    check_memory(positions.len(), dim, square(length) + more)?;
    let (first, rest) = positions.split_at(length);
    let mut series = factor(gram(survey, alpha, first, monitor)?, length, alpha, monitor)?.1.all();
    if rest.is_empty() {
        return Ok(series);
    }
    let mut matrix = vec![0.0; dim * dim];
    add_rows(&mut matrix, survey, alpha, first, monitor)?;
    for chunk in rest.chunks(length) {
        let (base, log_dets) = factor(matrix.clone(), dim, alpha, monitor)?;
        let mut solved = vec![0.0; chunk.len() * dim];
        for (&position, cells) in chunk.iter().zip(solved.chunks_exact_mut(dim)) {
            survey.load(position, cells);
        }
        for batch in solved.chunks(BATCH * dim) {
            monitor.check()?;
            add_outer_products(&mut matrix, dim, batch, alpha);
        }
        solved
            .par_chunks_mut(64 * dim)
            .try_for_each(|rows| base.solve_lower(rows, || monitor.check()))?;
        let mut small = vec![0.0; chunk.len() * chunk.len()];
        for batch in transposed(&solved, dim).chunks(BATCH * chunk.len()) {
            monitor.check()?;
            add_outer_products(&mut small, chunk.len(), batch, alpha);
        }
        let before = log_dets.last();
        let within = factor(small, chunk.len(), alpha, monitor)?.1.all();
        series.extend(within.iter().map(|log_det| before + log_det));
    }
    Ok(series)
}

/// # Errors
/// [`Error::InvalidInput`] if so many numbers are more than memory holds.
fn check_memory(rows: usize, dim: usize, numbers: f64) -> Result<()> {
    let found = || format!("log det of {rows} rows of {dim} columns");
    let remedy = "Take fewer rows, or project the gradients to fewer columns.";
    memory::check("rows", found, 8.0 * numbers, remedy)
}

/// Adds α Σ ggᵀ over some rows to the lower triangle of `matrix`.
fn add_rows(
    matrix: &mut [f64],
    survey: &Survey<'_>,
    alpha: f64,
    positions: &[Position],
    monitor: &Monitor,
) -> Result<()> {
    let dim = survey.dim();
    let mut cells = Vec::new();
    for batch in positions.chunks(BATCH) {
        monitor.check()?;
        cells.resize(batch.len() * dim, 0.0);
        let parts = batch.par_chunks(AHEAD).zip(cells.par_chunks_mut(AHEAD * dim));
        parts.for_each(|(positions, cells)| {
            survey.fetch(positions.iter().copied());
            positions
                .iter()
                .zip(cells.chunks_exact_mut(dim))
                .for_each(|(&position, cells)| survey.load(position, cells));
        });
        add_outer_products(matrix, dim, &cells, alpha);
    }
    Ok(())
}

/// αGGᵀ, G the matrix of some rows: its lower triangle.
fn gram(survey: &Survey<'_>, alpha: f64, positions: &[Position], monitor: &Monitor) -> Result<Vec<f64>> {
    let (dim, count) = (survey.dim(), positions.len());
    let mut matrix = vec![0.0; count * count];
    // In bands of columns: a band, transposed, is a list of rows of `count` cells.
    let band = (BAND_CELLS / count + 1).min(dim);
    let mut cells = vec![0.0; band];
    for first in (0..dim).step_by(band) {
        monitor.check()?;
        let width = band.min(dim - first);
        let mut columns = vec![0.0; width * count];
        for (i, &position) in positions.iter().enumerate() {
            survey.load_part(position, first..first + width, &mut cells[..width]);
            for (j, cell) in cells[..width].iter().enumerate() {
                columns[j * count + i] = *cell;
            }
        }
        add_outer_products(&mut matrix, count, &columns, alpha);
    }
    Ok(matrix)
}

/// Rows of `dim` cells as columns.
fn transposed(rows: &[f64], dim: usize) -> Vec<f64> {
    let count = rows.len() / dim;
    let mut columns = vec![0.0; rows.len()];
    for (i, row) in rows.chunks_exact(dim).enumerate() {
        for (j, cell) in row.iter().enumerate() {
            columns[j * count + i] = *cell;
        }
    }
    columns
}

/// The factor of I and a matrix, and its logarithms of determinants.
fn factor(
    mut matrix: Vec<f64>,
    size: usize,
    alpha: f64,
    monitor: &Monitor,
) -> Result<(Cholesky, LogDets)> {
    let signal: Vec<f64> = (0..size).map(|i| matrix[i * size + i]).collect();
    (0..size).for_each(|i| matrix[i * size + i] += 1.0);
    let factor = Cholesky::new(matrix, size, || monitor.check())?.ok_or_else(|| {
        Error::invalid(
            "alpha",
            alpha,
            "I + alpha F within float64",
            "Lower alpha, or use normalize=\"unit\".",
        )
    })?;
    let log_dets = LogDets::new(&factor, &signal);
    Ok((factor, log_dets))
}
