//! The released code's default: the rows of largest Δ(∅), no interaction.

use super::greedy::{Candidate, Greedy, Leader, Scratch};
use super::objective::Objective;
use super::{Pick, StopReason};
use crate::error::Result;

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    mut rows: Vec<usize>,
    budget: usize,
) -> Result<(Vec<Pick>, StopReason)> {
    let gain = |row: usize, greedy: &Greedy<'_, O>| greedy.gain(greedy.start(row).value);
    rows.sort_by(|&a, &b| {
        let descending = gain(b, &greedy).total_cmp(&gain(a, &greedy));
        descending.then_with(|| greedy.index(a).cmp(&greedy.index(b)))
    });
    let mut scratch = Scratch::default();
    for &row in rows.iter().take(budget - greedy.picks()) {
        greedy.check()?;
        let mut leader = Leader::default();
        let mut consider = |candidate: Candidate| leader.consider(&candidate);
        greedy.score(&[row], &mut [greedy.start(row)], 0, &mut scratch, &mut consider);
        if let Some(stop) = greedy.accept(leader, 1)? {
            return Ok(greedy.finish(stop));
        }
    }
    Ok(greedy.finish(StopReason::Budget))
}
