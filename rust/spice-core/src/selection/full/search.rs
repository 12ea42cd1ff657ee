//! What all parts of the search work on: the rows in their two tiers, and the moves between these.

use std::collections::HashMap;

use super::cold::Cold;
use super::directions::Directions;
use super::epoch::Epoch;
use super::gram::Gram;
use super::hot::Hot;
use super::{memory, twins};
use crate::error::Result;
use crate::selection::run::{Candidate, Past, Run};

/// What forced rows are called: they are no candidates and have no place among the cold ones.
pub(super) const FORCED: usize = usize::MAX;
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
    pub(in crate::selection) fn new(rows: usize, budget: usize, epsilon: f64, seed: u64) -> Self {
        let size = (rows as f64 / budget as f64 * (1.0 / epsilon).ln()).ceil().max(1.0);
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

/// A selection in progress.
pub(super) struct Search<'a> {
    pub(super) run: Run<'a>,
    pub(super) strategy: Strategy,
    pub(super) epoch: Epoch<'a>,
    pub(super) hot: Hot,
    pub(super) cold: Cold,
    pub(super) directions: Directions,
    pub(super) capacity: usize,
    pub(super) least_capacity: usize,
    /// No cold row scores higher.
    pub(super) cutoff: f64,
    /// Rows refreshed or made hot since the last pick.
    pub(super) read: u64,
    /// No cold row has a larger merit.
    pub(super) cold_merit: f64,
    pub(super) period: Option<Period>,
    /// How far the mean turns in one period, by the latest ones, in radians.
    pub(super) turning: f64,
    /// Unit mean that the hot rows' angles are measured from.
    pub(super) reference: Option<Vec<f64>>,
    /// Whether that is the latest mean that the cold rows know.
    pub(super) shared: bool,
    /// The present unit mean; kept only if there is a penalty.
    pub(super) present: Option<Vec<f64>>,
    /// Conflicts computed since hot angles were last measured.
    pub(super) conflicts: usize,
    /// Periods for which the angles of cold rows are left alone, since they were of no use.
    pub(super) rest: usize,
    /// By name: the twin that comes into sight when a row is picked.
    pub(super) twins: HashMap<usize, usize>,
    /// By name: whether a row takes part in this step; `None` if all do.
    pub(super) sample: Option<Vec<bool>>,
    /// Rows that an earlier run has judged, by name: out of sight while its picks still win.
    pub(super) asleep: Vec<usize>,
}

impl<'a> Search<'a> {
    pub(super) fn new(
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

    /// Whether a score is above the cutoff, or not by more than the tolerance below it.
    pub(super) fn wins(&self, score: f64) -> bool {
        score > self.tolerated(self.cutoff)
    }

    pub(super) fn tolerated(&self, cutoff: f64) -> f64 {
        if cutoff > 0.0 { cutoff * (1.0 - self.strategy.epsilon) } else { cutoff }
    }

    /// The slot of a row that is hot, or becomes so.
    pub(super) fn bring(&mut self, name: usize, row: usize) -> Result<usize> {
        if let Some(slot) = self.hot.rows.iter().position(|&other| other == row) {
            return Ok(slot);
        }
        self.hot.insert([(name, row)].into_iter(), &self.epoch, &self.run)?;
        Ok(self.hot.len() - 1)
    }

    /// Starts the next epoch if too few digits may be left for a winner of at least this value.
    pub(super) fn settle(&mut self, least: f64) -> Result<()> {
        if self.epoch.is_doubtful(least) { self.restart() } else { Ok(()) }
    }

    pub(super) fn mark_picked(&mut self, slot: usize) {
        let name = self.hot.names[slot];
        if name != FORCED {
            self.cold.pick(name);
        }
    }

    /// Moves a hot row to the picks of the epoch; its twin takes its place.
    pub(super) fn push(&mut self, slot: usize) -> Result<()> {
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
    pub(super) fn leave(&mut self, slot: usize) -> Result<()> {
        let name = self.hot.names[slot];
        self.hot.remove(slot);
        self.show_twin(name)
    }

    pub(super) fn show_twin(&mut self, name: usize) -> Result<()> {
        if let Some(twin) = self.twins.remove(&name) {
            self.read += 1;
            let row = self.cold.row(twin);
            self.hot.insert([(twin, row)].into_iter(), &self.epoch, &self.run)?;
        }
        Ok(())
    }

    /// Starts the next epoch.
    pub(super) fn restart(&mut self) -> Result<()> {
        if self.cold.waiting > 0 || !self.asleep.is_empty() {
            self.directions.extend(&self.epoch)?;
            self.directions.restart(2 * self.run.survey.dim());
        }
        self.epoch.restart()?;
        self.cold.restart();
        self.hot.whiten(0, &self.epoch, &self.run)
    }

    /// Makes cold rows hot.
    pub(super) fn promote(&mut self, names: impl ExactSizeIterator<Item = usize>) -> Result<()> {
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
