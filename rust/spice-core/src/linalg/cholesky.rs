//! The Cholesky factor of I + αF, its inverse, and the sum of outer products that it is taken of.

use std::collections::VecDeque;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::error::Result;

/// Columns of a symmetric matrix that one task updates.
const PANEL: usize = 128;

/// Adds `alpha · Σ r rᵀ` to the lower triangle of a symmetric matrix.
///
/// `matrix` holds `dim × dim` cells, column after column; `rows` holds rows of `dim` cells. Cells
/// above the diagonal are left in an unspecified state.
pub fn add_outer_products(matrix: &mut [f64], dim: usize, rows: &[f64], alpha: f64) {
    let count = rows.len() / dim;
    if count == 0 {
        return;
    }
    let columns = MatRef::from_column_major_slice(rows, dim, count); // (d, t): a row of the pool is a column
    let update = |(panel, cells): (usize, &mut [f64])| {
        let (first, width) = (panel * PANEL, cells.len() / dim);
        let below = dim - first;
        let target = MatMut::from_column_major_slice_mut(cells, dim, width).subrows_mut(first, below);
        let (lhs, rhs) = (columns.subrows(first, below), columns.subrows(first, width).transpose());
        matmul(target, Accum::Add, lhs, rhs, alpha, Par::Seq);
    };
    // A long panel and a short one are one task: all tasks take equally long.
    let mut panels: VecDeque<_> = matrix.chunks_mut(dim * PANEL).enumerate().collect();
    let mut tasks = Vec::with_capacity(panels.len().div_ceil(2));
    while let Some(long) = panels.pop_front() {
        tasks.push((long, panels.pop_back()));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(long, short)| {
        update(long);
        short.into_iter().for_each(update);
    });
}

/// Cells of right-hand sides that are solved for in one go.
const SOLVED: usize = 512;

/// The Cholesky factor `L` of a symmetric positive definite matrix.
pub struct Cholesky {
    /// `dim × dim` cells, column after column; those above the diagonal mean nothing.
    cells: Vec<f64>,
    dim: usize,
}

impl Cholesky {
    /// Factors the matrix whose lower triangle is in `matrix` (column after column).
    ///
    /// Returns `None` if the matrix is not numerically positive definite. I + αF is, unless αF is so
    /// large that I is lost in its rounding. Panels are factored one after the other, and what is right
    /// of a panel is updated on all threads; `alive` is asked before each.
    ///
    /// # Errors
    /// Whatever `alive` returns.
    pub fn new(
        mut matrix: Vec<f64>,
        dim: usize,
        alive: impl Fn() -> Result<()>,
    ) -> Result<Option<Self>> {
        let params = faer::Spec::default();
        let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(PANEL, Par::Seq, params));
        for first in (0..dim).step_by(PANEL) {
            alive()?;
            let width = PANEL.min(dim - first);
            let (done, right) = matrix.split_at_mut((first + width) * dim);
            let panel = MatMut::from_column_major_slice_mut(&mut done[first * dim..], dim, width);
            let (mut diagonal, mut below) =
                panel.subrows_mut(first, dim - first).split_at_row_mut(width);
            let stack = MemStack::new(&mut memory);
            if cholesky_in_place(diagonal.rb_mut(), Default::default(), Par::Seq, stack, params).is_err()
            {
                return Ok(None);
            }
            // X Lᵀ = B, read as L Xᵀ = Bᵀ.
            solve_lower_triangular_in_place(diagonal.rb(), below.rb_mut().transpose_mut(), Par::Seq);
            let below = below.rb();
            right.par_chunks_mut(dim * PANEL).enumerate().for_each(|(number, cells)| {
                let (offset, columns) = (number * PANEL, cells.len() / dim);
                let rows = dim - first - width - offset;
                let target = MatMut::from_column_major_slice_mut(cells, dim, columns);
                let target = target.subrows_mut(dim - rows, rows);
                let (lhs, rhs) =
                    (below.subrows(offset, rows), below.subrows(offset, columns).transpose());
                matmul(target, Accum::Add, lhs, rhs, -1.0, Par::Seq);
            });
        }
        let sound = (0..dim).all(|i| matrix[i * dim + i].is_finite() && matrix[i * dim + i] > 0.0);
        if !sound {
            return Ok(None);
        }
        Ok(Some(Self { cells: matrix, dim }))
    }

    /// `L⁻¹`, row after row (`dim × dim` cells, zero above the diagonal).
    ///
    /// Its columns are found in panels, on all threads; `alive` is asked before each panel.
    ///
    /// # Errors
    /// Whatever `alive` returns.
    pub fn inverse(&self, alive: impl Fn() -> Result<()> + Sync) -> Result<Vec<f64>> {
        let dim = self.dim;
        let factor = MatRef::from_column_major_slice(&self.cells, dim, dim);
        let mut transposed = vec![0.0; dim * dim]; // column after column
        let panels: Vec<_> = transposed.chunks_mut(dim * PANEL).enumerate().collect();
        // Wide triangles first: they take longest.
        panels.into_par_iter().with_max_len(1).try_for_each(|(panel, cells)| {
            alive()?;
            let (first, width) = (panel * PANEL, cells.len() / dim);
            (0..width).for_each(|column| cells[column * dim + first + column] = 1.0);
            let below = dim - first;
            let target =
                MatMut::from_column_major_slice_mut(cells, dim, width).subrows_mut(first, below);
            solve_lower_triangular_in_place(
                factor.submatrix(first, first, below, below),
                target,
                Par::Seq,
            );
            Ok(())
        })?;
        transpose_lower(&mut transposed, dim);
        Ok(transposed)
    }

    /// Replaces each right-hand side `b` (rows of `dim` cells) by `L⁻¹ b`, on one thread.
    ///
    /// `alive` is asked before every `SOLVED` cells of them: before `SOLVED · dim · rows` multiplications at most.
    ///
    /// # Errors
    /// Whatever `alive` returns.
    pub fn solve_lower(
        &self,
        right_hand_sides: &mut [f64],
        alive: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let count = right_hand_sides.len() / self.dim;
        let factor = MatRef::from_column_major_slice(&self.cells, self.dim, self.dim);
        let mut target = MatMut::from_column_major_slice_mut(right_hand_sides, self.dim, count);
        for first in (0..self.dim).step_by(SOLVED) {
            alive()?;
            let width = SOLVED.min(self.dim - first);
            let rest = self.dim - first - width;
            let (mut part, mut below) =
                target.rb_mut().subrows_mut(first, width + rest).split_at_row_mut(width);
            let diagonal = factor.submatrix(first, first, width, width);
            solve_lower_triangular_in_place(diagonal, part.rb_mut(), Par::Seq);
            let under = factor.submatrix(first + width, first, rest, width);
            matmul(below.rb_mut(), Accum::Add, under, part.rb(), -1.0, Par::Seq);
        }
        Ok(())
    }

    /// `log det` of every leading minor of `L Lᵀ`, the smallest first.
    pub fn log_dets(&self) -> Vec<f64> {
        let mut sum = 0.0;
        let add = |i: usize| {
            sum += self.cells[i * self.dim + i].ln();
            2.0 * sum
        };
        (0..self.dim).map(add).collect()
    }
}

/// `log det` of the leading minors of I + A, A positive semi-definite, to the digits of A and not to those of I + A.
pub struct LogDets(Vec<f64>);

impl LogDets {
    /// From the factor of I + A and the diagonal of A (before 1 was added to it).
    pub fn new(factor: &Cholesky, diagonal: &[f64]) -> Self {
        let (dim, cells) = (factor.dim, &factor.cells);
        // What the columns before take off each pivot: Σ_k L_ik².
        let mut taken = vec![0.0; dim];
        for (k, column) in cells.chunks_exact(dim.max(1)).enumerate() {
            let below = taken[k + 1..].iter_mut().zip(&column[k + 1..]);
            below.for_each(|(taken, cell)| *taken += cell * cell);
        }
        let mut sum = 0.0;
        let minors = diagonal.iter().zip(taken).enumerate().map(|(i, (&diagonal, taken))| {
            // The pivot is 1 + a; where a is small, only a has the digits. Where A_ii is not, log det is of its size too.
            sum += if diagonal < 1.0 {
                (diagonal - taken).max(0.0).ln_1p()
            } else {
                2.0 * cells[i * dim + i].ln()
            };
            sum
        });
        Self(minors.collect())
    }

    /// All of them, the smallest minor's first.
    pub fn all(self) -> Vec<f64> {
        self.0
    }

    /// That of I + A; 0 if A has no rows.
    pub fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }
}

/// Turns a lower triangle from column-major to row-major order and clears what is above it.
fn transpose_lower(matrix: &mut [f64], dim: usize) {
    const TILE: usize = 32;
    for column_tile in (0..dim).step_by(TILE) {
        for row_tile in (column_tile..dim).step_by(TILE) {
            for column in column_tile..(column_tile + TILE).min(dim) {
                for row in row_tile.max(column + 1)..(row_tile + TILE).min(dim) {
                    matrix[row * dim + column] = std::mem::take(&mut matrix[column * dim + row]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::Kernels;

    fn cells(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn identity(dim: usize) -> Vec<f64> {
        let mut matrix = vec![0.0; dim * dim];
        (0..dim).for_each(|i| matrix[i * dim + i] = 1.0);
        matrix
    }

    #[test]
    fn the_inverse_factor_whitens_the_factored_matrix() {
        // X M Xᵀ = I, with M = I + 2 Σ r rᵀ applied to the rows of X one by one.
        let kernels = Kernels::default();
        for dim in [1, 2, 7, 130, 300] {
            let rows = cells(3 * dim, 3);
            let mut matrix = identity(dim);
            add_outer_products(&mut matrix, dim, &rows, 2.0);
            let inverse =
                Cholesky::new(matrix, dim, || Ok(())).unwrap().unwrap().inverse(|| Ok(())).unwrap();
            for i in 0..dim {
                let x = &inverse[i * dim..][..dim];
                assert!(x[i + 1..].iter().all(|&cell| cell == 0.0));
                let mut image = x.to_vec();
                for row in rows.chunks_exact(dim) {
                    let factor = 2.0 * kernels.dot(row, x);
                    image.iter_mut().zip(row).for_each(|(image, cell)| *image += factor * cell);
                }
                for j in [0, i / 2, i, dim - 1] {
                    let product = kernels.dot(&image, &inverse[j * dim..][..dim]);
                    let expected = f64::from(u8::from(i == j));
                    assert!((product - expected).abs() < 1e-10, "dim {dim}: {i}, {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn log_det_of_a_diagonal_matrix() {
        let factor = Cholesky::new(vec![4.0, 0.0, 0.0, 9.0], 2, || Ok(())).unwrap().unwrap();
        assert!((factor.log_dets()[1] - 36.0_f64.ln()).abs() < 1e-15);
        assert!((LogDets::new(&factor, &[3.0, 8.0]).last() - 36.0_f64.ln()).abs() < 1e-15);
        assert!(Cholesky::new(vec![-1.0], 1, || Ok(())).unwrap().is_none());
        assert!(Cholesky::new(vec![1.0], 1, || Err(crate::Error::Interrupted)).is_err());
        assert!(factor.inverse(|| Err(crate::Error::Interrupted)).is_err());
    }

    #[test]
    fn no_step_is_long_between_two_questions_whether_to_go_on() {
        let (dim, count) = (1200, 512);
        let mut matrix = identity(dim);
        add_outer_products(&mut matrix, dim, &cells(3 * dim, 5), 1.0);
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let ask = || {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        };
        let questions = || asked.swap(0, std::sync::atomic::Ordering::Relaxed);
        let factor = Cholesky::new(matrix, dim, ask).unwrap().unwrap();
        assert_eq!(questions(), dim.div_ceil(PANEL));
        factor.inverse(ask).unwrap();
        assert_eq!(questions(), dim.div_ceil(PANEL));
        let mut rows = cells(count * dim, 9);
        let mut one = rows[7 * dim..8 * dim].to_vec();
        factor.solve_lower(&mut rows, ask).unwrap();
        assert_eq!(questions(), dim.div_ceil(SOLVED));
        // A second's work of a slow core, at the widest factor and the most rows of an analysis.
        const { assert!(2 * SOLVED * 8192 * 512 <= 5_000_000_000) }
        const { assert!(2 * PANEL * 8192 * 8192 <= 20_000_000_000) }
        // The parts are those of one solution.
        factor.solve_lower(&mut one, || Ok(())).unwrap();
        assert!(one.iter().zip(&rows[7 * dim..]).all(|(a, b)| (a - b).abs() < 1e-10));
        for last in 0..3 {
            let stop = || {
                ask()?;
                if asked.load(std::sync::atomic::Ordering::Relaxed) > last {
                    return Err(crate::Error::Interrupted);
                }
                Ok(())
            };
            assert!(factor.solve_lower(&mut rows, stop).is_err());
            assert_eq!(questions(), last + 1);
        }
    }

    #[test]
    fn log_det_of_what_the_identity_swallows() {
        // A = s·rrᵀ: log det(I + A) = log(1 + s‖r‖²), 14 for this r.
        for power in 0..=306 {
            let scale = 10f64.powi(-power);
            let mut matrix = vec![0.0; 9];
            add_outer_products(&mut matrix, 3, &[1.0, 2.0, 3.0], scale);
            let diagonal: Vec<f64> = (0..3).map(|i| matrix[4 * i]).collect();
            (0..3).for_each(|i| matrix[4 * i] += 1.0);
            let factor = Cholesky::new(matrix, 3, || Ok(())).unwrap().unwrap();
            let found = LogDets::new(&factor, &diagonal).last();
            let expected = (14.0 * scale).ln_1p();
            assert!((found / expected - 1.0).abs() < 1e-14, "{scale}: {found}, {expected}");
        }
    }
}
