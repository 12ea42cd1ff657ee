//! What a row is worth before its conflict is taken off, m·Δ + b, and after: its score.
//!
//! m and b are constants of a row, so a bound of Δ is a bound of the merit, and laziness stays exact.

use crate::rows::Position;

/// The score of a row: its merit less λ·conflict.
pub(super) fn score(merit: f64, penalty: f64, conflict: f64) -> f64 {
    merit - penalty * conflict
}

/// m and b of all rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merit<'a> {
    multiplier: Option<&'a [f64]>,
    bonus: Option<&'a [f64]>,
    /// The least and the largest m and b.
    multipliers: (f64, f64),
    bonuses: (f64, f64),
}

impl<'a> Merit<'a> {
    pub(super) fn new(multiplier: Option<&'a [f64]>, bonus: Option<&'a [f64]>) -> Self {
        let range = |values: Option<&[f64]>, default: f64| match values {
            None => (default, default),
            Some(values) => (
                values.iter().copied().fold(f64::INFINITY, f64::min),
                values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ),
        };
        Self { multiplier, bonus, multipliers: range(multiplier, 1.0), bonuses: range(bonus, 0.0) }
    }

    /// Whether the merit is Δ itself.
    pub(super) const fn is_gain(&self) -> bool {
        self.multiplier.is_none() && self.bonus.is_none()
    }

    /// m·Δ + b; grows with Δ, rounded or not.
    pub(super) fn of(&self, position: Position, gain: f64) -> f64 {
        if self.is_gain() { gain } else { self.multiplier(position) * gain + self.bonus(position) }
    }

    /// The Δ with which a row's merit is `merit`.
    pub(super) fn gain(&self, position: Position, merit: f64) -> f64 {
        if self.is_gain() { merit } else { (merit - self.bonus(position)) / self.multiplier(position) }
    }

    /// No row whose merit is at least `merit` has a smaller Δ, unless this is negative.
    pub(super) fn least_gain(&self, merit: f64) -> f64 {
        (merit - self.bonuses.1) / self.multipliers.1
    }

    /// No row whose merit is at most `merit` has a larger Δ.
    pub(super) fn most_gain(&self, merit: f64) -> f64 {
        (merit - self.bonuses.0) / self.multipliers.0
    }

    /// m and b of a row as bits: rows that agree in them and in Δ agree in merit.
    pub(super) fn key(&self, position: Position) -> (u64, u64) {
        (self.multiplier(position).to_bits(), self.bonus(position).to_bits())
    }

    fn multiplier(&self, position: Position) -> f64 {
        self.multiplier.map_or(1.0, |values| values[position.get()])
    }

    fn bonus(&self, position: Position) -> f64 {
        self.bonus.map_or(0.0, |values| values[position.get()])
    }
}
