//! Bytes read as messages: nothing in them is believed.

use xxhash_rust::xxh3::xxh3_64;

use super::parts::{CALL, FRAME, MAGIC, Part, Progress, Question, REPLY, Returning, Sizes, VERSION};
use crate::error::{Error, Result};
use crate::rows::{DatasetRow, Position};
use crate::selection::conflict::SelectedMean;
use crate::selection::full::cold::{Angle, Bar};
use crate::selection::full::drift::Turn;
use crate::selection::full::factor::Factor;
use crate::selection::full::messages::{
    Answer, Ask, Asked, Memory, Offer, Reply, Returned, Taken, Unbeaten,
};
use crate::selection::limits::Books;
use crate::selection::places::{Name, Place};

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
pub(in crate::selection::full) fn read_call(bytes: &[u8], sizes: Sizes) -> Result<(Progress, Question)> {
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
pub(in crate::selection::full) fn read_returning(bytes: &[u8], sizes: Sizes) -> Result<Returning> {
    let mut from = Reader::new(bytes, REPLY, sizes)?;
    if !from.flag()? {
        return from.end(Returning::Behind);
    }
    let number = from.u64()?;
    let waiting = from.size("waiting rows", sizes.rows)?;
    let answer = from.answer()?;
    from.end(Returning::Reply(Reply { number, waiting, answer }))
}
