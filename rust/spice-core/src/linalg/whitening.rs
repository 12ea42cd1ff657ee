//! Rows by the inverse of a Cholesky factor, with a proven error.
//!
//! Let M be the symmetric matrix ≽ I that was meant, M̂ what was summed and L̂ its computed factor. With
//! γ_m = mu/(1 − mu), u = 2⁻⁵³, the classical bounds (Higham, *Accuracy and Stability of Numerical Algorithms*,
//! sections 3.5, 8.1 and 10.1; they hold for any order of additions, hence for blocks) say
//!
//! - |L̂L̂ᵀ − M|_ij ≤ γ √(M_ii M_jj), where γ counts the terms of a sum and the steps of the factorisation. Hence
//!   L̂L̂ᵀ = M^½(I + E)M^½ with ‖E‖ ≤ ε = γ·min(tr M, τ²), τ = Σ_i √(M_ii (M⁻¹)_ii): the first because M ≽ I, the
//!   second, which no scale of rows and columns changes, because |x_i| ≤ √(M⁻¹)_ii·‖M^½x‖.
//! - (L̂ + ΔL)ẑ = g with |ΔL| ≤ γ|L̂|, so that ‖ẑ − z‖ ≤ μ‖ẑ‖, μ = γ·min(‖L̂‖_F, τ).

use super::cholesky::Cholesky;
use crate::error::Result;

/// Largest ε that anything is concluded from.
const LARGEST: f64 = 0.25;

/// γ_m: how far a sum of m rounded terms may be off, relative to the sum of their sizes.
pub fn rounding(terms: usize) -> f64 {
    let share = terms as f64 * f64::EPSILON / 2.0;
    share / (1.0 - share)
}

/// The Cholesky factor of a symmetric matrix M ≽ I, and how far what is computed with it may be off.
pub struct Whitening {
    factor: Cholesky,
    size: usize,
    distance: f64,
    solving: f64,
}

impl Whitening {
    /// Factors M, whose lower triangle is in `matrix` (`size × size` cells, column after column). Its cells are sums
    /// of at most `terms` terms of which each is at most its share of √(M_ii M_jj).
    ///
    /// Returns `None` if M is not numerically positive definite.
    ///
    /// # Errors
    /// Whatever `alive` returns.
    pub fn new(
        matrix: Vec<f64>,
        size: usize,
        terms: usize,
        alive: impl Fn() -> Result<()> + Sync,
    ) -> Result<Option<Self>> {
        let diagonal: Vec<f64> = (0..size).map(|i| matrix[i * size + i]).collect();
        let Some(factor) = Cholesky::new(matrix, size, &alive)? else { return Ok(None) };
        let gamma = rounding(terms + 2 * size + 16);
        let trace = diagonal.iter().sum::<f64>() * (1.0 + gamma);
        let (mut largest, mut root) = (trace, trace.sqrt());
        // τ ≥ size, so that it is worth its price only if the trace says less.
        if gamma * trace > 1e-10 && trace > (4 * size * size) as f64 {
            let inverse = column_norms_sq(&factor.inverse(&alive)?, size);
            let scaled: f64 = diagonal.iter().zip(&inverse).map(|(m, x)| (m * x).sqrt()).sum();
            // Of the computed matrix; (M⁻¹)_ii may be larger by a factor of 1 + γτ².
            let tau = scaled / (1.0 - gamma * scaled * scaled).max(0.0).sqrt() * (1.0 + 1e-6);
            largest = largest.min(tau * tau);
            root = root.min(tau);
        }
        let distance = gamma * largest * (1.0 + 1e-6);
        let (distance, solving) = if distance <= LARGEST {
            (distance / (1.0 - distance), gamma * root * (1.0 + distance))
        } else {
            (f64::INFINITY, f64::INFINITY)
        };
        Ok(Some(Self { factor, size, distance, solving }))
    }

    /// Replaces each row of `size` cells by L⁻¹ times it, on one thread; `alive` is asked on the way.
    ///
    /// # Errors
    /// Whatever `alive` returns.
    pub fn whiten(&self, rows: &mut [f64], alive: impl Fn() -> Result<()>) -> Result<()> {
        self.factor.solve_lower(rows, alive)
    }

    /// ‖L⁻¹e‖² of all unit vectors e: the diagonal of M⁻¹, to within [`Whitening::slack`].
    ///
    /// # Errors
    /// Whatever `alive` returns.
    pub fn inverse_diagonal(&self, alive: impl Fn() -> Result<()> + Sync) -> Result<Vec<f64>> {
        Ok(column_norms_sq(&self.factor.inverse(alive)?, self.size))
    }

    /// ε: gᵀM⁻¹g is within this share of gᵀ(L̂L̂ᵀ)⁻¹g. Infinite if nothing can be said.
    pub const fn distance(&self) -> f64 {
        self.distance
    }

    /// μ: a whitened row is within this share of its length of where it should be. Infinite if nothing can be said.
    pub const fn solving(&self) -> f64 {
        self.solving
    }

    /// gᵀM⁻¹g is within this share of the squared length of g whitened. Infinite if nothing can be said.
    pub fn slack(&self) -> f64 {
        (1.0 + self.solving + rounding(self.size + 2)).powi(2) * (1.0 + self.distance) - 1.0
    }

    /// `log det` of every leading minor of M, the smallest first.
    pub fn log_dets(&self) -> Vec<f64> {
        self.factor.log_dets()
    }

    /// How far `log det` of any leading minor may be off, in nats. Infinite if nothing can be said.
    pub fn log_det_error(&self) -> f64 {
        // Each eigenvalue of I + E is within ε of 1, and each logarithm of the sum is rounded.
        let size = self.size as f64;
        let sizes = self.log_dets().last().map_or(0.0, |log_det| log_det.abs());
        -size * (1.0 - self.distance.min(1.0)).ln() + rounding(self.size + 8) * (sizes + size)
    }
}

/// Squared norms of the columns of a square matrix given row after row.
fn column_norms_sq(cells: &[f64], size: usize) -> Vec<f64> {
    let mut sums = vec![0.0; size];
    for row in cells.chunks_exact(size) {
        sums.iter_mut().zip(row).for_each(|(sum, cell)| *sum += cell * cell);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::add_outer_products;

    /// I + Σ r rᵀ of pseudo-random rows of very different lengths.
    fn matrix(size: usize, scale: f64) -> (Vec<f64>, Vec<f64>) {
        let mut state = 5_u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        };
        let rows: Vec<f64> =
            (0..3 * size * size).map(|cell| next() * scale.powi((cell / size % 3) as i32)).collect();
        let mut matrix = vec![0.0; size * size];
        (0..size).for_each(|i| matrix[i * size + i] = 1.0);
        add_outer_products(&mut matrix, size, &rows, 1.0);
        (matrix, rows)
    }

    #[test]
    fn whitened_rows_add_up_to_the_rank() {
        // Σ gᵀM⁻¹g = size − tr M⁻¹.
        for scale in [1.0, 1e-3, 1e4] {
            let size = 40;
            let (matrix, mut rows) = matrix(size, scale);
            let whitening = Whitening::new(matrix, size, 3 * size, || Ok(())).unwrap().unwrap();
            whitening.whiten(&mut rows, || Ok(())).unwrap();
            let sum: f64 = rows.iter().map(|cell| cell * cell).sum();
            let rest: f64 = whitening.inverse_diagonal(|| Ok(())).unwrap().iter().sum();
            assert!((sum + rest - size as f64).abs() <= 2.0 * whitening.slack() * size as f64);
            assert!(whitening.slack() < 1e-5, "{}", whitening.slack());
        }
    }

    #[test]
    fn a_scale_of_single_rows_costs_no_digits() {
        let size = 30;
        let mut matrix = vec![0.0; size * size];
        (0..size).for_each(|i| matrix[i * size + i] = 1.0 + 1e12 * f64::from(u8::from(i % 2 == 0)));
        let whitening = Whitening::new(matrix, size, 1, || Ok(())).unwrap().unwrap();
        assert!(whitening.slack() < 1e-10, "{}", whitening.slack());
        assert!(whitening.log_det_error() < 1e-9);
    }

    #[test]
    fn where_nothing_is_left_nothing_is_claimed() {
        let size = 8;
        let cells: Vec<f64> =
            (0..size * size).map(|cell| 1e15 + f64::from(u8::from(cell % (size + 1) == 0))).collect();
        let slack = match Whitening::new(cells, size, 1, || Ok(())).unwrap() {
            Some(whitening) => whitening.slack(),
            None => f64::INFINITY,
        };
        assert_eq!(slack, f64::INFINITY);
    }
}
