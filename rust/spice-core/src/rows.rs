//! What a row is known by.
//!
//! A row has a number in the data, its *dataset row*, and a place in an open source, its *position*. Both are whole numbers,
//! and to take one for the other selects other rows without an error; so each is a type of its own. Inside a search
//! a row has two more, which are types of [`selection`](crate::selection).

use std::fmt;

/// Number of a sample in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DatasetRow(i64);

impl DatasetRow {
    /// The sample of this number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for DatasetRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place of a row in a pool, 0 … n − 1, in the order of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Position(usize);

impl Position {
    /// The row at this place.
    pub const fn new(place: usize) -> Self {
        Self(place)
    }

    /// The place.
    pub const fn get(self) -> usize {
        self.0
    }

    /// The positions of a pool of `n` rows, in order.
    pub fn all(n: usize) -> impl ExactSizeIterator<Item = Self> + Clone {
        (0..n).map(Self)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
