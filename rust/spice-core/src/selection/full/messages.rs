//! What a search and the owners of its waiting rows say to each other.
//!
//! Nothing here decides on a pick: what an owner answers are bounds, and which of its rows may still matter. Rows go by the
//! names that their owner has for them.

use super::cold::{Angle, Bar};
use super::directions::Directions;
use super::drift::Turn;
use super::epoch::Epoch;
use super::factor::Factor;
use super::window::Window;
use crate::rows::{DatasetRow, Position};
use crate::selection::places::Name;
use crate::selection::run::Run;

/// How far the selection is, the same for all owners.
#[derive(Clone, Copy)]
pub(super) struct News<'n> {
    pub(super) run: &'n Run<'n>,
    pub(super) window: &'n Window,
    /// Picks before the epoch.
    pub(super) epoch_start: usize,
    /// What rows start from in it, if it is not the first one.
    pub(super) factor: Option<&'n Factor>,
    /// Number of the latest mean that angles are measured from.
    pub(super) mean: Option<u8>,
}

impl<'n> News<'n> {
    /// Where a run is; `mean` is filled in by whoever counts them.
    pub(super) fn of(run: &'n Run<'_>, directions: &'n Directions, epoch: &'n Epoch<'_>) -> Self {
        let window = directions.window();
        Self {
            run,
            window,
            epoch_start: window.end().saturating_sub(epoch.picks()),
            factor: directions.factor(),
            mean: None,
        }
    }
}

/// A row that waits again: its q was at most `value` after `seen` picks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Returned {
    pub(super) name: Name,
    pub(super) value: f64,
    pub(super) seen: usize,
    pub(super) angle: Option<Angle>,
}

/// That no row which waits has had a larger merit than this since then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unbeaten {
    pub(super) merit: f64,
    /// Picks made by then.
    pub(super) seen: usize,
    /// How far computed values may be off.
    pub(super) slack: f64,
}

/// What an owner that has lost its memory has to know beside its rows.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// Rows that are hot.
    pub(super) hot: Vec<Name>,
    /// Rows that will not come back.
    pub(super) gone: Vec<Name>,
    /// What bounds the others; their norms alone if there is nothing yet.
    pub(super) unbeaten: Option<Unbeaten>,
    /// Whether the rows that an earlier run has judged compete again.
    pub(super) awake: bool,
}

/// What is asked of an owner.
#[derive(Clone)]
pub(super) enum Ask<'m> {
    /// The waiting row of the largest merit with Δ(∅).
    First,
    /// Which rows may reach above the bar; those are refreshed as far as needed. The bar rises to `step` below the `leader`, and
    /// further where more than twice the `room` reach above it.
    Offer { bar: Bar<'m>, step: f64, leader: f64, room: usize },
    /// To give away those of these rows that wait.
    Take(Vec<Name>),
    /// The `count` largest bounds of the merit.
    Merits { count: usize, slack: f64 },
    /// The largest of them.
    LargestMerit { slack: f64 },
    /// The `count` rows with the largest bounds of the merit above this one.
    MeritAbove { merit: f64, slack: f64, count: usize },
    /// To give up rows that the limits have closed.
    Retire,
    /// To move angles from every other mean to the next.
    MergeMeans(&'m [Turn]),
    /// To let rows compete again that an earlier run has judged, but those that are hot or gone.
    Wake { unbeaten: Unbeaten, away: Vec<Name> },
    /// To bring these rows up to date.
    Refresh { names: Vec<Name>, bar: Bar<'m> },
    /// Bounds of the merit of those of these rows that wait.
    MeritsOf { names: Vec<Name>, slack: f64 },
    /// To go on from here.
    Restore(Memory),
}

/// An ask on its way to an owner.
#[derive(Clone)]
pub(super) struct Asked<'m> {
    pub(super) owner: usize,
    /// Larger than that of all asks before it.
    pub(super) number: u64,
    /// Rows that wait again.
    pub(super) returned: Vec<Returned>,
    pub(super) ask: Ask<'m>,
}

/// What none of an owner's rows reaches above, and the rows that may.
#[derive(Clone, Debug, Default)]
pub(super) struct Offer {
    pub(super) bar: f64,
    /// With what they reach.
    pub(super) staying: Vec<(f64, Name)>,
    /// Rows that were refreshed.
    pub(super) read: usize,
    /// Rows whose angle was measured, and those of them that stay below the bar for it.
    pub(super) measured: usize,
    pub(super) held: usize,
}

/// A row that an owner gives away.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) name: Name,
    pub(super) position: Position,
    /// Upper bound of its cosine to the latest mean, if it is known.
    pub(super) cosine: Option<f64>,
    /// The rows of the same owner that are the same to the bit and have not been taken, in the order in which they are picked.
    pub(super) twins: Vec<(Name, Position)>,
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Done,
    First(Option<(f64, DatasetRow, Name)>),
    Offered(Offer),
    Taken(Vec<Taken>),
    /// In no order.
    Merits(Vec<f64>),
    /// Bounds of the merit.
    Rows(Vec<(f64, Name)>),
    /// Rows that were refreshed.
    Refreshed(usize),
    /// The owner has lost its memory, and has done nothing.
    Forgotten,
}

/// An answer on its way back.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// Of the ask.
    pub(super) number: u64,
    /// The owner's rows that wait.
    pub(super) waiting: usize,
    pub(super) answer: Answer,
}
