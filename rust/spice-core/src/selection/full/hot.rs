//! The rows in contention, the active set: whitened, with their exact values.

use rayon::prelude::*;

use super::epoch::{Epoch, Follower};
use crate::error::Result;
use crate::rows::Position;
use crate::selection::places::{Name, Place, PlaceVec, Slot};
use crate::selection::run::Run;

/// Rows that one task takes through the epoch together.
const GROUP: usize = 16;
/// Cells below which a pass over the rows is not worth a second thread.
const SMALL: usize = 1 << 16;

/// Rows that are followed pick by pick. A row is known by its slot; slots move when a row leaves.
pub(super) struct Hot {
    /// Cells of a whitened row.
    dim: usize,
    /// Room for coordinates.
    width: usize,
    /// What the search calls the rows; forced ones, which compete with none, have no name.
    names: PlaceVec<Slot, Option<Name>>,
    positions: PlaceVec<Slot, Position>,
    /// q after the first `seen` picks of the epoch.
    values: PlaceVec<Slot, f64>,
    /// Δ for `values`.
    gains: PlaceVec<Slot, f64>,
    seen: PlaceVec<Slot, usize>,
    /// Upper bound of the cosine to the mean that angles are measured from.
    cosines: PlaceVec<Slot, f64>,
    /// A row whose value is below its floor is left behind: it cannot win for now.
    floors: PlaceVec<Slot, f64>,
    /// (m, d).
    whitened: Vec<f64>,
    /// (m, width).
    coordinates: Vec<f64>,
}

/// The rows of one task.
struct Group<'a> {
    positions: &'a [Position],
    floors: &'a [f64],
    values: &'a mut [f64],
    gains: &'a mut [f64],
    seen: &'a mut [usize],
    whitened: &'a mut [f64],
    coordinates: &'a mut [f64],
}

impl Hot {
    pub(super) const fn new(dim: usize, width: usize) -> Self {
        Self {
            dim,
            width: if width == 0 { 1 } else { width },
            names: PlaceVec::new(Vec::new()),
            positions: PlaceVec::new(Vec::new()),
            values: PlaceVec::new(Vec::new()),
            gains: PlaceVec::new(Vec::new()),
            seen: PlaceVec::new(Vec::new()),
            cosines: PlaceVec::new(Vec::new()),
            floors: PlaceVec::new(Vec::new()),
            whitened: Vec::new(),
            coordinates: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    /// All slots.
    pub(super) fn slots(&self) -> impl DoubleEndedIterator<Item = Slot> + ExactSizeIterator + use<> {
        self.positions.places()
    }

    /// The slots from `first` on.
    pub(super) fn slots_from(&self, first: usize) -> impl Iterator<Item = Slot> + use<> {
        self.slots().skip(first)
    }

    /// The slot of the row at `position`, if it is hot.
    pub(super) fn slot_of(&self, position: Position) -> Option<Slot> {
        self.positions.as_slice().iter().position(|&other| other == position).map(Slot::new)
    }

    pub(super) fn name(&self, slot: Slot) -> Option<Name> {
        self.names[slot]
    }

    pub(super) fn positions(&self) -> &[Position] {
        self.positions.as_slice()
    }

    pub(super) fn position(&self, slot: Slot) -> Position {
        self.positions[slot]
    }

    /// Upper bound of the row's cosine to the mean that angles are measured from; 1 where nothing is known.
    pub(super) fn cosine(&self, slot: Slot) -> f64 {
        self.cosines[slot]
    }

    pub(super) fn set_cosine(&mut self, slot: Slot, cosine: f64) {
        self.cosines[slot] = cosine;
    }

    /// Sets the cosines of all rows.
    pub(super) fn set_cosines(&mut self, cosines: Vec<f64>) {
        self.cosines = PlaceVec::new(cosines);
    }

    /// q, of a row that [is active](Self::is_active).
    pub(super) fn value(&self, slot: Slot) -> f64 {
        self.values[slot]
    }

    /// Δ, of a row that [is active](Self::is_active).
    pub(super) fn gain(&self, slot: Slot) -> f64 {
        self.gains[slot]
    }

    pub(super) fn whitened(&self, slot: Slot) -> &[f64] {
        &self.whitened[slot.get() * self.dim..][..self.dim]
    }

    pub(super) fn coordinates(&self, slot: Slot) -> &[f64] {
        &self.coordinates[slot.get() * self.width..][..self.width]
    }

    /// Adds rows, up to date: their names, if they have one, and positions; returns the slot of the first.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn insert(
        &mut self,
        added: impl Iterator<Item = (Option<Name>, Position)>,
        epoch: &Epoch<'_>,
        run: &Run<'_>,
    ) -> Result<Slot> {
        let first = self.len();
        for (name, position) in added {
            self.names.vec_mut().push(name);
            self.positions.vec_mut().push(position);
        }
        let len = self.len();
        self.values.vec_mut().resize(len, 0.0);
        self.gains.vec_mut().resize(len, 0.0);
        self.seen.vec_mut().resize(len, 0);
        self.cosines.vec_mut().resize(len, 1.0);
        self.floors.vec_mut().resize(len, f64::NEG_INFINITY);
        self.whitened.resize(len * self.dim, 0.0);
        self.coordinates.resize(len * self.width, 0.0);
        self.whiten(first, epoch, run)?;
        Ok(Slot::new(first))
    }

    /// Whitens the rows from slot `first` on, as at the start of an epoch, and brings them up to date.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn whiten(&mut self, first: usize, epoch: &Epoch<'_>, run: &Run<'_>) -> Result<()> {
        let (dim, width) = (self.dim, self.width);
        self.groups(first).into_par_iter().with_max_len(1).try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(cells, products), mut group| {
                run.check()?;
                let values = epoch.whiten(group.positions, cells, group.whitened);
                group.values.copy_from_slice(&values);
                group.seen.fill(0);
                group.follow(dim, width, true, epoch, run, products);
                // With no pick in the epoch nothing was followed.
                for (gain, &value) in group.gains.iter_mut().zip(&*group.values) {
                    *gain = run.gain(value);
                }
                Ok(())
            },
        )
    }

    /// Brings every row that is not below its floor up to date.
    pub(super) fn follow(&mut self, epoch: &Epoch<'_>, run: &Run<'_>) {
        self.follow_some(false, epoch, run);
    }

    /// Brings all rows up to date and forgets their floors.
    pub(super) fn catch_up(&mut self, epoch: &Epoch<'_>, run: &Run<'_>) {
        self.floors.vec_mut().fill(f64::NEG_INFINITY);
        self.follow_some(true, epoch, run);
    }

    /// Leaves behind whatever has, or comes to have, a merit below `merit`.
    pub(super) fn leave_below(&mut self, merit: f64, run: &Run<'_>) {
        for (floor, &position) in self.floors.vec_mut().iter_mut().zip(self.positions.as_slice()) {
            let least = run.value_at(position, merit);
            *floor = if least > 0.0 { least * (1.0 - 1e-9) } else { f64::NEG_INFINITY };
        }
    }

    /// Whether the row is up to date, or was left behind.
    pub(super) fn is_active(&self, slot: Slot) -> bool {
        self.values[slot] >= self.floors[slot]
    }

    fn follow_some(&mut self, all: bool, epoch: &Epoch<'_>, run: &Run<'_>) {
        let (dim, width) = (self.dim, self.width);
        let mut groups = self.groups(0);
        // Of each row its cells (by inner products: none) and its coordinates.
        if groups.len() * GROUP * (dim + epoch.picks()) < SMALL {
            let mut products = Vec::new();
            for group in &mut groups {
                group.follow(dim, width, all, epoch, run, &mut products);
            }
        } else {
            let least = groups.len().div_ceil(4 * rayon::current_num_threads());
            groups.into_par_iter().with_min_len(least).for_each_init(Vec::new, |products, mut group| {
                group.follow(dim, width, all, epoch, run, products);
            });
        }
    }

    /// Takes a row out; the last one moves into its slot.
    pub(super) fn remove(&mut self, slot: Slot) {
        let last = self.len() - 1;
        self.whitened.copy_within(last * self.dim.., slot.get() * self.dim);
        self.coordinates.copy_within(last * self.width.., slot.get() * self.width);
        self.whitened.truncate(last * self.dim);
        self.coordinates.truncate(last * self.width);
        self.names.swap_remove(slot);
        self.positions.swap_remove(slot);
        self.values.swap_remove(slot);
        self.gains.swap_remove(slot);
        self.seen.swap_remove(slot);
        self.cosines.swap_remove(slot);
        self.floors.swap_remove(slot);
    }

    fn groups(&mut self, first: usize) -> Vec<Group<'_>> {
        let (dim, width) = (self.dim, self.width);
        let mut lists = self.values.vec_mut()[first..]
            .chunks_mut(GROUP)
            .zip(self.gains.vec_mut()[first..].chunks_mut(GROUP))
            .zip(self.seen.vec_mut()[first..].chunks_mut(GROUP));
        let cells = self.whitened[first * dim..]
            .chunks_mut(GROUP * dim)
            .zip(self.coordinates[first * width..].chunks_mut(GROUP * width));
        let positions = self.positions.as_slice()[first..]
            .chunks(GROUP)
            .zip(self.floors.as_slice()[first..].chunks(GROUP));
        positions
            .zip(cells)
            .map_while(|((positions, floors), (whitened, coordinates))| {
                let ((values, gains), seen) = lists.next()?;
                Some(Group { positions, floors, values, gains, seen, whitened, coordinates })
            })
            .collect()
    }
}

impl Group<'_> {
    fn follow(
        &mut self,
        dim: usize,
        width: usize,
        all: bool,
        epoch: &Epoch<'_>,
        run: &Run<'_>,
        products: &mut Vec<f64>,
    ) {
        // Rows that have seen equally much go together; mostly that is all of them.
        while let Some(seen) = (0..self.positions.len())
            .filter(|&i| (all || self.values[i] >= self.floors[i]) && self.seen[i] < epoch.picks())
            .map(|i| self.seen[i])
            .min()
        {
            let cells = self.whitened.chunks_exact(dim).zip(self.coordinates.chunks_exact_mut(width));
            let mut together: Vec<(&mut f64, Follower<'_>)> = Vec::with_capacity(self.positions.len());
            let numbers = self.values.iter_mut().zip(&mut *self.gains).zip(&mut *self.seen);
            for (((value, gain), at), ((whitened, coordinates), (&position, floor))) in
                numbers.zip(cells.zip(self.positions.iter().zip(self.floors)))
            {
                if (all || *value >= *floor) && *at == seen {
                    *at = epoch.picks();
                    together.push((gain, Follower { position, whitened, coordinates, value }));
                }
            }
            let (gains, mut followers): (Vec<_>, Vec<_>) = together.into_iter().unzip();
            epoch.follow(&mut followers, seen, products);
            for (gain, follower) in gains.into_iter().zip(&followers) {
                *gain = run.gain(*follower.value);
            }
        }
    }
}
