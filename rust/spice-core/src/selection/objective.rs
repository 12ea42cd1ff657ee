//! What a row is worth under the released code's readings of the Fisher information.
//!
//! Every objective keeps one number per row, its *value* v, with Δ = log(1 + α·v), and knows how to
//! bring a stale value up to date. The value after t picks is a function of the row and the picks
//! alone: a value updated at every pick and one updated once after many are the same bits. That is
//! what lets the lazy search equal the eager one exactly. (The paper's reading is in `full`.)

use crate::linalg::Kernels;

/// A row's value and the moment it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marginal {
    /// v in Δ = log(1 + αv).
    pub(super) value: f64,
    /// Picks that `value` accounts for.
    seen: u32,
}

impl Marginal {
    /// The marginal of a row while nothing is selected.
    pub(super) const fn start(value: f64) -> Self {
        Self { value, seen: 0 }
    }
}

/// One reading of the Fisher information.
pub(super) trait Objective: Sync {
    /// The value of a row of squared norm `norm_sq` while nothing is selected.
    fn start(&self, norm_sq: f64) -> f64;

    /// Brings `marginals` up to date; `rows` holds the rows they belong to, one after the other.
    fn refresh(&self, rows: &[f64], marginals: &mut [Marginal]);

    /// Adds a row to the selected set. No value may grow by it, not even by rounding.
    fn push(&mut self, row: &[f64]);
}

/// The authors' released code: F is taken as diagonal and made of fourth powers.
///
/// s = Σ_j g_j²/den_j with den = 1 at first and den_j += α·g_j⁴ at a pick (their "AdaFisher": h = |g|·g,
/// squared). It is theirs, and not the paper's formula.
#[derive(Clone)]
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

    fn refresh(&self, rows: &[f64], marginals: &mut [Marginal]) {
        for (row, marginal) in rows.chunks_exact(self.weight.len()).zip(marginals) {
            if marginal.seen != self.picks {
                marginal.value = self.kernels.dot_squared(row, &self.weight);
                marginal.seen = self.picks;
            }
        }
    }

    fn push(&mut self, row: &[f64]) {
        self.picks += 1;
        let (denominator, weight) = (&mut self.denominator, &mut self.weight);
        self.kernels.add_fourth_powers(denominator, weight, row, self.alpha);
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

    fn refresh(&self, _: &[f64], _: &mut [Marginal]) {}

    fn push(&mut self, _: &[f64]) {}
}
