//! Who owns which of the rows that compete, and how to reach the owners.

use super::messages::{Asked, News, Reply};
use super::owner::{OutOfSight, Owner};
use crate::error::Result;
use crate::rows::Position;
use crate::selection::places::{Name, Place, PlaceVec};
use crate::selection::run::Run;

/// The way to the owners.
pub(super) trait Owners: Send + Sync {
    /// Passes asks on, each to its owner, and returns what comes back: a reply to each, in any order, and perhaps replies to
    /// earlier ones again.
    ///
    /// # Errors
    /// Whatever stops the run.
    fn ask(&mut self, news: &News<'_>, asks: &[Asked<'_>]) -> Result<Vec<Reply>>;

    /// Makes an owner lose its memory.
    #[cfg(test)]
    fn forget(&mut self, owner: usize);

    /// The owners, if they are in this process and nothing is between.
    #[cfg(test)]
    fn here(&self) -> Option<&Local<'_>> {
        None
    }
}

/// How a search comes to have a way to owners.
pub(super) type Reach<'r> = &'r dyn for<'a> Fn(Local<'a>) -> Box<dyn Owners + 'a>;

/// Owners in this process.
pub(super) struct Local<'a>(pub(super) Vec<Owner<'a>>);

impl Local<'_> {
    /// Number of rows that wait, by owner.
    pub(super) fn waiting(&self) -> Vec<usize> {
        self.0.iter().map(Owner::waiting).collect()
    }
}

impl Owners for Local<'_> {
    fn ask(&mut self, news: &News<'_>, asks: &[Asked<'_>]) -> Result<Vec<Reply>> {
        asks.iter().map(|asked| self.0[asked.owner].answer(news, asked)).collect()
    }

    #[cfg(test)]
    fn forget(&mut self, owner: usize) {
        self.0[owner].forget();
    }

    #[cfg(test)]
    fn here(&self) -> Option<&Local<'_>> {
        Some(self)
    }
}

/// Which row is whose.
pub(super) enum Deal {
    /// One owner has all of them, under the names that the search has for them.
    Whole(usize),
    /// Owner and name of each, and the rows of each owner.
    Parts(PlaceVec<Name, (usize, Name)>, Vec<PlaceVec<Name, Name>>),
}

impl Deal {
    /// Deals rows out to `count` owners; `owner` tells whose a row is.
    pub(super) fn new(rows: usize, count: usize, owner: impl Fn(usize) -> usize) -> Self {
        if count == 1 {
            return Self::Whole(rows);
        }
        let mut lists = vec![Vec::new(); count];
        let mut places = Vec::with_capacity(rows);
        for row in 0..rows {
            let owner = owner(row);
            places.push((owner, Name::new(lists[owner].len())));
            lists[owner].push(Name::new(row));
        }
        Self::Parts(PlaceVec::new(places), lists.into_iter().map(PlaceVec::new).collect())
    }

    /// Number of owners.
    pub(super) const fn owners(&self) -> usize {
        match self {
            Self::Whole(_) => 1,
            Self::Parts(_, lists) => lists.len(),
        }
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Whole(rows) => *rows,
            Self::Parts(places, _) => places.len(),
        }
    }

    /// The owner of a row, and what it calls the row.
    pub(super) fn place(&self, name: Name) -> (usize, Name) {
        match self {
            Self::Whole(_) => (0, name),
            Self::Parts(places, _) => places[name],
        }
    }

    /// What the search calls a row of an owner.
    pub(super) fn name(&self, owner: usize, name: Name) -> Name {
        match self {
            Self::Whole(_) => name,
            Self::Parts(_, lists) => lists[owner][name],
        }
    }

    /// The owners, each with its rows of the `candidates`.
    pub(super) fn local<'a>(
        &self,
        candidates: Vec<Position>,
        rule: OutOfSight<'a>,
        run: &Run<'_>,
    ) -> Local<'a> {
        let of = |list: &PlaceVec<Name, Name>| {
            list.as_slice().iter().map(|name| candidates[name.get()]).collect()
        };
        Local(match self {
            Self::Whole(_) => vec![Owner::new(candidates, rule, run)],
            Self::Parts(_, lists) => lists.iter().map(|list| Owner::new(of(list), rule, run)).collect(),
        })
    }
}
