//! An owner: keeps the rows of its part of the pool that wait, and answers for them.
//!
//! It decides nothing. What it tells are upper bounds, and bounds that were true stay true, so that an answer may be late,
//! come twice, or come from an owner that has forgotten everything and started again from what the search remembers.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::angles::cosines;
use super::cold::{Angle, Bar, Cold};
use super::messages::{Answer, Ask, Asked, Memory, News, Offer, Reply, Taken, Unbeaten};
use super::ranked::{Ranked, highest};
use super::twins;
use crate::error::Result;
use crate::rows::Position;
use crate::selection::places::{Name, Place};
use crate::selection::run::Run;

/// Rows refreshed between two looks at the bar.
const BATCH: usize = 2048;

/// Which rows need not be looked at for now.
#[derive(Clone, Copy)]
pub(super) enum OutOfSight<'a> {
    /// None.
    Nothing,
    /// Rows that are the same to the bit as one that competes, until it is picked.
    Twins,
    /// Rows that an earlier run has judged, by position: while its picks still win.
    Judged(&'a [bool]),
}

/// An owner and its rows.
pub(super) struct Owner<'a> {
    rule: OutOfSight<'a>,
    cold: Cold,
    /// The row that comes into sight when a row is picked.
    twins: HashMap<Name, Name>,
    /// Rows that an earlier run has judged, and that do not compete.
    asleep: Vec<Name>,
    /// Whether it knows what became of its rows.
    remembers: bool,
    last: Option<Reply>,
}

impl<'a> Owner<'a> {
    /// An owner of the rows at these positions, all of which wait.
    pub(super) fn new(positions: Vec<Position>, rule: OutOfSight<'a>, run: &Run<'_>) -> Self {
        let mut owner = Self {
            rule,
            cold: Cold::new(positions, run),
            twins: HashMap::new(),
            asleep: Vec::new(),
            remembers: true,
            last: None,
        };
        match rule {
            OutOfSight::Nothing => {}
            OutOfSight::Twins => {
                owner.twins = twins::next_twins(owner.cold.positions(), run);
                owner.twins.values().for_each(|&twin| _ = owner.cold.take(twin));
            }
            OutOfSight::Judged(judged) => {
                let is_judged = |&name: &Name| judged[owner.cold.position(name).get()];
                owner.asleep = owner.cold.names().filter(is_judged).collect();
                owner.asleep.iter().for_each(|&name| _ = owner.cold.take(name));
            }
        }
        owner
    }

    /// Number of rows that wait.
    pub(super) const fn waiting(&self) -> usize {
        self.cold.waiting
    }

    /// Number of its rows, those that do not wait included.
    #[cfg(any(test, fuzzing))]
    pub(super) fn rows(&self) -> usize {
        self.cold.len()
    }

    #[cfg(test)]
    pub(super) const fn cold(&self) -> &Cold {
        &self.cold
    }

    /// Loses whatever it knows, as a process does that ends and is started again.
    #[cfg(test)]
    pub(super) fn forget(&mut self) {
        self.remembers = false;
        self.last = None;
    }

    /// Does what it is asked; what it was asked last is not done again, but answered again, and what it was asked before that
    /// is not done either.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn answer(&mut self, news: &News<'_>, asked: &Asked<'_>) -> Result<Reply> {
        match &self.last {
            Some(last) if last.number == asked.number => return Ok(last.clone()),
            // Whoever asked has gone on since.
            Some(last) if last.number > asked.number => {
                let (number, waiting) = (asked.number, self.cold.waiting);
                return Ok(Reply { number, waiting, answer: Answer::Done });
            }
            _ => {}
        }
        let answer = if self.remembers || matches!(asked.ask, Ask::Restore(_)) {
            for row in &asked.returned {
                if !self.cold.waits(row.name) {
                    self.cold.put(row.name, row.value, row.seen, row.angle);
                }
            }
            self.act(news, &asked.ask)?
        } else {
            Answer::Forgotten
        };
        let reply = Reply { number: asked.number, waiting: self.cold.waiting, answer };
        self.last = Some(reply.clone());
        Ok(reply)
    }

    fn act(&mut self, news: &News<'_>, ask: &Ask<'_>) -> Result<Answer> {
        let run = news.run;
        Ok(match ask {
            Ask::First => {
                let row = |name| run.survey.dataset_row(self.cold.position(name));
                Answer::First(self.cold.first(run).map(|(merit, name)| (merit, row(name), name)))
            }
            Ask::Offer { bar, step, leader, room } => {
                Answer::Offered(self.offer(*bar, *step, *leader, *room, news)?)
            }
            Ask::Take(names) => Answer::Taken(self.take(names, news)),
            Ask::Merits { count, slack } => {
                Answer::Merits(self.cold.largest_merits(*count, *slack, run))
            }
            Ask::LargestMerit { slack } => Answer::Merits(vec![self.cold.largest_merit(*slack, run)]),
            Ask::MeritAbove { merit, slack, count } => {
                Answer::Rows(self.cold.with_merit_above(*merit, *slack, *count, run))
            }
            Ask::Retire => {
                self.retire(run);
                Answer::Done
            }
            Ask::MergeMeans(turns) => {
                self.cold.merge_means(turns);
                Answer::Done
            }
            Ask::Wake { unbeaten, away } => {
                self.wake(*unbeaten, away, run);
                Answer::Done
            }
            Ask::Refresh { names, bar } => {
                let picks = run.selected();
                let stale = names.iter().copied().filter(|&name| !self.cold.is_fresh(name, picks));
                let stale: Vec<Name> = stale.collect();
                self.cold.refresh(&stale, *bar, news)?;
                Answer::Refreshed(stale.len())
            }
            Ask::MeritsOf { names, slack } => {
                let waiting = names.iter().copied().filter(|&name| self.cold.waits(name));
                Answer::Rows(waiting.map(|name| (self.cold.merit(name, *slack, run), name)).collect())
            }
            Ask::Restore(memory) => {
                self.restore(memory, run);
                Answer::Done
            }
        })
    }

    /// Refreshes what may reach above the bar as far as needed, the highest first.
    fn offer(
        &mut self,
        mut bar: Bar<'_>,
        step: f64,
        mut leader: f64,
        room: usize,
        news: &News<'_>,
    ) -> Result<Offer> {
        let run = news.run;
        let picks = run.selected();
        let mut waiting = Ranked::new(self.cold.above(bar, run));
        let mut offer = Offer::default();
        loop {
            let batch = waiting.next_above(bar.score, BATCH);
            if batch.is_empty() {
                break;
            }
            let stale: Vec<Name> =
                batch.iter().copied().filter(|&name| !self.cold.is_fresh(name, picks)).collect();
            offer.read += stale.len();
            self.cold.refresh(&stale, bar, news)?;
            if let (Some(mean), false) = (news.mean, bar.turns.is_empty()) {
                let unmeasured: Vec<Name> = batch
                    .iter()
                    .copied()
                    .filter(|&name| {
                        self.cold.cosine_to(news.mean, name).is_none()
                            && self.cold.reach(name, bar, run) > bar.score
                    })
                    .collect();
                let positions: Vec<Position> =
                    unmeasured.iter().map(|&name| self.cold.position(name)).collect();
                offer.measured += positions.len();
                for (name, cosine) in unmeasured.into_iter().zip(cosines(run, &positions)?) {
                    self.cold.set_angle(name, Some(Angle { mean, cosine }));
                    offer.held += usize::from(self.cold.reach(name, bar, run) <= bar.score);
                }
            }
            for name in batch {
                let reach = self.cold.reach(name, bar, run);
                if reach > bar.score {
                    offer.staying.push((reach, name));
                    leader = leader.max(reach);
                }
            }
            bar.score = bar.score.max(leader - step);
            if offer.staying.len() / 2 >= room {
                // More than there will be room for: what is not among the highest need not be looked at further.
                bar.score = bar.score.max(highest(&mut offer.staying, room));
            }
        }
        offer.bar = bar.score;
        Ok(offer)
    }

    fn take(&mut self, names: &[Name], news: &News<'_>) -> Vec<Taken> {
        let waiting: Vec<Name> = names.iter().copied().filter(|&name| self.cold.waits(name)).collect();
        let taken = waiting.into_iter().map(|name| Taken {
            name,
            position: self.cold.take(name),
            cosine: self.cold.cosine_to(news.mean, name),
            twins: self.twins_after(name),
        });
        taken.collect()
    }

    /// The rows that are out of sight behind one that has just been taken.
    fn twins_after(&self, name: Name) -> Vec<(Name, Position)> {
        let next = |name: &Name| self.twins.get(name).copied();
        std::iter::successors(next(&name), next).map(|twin| (twin, self.cold.position(twin))).collect()
    }

    fn retire(&mut self, run: &Run<'_>) {
        let names = (0..self.cold.len()).into_par_iter().map(Name::new);
        let closed = |&name: &Name| self.cold.waits(name) && !run.admits(self.cold.position(name));
        let closed: Vec<Name> = names.filter(closed).collect();
        closed.into_iter().for_each(|name| _ = self.cold.take(name));
    }

    fn wake(&mut self, unbeaten: Unbeaten, away: &[Name], run: &Run<'_>) {
        let away: HashSet<Name> = away.iter().copied().collect();
        for name in std::mem::take(&mut self.asleep) {
            // One that lost may have come back already.
            if !self.cold.waits(name) && !away.contains(&name) {
                self.put_unbeaten(name, unbeaten, run);
            }
        }
    }

    /// Takes a row back of which no more is known.
    fn put_unbeaten(&mut self, name: Name, unbeaten: Unbeaten, run: &Run<'_>) {
        let position = self.cold.position(name);
        let norm_sq = run.survey.norm_sq(position);
        let bound = run.value_at(position, unbeaten.merit) * (1.0 + unbeaten.slack);
        let (value, seen) = if bound < norm_sq { (bound, unbeaten.seen) } else { (norm_sq, 0) };
        self.cold.put(name, value, seen, None);
    }

    /// Starts again from its rows and from what the search remembers.
    fn restore(&mut self, memory: &Memory, run: &Run<'_>) {
        let rule = match self.rule {
            OutOfSight::Judged(_) if memory.awake => OutOfSight::Nothing,
            rule => rule,
        };
        let positions = self.cold.positions().as_slice().to_vec();
        *self = Self { rule: self.rule, ..Self::new(positions, rule, run) };
        let gone: HashSet<Name> = memory.gone.iter().copied().collect();
        // What has come into sight since.
        let shown = self.twins.iter().filter(|(name, _)| gone.contains(name));
        let shown: Vec<Name> = shown.map(|(_, &twin)| twin).collect();
        for name in shown {
            self.cold.put(name, run.survey.norm_sq(self.cold.position(name)), 0, None);
        }
        let away: HashSet<Name> = memory.hot.iter().copied().chain(gone).collect();
        for &name in &away {
            if self.cold.waits(name) {
                self.cold.take(name);
            }
        }
        self.asleep.retain(|name| !away.contains(name));
        if run.is_limited() {
            self.retire(run);
        }
        // A bound of the present prefix would count as up to date, which it is not.
        if let Some(unbeaten) = memory.unbeaten.filter(|known| known.seen < run.selected()) {
            let waiting: Vec<Name> = self.cold.names().filter(|&name| self.cold.waits(name)).collect();
            for name in waiting {
                self.cold.take(name);
                self.put_unbeaten(name, unbeaten, run);
            }
        }
    }
}
