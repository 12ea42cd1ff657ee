//! Stochastic greedy: every step looks at a random sample of the rows that are left.
//!
//! After Mirzasoleiman, Badanidiyuru, Karbasi, Vondrák and Krause, *Lazier Than Lazy Greedy* (AAAI 2015): with samples of
//! n/k·log(1/ε) rows, U of the k picks is in expectation at least 1 − 1/e − ε of the best there is (for λ = 0).
//! A sample follows from the seed, the number of the step and the picks before it, and from nothing else.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng;

use super::cold::Bar;
use super::messages::News;
use super::search::{Found, Sampling, Search};
use crate::error::Result;
use crate::selection::pick::StopReason;
use crate::selection::places::{Name, Place, PlaceVec};

/// Steps whose samples are refreshed together.
const STEPS: usize = 32;
/// Rows made hot at once.
const PROMOTED: usize = 8;

impl Search<'_> {
    /// Selects up to `k` rows, each the best of a sample.
    pub(super) fn run_sampled(&mut self, k: usize, sampling: Sampling) -> Result<StopReason> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        let count = self.waiting.rows();
        let mut seen = PlaceVec::new(vec![false; count]);
        self.sample = Some(PlaceVec::new(vec![false; count]));
        while self.run.picks() < k {
            let first = self.run.picks();
            let steps = STEPS.min(k - first);
            // More than a step needs, since rows of it may be picked by the steps before.
            let size = sampling.size + steps;
            let samples: Vec<Vec<Name>> = (first..first + steps)
                .map(|step| self.draw(size, sampling.seed, step, &mut seen))
                .collect();
            self.refresh_all(&samples)?;
            for drawn in samples {
                self.run.check()?;
                if self.run.penalty > 0.0 {
                    self.angles.present = self.run.mean.direction();
                }
                let left = drawn.into_iter().filter(|&name| !self.waiting.is_gone(name));
                let sample: Vec<Name> = left.take(sampling.size).collect();
                self.mark(&sample, true);
                let Some(mut found) = self.best_of(&sample)? else { return Ok(StopReason::Exhausted) };
                if self.epoch.is_doubtful(self.run.least_value(found.best.score)) {
                    self.restart()?;
                    found = self.best_of(&sample)?.unwrap_or(found);
                }
                self.mark(&sample, false);
                let overruled = self.run.penalty > 0.0 && found.largest_merit > found.best.merit;
                let read = std::mem::take(&mut self.read);
                if let Some(stop) = self.run.accept(&found.best, overruled, read, &mut cells) {
                    return Ok(stop);
                }
                self.push(found.best.slot)?;
            }
        }
        Ok(StopReason::Budget)
    }

    /// Lets rows take part in a step, or no more.
    fn mark(&mut self, names: &[Name], takes_part: bool) {
        if let Some(sample) = &mut self.sample {
            names.iter().for_each(|&name| sample[name] = takes_part);
        }
    }

    /// Up to `size` different rows that are not picked, in the order in which they are drawn; of all rows none
    /// is `seen` before and after.
    fn draw(&self, size: usize, seed: u64, step: usize, seen: &mut PlaceVec<Name, bool>) -> Vec<Name> {
        let mut random = Pcg64::new(u128::from(seed), step as u128);
        let count = seen.len();
        let size = size.min(count - self.run.picks());
        let mut drawn = Vec::with_capacity(size);
        while drawn.len() < size {
            let name = Name::new(((u128::from(random.next_u64()) * count as u128) >> 64) as usize);
            if !self.waiting.is_gone(name) && !std::mem::replace(&mut seen[name], true) {
                drawn.push(name);
            }
        }
        drawn.iter().for_each(|&name| seen[name] = false);
        drawn
    }

    /// Brings the bounds of all rows of some samples up to date; rows of earlier ones become cold again.
    fn refresh_all(&mut self, samples: &[Vec<Name>]) -> Result<()> {
        if self.hot.len() == self.waiting.rows() - self.run.picks() {
            return Ok(()); // all rows are hot
        }
        let (picks, slack) = (self.run.selected(), self.epoch.slack());
        self.hot.catch_up(&self.epoch, &self.run);
        self.directions.extend(&self.epoch)?;
        self.evict(f64::INFINITY, picks, slack);
        let mut names = samples.concat();
        names.sort_unstable();
        names.dedup();
        let bar = Bar { score: 0.0, slack, turns: &[], mean_norm: 0.0 };
        let news = News::of(&self.run, &self.directions, &self.epoch);
        self.read += self.waiting.refresh(&names, bar, news)? as u64;
        Ok(())
    }

    /// The best row of a sample.
    fn best_of(&mut self, sample: &[Name]) -> Result<Option<Found>> {
        let slack = self.epoch.slack();
        let news = News::of(&self.run, &self.directions, &self.epoch);
        let mut bounds = self.waiting.merits_of(sample, slack, news)?;
        bounds.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut bounds = bounds.into_iter().peekable();
        loop {
            let found = self.best()?;
            let score = found.as_ref().map_or(f64::NEG_INFINITY, |found| found.best.score);
            let portion: Vec<Name> = std::iter::from_fn(|| bounds.next_if(|&(bound, _)| bound >= score))
                .take(PROMOTED)
                .map(|(_, name)| name)
                .collect();
            if portion.is_empty() {
                return Ok(found);
            }
            self.promote(portion.into_iter())?;
        }
    }
}
