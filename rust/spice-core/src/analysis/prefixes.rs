//! The leverages of all rows of a pool at many prefixes of a list of rows.
//!
//! Three ways, by what they cost. With G the first t rows of the list and C = I + αGGᵀ = LLᵀ,
//! αh_x = s − ‖L⁻¹(αGg)‖², s = α‖g‖², and the first j cells of L⁻¹(αGg) are those of the first j rows: one vector has the
//! leverages of a row at all prefixes.
//!
//! - *pairs*: where there are no more rows than columns, all inner products of the pool are taken at once, and rows
//!   may be as long as they like.
//! - *directions*: αL⁻¹G is kept; a row takes t·d multiplications for all prefixes up to t.
//! - *columns*: where the next prefix is more than d/2 rows longer, M = I + αF itself is cheaper: αh = α‖L⁻¹g‖² with its
//!   factor, d²/2 multiplications a row for each prefix.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::curvature::{lengths, pair_column, pairs_error};
use super::passes::{Passes, identity};
use crate::error::Result;
use crate::linalg::{Whitening, rounding};
use crate::rows::Position;

/// Directions that a chunk of rows is multiplied by in one go.
const TOGETHER: usize = 512;

/// What is known at one prefix.
pub(super) struct Point {
    /// αh of every row of the pool, (n,).
    pub(super) values: Vec<f64>,
    /// Each value is within this share of itself …
    pub(super) relative: f64,
    /// … and this share of its α‖g‖² of the truth; infinite if nothing is known.
    pub(super) absolute: f64,
    /// U of the prefix.
    pub(super) log_det: f64,
    /// How far that may be off.
    pub(super) log_det_error: f64,
}

impl Point {
    /// From αh of every row as [`lengths`] has them; `trace` is α Σ w‖g‖² of what was factored.
    pub(super) fn of_columns(values: Vec<f64>, whitening: &Whitening, trace: Trace) -> Self {
        let (log_det, log_det_error) = whitening
            .log_dets()
            .last()
            .map_or((0.0, 0.0), |&log_det| trace.narrow(log_det, whitening.log_det_error()));
        Self {
            values,
            relative: whitening.slack() + rounding(8),
            absolute: if whitening.slack().is_finite() { 0.0 } else { f64::INFINITY },
            log_det,
            log_det_error,
        }
    }

    /// An upper bound of αh of a row with α‖g‖² = `signal`; `inside` the prefix or not.
    pub(super) fn above(&self, position: Position, signal: f64, inside: bool) -> f64 {
        let most = if inside { signal / (1.0 + signal) } else { signal };
        let value = self.values[position.get()];
        let error = self.relative * value + self.absolute * signal;
        // Where nothing is known the sum is no number.
        let above = value + error;
        (if above.is_finite() { above.min(most) } else { most }) * (1.0 + rounding(8))
    }

    /// A lower bound of αh of a row.
    pub(super) fn below(&self, position: Position, signal: f64) -> f64 {
        let value = self.values[position.get()];
        let below = value - (self.relative * value + self.absolute * signal);
        if below.is_finite() { below.max(0.0) * (1.0 - rounding(8)) } else { 0.0 }
    }
}

/// The trace of αF, and the terms of the sums that it is taken from.
#[derive(Clone, Copy)]
pub(super) struct Trace {
    pub(super) value: f64,
    pub(super) terms: usize,
}

impl Trace {
    /// Of rows of a list, each α‖g‖² times its weight.
    pub(super) fn of(passes: Passes<'_>, signals: impl Iterator<Item = f64>) -> Self {
        let (mut value, mut terms) = (0.0, passes.survey.dim() + 8);
        signals.for_each(|signal| (value, terms) = (value + signal, terms + 1));
        Self { value, terms }
    }

    /// log det(I + αF) and how far it may be off, from what a factor says of it or from this, whichever says more: with
    /// s = tr αF it is in [s − s²/2, s], as log(1 + x) is in [x − x²/2, x]. So it has its digits where αF is so small
    /// that I + αF has none of them.
    pub(super) fn narrow(self, log_det: f64, error: f64) -> (f64, f64) {
        let half = self.value * self.value / 4.0;
        let own = half + rounding(self.terms) * self.value + f64::MIN_POSITIVE * f64::EPSILON;
        if own < error { (self.value - half, own) } else { (log_det, error) }
    }
}

/// How the prefixes are divided between the ways.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Whether the first way is taken for all.
    pairs: bool,
    /// Number of prefixes by directions.
    directions: usize,
}

impl Plan {
    fn new(n: usize, dim: usize, ends: &[usize]) -> Self {
        if n <= dim {
            return Self { pairs: true, directions: 0 };
        }
        let mut last = 0;
        let cheap = ends.iter().take_while(|&&end| {
            let step = end - std::mem::replace(&mut last, end);
            2 * step <= dim && end <= 2 * dim
        });
        Self { pairs: false, directions: cheap.count() }
    }
}

/// All inner products of a pool, where that is the way: the lower triangle of I + αGGᵀ.
pub(super) fn all_pairs(passes: Passes<'_>) -> Result<Option<Vec<f64>>> {
    let n = passes.survey.len();
    if n > passes.survey.dim() {
        return Ok(None);
    }
    passes.gram(&Position::all(n).collect::<Vec<_>>()).map(Some)
}

/// Bytes that this takes, and the rows that its passes read.
pub(super) fn cost(passes: Passes<'_>, count: usize, ends: &[usize]) -> (f64, usize) {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let plan = Plan::new(n, dim, ends);
    let square = |size: usize| (size as f64).powi(2);
    let values = 2.0 * (n * ends.len()) as f64;
    if plan.pairs {
        return (8.0 * (square(n) + 3.0 * square(count) + values), 2 * n);
    }
    let longest = ends[..plan.directions].last().copied().unwrap_or(0);
    let columns = ends.len() - plan.directions;
    let matrices = if columns > 0 { 3.0 * square(dim) } else { 0.0 };
    let directions = 3.0 * square(longest) + (longest * dim) as f64;
    let turns = usize::from(plan.directions > 0) + columns;
    let read = if columns > 0 { count } else { 0 };
    (8.0 * (matrices + directions + values), turns * n + longest + read)
}

/// Leverages at the prefixes of `list` that end before `ends`, an ascending list up to the length of the first; `pairs`
/// is [`all_pairs`].
///
/// # Errors
/// [`crate::Error::InvalidInput`] if α is too large; [`crate::Error::Interrupted`].
pub(super) fn points(
    passes: Passes<'_>,
    pairs: Option<&[f64]>,
    list: &[Position],
    ends: &[usize],
) -> Result<Vec<Point>> {
    if let Some(matrix) = pairs {
        return by_pairs(passes, matrix, list, ends);
    }
    let plan = Plan::new(passes.survey.len(), passes.survey.dim(), ends);
    let (short, long) = ends.split_at(plan.directions);
    let mut points = if short.is_empty() { Vec::new() } else { by_directions(passes, list, short)? };
    points.extend(by_columns(passes, list, long)?);
    Ok(points)
}

/// The first way; `matrix` is I + αGGᵀ of the whole pool.
fn by_pairs(
    passes: Passes<'_>,
    matrix: &[f64],
    list: &[Position],
    ends: &[usize],
) -> Result<Vec<Point>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    if list.is_empty() {
        passes.monitor.add_surveyed(n);
        return Ok(at_once(passes, list, ends, &[], 0.0, (Vec::new(), 0.0)));
    }
    let roots = vec![1.0; list.len()];
    let whitening = passes.factor(pairs_among(passes, matrix, list, &roots), list.len(), dim + 8)?;
    let mut falls = vec![0.0; n * ends.len()];
    falls_by_pairs(passes, matrix, list, &roots, &whitening, ends, &mut falls)?;
    let error = pairs_error(&whitening, dim, list.len());
    Ok(at_once(passes, list, ends, &falls, error, (whitening.log_dets(), whitening.log_det_error())))
}

/// I + αGGᵀ of the rows of a list, each times its root: the lower triangle.
pub(super) fn pairs_among(
    passes: Passes<'_>,
    matrix: &[f64],
    list: &[Position],
    roots: &[f64],
) -> Vec<f64> {
    let count = list.len();
    let mut among = vec![0.0; count * count];
    among.par_chunks_exact_mut(count).enumerate().for_each(|(j, column)| {
        pair_column(passes, matrix, list, list[j], &mut column[..]);
        column.iter_mut().zip(roots).for_each(|(cell, root)| *cell *= root * roots[j]);
        column[j] += 1.0;
    });
    among
}

/// How far αh of every row falls from α‖g‖², for every end of a list of rows, each times its root.
pub(super) fn falls_by_pairs(
    passes: Passes<'_>,
    matrix: &[f64],
    list: &[Position],
    roots: &[f64],
    whitening: &Whitening,
    ends: &[usize],
    falls: &mut [f64],
) -> Result<()> {
    let chunks = falls.par_chunks_mut(passes.chunk() * ends.len()).enumerate();
    chunks.try_for_each(|(chunk, falls)| {
        passes.monitor.check()?;
        let rows = falls.len() / ends.len();
        let mut columns = vec![0.0; rows * list.len()];
        for (i, column) in columns.chunks_exact_mut(list.len()).enumerate() {
            pair_column(passes, matrix, list, Position::new(chunk * passes.chunk() + i), column);
            column.iter_mut().zip(roots).for_each(|(cell, root)| *cell *= root);
        }
        whitening.whiten(&mut columns, || passes.monitor.check())?;
        columns
            .chunks_exact(list.len())
            .zip(falls.chunks_exact_mut(ends.len()))
            .for_each(|(column, falls)| sums_of_squares(column, ends, falls));
        passes.monitor.add_surveyed(rows);
        Ok(())
    })
}

fn by_directions(passes: Passes<'_>, list: &[Position], ends: &[usize]) -> Result<Vec<Point>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let count = ends[ends.len() - 1];
    if count == 0 {
        passes.monitor.add_surveyed(n);
        return Ok(at_once(passes, list, ends, &[], 0.0, (Vec::new(), 0.0)));
    }
    let list = &list[..count];
    let whitening = passes.factor(passes.gram(list)?, count, dim + 8)?;
    // L⁻¹G, column after column, times √α.
    let mut directions = passes.transposed(list, 0, dim, count);
    let root = passes.alpha.sqrt();
    directions.par_chunks_mut(passes.chunk() * count).try_for_each(|columns| {
        whitening.whiten(columns, || passes.monitor.check())?;
        columns.iter_mut().for_each(|cell| *cell *= root);
        Ok(())
    })?;
    let kernels = passes.survey.kernels();
    let norm = kernels.dot(&directions, &directions).sqrt() * (1.0 + rounding(count * dim));
    let lhs = MatRef::from_column_major_slice(&directions, count, dim);
    let mut falls = vec![0.0; n * ends.len()];
    passes.map_rows(ends.len(), &mut falls, |cells, falls| {
        let rows = cells.len() / dim;
        let mut products = vec![0.0; rows * count];
        let rhs = MatRef::from_column_major_slice(cells, dim, rows);
        let mut target = MatMut::from_column_major_slice_mut(&mut products, count, rows);
        for first in (0..count).step_by(TOGETHER) {
            passes.monitor.check()?;
            let together = TOGETHER.min(count - first);
            let target = target.rb_mut().subrows_mut(first, together);
            matmul(target, Accum::Replace, lhs.subrows(first, together), rhs, root, Par::Seq);
        }
        products
            .chunks_exact(count)
            .zip(falls.chunks_exact_mut(ends.len()))
            .for_each(|(products, falls)| sums_of_squares(products, ends, falls));
        Ok(())
    })?;
    let shift = (whitening.solving() + rounding(dim + 8)) * norm;
    let error = whitening.distance() + 2.0 * shift + shift * shift + rounding(2 * (count + dim) + 32);
    Ok(at_once(passes, list, ends, &falls, error, (whitening.log_dets(), whitening.log_det_error())))
}

/// Points from how far the leverages have fallen from α‖g‖², row after row; `falls` is empty if nothing has fallen.
fn at_once(
    passes: Passes<'_>,
    list: &[Position],
    ends: &[usize],
    falls: &[f64],
    absolute: f64,
    (log_dets, log_det_error): (Vec<f64>, f64),
) -> Vec<Point> {
    let point = |(number, &end): (usize, &usize)| {
        let fall =
            |position: Position| falls.get(position.get() * ends.len() + number).copied().unwrap_or(0.0);
        let positions = (0..passes.survey.len()).into_par_iter().map(Position::new);
        let values = positions.map(|at| (passes.signal(at) - fall(at)).max(0.0)).collect();
        // Nothing is rounded where nothing is picked, but for α‖g‖² itself.
        let absolute = if end == 0 { rounding(passes.survey.dim() + 8) } else { absolute };
        let (log_det, log_det_error) = if end == 0 {
            (0.0, 0.0)
        } else {
            let trace = Trace::of(passes, list[..end].iter().map(|&position| passes.signal(position)));
            trace.narrow(log_dets[end - 1], log_det_error)
        };
        Point { values, relative: 0.0, absolute, log_det, log_det_error }
    };
    ends.iter().enumerate().map(point).collect()
}

fn by_columns(passes: Passes<'_>, list: &[Position], ends: &[usize]) -> Result<Vec<Point>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let mut points = Vec::with_capacity(ends.len());
    let (mut matrix, mut done) = (Vec::new(), 0);
    for &end in ends {
        if matrix.is_empty() {
            matrix = identity(dim);
        }
        passes.add_rows(&mut matrix, &list[done..end])?;
        done = end;
        let whitening = passes.factor(matrix.clone(), dim, passes.terms(end) + points.len())?;
        let mut values = vec![0.0; n];
        passes.map_rows(1, &mut values, |cells, out| lengths(&whitening, passes, cells, out))?;
        let trace = Trace::of(passes, list[..end].iter().map(|&position| passes.signal(position)));
        points.push(Point::of_columns(values, &whitening, trace));
    }
    Ok(points)
}

/// Σ of the squares of the first `end` cells, for every end.
fn sums_of_squares(cells: &[f64], ends: &[usize], sums: &mut [f64]) {
    let (mut sum, mut first) = (0.0, 0);
    for (&end, out) in ends.iter().zip(sums) {
        sum += cells[first..end].iter().map(|cell| cell * cell).sum::<f64>();
        first = end;
        *out = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prefix_goes_the_cheapest_way() {
        let plan = |n, dim, ends: &[usize]| {
            let plan = Plan::new(n, dim, ends);
            (plan.pairs, plan.directions)
        };
        assert_eq!(plan(100, 100, &[1, 50]), (true, 0));
        assert_eq!(plan(101, 100, &[1, 50, 101]), (false, 2));
        assert_eq!(plan(9000, 1024, &[0, 126, 251, 501, 1001, 2000]), (false, 5));
        assert_eq!(plan(9000, 8, &[500]), (false, 0));
    }
}
