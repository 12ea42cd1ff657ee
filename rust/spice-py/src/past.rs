//! What an earlier run leaves to one that goes on from it.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use spice_core::matrix::Pool;
use spice_core::rows::{DatasetRow, Position};
use spice_core::selection::{NearDuplicate, Pick};
use spice_core::{Error, Result};

/// `spice_rs.selection.options.Past`.
#[derive(FromPyObject)]
pub(crate) struct PastOptions<'py> {
    made: Option<PickColumns<'py>>,
    near_duplicates: Option<NearDuplicateColumns<'py>>,
    old: Option<PyReadonlyArray1<'py, bool>>,
}

/// The picks of an earlier run, the near-duplicates that it skipped, and, if the pool has grown since, which rows were there.
pub(crate) type Past = (Vec<Pick>, Vec<NearDuplicate>, Option<Vec<bool>>);

impl PastOptions<'_> {
    pub(crate) fn of(&self, pool: &Pool<'_>) -> Result<Past> {
        let made = self.made.as_ref().map(|made| made.picks(pool)).transpose()?;
        let skipped =
            self.near_duplicates.as_ref().map(|rows| rows.near_duplicates(pool)).transpose()?;
        let old = self.old.as_ref().map(|old| old.as_array().to_vec());
        Ok((made.unwrap_or_default(), skipped.unwrap_or_default(), old))
    }
}

/// The picks of an earlier run, column by column: positions, gains, base, conflict, scores, overruled, rows read.
#[derive(FromPyObject)]
struct PickColumns<'py>(
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, bool>,
    PyReadonlyArray1<'py, i64>,
);

impl PickColumns<'_> {
    fn picks(&self, pool: &Pool<'_>) -> Result<Vec<Pick>> {
        let Self(positions, gains, base, conflict, scores, overruled, rows_read) = self;
        let (positions, overruled, rows_read) =
            (positions.as_array(), overruled.as_array(), rows_read.as_array());
        let (gains, base) = (gains.as_array(), base.as_array());
        let (conflict, scores) = (conflict.as_array(), scores.as_array());
        let lengths =
            [gains.len(), base.len(), conflict.len(), scores.len(), overruled.len(), rows_read.len()];
        let outside = positions.iter().any(|&position| is_outside(position, pool));
        if outside || lengths != [positions.len(); 6] {
            let expected = "columns of one length and positions of the source";
            return Err(Error::invalid("made", "something else", expected, "Start anew."));
        }
        let pick = |i: usize| Pick {
            position: at(positions[i]),
            row: pool.dataset_row(at(positions[i])),
            gain: gains[i],
            base: base[i],
            conflict: conflict[i],
            score: scores[i],
            overruled: overruled[i],
            rows_read: rows_read[i] as u64,
        };
        Ok((0..positions.len()).map(pick).collect())
    }
}

/// Near-duplicates that an earlier run skipped, column by column: positions, the dataset rows that they are too similar
/// to, cosines, and how many picks there were.
#[derive(FromPyObject)]
struct NearDuplicateColumns<'py>(
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, i64>,
);

impl NearDuplicateColumns<'_> {
    fn near_duplicates(&self, pool: &Pool<'_>) -> Result<Vec<NearDuplicate>> {
        let Self(positions, of, cosines, picks) = self;
        let (positions, of) = (positions.as_array(), of.as_array());
        let (cosines, picks) = (cosines.as_array(), picks.as_array());
        let outside = positions.iter().any(|&position| is_outside(position, pool));
        if outside || [of.len(), cosines.len(), picks.len()] != [positions.len(); 3] {
            let expected = "columns of one length and positions of the source";
            return Err(Error::invalid("near_duplicates", "something else", expected, "Start anew."));
        }
        let near_duplicate = |i: usize| NearDuplicate {
            position: at(positions[i]),
            row: pool.dataset_row(at(positions[i])),
            of: DatasetRow::new(of[i]),
            cosine: cosines[i],
            picks: picks[i] as usize,
        };
        Ok((0..positions.len()).map(near_duplicate).collect())
    }
}

fn is_outside(position: i64, pool: &Pool<'_>) -> bool {
    usize::try_from(position).map_or(true, |position| position >= pool.len())
}

/// A position that is not outside.
const fn at(position: i64) -> Position {
    Position::new(position as usize)
}
