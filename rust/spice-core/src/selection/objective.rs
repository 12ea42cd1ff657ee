//! What a row is worth: the marginal gain Δ under three readings of the Fisher information.
//!
//! Every objective keeps one number per row, its *value* v, with Δ = log(1 + α·v), and knows how to
//! bring a stale value up to date. The value after t picks is a function of the row and the picks
//! alone: a value updated at every pick and one updated once after many are the same bits, because
//! both go through the same operations in the same order. That is what lets the lazy search equal
//! the eager one exactly.
//!
//! # The full Fisher information
//! v = q = gᵀM⁻¹g with M = I + αF. With w_j = M_{j−1}⁻¹g_{s_j}/√(1 + α q_{s_j}), Sherman and Morrison's
//! formula reads M_j⁻¹ = M_{j−1}⁻¹ − α w_j w_jᵀ, so a pick costs each row one dot product:
//! q ← q − α(g·w_j)². Subtractions lose digits once q has fallen far, and the list of w grows, so the
//! picks are cut into *epochs*. At the start of an epoch M is factored, and a row that is first
//! looked at in it starts afresh from q = ‖L⁻¹g‖². An epoch ends
//!
//! - after d/2 picks: from there on the fresh start is the cheaper update;
//! - as soon as some row may have lost five digits. For every row
//!   q_start/q ≤ λ_max(M_start^{−½} M M_start^{−½}) ≤ 1 + α Σ_j g_{s_j}ᵀM_start⁻¹g_{s_j}, and the sum is cheap.
//!
//! Both depend on the picks alone. The first epoch has M = I and needs no matrix at all, so a small
//! budget never pays for one. A pool with far fewer rows than columns stays in it for good: M then
//! keeps an eigenvalue of 1 and what subtraction loses stays within what cond(M) excuses.

use crate::error::{Error, Result};
use crate::linalg::{Cholesky, Kernels, add_outer_products};
use crate::monitor::Monitor;

/// A row's value and the moment it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marginal {
    /// v in Δ = log(1 + αv).
    pub(super) value: f64,
    /// Picks that `value` accounts for.
    seen: u32,
    /// The epoch it was computed in.
    epoch: u32,
}

impl Marginal {
    /// The marginal of a row while nothing is selected.
    pub(super) const fn start(value: f64) -> Self {
        Self { value, seen: 0, epoch: 0 }
    }
}

/// One reading of the Fisher information.
pub(super) trait Objective: Sync {
    /// The value of a row of squared norm `norm_sq` while nothing is selected.
    fn start(&self, norm_sq: f64) -> f64;

    /// Brings `marginals` up to date; `rows` holds the rows they belong to, one after the other.
    fn refresh(&self, rows: &[f64], marginals: &mut [Marginal], scratch: &mut Vec<f64>);

    /// Adds a row, whose up-to-date value is `value`, to the selected set.
    fn push(&mut self, row: &[f64], value: f64) -> Result<()>;

    /// How much a value computed at any earlier pick may lie below today's, relatively: in exact
    /// arithmetic never, with rounding by this much.
    fn slack(&self) -> f64;
}

/// The paper's: U(S) = log det(I + αF_S).
pub(super) struct FullFisher<'a> {
    monitor: &'a Monitor,
    kernels: Kernels,
    alpha: f64,
    dim: usize,
    epoch: u32,
    picks: u32,
    /// Picks before this epoch.
    epoch_start: u32,
    /// The w_j of this epoch, (t, d).
    directions: Vec<f64>,
    /// α Σ gᵀM_start⁻¹g over the picks of this epoch.
    growth: f64,
    /// α Σ ‖g‖² over all picks: 1 + trace bounds cond(M).
    trace: f64,
    /// `None` if this pool never leaves its first epoch.
    base: Option<EpochBase>,
}

/// M at the start of the epoch.
struct EpochBase {
    /// Lower triangle of M, column after column; empty while M = I.
    matrix: Vec<f64>,
    factor: Option<Cholesky>,
    /// The picked rows of this epoch, (t, d): what M lacks.
    rows: Vec<f64>,
}

impl<'a> FullFisher<'a> {
    /// Largest loss of digits within an epoch: 1e5 · 2⁻⁵³ leaves ten digits.
    const MAX_GROWTH: f64 = 1e5;
    /// Shortest regular epoch; below, a factorisation costs less than keeping count.
    const MIN_EPOCH: usize = 32;
    /// Widest matrix that is factored: three of them take 6 GB.
    const MAX_DIM: usize = 16_384;

    pub(super) fn new(
        kernels: Kernels,
        alpha: f64,
        dim: usize,
        candidates: usize,
        monitor: &'a Monitor,
    ) -> Self {
        let factors = dim <= Self::MAX_DIM && candidates > dim / 4;
        let base = factors.then(|| EpochBase { matrix: Vec::new(), factor: None, rows: Vec::new() });
        let (directions, growth, trace) = (Vec::new(), 0.0, 0.0);
        Self {
            monitor,
            kernels,
            alpha,
            dim,
            epoch: 0,
            picks: 0,
            epoch_start: 0,
            directions,
            growth,
            trace,
            base,
        }
    }

    fn direction(&self, pick: u32) -> &[f64] {
        &self.directions[(pick - self.epoch_start) as usize * self.dim..][..self.dim]
    }

    fn start_epoch(&mut self) -> Result<()> {
        let Some(base) = &mut self.base else { return Ok(()) };
        if base.matrix.is_empty() {
            base.matrix = vec![0.0; self.dim * self.dim];
            (0..self.dim).for_each(|i| base.matrix[i * self.dim + i] = 1.0);
        }
        add_outer_products(&mut base.matrix, self.dim, &base.rows, self.alpha);
        base.rows.clear();
        let factor = Cholesky::new(base.matrix.clone(), self.dim, || self.monitor.check())?;
        base.factor = Some(factor.ok_or_else(|| {
            Error::invalid(
                "alpha",
                format!(
                    "{}, with which I + alpha F is no longer positive definite in float64",
                    self.alpha
                ),
                "rows or an alpha that leave the I of I + alpha F its digits",
                "Lower alpha, or use normalize=\"unit\".",
            )
        })?);
        self.directions.clear();
        self.growth = 0.0;
        self.epoch += 1;
        self.epoch_start = self.picks;
        Ok(())
    }
}

impl Objective for FullFisher<'_> {
    fn start(&self, norm_sq: f64) -> f64 {
        norm_sq
    }

    fn refresh(&self, rows: &[f64], marginals: &mut [Marginal], scratch: &mut Vec<f64>) {
        if let Some(factor) = self.base.as_ref().and_then(|base| base.factor.as_ref()) {
            scratch.clear();
            for (row, _) in stale_of(rows, self.dim, marginals, self.epoch) {
                scratch.extend_from_slice(row);
            }
            factor.solve_lower(self.kernels, scratch);
            let solved = scratch.chunks_exact(self.dim);
            for ((_, marginal), z) in stale_of(rows, self.dim, marginals, self.epoch).zip(solved) {
                *marginal = Marginal {
                    value: self.kernels.dot(z, z),
                    seen: self.epoch_start,
                    epoch: self.epoch,
                };
            }
        }
        let oldest = marginals.iter().map(|m| m.seen).min().unwrap_or(self.picks);
        for pick in oldest..self.picks {
            let direction = self.direction(pick);
            for (row, marginal) in rows.chunks_exact(self.dim).zip(marginals.iter_mut()) {
                if marginal.seen == pick {
                    let overlap = self.kernels.dot(row, direction);
                    marginal.value -= self.alpha * overlap * overlap;
                    marginal.seen = pick + 1;
                }
            }
        }
    }

    fn push(&mut self, row: &[f64], value: f64) -> Result<()> {
        let mut direction = row.to_vec();
        if let Some(factor) = self.base.as_ref().and_then(|base| base.factor.as_ref()) {
            factor.solve_lower(self.kernels, &mut direction);
            factor.solve_upper(self.kernels, &mut direction);
        }
        self.growth += self.alpha * self.kernels.dot(row, &direction);
        self.trace += self.alpha * self.kernels.dot(row, row);
        for earlier in self.directions.chunks_exact(self.dim) {
            let overlap = self.kernels.dot(row, earlier);
            self.kernels.add_scaled(&mut direction, -self.alpha * overlap, earlier);
        }
        let length = (1.0 + self.alpha * value.max(0.0)).sqrt();
        self.directions.extend(direction.iter().map(|cell| cell / length));
        self.picks += 1;

        let Some(base) = &mut self.base else { return Ok(()) };
        base.rows.extend_from_slice(row);
        let epoch_picks = (self.picks - self.epoch_start) as usize;
        if epoch_picks >= Self::MIN_EPOCH.max(self.dim / 2) || self.growth > Self::MAX_GROWTH {
            self.start_epoch()?;
        }
        Ok(())
    }

    fn slack(&self) -> f64 {
        let solve = 8.0 * self.dim as f64 * f64::EPSILON * (1.0 + self.trace);
        solve.clamp(1e-9, 1.0)
    }
}

/// The rows whose marginals belong to an earlier epoch.
fn stale_of<'a>(
    rows: &'a [f64],
    dim: usize,
    marginals: &'a mut [Marginal],
    epoch: u32,
) -> impl Iterator<Item = (&'a [f64], &'a mut Marginal)> {
    rows.chunks_exact(dim).zip(marginals).filter(move |(_, marginal)| marginal.epoch != epoch)
}

/// The authors' released code: F is taken as diagonal and made of fourth powers.
///
/// s = Σ_j g_j²/den_j with den = 1 at first and den_j += α·g_j⁴ at a pick (their "AdaFisher": h = |g|·g,
/// squared). It is theirs, and not the paper's formula.
pub(super) struct DiagonalFisher {
    kernels: Kernels,
    alpha: f64,
    picks: u32,
    denominator: Vec<f64>,
    /// 1/den, (d,).
    weight: Vec<f64>,
}

impl DiagonalFisher {
    pub(super) fn new(kernels: Kernels, alpha: f64, dim: usize) -> Self {
        Self { kernels, alpha, picks: 0, denominator: vec![1.0; dim], weight: vec![1.0; dim] }
    }
}

impl Objective for DiagonalFisher {
    fn start(&self, norm_sq: f64) -> f64 {
        norm_sq
    }

    fn refresh(&self, rows: &[f64], marginals: &mut [Marginal], _: &mut Vec<f64>) {
        for (row, marginal) in rows.chunks_exact(self.weight.len()).zip(marginals) {
            if marginal.seen != self.picks {
                marginal.value = self.kernels.dot_squared(row, &self.weight);
                marginal.seen = self.picks;
            }
        }
    }

    fn push(&mut self, row: &[f64], _: f64) -> Result<()> {
        self.picks += 1;
        for ((denominator, weight), cell) in self.denominator.iter_mut().zip(&mut self.weight).zip(row) {
            let square = cell * cell;
            *denominator += self.alpha * square * square;
            *weight = 1.0 / *denominator;
        }
        Ok(())
    }

    fn slack(&self) -> f64 {
        0.0 // every operation is monotone, rounded or not
    }
}

/// A gain that no pick changes: v = factor · ‖g‖².
///
/// With factor 1/(1 + α) it is the released code's scalar mode, with factor 1 it is Δ(∅).
pub(super) struct FixedGain {
    pub(super) factor: f64,
}

impl Objective for FixedGain {
    fn start(&self, norm_sq: f64) -> f64 {
        norm_sq * self.factor
    }

    fn refresh(&self, _: &[f64], _: &mut [Marginal], _: &mut Vec<f64>) {}

    fn push(&mut self, _: &[f64], _: f64) -> Result<()> {
        Ok(())
    }

    fn slack(&self) -> f64 {
        0.0
    }
}
