//! What messages consist of beside what `messages` has.

use crate::selection::conflict::SelectedMean;
use crate::selection::full::cold::Bar;
use crate::selection::full::drift::Turn;
use crate::selection::full::factor::Factor;
use crate::selection::full::messages::{Ask, Asked, Reply};
use crate::selection::full::window::Window;
use crate::selection::limits::Books;

pub(super) const MAGIC: &[u8; 8] = b"spice-rs";
pub(super) const VERSION: u16 = 1;
pub(super) const CALL: u16 = 1;
pub(super) const REPLY: u16 = 2;
/// Bytes of magic, version, kind and checksum.
pub(super) const FRAME: usize = 20;

/// Sizes that numbers in a message have to keep to.
#[derive(Clone, Copy, Debug)]
pub(in crate::selection::full) struct Sizes {
    /// Rows of the owner.
    pub(in crate::selection::full) rows: usize,
    /// Rows of the whole pool.
    pub(in crate::selection::full) pool: usize,
    /// Columns.
    pub(in crate::selection::full) dim: usize,
    /// Groups of the limits.
    pub(in crate::selection::full) groups: usize,
}

/// How far an owner has followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::selection::full) struct Known {
    /// Picks up to its last direction.
    pub(in crate::selection::full) end: usize,
    /// Picks before the epoch whose factor it has.
    pub(in crate::selection::full) factor: Option<usize>,
}

/// What a call says of the selection.
pub(in crate::selection::full) struct Progress {
    pub(in crate::selection::full) selected: usize,
    pub(in crate::selection::full) mean: SelectedMean,
    pub(in crate::selection::full) books: Option<Books>,
    pub(in crate::selection::full) latest: Option<u8>,
    pub(in crate::selection::full) epoch_start: usize,
    pub(in crate::selection::full) factor: Part<Factor>,
    /// Picks before the first direction that is kept.
    pub(super) first: usize,
    /// Picks before the first direction that is sent.
    pub(super) from: usize,
    pub(super) directions: Vec<f32>,
    pub(super) errors: Vec<f32>,
}

/// The factor in a call.
pub(in crate::selection::full) enum Part<T> {
    /// There is none.
    None,
    /// It is the one that the owner has.
    Same,
    New(T),
}

impl Progress {
    /// Whether an owner that has followed so far can go on from here.
    pub(in crate::selection::full) fn continues(&self, known: Known) -> bool {
        let whole = self.from == self.first;
        let factor = match self.factor {
            Part::Same => known.factor == Some(self.epoch_start),
            Part::None | Part::New(_) => true,
        };
        factor && (whole || self.from == known.end)
    }

    /// Takes the directions to those that are there.
    pub(in crate::selection::full) fn extend(&self, window: &mut Window, dim: usize) {
        if window.end() != self.from || window.is_empty() {
            *window = Window::starting(dim, self.from);
        }
        window.follow(self.first, &self.directions, &self.errors);
    }
}

/// What arrives at an owner beside the progress.
pub(in crate::selection::full) struct Question {
    /// Of the bar, if the ask has one, or of the means to be merged.
    pub(super) turns: Vec<Turn>,
    pub(super) asked: Asked<'static>,
}

impl Question {
    pub(in crate::selection::full) fn asked(&self) -> Asked<'_> {
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
    pub(super) fn is_sound(&self, progress: &Progress) -> bool {
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
pub(in crate::selection::full) enum Returning {
    Reply(Reply),
    /// It has done nothing, since it lacks directions or the factor.
    Behind,
}
