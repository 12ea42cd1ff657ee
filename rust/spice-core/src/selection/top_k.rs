//! The released code's default: the rows of largest Δ(∅), no interaction.

use super::greedy::{Greedy, Leader};
use super::objective::Objective;
use super::run::Candidate;
use super::{Pick, StopReason};
use crate::error::Result;

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    mut rows: Vec<usize>,
    budget: usize,
) -> Result<(Vec<Pick>, StopReason)> {
    let gain = |row: usize, greedy: &Greedy<'_, O>| greedy.run.gain(greedy.start(row).value);
    rows.sort_by(|&a, &b| {
        let descending = gain(b, &greedy).total_cmp(&gain(a, &greedy));
        descending.then_with(|| greedy.index(a).cmp(&greedy.index(b)))
    });
    let mut scratch = Vec::new();
    for &row in rows.iter().take(budget - greedy.run.picks()) {
        greedy.run.check()?;
        let mut leader = Leader::default();
        let mut consider = |candidate: Candidate| leader.consider(&candidate);
        greedy.score(&[row], &mut [greedy.start(row)], 0, &mut scratch, &mut consider);
        if let Some(stop) = greedy.accept(leader, 1)? {
            return Ok(greedy.run.finish(stop));
        }
    }
    Ok(greedy.run.finish(StopReason::Budget))
}
