//! Angles of rows to the mean of the picks.

use rayon::prelude::*;

use super::drift::Turn;
use crate::error::Result;
use crate::rows::Position;
use crate::selection::run::Run;

/// The mean's direction, and what is known of the angles that rows have to it.
#[derive(Default)]
pub(super) struct Angles {
    /// The present unit mean; kept only if there is a penalty.
    pub(super) present: Option<Vec<f64>>,
    /// Unit mean that the hot rows' angles are measured from.
    pub(super) reference: Option<Vec<f64>>,
    /// Whether that is the latest mean that the cold rows know.
    pub(super) shared: bool,
    /// Conflicts computed since hot angles were last measured.
    pub(super) conflicts: usize,
    /// How far the mean turns in one period, by the latest ones, in radians.
    pub(super) turning: f64,
    /// Periods for which the angles of cold rows are left alone, since they were of no use.
    pub(super) rest: usize,
}

impl Angles {
    /// How far the mean has turned since the hot rows' angles were measured, if they were.
    pub(super) fn turn(&self) -> Option<Turn> {
        let (reference, present) = self.reference.as_ref().zip(self.present.as_ref())?;
        Some(Turn::between(reference, present, 0.0))
    }
}

/// Cosines of rows to the mean.
pub(super) fn cosines(run: &Run<'_>, positions: &[Position]) -> Result<Vec<f64>> {
    positions
        .par_iter()
        .with_min_len(16)
        .map_init(Vec::new, |cells, &position| {
            run.check()?;
            cells.resize(run.survey.dim(), 0.0);
            run.survey.load(position, cells);
            Ok(run.mean.cosine(run.kernels, cells, run.survey.norm_sq(position)))
        })
        .collect()
}
