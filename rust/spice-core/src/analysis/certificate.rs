//! An upper bound of U over all choices of k rows, from one choice of them.
//!
//! Let S_j be a prefix of the picks, S* the best k rows, Δ_x = log(1 + αh_x) and a_x = αh_x at S_j.
//!
//! - *submodular*: U(S*) ≤ U(S_j ∪ S*) ≤ U(S_j) + Σ_{x∈S*∖S_j} Δ_x, at most U(S_j) and the k largest Δ_x outside S_j.
//! - *concave*: U(w) = log det(I + α Σ w_x g_x g_xᵀ) is concave in the weights w and ∂U/∂w_x = a_x at the weights of S_j, so that
//!   U(S*) ≤ U(S_j) + Σ_{x∈S*} a_x − Σ_{x∈S_j} a_x, at most with the k largest a_x of all rows.
//!
//! The first is the better one while few rows are picked and each still adds much, the second where many rows share
//! few directions, and better still at other weights (`relaxation`). All hold at every S_j, hence so does the smallest
//! of them, whatever order picked the rows.

use rayon::prelude::*;

use super::bounds::{concave_bound, submodular_bound};
use super::passes::Passes;
use super::prefixes::{self, all_pairs, points};
use super::relaxation::Relaxation;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{Survey, check_positions};

/// What [`certify`] finds. Every bound is in nats and proven: rounded up by whatever may be off.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// U of each prefix, initial rows included.
    pub log_dets: Vec<f64>,
    /// The bound of max U by submodularity at each prefix.
    pub submodular: Vec<f64>,
    /// The bound of max U by concavity at each prefix.
    pub concave: Vec<f64>,
    /// The bounds of max U by concavity at the weights of each step.
    pub relaxed: Vec<f64>,
    /// A lower bound of U of all picks, initial rows included.
    pub least: f64,
}

impl Certificate {
    /// The smallest bound: no k rows, with the initial ones, have a larger U.
    pub fn upper_bound(&self) -> f64 {
        let bounds = self.submodular.iter().chain(&self.concave).chain(&self.relaxed);
        bounds.copied().fold(f64::INFINITY, f64::min)
    }

    /// U(S)/max U is at least this, in [0, 1].
    pub fn ratio(&self) -> f64 {
        let bound = self.upper_bound();
        // Rows of zeros: there is nothing to reach.
        if bound <= 0.0 { 1.0 } else { (self.least / bound).clamp(0.0, 1.0) * (1.0 - f64::EPSILON) }
    }
}

/// Bounds U over any `picks.len()` rows beside the `initial` ones, from prefixes of `picks`.
///
/// The prefixes ascend; the last one is all picks, and the first may be none. Each takes some n·d²/2 multiplications at
/// most, as does each of at most `steps` steps to better weights, of which none is taken that promises nothing.
///
/// # Errors
/// [`Error::InvalidInput`] if a row is out of range or twice there, if the prefixes do not ascend to all picks, if α is out
/// of range, or if the matrices do not fit into memory; [`Error::Interrupted`].
pub fn certify(
    survey: &Survey<'_>,
    alpha: f64,
    initial: &[Position],
    picks: &[Position],
    prefixes: &[usize],
    steps: usize,
    monitor: &Monitor,
) -> Result<Certificate> {
    let passes = Passes::new(survey, alpha, monitor)?;
    let list = [initial, picks].concat();
    check_positions(survey, &list)?;
    let mut places = vec![None; survey.len()];
    for (place, &position) in list.iter().enumerate() {
        if places[position.get()].replace(place).is_some() {
            let found = format!("row {} twice", survey.dataset_row(position));
            return Err(Error::invalid("picks", found, "each row once", "Name each row once."));
        }
    }
    let ascending = prefixes.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || prefixes.last() != Some(&picks.len()) {
        let expected = format!("ascending numbers up to {}, the picks", picks.len());
        let remedy = "Give the number of prefixes instead, or other sizes.";
        return Err(Error::invalid("prefixes", format!("{prefixes:?}"), expected, remedy));
    }
    let ends: Vec<usize> = prefixes.iter().map(|prefix| initial.len() + prefix).collect();
    let (k, n) = (picks.len(), survey.len());
    let (bytes, read) = prefixes::cost(passes, list.len(), &ends);
    passes.check_memory(bytes)?;
    // The steps only make the bound tighter: where their matrices do not fit, none is taken.
    let relaxation = Relaxation::cost(passes, list.len(), k)
        .filter(|&(more, _)| steps > 0 && passes.check_memory(bytes.max(more)).is_ok());
    monitor.plan(n + read + relaxation.map_or(0, |(_, read)| k + read * steps));

    let pairs = all_pairs(passes)?;
    let points = points(passes, pairs.as_deref(), &list, &ends)?;
    let bounds: Vec<(f64, f64)> = points
        .par_iter()
        .zip(&ends)
        .map(|(point, &end)| {
            monitor.check()?;
            let inside = |position: Position| places[position.get()].is_some_and(|place| place < end);
            let weight = |position| f64::from(u8::from(inside(position)));
            let concave = concave_bound(passes, point, weight, initial, k);
            Ok((submodular_bound(passes, point, &places, end, k), concave))
        })
        .collect::<Result<_>>()?;
    let (submodular, concave): (Vec<f64>, Vec<f64>) = bounds.into_iter().unzip();
    let mut relaxed = Vec::new();
    if let (Some(_), Some(last), Some(&bound)) = (relaxation, points.last(), concave.last()) {
        let best = submodular.iter().chain(&concave).copied().fold(f64::INFINITY, f64::min);
        let steps_from = Relaxation { passes, pairs: pairs.as_deref(), initial, k };
        relaxed = steps_from.bounds(picks, last, (bound, best), steps)?;
    }
    // Steps that were not taken.
    monitor.add_surveyed(monitor.planned().saturating_sub(monitor.surveyed()));
    let least = points.last().map_or(0.0, |point| (point.log_det - point.log_det_error).max(0.0));
    let log_dets = points.iter().map(|point| point.log_det).collect();
    Ok(Certificate { log_dets, submodular, concave, relaxed, least })
}
