//! Periods: how far below the best score it pays to look, and what of the pool has to be looked at for that.

use rayon::prelude::*;

use super::angles::cosines;
use super::cold::Bar;
use super::drift::angle;
use super::ranked::Ranked;
use super::search::{FIRST, Period, Search};
use crate::error::Result;
use crate::rows::Position;
use crate::selection::places::{Name, Place};

/// Picks that a period is meant to last.
const PERIOD: usize = 64;
/// Bytes of hot rows where periods would be short otherwise.
const MOST_HOT_BYTES: usize = 96 << 20;
/// Rows refreshed between two looks at the cutoff.
const BATCH: usize = 2048;
/// Periods after which angles that were of no use are tried again.
const REST: usize = 8;

impl Search<'_> {
    /// Whether the mean has moved further than the bounds of the period allow for.
    pub(super) fn is_stale(&self) -> bool {
        let Some(period) = &self.period else { return true };
        if self.epoch.slack() > period.slack {
            return true;
        }
        match (&period.mean, &self.angles.present) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(mean), Some(present)) => {
                angle(mean, present) > period.allowance || self.run.mean.norm() < period.mean_norm
            }
        }
    }

    /// Chooses a new cutoff, brings the cold rows above it up to date and makes hot what stays above it.
    pub(super) fn start_period(&mut self) -> Result<()> {
        let (picks, read) = (self.run.selected(), self.read);
        self.retire();
        for slot in self.hot.slots().rev() {
            if !self.run.admits(self.hot.position(slot)) {
                self.hot.remove(slot);
            }
        }
        self.hot.catch_up(&self.epoch, &self.run);
        self.directions.extend(&self.epoch)?;
        // A walk at random: it turns with the root of the number of picks.
        if let Some(period) = &self.period
            && let (Some(before), Some(present)) = (&period.mean, &self.angles.present)
        {
            let made = (picks - period.first_pick).max(1) as f64;
            let turned = angle(before, present) * (PERIOD as f64 / made).sqrt();
            self.angles.turning = turned.max(0.7 * self.angles.turning);
        }
        let allowance = 1.5 * self.angles.turning;
        self.balance(picks);
        let mean_norm = 0.5 * self.run.mean.norm();
        let mut turns = Vec::new();
        let mut mean = None;
        self.angles.rest = self.angles.rest.saturating_sub(1);
        if self.strategy.angles
            && self.angles.rest == 0
            && let Some(present) = &self.angles.present
        {
            self.cold.add_mean(present);
            turns = self.cold.turns(present, allowance);
            mean = Some(present.clone());
            self.measure_angles()?;
            self.angles.shared = true;
        }

        // Rounding grows with the picks; a period ends before it exceeds what its bounds allow for.
        let slack = (4.0 * self.epoch.slack()).min(1.0);
        let best = self.best()?.map(|found| found.best);
        let (mut step, mut cutoff) = match best {
            Some(best) => {
                let step = (self.run.decline(PERIOD) * PERIOD as f64)
                    .max(1e-6 * best.merit.abs())
                    .max(f64::EPSILON * best.score.abs());
                (step.max(f64::MIN_POSITIVE), best.score - step)
            }
            None => {
                let (top, level) =
                    self.cold.merits_of_rank(self.capacity.now.min(FIRST), slack, &self.run);
                let step = (top - level).max(1e-6 * top.abs()).max(f64::MIN_POSITIVE);
                (step, level - 1e-12 * level.abs())
            }
        };
        self.evict(cutoff - 2.0 * step, picks, slack);
        let mut capacity = self.capacity.now;
        loop {
            self.run.check()?;
            let bar = Bar { score: cutoff, slack, turns: &turns, mean_norm };
            let raised = self.fill(bar, step, capacity)?;
            let crowded = raised > cutoff;
            cutoff = raised;
            let best = self.best()?.map(|found| found.best);
            if self.cold.waiting == 0 {
                cutoff = f64::NEG_INFINITY;
                break;
            }
            match best {
                Some(best) if best.score > self.tolerated(cutoff) => break,
                Some(best) => cutoff = best.score.min(cutoff) - step,
                None => {
                    let (_, level) =
                        self.cold.merits_of_rank(self.capacity.now.min(FIRST), slack, &self.run);
                    cutoff = level.min(cutoff - step);
                }
            }
            step *= 2.0;
            if crowded {
                capacity = capacity.saturating_add(capacity / 2 + 1);
            }
        }
        self.ceiling.score = cutoff;
        self.hot.leave_below(self.tolerated(cutoff), &self.run);
        self.ceiling.merit = self.cold.largest_merit(slack, &self.run);
        let refreshed = (self.read - read) as usize;
        self.period = Some(Period { first_pick: picks, refreshed, slack, mean, allowance, mean_norm });
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
        let full = self.hot.len() + picks - period.first_pick >= self.capacity.now;
        if followed < period.refreshed && full {
            let most = (MOST_HOT_BYTES / 8 / self.run.survey.dim()).max(self.capacity.least);
            self.capacity.now = (self.capacity.now * 3 / 2).min(most);
        } else if followed > 8 * period.refreshed {
            self.capacity.now = (self.capacity.now * 2 / 3).max(self.capacity.least);
        }
    }

    /// Sends hot rows back whose score is below `score`.
    pub(super) fn evict(&mut self, score: f64, picks: usize, slack: f64) {
        for slot in self.hot.slots().rev() {
            let bound = self.hot.value(slot) * (1.0 + slack);
            if self.run.merit.of(self.hot.position(slot), self.run.gain(bound)) < score {
                let cosine = self.angles.shared.then(|| self.hot.cosine(slot));
                if let Some(name) = self.hot.name(slot) {
                    self.cold.put(name, bound, picks, cosine);
                }
                self.hot.remove(slot);
            }
        }
    }

    /// Takes out cold rows that the limits have closed for good.
    pub(super) fn retire(&mut self) {
        if !self.run.is_limited() {
            return;
        }
        let names = (0..self.cold.len()).into_par_iter().map(Name::new);
        let closed = |&name: &Name| self.cold.waits(name) && !self.run.admits(self.cold.position(name));
        let closed: Vec<Name> = names.filter(closed).collect();
        for name in closed {
            self.cold.take(name);
        }
    }

    /// Makes hot what may reach above the bar, the highest first; returns what no cold row reaches above any
    /// more: the bar, or something higher if there were too many rows above it.
    fn fill(&mut self, mut bar: Bar<'_>, step: f64, capacity: usize) -> Result<f64> {
        let picks = self.run.selected();
        let mut leader = self.best()?.map_or(f64::NEG_INFINITY, |found| found.best.score);
        let mut waiting = Ranked::new(self.cold.above(bar, &self.run));
        let mut staying: Vec<(f64, Name)> = Vec::new();
        let (mut measured, mut held) = (0, 0);
        loop {
            let batch = waiting.next_above(bar.score, BATCH);
            if batch.is_empty() {
                break;
            }
            let stale: Vec<Name> =
                batch.iter().copied().filter(|&name| !self.cold.is_fresh(name, picks)).collect();
            self.read += stale.len() as u64;
            self.cold.refresh(&stale, bar, &self.directions, &self.epoch, &self.run)?;
            if !bar.turns.is_empty() {
                let unmeasured: Vec<Name> = batch
                    .iter()
                    .copied()
                    .filter(|&name| {
                        self.cold.latest_cosine(name).is_none()
                            && self.cold.reach(name, bar, &self.run) > bar.score
                    })
                    .collect();
                let positions: Vec<Position> =
                    unmeasured.iter().map(|&name| self.cold.position(name)).collect();
                measured += positions.len();
                for (name, cosine) in unmeasured.into_iter().zip(cosines(&self.run, &positions)?) {
                    self.cold.set_angle(name, Some(cosine));
                    held += usize::from(self.cold.reach(name, bar, &self.run) <= bar.score);
                }
            }
            for name in batch {
                let reach = self.cold.reach(name, bar, &self.run);
                if reach > bar.score {
                    staying.push((reach, name));
                    leader = leader.max(reach);
                }
            }
            bar.score = bar.score.max(leader - step);
            if staying.len() >= 2 * capacity.max(FIRST) {
                // More than there will be room for: what is not among the highest need not be looked at further.
                bar.score = bar.score.max(highest(&mut staying, capacity.max(FIRST)));
            }
        }
        if measured > FIRST && held < measured / 8 {
            self.angles.rest = REST;
        }
        staying.retain(|&(reach, _)| reach > bar.score);
        if self.hot.len() + staying.len() > capacity {
            self.evict(bar.score, picks, bar.slack);
        }
        let room = capacity.saturating_sub(self.hot.len()).max(1);
        if staying.len() > room {
            bar.score = highest(&mut staying, room);
        }
        self.promote(staying.into_iter().map(|(_, name)| name))?;
        Ok(bar.score)
    }
}

/// Keeps so many of the rows, those that reach highest; returns what none of the others exceeds.
fn highest(rows: &mut Vec<(f64, Name)>, count: usize) -> f64 {
    rows.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0));
    let (reach, _) = rows[count];
    rows.truncate(count);
    reach
}
