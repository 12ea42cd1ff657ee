//! An upper bound of U over all choices of k rows, from one choice of them.
//!
//! Let S_j be a prefix of the picks, S* the best k rows, Δ_x = log(1 + αh_x) and a_x = αh_x at S_j.
//!
//! - *submodular*: U(S*) ≤ U(S_j ∪ S*) ≤ U(S_j) + Σ_{x∈S*∖S_j} Δ_x, at most U(S_j) and the k largest Δ_x outside S_j.
//! - *concave*: U(w) = log det(I + α Σ w_x g_x g_xᵀ) is concave in the weights w and ∂U/∂w_x = a_x at the weights of S_j, so that
//!   U(S*) ≤ U(S_j) + Σ_{x∈S*} a_x − Σ_{x∈S_j} a_x, at most with the k largest a_x of all rows.
//!
//! The first is the better one while few rows are picked and each still adds much, the second where many rows share
//! few directions. Both hold at every S_j, hence so does the smallest of all, whatever order picked the rows.

use rayon::prelude::*;

use super::passes::Passes;
use super::prefixes::{Point, points};
use crate::error::{Error, Result};
use crate::linalg::rounding;
use crate::monitor::Monitor;
use crate::selection::{Survey, check_rows};

/// What [`certify`] finds. Every bound is in nats and proven: rounded up by whatever may be off.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// U of each prefix, owned rows included.
    pub log_dets: Vec<f64>,
    /// The bound of max U by submodularity at each prefix.
    pub submodular: Vec<f64>,
    /// The bound of max U by concavity at each prefix.
    pub concave: Vec<f64>,
    /// A lower bound of U of all picks, owned rows included.
    pub least: f64,
}

impl Certificate {
    /// The place of the prefix that bounds best.
    pub fn best(&self) -> usize {
        let bound = |place: usize| self.submodular[place].min(self.concave[place]);
        (0..self.submodular.len()).min_by(|&a, &b| bound(a).total_cmp(&bound(b))).unwrap_or(0)
    }

    /// The smallest bound: no k rows, with the owned ones, have a larger U.
    pub fn upper_bound(&self) -> f64 {
        let best = self.best();
        self.submodular[best].min(self.concave[best])
    }

    /// U(S)/max U is at least this, in [0, 1].
    pub fn ratio(&self) -> f64 {
        let bound = self.upper_bound();
        // Rows of zeros: there is nothing to reach.
        if bound <= 0.0 { 1.0 } else { (self.least / bound).clamp(0.0, 1.0) * (1.0 - f64::EPSILON) }
    }
}

/// Bounds U over any `picks.len()` rows beside the rows that are `owned`, from prefixes of `picks`.
///
/// The prefixes ascend; the last one is all picks, and the first may be none. Each takes some n·d²/2 multiplications at most.
///
/// # Errors
/// [`Error::InvalidInput`] if a row is out of range or twice there, if the prefixes do not ascend to all picks, if α is out
/// of range, or if the matrices do not fit into memory; [`Error::Interrupted`].
pub fn certify(
    survey: &Survey<'_>,
    alpha: f64,
    owned: &[usize],
    picks: &[usize],
    prefixes: &[usize],
    monitor: &Monitor,
) -> Result<Certificate> {
    let passes = Passes::new(survey, alpha, monitor)?;
    let list = [owned, picks].concat();
    check_rows(survey, &list)?;
    let mut places = vec![usize::MAX; survey.len()];
    for (place, &row) in list.iter().enumerate() {
        if places[row] != usize::MAX {
            let found = format!("row {} twice", survey.index(row));
            return Err(Error::invalid("picks", found, "each row once", "Name each row once."));
        }
        places[row] = place;
    }
    let ascending = prefixes.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || prefixes.last() != Some(&picks.len()) {
        let expected = format!("ascending numbers up to {}, the picks", picks.len());
        let remedy = "Give the number of prefixes instead, or other sizes.";
        return Err(Error::invalid("prefixes", format!("{prefixes:?}"), expected, remedy));
    }
    let ends: Vec<usize> = prefixes.iter().map(|prefix| owned.len() + prefix).collect();
    let points = points(passes, &list, &ends)?;
    let bounds: Vec<(f64, f64)> = points
        .par_iter()
        .zip(&ends)
        .map(|(point, &end)| {
            monitor.check()?;
            Ok(bounds(passes, point, &places, (owned.len(), end), picks.len()))
        })
        .collect::<Result<_>>()?;
    let (submodular, concave) = bounds.into_iter().unzip();
    let least = points.last().map_or(0.0, |point| (point.log_det - point.log_det_error).max(0.0));
    let log_dets = points.iter().map(|point| point.log_det).collect();
    Ok(Certificate { log_dets, submodular, concave, least })
}

/// Both bounds at a prefix of the list; `places` has the place in the list of each row of the pool.
fn bounds(
    passes: Passes<'_>,
    point: &Point,
    places: &[usize],
    (owned, end): (usize, usize),
    k: usize,
) -> (f64, f64) {
    let start = point.log_det + point.log_det_error;
    let (mut outside, mut all, mut inside) = (Vec::new(), Vec::new(), 0.0);
    for (row, &place) in places.iter().enumerate() {
        if place < owned {
            continue;
        }
        let signal = passes.signal(row);
        let above = point.above(row, signal, place < end);
        all.push(above);
        if place < end {
            inside += point.below(row, signal);
        } else {
            outside.push(above);
        }
    }
    let linear = largest_sum(&mut all, k, |value| value);
    let gains = largest_sum(&mut outside, k, f64::ln_1p);
    let slack = rounding(2 * k + 16);
    let submodular = (start + gains) * (1.0 + slack);
    (submodular, start + linear - inside + slack * (start + linear + inside))
}

/// The sum of `of` the `count` largest values, an increasing function.
fn largest_sum(values: &mut [f64], count: usize, of: impl Fn(f64) -> f64) -> f64 {
    if count < values.len() {
        values.select_nth_unstable_by(count, |a, b| b.total_cmp(a));
    }
    let count = count.min(values.len());
    let largest = &mut values[..count];
    // In one order, so that the sum is the same whatever was selected how.
    largest.sort_unstable_by(|a, b| b.total_cmp(a));
    largest.iter().map(|&value| of(value)).sum()
}
