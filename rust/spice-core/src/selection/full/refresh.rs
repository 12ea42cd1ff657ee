//! Bringing the bounds of cold rows up to date, no further than needed.
//!
//! Rows are refreshed in chunks, by matrix products in f32 over unit rows. A row moves forward through the
//! directions of the picks that it has not seen, block by block, and stops as soon as its bound has fallen
//! below what is asked for: what it has not been taken through can be taken off later. Where that would
//! take longer, it starts from the epoch's factor instead. All errors of f32 are on the safe side.

use rayon::prelude::*;

use super::cold::{Bar, Cold};
use super::factor::{Factor, Moving};
use super::messages::News;
use super::standing::Standing;
use super::window::Window;
use crate::error::Result;
use crate::linalg::{products_of, sure_squares};
use crate::selection::places::Name;
use crate::selection::run::Run;
use crate::survey::AHEAD;

/// Rows of a chunk.
const CHUNK: usize = 128;
/// Directions of a block: a row is looked at again after each.
const BLOCK: usize = 64;

/// What a refresh has to work with.
struct Refresh<'a> {
    window: &'a Window,
    factor: Option<&'a Factor>,
    /// Picks before the epoch; 0 if there is no factor to start from.
    epoch_start: usize,
    dim: usize,
}

impl Refresh<'_> {
    /// Whether it takes longer through the directions than from the factor, which costs as much as d/2
    /// directions: by the rate at which the bound has fallen last, and by what was tried in vain.
    fn is_long(&self, row: &Moving) -> bool {
        if row.seen >= self.epoch_start {
            return false;
        }
        let remaining = self.window.end() - row.seen;
        let needed = (row.ratio - row.least) / row.rate;
        let price = self.dim / 2;
        row.seen < self.window.first()
            || (remaining > price && (needed > price as f64 || row.moved > price))
    }
}

/// q/‖g‖².
fn unit(value: f64, norm_sq: f64) -> f64 {
    if norm_sq > 0.0 { value / norm_sq } else { 0.0 }
}

impl Cold {
    /// Brings rows up to date as far as `bar` asks for: afterwards each is either up to date or its bound of
    /// Δ is below the bar.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn refresh(&mut self, names: &[Name], bar: Bar<'_>, news: &News<'_>) -> Result<()> {
        let run = news.run;
        let refresh = Refresh {
            window: news.window,
            factor: news.factor,
            epoch_start: news.factor.map_or(0, |_| news.epoch_start),
            dim: run.survey.dim(),
        };
        // Rows of one age together, each age in the order of the file.
        let mut aged: Vec<(u32, Name)> = names.iter().map(|&name| (self.seen[name], name)).collect();
        aged.sort_unstable();
        let names: Vec<Name> = aged.into_iter().map(|(_, name)| name).collect();
        let this = &*self;
        let moved = names
            .par_chunks(CHUNK)
            .map_init(Vec::new, |cells, names| {
                cells.resize(names.len() * refresh.dim, 0.0);
                let places = names.iter().enumerate().zip(cells.chunks_exact_mut(refresh.dim));
                let rows = places.map(|((i, &name), cells)| {
                    if i % AHEAD == 0 {
                        run.survey.fetch(names[i..].iter().map(|&name| this.position(name)));
                    }
                    run.survey.load_unit(this.position(name), cells);
                    let norm_sq = this.norm_sq(name, run);
                    let (ratio, seen) =
                        (unit(this.standings[name].bound(), norm_sq), this.seen[name] as usize);
                    let least = bar.least_value(this.position(name), run) / norm_sq;
                    Moving { name, norm_sq, least, ratio, seen, moved: 0, rate: f64::MAX }
                });
                let rows = rows.collect();
                this.advance(rows, cells, &refresh, run)
            })
            .collect::<Result<Vec<_>>>()?;
        for row in moved.into_iter().flatten() {
            self.standings[row.name] = Standing::waiting(row.ratio * row.norm_sq);
            self.seen[row.name] = row.seen as u32;
        }
        Ok(())
    }

    /// Moves the rows of a chunk, oldest first, until each is up to date or below the bar; `cells` holds them as
    /// unit rows.
    fn advance(
        &self,
        mut moving: Vec<Moving>,
        cells: &mut [f32],
        refresh: &Refresh<'_>,
        run: &Run<'_>,
    ) -> Result<Vec<Moving>> {
        let dim = refresh.dim;
        let mut done = Vec::with_capacity(moving.len());
        let mut products = vec![0.0_f32; moving.len() * BLOCK];
        let mut waiting = (Vec::new(), Vec::new()); // for the factor: rows and their cells
        loop {
            run.check()?;
            // Those that go on by directions close up; they stay in the order of their age.
            let mut left: Vec<Moving> = Vec::with_capacity(moving.len());
            for (i, row) in moving.into_iter().enumerate() {
                let its_cells = i * dim..(i + 1) * dim;
                if row.seen == refresh.window.end() || row.ratio < row.least {
                    done.push(row);
                } else if refresh.is_long(&row) {
                    waiting.0.push(row);
                    waiting.1.extend_from_slice(&cells[its_cells]);
                } else {
                    cells.copy_within(its_cells, left.len() * dim);
                    left.push(row);
                }
            }
            moving = left;
            if moving.is_empty() {
                if waiting.0.is_empty() {
                    return Ok(done);
                }
                if let Some(factor) = refresh.factor {
                    factor.whiten(&mut waiting.0, &waiting.1, refresh.epoch_start);
                }
                moving = std::mem::take(&mut waiting.0);
                cells[..waiting.1.len()].copy_from_slice(&waiting.1);
                waiting.1.clear();
                continue;
            }
            let from = moving[0].seen;
            let to = (from + BLOCK).min(refresh.window.end());
            let count = moving.partition_point(|row| row.seen < to);
            let (block, errors) = refresh.window.range(from, to);
            products_of(&cells[..count * dim], dim, block, dim, &mut products);
            for (row, products) in moving[..count].iter_mut().zip(products.chunks_exact(to - from)) {
                let unseen = row.seen - from..;
                let fall = sure_squares(&products[unseen.clone()], &errors[unseen]);
                row.rate = fall / (to - row.seen) as f64;
                row.moved += to - row.seen;
                row.ratio = (row.ratio - fall).max(0.0);
                row.seen = to;
            }
        }
    }
}
