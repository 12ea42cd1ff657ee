//! The naive search, on all cores: one pass over all remaining rows per pick.
//!
//! It is the oracle that the lazy search is tested against and the baseline that it is timed
//! against, and it stays as simple as it is.

use rayon::prelude::*;

use super::greedy::{GROUP, Greedy, Leader};
use super::objective::{Marginal, Objective};
use super::pick::StopReason;
use super::places::{Place, Slot};
use super::run::Outcome;
use crate::error::Result;
use crate::rows::Position;

/// Groups in one task.
const TASK: usize = 8 * GROUP;

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    mut candidates: Vec<Position>,
    k: usize,
) -> Result<Outcome> {
    let mut marginals: Vec<Marginal> =
        candidates.iter().map(|&position| greedy.start(position)).collect();
    while greedy.run.picks() < k {
        let leader = candidates
            .par_chunks(TASK)
            .zip(marginals.par_chunks_mut(TASK))
            .enumerate()
            .map_init(Vec::new, |scratch, (task, (candidates, marginals))| {
                greedy.run.check()?;
                let mut leader = Leader::default();
                let groups = candidates.chunks(GROUP).zip(marginals.chunks_mut(GROUP));
                for (group, (candidates, marginals)) in groups.enumerate() {
                    let slot = Slot::new(task * TASK + group * GROUP);
                    greedy.score(candidates, marginals, slot, scratch, |candidate| {
                        if greedy.run.admits(candidate.position) {
                            leader.consider(&candidate);
                        }
                    });
                }
                Ok(leader)
            })
            .try_reduce(Leader::default, |a, b| Ok(a.merge(b)))?;
        let near = leader.best.is_some_and(|best| greedy.run.is_near_duplicate(best.position, None));
        if !near && let Some(stop) = greedy.accept(leader, candidates.len() as u64)? {
            return Ok(greedy.run.finish(stop));
        }
        if let Some(best) = leader.best {
            candidates.swap_remove(best.slot.get());
            marginals.swap_remove(best.slot.get());
        }
    }
    Ok(greedy.run.finish(StopReason::Budget))
}
