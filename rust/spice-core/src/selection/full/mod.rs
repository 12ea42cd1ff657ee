//! Greedy selection by the full Fisher information: U(S) = log det(I + αF_S), exactly.
//!
//! Rows live in two tiers. *Cold* rows have an upper bound of their score, kept in f32 arithmetic that
//! errs on the safe side; *hot* rows have their exact value, followed pick by pick in f64. A *period*
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
mod gram;
mod growth;
mod hot;
mod memory;
mod period;
mod ranked;
mod refresh;
mod search;
mod step;
mod stochastic;
#[cfg(test)]
mod tests;
mod twins;

use std::collections::HashMap;

use super::pick::{Pick, StopReason};
use super::run::{Outcome, Past, Run};
use crate::error::Result;
use search::{FIRST, FORCED, Found, Search};
pub(super) use search::{Sampling, Strategy};

/// Selects up to `budget` of `rows`, the candidates, beginning with the picks of an earlier run.
pub(super) fn search(
    run: Run<'_>,
    rows: Vec<usize>,
    budget: usize,
    past: Past<'_>,
    strategy: Strategy,
) -> Result<Outcome> {
    let made = past.made;
    let names = if made.is_empty() {
        HashMap::new()
    } else {
        rows.iter().enumerate().map(|(name, &row)| (row, name)).collect()
    };
    let mut search = Search::new(run, rows, budget, past, strategy)?;
    let conditions = search.run.conditions;
    search.force(&conditions.initial, false)?;
    match past.old {
        None => search.replay(made, &names)?,
        Some(_) => {
            if let Some(stop) = search.contest(&made[..made.len().min(budget)], &names)? {
                return Ok(search.run.finish(stop));
            }
        }
    }
    search.force(conditions.include.get(past.replayed().len()..).unwrap_or(&[]), true)?;
    let stop = match strategy.sampling {
        None => search.run_to(budget)?,
        Some(sampling) => search.run_sampled(budget, sampling)?,
    };
    Ok(search.run.finish(stop))
}

impl Search<'_> {
    fn run_to(&mut self, budget: usize) -> Result<StopReason> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        while self.run.picks() < budget {
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
                self.present = self.run.mean.direction();
            }
            if self.run.is_blank() && self.cold.waiting > 0 {
                // Nothing has to be read for the first pick: its norm tells.
                self.retire();
                let first = self.cold.first(&self.run);
                self.promote(first.into_iter())?;
            } else if self.cold.waiting > 0 && self.is_stale() {
                self.start_period()?;
            }
            let mut found = self.best()?;
            if self.cold.waiting > 0 && !found.as_ref().is_some_and(|found| self.wins(found.best.score))
            {
                self.start_period()?;
                found = self.best()?;
            }
            let Some(found) = found else { return Ok(None) };
            if self.epoch.is_doubtful(self.run.least_value(found.best.score)) {
                self.restart()?;
            } else if self.run.is_near(found.best.row, Some(self.hot.values[found.best.slot])) {
                self.leave(found.best.slot)?;
            } else {
                return Ok(Some(found));
            }
        }
    }

    /// Takes the picks that an earlier run has `made`, without a search; `names` has the name of each row.
    fn replay(&mut self, made: &[Pick], names: &HashMap<usize, usize>) -> Result<()> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        for batch in made.chunks(FIRST) {
            let cold = batch.iter().filter_map(|pick| names.get(&pick.row).copied());
            let cold: Vec<usize> = cold.filter(|&name| self.cold.waits(name)).collect();
            self.promote(cold.into_iter())?;
            for pick in batch {
                let slot = self.bring(FORCED, pick.row)?;
                // As the run itself did: only then the values are the same bits.
                let value = self.hot.values[slot];
                let candidate = self.run.candidate(slot, pick.row, self.run.gain(value), pick.conflict);
                let forced = self.run.picks() < self.run.conditions.include.len();
                self.settle(if forced { value } else { self.run.least_value(candidate.score) })?;
                self.run.replay(pick, self.hot.values[slot], &mut cells)?;
                self.mark_picked(slot);
                self.push(slot)?;
            }
        }
        self.read = 0;
        Ok(())
    }

    /// Adds rows that compete with none, as picks if they are to be `include`d.
    fn force(&mut self, rows: &[usize], include: bool) -> Result<()> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        for &row in rows {
            self.run.check()?;
            let slot = self.bring(FORCED, row)?;
            self.settle(self.hot.values[slot])?;
            self.run.force(row, self.hot.values[slot], include, &mut cells);
            self.push(slot)?;
        }
        self.read = 0;
        Ok(())
    }
}
