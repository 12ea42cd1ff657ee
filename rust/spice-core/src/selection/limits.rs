//! Groups and budgets, a partition matroid with lower bounds (Fisher, Nemhauser and Wolsey 1978) and a knapsack: what the picks
//! have cost so far, and what may still be picked.

use crate::error::{Error, Result};
use crate::rows::Position;
use crate::survey::check_numbers;

/// Part of a limit by which all that is spent may exceed it: 0.1 and 0.2 are more than 0.3 in float64.
pub const ROUNDING: f64 = 1e-9;

/// Groups with a minimum and a maximum each, and a total budget.
///
/// A row x of group G is eligible while G's maximum leaves room for it, and the budget pays for x and for what all
/// groups lack to their minima afterwards. Both only ever get stricter, so that a row once ineligible stays so.
#[derive(Clone, Debug, PartialEq)]
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
    /// The largest cost of a row of each group that may be picked before each of `picks`, and after all of them:
    /// (m + 1, g), row after row.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a pick has no group or no cost, or if a limit is none.
    pub fn allowances(&self, picks: &[Position]) -> Result<Vec<f64>> {
        let rows = self.groups.as_ref().map(Vec::len).or(self.costs.as_ref().map(Vec::len));
        let n =
            rows.unwrap_or_else(|| picks.iter().max().map_or(0, |last| last.get().saturating_add(1)));
        self.check(n)?;
        if let Some(position) = picks.iter().find(|position| position.get() >= n) {
            return Err(Error::invalid(
                "picks",
                position,
                format!("rows below {n}"),
                "Name rows of the source.",
            ));
        }
        let mut ledger = Ledger::new(self);
        let mut found = Vec::with_capacity((picks.len() + 1) * self.minima.len());
        let groups = 0..self.minima.len();
        found.extend(groups.clone().map(|group| ledger.allowance(group)));
        for &position in picks {
            ledger.spend(position);
            found.extend(groups.clone().map(|group| ledger.allowance(group)));
        }
        Ok(found)
    }

    /// Cost of a row.
    pub(super) fn cost(&self, position: Position) -> f64 {
        self.costs.as_ref().map_or(1.0, |costs| costs[position.get()])
    }

    /// The most rows that may be picked, of `candidates` and of rows that are `include`d.
    pub(super) fn most_picks(&self, candidates: &[Position], include: &[Position]) -> usize {
        let mut costs: Vec<f64> =
            candidates.iter().chain(include).map(|&position| self.cost(position)).collect();
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
    pub(super) fn group(&self, position: Position) -> usize {
        self.groups.as_ref().map_or(0, |groups| groups[position.get()])
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

/// What a ledger knows beside its limits.
#[cfg(any(test, fuzzing))]
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Books {
    pub(super) spent: f64,
    pub(super) by_group: Vec<f64>,
    pub(super) slack: f64,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        let mut ledger =
            Self { limits, spent: 0.0, by_group: vec![0.0; limits.minima.len()], slack: f64::INFINITY };
        ledger.tighten();
        ledger
    }

    /// Whether the row may be picked next.
    pub(super) fn admits(&self, position: Position) -> bool {
        self.limits.cost(position) <= self.allowance(self.limits.group(position))
    }

    /// The largest cost of a row of the group that may be picked next; never grows.
    fn allowance(&self, group: usize) -> f64 {
        if self.slack < 0.0 {
            return f64::NEG_INFINITY;
        }
        let by_maximum = self.limits.maxima[group] * (1.0 + ROUNDING) - self.by_group[group];
        by_maximum.min(self.slack + self.unmet(group))
    }

    /// Enters a pick.
    pub(super) fn spend(&mut self, position: Position) {
        let cost = self.limits.cost(position);
        self.spent += cost;
        self.by_group[self.limits.group(position)] += cost;
        self.tighten();
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn books(&self) -> Books {
        Books { spent: self.spent, by_group: self.by_group.clone(), slack: self.slack }
    }

    /// Goes on from where another ledger of the same limits is.
    #[cfg(any(test, fuzzing))]
    pub(super) fn follow(&mut self, books: Books) {
        Books { spent: self.spent, by_group: self.by_group, slack: self.slack } = books;
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
        let open = |ledger: &Ledger<'_>| {
            Position::all(5).map(|position| ledger.admits(position)).collect::<Vec<_>>()
        };
        assert_eq!(open(&ledger), [true; 5]);
        ledger.spend(Position::new(0));
        assert_eq!(open(&ledger), [false, false, true, true, true]);
        ledger.spend(Position::new(4));
        assert_eq!(open(&ledger), [false, false, true, true, false], "the last one is owed to group 1");
        ledger.spend(Position::new(2));
        assert_eq!(open(&ledger), [false; 5]);
    }

    #[test]
    fn what_is_allowed_is_what_the_definition_allows() {
        let mut state = 7_u64;
        let mut below = |end: u64| {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let mut refused = 0;
        for _ in 0..300 {
            let (n, count) = (1 + below(9) as usize, 1 + below(4) as usize);
            let groups: Vec<usize> = (0..n).map(|_| below(count as u64) as usize).collect();
            let costs: Vec<f64> = (0..n).map(|_| (1 + below(5)) as f64).collect();
            let minima: Vec<f64> = (0..count).map(|_| below(5) as f64).collect();
            let maxima: Vec<f64> = minima.iter().map(|least| least + below(6) as f64).collect();
            let limits = Limits {
                groups: Some(groups.clone()),
                minima: minima.clone(),
                maxima: maxima.clone(),
                costs: Some(costs.clone()),
                budget: below(20) as f64,
            };
            // Whole numbers: nothing is rounded, and the definition can be taken at its word.
            let allowed = |picks: &[Position], position: Position| {
                let cost_of = |group: usize, positions: &[Position]| -> f64 {
                    let of_group = |position: &&Position| groups[position.get()] == group;
                    positions.iter().filter(of_group).map(|position| costs[position.get()]).sum()
                };
                let after = [picks, &[position]].concat();
                let owed: f64 =
                    (0..count).map(|group| (minima[group] - cost_of(group, &after)).max(0.0)).sum();
                let spent: f64 = after.iter().map(|position| costs[position.get()]).sum();
                let group = groups[position.get()];
                cost_of(group, &after) <= maxima[group] && spent + owed <= limits.budget
            };
            let mut picks = Vec::new();
            loop {
                let table = limits.allowances(&picks).unwrap();
                let now = &table[picks.len() * count..];
                let open: Vec<Position> =
                    Position::all(n).filter(|position| !picks.contains(position)).collect();
                for &position in &open {
                    assert_eq!(
                        costs[position.get()] <= now[groups[position.get()]],
                        allowed(&picks, position),
                        "{limits:?} {picks:?} {position}"
                    );
                }
                let Some(&next) = open.iter().find(|&&position| allowed(&picks, position)) else {
                    break;
                };
                refused += usize::from(open.iter().any(|&position| !allowed(&picks, position)));
                picks.push(next);
            }
        }
        assert!(refused > 50);
    }

    #[test]
    fn minima_that_are_all_of_the_budget_can_be_met_whatever_the_rounding() {
        let shares = [0.1, 0.2, 0.7];
        let limits = limits(&shares, &[1.0; 3], shares.iter().sum::<f64>() - 1e-16);
        let limits = Limits { costs: Some(vec![0.1, 0.1, 0.2, 0.2, 0.7]), ..limits };
        let mut ledger = Ledger::new(&limits);
        for position in [4, 0, 2].map(Position::new) {
            assert!(ledger.admits(position), "{position}");
            ledger.spend(position);
        }
        assert!(Position::all(5).all(|position| !ledger.admits(position)));
        // Ten of 0.1 fit into 1, five of them into each half.
        let halves = Limits {
            groups: Some((0..20).map(|place| place % 2).collect()),
            minima: vec![0.5; 2],
            maxima: vec![0.5; 2],
            costs: Some(vec![0.1; 20]),
            budget: 1.0,
        };
        let mut ledger = Ledger::new(&halves);
        let mut picks = 0;
        while let Some(position) = Position::all(20).find(|&position| ledger.admits(position)) {
            ledger.spend(position);
            picks += 1;
        }
        assert_eq!(picks, 10);
    }
}
