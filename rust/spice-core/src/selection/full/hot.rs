//! The rows in contention: whitened, with their exact values.

use rayon::prelude::*;

use super::epoch::{Epoch, Follower};
use crate::error::Result;
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
    /// What the search calls the rows.
    pub(super) names: Vec<usize>,
    /// Rows of the pool.
    pub(super) rows: Vec<usize>,
    /// q after the first `seen` picks of the epoch.
    pub(super) values: Vec<f64>,
    /// Δ for `values`.
    pub(super) gains: Vec<f64>,
    seen: Vec<usize>,
    /// Cosine to the mean that angles are measured from; above 0 where unknown.
    pub(super) cosines: Vec<f64>,
    /// A row whose value is below its floor is left behind: it cannot win for now.
    floors: Vec<f64>,
    /// (m, d).
    whitened: Vec<f64>,
    /// (m, width).
    coordinates: Vec<f64>,
}

/// The rows of one task.
struct Group<'a> {
    rows: &'a [usize],
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
            names: Vec::new(),
            rows: Vec::new(),
            values: Vec::new(),
            gains: Vec::new(),
            seen: Vec::new(),
            cosines: Vec::new(),
            floors: Vec::new(),
            whitened: Vec::new(),
            coordinates: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn whitened(&self, slot: usize) -> &[f64] {
        &self.whitened[slot * self.dim..][..self.dim]
    }

    pub(super) fn coordinates(&self, slot: usize) -> &[f64] {
        &self.coordinates[slot * self.width..][..self.width]
    }

    /// Adds rows, up to date: (name, row of the pool).
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn insert(
        &mut self,
        added: impl Iterator<Item = (usize, usize)>,
        epoch: &Epoch<'_>,
        run: &Run<'_>,
    ) -> Result<()> {
        let first = self.len();
        for (name, row) in added {
            self.names.push(name);
            self.rows.push(row);
        }
        let len = self.len();
        self.values.resize(len, 0.0);
        self.gains.resize(len, 0.0);
        self.seen.resize(len, 0);
        self.cosines.resize(len, 1.0);
        self.floors.resize(len, f64::NEG_INFINITY);
        self.whitened.resize(len * self.dim, 0.0);
        self.coordinates.resize(len * self.width, 0.0);
        self.whiten(first, epoch, run)
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
                let values = epoch.whiten(group.rows, cells, group.whitened);
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
        self.floors.fill(f64::NEG_INFINITY);
        self.follow_some(true, epoch, run);
    }

    /// Leaves behind whatever has, or comes to have, a merit below `merit`.
    pub(super) fn leave_below(&mut self, merit: f64, run: &Run<'_>) {
        for (floor, &row) in self.floors.iter_mut().zip(&self.rows) {
            let least = run.value_at(row, merit);
            *floor = if least > 0.0 { least * (1.0 - 1e-9) } else { f64::NEG_INFINITY };
        }
    }

    /// Whether the row is up to date, or was left behind.
    pub(super) fn is_active(&self, slot: usize) -> bool {
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
    pub(super) fn remove(&mut self, slot: usize) {
        let last = self.len() - 1;
        self.whitened.copy_within(last * self.dim.., slot * self.dim);
        self.coordinates.copy_within(last * self.width.., slot * self.width);
        self.whitened.truncate(last * self.dim);
        self.coordinates.truncate(last * self.width);
        self.names.swap_remove(slot);
        self.rows.swap_remove(slot);
        self.values.swap_remove(slot);
        self.gains.swap_remove(slot);
        self.seen.swap_remove(slot);
        self.cosines.swap_remove(slot);
        self.floors.swap_remove(slot);
    }

    fn groups(&mut self, first: usize) -> Vec<Group<'_>> {
        let (dim, width) = (self.dim, self.width);
        let mut lists = self.values[first..]
            .chunks_mut(GROUP)
            .zip(self.gains[first..].chunks_mut(GROUP))
            .zip(self.seen[first..].chunks_mut(GROUP));
        let cells = self.whitened[first * dim..]
            .chunks_mut(GROUP * dim)
            .zip(self.coordinates[first * width..].chunks_mut(GROUP * width));
        let rows = self.rows[first..].chunks(GROUP).zip(self.floors[first..].chunks(GROUP));
        rows.zip(cells)
            .map_while(|((rows, floors), (whitened, coordinates))| {
                let ((values, gains), seen) = lists.next()?;
                Some(Group { rows, floors, values, gains, seen, whitened, coordinates })
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
        while let Some(seen) = (0..self.rows.len())
            .filter(|&i| (all || self.values[i] >= self.floors[i]) && self.seen[i] < epoch.picks())
            .map(|i| self.seen[i])
            .min()
        {
            let cells = self.whitened.chunks_exact(dim).zip(self.coordinates.chunks_exact_mut(width));
            let mut together: Vec<(&mut f64, Follower<'_>)> = Vec::with_capacity(self.rows.len());
            let numbers = self.values.iter_mut().zip(&mut *self.gains).zip(&mut *self.seen);
            for (((value, gain), at), ((whitened, coordinates), (&row, floor))) in
                numbers.zip(cells.zip(self.rows.iter().zip(self.floors)))
            {
                if (all || *value >= *floor) && *at == seen {
                    *at = epoch.picks();
                    together.push((gain, Follower { row, whitened, coordinates, value }));
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
