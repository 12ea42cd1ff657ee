//! Periods: how far below the best score it pays to look, and what of the pool has to be looked at for that.

use super::cold::Bar;
use super::drift::angle;
use super::messages::{News, Offer};
use super::ranked::highest;
use super::search::{FIRST, Period, Search};
use crate::error::Result;

/// Picks that a period is meant to last.
const PERIOD: usize = 64;
/// Bytes of hot rows where periods would be short otherwise.
const MOST_HOT_BYTES: usize = 96 << 20;
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
        self.retire()?;
        for slot in self.hot.slots().rev() {
            if !self.run.admits(self.hot.position(slot)) {
                self.drop(slot);
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
            let news = News::of(&self.run, &self.directions, &self.epoch);
            self.waiting.add_mean(present, news)?;
            turns = self.waiting.turns(present, allowance);
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
                let (top, level) = self.merits_of_rank(slack)?;
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
            if self.waiting.is_empty() {
                cutoff = f64::NEG_INFINITY;
                break;
            }
            match best {
                Some(best) if best.score > self.tolerated(cutoff) => break,
                Some(best) => cutoff = best.score.min(cutoff) - step,
                None => {
                    let (_, level) = self.merits_of_rank(slack)?;
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
        let news = News::of(&self.run, &self.directions, &self.epoch);
        self.ceiling.merit = self.waiting.largest_merit(slack, news)?;
        self.waiting.settle(self.unbeaten(cutoff, slack));
        let refreshed = (self.read - read) as usize;
        self.period = Some(Period { first_pick: picks, refreshed, slack, mean, allowance, mean_norm });
        Ok(())
    }

    /// The largest bound of a merit, and the one that as many rows reach as a period starts with.
    fn merits_of_rank(&mut self, slack: f64) -> Result<(f64, f64)> {
        let news = News::of(&self.run, &self.directions, &self.epoch);
        self.waiting.merits_of_rank(self.capacity.now.min(FIRST), slack, news)
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
        let hot = self.hot.len();
        for slot in self.hot.slots().rev() {
            let bound = self.hot.value(slot) * (1.0 + slack);
            if self.run.merit.of(self.hot.position(slot), self.run.gain(bound)) < score {
                let cosine = self.angles.shared.then(|| self.hot.cosine(slot));
                if let Some(name) = self.hot.name(slot) {
                    self.waiting.put(name, bound, picks, cosine);
                    self.twins.remove(&name);
                }
                self.hot.remove(slot);
            }
        }
        if self.hot.len() < hot {
            self.waiting.admit(self.unbeaten(score, slack));
        }
    }

    /// Makes hot what may reach above the bar, the highest first; returns what no cold row reaches above any
    /// more: the bar, or something higher if there were too many rows above it.
    fn fill(&mut self, mut bar: Bar<'_>, step: f64, capacity: usize) -> Result<f64> {
        let picks = self.run.selected();
        let leader = self.best()?.map_or(f64::NEG_INFINITY, |found| found.best.score);
        let news = News::of(&self.run, &self.directions, &self.epoch);
        let Offer { bar: raised, mut staying, read, measured, held } =
            self.waiting.offer(bar, step, leader, capacity.max(FIRST), news)?;
        bar.score = raised;
        self.read += read as u64;
        if measured > FIRST && held < measured / 8 {
            self.angles.rest = REST;
        }
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
