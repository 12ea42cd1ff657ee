//! Kernels whose result depends on their operands alone.
//!
//! Everything that decides a pick is computed here in `f64`, in one fixed order of operations:
//! thirty-two running sums, added pairwise at the end, products and sums rounded separately. Wider
//! registers, another number of threads or another batch give the same bits. Vector instructions
//! are chosen at run time ([`pulp`]); a fused multiply-add would be faster still, but then a machine
//! without one would pick differently.
//!
//! Matrix products and factorisations are faer's, run on one thread over blocks of fixed size, and
//! blocks are what is spread over threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::error::Result;

/// Running sums of a dot product: four AVX-512 registers, eight AVX2 registers or sixteen NEON ones.
const LANES: usize = 32;

/// Columns of a symmetric matrix that one task updates.
const PANEL: usize = 128;

/// Vector kernels, with the instruction set chosen once.
#[derive(Clone, Copy)]
pub struct Kernels {
    arch: pulp::Arch,
}

impl Default for Kernels {
    fn default() -> Self {
        Self { arch: pulp::Arch::new() }
    }
}

impl Kernels {
    /// `Σ a_i b_i` over the shorter of the two.
    pub fn dot(self, a: &[f64], b: &[f64]) -> f64 {
        self.arch.dispatch(Dot(a, b))
    }

    /// `Σ a_i² b_i` over the shorter of the two.
    pub fn dot_squared(self, a: &[f64], b: &[f64]) -> f64 {
        self.arch.dispatch(DotSquared(a, b))
    }

    /// `y += factor · x`.
    pub fn add_scaled(self, y: &mut [f64], factor: f64, x: &[f64]) {
        self.arch.dispatch(AddScaled(y, factor, x));
    }
}

struct Dot<'a>(&'a [f64], &'a [f64]);

impl WithSimd for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let scalar = |a: f64, b: f64| a * b;
        let vector = |a, b| simd.mul_f64s(a, b);
        sum_lanes(simd, self.0, self.1, scalar, vector)
    }
}

struct DotSquared<'a>(&'a [f64], &'a [f64]);

impl WithSimd for DotSquared<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let scalar = |a: f64, b: f64| a * a * b;
        let vector = |a, b| simd.mul_f64s(simd.mul_f64s(a, a), b);
        sum_lanes(simd, self.0, self.1, scalar, vector)
    }
}

struct AddScaled<'a>(&'a mut [f64], f64, &'a [f64]);

impl WithSimd for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (y, &x) in self.0.iter_mut().zip(self.2) {
            *y += self.1 * x;
        }
    }
}

/// Sums `term(a_i, b_i)`: term i goes to running sum i mod [`LANES`], whatever the registers' width.
#[inline(always)]
fn sum_lanes<S: Simd>(
    simd: S,
    a: &[f64],
    b: &[f64],
    scalar: impl Fn(f64, f64) -> f64,
    vector: impl Fn(S::f64s, S::f64s) -> S::f64s,
) -> f64 {
    let len = a.len().min(b.len());
    let whole = len - len % LANES;
    let (a, a_rest) = a[..len].split_at(whole);
    let (b, b_rest) = b[..len].split_at(whole);
    let registers = LANES / S::F64_LANES;
    let (a, b) = (S::as_simd_f64s(a).0, S::as_simd_f64s(b).0);
    let mut partial = [simd.splat_f64s(0.0); LANES]; // the first `registers` of them
    for (a, b) in a.chunks_exact(registers).zip(b.chunks_exact(registers)) {
        for register in 0..registers {
            partial[register] = simd.add_f64s(partial[register], vector(a[register], b[register]));
        }
    }
    let mut sums = [0.0; LANES];
    S::as_mut_simd_f64s(&mut sums).0.copy_from_slice(&partial[..registers]);
    for (sum, (&a, &b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += scalar(a, b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `a + b` as its rounded value and the exact rest (Knuth).
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// `Σ a_i (high_i + low_i)` as if computed in twice the digits (Ogita, Rump and Oishi's Dot2).
///
/// For sums that cancel; some twenty times the cost of [`Kernels::dot`].
pub(crate) fn dot_twofold(a: &[f64], high: &[f64], low: &[f64]) -> f64 {
    let (mut sum, mut rest) = (0.0, 0.0);
    for ((&a, &high), &low) in a.iter().zip(high).zip(low) {
        let product = a * high;
        let (next, lost) = two_sum(sum, product);
        sum = next;
        rest += a.mul_add(high, -product) + lost + a * low;
    }
    sum + rest
}

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
    matrix.par_chunks_mut(dim * PANEL).enumerate().for_each(|(panel, cells)| {
        let (first, width) = (panel * PANEL, cells.len() / dim);
        let below = dim - first;
        let target = MatMut::from_column_major_slice_mut(cells, dim, width).subrows_mut(first, below);
        let (lhs, rhs) = (columns.subrows(first, below), columns.subrows(first, width).transpose());
        matmul(target, Accum::Add, lhs, rhs, alpha, Par::Seq);
    });
}

/// The Cholesky factor `L` of a symmetric positive definite matrix, row after row.
pub struct Cholesky {
    /// `dim × dim` cells; only those on and below the diagonal mean anything.
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
        mirror_lower(&mut matrix, dim);
        Ok(Some(Self { cells: matrix, dim }))
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.cells[row * self.dim..][..=row]
    }

    /// Replaces each right-hand side `b` (rows of `dim` cells) by `L⁻¹ b`.
    ///
    /// A right-hand side goes through the same operations whatever its neighbours are; they only
    /// share the reading of `L`.
    pub fn solve_lower(&self, kernels: Kernels, right_hand_sides: &mut [f64]) {
        for i in 0..self.dim {
            let row = self.row(i);
            for z in right_hand_sides.chunks_exact_mut(self.dim) {
                z[i] = (z[i] - kernels.dot(&row[..i], &z[..i])) / row[i];
            }
        }
    }

    /// Replaces `z` by `L⁻ᵀ z`.
    pub fn solve_upper(&self, kernels: Kernels, z: &mut [f64]) {
        for i in (0..self.dim).rev() {
            let row = self.row(i);
            z[i] /= row[i];
            let factor = -z[i];
            kernels.add_scaled(&mut z[..i], factor, &row[..i]);
        }
    }

    /// [`Cholesky::solve_lower`] of many right-hand sides, in faer's order of operations.
    pub fn solve_lower_blocked(&self, right_hand_sides: &mut [f64]) {
        let count = right_hand_sides.len() / self.dim;
        let factor = MatRef::from_row_major_slice(&self.cells, self.dim, self.dim);
        let target = MatMut::from_column_major_slice_mut(right_hand_sides, self.dim, count);
        solve_lower_triangular_in_place(factor, target, Par::Seq);
    }

    /// `log det` of every leading minor of `L Lᵀ`, the smallest first.
    pub fn log_dets(&self) -> Vec<f64> {
        let mut sum = 0.0;
        let mut add = |i: usize| {
            sum += self.cells[i * self.dim + i].ln();
            2.0 * sum
        };
        (0..self.dim).map(&mut add).collect()
    }

    /// `log det(L Lᵀ)`.
    pub fn log_det(&self) -> f64 {
        2.0 * (0..self.dim).map(|i| self.cells[i * self.dim + i].ln()).sum::<f64>()
    }
}

/// Turns a column-major lower triangle into a row-major one, so that a solve reads whole rows.
fn mirror_lower(matrix: &mut [f64], dim: usize) {
    const TILE: usize = 32;
    for column_tile in (0..dim).step_by(TILE) {
        for row_tile in (column_tile..dim).step_by(TILE) {
            for column in column_tile..(column_tile + TILE).min(dim) {
                for row in row_tile.max(column + 1)..(row_tile + TILE).min(dim) {
                    matrix[row * dim + column] = matrix[column * dim + row];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn the_width_of_registers_does_not_show() {
        let kernels = Kernels::default();
        for len in [5, 16, 100, 1001] {
            let (a, b) = (cells(len, 7), cells(len, 8));
            let narrow = Dot(&a, &b).with_simd(pulp::Scalar);
            assert_eq!(kernels.dot(&a, &b).to_bits(), narrow.to_bits());
            let narrow = DotSquared(&a, &b).with_simd(pulp::Scalar);
            assert_eq!(kernels.dot_squared(&a, &b).to_bits(), narrow.to_bits());
        }
    }

    #[test]
    fn twofold_dots_survive_cancellation() {
        let c = 1e-6_f64;
        let high = [3.0 * c, -1.0, 3.0 * c];
        let low = [c.mul_add(3.0, -high[0]), 0.0, c.mul_add(3.0, -high[2])];
        assert_eq!(dot_twofold(&[c, 0.0, -c], &high, &low), 0.0);
        assert_eq!(dot_twofold(&[1e17, 1.0, -1e17], &[1.0; 3], &[0.0; 3]), 1.0);
    }

    #[test]
    fn dots_agree_with_the_definition_at_every_length() {
        let kernels = Kernels::default();
        for len in 0..70 {
            let (a, b) = (cells(len, 1), cells(len, 2));
            let naive: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((kernels.dot(&a, &b) - naive).abs() < 1e-13);
            let naive: f64 = a.iter().zip(&b).map(|(a, b)| a * a * b).sum();
            assert!((kernels.dot_squared(&a, &b) - naive).abs() < 1e-13);
        }
    }

    #[test]
    fn solves_invert_the_factored_matrix() {
        let kernels = Kernels::default();
        for dim in [1, 2, 7, 130, 300] {
            let rows = cells(3 * dim, 3);
            let mut matrix = vec![0.0; dim * dim];
            (0..dim).for_each(|i| matrix[i * dim + i] = 1.0);
            add_outer_products(&mut matrix, dim, &rows, 2.0);
            let factor = Cholesky::new(matrix, dim, || Ok(())).unwrap().unwrap();

            let b = cells(dim, 4);
            let mut x = b.clone();
            factor.solve_lower(kernels, &mut x);
            factor.solve_upper(kernels, &mut x);
            let mut back = x.clone();
            for row in rows.chunks_exact(dim) {
                kernels.add_scaled(&mut back, 2.0 * kernels.dot(row, &x), row);
            }
            let error = back.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-10, "dim {dim}: {error}");
        }
    }

    #[test]
    fn a_right_hand_side_does_not_see_its_neighbours() {
        let (kernels, dim) = (Kernels::default(), 37);
        let mut matrix = vec![0.0; dim * dim];
        (0..dim).for_each(|i| matrix[i * dim + i] = 1.0);
        add_outer_products(&mut matrix, dim, &cells(50 * dim, 5), 1.0);
        let factor = Cholesky::new(matrix, dim, || Ok(())).unwrap().unwrap();
        let mut together = cells(9 * dim, 6);
        let mut alone = together.clone();
        factor.solve_lower(kernels, &mut together);
        alone.chunks_exact_mut(dim).for_each(|b| factor.solve_lower(kernels, b));
        assert_eq!(together, alone);
    }

    #[test]
    fn log_det_of_a_diagonal_matrix() {
        let factor = Cholesky::new(vec![4.0, 0.0, 0.0, 9.0], 2, || Ok(())).unwrap().unwrap();
        assert!((factor.log_det() - 36.0_f64.ln()).abs() < 1e-15);
        assert!(Cholesky::new(vec![-1.0], 1, || Ok(())).unwrap().is_none());
        assert!(Cholesky::new(vec![1.0], 1, || Err(crate::Error::Interrupted)).is_err());
    }
}
