//! The exact value q = gᵀM⁻¹g of a row, M = I + αF, by one fixed sequence of operations.
//!
//! Picks are cut into *epochs*. At the start of an epoch M is factored, M = LLᵀ, and X = L⁻¹ is kept: a
//! row x is *whitened* once, y = X g, and starts from q = ‖y‖². Within the epoch the picks' whitened rows
//! form a Cholesky factor of their own, row by row: pick j gives x the coordinate
//!
//!   c_j = (⟨y, y_j⟩ − Σ_{i<j} c_i c_{j,i}) · √α / √(1 + α q_j),   and   q ← q − c_j².
//!
//! (That is the Sherman-Morrison update of M⁻¹, and the recurrence of fast greedy MAP inference for DPPs, Chen, Zhang and
//! Zhou 2018; c_{j,i} is coordinate i of pick j itself.) A row's q after t
//! picks is a function of the row and the picks alone, the same bits whether it was followed pick by
//! pick or caught up at once, because both go through the same operations.
//!
//! Subtractions lose digits once q has fallen far, and coordinates cost work, so an epoch ends
//!
//! - after d/2 picks: from there on a fresh start is the cheaper update;
//! - before a pick that may have lost digits, by two bounds that both have to fail. For every row
//!   q_start/q ≤ λ_max(X M Xᵀ) ≤ 1 + α Σ_j ‖y_j‖². And what subtraction leaves of a row is off by some ulps of
//!   its q_start, which is small beside the q of whoever wins unless the winner is far below the largest
//!   q_start of all that can still compete; the first pick of an epoch bounds that one.
//!
//! Both depend on the picks and the next winner alone. In the first epoch M = I and y = g, so a small k never pays for a
//! matrix. A pool whose rows are few and long stays in it for good (the sample-space form): M then keeps an
//! eigenvalue of 1, and what subtraction loses is about what cond(M) excuses.

use std::ops::Range;

use super::gram::Gram;
use crate::error::{Error, Result};
use crate::linalg::{Cholesky, Kernels, add_outer_products};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::Survey;

/// Largest loss of digits within an epoch: 1e5 · 2⁻⁵³ leaves ten digits.
pub const MOST_GROWTH: f64 = 1e5;
/// How far, in parts of the largest q_start, a winner may have fallen: some ulps of that one leave ten digits too.
const LEAST_PART: f64 = 1e-4;
/// A q that lost nothing counts as known to this share of itself: what is computed in another order differs by less.
pub const SLACK: f64 = 1e-9;
/// Shortest regular epoch; below, a factorisation costs less than keeping count.
const MIN_LENGTH: usize = 32;
/// Widest matrix that is factored: three of them take 6 GB.
const MAX_DIM: usize = 16_384;
/// Rows of X that whiten a row together; they stay in the second cache.
const BAND: usize = 48;

/// What takes any row past the picks of an epoch: the row itself is all that has to be known of it.
#[derive(Clone)]
pub(in crate::selection) struct Basis {
    kernels: Kernels,
    alpha: f64,
    dim: usize,
    /// X = L⁻¹, row after row; empty while M = I.
    inverse: Vec<f64>,
    /// The picks' whitened rows, (t, d); empty where all inner products are known.
    whitened: Vec<f64>,
    /// Their coordinates: pick j has j of them.
    coordinates: Vec<Vec<f64>>,
    /// √α / √(1 + α q_j).
    lengths: Vec<f64>,
}

impl Basis {
    fn new(kernels: Kernels, alpha: f64, dim: usize) -> Self {
        Self {
            kernels,
            alpha,
            dim,
            inverse: Vec::new(),
            whitened: Vec::new(),
            coordinates: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Picks that it takes rows past.
    pub(in crate::selection) fn picks(&self) -> usize {
        self.lengths.len()
    }

    /// Writes the rows in `cells`, whitened, to `out`; returns their q at the start of the epoch. `norms_sq` has their ‖g‖².
    pub(in crate::selection) fn whiten(
        &self,
        cells: &[f64],
        norms_sq: impl Iterator<Item = f64>,
        out: &mut [f64],
    ) -> Vec<f64> {
        let dim = self.dim;
        if self.inverse.is_empty() {
            out.copy_from_slice(cells);
            return norms_sq.collect();
        }
        let mut products = vec![0.0; cells.len() / dim * BAND];
        for first in (0..dim).step_by(BAND) {
            let end = (first + BAND).min(dim);
            let band: Vec<&[f64]> = (first..end).map(|i| &self.inverse[i * dim..][..end]).collect();
            let cells: Vec<&[f64]> = cells.chunks_exact(dim).map(|cells| &cells[..end]).collect();
            self.kernels.dots(&cells, &band, &mut products);
            for (out, products) in out.chunks_exact_mut(dim).zip(products.chunks_exact(end - first)) {
                out[first..end].copy_from_slice(products);
            }
        }
        out.chunks_exact(dim).map(|y| self.kernels.dot(y, y)).collect()
    }

    /// Writes the inner products of whitened rows with the picks `picks` to `out`, row after row.
    pub(in crate::selection) fn products(&self, rows: &[&[f64]], picks: Range<usize>, out: &mut [f64]) {
        let dim = self.dim;
        let whitened = &self.whitened[picks.start * dim..picks.end * dim];
        let picks: Vec<&[f64]> = whitened.chunks_exact(dim).collect();
        self.kernels.dots(rows, &picks, out);
    }

    /// Takes a row past pick `j`, whose inner product with it is `product`: returns q after it, from `value` before.
    pub(in crate::selection) fn pass(
        &self,
        j: usize,
        product: f64,
        coordinates: &mut [f64],
        value: f64,
    ) -> f64 {
        let shared = self.kernels.dot(&coordinates[..j], &self.coordinates[j]);
        let coordinate = (product - shared) * self.lengths[j];
        coordinates[j] = coordinate;
        value - coordinate * coordinate
    }
}

/// The picks of an epoch and what their rows look like in it.
pub(super) struct Epoch<'a> {
    survey: &'a Survey<'a>,
    monitor: &'a Monitor,
    /// Picks after which the epoch ends; `usize::MAX` if this pool never leaves its first one.
    length: usize,
    /// Lower triangle of M at the start of the epoch, column after column; empty while M = I.
    matrix: Vec<f64>,
    /// All inner products, where rows are not looked at one by one; then nothing is whitened.
    gram: Option<Gram>,
    /// Positions of the picks.
    positions: Vec<Position>,
    /// What takes rows past them.
    basis: Basis,
    /// α Σ ‖y_j‖².
    growth: f64,
    /// No row that can still win started the epoch with a larger q.
    ceiling: f64,
    /// max ‖g‖² over the pool.
    largest: f64,
    /// α Σ ‖g‖² over the picks of all epochs: 1 + trace bounds cond(M).
    trace: f64,
}

/// A row on its way through an epoch.
pub(super) struct Follower<'a> {
    pub(super) position: Position,
    pub(super) whitened: &'a [f64],
    pub(super) coordinates: &'a mut [f64],
    pub(super) value: &'a mut f64,
}

impl<'a> Epoch<'a> {
    /// An epoch that never ends if it is to be `endless`, or if M would be too wide to factor.
    pub(super) fn new(survey: &'a Survey<'a>, alpha: f64, endless: bool, monitor: &'a Monitor) -> Self {
        let dim = survey.dim();
        let factors = dim <= MAX_DIM && !endless;
        Self {
            survey,
            monitor,
            length: if factors { MIN_LENGTH.max(dim / 2) } else { usize::MAX },
            matrix: Vec::new(),
            gram: None,
            positions: Vec::new(),
            basis: Basis::new(survey.kernels(), alpha, dim),
            growth: 0.0,
            ceiling: survey.largest_norm_sq(),
            largest: survey.largest_norm_sq(),
            trace: 0.0,
        }
    }

    /// Whether M is never factored.
    pub(super) fn is_endless(&self) -> bool {
        self.length == usize::MAX
    }

    /// Goes by the inner products of all rows from now on, at the start of an endless epoch.
    pub(super) fn use_gram(&mut self, gram: Gram) {
        self.gram = Some(gram);
    }

    /// Whether M may have to be factored for so many picks.
    pub(super) fn may_end(&self, picks: usize) -> bool {
        let growth = self.basis.alpha * self.largest * picks as f64;
        !self.is_endless() && (picks >= self.length || growth > MOST_GROWTH)
    }

    /// Cells of a whitened row.
    pub(super) fn row_len(&self) -> usize {
        if self.gram.is_some() { 1 } else { self.survey.dim() }
    }

    /// Coordinates that a row needs room for if at most so many rows are picked.
    pub(super) fn width(&self, picks: usize) -> usize {
        self.length.min(picks)
    }

    /// Fails once the run is to stop.
    pub(super) fn check(&self) -> Result<()> {
        self.monitor.check()
    }

    /// Picks in this epoch.
    pub(super) fn picks(&self) -> usize {
        self.positions.len()
    }

    /// The picks' whitened rows, (t, d).
    pub(super) fn whitened(&self) -> &[f64] {
        &self.basis.whitened
    }

    /// The coordinates of pick `j` (j of them) and its √α / √(1 + α q_j).
    pub(super) fn pick(&self, j: usize) -> (&[f64], f64) {
        (&self.basis.coordinates[j], self.basis.lengths[j])
    }

    /// X, row after row; `None` while M = I.
    pub(super) fn inverse(&self) -> Option<&[f64]> {
        (!self.basis.inverse.is_empty()).then_some(&self.basis.inverse)
    }

    /// Writes the whitened rows to `out`, using `cells` for the rows themselves; returns their q at the start of
    /// the epoch.
    pub(super) fn whiten(
        &self,
        positions: &[Position],
        cells: &mut Vec<f64>,
        out: &mut [f64],
    ) -> Vec<f64> {
        let (dim, survey) = (self.survey.dim(), self.survey);
        if self.gram.is_some() {
            return positions.iter().map(|&position| survey.norm_sq(position)).collect();
        }
        let norms_sq = positions.iter().map(|&position| survey.norm_sq(position));
        if self.basis.inverse.is_empty() {
            for (&position, out) in positions.iter().zip(out.chunks_exact_mut(dim)) {
                survey.load(position, out);
            }
            return norms_sq.collect();
        }
        cells.resize(positions.len() * dim, 0.0);
        for (&position, cells) in positions.iter().zip(cells.chunks_exact_mut(dim)) {
            survey.load(position, cells);
        }
        self.basis.whiten(cells, norms_sq, out)
    }

    /// Takes followers that have seen the first `seen` picks past the rest.
    pub(super) fn follow(&self, followers: &mut [Follower<'_>], seen: usize, products: &mut Vec<f64>) {
        let missing = self.positions.len() - seen;
        if missing == 0 || followers.is_empty() {
            return;
        }
        products.resize(followers.len() * missing, 0.0);
        if let Some(gram) = &self.gram {
            for (follower, products) in followers.iter().zip(products.chunks_exact_mut(missing)) {
                for (product, &pick) in products.iter_mut().zip(&self.positions[seen..]) {
                    *product = gram.product(follower.position, pick);
                }
            }
        } else {
            let rows: Vec<&[f64]> = followers.iter().map(|follower| follower.whitened).collect();
            self.basis.products(&rows, seen..self.positions.len(), products);
        }
        for (follower, products) in followers.iter_mut().zip(products.chunks_exact(missing)) {
            for (j, &product) in (seen..).zip(products) {
                *follower.value = self.basis.pass(j, product, follower.coordinates, *follower.value);
            }
        }
    }

    /// Adds a pick: its whitened row, its coordinates and its q.
    pub(super) fn push(
        &mut self,
        position: Position,
        whitened: &[f64],
        coordinates: &[f64],
        value: f64,
    ) {
        self.growth += self.basis.alpha * self.basis.kernels.dot(whitened, whitened);
        self.trace += self.basis.alpha * self.survey.norm_sq(position);
        if self.gram.is_none() {
            self.basis.whitened.extend_from_slice(whitened);
        }
        self.basis.coordinates.push(coordinates[..self.positions.len()].to_vec());
        self.basis.lengths.push((self.basis.alpha / (1.0 + self.basis.alpha * value.max(0.0))).sqrt());
        self.positions.push(position);
    }

    /// Notes at the first pick of the epoch that no row which can still win has a larger q than `most`.
    pub(super) fn limit(&mut self, most: f64) {
        if self.positions.is_empty() {
            self.ceiling = most.min(self.largest);
        }
    }

    /// Whether the epoch is over.
    pub(super) fn is_over(&self) -> bool {
        self.positions.len() >= self.length
    }

    /// Whether too few digits may be left to tell rows of value `least`, which the winner has at least, from others.
    pub(super) fn is_doubtful(&self, least: f64) -> bool {
        self.length != usize::MAX && self.growth > MOST_GROWTH && least < LEAST_PART * self.ceiling
    }

    /// Starts the next epoch: every row has to be whitened anew.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if I + αF is not positive definite in float64; [`Error::Interrupted`].
    pub(super) fn restart(&mut self) -> Result<()> {
        let dim = self.survey.dim();
        if self.matrix.is_empty() {
            self.matrix = vec![0.0; dim * dim];
            (0..dim).for_each(|i| self.matrix[i * dim + i] = 1.0);
        }
        self.basis.inverse = Vec::new(); // before the factor takes its room
        self.basis.whitened.clear();
        let mut cells = vec![0.0; self.positions.len().min(256) * dim];
        for positions in self.positions.chunks(256) {
            self.monitor.check()?;
            for (&position, cells) in positions.iter().zip(cells.chunks_exact_mut(dim)) {
                self.survey.load(position, cells);
            }
            add_outer_products(&mut self.matrix, dim, &cells[..positions.len() * dim], self.basis.alpha);
        }
        let factor = Cholesky::new(self.matrix.clone(), dim, || self.monitor.check())?;
        let factor = factor.ok_or_else(|| {
            Error::invalid(
                "alpha",
                format!(
                    "{}, with which I + alpha F is no longer positive definite in float64",
                    self.basis.alpha
                ),
                "rows or an alpha that leave the I of I + alpha F its digits",
                "Lower alpha, or use normalize=\"unit\".",
            )
        })?;
        self.basis.inverse = factor.inverse(|| self.monitor.check())?;
        self.positions.clear();
        self.basis.coordinates.clear();
        self.basis.lengths.clear();
        self.growth = 0.0;
        Ok(())
    }

    /// What takes any row past the picks of this epoch, all inner products aside.
    pub(super) const fn basis(&self) -> &Basis {
        &self.basis
    }

    /// How far a computed q may be from the true one, relatively.
    pub(super) fn slack(&self) -> f64 {
        let solve = 8.0 * self.survey.dim() as f64 * f64::EPSILON * (1.0 + self.trace);
        solve.clamp(SLACK, 1.0)
    }
}
