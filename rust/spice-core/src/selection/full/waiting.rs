//! The rows that wait, as the search sees them, whoever owns them.

use std::collections::HashSet;

use super::cold::{Angle, Bar};
use super::drift::Turn;
use super::means::Means;
use super::messages::{Answer, Ask, Asked, Memory, News, Offer, Returned, Taken, Unbeaten};
#[cfg(test)]
use super::owners::Local;
use super::owners::{Deal, Owners};
use crate::error::Result;
use crate::selection::places::{Name, Place};

/// All rows that compete and are neither hot nor picked. Rows go by the names that the search has for them.
pub(super) struct Waiting<'a> {
    owners: Box<dyn Owners + 'a>,
    deal: Deal,
    /// Rows that wait, by owner.
    counts: Vec<usize>,
    /// Rows that wait again, of which their owners have not heard yet, by owner and under its names.
    returned: Vec<Vec<Returned>>,
    /// Means that angles were measured from.
    means: Means,
    number: u64,
    // What an owner is told that has lost its memory.
    hot: HashSet<Name>,
    gone: HashSet<Name>,
    unbeaten: Option<Unbeaten>,
    /// Whether rows that an earlier run has judged do not compete.
    asleep: bool,
}

impl<'a> Waiting<'a> {
    /// The rows of owners that have `counts` rows waiting, beside those that an earlier run has judged if rows are `asleep`.
    pub(super) fn new(
        owners: Box<dyn Owners + 'a>,
        deal: Deal,
        counts: Vec<usize>,
        asleep: bool,
    ) -> Self {
        Self {
            owners,
            counts,
            returned: vec![Vec::new(); deal.owners()],
            deal,
            means: Means::default(),
            number: 0,
            hot: HashSet::new(),
            gone: HashSet::new(),
            unbeaten: None,
            asleep,
        }
    }

    /// Number of all rows that compete, those that do not wait included.
    pub(super) fn rows(&self) -> usize {
        self.deal.rows()
    }

    /// Number of rows that wait.
    pub(super) fn len(&self) -> usize {
        self.counts.iter().sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a row waits or will come to.
    pub(super) fn may_grow(&self) -> bool {
        self.asleep || !self.is_empty()
    }

    /// All rows that compete.
    pub(super) fn names(&self) -> impl Iterator<Item = Name> + use<> {
        (0..self.rows()).map(Name::new)
    }

    #[cfg(test)]
    pub(super) fn here(&self) -> &Local<'_> {
        self.owners.here().unwrap()
    }

    #[cfg(test)]
    pub(super) const fn means(&self) -> &Means {
        &self.means
    }

    // --- What becomes of rows ---

    /// Takes those of these rows that wait, owner by owner.
    pub(super) fn take(
        &mut self,
        names: impl Iterator<Item = Name>,
        news: News<'_>,
    ) -> Result<Vec<Taken>> {
        let mut all = Vec::new();
        for (owner, answer) in self.ask_of(names, Ask::Take, news)? {
            let Answer::Taken(taken) = answer else { continue };
            for mut row in taken {
                row.name = self.deal.name(owner, row.name);
                row.twins.iter_mut().for_each(|(twin, _)| *twin = self.deal.name(owner, *twin));
                self.hot.insert(row.name);
                all.push(row);
            }
        }
        Ok(all)
    }

    /// A row that was out of sight has become hot.
    pub(super) fn show(&mut self, name: Name) {
        self.hot.insert(name);
    }

    /// A hot row is none any more, and will not come back.
    pub(super) fn give_up(&mut self, name: Name) {
        self.hot.remove(&name);
        self.gone.insert(name);
    }

    /// Whether a row has been given up.
    pub(super) fn is_gone(&self, name: Name) -> bool {
        self.gone.contains(&name)
    }

    /// Takes a hot row back whose q was at most `value` after `seen` picks, and whose cosine to the latest mean may be known.
    pub(super) fn put(&mut self, name: Name, value: f64, seen: usize, cosine: Option<f64>) {
        self.hot.remove(&name);
        let (owner, name) = self.deal.place(name);
        let angle = cosine.zip(self.means.latest()).map(|(cosine, mean)| Angle { mean, cosine });
        self.returned[owner].push(Returned { name, value, seen, angle });
        self.counts[owner] += 1;
    }

    /// Lets rows go that the limits have closed for good.
    pub(super) fn retire(&mut self, news: News<'_>) -> Result<()> {
        self.ask_all(Ask::Retire, news).map(|_| ())
    }

    /// Lets the rows compete again that an earlier run has judged.
    pub(super) fn wake(&mut self, unbeaten: Unbeaten, news: News<'_>) -> Result<()> {
        let asks = (0..self.deal.owners()).map(|owner| {
            let away = self.of(owner, self.hot.iter().chain(&self.gone));
            (owner, Ask::Wake { unbeaten, away })
        });
        let asks = asks.collect();
        self.ask(asks, news)?;
        self.asleep = false;
        // The others are bounded by what was known before.
        let merit = self.unbeaten.map_or(f64::INFINITY, |known| known.merit.max(unbeaten.merit));
        self.unbeaten = Some(Unbeaten { merit, ..unbeaten });
        Ok(())
    }

    // --- What is known of those that wait ---

    /// No row that waits has a merit above `unbeaten`.
    pub(super) const fn settle(&mut self, unbeaten: Unbeaten) {
        self.unbeaten = Some(unbeaten);
    }

    /// Nor have those that are about to come back, which are no larger than this.
    pub(super) fn admit(&mut self, unbeaten: Unbeaten) {
        if let Some(known) = self.unbeaten {
            self.unbeaten = Some(Unbeaten { merit: known.merit.max(unbeaten.merit), ..unbeaten });
        }
    }

    /// The present unit mean becomes one that angles may be measured from.
    pub(super) fn add_mean(&mut self, mean: &[f64], news: News<'_>) -> Result<()> {
        if let Some(turns) = self.means.make_room() {
            self.ask_all(Ask::MergeMeans(&turns), news)?;
        }
        self.means.add(mean);
        Ok(())
    }

    /// How far each of the means is from `present`, and `more` beyond that.
    pub(super) fn turns(&self, present: &[f64], more: f64) -> Vec<Turn> {
        self.means.turns(present, more)
    }

    /// The row of the largest merit with Δ(∅), the lowest dataset row first: the first pick.
    pub(super) fn first(&mut self, news: News<'_>) -> Result<Option<Name>> {
        let mut best = None;
        for (owner, answer) in self.ask_all(Ask::First, news)? {
            let Answer::First(Some((merit, row, name))) = answer else { continue };
            if best.is_none_or(|(most, lowest, _)| merit > most || (merit == most && row < lowest)) {
                best = Some((merit, row, self.deal.name(owner, name)));
            }
        }
        Ok(best.map(|(_, _, name)| name))
    }

    /// Has rows refreshed that may reach above the bar, as far as needed.
    pub(super) fn offer(
        &mut self,
        bar: Bar<'_>,
        step: f64,
        leader: f64,
        room: usize,
        news: News<'_>,
    ) -> Result<Offer> {
        let mut all = Offer { bar: bar.score, ..Offer::default() };
        for (owner, answer) in self.ask_all(Ask::Offer { bar, step, leader, room }, news)? {
            let Answer::Offered(offer) = answer else { continue };
            all.bar = all.bar.max(offer.bar);
            let named = |(reach, name)| (reach, self.deal.name(owner, name));
            all.staying.extend(offer.staying.into_iter().map(named));
            all.read += offer.read;
            all.measured += offer.measured;
            all.held += offer.held;
        }
        all.staying.retain(|&(reach, _)| reach > all.bar);
        Ok(all)
    }

    /// The largest bound of the merit, and the one that `count` rows reach (or all, if they are fewer); zeros if none waits.
    pub(super) fn merits_of_rank(
        &mut self,
        count: usize,
        slack: f64,
        news: News<'_>,
    ) -> Result<(f64, f64)> {
        let mut merits = self.merits(Ask::Merits { count, slack }, news)?;
        merits.sort_unstable_by(|a, b| b.total_cmp(a));
        let level = merits.get(count.min(merits.len()).saturating_sub(1));
        Ok(merits.first().copied().zip(level.copied()).unwrap_or_default())
    }

    /// The largest bound of the merit; −∞ if no row waits.
    pub(super) fn largest_merit(&mut self, slack: f64, news: News<'_>) -> Result<f64> {
        let merits = self.merits(Ask::LargestMerit { slack }, news)?;
        Ok(merits.into_iter().fold(f64::NEG_INFINITY, f64::max))
    }

    /// Up to `count` rows whose merit may exceed `merit`, the largest bound first.
    pub(super) fn with_merit_above(
        &mut self,
        merit: f64,
        slack: f64,
        count: usize,
        news: News<'_>,
    ) -> Result<Vec<Name>> {
        let answers = self.ask_all(Ask::MeritAbove { merit, slack, count }, news)?;
        let mut rows = self.rows_of(answers);
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(rows.into_iter().take(count).map(|(_, name)| name).collect())
    }

    /// Brings rows up to date as far as the bar asks for; returns how many were not.
    pub(super) fn refresh(&mut self, names: &[Name], bar: Bar<'_>, news: News<'_>) -> Result<usize> {
        let ask = |names| Ask::Refresh { names, bar };
        let answers = self.ask_of(names.iter().copied(), ask, news)?;
        let read = answers.into_iter().map(|(_, answer)| match answer {
            Answer::Refreshed(count) => count,
            _ => 0,
        });
        Ok(read.sum())
    }

    /// Bounds of the merit of those of these rows that wait.
    pub(super) fn merits_of(
        &mut self,
        names: &[Name],
        slack: f64,
        news: News<'_>,
    ) -> Result<Vec<(f64, Name)>> {
        let answers =
            self.ask_of(names.iter().copied(), |names| Ask::MeritsOf { names, slack }, news)?;
        Ok(self.rows_of(answers))
    }

    // --- How owners are asked ---

    fn merits(&mut self, ask: Ask<'_>, news: News<'_>) -> Result<Vec<f64>> {
        let answers = self.ask_all(ask, news)?.into_iter();
        let merits = answers.filter_map(|(_, answer)| match answer {
            Answer::Merits(merits) => Some(merits),
            _ => None,
        });
        Ok(merits.flatten().collect())
    }

    fn rows_of(&self, answers: Vec<(usize, Answer)>) -> Vec<(f64, Name)> {
        let mut all = Vec::new();
        for (owner, answer) in answers {
            let Answer::Rows(rows) = answer else { continue };
            all.extend(rows.into_iter().map(|(bound, name)| (bound, self.deal.name(owner, name))));
        }
        all
    }

    /// The rows of an owner among these, under its names.
    fn of<'n>(&self, owner: usize, names: impl Iterator<Item = &'n Name>) -> Vec<Name> {
        names
            .map(|&name| self.deal.place(name))
            .filter(|place| place.0 == owner)
            .map(|place| place.1)
            .collect()
    }

    /// Asks every owner the same.
    fn ask_all(&mut self, ask: Ask<'_>, news: News<'_>) -> Result<Vec<(usize, Answer)>> {
        let asks = (0..self.deal.owners()).map(|owner| (owner, ask.clone())).collect();
        self.ask(asks, news)
    }

    /// Asks the owners of rows.
    fn ask_of<'m>(
        &mut self,
        names: impl Iterator<Item = Name>,
        ask: impl Fn(Vec<Name>) -> Ask<'m>,
        news: News<'_>,
    ) -> Result<Vec<(usize, Answer)>> {
        let mut lists = vec![Vec::new(); self.deal.owners()];
        for name in names {
            let (owner, name) = self.deal.place(name);
            lists[owner].push(name);
        }
        let lists = lists.into_iter().enumerate().filter(|(_, names)| !names.is_empty());
        let asks = lists.map(|(owner, names)| (owner, ask(names))).collect();
        self.ask(asks, news)
    }

    /// Asks owners, each once at most; returns what they answer, in their order. An owner that has lost its memory is reminded,
    /// and asked again.
    fn ask<'m>(&mut self, asks: Vec<(usize, Ask<'m>)>, news: News<'_>) -> Result<Vec<(usize, Answer)>> {
        let news = News { mean: self.means.latest(), ..news };
        let mut open: Vec<Asked<'m>> =
            asks.into_iter().map(|(owner, ask)| self.addressed(owner, ask)).collect();
        let mut answers = Vec::with_capacity(open.len());
        let mut again: Vec<(usize, Ask<'m>)> = Vec::new();
        while !open.is_empty() {
            for reply in self.owners.ask(&news, &open)? {
                // What was asked before has been answered before.
                let Some(place) = open.iter().position(|asked| asked.number == reply.number) else {
                    continue;
                };
                let Asked { owner, ask, .. } = open.swap_remove(place);
                match (reply.answer, ask) {
                    (Answer::Forgotten, ask) => {
                        // Rows that have just been sent back are among those that it is reminded of.
                        again.push((owner, ask));
                        let memory = self.memory(owner);
                        open.push(self.addressed(owner, Ask::Restore(memory)));
                        continue;
                    }
                    (_, Ask::Restore(_)) => {
                        let asked = again.iter().position(|&(other, _)| other == owner);
                        if let Some(place) = asked {
                            let (owner, ask) = again.swap_remove(place);
                            open.push(self.addressed(owner, ask));
                        }
                    }
                    (answer, _) => answers.push((owner, answer)),
                }
                self.counts[owner] = reply.waiting;
            }
        }
        answers.sort_by_key(|&(owner, _)| owner);
        Ok(answers)
    }

    /// An ask with its number, and with the rows that its owner has not heard of.
    fn addressed<'m>(&mut self, owner: usize, ask: Ask<'m>) -> Asked<'m> {
        self.number += 1;
        let returned = std::mem::take(&mut self.returned[owner]);
        Asked { owner, number: self.number, returned, ask }
    }

    /// What an owner has to know.
    fn memory(&self, owner: usize) -> Memory {
        Memory {
            hot: self.of(owner, self.hot.iter()),
            gone: self.of(owner, self.gone.iter()),
            unbeaten: self.unbeaten,
            awake: !self.asleep,
        }
    }
}
