//! The naive search, on all cores: one pass over all remaining rows per pick.
//!
//! It is the oracle that the lazy search is tested against and the baseline that it is timed
//! against, and it stays as simple as it is.

use rayon::prelude::*;

use super::greedy::{GROUP, Greedy, Leader};
use super::objective::{Marginal, Objective};
use super::pick::StopReason;
use super::run::Outcome;
use crate::error::Result;

/// Groups in one task.
const TASK: usize = 8 * GROUP;

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    mut rows: Vec<usize>,
    budget: usize,
) -> Result<Outcome> {
    let mut marginals: Vec<Marginal> = rows.iter().map(|&row| greedy.start(row)).collect();
    while greedy.run.picks() < budget {
        let leader = rows
            .par_chunks(TASK)
            .zip(marginals.par_chunks_mut(TASK))
            .enumerate()
            .map_init(Vec::new, |scratch, (task, (rows, marginals))| {
                greedy.run.check()?;
                let mut leader = Leader::default();
                let groups = rows.chunks(GROUP).zip(marginals.chunks_mut(GROUP));
                for (group, (rows, marginals)) in groups.enumerate() {
                    let slot = task * TASK + group * GROUP;
                    greedy.score(rows, marginals, slot, scratch, |candidate| {
                        if greedy.run.admits(candidate.row) {
                            leader.consider(&candidate);
                        }
                    });
                }
                Ok(leader)
            })
            .try_reduce(Leader::default, |a, b| Ok(a.merge(b)))?;
        let near = leader.best.is_some_and(|best| greedy.run.is_near(best.row, None));
        if !near && let Some(stop) = greedy.accept(leader, rows.len() as u64)? {
            return Ok(greedy.run.finish(stop));
        }
        if let Some(best) = leader.best {
            rows.swap_remove(best.slot);
            marginals.swap_remove(best.slot);
        }
    }
    Ok(greedy.run.finish(StopReason::Budget))
}
