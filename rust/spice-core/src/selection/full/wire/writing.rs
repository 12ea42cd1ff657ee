//! Messages written as bytes.

use xxhash_rust::xxh3::xxh3_64;

use super::parts::{CALL, Known, MAGIC, REPLY, Returning, VERSION};
use crate::selection::full::cold::Bar;
use crate::selection::full::drift::Turn;
use crate::selection::full::messages::{Answer, Ask, Asked, News, Unbeaten};
use crate::selection::places::{Name, Place};

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
pub(in crate::selection::full) fn call(news: &News<'_>, asked: &Asked<'_>, known: Known) -> Vec<u8> {
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
pub(in crate::selection::full) fn returning(what: &Returning) -> Vec<u8> {
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

/// The bytes with a checksum that holds, so that what it guards is looked at.
pub(in crate::selection::full) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let (body, _) = bytes.split_at(bytes.len().saturating_sub(8));
    Writer(body.to_vec()).seal()
}
