//! What an earlier run leaves to one that goes on from it.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use spice_core::matrix::Pool;
use spice_core::selection::{NearDuplicate, Pick};
use spice_core::{Error, Result};

/// `spice_rs.selection.options.Past`.
#[derive(FromPyObject)]
pub(crate) struct PastOptions<'py> {
    made: Option<Made<'py>>,
    left_out: Option<LeftOut<'py>>,
    old: Option<PyReadonlyArray1<'py, bool>>,
}

/// The picks of an earlier run, the near-duplicates that it left out, and, if the pool has grown since, which rows were there.
pub(crate) type Past = (Vec<Pick>, Vec<NearDuplicate>, Option<Vec<bool>>);

impl PastOptions<'_> {
    pub(crate) fn of(&self, pool: &Pool<'_>) -> Result<Past> {
        let made = self.made.as_ref().map(|made| made.picks(pool)).transpose()?;
        let left_out = self.left_out.as_ref().map(|rows| rows.duplicates(pool)).transpose()?;
        let old = self.old.as_ref().map(|old| old.as_array().to_vec());
        Ok((made.unwrap_or_default(), left_out.unwrap_or_default(), old))
    }
}

/// The picks of an earlier run, column by column: positions, gains, base, conflict, scores, overruled, rows read.
#[derive(FromPyObject)]
struct Made<'py>(
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, bool>,
    PyReadonlyArray1<'py, i64>,
);

impl Made<'_> {
    fn picks(&self, pool: &Pool<'_>) -> Result<Vec<Pick>> {
        let Self(rows, gains, base, conflict, scores, overruled, rows_read) = self;
        let (rows, overruled, rows_read) = (rows.as_array(), overruled.as_array(), rows_read.as_array());
        let (gains, base) = (gains.as_array(), base.as_array());
        let (conflict, scores) = (conflict.as_array(), scores.as_array());
        let lengths =
            [gains.len(), base.len(), conflict.len(), scores.len(), overruled.len(), rows_read.len()];
        let outside = rows.iter().any(|&row| usize::try_from(row).map_or(true, |row| row >= pool.len()));
        if outside || lengths != [rows.len(); 6] {
            let expected = "columns of one length and positions of the source";
            return Err(Error::invalid("made", "something else", expected, "Start anew."));
        }
        let pick = |i: usize| Pick {
            row: rows[i] as usize,
            index: pool.index(rows[i] as usize),
            gain: gains[i],
            base: base[i],
            conflict: conflict[i],
            score: scores[i],
            overruled: overruled[i],
            rows_read: rows_read[i] as u64,
        };
        Ok((0..rows.len()).map(pick).collect())
    }
}

/// Near-duplicates that an earlier run left out, column by column: positions, the dataset rows that they are too similar
/// to, cosines, and how many picks there were.
#[derive(FromPyObject)]
struct LeftOut<'py>(
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, i64>,
    PyReadonlyArray1<'py, f64>,
    PyReadonlyArray1<'py, i64>,
);

impl LeftOut<'_> {
    fn duplicates(&self, pool: &Pool<'_>) -> Result<Vec<NearDuplicate>> {
        let Self(rows, of, cosines, picks) = self;
        let (rows, of) = (rows.as_array(), of.as_array());
        let (cosines, picks) = (cosines.as_array(), picks.as_array());
        let outside = rows.iter().any(|&row| usize::try_from(row).map_or(true, |row| row >= pool.len()));
        if outside || [of.len(), cosines.len(), picks.len()] != [rows.len(); 3] {
            let expected = "columns of one length and positions of the source";
            return Err(Error::invalid("left_out", "something else", expected, "Start anew."));
        }
        let duplicate = |i: usize| NearDuplicate {
            row: rows[i] as usize,
            index: pool.index(rows[i] as usize),
            of: of[i],
            cosine: cosines[i],
            picks: picks[i] as usize,
        };
        Ok((0..rows.len()).map(duplicate).collect())
    }
}
