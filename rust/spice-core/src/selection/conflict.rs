//! The conflict penalty: how far a row points against the mean of what is selected.

use crate::linalg::{Kernels, dot_twofold};

/// Keeps the quotient defined for zero rows (η of the paper).
const ETA: f64 = 1e-8;

/// Below this cosine a dot product has cancelled so far that it is taken again, in twice the digits.
const SMALL_COSINE: f64 = 1e-4;

/// 2⁻⁵⁰⁰: sums of rows whose squares are numbers have squares that are, times this.
const SHORTER: f64 = f64::from_bits((1023 - 500) << 52);

/// The weighted sum of the selected rows, and with it their mean m_S.
///
/// Rows come times the root of their weight, as they enter F; the cosine does not mind, and η is scaled with them.
///
/// Where Δ is tiny, the rounding of a conflict that should be zero would decide the pick. So the sum is
/// carried in two parts, in which opposite rows leave nothing behind; the division by the count comes
/// after the dot product; and a row at a right angle to the sum is measured in twice the digits. Then
/// the conflict has ten digits of its own, however small it is.
#[derive(Clone)]
pub(super) struct SelectedMean {
    sum: Vec<f64>,
    /// What rounding has left out of `sum`.
    rest: Vec<f64>,
    /// ‖m_S‖.
    norm: f64,
    count: f64,
}

impl SelectedMean {
    pub(super) fn new(dim: usize) -> Self {
        Self { sum: vec![0.0; dim], rest: vec![0.0; dim], norm: 0.0, count: 0.0 }
    }

    /// A mean of which the sum of rows, its norm and the sum of weights are known; good for cosines, not for conflicts.
    #[cfg(any(test, fuzzing))]
    pub(super) fn known(sum: Vec<f64>, norm: f64, count: f64) -> Self {
        Self { rest: vec![0.0; sum.len()], sum, norm, count }
    }

    /// The sum of rows, the norm of the mean, and the sum of weights.
    #[cfg(any(test, fuzzing))]
    pub(super) fn parts(&self) -> (&[f64], f64, f64) {
        (&self.sum, self.norm, self.count)
    }

    /// Adds a selected row of weight `weight`, given as the row times √weight.
    pub(super) fn push(&mut self, kernels: Kernels, row: &[f64], weight: f64) {
        self.count += weight;
        if weight == 1.0 {
            kernels.add_twofold(&mut self.sum, &mut self.rest, row);
        } else {
            let root = weight.sqrt();
            let weighted: Vec<f64> = row.iter().map(|cell| root * cell).collect();
            kernels.add_twofold(&mut self.sum, &mut self.rest, &weighted);
        }
        let square = kernels.dot(&self.sum, &self.sum);
        let length = if square.is_finite() { square.sqrt() } else { self.long(kernels) };
        self.norm = length / self.count;
    }

    /// ‖Σ‖ where its square is no number.
    fn long(&self, kernels: Kernels) -> f64 {
        let short: Vec<f64> = self.sum.iter().map(|cell| cell * SHORTER).collect();
        kernels.dot(&short, &short).sqrt() / SHORTER
    }

    /// Whether nothing is selected.
    pub(super) const fn is_blank(&self) -> bool {
        self.count == 0.0
    }

    /// The mean as a unit vector; `None` while it is zero.
    pub(super) fn direction(&self) -> Option<Vec<f64>> {
        let norm = self.norm * self.count;
        (norm > 0.0 && norm.is_finite()).then(|| self.sum.iter().map(|cell| cell / norm).collect())
    }

    /// The weighted sum of the selected rows.
    pub(super) fn sum(&self) -> &[f64] {
        &self.sum
    }

    /// ‖m‖.
    pub(super) const fn norm(&self) -> f64 {
        self.norm
    }

    /// ⟨g, m⟩/(‖g‖‖m‖), to some thirteen digits; 0 where it is not defined.
    pub(super) fn cosine(&self, kernels: Kernels, row: &[f64], norm_sq: f64) -> f64 {
        self.cosine_by(kernels.dot(row, &self.sum), norm_sq)
    }

    /// [`SelectedMean::cosine`] of a row whose product with the [`SelectedMean::sum`] is at hand.
    pub(super) fn cosine_by(&self, product: f64, norm_sq: f64) -> f64 {
        let norms = norm_sq.sqrt() * self.norm;
        if norms > 0.0 { product / self.count / norms } else { 0.0 }
    }

    /// The least conflict of a row whose cosine to the mean is at most `−against`, while ‖m‖ ≥ `mean_norm`.
    pub(super) fn least_conflict(&self, against: f64, norm_sq: f64, weight: f64, mean_norm: f64) -> f64 {
        let norms = norm_sq.sqrt() * mean_norm;
        (against - 1e-9).max(0.0) * (norms / (norms + ETA * weight.sqrt()))
    }

    /// `max(0, −⟨g, m⟩ / (‖g‖‖m‖ + η))`, in [0, 1]; 0 while nothing is selected.
    pub(super) fn conflict(&self, kernels: Kernels, row: &[f64], norm_sq: f64, weight: f64) -> f64 {
        self.conflict_by(kernels.dot(row, &self.sum), row, norm_sq, weight)
    }

    /// [`SelectedMean::conflict`] of a row whose product with the [`SelectedMean::sum`] is at hand.
    pub(super) fn conflict_by(&self, product: f64, row: &[f64], norm_sq: f64, weight: f64) -> f64 {
        if self.count == 0.0 {
            return 0.0;
        }
        let norms = norm_sq.sqrt() * self.norm;
        let mut aligned = product / self.count;
        if aligned.abs() < SMALL_COSINE * norms {
            aligned = dot_twofold(row, &self.sum, &self.rest) / self.count;
        }
        let against = -aligned / (norms + ETA * weight.sqrt());
        // Not `max`: a negative zero must not get into a score.
        if against > 0.0 { against } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opposite_rows_leave_nothing_behind() {
        let (kernels, mut mean) = (Kernels::default(), SelectedMean::new(1));
        for cell in [1.0, 1e-17, 3e8, -1.0, -3e8] {
            mean.push(kernels, &[cell], 1.0);
        }
        assert_eq!(mean.norm, 1e-17 / 5.0);
    }

    #[test]
    fn sums_whose_squares_overflow_have_a_length() {
        let (kernels, mut mean) = (Kernels::default(), SelectedMean::new(2));
        (0..4).for_each(|_| mean.push(kernels, &[6e153, 8e153], 1.0));
        assert!((mean.norm / 1e154 - 1.0).abs() < 1e-15);
        let direction = mean.direction().unwrap();
        assert!((direction[0] - 0.6).abs() < 1e-15 && (direction[1] - 0.8).abs() < 1e-15);
    }

    #[test]
    fn only_rows_against_the_mean_conflict() {
        let kernels = Kernels::default();
        let mut mean = SelectedMean::new(2);
        assert_eq!(mean.conflict(kernels, &[1.0, 0.0], 1.0, 1.0), 0.0);
        mean.push(kernels, &[2.0, 0.0], 1.0);
        mean.push(kernels, &[0.0, 2.0], 1.0);
        let expected = 1.0 / (2.0_f64.sqrt() + 1e-8);
        assert!((mean.conflict(kernels, &[-1.0, 0.0], 1.0, 1.0) - expected).abs() < 1e-15);
        assert_eq!(mean.conflict(kernels, &[1.0, 0.0], 1.0, 1.0), 0.0);
        assert_eq!(mean.conflict(kernels, &[0.0, 0.0], 0.0, 1.0).to_bits(), 0.0_f64.to_bits());
    }
}
