//! Angles of rows to the mean of the picks.

use rayon::prelude::*;

use crate::error::Result;
use crate::selection::run::Run;

/// Cosines of rows to the mean.
pub(super) fn cosines(run: &Run<'_>, rows: &[usize]) -> Result<Vec<f64>> {
    rows.par_iter()
        .with_min_len(16)
        .map_init(Vec::new, |cells, &row| {
            run.check()?;
            cells.resize(run.survey.dim(), 0.0);
            run.survey.load(row, cells);
            Ok(run.mean.cosine(run.kernels, cells, run.survey.norm_sq()[row]))
        })
        .collect()
}
