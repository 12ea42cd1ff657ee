//! Where a search keeps a row: types of their own, and arrays that are indexed by nothing else.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// Place of a row among those that compete, 0 … m − 1. It stays the same for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub(super) struct Name(usize);

/// Place of a row in what a search works on: the hot rows, or the list of those that are left. It changes when rows leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub(super) struct Slot(usize);

/// A place in an array.
pub(super) trait Place: Copy {
    fn new(place: usize) -> Self;
    fn get(self) -> usize;

    /// The place that comes `count` places later.
    fn later(self, count: usize) -> Self {
        Self::new(self.get() + count)
    }
}

macro_rules! place {
    ($($name:ident)*) => {$(
        impl Place for $name {
            fn new(place: usize) -> Self {
                Self(place)
            }

            fn get(self) -> usize {
                self.0
            }
        }
    )*};
}

place!(Name Slot);

/// A `Vec` with an item for each place of one kind.
pub(super) struct PlaceVec<P, T> {
    items: Vec<T>,
    of: PhantomData<fn(P)>,
}

impl<P: Place, T> PlaceVec<P, T> {
    pub(super) const fn new(items: Vec<T>) -> Self {
        Self { items, of: PhantomData }
    }

    pub(super) fn as_slice(&self) -> &[T] {
        &self.items
    }

    pub(super) fn vec_mut(&mut self) -> &mut Vec<T> {
        &mut self.items
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// All places, in order.
    pub(super) fn places(&self) -> impl DoubleEndedIterator<Item = P> + ExactSizeIterator + use<P, T> {
        (0..self.items.len()).map(P::new)
    }

    /// All items with their places, in order.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (P, &T)> {
        self.items.iter().enumerate().map(|(place, item)| (P::new(place), item))
    }

    /// Takes an item out; the last one moves into its place.
    pub(super) fn swap_remove(&mut self, place: P) -> T {
        self.items.swap_remove(place.get())
    }
}

impl<P: Place, T> Index<P> for PlaceVec<P, T> {
    type Output = T;

    fn index(&self, place: P) -> &T {
        &self.items[place.get()]
    }
}

impl<P: Place, T> IndexMut<P> for PlaceVec<P, T> {
    fn index_mut(&mut self, place: P) -> &mut T {
        &mut self.items[place.get()]
    }
}
