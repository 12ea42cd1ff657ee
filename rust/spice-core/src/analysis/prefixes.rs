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
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::curvature::{lengths, pair_column, pairs_error};
use super::passes::{CHUNK, Passes, identity};
use crate::error::Result;
use crate::linalg::rounding;

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
    /// An upper bound of αh of a row with α‖g‖² = `signal`; `inside` the prefix or not.
    pub(super) fn above(&self, row: usize, signal: f64, inside: bool) -> f64 {
        let most = if inside { signal / (1.0 + signal) } else { signal };
        let error = self.relative * self.values[row] + self.absolute * signal;
        // Where nothing is known the sum is no number.
        let above = self.values[row] + error;
        (if above.is_finite() { above.min(most) } else { most }) * (1.0 + rounding(8))
    }

    /// A lower bound of αh of a row.
    pub(super) fn below(&self, row: usize, signal: f64) -> f64 {
        let below = self.values[row] - (self.relative * self.values[row] + self.absolute * signal);
        if below.is_finite() { below.max(0.0) * (1.0 - rounding(8)) } else { 0.0 }
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

/// Leverages at the prefixes of `list` that end before `ends`, an ascending list.
///
/// # Errors
/// [`crate::Error::InvalidInput`] if this takes more memory than there is; [`crate::Error::Interrupted`].
pub(super) fn points(passes: Passes<'_>, list: &[usize], ends: &[usize]) -> Result<Vec<Point>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let plan = Plan::new(n, dim, ends);
    let longest = ends[plan.directions.max(1) - 1] as f64;
    let square = |size: usize| (size as f64).powi(2);
    let matrices = if plan.pairs {
        square(n) + 3.0 * square(list.len())
    } else {
        let columns = if plan.directions < ends.len() { 3.0 * square(dim) } else { 0.0 };
        columns + 3.0 * longest * longest + longest * dim as f64
    };
    passes.check_memory(8.0 * (matrices + 2.0 * (n * ends.len()) as f64))?;
    if plan.pairs {
        passes.monitor.plan(3 * n);
        return by_pairs(passes, list, ends);
    }
    let (short, long) = ends.split_at(plan.directions);
    // The first pass; each way reads the rows of the list, and for each of its passes the pool.
    let turns = 1 + usize::from(!short.is_empty()) + long.len();
    passes.monitor.plan(turns * n + ends[ends.len() - 1]);
    let mut points = if short.is_empty() { Vec::new() } else { by_directions(passes, list, short)? };
    points.extend(by_columns_of(passes, list, long)?);
    Ok(points)
}

fn by_pairs(passes: Passes<'_>, list: &[usize], ends: &[usize]) -> Result<Vec<Point>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let count = ends[ends.len() - 1];
    let mut order = list[..count].to_vec();
    let mut listed = vec![false; n];
    order.iter().for_each(|&row| listed[row] = true);
    order.extend((0..n).filter(|&row| !listed[row]));
    let matrix = passes.gram(&order)?;
    if count == 0 {
        return Ok(at_once(passes, ends, &[], (0.0, 0.0), (Vec::new(), 0.0)));
    }
    let mut first = Vec::with_capacity(count * count);
    matrix.chunks_exact(n).take(count).for_each(|column| first.extend_from_slice(&column[..count]));
    let whitening = passes.factor(first, count, dim + 8)?;
    let mut falls = vec![0.0; n * ends.len()];
    let chunks = falls.par_chunks_mut(CHUNK * ends.len()).enumerate();
    chunks.try_for_each(|(chunk, falls)| {
        passes.monitor.check()?;
        let rows = falls.len() / ends.len();
        let mut columns = vec![0.0; rows * count];
        for (i, column) in columns.chunks_exact_mut(count).enumerate() {
            let place = chunk * CHUNK + i;
            pair_column(&matrix, n, place, passes.signal(order[place]), column);
        }
        whitening.whiten(&mut columns);
        columns
            .chunks_exact(count)
            .zip(falls.chunks_exact_mut(ends.len()))
            .for_each(|(column, falls)| sums_of_squares(column, ends, falls));
        passes.monitor.add_surveyed(rows);
        Ok(())
    })?;
    let mut by_row = vec![0.0; falls.len()];
    for (&row, falls) in order.iter().zip(falls.chunks_exact(ends.len())) {
        by_row[row * ends.len()..][..ends.len()].copy_from_slice(falls);
    }
    let error = pairs_error(&whitening, dim, count);
    Ok(at_once(passes, ends, &by_row, (0.0, error), (whitening.log_dets(), whitening.log_det_error())))
}

fn by_directions(passes: Passes<'_>, list: &[usize], ends: &[usize]) -> Result<Vec<Point>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let count = ends[ends.len() - 1];
    if count == 0 {
        passes.monitor.add_surveyed(n);
        return Ok(at_once(passes, ends, &[], (0.0, 0.0), (Vec::new(), 0.0)));
    }
    let list = &list[..count];
    let whitening = passes.factor(passes.gram(list)?, count, dim + 8)?;
    // L⁻¹G, column after column, times √α.
    let mut directions = passes.transposed(list, 0, dim);
    let root = passes.alpha.sqrt();
    directions.par_chunks_mut(CHUNK * count).try_for_each(|columns| {
        passes.monitor.check()?;
        whitening.whiten(columns);
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
        let target = MatMut::from_column_major_slice_mut(&mut products, count, rows);
        matmul(target, Accum::Replace, lhs, rhs, root, Par::Seq);
        products
            .chunks_exact(count)
            .zip(falls.chunks_exact_mut(ends.len()))
            .for_each(|(products, falls)| sums_of_squares(products, ends, falls));
    })?;
    let shift = (whitening.solving() + rounding(dim + 8)) * norm;
    let error = whitening.distance() + 2.0 * shift + shift * shift + rounding(2 * (count + dim) + 32);
    Ok(at_once(passes, ends, &falls, (0.0, error), (whitening.log_dets(), whitening.log_det_error())))
}

/// Points from how far the leverages have fallen from α‖g‖², row after row; `falls` is empty if nothing has fallen.
fn at_once(
    passes: Passes<'_>,
    ends: &[usize],
    falls: &[f64],
    (relative, absolute): (f64, f64),
    (log_dets, log_det_error): (Vec<f64>, f64),
) -> Vec<Point> {
    let point = |(number, &end): (usize, &usize)| {
        let fall = |row: usize| falls.get(row * ends.len() + number).copied().unwrap_or(0.0);
        let rows = (0..passes.survey.len()).into_par_iter();
        let values = rows.map(|row| (passes.signal(row) - fall(row)).max(0.0)).collect();
        // Nothing is rounded where nothing is picked, but for α‖g‖² itself.
        let absolute = if end == 0 { rounding(passes.survey.dim() + 8) } else { absolute };
        let (log_det, log_det_error) =
            if end == 0 { (0.0, 0.0) } else { (log_dets[end - 1], log_det_error) };
        Point { values, relative, absolute, log_det, log_det_error }
    };
    ends.iter().enumerate().map(point).collect()
}

fn by_columns_of(passes: Passes<'_>, list: &[usize], ends: &[usize]) -> Result<Vec<Point>> {
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
        points.push(Point {
            values,
            relative: whitening.slack() + rounding(8),
            absolute: if whitening.slack().is_finite() { 0.0 } else { f64::INFINITY },
            log_det: whitening.log_dets().last().copied().unwrap_or(0.0),
            log_det_error: whitening.log_det_error(),
        });
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
