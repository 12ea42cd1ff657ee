//! The directions of the latest picks, as far as they are kept: what an owner needs of them.

/// Directions as rows in single precision, and how far a product with a unit row may be off.
pub(super) struct Window {
    dim: usize,
    /// Picks before the first direction that is kept.
    first: usize,
    /// (t, d).
    cells: Vec<f32>,
    /// e_j.
    errors: Vec<f32>,
}

impl Window {
    pub(super) const fn new(dim: usize) -> Self {
        Self { dim, first: 0, cells: Vec::new(), errors: Vec::new() }
    }

    /// Picks before the first direction that is kept.
    pub(super) const fn first(&self) -> usize {
        self.first
    }

    /// Picks up to the last direction that is known.
    pub(super) fn end(&self) -> usize {
        self.first + self.errors.len()
    }

    /// The directions of picks `from..to` as rows, and their errors.
    pub(super) fn range(&self, from: usize, to: usize) -> (&[f32], &[f32]) {
        let (from, to) = (from - self.first, to - self.first);
        (&self.cells[from * self.dim..to * self.dim], &self.errors[from..to])
    }

    /// Room for `count` more directions, to be filled, and the errors to be added to.
    pub(super) fn grow(&mut self, count: usize) -> (&mut [f32], &mut Vec<f32>) {
        let known = self.cells.len();
        self.cells.resize(known + count * self.dim, 0.0);
        (&mut self.cells[known..], &mut self.errors)
    }

    /// Takes directions that come after those that are known, and drops those before `first`.
    #[cfg(any(test, fuzzing))]
    pub(super) fn follow(&mut self, first: usize, cells: &[f32], errors: &[f32]) {
        self.cells.extend_from_slice(cells);
        self.errors.extend_from_slice(errors);
        self.keep(self.end() - first);
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// A window that starts after `first` picks.
    #[cfg(any(test, fuzzing))]
    pub(super) fn starting(dim: usize, first: usize) -> Self {
        Self { first, ..Self::new(dim) }
    }

    /// Keeps the latest `kept` directions.
    pub(super) fn keep(&mut self, kept: usize) {
        let dropped = self.errors.len().saturating_sub(kept);
        self.first += dropped;
        self.errors.drain(..dropped);
        self.cells.drain(..dropped * self.dim);
    }
}
