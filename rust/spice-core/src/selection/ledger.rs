//! What the picks have cost so far, and what may still be picked.

use super::conditions::Limits;

/// Part of a limit by which all that is spent may exceed it: 0.1 and 0.2 are more than 0.3 in float64.
const ROUNDING: f64 = 1e-9;

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
