//! Bounds from nothing: q of a row by the epoch's inverse factor, in single precision and on the safe side.

use rayon::prelude::*;

use crate::linalg::{product_error, products_of};
use crate::selection::places::Name;
use crate::selection::run::Run;

/// Rows of X that are applied together.
const BAND: usize = 128;

/// A row on its way through a refresh.
pub(super) struct Moving {
    pub(super) name: Name,
    pub(super) norm_sq: f64,
    /// A q/‖g‖² below this one needs no more work.
    pub(super) least: f64,
    /// Upper bound of q/‖g‖².
    pub(super) ratio: f64,
    pub(super) seen: usize,
    /// Directions that it has been taken through.
    pub(super) moved: usize,
    /// How fast its bound fell in the last block of them, a direction.
    pub(super) rate: f64,
}

/// X = L⁻¹ of the epoch in f32.
pub(super) struct Factor {
    /// Row after row.
    cells: Vec<f32>,
    /// How far ‖X ĝ‖ may be from the truth: γ‖X‖_F with the rounding to f32 included, and the error of X itself.
    error: f64,
}

impl Factor {
    pub(super) fn new(inverse: &[f64], slack: f64, run: &Run<'_>) -> Self {
        let norm = run.kernels.dot(inverse, inverse).sqrt();
        Self {
            cells: inverse.par_iter().map(|&cell| cell as f32).collect(),
            error: (product_error(run.survey.dim()) + slack) * norm + f64::from(f32::MIN_POSITIVE),
        }
    }

    /// Its triangle, row after row, and its error.
    #[cfg(any(test, fuzzing))]
    pub(super) fn parts(&self) -> (Vec<f32>, f64) {
        let dim = self.cells.len().isqrt();
        let triangle = self.cells.chunks_exact(dim).enumerate().flat_map(|(i, row)| &row[..=i]);
        (triangle.copied().collect(), self.error)
    }

    /// The factor of a triangle of `dim` rows.
    #[cfg(any(test, fuzzing))]
    pub(super) fn known(triangle: &[f32], error: f64, dim: usize) -> Self {
        let mut cells = vec![0.0; dim * dim];
        let mut rest = triangle;
        for (i, row) in cells.chunks_exact_mut(dim).enumerate() {
            let (known, later) = rest.split_at(i + 1);
            row[..=i].copy_from_slice(known);
            rest = later;
        }
        Self { cells, error }
    }

    /// Starts rows from ‖X ĝ‖², their bound after the first `epoch_start` picks.
    pub(super) fn whiten(&self, moving: &mut [Moving], cells: &[f32], epoch_start: usize) {
        let dim = cells.len() / moving.len();
        let mut squares = vec![0.0_f64; moving.len()];
        let mut products = vec![0.0_f32; moving.len() * BAND];
        let mut band = Vec::new();
        for first in (0..dim).step_by(BAND) {
            let end = (first + BAND).min(dim);
            // Row i of X ends at column i.
            band.clear();
            band.extend((first..end).flat_map(|i| &self.cells[i * dim..][..end]));
            products_of(cells, dim, &band, end, &mut products);
            for (square, products) in squares.iter_mut().zip(products.chunks_exact(end - first)) {
                *square += products.iter().map(|&y| f64::from(y) * f64::from(y)).sum::<f64>();
            }
        }
        for (row, square) in moving.iter_mut().zip(squares) {
            let norm = square.sqrt() * (1.0 + 1e-9) + self.error;
            row.ratio = row.ratio.min(norm * norm);
            row.rate = f64::MAX;
            row.seen = epoch_start;
        }
    }
}
