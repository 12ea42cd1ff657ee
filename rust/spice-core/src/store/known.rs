//! What a store may know of a row besides its gradient: columns that are there for all rows or for none.

use std::ops::Range;

/// Values of rows, one of each kind for each row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Learned tokens of the sample, at least 0.
    pub num_tokens: Option<&'a [i32]>,
    /// Loss of the sample, finite.
    pub loss: Option<&'a [f32]>,
    /// Hash of what is learned from the sample.
    pub record: Option<&'a [i64]>,
}

impl<'a> Known<'a> {
    /// Which of the columns are there.
    pub(super) fn kinds(&self) -> Kinds {
        Kinds {
            num_tokens: self.num_tokens.is_some(),
            loss: self.loss.is_some(),
            record: self.record.is_some(),
        }
    }

    /// The values of some of the rows.
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        Self {
            num_tokens: self.num_tokens.map(|values| &values[rows.clone()]),
            loss: self.loss.map(|values| &values[rows.clone()]),
            record: self.record.map(|values| &values[rows]),
        }
    }

    /// The values of one row.
    pub(super) fn row(&self, row: usize) -> KnownRow {
        KnownRow {
            num_tokens: self.num_tokens.map(|values| values[row]),
            loss: self.loss.map(|values| values[row]),
            record: self.record.map(|values| values[row]),
        }
    }

    /// Name and number of values of each column.
    pub(super) fn lengths(&self) -> [(&'static str, Option<usize>); 3] {
        [
            ("num_tokens", self.num_tokens.map(<[_]>::len)),
            ("loss", self.loss.map(<[_]>::len)),
            ("record", self.record.map(<[_]>::len)),
        ]
    }
}

/// The values of one row; see [`Known`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct KnownRow {
    pub(super) num_tokens: Option<i32>,
    pub(super) loss: Option<f32>,
    pub(super) record: Option<i64>,
}

impl KnownRow {
    /// Whether the two agree in all that both know.
    pub(super) fn agrees(self, other: Self) -> bool {
        fn agree<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.zip(b).is_none_or(|(a, b)| a == b)
        }
        agree(self.loss.map(f32::to_bits), other.loss.map(f32::to_bits))
            && agree(self.num_tokens, other.num_tokens)
            && agree(self.record, other.record)
    }

    /// The columns in `kinds` alone.
    pub(super) fn only(self, kinds: Kinds) -> Self {
        Self {
            num_tokens: self.num_tokens.filter(|_| kinds.num_tokens),
            loss: self.loss.filter(|_| kinds.loss),
            record: self.record.filter(|_| kinds.record),
        }
    }
}

/// Which of the columns are there; see [`Known`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kinds {
    pub(super) num_tokens: bool,
    pub(super) loss: bool,
    pub(super) record: bool,
}

impl Kinds {
    /// All of them.
    pub(super) const ALL: Self = Self { num_tokens: true, loss: true, record: true };

    /// How many there are.
    pub(super) fn count(self) -> usize {
        [self.num_tokens, self.loss, self.record].map(usize::from).iter().sum()
    }

    /// Those that are in both.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            num_tokens: self.num_tokens && other.num_tokens,
            loss: self.loss && other.loss,
            record: self.record && other.record,
        }
    }
}
