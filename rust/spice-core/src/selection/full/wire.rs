//! Messages between a search and owners elsewhere, as bytes.
//!
//! A message is `spice-rs`, the version and the kind as u16, the body, and the XXH3-64 of all of it; numbers are little-endian,
//! floats as their bits, and a list is its length as u64 and its items. What arrives is read as a file of a store is: nothing
//! is believed that was not checked, no length is trusted, and no NaN gets in.
//!
//! A call goes to an owner: how far the selection is, and what is asked. Of the directions only those are sent that the owner
//! lacks, and the factor once an epoch; an owner that cannot follow says so, and gets all of it. A reply is what it answers.

use xxhash_rust::xxh3::xxh3_64;

use super::cold::{Angle, Bar};
use super::drift::Turn;
use super::factor::Factor;
use super::messages::{Answer, Ask, Asked, Memory, News, Offer, Reply, Returned, Taken, Unbeaten};
use super::window::Window;
use crate::error::{Error, Result};
use crate::rows::{DatasetRow, Position};
use crate::selection::conflict::SelectedMean;
use crate::selection::limits::Books;
use crate::selection::places::{Name, Place};

const MAGIC: &[u8; 8] = b"spice-rs";
const VERSION: u16 = 1;
const CALL: u16 = 1;
const REPLY: u16 = 2;
/// Bytes of magic, version, kind and checksum.
const FRAME: usize = 20;

/// Sizes that numbers in a message have to keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Rows of the owner.
    pub(super) rows: usize,
    /// Rows of the whole pool.
    pub(super) pool: usize,
    /// Columns.
    pub(super) dim: usize,
    /// Groups of the limits.
    pub(super) groups: usize,
}

/// How far an owner has followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Picks up to its last direction.
    pub(super) end: usize,
    /// Picks before the epoch whose factor it has.
    pub(super) factor: Option<usize>,
}

/// What a call says of the selection.
pub(super) struct Progress {
    pub(super) selected: usize,
    pub(super) mean: SelectedMean,
    pub(super) books: Option<Books>,
    pub(super) latest: Option<u8>,
    pub(super) epoch_start: usize,
    pub(super) factor: Part<Factor>,
    /// Picks before the first direction that is kept.
    first: usize,
    /// Picks before the first direction that is sent.
    from: usize,
    directions: Vec<f32>,
    errors: Vec<f32>,
}

/// The factor in a call.
pub(super) enum Part<T> {
    /// There is none.
    None,
    /// It is the one that the owner has.
    Same,
    New(T),
}

impl Progress {
    /// Whether an owner that has followed so far can go on from here.
    pub(super) fn continues(&self, known: Known) -> bool {
        let whole = self.from == self.first;
        let factor = match self.factor {
            Part::Same => known.factor == Some(self.epoch_start),
            Part::None | Part::New(_) => true,
        };
        factor && (whole || self.from == known.end)
    }

    /// Takes the directions to those that are there.
    pub(super) fn extend(&self, window: &mut Window, dim: usize) {
        if window.end() != self.from || window.is_empty() {
            *window = Window::starting(dim, self.from);
        }
        window.follow(self.first, &self.directions, &self.errors);
    }
}

/// The bytes with a checksum that holds, so that what it guards is looked at.
pub(super) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let (body, _) = bytes.split_at(bytes.len().saturating_sub(8));
    Writer(body.to_vec()).seal()
}

/// What arrives at an owner beside the progress.
pub(super) struct Question {
    /// Of the bar, if the ask has one, or of the means to be merged.
    turns: Vec<Turn>,
    asked: Asked<'static>,
}

impl Question {
    pub(super) fn asked(&self) -> Asked<'_> {
        let turns = &self.turns;
        let ask = match self.asked.ask.clone() {
            Ask::Offer { bar, step, leader, room } => {
                Ask::Offer { bar: Bar { turns, ..bar }, step, leader, room }
            }
            Ask::Refresh { names, bar } => Ask::Refresh { names, bar: Bar { turns, ..bar } },
            Ask::MergeMeans(_) => Ask::MergeMeans(turns),
            ask => ask,
        };
        let Asked { owner, number, ref returned, .. } = self.asked;
        Asked { owner, number, returned: returned.clone(), ask }
    }

    /// Whether it goes with the progress: rows are of a time that has passed, directions are there where they are needed, and
    /// all numbers of means are of means that there are.
    fn is_sound(&self, progress: &Progress) -> bool {
        let ask = &self.asked.ask;
        let known = match ask {
            Ask::Wake { unbeaten, .. } => Some(*unbeaten),
            Ask::Restore(memory) => memory.unbeaten,
            _ => None,
        };
        let mut seen = self.asked.returned.iter().map(|row| row.seen).chain(known.map(|it| it.seen));
        let end = progress.from + progress.errors.len();
        let refreshes = matches!(ask, Ask::Offer { .. } | Ask::Refresh { .. });
        if seen.any(|seen| seen > progress.selected) || (refreshes && end != progress.selected) {
            return false;
        }
        let mut means = progress.latest.map_or(0, |latest| usize::from(latest) + 1);
        let turns = match ask {
            Ask::Offer { .. } | Ask::Refresh { .. } => [0, means].contains(&self.turns.len()),
            Ask::MergeMeans(_) => self.turns.len() == means,
            _ => self.turns.is_empty(),
        };
        if let Ask::MergeMeans(_) = ask {
            means *= 2; // rows come back under the numbers of before
        }
        let angles = self.asked.returned.iter().filter_map(|row| row.angle);
        turns && angles.into_iter().all(|angle| usize::from(angle.mean) < means)
    }
}

/// What comes back from an owner.
pub(super) enum Returning {
    Reply(Reply),
    /// It has done nothing, since it lacks directions or the factor.
    Behind,
}

// --- Writing ---

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u16) -> Self {
        let mut writer = Self(MAGIC.to_vec());
        writer.u16(VERSION);
        writer.u16(kind);
        writer
    }

    fn seal(mut self) -> Vec<u8> {
        let checksum = xxh3_64(&self.0);
        self.0.extend(checksum.to_le_bytes());
        self.0
    }

    fn u8(&mut self, number: u8) {
        self.0.push(number);
    }

    fn u16(&mut self, number: u16) {
        self.0.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn size(&mut self, number: usize) {
        self.u64(number as u64);
    }

    fn f32(&mut self, number: f32) {
        self.0.extend(number.to_le_bytes());
    }

    fn f64(&mut self, number: f64) {
        self.0.extend(number.to_le_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T: Copy>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, T)) {
        self.size(items.len());
        items.iter().for_each(|&item| write(self, item));
    }

    fn name(&mut self, name: Name) {
        self.size(name.get());
    }

    fn names(&mut self, names: &[Name]) {
        self.list(names, Self::name);
    }

    fn rows(&mut self, rows: &[(f64, Name)]) {
        self.list(rows, |to, (number, name)| {
            to.f64(number);
            to.name(name);
        });
    }

    fn turns(&mut self, turns: &[Turn]) {
        self.list(turns, |to, turn| turn.parts().into_iter().for_each(|part| to.f64(part)));
    }

    fn bar(&mut self, bar: Bar<'_>) {
        [bar.score, bar.slack, bar.mean_norm].into_iter().for_each(|number| self.f64(number));
        self.turns(bar.turns);
    }

    fn unbeaten(&mut self, unbeaten: Unbeaten) {
        self.f64(unbeaten.merit);
        self.size(unbeaten.seen);
        self.f64(unbeaten.slack);
    }

    fn progress(&mut self, news: &News<'_>, known: Known) {
        let run = news.run;
        self.size(run.selected());
        let (sum, norm, count) = run.mean.parts();
        [norm, count].into_iter().for_each(|number| self.f64(number));
        self.list(sum, Self::f64);
        self.option(run.books(), |to, books| {
            to.f64(books.spent);
            to.f64(books.slack);
            to.list(&books.by_group, Self::f64);
        });
        self.option(news.mean, Self::u8);
        self.size(news.epoch_start);
        match news.factor {
            None => self.u8(0),
            Some(_) if known.factor == Some(news.epoch_start) => self.u8(1),
            Some(factor) => {
                let (triangle, error) = factor.parts();
                self.u8(2);
                self.f64(error);
                self.list(&triangle, Self::f32);
            }
        }
        let (first, end) = (news.window.first(), news.window.end());
        let from = if (first..=end).contains(&known.end) { known.end } else { first };
        let (directions, errors) = news.window.range(from, end);
        self.size(first);
        self.size(from);
        self.list(directions, Self::f32);
        self.list(errors, Self::f32);
    }
}

/// A call to an owner that has followed so far.
pub(super) fn call(news: &News<'_>, asked: &Asked<'_>, known: Known) -> Vec<u8> {
    let mut to = Writer::new(CALL);
    to.progress(news, known);
    to.size(asked.owner);
    to.u64(asked.number);
    to.list(&asked.returned, |to, row| {
        to.name(row.name);
        to.f64(row.value);
        to.size(row.seen);
        to.option(row.angle, |to, angle| {
            to.u8(angle.mean);
            to.f64(angle.cosine);
        });
    });
    match &asked.ask {
        Ask::First => to.u8(0),
        Ask::Offer { bar, step, leader, room } => {
            to.u8(1);
            to.bar(*bar);
            [*step, *leader].into_iter().for_each(|number| to.f64(number));
            to.size(*room);
        }
        Ask::Take(names) => {
            to.u8(2);
            to.names(names);
        }
        Ask::Merits { count, slack } => {
            to.u8(3);
            to.size(*count);
            to.f64(*slack);
        }
        Ask::LargestMerit { slack } => {
            to.u8(4);
            to.f64(*slack);
        }
        Ask::MeritAbove { merit, slack, count } => {
            to.u8(5);
            [*merit, *slack].into_iter().for_each(|number| to.f64(number));
            to.size(*count);
        }
        Ask::Retire => to.u8(6),
        Ask::MergeMeans(turns) => {
            to.u8(7);
            to.turns(turns);
        }
        Ask::Wake { unbeaten, away } => {
            to.u8(8);
            to.unbeaten(*unbeaten);
            to.names(away);
        }
        Ask::Refresh { names, bar } => {
            to.u8(9);
            to.bar(*bar);
            to.names(names);
        }
        Ask::MeritsOf { names, slack } => {
            to.u8(10);
            to.f64(*slack);
            to.names(names);
        }
        Ask::Restore(memory) => {
            to.u8(11);
            to.names(&memory.hot);
            to.names(&memory.gone);
            to.option(memory.unbeaten, Writer::unbeaten);
            to.u8(memory.awake.into());
        }
    }
    to.seal()
}

/// What an owner returns.
pub(super) fn returning(what: &Returning) -> Vec<u8> {
    let mut to = Writer::new(REPLY);
    let Returning::Reply(reply) = what else {
        to.u8(0);
        return to.seal();
    };
    to.u8(1);
    to.u64(reply.number);
    to.size(reply.waiting);
    match &reply.answer {
        Answer::Done => to.u8(0),
        Answer::First(first) => {
            to.u8(1);
            to.option(*first, |to, (merit, row, name)| {
                to.f64(merit);
                to.u64(row.get().cast_unsigned());
                to.name(name);
            });
        }
        Answer::Offered(offer) => {
            to.u8(2);
            to.f64(offer.bar);
            to.rows(&offer.staying);
            [offer.read, offer.measured, offer.held].into_iter().for_each(|count| to.size(count));
        }
        Answer::Taken(taken) => {
            to.u8(3);
            to.size(taken.len());
            for row in taken {
                to.name(row.name);
                to.size(row.position.get());
                to.option(row.cosine, Writer::f64);
                to.list(&row.twins, |to, (name, position)| {
                    to.name(name);
                    to.size(position.get());
                });
            }
        }
        Answer::Merits(merits) => {
            to.u8(4);
            to.list(merits, Writer::f64);
        }
        Answer::Rows(rows) => {
            to.u8(5);
            to.rows(rows);
        }
        Answer::Refreshed(count) => {
            to.u8(6);
            to.size(*count);
        }
        Answer::Forgotten => to.u8(7),
    }
    to.seal()
}

// --- Reading ---

struct Reader<'b> {
    rest: &'b [u8],
    sizes: Sizes,
}

fn fault(found: impl ToString, expected: impl ToString) -> Error {
    let remedy = "Use the same version of spice-rs on all machines.";
    Error::invalid("message between machines", found, expected, remedy)
}

impl<'b> Reader<'b> {
    fn new(bytes: &'b [u8], kind: u16, sizes: Sizes) -> Result<Self> {
        if bytes.len() < FRAME || !bytes.starts_with(MAGIC) {
            return Err(fault(format!("{} bytes", bytes.len()), "a message of spice-rs"));
        }
        let (rest, checksum) = bytes.split_at(bytes.len() - 8);
        let mut reader = Self { rest: &rest[MAGIC.len()..], sizes };
        let (version, found) = (reader.u16()?, reader.u16()?);
        if version != VERSION {
            return Err(fault(format!("version {version}"), format!("version {VERSION}")));
        }
        if xxh3_64(rest).to_le_bytes() != checksum {
            return Err(fault("another checksum", "that of what arrived"));
        }
        if found != kind {
            return Err(fault(format!("kind {found}"), format!("kind {kind}")));
        }
        Ok(reader)
    }

    fn end<T>(self, value: T) -> Result<T> {
        if self.rest.is_empty() {
            return Ok(value);
        }
        Err(fault(format!("{} more bytes", self.rest.len()), "the end"))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) =
            self.rest.split_first_chunk::<N>().ok_or_else(|| fault("the end", "more"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.bytes()?))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A number up to `most`.
    fn size(&mut self, what: &str, most: usize) -> Result<usize> {
        let number = self.u64()?;
        let size = usize::try_from(number).ok().filter(|&size| size <= most);
        size.ok_or_else(|| fault(format!("{what} {number}"), format!("at most {most}")))
    }

    fn f32(&mut self) -> Result<f32> {
        let number = f32::from_le_bytes(self.bytes()?);
        if number.is_finite() { Ok(number) } else { Err(fault(number, "a finite number")) }
    }

    /// A number, perhaps infinite.
    fn f64(&mut self) -> Result<f64> {
        let number = f64::from_le_bytes(self.bytes()?);
        if number.is_nan() { Err(fault(number, "a number")) } else { Ok(number) }
    }

    /// A number of at least 0, perhaps infinite.
    fn positive(&mut self) -> Result<f64> {
        let number = self.f64()?;
        if number < 0.0 { Err(fault(number, "a number of at least 0")) } else { Ok(number) }
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(fault(other, "0 or 1")),
        }
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// A list of at most `most` items, each of at least `bytes` bytes.
    fn list<T>(
        &mut self,
        most: usize,
        bytes: usize,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let len = self.size("a list of", most.min(self.rest.len() / bytes))?;
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// A list of a length that is known.
    fn exactly<T>(
        &mut self,
        len: usize,
        bytes: usize,
        read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let items = self.list(len, bytes, read)?;
        if items.len() == len { Ok(items) } else { Err(fault(format!("{} numbers", items.len()), len)) }
    }

    fn name(&mut self) -> Result<Name> {
        let rows = self.sizes.rows;
        let most = rows.checked_sub(1).ok_or_else(|| fault("a row", "none: the owner has no rows"))?;
        self.size("row", most).map(Name::new)
    }

    fn names(&mut self) -> Result<Vec<Name>> {
        self.list(self.sizes.rows, 8, Self::name)
    }

    fn position(&mut self) -> Result<Position> {
        let most = self
            .sizes
            .pool
            .checked_sub(1)
            .ok_or_else(|| fault("a row", "none: the pool has no rows"))?;
        self.size("position", most).map(Position::new)
    }

    fn rows(&mut self) -> Result<Vec<(f64, Name)>> {
        self.list(self.sizes.rows, 16, |from| Ok((from.f64()?, from.name()?)))
    }

    fn turns(&mut self) -> Result<Vec<Turn>> {
        self.list(64, 16, |from| Ok(Turn::known([from.f64()?, from.f64()?])))
    }

    fn bar(&mut self) -> Result<(Bar<'static>, Vec<Turn>)> {
        let (score, slack, mean_norm) = (self.f64()?, self.positive()?, self.positive()?);
        Ok((Bar { score, slack, mean_norm, turns: &[] }, self.turns()?))
    }

    fn picks(&mut self) -> Result<usize> {
        self.size("picks", self.sizes.pool)
    }

    fn unbeaten(&mut self) -> Result<Unbeaten> {
        Ok(Unbeaten { merit: self.f64()?, seen: self.picks()?, slack: self.positive()? })
    }

    fn progress(&mut self) -> Result<Progress> {
        let Sizes { dim, groups, .. } = self.sizes;
        let selected = self.picks()?;
        let (norm, count) = (self.positive()?, self.positive()?);
        let sum = self.exactly(dim, 8, Self::f64)?;
        let books = self.option(|from| {
            let (spent, slack) = (from.f64()?, from.f64()?);
            Ok(Books { spent, slack, by_group: from.exactly(groups, 8, Self::f64)? })
        })?;
        let latest = self.option(Self::u8)?;
        let epoch_start = self.picks()?;
        let factor = match self.u8()? {
            0 => Part::None,
            1 => Part::Same,
            2 => {
                let error = self.positive()?;
                let triangle = self.exactly(dim * (dim + 1) / 2, 4, Self::f32)?;
                Part::New(Factor::known(&triangle, error, dim))
            }
            other => return Err(fault(format!("factor {other}"), "0, 1 or 2")),
        };
        let (first, from) = (self.picks()?, self.picks()?);
        if from < first {
            return Err(fault(format!("directions from pick {from}"), format!("at least {first}")));
        }
        let directions = self.list(usize::MAX, 4, Self::f32)?;
        let errors = self.list(self.sizes.pool, 4, Self::f32)?;
        if directions.len() != errors.len() * dim || errors.iter().any(|&error| error < 0.0) {
            let found = format!("{} cells and {} errors", directions.len(), errors.len());
            return Err(fault(found, "directions with an error each"));
        }
        if from + errors.len() > self.sizes.pool || epoch_start > from + errors.len() {
            let found = format!("{} directions from pick {from}", errors.len());
            return Err(fault(found, "no more than rows, and those before the epoch"));
        }
        let mean = SelectedMean::known(sum, norm, count);
        Ok(Progress {
            selected,
            mean,
            books,
            latest,
            epoch_start,
            factor,
            first,
            from,
            directions,
            errors,
        })
    }

    fn returned(&mut self) -> Result<Returned> {
        let (name, value, seen) = (self.name()?, self.positive()?, self.picks()?);
        let angle = self.option(|from| Ok(Angle { mean: from.u8()?, cosine: from.f64()? }))?;
        Ok(Returned { name, value, seen, angle })
    }

    /// An ask, without its turns, and these.
    fn ask(&mut self) -> Result<(Ask<'static>, Vec<Turn>)> {
        let ask = match self.u8()? {
            0 => Ask::First,
            1 => {
                let (bar, turns) = self.bar()?;
                let (step, leader) = (self.positive()?, self.f64()?);
                let room = self.size("room", usize::MAX)?.max(1);
                return Ok((Ask::Offer { bar, step, leader, room }, turns));
            }
            2 => Ask::Take(self.names()?),
            3 => Ask::Merits { count: self.size("merits", usize::MAX)?, slack: self.positive()? },
            4 => Ask::LargestMerit { slack: self.positive()? },
            5 => Ask::MeritAbove {
                merit: self.f64()?,
                slack: self.positive()?,
                count: self.size("merits", usize::MAX)?,
            },
            6 => Ask::Retire,
            7 => return Ok((Ask::MergeMeans(&[]), self.turns()?)),
            8 => Ask::Wake { unbeaten: self.unbeaten()?, away: self.names()? },
            9 => {
                let (bar, turns) = self.bar()?;
                return Ok((Ask::Refresh { names: self.names()?, bar }, turns));
            }
            10 => {
                let slack = self.positive()?;
                Ask::MeritsOf { names: self.names()?, slack }
            }
            11 => Ask::Restore(Memory {
                hot: self.names()?,
                gone: self.names()?,
                unbeaten: self.option(Self::unbeaten)?,
                awake: self.flag()?,
            }),
            other => return Err(fault(format!("ask {other}"), "one of 0 to 11")),
        };
        Ok((ask, Vec::new()))
    }

    fn taken(&mut self) -> Result<Taken> {
        Ok(Taken {
            name: self.name()?,
            position: self.position()?,
            cosine: self.option(Self::f64)?,
            twins: self.list(self.sizes.rows, 16, |from| Ok((from.name()?, from.position()?)))?,
        })
    }

    fn answer(&mut self) -> Result<Answer> {
        let rows = self.sizes.rows;
        Ok(match self.u8()? {
            0 => Answer::Done,
            1 => Answer::First(self.option(|from| {
                Ok((from.f64()?, DatasetRow::new(from.u64()?.cast_signed()), from.name()?))
            })?),
            2 => Answer::Offered(Offer {
                bar: self.f64()?,
                staying: self.rows()?,
                read: self.size("rows", rows)?,
                measured: self.size("rows", rows)?,
                held: self.size("rows", rows)?,
            }),
            3 => Answer::Taken(self.list(rows, 25, Self::taken)?),
            4 => Answer::Merits(self.list(rows.max(1), 8, Self::f64)?),
            5 => Answer::Rows(self.rows()?),
            6 => Answer::Refreshed(self.size("rows", rows)?),
            7 => Answer::Forgotten,
            other => return Err(fault(format!("answer {other}"), "one of 0 to 7")),
        })
    }
}

/// Reads what [`call`] has written.
///
/// # Errors
/// [`Error::InvalidInput`] that says what is wrong.
pub(super) fn read_call(bytes: &[u8], sizes: Sizes) -> Result<(Progress, Question)> {
    let mut from = Reader::new(bytes, CALL, sizes)?;
    let progress = from.progress()?;
    let owner = from.size("owner", usize::MAX)?;
    let number = from.u64()?;
    let returned = from.list(sizes.rows, 25, Reader::returned)?;
    let (ask, turns) = from.ask()?;
    let question = Question { turns, asked: Asked { owner, number, returned, ask } };
    if !question.is_sound(&progress) {
        return Err(fault(
            "rows, directions or means of another time",
            "those of the picks that are made",
        ));
    }
    from.end((progress, question))
}

/// Reads what [`returning`] has written.
///
/// # Errors
/// [`Error::InvalidInput`] that says what is wrong.
pub(super) fn read_returning(bytes: &[u8], sizes: Sizes) -> Result<Returning> {
    let mut from = Reader::new(bytes, REPLY, sizes)?;
    if !from.flag()? {
        return from.end(Returning::Behind);
    }
    let number = from.u64()?;
    let waiting = from.size("waiting rows", sizes.rows)?;
    let answer = from.answer()?;
    from.end(Returning::Reply(Reply { number, waiting, answer }))
}
