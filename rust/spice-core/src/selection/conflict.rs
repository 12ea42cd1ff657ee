//! The conflict penalty: how far a row points against the mean of what is selected.

use crate::linalg::Kernels;

/// Keeps the quotient defined for zero rows (η of the paper).
const ETA: f64 = 1e-8;

/// The mean m_S of the selected rows.
pub(super) struct SelectedMean {
    sum: Vec<f64>,
    mean: Vec<f64>,
    norm: f64,
    count: usize,
}

impl SelectedMean {
    pub(super) fn new(dim: usize) -> Self {
        Self { sum: vec![0.0; dim], mean: vec![0.0; dim], norm: 0.0, count: 0 }
    }

    /// Adds a picked row.
    pub(super) fn push(&mut self, kernels: Kernels, row: &[f64]) {
        self.count += 1;
        kernels.add_scaled(&mut self.sum, 1.0, row);
        let count = self.count as f64;
        for (mean, sum) in self.mean.iter_mut().zip(&self.sum) {
            *mean = sum / count;
        }
        self.norm = kernels.dot(&self.mean, &self.mean).sqrt();
    }

    /// `max(0, −⟨g, m⟩ / (‖g‖‖m‖ + η))`, in [0, 1]; 0 while nothing is selected.
    pub(super) fn conflict(&self, kernels: Kernels, row: &[f64], norm_sq: f64) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let against = -kernels.dot(row, &self.mean) / (norm_sq.sqrt() * self.norm + ETA);
        // Not `max`: a negative zero must not get into a score.
        if against > 0.0 { against } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_against_the_mean_conflict() {
        let kernels = Kernels::default();
        let mut mean = SelectedMean::new(2);
        assert_eq!(mean.conflict(kernels, &[1.0, 0.0], 1.0), 0.0);
        mean.push(kernels, &[2.0, 0.0]);
        mean.push(kernels, &[0.0, 2.0]);
        let expected = 1.0 / (2.0_f64.sqrt() + 1e-8);
        assert!((mean.conflict(kernels, &[-1.0, 0.0], 1.0) - expected).abs() < 1e-15);
        assert_eq!(mean.conflict(kernels, &[1.0, 0.0], 1.0), 0.0);
        assert_eq!(mean.conflict(kernels, &[0.0, 0.0], 0.0).to_bits(), 0.0_f64.to_bits());
    }
}
