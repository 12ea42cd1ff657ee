//! What all parts of the search work on: the rows in their two tiers, and the moves between these.

use std::collections::HashMap;

use super::angles::Angles;
use super::directions::Directions;
use super::epoch::Epoch;
use super::gram::Gram;
use super::hot::Hot;
use super::memory;
use super::messages::{News, Taken, Unbeaten};
use super::owner::OutOfSight;
use super::owners::{Deal, Reach};
use super::waiting::Waiting;
use crate::error::Result;
use crate::rows::Position;
use crate::selection::places::{Name, PlaceVec, Slot};
use crate::selection::run::{Candidate, Past, Run};

/// Bytes of hot rows that are asked of the last cache.
const HOT_BYTES: usize = 16 << 20;

/// Rows that the first period starts with.
pub(super) const FIRST: usize = 256;

/// How much of the rows a step looks at.
#[derive(Clone, Copy, Debug)]
pub(in crate::selection) struct Sampling {
    pub(super) size: usize,
    pub(super) seed: u64,
}

impl Sampling {
    /// Samples of n/k·log(1/ε) rows, at least one.
    pub(in crate::selection) fn new(candidates: usize, k: usize, epsilon: f64, seed: u64) -> Self {
        let size = (candidates as f64 / k as f64 * (1.0 / epsilon).ln()).ceil().max(1.0);
        Self { size: size as usize, seed }
    }
}

/// How the best row of a step is found; what is found is the same.
#[derive(Clone, Copy, Debug)]
pub(in crate::selection) struct Strategy {
    /// All rows are hot and all conflicts are computed: the eager search.
    pub(in crate::selection) exhaustive: bool,
    /// Hot rows to hold, a soft limit; `None` for what the caches hold.
    pub(in crate::selection) capacity: Option<usize>,
    /// Whether angles bound conflicts.
    pub(in crate::selection) angles: bool,
    /// A row wins whose score is at least 1 − this of what any other can have; 0 for the best row.
    pub(in crate::selection) epsilon: f64,
    /// Each step looks at a random part of the rows.
    pub(in crate::selection) sampling: Option<Sampling>,
}

impl Strategy {
    /// Whether a pick is the best of all rows.
    const fn is_exact(&self) -> bool {
        self.epsilon == 0.0 && self.sampling.is_none()
    }
}

/// The best hot row, and the largest merit of any hot row that is up to date.
pub(super) struct Found {
    pub(super) best: Candidate,
    pub(super) largest_merit: f64,
}

/// What holds since the period began.
pub(super) struct Period {
    pub(super) first_pick: usize,
    /// Rows that were refreshed for it.
    pub(super) refreshed: usize,
    /// How far computed values may be off, as its bounds allow for.
    pub(super) slack: f64,
    /// The unit mean at its start, how far it may turn, and the least ‖m‖ that was counted on.
    pub(super) mean: Option<Vec<f64>>,
    pub(super) allowance: f64,
    pub(super) mean_norm: f64,
}

/// How many rows may be hot.
pub(super) struct Capacity {
    /// At present; a soft limit.
    pub(super) now: usize,
    pub(super) least: usize,
}

/// What no cold row exceeds.
pub(super) struct Ceiling {
    /// The cutoff: no cold row scores higher.
    pub(super) score: f64,
    /// No cold row has a larger merit.
    pub(super) merit: f64,
}

/// A selection in progress.
pub(super) struct Search<'a> {
    pub(super) run: Run<'a>,
    pub(super) strategy: Strategy,
    // The rows, and what their values and bounds are computed with.
    pub(super) epoch: Epoch<'a>,
    pub(super) directions: Directions,
    pub(super) hot: Hot,
    /// The rows that come into sight one after the other when a hot row leaves, the last one first.
    pub(super) twins: HashMap<Name, Vec<(Name, Position)>>,
    pub(super) waiting: Waiting<'a>,
    // What decides which rows are looked at.
    pub(super) capacity: Capacity,
    pub(super) ceiling: Ceiling,
    pub(super) period: Option<Period>,
    pub(super) angles: Angles,
    /// The rows that take part in this step; `None` if all do.
    pub(super) sample: Option<PlaceVec<Name, bool>>,
    /// Rows refreshed or made hot since the last pick.
    pub(super) read: u64,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        run: Run<'a>,
        candidates: Vec<Position>,
        k: usize,
        past: Past<'a>,
        strategy: Strategy,
        deal: Deal,
        reach: Reach<'_>,
    ) -> Result<Self> {
        let dim = run.survey.dim();
        // Initial rows go through the epochs as picks do.
        let selected = k + run.conditions.initial.len();
        let forced = run.conditions.forced().count();
        let taking_part = candidates.len() + forced;
        let by_gram = 4 * taking_part <= dim && Gram::pays(taking_part, dim, selected);
        let mut epoch = Epoch::new(run.survey, run.alpha, by_gram, run.monitor);
        let by_gram = epoch.is_endless() && Gram::pays(taking_part, dim, selected);
        let fitting = strategy.capacity.unwrap_or((HOT_BYTES / 8 / dim).clamp(32, 1024)).max(1);
        let all_hot = strategy.exhaustive || by_gram || candidates.len() <= fitting;
        memory::Needs {
            rows: taking_part,
            dim,
            selected,
            hot: if all_hot { taking_part } else { fitting },
            epoch: epoch.width(selected),
            factors: epoch.may_end(selected),
            by_gram,
        }
        .check()?;
        if by_gram {
            let mut positions = candidates.clone();
            positions.extend(run.conditions.forced());
            epoch.use_gram(Gram::new(&positions, &run)?);
        }
        let rule = if all_hot {
            OutOfSight::Nothing
        } else if let Some(judged) = past.old {
            OutOfSight::Judged(judged)
        } else if strategy.sampling.is_none() {
            OutOfSight::Twins
        } else {
            OutOfSight::Nothing
        };
        let owners = deal.local(candidates, rule, &run);
        let counts = owners.waiting();
        let mut search = Self {
            strategy,
            directions: Directions::new(dim),
            hot: Hot::new(epoch.row_len(), epoch.width(selected)),
            twins: HashMap::new(),
            waiting: Waiting::new(reach(owners), deal, counts, matches!(rule, OutOfSight::Judged(_))),
            capacity: Capacity { now: fitting, least: fitting },
            ceiling: Ceiling { score: f64::NEG_INFINITY, merit: f64::NEG_INFINITY },
            period: None,
            angles: Angles::default(),
            sample: None,
            read: 0,
            epoch,
            run,
        };
        if all_hot {
            search.promote(search.waiting.names())?;
        }
        Ok(search)
    }

    /// Whether a score is above the cutoff, or not by more than the tolerance below it.
    pub(super) fn wins(&self, score: f64) -> bool {
        score > self.tolerated(self.ceiling.score)
    }

    pub(super) fn tolerated(&self, cutoff: f64) -> f64 {
        if cutoff > 0.0 { cutoff * (1.0 - self.strategy.epsilon) } else { cutoff }
    }

    /// The slot of a row that is hot, or becomes so; a forced row has no name.
    pub(super) fn bring(&mut self, name: Option<Name>, position: Position) -> Result<Slot> {
        if let Some(slot) = self.hot.slot_of(position) {
            return Ok(slot);
        }
        if let Some(name) = name {
            self.waiting.show(name);
        }
        self.hot.insert([(name, position)].into_iter(), &self.epoch, &self.run)
    }

    /// Starts the next epoch if too few digits may be left for a winner of at least this value.
    pub(super) fn settle(&mut self, least: f64) -> Result<()> {
        if self.epoch.is_doubtful(least) { self.restart() } else { Ok(()) }
    }

    /// Moves a hot row to the picks of the epoch; its twin takes its place.
    pub(super) fn push(&mut self, slot: Slot) -> Result<()> {
        let (name, hot) = (self.hot.name(slot), &self.hot);
        if self.strategy.is_exact() {
            self.epoch.limit(self.run.most_value());
        }
        let (position, value) = (hot.position(slot), hot.value(slot));
        self.epoch.push(position, hot.whitened(slot), hot.coordinates(slot), value);
        self.drop(slot);
        if self.epoch.is_over() {
            self.restart()?;
        } else {
            self.hot.follow(&self.epoch, &self.run);
        }
        self.show_twin(name)
    }

    /// Gives up a hot row for good; its twin takes its place.
    pub(super) fn leave(&mut self, slot: Slot) -> Result<()> {
        let name = self.hot.name(slot);
        self.drop(slot);
        self.show_twin(name)
    }

    /// Gives up a hot row for good.
    pub(super) fn drop(&mut self, slot: Slot) {
        if let Some(name) = self.hot.name(slot) {
            self.waiting.give_up(name);
        }
        self.hot.remove(slot);
    }

    fn show_twin(&mut self, name: Option<Name>) -> Result<()> {
        let Some(mut twins) = name.and_then(|name| self.twins.remove(&name)) else { return Ok(()) };
        if let Some((twin, position)) = twins.pop() {
            self.read += 1;
            self.waiting.show(twin);
            self.hot.insert([(Some(twin), position)].into_iter(), &self.epoch, &self.run)?;
            self.twins.insert(twin, twins);
        }
        Ok(())
    }

    /// Starts the next epoch.
    pub(super) fn restart(&mut self) -> Result<()> {
        let bounds = self.waiting.may_grow(); // else nobody asks for any
        if bounds {
            self.directions.extend(&self.epoch)?;
            self.directions.end_epoch(2 * self.run.survey.dim());
        }
        self.epoch.restart()?;
        if bounds {
            self.directions.start_epoch(&self.epoch, &self.run);
        }
        self.hot.whiten(0, &self.epoch, &self.run)
    }

    /// Makes those of these rows hot that wait.
    pub(super) fn promote(&mut self, names: impl Iterator<Item = Name>) -> Result<()> {
        let taken = self.waiting.take(names, News::of(&self.run, &self.directions, &self.epoch))?;
        self.read += taken.len() as u64;
        let first = self.hot.len();
        let added = taken.iter().map(|row| (Some(row.name), row.position));
        self.hot.insert(added, &self.epoch, &self.run)?;
        for (slot, Taken { name, cosine, mut twins, .. }) in self.hot.slots_from(first).zip(taken) {
            if let Some(cosine) = cosine.filter(|_| self.angles.shared) {
                self.hot.set_cosine(slot, cosine);
            }
            if !twins.is_empty() {
                twins.reverse();
                self.twins.insert(name, twins);
            }
        }
        Ok(())
    }

    /// Lets rows go that the limits have closed for good, hot ones excepted.
    pub(super) fn retire(&mut self) -> Result<()> {
        if !self.run.is_limited() {
            return Ok(());
        }
        self.waiting.retire(News::of(&self.run, &self.directions, &self.epoch))
    }

    /// What is known of rows that wait if none scores above `score`.
    pub(super) fn unbeaten(&self, score: f64, slack: f64) -> Unbeaten {
        let penalty = self.run.penalty;
        // The sum loses digits of a score that is small beside a penalty.
        let rounding = 4.0 * f64::EPSILON * (score.abs() + penalty);
        let merit = if score.is_finite() { score + penalty + rounding } else { score };
        Unbeaten { merit, seen: self.run.selected(), slack }
    }
}
