//! The sample-space form: all inner products of the candidates, taken once.
//!
//! In a first epoch that never ends nothing is asked of a row but its inner products with the picks. Where
//! rows are long and few (unprojected gradients) it is cheaper to have all of them at once, in tiles, than
//! to read the rows again for every pick; and the rows themselves need not be kept.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::error::Result;
use crate::linalg::CHUNK;
use crate::rows::Position;
use crate::selection::run::Run;

/// Rows of one side of a tile.
const TILE: usize = 32;
/// Most candidates: their products take 512 MB.
const MOST_ROWS: usize = 8192;
/// Bytes of rows that are quickly read again, from the caches.
const CACHED: usize = 64 << 20;

/// ⟨g_x, g_y⟩ of all pairs of candidates, the bits of [`crate::linalg::Kernels::dot`].
pub(super) struct Gram {
    places: HashMap<Position, usize>,
    /// Lower triangle, row after row: place i has i + 1 cells.
    rows: Vec<Vec<f64>>,
}

impl Gram {
    /// Whether this form takes less work than reading `candidates` rows again for each of those that are `selected`.
    pub(super) fn pays(candidates: usize, dim: usize, selected: usize) -> bool {
        candidates <= MOST_ROWS && candidates * dim * 8 > CACHED && candidates <= 16 * selected
    }

    /// # Errors
    /// [`crate::Error::Interrupted`] and the like.
    pub(super) fn new(candidates: &[Position], run: &Run<'_>) -> Result<Self> {
        let (dim, count) = (run.survey.dim(), candidates.len());
        let places = candidates.iter().enumerate().map(|(place, &position)| (position, place)).collect();
        let mut rows: Vec<Vec<f64>> = (0..count).map(|place| vec![0.0; place + 1]).collect();
        let mut cells = vec![0.0; count * CHUNK.min(dim)];
        // Chunk by chunk of columns, as a dot product adds them up.
        for first in (0..dim).step_by(CHUNK) {
            let width = CHUNK.min(dim - first);
            let part = first..first + width;
            cells[..count * width].par_chunks_exact_mut(width).zip(candidates).try_for_each(
                |(cells, &position)| {
                    run.check()?;
                    run.survey.load_part(position, part.clone(), cells);
                    Ok(())
                },
            )?;
            let cells: Vec<&[f64]> = cells[..count * width].chunks_exact(width).collect();
            rows.par_chunks_mut(TILE).enumerate().with_max_len(1).try_for_each(|(tile, rows)| {
                run.check()?;
                let own = &cells[tile * TILE..][..rows.len()];
                let mut products = vec![0.0; own.len() * TILE];
                for (start, others) in cells[..tile * TILE + rows.len()].chunks(TILE).enumerate() {
                    run.kernels.dots(own, others, &mut products);
                    for (row, products) in rows.iter_mut().zip(products.chunks_exact(others.len())) {
                        let sums = &mut row[start * TILE..];
                        sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
                    }
                }
                Ok(())
            })?;
        }
        Ok(Self { places, rows })
    }

    /// ⟨g_x, g_y⟩ of two candidates, by their positions.
    pub(super) fn product(&self, x: Position, y: Position) -> f64 {
        let (x, y) = (self.places[&x], self.places[&y]);
        self.rows[x.max(y)][x.min(y)]
    }
}
