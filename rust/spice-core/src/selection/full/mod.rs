//! Greedy selection by the full Fisher information: U(S) = log det(I + αF_S), exactly.
//!
//! It is greedy D-optimal design, or greedy MAP inference for the DPP of I + αGGᵀ; what is done here is fast greedy MAP (Chen,
//! Zhang and Zhou 2018) on an active set that lazy greedy (Minoux 1978; CELF, Leskovec et al. 2007) keeps small.
//!
//! Rows live in two tiers. *Cold* rows have an upper bound of their score, kept in f32 arithmetic that
//! errs on the safe side; *hot* rows, the active set, have their exact value, followed pick by pick in f64. A *period*
//! starts with a cutoff somewhat below the present best score: cold rows whose bound is above it are
//! refreshed, and those that stay above it become hot. While the best hot score is above the cutoff no
//! cold row can win, and picks follow each other without a look at the pool. So nearly all work is done
//! in matrix products, over the few rows that may still matter.
//!
//! Why a bound stays a bound: U is submodular, so Δ_x never grows while rows are added, and what a pick
//! takes from it can be taken off late or in part. A row's m and b never change. The penalty is never negative, and the angle between
//! a row and the mean changes no faster than the mean turns (`drift`), so an old angle bounds the
//! conflict from below.
//!
//! Cold rows are kept by *owners* (`owner`). The search asks them for rows that may matter (`waiting`, `messages`) and decides
//! by itself, on hot rows. What an owner answers is a bound, which stays true: it may come late or twice, and an owner that
//! has lost its memory goes on from what the search remembers. There is one owner, in this process; the tests have more.
//!
//! Two shortcuts: rows that are the same to the bit wait for each other (`twins`), and where rows are few and
//! long all inner products are taken at once (`gram`); then every row is hot.
//!
//! What decides is computed in one place and one order, for hot rows alone (`epoch`), so the picks do not
//! depend on threads, chunks, capacities or on which rows happened to be hot. With every row hot, the
//! same code is the eager search, the oracle.

mod angles;
mod cold;
mod directions;
mod drift;
mod epoch;
mod factor;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gram;
mod growth;
mod hot;
mod means;
mod memory;
mod messages;
mod owner;
mod owners;
mod period;
mod ranked;
mod refresh;
#[cfg(any(test, fuzzing))]
mod remote;
mod search;
mod standing;
mod step;
mod stochastic;
mod stretches;
#[cfg(test)]
mod tests;
mod twins;
mod waiting;
mod window;
#[cfg(any(test, fuzzing))]
mod wire;

use std::collections::HashMap;

use super::pick::{Pick, StopReason};
use super::places::{Name, Place};
use super::run::{Forced, Outcome, Past, Run};
use crate::error::Result;
use crate::rows::Position;
pub use epoch::{MOST_GROWTH, SLACK};
use messages::News;
use owners::{Deal, Reach};
use search::{FIRST, Found, Search};
pub(super) use search::{Sampling, Strategy};
pub(super) use stretches::{Room, Stretches};

/// Selects up to `k` of the `candidates`, beginning with the picks of an earlier run.
pub(super) fn search<'a>(
    run: Run<'a>,
    candidates: Vec<Position>,
    k: usize,
    past: Past<'a>,
    strategy: Strategy,
) -> Result<Outcome> {
    #[cfg(test)]
    if let Some(dealt) = tests::owners::dealt() {
        let deal = dealt.deal(candidates.len());
        return search_over(run, candidates, k, past, strategy, deal, &|local| dealt.reach(local));
    }
    let deal = Deal::new(candidates.len(), 1, |_| 0);
    search_over(run, candidates, k, past, strategy, deal, &|local| Box::new(local))
}

/// The same, whoever owns the rows that wait.
fn search_over<'a>(
    run: Run<'a>,
    candidates: Vec<Position>,
    k: usize,
    past: Past<'a>,
    strategy: Strategy,
    deal: Deal,
    reach: Reach<'_>,
) -> Result<Outcome> {
    let made = past.made;
    let names: HashMap<Position, Name> = if made.is_empty() {
        HashMap::new()
    } else {
        let named = candidates.iter().enumerate();
        named.map(|(place, &position)| (position, Name::new(place))).collect()
    };
    let mut search = Search::new(run, candidates, k, past, strategy, deal, reach)?;
    let conditions = search.run.conditions;
    search.force(&conditions.initial, Forced::Initial)?;
    match past.old {
        None => search.replay(made, &names)?,
        Some(_) => {
            if let Some(stop) = search.contest(&made[..made.len().min(k)], &names)? {
                return Ok(search.run.finish(stop));
            }
        }
    }
    search.force(conditions.include.get(past.replayed().len()..).unwrap_or(&[]), Forced::Included)?;
    let stop = match strategy.sampling {
        None => search.run_to(k)?,
        Some(sampling) => search.run_sampled(k, sampling)?,
    };
    Ok(search.run.finish(stop))
}

impl Search<'_> {
    fn run_to(&mut self, k: usize) -> Result<StopReason> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        while self.run.picks() < k {
            let Some(found) = self.find()? else { return Ok(StopReason::Exhausted) };
            let overruled = self.overruled(&found)?;
            let read = std::mem::take(&mut self.read);
            if let Some(stop) = self.run.accept(&found.best, overruled, read, &mut cells) {
                return Ok(stop);
            }
            self.push(found.best.slot)?;
        }
        Ok(StopReason::Budget)
    }

    /// The row to pick next.
    fn find(&mut self) -> Result<Option<Found>> {
        loop {
            self.run.check()?;
            if self.run.penalty > 0.0 {
                self.angles.present = self.run.mean.direction();
            }
            if self.run.is_blank() && !self.waiting.is_empty() {
                // Nothing has to be read for the first pick: its norm tells.
                self.retire()?;
                let news = News::of(&self.run, &self.directions, &self.epoch);
                let first = self.waiting.first(news)?;
                self.promote(first.into_iter())?;
            } else if !self.waiting.is_empty() && self.is_stale() {
                self.start_period()?;
            }
            let mut found = self.best()?;
            if !self.waiting.is_empty()
                && !found.as_ref().is_some_and(|found| self.wins(found.best.score))
            {
                self.start_period()?;
                found = self.best()?;
            }
            let Some(found) = found else { return Ok(None) };
            if self.epoch.is_doubtful(self.run.least_value(found.best.score)) {
                self.restart()?;
            } else if self
                .run
                .is_near_duplicate(found.best.position, Some(self.hot.value(found.best.slot)))
            {
                self.leave(found.best.slot)?;
            } else {
                return Ok(Some(found));
            }
        }
    }

    /// Takes the picks that an earlier run has `made`, without a search; `names` has the name of each row.
    fn replay(&mut self, made: &[Pick], names: &HashMap<Position, Name>) -> Result<()> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        for batch in made.chunks(FIRST) {
            let cold = batch.iter().filter_map(|pick| names.get(&pick.position).copied());
            self.promote(cold)?;
            for pick in batch {
                let slot = self.bring(None, pick.position)?;
                // As the run itself did: only then the values are the same bits.
                let value = self.hot.value(slot);
                let candidate =
                    self.run.candidate(slot, pick.position, self.run.gain(value), pick.conflict);
                let included = self.run.picks() < self.run.conditions.include.len();
                self.settle(if included { value } else { self.run.least_value(candidate.score) })?;
                self.run.replay(pick, self.hot.value(slot), &mut cells)?;
                self.push(slot)?;
            }
        }
        self.read = 0;
        Ok(())
    }

    /// Adds rows that compete with none.
    fn force(&mut self, positions: &[Position], forced: Forced) -> Result<()> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        for &position in positions {
            self.run.check()?;
            let slot = self.bring(None, position)?;
            self.settle(self.hot.value(slot))?;
            self.run.force(position, self.hot.value(slot), forced, &mut cells);
            self.push(slot)?;
        }
        self.read = 0;
        Ok(())
    }
}
