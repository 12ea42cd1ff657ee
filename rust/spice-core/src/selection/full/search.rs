//! What all parts of the search work on: the rows in their two tiers, and the moves between these.

use std::collections::HashMap;

use super::angles::Angles;
use super::cold::Cold;
use super::directions::Directions;
use super::epoch::Epoch;
use super::gram::Gram;
use super::hot::Hot;
use super::{memory, twins};
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

/// Rows that compete but need not be looked at for now.
#[derive(Default)]
pub(super) struct OutOfSight {
    /// The twin that comes into sight when a row is picked.
    pub(super) twins: HashMap<Name, Name>,
    /// Rows that an earlier run has judged: out of sight while its picks still win.
    pub(super) asleep: Vec<Name>,
}

/// A selection in progress.
pub(super) struct Search<'a> {
    pub(super) run: Run<'a>,
    pub(super) strategy: Strategy,
    // The rows, and what their values and bounds are computed with.
    pub(super) epoch: Epoch<'a>,
    pub(super) directions: Directions,
    pub(super) hot: Hot,
    pub(super) cold: Cold,
    pub(super) out_of_sight: OutOfSight,
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
        past: Past<'_>,
        strategy: Strategy,
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
        let mut search = Self {
            strategy,
            directions: Directions::new(dim),
            hot: Hot::new(epoch.row_len(), epoch.width(selected)),
            cold: Cold::new(candidates, &run),
            out_of_sight: OutOfSight::default(),
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
            search.promote(search.cold.names())?;
        } else if let Some(old) = past.old {
            let judged = |name: &Name| old[search.cold.position(*name).get()];
            let asleep: Vec<Name> = search.cold.names().filter(judged).collect();
            asleep.iter().for_each(|&name| {
                search.cold.take(name);
            });
            search.out_of_sight.asleep = asleep;
        } else if strategy.sampling.is_none() {
            let twins = twins::next_twins(search.cold.positions(), &search.run);
            for &twin in twins.values() {
                search.cold.take(twin);
            }
            search.out_of_sight.twins = twins;
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
        self.hot.insert([(name, position)].into_iter(), &self.epoch, &self.run)
    }

    /// Starts the next epoch if too few digits may be left for a winner of at least this value.
    pub(super) fn settle(&mut self, least: f64) -> Result<()> {
        if self.epoch.is_doubtful(least) { self.restart() } else { Ok(()) }
    }

    pub(super) fn mark_picked(&mut self, slot: Slot) {
        if let Some(name) = self.hot.name(slot) {
            self.cold.pick(name);
        }
    }

    /// Moves a hot row to the picks of the epoch; its twin takes its place.
    pub(super) fn push(&mut self, slot: Slot) -> Result<()> {
        let (name, hot) = (self.hot.name(slot), &self.hot);
        if self.strategy.is_exact() {
            self.epoch.limit(self.run.most_value());
        }
        let (position, value) = (hot.position(slot), hot.value(slot));
        self.epoch.push(position, hot.whitened(slot), hot.coordinates(slot), value);
        self.hot.remove(slot);
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
        self.hot.remove(slot);
        self.show_twin(name)
    }

    fn show_twin(&mut self, name: Option<Name>) -> Result<()> {
        if let Some(twin) = name.and_then(|name| self.out_of_sight.twins.remove(&name)) {
            self.read += 1;
            let position = self.cold.position(twin);
            self.hot.insert([(Some(twin), position)].into_iter(), &self.epoch, &self.run)?;
        }
        Ok(())
    }

    /// Starts the next epoch.
    pub(super) fn restart(&mut self) -> Result<()> {
        if self.cold.waiting > 0 || !self.out_of_sight.asleep.is_empty() {
            self.directions.extend(&self.epoch)?;
            self.directions.restart(2 * self.run.survey.dim());
        }
        self.epoch.restart()?;
        self.cold.restart();
        self.hot.whiten(0, &self.epoch, &self.run)
    }

    /// Makes cold rows hot.
    pub(super) fn promote(&mut self, names: impl ExactSizeIterator<Item = Name>) -> Result<()> {
        self.read += names.len() as u64;
        let first = self.hot.len();
        let cold = &mut self.cold;
        let added: Vec<_> = names.map(|name| (Some(name), cold.take(name))).collect();
        self.hot.insert(added.into_iter(), &self.epoch, &self.run)?;
        if self.angles.shared {
            for slot in self.hot.slots_from(first) {
                let name = self.hot.name(slot);
                if let Some(cosine) = name.and_then(|name| self.cold.latest_cosine(name)) {
                    self.hot.set_cosine(slot, cosine);
                }
            }
        }
        Ok(())
    }
}
