//! The released code's default: the rows of largest Δ(∅), or of the largest merit with it, no interaction.

use super::greedy::{Greedy, Leader};
use super::objective::Objective;
use super::pick::StopReason;
use super::places::{Place, Slot};
use super::run::{Candidate, Outcome};
use crate::error::Result;
use crate::rows::Position;

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    mut candidates: Vec<Position>,
    k: usize,
) -> Result<Outcome> {
    let merit = |position: Position, greedy: &Greedy<'_, O>| {
        greedy.run.merit.of(position, greedy.run.gain(greedy.start(position).value))
    };
    candidates.sort_by(|&a, &b| {
        let descending = merit(b, &greedy).total_cmp(&merit(a, &greedy));
        descending.then_with(|| greedy.dataset_row(a).cmp(&greedy.dataset_row(b)))
    });
    let mut scratch = Vec::new();
    for &position in &candidates {
        greedy.run.check()?;
        if greedy.run.picks() == k {
            return Ok(greedy.run.finish(StopReason::Budget));
        }
        if !greedy.run.admits(position) || greedy.run.is_near_duplicate(position, None) {
            continue;
        }
        let mut leader = Leader::default();
        let mut consider = |candidate: Candidate| leader.consider(&candidate);
        greedy.score(
            &[position],
            &mut [greedy.start(position)],
            Slot::new(0),
            &mut scratch,
            &mut consider,
        );
        if let Some(stop) = greedy.accept(leader, 1)? {
            return Ok(greedy.run.finish(stop));
        }
    }
    let full = greedy.run.picks() == k;
    Ok(greedy.run.finish(if full { StopReason::Budget } else { StopReason::Exhausted }))
}
