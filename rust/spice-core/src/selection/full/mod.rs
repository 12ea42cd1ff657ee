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

mod cold;
mod contest;
mod directions;
mod drift;
mod epoch;
mod gram;
mod growth;
mod hot;
mod memory;
mod period;
mod ranked;
mod refresh;
mod stochastic;
#[cfg(test)]
mod tests;
mod twins;

use std::collections::HashMap;

use super::run::{Outcome, Past, Run};
use super::{Pick, StopReason};
use crate::error::Result;
use cold::Cold;
use contest::Found;
use directions::Directions;
use epoch::Epoch;
use gram::Gram;
use hot::Hot;
use period::{FIRST, Period};
pub(super) use stochastic::Sampling;

/// What forced rows are called: they are no candidates and have no place among the cold ones.
const FORCED: usize = usize::MAX;
/// Bytes of hot rows that are asked of the last cache.
const HOT_BYTES: usize = 16 << 20;

/// How the best row of a step is found; what is found is the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strategy {
    /// All rows are hot and all conflicts are computed: the eager search.
    pub(super) exhaustive: bool,
    /// Hot rows to hold, a soft limit; `None` for what the caches hold.
    pub(super) capacity: Option<usize>,
    /// Whether angles bound conflicts.
    pub(super) angles: bool,
    /// A row wins whose score is at least 1 − this of what any other can have; 0 for the best row.
    pub(super) epsilon: f64,
    /// Each step looks at a random part of the rows.
    pub(super) sampling: Option<Sampling>,
}

impl Strategy {
    /// Whether a pick is the best of all rows.
    const fn is_exact(&self) -> bool {
        self.epsilon == 0.0 && self.sampling.is_none()
    }
}

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

struct Search<'a> {
    run: Run<'a>,
    strategy: Strategy,
    epoch: Epoch<'a>,
    hot: Hot,
    cold: Cold,
    directions: Directions,
    capacity: usize,
    least_capacity: usize,
    /// No cold row scores higher.
    cutoff: f64,
    /// Rows refreshed or made hot since the last pick.
    read: u64,
    /// No cold row has a larger merit.
    cold_merit: f64,
    period: Option<Period>,
    /// How far the mean turns in one period, by the latest ones, in radians.
    turning: f64,
    /// Unit mean that the hot rows' angles are measured from.
    reference: Option<Vec<f64>>,
    /// Whether that is the latest mean that the cold rows know.
    shared: bool,
    /// The present unit mean; kept only if there is a penalty.
    present: Option<Vec<f64>>,
    /// Conflicts computed since hot angles were last measured.
    conflicts: usize,
    /// Periods for which the angles of cold rows are left alone, since they were of no use.
    rest: usize,
    /// By name: the twin that comes into sight when a row is picked.
    twins: HashMap<usize, usize>,
    /// By name: whether a row takes part in this step; `None` if all do.
    sample: Option<Vec<bool>>,
    /// Rows that an earlier run has judged, by name: out of sight while its picks still win.
    asleep: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(
        run: Run<'a>,
        rows: Vec<usize>,
        budget: usize,
        past: Past<'_>,
        strategy: Strategy,
    ) -> Result<Self> {
        let dim = run.survey.dim();
        // Rows that are owned go through the epochs as picks do.
        let budget = budget + run.conditions.initial.len();
        let taking_part = rows.len() + run.conditions.forced().count();
        let by_gram = 4 * taking_part <= dim && Gram::pays(taking_part, dim, budget);
        let mut epoch = Epoch::new(run.survey, run.alpha, by_gram, run.monitor);
        let by_gram = epoch.is_endless() && Gram::pays(taking_part, dim, budget);
        let fitting = strategy.capacity.unwrap_or((HOT_BYTES / 8 / dim).clamp(32, 1024)).max(1);
        let count = rows.len();
        let all_hot = strategy.exhaustive || by_gram || count <= fitting;
        memory::Needs {
            rows: taking_part,
            dim,
            budget,
            hot: if all_hot { taking_part } else { fitting },
            epoch: epoch.width(budget),
            factors: epoch.may_end(budget),
            by_gram,
        }
        .check()?;
        if by_gram {
            let mut rows = rows.clone();
            rows.extend(run.conditions.forced());
            epoch.use_gram(Gram::new(&rows, &run)?);
        }
        let mut search = Self {
            strategy,
            hot: Hot::new(epoch.row_len(), epoch.width(budget)),
            cold: Cold::new(rows, &run),
            directions: Directions::new(dim),
            capacity: fitting,
            least_capacity: fitting,
            cutoff: f64::NEG_INFINITY,
            read: 0,
            cold_merit: f64::NEG_INFINITY,
            period: None,
            turning: 0.0,
            reference: None,
            shared: false,
            present: None,
            conflicts: 0,
            rest: 0,
            sample: None,
            asleep: Vec::new(),
            twins: HashMap::new(),
            epoch,
            run,
        };
        if all_hot {
            search.promote(0..count)?;
        } else if let Some(old) = past.old {
            search.asleep = (0..count).filter(|&name| old[search.cold.row(name)]).collect();
            search.asleep.iter().for_each(|&name| {
                search.cold.take(name);
            });
        } else if strategy.sampling.is_none() {
            search.twins = twins::next_twins(&search.cold.rows, &search.run);
            for &twin in search.twins.values() {
                search.cold.take(twin);
            }
        }
        Ok(search)
    }

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

    /// Whether a score is above the cutoff, or not by more than the tolerance below it.
    fn wins(&self, score: f64) -> bool {
        score > self.tolerated(self.cutoff)
    }

    fn tolerated(&self, cutoff: f64) -> f64 {
        if cutoff > 0.0 { cutoff * (1.0 - self.strategy.epsilon) } else { cutoff }
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

    /// The slot of a row that is hot, or becomes so.
    fn bring(&mut self, name: usize, row: usize) -> Result<usize> {
        if let Some(slot) = self.hot.rows.iter().position(|&other| other == row) {
            return Ok(slot);
        }
        self.hot.insert([(name, row)].into_iter(), &self.epoch, &self.run)?;
        Ok(self.hot.len() - 1)
    }

    /// Starts the next epoch if too few digits may be left for a winner of at least this value.
    fn settle(&mut self, least: f64) -> Result<()> {
        if self.epoch.is_doubtful(least) { self.restart() } else { Ok(()) }
    }

    fn mark_picked(&mut self, slot: usize) {
        let name = self.hot.names[slot];
        if name != FORCED {
            self.cold.pick(name);
        }
    }

    /// Moves a hot row to the picks of the epoch; its twin takes its place.
    fn push(&mut self, slot: usize) -> Result<()> {
        let (name, row, value) = (self.hot.names[slot], self.hot.rows[slot], self.hot.values[slot]);
        if self.strategy.is_exact() {
            self.epoch.limit(self.run.most_value());
        }
        self.epoch.push(row, self.hot.whitened(slot), self.hot.coordinates(slot), value);
        self.hot.remove(slot);
        if self.epoch.is_over() {
            self.restart()?;
        } else {
            self.hot.follow(&self.epoch, &self.run);
        }
        self.show_twin(name)
    }

    /// Gives up a hot row for good; its twin takes its place.
    fn leave(&mut self, slot: usize) -> Result<()> {
        let name = self.hot.names[slot];
        self.hot.remove(slot);
        self.show_twin(name)
    }

    fn show_twin(&mut self, name: usize) -> Result<()> {
        if let Some(twin) = self.twins.remove(&name) {
            self.read += 1;
            let row = self.cold.row(twin);
            self.hot.insert([(twin, row)].into_iter(), &self.epoch, &self.run)?;
        }
        Ok(())
    }

    /// Starts the next epoch.
    fn restart(&mut self) -> Result<()> {
        if self.cold.waiting > 0 || !self.asleep.is_empty() {
            self.directions.extend(&self.epoch)?;
            self.directions.restart(2 * self.run.survey.dim());
        }
        self.epoch.restart()?;
        self.cold.restart();
        self.hot.whiten(0, &self.epoch, &self.run)
    }

    /// Makes cold rows hot.
    fn promote(&mut self, names: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        self.read += names.len() as u64;
        let first = self.hot.len();
        let cold = &mut self.cold;
        let added: Vec<_> = names.map(|name| (name, cold.take(name))).collect();
        self.hot.insert(added.into_iter(), &self.epoch, &self.run)?;
        if self.shared {
            for slot in first..self.hot.len() {
                if let Some(cosine) = self.cold.latest_cosine(self.hot.names[slot]) {
                    self.hot.cosines[slot] = cosine;
                }
            }
        }
        Ok(())
    }
}
