//! The released code's default: the rows of largest Δ(∅), or of the largest merit with it, no interaction.

use super::greedy::{Greedy, Leader};
use super::objective::Objective;
use super::pick::StopReason;
use super::run::{Candidate, Outcome};
use crate::error::Result;

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    mut rows: Vec<usize>,
    budget: usize,
) -> Result<Outcome> {
    let merit = |row: usize, greedy: &Greedy<'_, O>| {
        greedy.run.merit.of(row, greedy.run.gain(greedy.start(row).value))
    };
    rows.sort_by(|&a, &b| {
        let descending = merit(b, &greedy).total_cmp(&merit(a, &greedy));
        descending.then_with(|| greedy.index(a).cmp(&greedy.index(b)))
    });
    let mut scratch = Vec::new();
    for &row in &rows {
        greedy.run.check()?;
        if greedy.run.picks() == budget {
            return Ok(greedy.run.finish(StopReason::Budget));
        }
        if !greedy.run.admits(row) || greedy.run.is_near(row, None) {
            continue;
        }
        let mut leader = Leader::default();
        let mut consider = |candidate: Candidate| leader.consider(&candidate);
        greedy.score(&[row], &mut [greedy.start(row)], 0, &mut scratch, &mut consider);
        if let Some(stop) = greedy.accept(leader, 1)? {
            return Ok(greedy.run.finish(stop));
        }
    }
    let full = greedy.run.picks() == budget;
    Ok(greedy.run.finish(if full { StopReason::Budget } else { StopReason::Exhausted }))
}
