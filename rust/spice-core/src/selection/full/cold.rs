//! The rows that wait: an upper bound of each row's q, and what is known of its angle to the mean.
//!
//! Waiting rows are refreshed in chunks, by matrix products in f32 over unit rows, and only as far as
//! needed: a row moves forward through the directions of the picks that it has not seen, block by block,
//! and stops as soon as its bound has fallen below what is asked for. A row that has missed too many
//! picks starts from the epoch's factor instead. All errors of f32 are on the safe side.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::directions::{DEPTH, Directions, product_error};
use super::drift::Turn;
use super::epoch::Epoch;
use crate::error::Result;
use crate::selection::run::Run;

/// Rows of a chunk.
const CHUNK: usize = 128;
/// Directions of a block: a row is looked at again after each.
const BLOCK: usize = 64;
/// Rows of X that are applied together.
const BAND: usize = 128;
/// Means that angles may be measured from at one time.
const MEANS: usize = 64;
/// Stands for no mean: the row's angle is not known.
const UNKNOWN: u16 = u16::MAX;

/// All rows that are neither hot nor picked. A row is known by its name, its place in `rows`.
pub(super) struct Cold {
    rows: Vec<usize>,
    /// Upper bound of q after the first `seen` picks; negative for rows that have left.
    values: Vec<f64>,
    seen: Vec<u32>,
    /// Upper bound of the cosine to the mean numbered `mean`.
    cosines: Vec<f32>,
    mean: Vec<u16>,
    /// Unit means that angles were measured from, oldest first.
    means: Vec<Vec<f64>>,
    /// X in f32, and how far that may move the norm of a whitened unit row; for the present epoch.
    inverse: Vec<f32>,
    inverse_error: f64,
    pub(super) waiting: usize,
}

/// What a row must reach to be worth more work.
#[derive(Clone, Copy)]
pub(super) struct Bar<'a> {
    /// exp(score) − 1 of the smallest score of interest.
    pub(super) reach: f64,
    /// How far a computed q may be off.
    pub(super) slack: f64,
    /// How far the mean has turned, and may still turn, since each of the means; empty if unknown.
    pub(super) turns: &'a [Turn],
    /// Smallest ‖m‖ that the mean may take.
    pub(super) mean_norm: f64,
}

impl Bar<'_> {
    /// Bounds of q below this one are below the bar whatever the conflict; not negative.
    fn least_value(&self, run: &Run<'_>) -> f64 {
        (self.reach / run.alpha / (1.0 + self.slack) * (1.0 - 1e-12)).max(0.0)
    }
}

/// A row on its way through a refresh.
struct Moving {
    name: usize,
    norm_sq: f64,
    /// Upper bound of q/‖g‖².
    ratio: f64,
    seen: usize,
    /// Directions that it has been taken through.
    moved: usize,
    /// How fast its bound fell in the last block of them, a direction.
    rate: f64,
}

/// What a refresh has to work with.
struct Way<'a> {
    /// Bounds of q below this one need no more work.
    least: f64,
    directions: &'a Directions,
    /// Picks before the epoch; 0 if there is no factor to start from.
    epoch_start: usize,
    dim: usize,
}

impl Way<'_> {
    /// Whether it takes longer through the directions than from the factor, which costs as much as d/2
    /// directions: by the rate at which the bound has fallen last, and by what was tried in vain.
    fn is_long(&self, row: &Moving) -> bool {
        if row.seen >= self.epoch_start {
            return false;
        }
        let remaining = self.directions.end() - row.seen;
        let needed = (row.ratio - self.least / row.norm_sq) / row.rate;
        let price = self.dim / 2;
        row.seen < self.directions.first()
            || (remaining > price && (needed > price as f64 || row.moved > price))
    }
}

/// q/‖g‖².
fn unit(value: f64, norm_sq: f64) -> f64 {
    if norm_sq > 0.0 { value / norm_sq } else { 0.0 }
}

impl Cold {
    pub(super) fn new(rows: Vec<usize>, run: &Run<'_>) -> Self {
        let values: Vec<f64> = rows.iter().map(|&row| run.survey.norm_sq()[row]).collect();
        let len = rows.len();
        Self {
            rows,
            values,
            seen: vec![0; len],
            cosines: vec![0.0; len],
            mean: vec![UNKNOWN; len],
            means: Vec::new(),
            inverse: Vec::new(),
            inverse_error: 0.0,
            waiting: len,
        }
    }

    /// The row of the pool that `name` stands for.
    pub(super) fn row(&self, name: usize) -> usize {
        self.rows[name]
    }

    /// Whether the row has not left.
    pub(super) fn waits(&self, name: usize) -> bool {
        self.values[name] >= 0.0
    }

    /// Takes a row out; returns its row of the pool.
    pub(super) fn take(&mut self, name: usize) -> usize {
        self.values[name] = -1.0;
        self.waiting -= 1;
        self.rows[name]
    }

    /// All rows, those that have left included.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Remembers that a row that has left will not come back.
    pub(super) fn pick(&mut self, name: usize) {
        self.values[name] = f64::NEG_INFINITY;
    }

    /// Whether that was remembered.
    pub(super) fn is_picked(&self, name: usize) -> bool {
        self.values[name] == f64::NEG_INFINITY
    }

    /// Takes a row back whose q was at most `value` after `seen` picks.
    pub(super) fn put(&mut self, name: usize, value: f64, seen: usize, cosine: Option<f64>) {
        self.values[name] = value.max(0.0);
        self.seen[name] = seen as u32;
        self.set_angle(name, cosine);
        self.waiting += 1;
    }

    /// Remembers a row's cosine to the latest mean.
    pub(super) fn set_angle(&mut self, name: usize, cosine: Option<f64>) {
        match (cosine, self.means.len()) {
            (Some(cosine), 1..) => {
                self.cosines[name] = cosine as f32 + 1e-6;
                self.mean[name] = (self.means.len() - 1) as u16;
            }
            _ => self.mean[name] = UNKNOWN,
        }
    }

    /// The present unit mean becomes one that angles may be measured from.
    pub(super) fn add_mean(&mut self, mean: &[f64]) {
        if self.means.len() == MEANS {
            self.merge_means();
        }
        self.means.push(mean.to_vec());
    }

    /// Halves the number of means: angles to every other one are moved over to the next.
    fn merge_means(&mut self) {
        let turns: Vec<Turn> =
            self.means.chunks_exact(2).map(|pair| Turn::between(&pair[0], &pair[1], 0.0)).collect();
        for (mean, cosine) in self.mean.iter_mut().zip(&mut self.cosines) {
            if *mean != UNKNOWN {
                if *mean % 2 == 0 {
                    *cosine = turns[usize::from(*mean / 2)].cosine(f64::from(*cosine)) as f32 + 1e-6;
                }
                *mean /= 2;
            }
        }
        let mut number = 0;
        self.means.retain(|_| {
            number += 1;
            number % 2 == 0
        });
    }

    /// How far each mean is from `present`, and `more` beyond that.
    pub(super) fn turns(&self, present: &[f64], more: f64) -> Vec<Turn> {
        self.means.iter().map(|mean| Turn::between(mean, present, more)).collect()
    }

    /// Whether the row's bound is up to date after `picks` picks.
    pub(super) fn is_fresh(&self, name: usize, picks: usize) -> bool {
        self.seen[name] as usize == picks
    }

    /// Upper bound of exp(score) − 1 while `bar` holds: the order of scores, mostly without a logarithm.
    pub(super) fn reach(&self, name: usize, bar: Bar<'_>, run: &Run<'_>) -> f64 {
        let odds = run.alpha * self.values[name] * (1.0 + bar.slack);
        let mean = self.mean[name];
        if mean == UNKNOWN || bar.turns.is_empty() || self.cosines[name] >= 0.0 {
            return odds;
        }
        let against = -bar.turns[usize::from(mean)].cosine(f64::from(self.cosines[name]));
        if against <= 0.0 {
            return odds;
        }
        let conflict = run.mean.least_conflict(against, self.norm_sq(name, run), bar.mean_norm);
        let penalty = -run.penalty * conflict;
        odds * penalty.exp() + penalty.exp_m1()
    }

    fn norm_sq(&self, name: usize, run: &Run<'_>) -> f64 {
        run.survey.norm_sq()[self.rows[name]]
    }

    /// Upper bound of Δ.
    pub(super) fn gain(&self, name: usize, slack: f64, run: &Run<'_>) -> f64 {
        run.gain(self.values[name] * (1.0 + slack))
    }

    /// All waiting rows that reach above the bar, with what they reach, in the order of rows.
    pub(super) fn above(&self, bar: Bar<'_>, run: &Run<'_>) -> Vec<(f64, usize)> {
        let least = bar.least_value(run);
        let chunks = self.values.par_chunks(1 << 12).enumerate();
        let found: Vec<Vec<(f64, usize)>> = chunks
            .map(|(chunk, values)| {
                let names = (chunk << 12..).zip(values).filter(|&(_, &value)| value >= least);
                let reaches = names.map(|(name, _)| (self.reach(name, bar, run), name));
                reaches.filter(|&(reach, _)| reach > bar.reach).collect()
            })
            .collect();
        found.concat()
    }

    /// The names of all waiting rows whose Δ may exceed `gain`, largest bound first.
    pub(super) fn with_gain_above(&self, gain: f64, slack: f64, run: &Run<'_>) -> Vec<usize> {
        let above = |name: &usize| self.values[*name] >= 0.0 && self.gain(*name, slack, run) > gain;
        let mut names: Vec<usize> = (0..self.values.len()).filter(above).collect();
        names.sort_by(|&a, &b| self.values[b].total_cmp(&self.values[a]));
        names
    }

    /// The cosine of a row, if it is to the latest mean; also of a row that has left.
    pub(super) fn latest_cosine(&self, name: usize) -> Option<f64> {
        let latest = self.mean[name] != UNKNOWN && usize::from(self.mean[name]) + 1 == self.means.len();
        latest.then(|| f64::from(self.cosines[name]))
    }

    /// The largest bound of Δ among waiting rows; 0 if there is none.
    pub(super) fn largest_gain(&self, slack: f64, run: &Run<'_>) -> f64 {
        let largest = self.values.par_iter().copied().reduce(|| 0.0, f64::max);
        run.gain(largest * (1.0 + slack))
    }

    /// The largest bound of Δ, and the one that `count` waiting rows reach (or all, if they are fewer).
    pub(super) fn gains_of_rank(&self, count: usize, slack: f64, run: &Run<'_>) -> (f64, f64) {
        let mut values: Vec<f64> = self.values.iter().copied().filter(|&value| value >= 0.0).collect();
        if values.is_empty() {
            return (0.0, 0.0);
        }
        let rank = count.min(values.len()) - 1;
        let (larger, &mut value, _) = values.select_nth_unstable_by(rank, |a, b| b.total_cmp(a));
        let top = larger.iter().copied().fold(value, f64::max);
        (run.gain(top * (1.0 + slack)), run.gain(value * (1.0 + slack)))
    }

    /// The epoch is over.
    pub(super) fn restart(&mut self) {
        self.inverse = Vec::new();
    }

    /// Brings rows up to date as far as `bar` asks for: afterwards each is either up to date or its bound of
    /// Δ is below the bar.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn refresh(
        &mut self,
        names: &[usize],
        bar: Bar<'_>,
        directions: &Directions,
        epoch: &Epoch<'_>,
        run: &Run<'_>,
    ) -> Result<()> {
        if epoch.inverse().is_some() && self.inverse.is_empty() {
            self.narrow_inverse(epoch, run);
        }
        let way = Way {
            least: bar.least_value(run),
            directions,
            epoch_start: epoch.inverse().map_or(0, |_| directions.end() - epoch.picks()),
            dim: run.survey.dim(),
        };
        let mut names = names.to_vec();
        // Rows of one age together, each age in the order of the file.
        names.sort_unstable_by_key(|&name| (self.seen[name], name));
        let this = &*self;
        let moved = names
            .par_chunks(CHUNK)
            .map_init(Vec::new, |cells, names| {
                cells.resize(names.len() * way.dim, 0.0);
                let rows = names.iter().zip(cells.chunks_exact_mut(way.dim)).map(|(&name, cells)| {
                    run.survey.load_unit(this.rows[name], cells);
                    let norm_sq = this.norm_sq(name, run);
                    let (ratio, seen) = (this.values[name], this.seen[name] as usize);
                    Moving { name, norm_sq, ratio: unit(ratio, norm_sq), seen, moved: 0, rate: f64::MAX }
                });
                let rows = rows.collect();
                this.advance(rows, cells, &way, run)
            })
            .collect::<Result<Vec<_>>>()?;
        for row in moved.into_iter().flatten() {
            self.values[row.name] = row.ratio * row.norm_sq;
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
        way: &Way<'_>,
        run: &Run<'_>,
    ) -> Result<Vec<Moving>> {
        let dim = way.dim;
        let mut done = Vec::with_capacity(moving.len());
        let mut products = vec![0.0_f32; moving.len() * BLOCK];
        let mut waiting = (Vec::new(), Vec::new()); // for the factor: rows and their cells
        loop {
            run.check()?;
            // Those that go on by directions close up; they stay in the order of their age.
            let mut left: Vec<Moving> = Vec::with_capacity(moving.len());
            for (i, row) in moving.into_iter().enumerate() {
                let its_cells = i * dim..(i + 1) * dim;
                if row.seen == way.directions.end() || row.ratio * row.norm_sq < way.least {
                    done.push(row);
                } else if way.is_long(&row) {
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
                self.whiten(&mut waiting.0, &waiting.1, way.epoch_start);
                moving = std::mem::take(&mut waiting.0);
                cells[..waiting.1.len()].copy_from_slice(&waiting.1);
                waiting.1.clear();
                continue;
            }
            let from = moving[0].seen;
            let to = (from + BLOCK).min(way.directions.end());
            let count = moving.partition_point(|row| row.seen < to);
            let (block, errors) = way.directions.range(from, to);
            product(&cells[..count * dim], block, dim, &mut products);
            for (row, products) in moving[..count].iter_mut().zip(products.chunks_exact(to - from)) {
                let unseen = row.seen - from..;
                let fall: f64 = products[unseen.clone()]
                    .iter()
                    .zip(&errors[unseen])
                    .map(|(&product, error)| {
                        let least = (f64::from(product.abs()) - error).max(0.0);
                        least * least
                    })
                    .sum();
                row.rate = fall / (to - row.seen) as f64;
                row.moved += to - row.seen;
                row.ratio = (row.ratio - fall * (1.0 - 1e-9)).max(0.0);
                row.seen = to;
            }
        }
    }

    /// Starts rows from the factor of the epoch.
    fn whiten(&self, moving: &mut [Moving], cells: &[f32], epoch_start: usize) {
        let dim = cells.len() / moving.len();
        let mut squares = vec![0.0_f64; moving.len()];
        let mut products = vec![0.0_f32; moving.len() * BAND];
        let mut narrow = Vec::new();
        for first in (0..dim).step_by(BAND) {
            let end = (first + BAND).min(dim);
            // Row i of X ends at column i.
            narrow.clear();
            narrow.extend((first..end).flat_map(|i| &self.inverse[i * dim..][..end]));
            products_of(cells, dim, &narrow, end, &mut products);
            for (square, products) in squares.iter_mut().zip(products.chunks_exact(end - first)) {
                *square += products.iter().map(|&y| f64::from(y) * f64::from(y)).sum::<f64>();
            }
        }
        for (row, square) in moving.iter_mut().zip(squares) {
            let norm = square.sqrt() * (1.0 + 1e-9) + self.inverse_error;
            row.ratio = row.ratio.min(norm * norm);
            row.rate = f64::MAX;
            row.seen = epoch_start;
        }
    }

    fn narrow_inverse(&mut self, epoch: &Epoch<'_>, run: &Run<'_>) {
        if let (true, Some(inverse)) = (self.inverse.is_empty(), epoch.inverse()) {
            self.inverse = inverse.par_iter().map(|&cell| cell as f32).collect();
            // ‖y‖ moves by at most γ‖X‖_F, rounding of X to f32 included, and the error of X itself.
            let norm = run.kernels.dot(inverse, inverse).sqrt();
            self.inverse_error =
                (product_error(run.survey.dim()) + epoch.slack()) * norm + f64::from(f32::MIN_POSITIVE);
        }
    }
}

/// `products` (rows of `b` for each row of `a`) = a bᵀ; rows of `dim` cells.
fn product(a: &[f32], b: &[f32], dim: usize, products: &mut [f32]) {
    products_of(a, dim, b, dim, products);
}

/// The same with rows of `a` that are `stride` apart, of which the first `len` cells count.
fn products_of(a: &[f32], stride: usize, b: &[f32], len: usize, products: &mut [f32]) {
    let (m, p) = (a.len() / stride, b.len() / len);
    let a = MatRef::from_row_major_slice(a, m, stride).subcols(0, len);
    let b = MatRef::from_row_major_slice(b, p, len);
    let mut target = MatMut::from_column_major_slice_mut(&mut products[..m * p], p, m);
    for first in (0..len).step_by(DEPTH) {
        let depth = DEPTH.min(len - first);
        let accum = if first == 0 { Accum::Replace } else { Accum::Add };
        let (a, b) = (a.subcols(first, depth).transpose(), b.subcols(first, depth));
        matmul(target.as_mut(), accum, b, a, 1.0, Par::Seq);
    }
}
