//! Near-duplicates: rows that point almost where a selected row points, or almost against it.

use rayon::prelude::*;

use crate::error::Result;
use crate::linalg::{product_error, products_of};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{FAINT, Survey};

/// Selected rows that one task compares with.
const CHUNK: usize = 256;

/// The selected rows, as what others are near-duplicates of.
pub(super) struct NearDuplicates {
    /// τ: rows are near-duplicates if their |cosine| exceeds it.
    threshold: f64,
    selected: Vec<Position>,
    /// min over selected rows s of α‖s‖²/(1 + α‖s‖²).
    strength: f64,
}

impl NearDuplicates {
    pub(super) const fn new(threshold: f64) -> Self {
        Self { threshold, selected: Vec::new(), strength: 1.0 }
    }

    pub(super) fn push(&mut self, position: Position, survey: &Survey<'_>, alpha: f64) {
        self.selected.push(position);
        let signal = alpha * survey.norm_sq(position);
        // A row of zeros is similar to nothing.
        if signal > 0.0 {
            self.strength = self.strength.min(signal / (1.0 + signal));
        }
    }

    /// Whether q of a row is so large that no selected row can be near it.
    ///
    /// With s selected M ⪰ I + αssᵀ, so q ≤ ‖g‖²·(1 − cos²·α‖s‖²/(1 + α‖s‖²)).
    pub(super) fn is_far(&self, value: f64, norm_sq: f64) -> bool {
        norm_sq >= FAINT
            && value > norm_sq * (1.0 + 1e-6 - self.threshold * self.threshold * self.strength)
    }

    /// The first selected row that a row is too similar to, and their cosine.
    pub(super) fn of(&self, position: Position, survey: &Survey<'_>) -> Option<(Position, f64)> {
        let dim = survey.dim();
        let mut unit = vec![0.0_f32; dim];
        survey.load_direction(position, &mut unit);
        if unit.iter().all(|&cell| cell == 0.0) {
            return None;
        }
        let error = product_error(dim) + 1e-6;
        let compare = |cells: &mut Vec<f32>, selected: &[Position]| {
            cells.resize(selected.len() * dim, 0.0);
            for (&other, cells) in selected.iter().zip(cells.chunks_exact_mut(dim)) {
                survey.load_direction(other, cells);
            }
            let mut products = vec![0.0_f32; selected.len()];
            products_of(&unit, dim, cells, dim, &mut products);
            let close = |product: f32| f64::from(product.abs()) + error > self.threshold;
            selected.iter().zip(products).filter(|&(_, product)| close(product)).find_map(|(&of, _)| {
                let cosine = cosine(position, of, survey);
                (cosine.abs() > self.threshold).then_some((of, cosine))
            })
        };
        let chunks = self.selected.par_chunks(CHUNK);
        chunks.map_init(Vec::new, compare).find_first(Option::is_some).flatten()
    }
}

/// For each row from the `listed`th on, the first of the `listed` rows before them that it is a near-duplicate of under
/// `max_similarity`, and their cosine: as a search has it.
///
/// # Errors
/// [`crate::Error::Interrupted`].
pub fn near_duplicates(
    survey: &Survey<'_>,
    listed: usize,
    max_similarity: f64,
    monitor: &Monitor,
) -> Result<Vec<Option<(usize, f64)>>> {
    let mut known = NearDuplicates::new(max_similarity);
    known.selected = Position::all(listed.min(survey.len())).collect();
    let rows = (listed.min(survey.len())..survey.len()).into_par_iter();
    rows.map(|row| {
        monitor.check()?;
        let found = known.of(Position::new(row), survey);
        Ok(found.map(|(of, cosine)| (of.get(), cosine)))
    })
    .collect()
}

/// The cosine of two rows, neither of them zero.
fn cosine(a: Position, b: Position, survey: &Survey<'_>) -> f64 {
    let (mut left, mut right) = (vec![0.0; survey.dim()], vec![0.0; survey.dim()]);
    let norms = survey.load_measured(a, &mut left) * survey.load_measured(b, &mut right);
    survey.kernels().dot(&left, &right) / norms
}
