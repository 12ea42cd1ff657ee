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
//! takes from it can be taken off late or in part. The penalty is never negative, and the angle between
//! a row and the mean changes no faster than the mean turns (`drift`), so an old angle bounds the
//! conflict from below.
//!
//! What decides is computed in one place and one order, for hot rows alone (`epoch`), so the picks do not
//! depend on threads, chunks, capacities or on which rows happened to be hot. With every row hot, the
//! same code is the eager search, the oracle.

mod cold;
mod directions;
mod drift;
mod epoch;
mod gram;
mod hot;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use rayon::prelude::*;

use super::run::{Candidate, Run};
use super::{Pick, RESUME_REMEDY, StopReason};
use crate::error::{Error, Result};
use cold::{Bar, Cold};
use directions::Directions;
use drift::{Turn, angle};
use epoch::Epoch;
use gram::Gram;
use hot::Hot;

/// Picks that a period is meant to last.
const PERIOD: usize = 64;
/// Bytes of hot rows that are asked of the last cache.
const HOT_BYTES: usize = 16 << 20;
/// Bytes of hot rows where periods would be short otherwise.
const MOST_HOT_BYTES: usize = 96 << 20;
/// Rows that the first period starts with.
const FIRST: usize = 256;
/// Rows refreshed between two looks at the cutoff.
const BATCH: usize = 2048;
/// Periods after which angles that were of no use are tried again.
const REST: usize = 8;
/// Conflicts computed at once.
const CONFLICTS: usize = 64;

/// How the best row of a step is found; what is found is the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strategy {
    /// All rows are hot and all conflicts are computed: the eager search.
    pub(super) exhaustive: bool,
    /// Hot rows to hold, a soft limit; `None` for what the caches hold.
    pub(super) capacity: Option<usize>,
    /// Whether angles bound conflicts.
    pub(super) angles: bool,
}

/// Selects up to `budget` of `rows`; the first picks are `made`.
pub(super) fn search(
    run: Run<'_>,
    rows: Vec<usize>,
    budget: usize,
    made: &[Pick],
    strategy: Strategy,
) -> Result<(Vec<Pick>, StopReason)> {
    let names = if made.is_empty() {
        HashMap::new()
    } else {
        rows.iter().enumerate().map(|(name, &row)| (row, name)).collect()
    };
    let mut search = Search::new(run, rows, budget, strategy)?;
    search.replay(made, &names)?;
    let stop = search.run_to(budget)?;
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
    /// Hot rows below this value are left behind until the next period.
    floor: f64,
    /// Rows refreshed or made hot since the last pick.
    read: u64,
    /// No cold row has a larger Δ.
    cold_gain: f64,
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
    /// Periods for which angles of cold rows are left alone, since they were of no use.
    rest: usize,
}

/// What holds since the period began.
struct Period {
    first_pick: usize,
    /// Rows that were refreshed for it.
    refreshed: usize,
    /// The unit mean at its start, how far it may turn, and the least ‖m‖ that was counted on.
    mean: Option<Vec<f64>>,
    allowance: f64,
    mean_norm: f64,
}

/// The best hot row, and the largest Δ of any hot row that is up to date.
struct Found {
    best: Candidate,
    largest_gain: f64,
}

impl<'a> Search<'a> {
    fn new(run: Run<'a>, rows: Vec<usize>, budget: usize, strategy: Strategy) -> Result<Self> {
        let dim = run.survey.dim();
        let mut epoch = Epoch::new(run.survey, run.alpha, rows.len(), run.monitor);
        let by_gram = epoch.is_endless() && Gram::pays(rows.len(), dim, budget);
        let fitting = strategy.capacity.unwrap_or((HOT_BYTES / 8 / dim).clamp(32, 1024)).max(1);
        let count = rows.len();
        let all_hot = strategy.exhaustive || by_gram || count <= fitting;
        memory::Needs {
            rows: count,
            dim,
            budget,
            hot: if all_hot { count } else { fitting },
            epoch: epoch.width(budget),
            by_gram,
        }
        .check()?;
        if by_gram {
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
            floor: f64::NEG_INFINITY,
            read: 0,
            cold_gain: 0.0,
            period: None,
            turning: 0.0,
            reference: None,
            shared: false,
            present: None,
            conflicts: 0,
            rest: 0,
            epoch,
            run,
        };
        if all_hot {
            search.promote(0..count)?;
        }
        Ok(search)
    }

    fn run_to(&mut self, budget: usize) -> Result<StopReason> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        while self.run.picks() < budget {
            self.run.check()?;
            if self.run.penalty > 0.0 {
                self.present = self.run.mean.direction();
            }
            if self.cold.waiting > 0 && self.is_stale() {
                self.start_period()?;
            }
            let mut found = self.best()?;
            if self.cold.waiting > 0 && found.as_ref().is_none_or(|f| f.best.score <= self.cutoff) {
                self.start_period()?;
                found = self.best()?;
            }
            let Some(found) = found else { return Ok(StopReason::Exhausted) };
            let overruled = self.overruled(&found)?;
            let read = std::mem::take(&mut self.read);
            if let Some(stop) = self.run.accept(&found.best, overruled, read, &mut cells) {
                return Ok(stop);
            }
            self.push(found.best.slot)?;
        }
        Ok(StopReason::Budget)
    }

    /// Takes the picks that an earlier run has `made`, without a search; `names` has the name of each row.
    fn replay(&mut self, made: &[Pick], names: &HashMap<usize, usize>) -> Result<()> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        for batch in made.chunks(FIRST) {
            let cold = batch.iter().filter_map(|pick| names.get(&pick.row).copied());
            let cold: Vec<usize> = cold.filter(|&name| self.cold.waits(name)).collect();
            self.promote(cold.into_iter())?;
            for pick in batch {
                let slot = self.hot.rows.iter().position(|&row| row == pick.row).ok_or_else(|| {
                    let field = "picks to resume from";
                    Error::invalid(
                        field,
                        format!("row {}", pick.index),
                        "rows of the pool, once each",
                        RESUME_REMEDY,
                    )
                })?;
                self.run.replay(pick, self.hot.values[slot], &mut cells)?;
                self.push(slot)?;
            }
        }
        self.read = 0;
        Ok(())
    }

    /// Moves a hot row to the picks of the epoch.
    fn push(&mut self, slot: usize) -> Result<()> {
        let (row, value) = (self.hot.rows[slot], self.hot.values[slot]);
        self.epoch.push(row, self.hot.whitened(slot), self.hot.coordinates(slot), value);
        self.hot.remove(slot);
        if !self.epoch.is_over() {
            self.hot.follow(self.floor, &self.epoch, &self.run);
            return Ok(());
        }
        if self.cold.waiting > 0 {
            self.directions.extend(&self.epoch);
            self.directions.restart(2 * self.run.survey.dim());
        }
        self.epoch.restart()?;
        self.cold.restart();
        self.hot.whiten(0, &self.epoch, &self.run)
    }

    /// The best hot row.
    fn best(&mut self) -> Result<Option<Found>> {
        let penalty = self.run.penalty;
        let active = |slot: &usize| self.hot.values[*slot] >= self.floor;
        let slots = (0..self.hot.len()).filter(active);
        if penalty == 0.0 {
            let best = slots.map(|slot| self.candidate(slot, 0.0)).reduce(better);
            return Ok(best.map(|best| Found { best, largest_gain: best.gain }));
        }
        let turn = match (&self.reference, &self.present) {
            (Some(reference), Some(present)) if self.strategy.angles => {
                Some(Turn::between(reference, present, 0.0))
            }
            _ => None,
        };
        let norm = self.run.mean.norm();
        let mut largest_gain = 0.0_f64;
        let mut bounds: Vec<(f64, usize)> = slots
            .map(|slot| {
                let gain = self.hot.gains[slot];
                largest_gain = largest_gain.max(gain);
                let against = turn.map_or(0.0, |turn| -turn.cosine(self.hot.cosines[slot]));
                let bound = if against > 0.0 {
                    let norm_sq = self.run.survey.norm_sq()[self.hot.rows[slot]];
                    gain - penalty * self.run.mean.least_conflict(against, norm_sq, norm)
                } else {
                    gain
                };
                (bound, slot)
            })
            .collect();
        if self.strategy.exhaustive {
            let best = self.conflicting(&bounds)?;
            return Ok(best.map(|best| Found { best, largest_gain }));
        }
        // In the order of bounds, in growing portions, while a bound reaches the best score.
        let mut best: Option<Candidate> = None;
        let (mut done, mut portion) = (0, 1);
        while done < bounds.len() {
            let rest = &mut bounds[done..];
            if let Some(best) = best {
                let reaching = move_to_front(rest, |&(bound, _)| bound >= best.score);
                if reaching == 0 {
                    break;
                }
                bounds.truncate(done + reaching);
            }
            let rest = &mut bounds[done..];
            let count = portion.min(rest.len());
            if count < rest.len() {
                rest.select_nth_unstable_by(count - 1, |a, b| b.0.total_cmp(&a.0));
            }
            let found = self.conflicting(&bounds[done..done + count])?;
            self.conflicts += count;
            best = best.into_iter().chain(found).reduce(better);
            done += count;
            portion = (4 * portion).min(CONFLICTS);
        }
        if self.conflicts > self.hot.len() {
            self.measure_angles()?;
        }
        Ok(best.map(|best| Found { best, largest_gain }))
    }

    fn candidate(&self, slot: usize, conflict: f64) -> Candidate {
        let (row, gain) = (self.hot.rows[slot], self.hot.gains[slot]);
        Candidate {
            slot,
            row,
            index: self.run.survey.index(row),
            gain,
            score: gain - self.run.penalty * conflict,
        }
    }

    /// The best of some hot rows, their conflicts computed.
    fn conflicting(&self, slots: &[(f64, usize)]) -> Result<Option<Candidate>> {
        let evaluate = |cells: &mut Vec<f64>, slots: &[(f64, usize)]| {
            self.run.check()?;
            cells.resize(self.run.survey.dim(), 0.0);
            let candidates = slots.iter().map(|&(_, slot)| {
                let row = self.hot.rows[slot];
                self.run.survey.load(row, cells);
                self.candidate(slot, self.run.conflict(row, cells))
            });
            Ok(candidates.reduce(better))
        };
        if slots.len() < 16 {
            return evaluate(&mut Vec::new(), slots);
        }
        let best = slots.par_chunks(8).map_init(Vec::new, evaluate);
        best.try_reduce(|| None, |a, b| Ok(a.into_iter().chain(b).reduce(better)))
    }

    /// Measures all hot rows' angles to the present mean.
    fn measure_angles(&mut self) -> Result<()> {
        self.conflicts = 0;
        self.shared = false;
        if self.run.penalty == 0.0 || !self.strategy.angles {
            return Ok(());
        }
        self.reference.clone_from(&self.present);
        let cosines = cosines(&self.run, &self.hot.rows)?;
        self.hot.cosines = cosines;
        Ok(())
    }

    /// Whether a row with a larger Δ than the best one's lost by its conflict.
    fn overruled(&mut self, found: &Found) -> Result<bool> {
        let gain = found.best.gain;
        if self.run.penalty == 0.0 || found.largest_gain > gain {
            return Ok(self.run.penalty > 0.0);
        }
        // Rows whose angle has kept them cold may have a larger Δ all the same.
        while self.cold_gain > gain {
            let slack = self.epoch.slack();
            let mut names = self.cold.with_gain_above(gain, slack, &self.run);
            names.truncate(32);
            let first = self.hot.len();
            self.promote(names.into_iter())?;
            self.cold_gain = self.cold.largest_gain(slack, &self.run);
            if self.hot.gains[first..].iter().any(|&other| other > gain) {
                return Ok(true);
            }
        }
        Ok(false)
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

    /// Whether the mean has moved further than the bounds of the period allow for.
    fn is_stale(&self) -> bool {
        let Some(period) = &self.period else { return true };
        match (&period.mean, &self.present) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(mean), Some(present)) => {
                angle(mean, present) > period.allowance || self.run.mean.norm() < period.mean_norm
            }
        }
    }

    /// Chooses a new cutoff, brings the cold rows above it up to date and makes hot what stays above it.
    fn start_period(&mut self) -> Result<()> {
        let (picks, read) = (self.run.picks(), self.read);
        self.hot.follow(f64::NEG_INFINITY, &self.epoch, &self.run);
        self.directions.extend(&self.epoch);
        self.floor = f64::NEG_INFINITY;
        // A walk at random: it turns with the root of the number of picks.
        if let Some(period) = &self.period
            && let (Some(before), Some(present)) = (&period.mean, &self.present)
        {
            let made = (picks - period.first_pick).max(1) as f64;
            let turned = angle(before, present) * (PERIOD as f64 / made).sqrt();
            self.turning = turned.max(0.7 * self.turning);
        }
        let allowance = 1.5 * self.turning;
        self.balance(picks);
        let mean_norm = 0.5 * self.run.mean.norm();
        let mut turns = Vec::new();
        let mut mean = None;
        if self.strategy.angles
            && let Some(present) = &self.present
        {
            self.cold.add_mean(present);
            turns = self.cold.turns(present, allowance);
            mean = Some(present.clone());
            self.measure_angles()?;
            self.shared = true;
        }

        let slack = self.epoch.slack();
        let best = self.best()?.map(|found| found.best);
        let (mut step, mut cutoff) = match best {
            Some(best) => {
                let step = (self.run.decline(PERIOD) * PERIOD as f64).max(1e-6 * best.gain);
                (step.max(f64::MIN_POSITIVE), best.score - step)
            }
            None => {
                let (top, level) = self.cold.gains_of_rank(self.capacity.min(FIRST), slack, &self.run);
                ((top - level).max(1e-6 * top).max(f64::MIN_POSITIVE), level * (1.0 - 1e-12))
            }
        };
        self.evict(cutoff - 2.0 * step, picks, slack);
        let mut capacity = self.capacity;
        loop {
            let bar = Bar { reach: cutoff.exp_m1(), slack, turns: &turns, mean_norm };
            let raised = self.fill(bar, step, capacity)?;
            if raised > bar.reach {
                cutoff = raised.ln_1p() + 1e-12 * raised.ln_1p().abs();
            }
            let best = self.best()?.map(|found| found.best);
            if self.cold.waiting == 0 {
                cutoff = f64::NEG_INFINITY;
                break;
            }
            match best {
                Some(best) if best.score > cutoff => break,
                Some(best) => cutoff = best.score.min(cutoff) - step,
                None => {
                    let (_, level) = self.cold.gains_of_rank(self.capacity.min(FIRST), slack, &self.run);
                    cutoff = level.min(cutoff - step);
                }
            }
            step *= 2.0;
            capacity += capacity / 2;
        }
        self.cutoff = cutoff;
        self.floor =
            if cutoff > 0.0 { self.run.value(cutoff) * (1.0 - 1e-9) } else { f64::NEG_INFINITY };
        self.cold_gain = self.cold.largest_gain(slack, &self.run);
        let refreshed = (self.read - read) as usize;
        self.period = Some(Period { first_pick: picks, refreshed, mean, allowance, mean_norm });
        Ok(())
    }

    /// Fits the number of hot rows to what the last period has cost: to follow many rows pick by pick, or
    /// to refresh many rows once a period.
    fn balance(&mut self, picks: usize) {
        let Some(period) = &self.period else { return };
        if self.strategy.capacity.is_some() {
            return;
        }
        let followed = (picks - period.first_pick) * self.hot.len();
        let full = self.hot.len() + picks - period.first_pick >= self.capacity;
        if followed < period.refreshed && full {
            let most = (MOST_HOT_BYTES / 8 / self.run.survey.dim()).max(self.least_capacity);
            self.capacity = (self.capacity * 3 / 2).min(most);
        } else if followed > 8 * period.refreshed {
            self.capacity = (self.capacity * 2 / 3).max(self.least_capacity);
        }
    }

    /// Sends hot rows back whose score is below `score`.
    fn evict(&mut self, score: f64, picks: usize, slack: f64) {
        for slot in (0..self.hot.len()).rev() {
            let gain = self.hot.gains[slot];
            if gain < score {
                let cosine = self.shared.then(|| self.hot.cosines[slot]);
                self.cold.put(
                    self.hot.names[slot],
                    self.hot.values[slot] * (1.0 + slack),
                    picks,
                    cosine,
                );
                self.hot.remove(slot);
            }
        }
    }

    /// Makes hot what may reach above the bar, the highest first; returns what no cold row reaches above any
    /// more: the bar, or something higher if there were too many rows above it.
    fn fill(&mut self, mut bar: Bar<'_>, step: f64, capacity: usize) -> Result<f64> {
        let picks = self.run.picks();
        let mut leader = self.best()?.map_or(-1.0, |found| found.best.score.exp_m1());
        let mut waiting = self.cold.above(bar, &self.run);
        let mut staying: Vec<(f64, usize)> = Vec::new();
        let (mut measured, mut held) = (0, 0);
        while !waiting.is_empty() {
            let count = waiting.len().min(BATCH);
            if count < waiting.len() {
                waiting.select_nth_unstable_by(count - 1, |a, b| b.0.total_cmp(&a.0));
            }
            let batch: Vec<usize> = waiting.drain(..count).map(|(_, name)| name).collect();
            let stale: Vec<usize> =
                batch.iter().copied().filter(|&name| !self.cold.is_fresh(name, picks)).collect();
            self.read += stale.len() as u64;
            self.cold.refresh(&stale, bar, &self.directions, &self.epoch, &self.run)?;
            if !bar.turns.is_empty() {
                let unmeasured: Vec<usize> = batch
                    .iter()
                    .copied()
                    .filter(|&name| {
                        self.cold.latest_cosine(name).is_none()
                            && self.cold.reach(name, bar, &self.run) > bar.reach
                    })
                    .collect();
                let rows: Vec<usize> = unmeasured.iter().map(|&name| self.cold.row(name)).collect();
                measured += rows.len();
                for (name, cosine) in unmeasured.into_iter().zip(cosines(&self.run, &rows)?) {
                    self.cold.set_angle(name, Some(cosine));
                    held += usize::from(self.cold.reach(name, bar, &self.run) <= bar.reach);
                }
            }
            for name in batch {
                let reach = self.cold.reach(name, bar, &self.run);
                if reach > bar.reach {
                    staying.push((reach, name));
                    leader = leader.max(reach);
                }
            }
            bar.reach = bar.reach.max((leader.ln_1p() - step).exp_m1());
            waiting.retain(|&(reach, _)| reach > bar.reach);
        }
        if measured > CONFLICTS && held < measured / 8 {
            self.rest = REST;
        }
        staying.retain(|&(reach, _)| reach > bar.reach);
        if self.hot.len() + staying.len() > capacity {
            self.evict(bar.reach.ln_1p(), picks, bar.slack);
        }
        let room = capacity.saturating_sub(self.hot.len()).max(1);
        if staying.len() > room {
            staying.select_nth_unstable_by(room, |a, b| b.0.total_cmp(&a.0));
            bar.reach = staying[room].0;
            staying.truncate(room);
        }
        self.promote(staying.into_iter().map(|(_, name)| name))?;
        Ok(bar.reach)
    }
}

fn better(a: Candidate, b: Candidate) -> Candidate {
    if b.beats(&a) { b } else { a }
}

/// Moves what satisfies `condition` to the front; returns how much that is.
fn move_to_front<T>(items: &mut [T], condition: impl Fn(&T) -> bool) -> usize {
    let mut front = 0;
    for i in 0..items.len() {
        if condition(&items[i]) {
            items.swap(front, i);
            front += 1;
        }
    }
    front
}

/// Cosines of rows to the mean.
fn cosines(run: &Run<'_>, rows: &[usize]) -> Result<Vec<f64>> {
    rows.par_iter()
        .with_min_len(16)
        .map_init(Vec::new, |cells, &row| {
            run.check()?;
            cells.resize(run.survey.dim(), 0.0);
            run.survey.load(row, cells);
            Ok(run.mean.cosine(run.kernels, cells, run.survey.norm_sq()[row]))
        })
        .collect()
}
