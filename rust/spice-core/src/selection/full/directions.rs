//! The picks as directions in the space of the rows: what brings a bound up to date.
//!
//! By Sherman and Morrison (1950) pick j lowers every q by (g·w_j)² with w_j = √α M_{j−1}⁻¹g_j / √(1 + α q_j), a vector of norm below 1. A
//! unit row ĝ against a block of directions is one matrix product in f32, and its error is bounded by
//! e_j = γ‖w_j‖, so that max(0, |ĝ·w_j| − e_j)² can be taken off an upper bound of q/‖g‖² and it stays one.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::epoch::Epoch;
use super::factor::Factor;
use super::window::Window;
use crate::error::Result;
use crate::linalg::product_error;
use crate::selection::run::Run;

/// Columns that one task works on.
const BAND: usize = 128;

/// Directions of the latest picks.
pub(super) struct Directions {
    dim: usize,
    window: Window,
    /// Of the epoch, for rows that have seen too few of its picks and of those before it.
    factor: Option<Factor>,
    /// The directions of this epoch in f64, (t, d): later ones follow from them.
    wide: Vec<f64>,
}

impl Directions {
    pub(super) const fn new(dim: usize) -> Self {
        Self { dim, window: Window::new(dim), factor: None, wide: Vec::new() }
    }

    /// What bounds are brought up to date with.
    pub(super) const fn window(&self) -> &Window {
        &self.window
    }

    /// What rows start from that have not been taken through the directions; `None` in the first epoch.
    pub(super) const fn factor(&self) -> Option<&Factor> {
        self.factor.as_ref()
    }

    /// Adds the directions of the epoch's picks that are still missing.
    ///
    /// # Errors
    /// Whatever stops the run.
    pub(super) fn extend(&mut self, epoch: &Epoch<'_>) -> Result<()> {
        let dim = self.dim;
        let (known, picks) = (self.wide.len() / dim, epoch.picks());
        let added = picks - known;
        if added == 0 {
            return Ok(());
        }
        // W = C⁻¹ Z: C holds the coordinates of the picks, Z = Y X their rows times M_start⁻¹.
        let mut earlier = Mat::<f64>::zeros(added, known);
        let mut triangle = Mat::<f64>::zeros(added, added);
        for i in 0..added {
            let (coordinates, length) = epoch.pick(known + i);
            for (j, &coordinate) in coordinates.iter().enumerate() {
                if j < known {
                    earlier[(i, j)] = coordinate;
                } else {
                    triangle[(i, j - known)] = coordinate;
                }
            }
            triangle[(i, i)] = 1.0 / length;
        }
        let rows = &epoch.whitened()[known * dim..];
        let rows = MatRef::from_row_major_slice(rows, added, dim);
        let wide = MatRef::from_row_major_slice(&self.wide, known, dim);
        let starts: Vec<usize> = (0..dim).step_by(BAND).collect();
        let bands: Vec<Vec<f64>> = starts
            .into_par_iter()
            .map(|start| {
                epoch.check()?;
                let width = BAND.min(dim - start);
                let mut band = vec![0.0; added * width];
                let mut target = MatMut::from_column_major_slice_mut(&mut band, added, width);
                match epoch.inverse() {
                    None => target.copy_from(rows.subcols(start, width)),
                    Some(inverse) => {
                        let inverse = MatRef::from_row_major_slice(inverse, dim, dim);
                        let below = inverse.submatrix(start, start, dim - start, width);
                        let rows = rows.subcols(start, dim - start);
                        matmul(target.as_mut(), Accum::Replace, rows, below, 1.0, Par::Seq);
                    }
                }
                if known > 0 {
                    let wide = wide.subcols(start, width);
                    matmul(target.as_mut(), Accum::Add, earlier.as_ref(), wide, -1.0, Par::Seq);
                }
                solve_lower_triangular_in_place(triangle.as_ref(), target.as_mut(), Par::Seq);
                Ok(band)
            })
            .collect::<Result<_>>()?;
        let gamma = product_error(dim) + epoch.slack();
        self.wide.resize(picks * dim, 0.0);
        let (narrow, errors) = self.window.grow(added);
        let rows = self.wide[known * dim..].par_chunks_exact_mut(dim);
        let rows = rows.zip(narrow.par_chunks_exact_mut(dim)).enumerate();
        errors.par_extend(rows.map(|(i, (wide, narrow))| {
            for (band, cells) in bands.iter().zip(wide.chunks_mut(BAND)) {
                for (column, cell) in cells.iter_mut().enumerate() {
                    *cell = band[column * added + i];
                }
            }
            for (narrow, &cell) in narrow.iter_mut().zip(&*wide) {
                *narrow = cell as f32;
            }
            let norm = wide.iter().map(|cell| cell * cell).sum::<f64>().sqrt();
            let error = gamma * norm * (1.0 + 1e-6) + f64::from(f32::MIN_POSITIVE);
            error as f32
        }));
        Ok(())
    }

    /// Ends the epoch, all of whose directions are known; keeps the latest `kept` directions.
    pub(super) fn end_epoch(&mut self, kept: usize) {
        self.wide = Vec::new();
        self.factor = None;
        self.window.keep(kept);
    }

    /// Takes the factor of the epoch that has begun.
    pub(super) fn start_epoch(&mut self, epoch: &Epoch<'_>, run: &Run<'_>) {
        self.factor = epoch.inverse().map(|inverse| Factor::new(inverse, epoch.slack(), run));
    }
}
