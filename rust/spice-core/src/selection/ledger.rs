//! What the picks have cost so far, and what may still be picked.

use super::conditions::Limits;

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
        self.by_group[group] + cost <= self.limits.maxima[group]
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
        // Where the minima are all of the budget, rounding must not close it to them.
        self.slack = self.slack.min((self.limits.budget - self.spent - unmet).max(0.0));
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
    }
}
