//! What a user asks of a selection besides its settings: limits, rows that are forced or excluded, what rows are worth.

use super::limits::{Ledger, Limits};
use super::merit::{Merit, score};
use crate::error::{Error, Result};
use crate::rows::Position;
use crate::survey::{Survey, check_numbers};

/// Conditions of a run; all rows are given by their positions. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    /// m_x > 0 of each row, (n,): the score is m_x·Δ_x − λ·conflict_x + b_x; all 1 if `None`.
    pub multiplier: Option<Vec<f64>>,
    /// b_x of each row, (n,); all 0 if `None`.
    pub bonus: Option<Vec<f64>>,
    /// Rows selected before the run: they enter F and the mean, are no picks and cost nothing.
    pub initial: Vec<Position>,
    /// The first picks, in this order.
    pub include: Vec<Position>,
    /// Rows that are never picked.
    pub exclude: Vec<Position>,
    /// How much of what may be picked.
    pub limits: Option<Limits>,
    /// τ in (0, 1): no row is picked whose |cosine| to a selected row exceeds it, unless it is included.
    pub max_similarity: Option<f64>,
}

impl Conditions {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// m and b of all rows.
    pub(super) fn merit(&self) -> Merit<'_> {
        Merit::new(self.multiplier.as_deref(), self.bonus.as_deref())
    }

    /// The scores of rows whose Δ are `gains` and whose conflicts are `conflicts`: m·Δ + b − λ·conflict.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a row has no m, no b, no Δ or no conflict.
    pub fn scores(
        &self,
        positions: &[Position],
        gains: &[f64],
        conflicts: &[f64],
        penalty: f64,
    ) -> Result<Vec<f64>> {
        let lengths =
            [&self.multiplier, &self.bonus].map(|values| values.as_ref().map_or(usize::MAX, Vec::len));
        let outside = |position: Position| lengths.iter().any(|&length| position.get() >= length);
        let counts = [gains.len(), conflicts.len()];
        if counts != [positions.len(); 2] || positions.iter().copied().any(outside) {
            let expected = "rows of the source, with a gain and a conflict for each";
            return Err(Error::invalid("rows", "others", expected, "Name rows of the source."));
        }
        let merit = self.merit();
        let rows = positions.iter().zip(gains).zip(conflicts);
        Ok(rows
            .map(|((&position, &gain), &conflict)| score(merit.of(position, gain), penalty, conflict))
            .collect())
    }

    /// Initial rows and included ones, in the order in which they are added.
    pub(super) fn forced(&self) -> impl Iterator<Item = Position> {
        self.initial.iter().chain(&self.include).copied()
    }

    /// The rows that compete: neither forced nor excluded.
    pub(super) fn candidates(&self, survey: &Survey<'_>) -> Vec<Position> {
        let mut free = vec![true; survey.len()];
        self.forced()
            .chain(self.exclude.iter().copied())
            .for_each(|position| free[position.get()] = false);
        Position::all(survey.len()).filter(|position| free[position.get()]).collect()
    }

    /// # Errors
    /// [`Error::InvalidInput`] naming what is out of range, of another length or listed twice.
    pub(super) fn check(&self, survey: &Survey<'_>) -> Result<()> {
        let n = survey.len();
        check_numbers("multiplier", self.multiplier.as_deref(), n, true)?;
        check_numbers("bonus", self.bonus.as_deref(), n, false)?;
        let mut listed = vec![false; n];
        for position in self.forced().chain(self.exclude.iter().copied()) {
            if position.get() >= n || std::mem::replace(&mut listed[position.get()], true) {
                let found = if position.get() < n {
                    format!("row {} twice", survey.dataset_row(position))
                } else {
                    position.to_string()
                };
                let expected = format!("rows from 0 to {}, each in one list, once", n - 1);
                return Err(Error::invalid(
                    "initial, include, exclude",
                    found,
                    expected,
                    "Leave it out.",
                ));
            }
        }
        if let Some(tau) = self.max_similarity
            && !(tau > 0.0 && tau < 1.0)
        {
            let expected = "a number between 0 and 1, both excluded";
            let remedy = "0.95 skips near-duplicates alone; None switches it off.";
            return Err(Error::invalid("max_similarity", tau, expected, remedy));
        }
        let Some(limits) = &self.limits else { return Ok(()) };
        limits.check(n)?;
        let mut ledger = Ledger::new(limits);
        for &position in &self.include {
            if !ledger.admits(position) {
                let found = format!(
                    "row {}, which costs {}",
                    survey.dataset_row(position),
                    limits.cost(position)
                );
                let expected = "rows that the budget and the maximum of their group have room for";
                return Err(Error::invalid(
                    "include",
                    found,
                    expected,
                    "Leave it out, or raise the budget.",
                ));
            }
            ledger.spend(position);
        }
        Ok(())
    }
}
