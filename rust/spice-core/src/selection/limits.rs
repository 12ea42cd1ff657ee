//! Groups and budgets (a knapsack and a partition matroid with minima): what the picks have cost so far, and what may still be
//! picked.

use crate::error::{Error, Result};
use crate::survey::check_numbers;

/// Part of a limit by which all that is spent may exceed it: 0.1 and 0.2 are more than 0.3 in float64.
const ROUNDING: f64 = 1e-9;

/// Groups with a minimum and a maximum each, and a total budget.
///
/// A row x of group G is eligible while G's maximum leaves room for it, and the budget pays for x and for what all
/// groups lack to their minima afterwards. Both only ever get stricter, so that a row once ineligible stays so.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Group of each row, (n,); all rows are of group 0 if `None`.
    pub groups: Option<Vec<usize>>,
    /// Least cost of the picks of each group, (g,).
    pub minima: Vec<f64>,
    /// Largest cost of the picks of each group, (g,).
    pub maxima: Vec<f64>,
    /// Cost of each row, (n,); 1 if `None`.
    pub costs: Option<Vec<f64>>,
    /// Largest cost of all picks.
    pub budget: f64,
}

impl Limits {
    /// Cost of a row.
    pub(super) fn cost(&self, row: usize) -> f64 {
        self.costs.as_ref().map_or(1.0, |costs| costs[row])
    }

    /// The most rows that may be picked, of `candidates` and of rows that are `include`d.
    pub(super) fn most_picks(&self, candidates: &[usize], include: &[usize]) -> usize {
        let mut costs: Vec<f64> = candidates.iter().chain(include).map(|&row| self.cost(row)).collect();
        costs.sort_unstable_by(f64::total_cmp);
        let mut spent = 0.0;
        // Somewhat more than the ledger allows: this is planned for, and must not end a run.
        let fit = costs.iter().take_while(|&&cost| {
            spent += cost;
            spent <= self.budget * (1.0 + 1e-6)
        });
        fit.count().max(include.len())
    }

    /// Group of a row.
    pub(super) fn group(&self, row: usize) -> usize {
        self.groups.as_ref().map_or(0, |groups| groups[row])
    }

    pub(super) fn check(&self, n: usize) -> Result<()> {
        check_numbers("costs", self.costs.as_deref(), n, true)?;
        let count = self.minima.len();
        let groups = self.groups.as_deref().unwrap_or(&[]);
        let lengths =
            count > 0 && self.maxima.len() == count && (self.groups.is_none() || groups.len() == n);
        let sound = |(least, most): (&f64, &f64)| *least >= 0.0 && least.is_finite() && most >= least;
        let placed = groups.iter().all(|&group| group < count);
        let ordered = self.minima.iter().zip(&self.maxima).all(sound);
        if lengths && placed && ordered && self.budget >= 0.0 && self.budget.is_finite() {
            return Ok(());
        }
        Err(Error::invalid(
            "limits",
            "something else",
            "a group of every row, 0 <= minimum <= maximum of every group, and a finite budget",
            "Check groups and shares.",
        ))
    }
}

/// The books of a run with limits.
///
/// Costs are positive: what is spent only grows and what a group lacks only falls, in float64 too. `slack`, what the
/// budget holds beyond all minima, is kept from growing by rounding. So eligibility is lost once and for all.
pub(super) struct Ledger<'a> {
    limits: &'a Limits,
    spent: f64,
    by_group: Vec<f64>,
    slack: f64,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        let mut ledger =
            Self { limits, spent: 0.0, by_group: vec![0.0; limits.minima.len()], slack: f64::INFINITY };
        ledger.tighten();
        ledger
    }

    /// Whether the row may be picked next.
    pub(super) fn admits(&self, row: usize) -> bool {
        let (cost, group) = (self.limits.cost(row), self.limits.group(row));
        self.by_group[group] + cost <= self.limits.maxima[group] * (1.0 + ROUNDING)
            && (cost - self.unmet(group)).max(0.0) <= self.slack
    }

    /// Enters a pick.
    pub(super) fn spend(&mut self, row: usize) {
        let cost = self.limits.cost(row);
        self.spent += cost;
        self.by_group[self.limits.group(row)] += cost;
        self.tighten();
    }

    /// What the group lacks to its minimum.
    fn unmet(&self, group: usize) -> f64 {
        (self.limits.minima[group] - self.by_group[group]).max(0.0)
    }

    fn tighten(&mut self) {
        let unmet: f64 = (0..self.by_group.len()).map(|group| self.unmet(group)).sum();
        let left = self.limits.budget * (1.0 + ROUNDING) - self.spent - unmet;
        self.slack = self.slack.min(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(minima: &[f64], maxima: &[f64], budget: f64) -> Limits {
        Limits {
            groups: Some(vec![0, 0, 1, 1, 2]),
            minima: minima.to_vec(),
            maxima: maxima.to_vec(),
            costs: None,
            budget,
        }
    }

    #[test]
    fn a_full_group_and_a_budget_owed_to_others_close_a_row() {
        let limits = limits(&[0.0, 1.0, 0.0], &[1.0, 2.0, 9.0], 3.0);
        let mut ledger = Ledger::new(&limits);
        let open = |ledger: &Ledger<'_>| (0..5).map(|row| ledger.admits(row)).collect::<Vec<_>>();
        assert_eq!(open(&ledger), [true; 5]);
        ledger.spend(0);
        assert_eq!(open(&ledger), [false, false, true, true, true]);
        ledger.spend(4);
        assert_eq!(open(&ledger), [false, false, true, true, false], "the last one is owed to group 1");
        ledger.spend(2);
        assert_eq!(open(&ledger), [false; 5]);
    }

    #[test]
    fn minima_that_are_all_of_the_budget_can_be_met_whatever_the_rounding() {
        let shares = [0.1, 0.2, 0.7];
        let limits = limits(&shares, &[1.0; 3], shares.iter().sum::<f64>() - 1e-16);
        let limits = Limits { costs: Some(vec![0.1, 0.1, 0.2, 0.2, 0.7]), ..limits };
        let mut ledger = Ledger::new(&limits);
        for row in [4, 0, 2] {
            assert!(ledger.admits(row), "{row}");
            ledger.spend(row);
        }
        assert!((0..5).all(|row| !ledger.admits(row)));
        // Ten of 0.1 fit into 1, five of them into each half.
        let halves = Limits {
            groups: Some((0..20).map(|row| row % 2).collect()),
            minima: vec![0.5; 2],
            maxima: vec![0.5; 2],
            costs: Some(vec![0.1; 20]),
            budget: 1.0,
        };
        let mut ledger = Ledger::new(&halves);
        let mut picks = 0;
        while let Some(row) = (0..20).find(|&row| ledger.admits(row)) {
            ledger.spend(row);
            picks += 1;
        }
        assert_eq!(picks, 10);
    }
}
