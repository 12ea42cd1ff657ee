//! The bound by concavity at better weights than those of the picks.
//!
//! For any weights w in [0, 1] that sum to k, U(S*) ≤ U(w) + Σ_{x∈S*} a_x − Σ w_x a_x, a_x = ∂U/∂w_x = αh_x(w): the distance to
//! the best weights, of which every choice of k rows is one. Frank and Wolfe's method (1956) makes it smaller: w moves
//! towards the k rows of the largest a, as far as U grows. Each step is one more pass over the pool, and one more proven
//! bound, wherever the steps lead.

use super::bounds::concave_bound;
use super::curvature::{lengths, pairs_error};
use super::passes::{Passes, identity};
use super::prefixes::{Point, Trace, falls_by_pairs, pairs_among};
use crate::error::Result;
use crate::linalg::Whitening;
use crate::rows::Position;

/// How far a step may go, and where the search of the first one starts.
const SHARES: [f64; 8] = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9];
const FIRST: usize = 4;

/// Bounds above this many times the best one do not come down to it soon.
const HOPELESS: f64 = 1.5;

/// A step that takes less than this off the bound was the last.
const LEAST_GAIN: f64 = 1e-3;

/// Weights of the rows of the pool, and what they amount to.
#[derive(Clone)]
struct Mixture {
    /// (n,); 1 for initial rows.
    weights: Vec<f64>,
    /// I + α Σ w ggᵀ, where that is how it is computed.
    matrix: Option<Vec<f64>>,
}

impl Mixture {
    /// `share` of the way to another mixture.
    fn toward(&self, other: &Self, share: f64) -> Self {
        let mix =
            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (1.0 - share) * a + share * b).collect();
        Self {
            weights: mix(&self.weights, &other.weights),
            matrix: self.matrix.as_ref().zip(other.matrix.as_ref()).map(|(a, b)| mix(a, b)),
        }
    }
}

/// The steps from some picks.
pub(super) struct Relaxation<'a> {
    pub(super) passes: Passes<'a>,
    /// I + αGGᵀ of the pool, where that is the way.
    pub(super) pairs: Option<&'a [f64]>,
    pub(super) initial: &'a [Position],
    pub(super) k: usize,
}

impl Relaxation<'_> {
    /// Bytes that the steps take, and the rows that each of them reads; `None` where they are not worth their price: far
    /// fewer picks than columns.
    pub(super) fn cost(passes: Passes<'_>, listed: usize, k: usize) -> Option<(f64, usize)> {
        let (n, dim) = (passes.survey.len(), passes.survey.dim());
        let size = n.min(dim) as f64;
        (n <= dim || 4 * listed >= dim)
            .then(|| (8.0 * (5.0 * size * size + 4.0 * n as f64), if n <= dim { n } else { n + k }))
    }

    /// Bounds after each of at most `steps` steps; `at` is the point of all picks, where the bound is `bound`, and
    /// `best` the best bound so far.
    pub(super) fn bounds(
        &self,
        picks: &[Position],
        at: &Point,
        (mut bound, mut best): (f64, f64),
        steps: usize,
    ) -> Result<Vec<f64>> {
        let mut bounds = Vec::new();
        // No bound of this kind is below U of any weights.
        let hopeless = |bound: f64, best: f64, log_det: f64| {
            bound > HOPELESS * best || best <= log_det || bound <= log_det * (1.0 + LEAST_GAIN)
        };
        if hopeless(bound, best, at.log_det) {
            return Ok(bounds);
        }
        let mut mixture = self.of_rows(picks)?;
        let (mut point, mut number) = (None, FIRST);
        for _ in 0..steps {
            let at = point.as_ref().unwrap_or(at);
            if hopeless(bound, best, at.log_det) {
                break;
            }
            let target = self.of_rows(&self.strongest(at))?;
            let Some(best_number) = self.search(&mixture, &target, number, at.log_det)? else { break };
            number = best_number;
            mixture = mixture.toward(&target, SHARES[number]);
            let next = self.point(&mixture)?;
            let weight = |position: Position| mixture.weights[position.get()];
            let after = concave_bound(self.passes, &next, weight, self.initial, self.k);
            point = Some(next);
            bounds.push(after);
            best = best.min(after);
            let falls = after < bound * (1.0 - LEAST_GAIN);
            bound = after;
            if !falls {
                break;
            }
        }
        Ok(bounds)
    }

    /// The number of the share of the way to `target` with the largest U, searched from number `from` on; `None` if none is
    /// above `least`, the U at the start. U is concave along the way.
    fn search(
        &self,
        start: &Mixture,
        target: &Mixture,
        from: usize,
        least: f64,
    ) -> Result<Option<usize>> {
        let value = |number: usize| -> Result<f64> {
            let whitening = self.factor(&start.toward(target, SHARES[number]))?.0;
            Ok(whitening.log_dets().last().copied().unwrap_or(0.0))
        };
        let (mut best, mut most) = (from, value(from)?);
        for upwards in [false, true] {
            let mut moved = false;
            loop {
                let next = if upwards { best + 1 } else { best.wrapping_sub(1) };
                if next >= SHARES.len() {
                    break;
                }
                let reached = value(next)?;
                if reached <= most {
                    break;
                }
                (best, most, moved) = (next, reached, true);
            }
            // Uphill on one side is downhill on the other.
            if moved {
                break;
            }
        }
        Ok((most > least).then_some(best))
    }

    /// The k rows of the largest leverages that are not initial, the lowest position first among equals.
    fn strongest(&self, at: &Point) -> Vec<Position> {
        let mut free = vec![true; at.values.len()];
        self.initial.iter().for_each(|position| free[position.get()] = false);
        let mut positions: Vec<Position> =
            Position::all(free.len()).filter(|position| free[position.get()]).collect();
        let value = |position: &Position| at.values[position.get()];
        let order = |a: &Position, b: &Position| value(b).total_cmp(&value(a)).then(a.cmp(b));
        if self.k < positions.len() {
            positions.select_nth_unstable_by(self.k, order);
            positions.truncate(self.k);
        }
        positions.sort_unstable();
        positions
    }

    /// Initial rows and some others, each once.
    fn of_rows(&self, rows: &[Position]) -> Result<Mixture> {
        let mut weights = vec![0.0; self.passes.survey.len()];
        let rows = [self.initial, rows].concat();
        rows.iter().for_each(|position| weights[position.get()] = 1.0);
        let matrix = match self.pairs {
            Some(_) => None,
            None => {
                let mut matrix = identity(self.passes.survey.dim());
                self.passes.add_rows(&mut matrix, &rows)?;
                Some(matrix)
            }
        };
        Ok(Mixture { weights, matrix })
    }

    /// The factor of what a mixture amounts to; by pairs with the rows that have a weight, and its roots.
    fn factor(&self, mixture: &Mixture) -> Result<(Whitening, Vec<Position>, Vec<f64>)> {
        let (passes, dim) = (self.passes, self.passes.survey.dim());
        if let Some(matrix) = &mixture.matrix {
            // Each step rounds a few more times, relative to cells that no step makes larger than their share.
            let terms = passes.terms(self.initial.len() + self.k) + 64;
            return Ok((passes.factor(matrix.clone(), dim, terms)?, Vec::new(), Vec::new()));
        }
        let weighted = Position::all(mixture.weights.len()).zip(&mixture.weights);
        let (rows, roots): (Vec<Position>, Vec<f64>) = weighted
            .filter(|&(_, &weight)| weight > 0.0)
            .map(|(position, &weight)| (position, weight.sqrt()))
            .unzip();
        let among = pairs_among(passes, self.pairs.unwrap_or(&[]), &rows, &roots);
        Ok((passes.factor(among, rows.len(), dim + 16)?, rows, roots))
    }

    /// The leverages of all rows under the weights of a mixture.
    fn point(&self, mixture: &Mixture) -> Result<Point> {
        let (whitening, rows, roots) = self.factor(mixture)?;
        let passes = self.passes;
        let n = passes.survey.len();
        let weighted = Position::all(n).zip(&mixture.weights).filter(|&(_, &weight)| weight > 0.0);
        let trace =
            Trace::of(passes, weighted.map(|(position, weight)| weight * passes.signal(position)));
        let mut values = vec![0.0; n];
        let Some(pairs) = self.pairs else {
            passes.map_rows(1, &mut values, |cells, out| lengths(&whitening, passes, cells, out))?;
            return Ok(Point::of_columns(values, &whitening, trace));
        };
        falls_by_pairs(passes, pairs, &rows, &roots, &whitening, &[rows.len()], &mut values)?;
        values.iter_mut().zip(Position::all(n)).for_each(|(value, position)| {
            *value = (passes.signal(position) - *value).max(0.0);
        });
        let found = whitening.log_dets().last().copied().unwrap_or(0.0);
        let (log_det, log_det_error) = trace.narrow(found, whitening.log_det_error());
        let absolute = pairs_error(&whitening, passes.survey.dim(), rows.len());
        Ok(Point { values, relative: 0.0, absolute, log_det, log_det_error })
    }
}
