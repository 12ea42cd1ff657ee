//! Lazy greedy (Minoux 1978; CELF, Leskovec et al. 2007): a row is read again only while its upper bound, an earlier Δ, keeps
//! it in the running.
//!
//! U is submodular, so Δ_x never grows while rows are added, and the penalty is never negative:
//! whatever Δ_x was at some earlier pick bounds today's *score* from above. (Yesterday's score would
//! not: the conflict may shrink as the mean moves.) Rows wait in a heap by that bound. A step takes
//! rows off the top in growing batches (of a small pool, such as a window, one by one), scores them, and ends
//! once the best score beats every bound that is left. Scores are computed by the same code as in the
//! eager search and come out the same to the bit, so the picks are the same too.
//!
//! The row of the largest merit is always among those read: rows left behind have merit ≤ bound < best
//! score ≤ merit of the best. So `overruled` is exact as well.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use rayon::prelude::*;

use super::greedy::{GROUP, Greedy, Leader};
use super::objective::{Marginal, Objective};
use super::pick::StopReason;
use super::places::{Place, PlaceVec, Slot};
use super::run::{Candidate, Outcome, Past};
use crate::error::Result;
use crate::rows::{DatasetRow, Position};
use crate::survey::{AHEAD, Survey};

/// Rows of the first batch of a step; each further batch is twice as long.
const FIRST_BATCH: usize = 2 * GROUP;
/// Rows of a pool that one thread searches.
const SMALL: usize = 1024;
/// Rows of the longest batch.
const LONGEST_BATCH: usize = 2048;

/// A waiting row.
#[derive(Clone, Copy, PartialEq)]
struct Waiting {
    bound: f64,
    row: DatasetRow,
    slot: Slot,
}

impl Eq for Waiting {}

impl Ord for Waiting {
    /// The larger bound first, then the lower dataset row.
    fn cmp(&self, other: &Self) -> Ordering {
        self.bound.total_cmp(&other.bound).then(other.row.cmp(&self.row))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

pub(super) fn search<O: Objective>(
    mut greedy: Greedy<'_, O>,
    candidates: Vec<Position>,
    k: usize,
    grown: Past<'_>,
) -> Result<Outcome> {
    let mut marginals: PlaceVec<Slot, Marginal> =
        PlaceVec::new(candidates.iter().map(|&position| greedy.start(position)).collect());
    let positions: PlaceVec<Slot, Position> = PlaceVec::new(candidates);
    let waiting = |slot: Slot, gain: f64, greedy: &Greedy<'_, O>| Waiting {
        // A unit row's start is exactly 1, where its cells may give 1 and an ulp.
        bound: greedy.run.merit.of(positions[slot], gain * (1.0 + 1e-12)),
        row: greedy.dataset_row(positions[slot]),
        slot,
    };
    let start = |slot: Slot, marginals: &PlaceVec<Slot, Marginal>, greedy: &Greedy<'_, O>| {
        waiting(slot, greedy.run.gain(marginals[slot].value), greedy)
    };
    // Rows that an earlier run has judged are asleep, out of the heap, while its picks still win.
    let old = |slot: Slot| grown.old.is_some_and(|old| old[positions[slot].get()]);
    let mut made = grown.made.iter();
    let mut asleep: Vec<Slot> = positions.places().filter(|&slot| old(slot)).collect();
    let slots: HashMap<Position, Slot> = asleep.iter().map(|&slot| (positions[slot], slot)).collect();
    let mut taken = PlaceVec::new(vec![false; positions.len()]);
    let mut latest = f64::INFINITY; // the latest score of the earlier run
    let mut read = 0; // since the last pick
    let mut all: Vec<Waiting> = positions
        .places()
        .filter(|&slot| !old(slot))
        .map(|slot| start(slot, &marginals, &greedy))
        .collect();
    // A small pool is searched row by row: no second thread helps, and no row is read in vain.
    let mut unread = (positions.len() <= SMALL).then(|| {
        all.sort_unstable_by(|a, b| b.cmp(a));
        Unread { positions: all.iter().map(|waiting| positions[waiting.slot]).collect(), read: 0 }
    });
    let mut heap = BinaryHeap::from(all);
    let mut scored: Vec<Candidate> = Vec::new();
    let mut batch: Vec<(Slot, Position, Marginal)> = Vec::new();
    let mut cells = if unread.is_some() { vec![0.0; greedy.run.survey.dim()] } else { Vec::new() };
    while greedy.run.picks() < k {
        let expected = if asleep.is_empty() { None } else { made.next() };
        match expected.and_then(|pick| slots.get(&pick.position)) {
            Some(&slot) => heap.push(start(slot, &marginals, &greedy)),
            None => {
                // No old row scores higher than the pick that beat it.
                let penalty = greedy.run.penalty;
                let most = latest + penalty + 1e-12 * (latest.abs() + penalty);
                let back = std::mem::take(&mut asleep).into_iter().filter(|&slot| !taken[slot]);
                heap.extend(back.map(|slot| {
                    let start = start(slot, &marginals, &greedy);
                    Waiting { bound: start.bound.min(most), ..start }
                }));
            }
        }
        let mut leader = Leader::default();
        let mut size = if unread.is_some() { 1 } else { FIRST_BATCH };
        scored.clear();
        loop {
            batch.clear();
            while batch.len() < size
                && let Some(top) = heap.peek()
                && leader.best.is_none_or(|best| top.bound >= best.score)
            {
                // Once out, always out.
                if greedy.run.admits(positions[top.slot]) {
                    batch.push((top.slot, positions[top.slot], marginals[top.slot]));
                }
                heap.pop();
            }
            if batch.is_empty() {
                break;
            }
            greedy.run.check()?;
            let first = scored.len();
            if let Some(unread) = &mut unread {
                let least = leader.best.map_or(f64::NEG_INFINITY, |best| best.score);
                scored.extend(batch.iter_mut().map(|(slot, position, marginal)| {
                    unread.reads(*position, greedy.run.survey);
                    greedy.run.survey.load(*position, &mut cells);
                    greedy.score_one(*position, &cells, marginal, *slot, least)
                }));
            } else {
                scored.par_extend(
                    batch
                        .par_chunks_mut(GROUP)
                        .map_init(Vec::new, |scratch, group| score_group(&greedy, group, scratch))
                        .flatten_iter(),
                );
            }
            for (&(slot, _, marginal), candidate) in batch.iter().zip(&mut scored[first..]) {
                candidate.slot = slot;
                marginals[slot] = marginal;
                leader.consider(candidate);
            }
            if unread.is_none() {
                size = (2 * size).min(LONGEST_BATCH);
            }
        }
        read += scored.len() as u64;
        if let Some(pick) = expected {
            latest = pick.score;
            leader.overruled |= pick.overruled;
            taken[slots[&pick.position]] = true;
            if leader.best.is_none_or(|best| best.position != pick.position) {
                // The earlier run ends here; all rows compete for this step.
                heap.extend(
                    scored.iter().map(|candidate| waiting(candidate.slot, candidate.gain, &greedy)),
                );
                made = [].iter();
                continue;
            }
        }
        let near = leader.best.is_some_and(|best| greedy.run.is_near_duplicate(best.position, None));
        if !near && let Some(stop) = greedy.accept(leader, std::mem::take(&mut read))? {
            return Ok(greedy.run.finish(stop));
        }
        let picked = leader.best.map(|best| best.slot);
        let left = scored.iter().filter(|candidate| Some(candidate.slot) != picked);
        heap.extend(left.map(|candidate| waiting(candidate.slot, candidate.gain, &greedy)));
    }
    Ok(greedy.run.finish(StopReason::Budget))
}

/// The rows of a small pool in the order in which they are read first, which is that of their first bounds: a
/// row that was not read keeps its own.
struct Unread {
    positions: Vec<Position>,
    /// How many of them were read.
    read: usize,
}

impl Unread {
    /// Takes note that a row is read now.
    fn reads(&mut self, position: Position, survey: &Survey<'_>) {
        if self.positions.get(self.read) == Some(&position) {
            if self.read.is_multiple_of(AHEAD) {
                survey.fetch(self.positions[self.read..].iter().copied());
            }
            self.read += 1;
        }
    }
}

fn score_group<O: Objective>(
    greedy: &Greedy<'_, O>,
    group: &mut [(Slot, Position, Marginal)],
    scratch: &mut Vec<f64>,
) -> Vec<Candidate> {
    let positions: Vec<Position> = group.iter().map(|&(_, position, _)| position).collect();
    let mut marginals: Vec<Marginal> = group.iter().map(|&(_, _, marginal)| marginal).collect();
    let mut candidates = Vec::with_capacity(group.len());
    greedy.score(&positions, &mut marginals, Slot::new(0), scratch, |candidate| {
        candidates.push(candidate)
    });
    for (entry, marginal) in group.iter_mut().zip(marginals) {
        entry.2 = marginal;
    }
    candidates
}
