//! The total curvature of U over a pool: how far gains shrink, at the very most.

use rayon::prelude::*;

use super::passes::{Passes, identity};
use crate::error::Result;
use crate::linalg::{Whitening, rounding};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::Survey;

/// What [`curvature`] finds.
#[derive(Clone, Debug)]
pub struct Curvature {
    /// c = 1 − min Δ_x(D∖{x})/Δ_x(∅), in [0, 1]; 0 if all rows are zero.
    pub total: f64,
    /// c is at most this much larger, whatever was rounded.
    pub error: f64,
    /// Where the row of the smallest ratio is, the lowest dataset row among equals; `None` if all rows are zero.
    pub position: Option<Position>,
    /// αh_x = α gᵀ(I + αF_D)⁻¹g of every row, in [0, 1).
    pub leverages: Vec<f64>,
    /// Δ_x(D∖{x})/Δ_x(∅) of every row, in (0, 1]; NaN for zero rows.
    pub ratios: Vec<f64>,
}

impl Curvature {
    /// (1 − e^−c)/c of the largest c that the errors allow: greedy selection by U alone reaches at least this share of
    /// the best U (Conforti and Cornuéjols, 1984). Rounded down, by more than the evaluation of the formula may be off.
    pub fn guarantee(&self) -> f64 {
        let curvature = (self.total + self.error).min(1.0);
        if curvature == 0.0 { 1.0 } else { guarantee(curvature) * (1.0 - 8.0 * f64::EPSILON) }
    }
}

/// (1 − e^−c)/c, which falls from 1 at c = 0 to 1 − 1/e at c = 1.
pub fn guarantee(curvature: f64) -> f64 {
    if curvature < 1e-12 { 1.0 - curvature } else { -(-curvature).exp_m1() / curvature }
}

/// What is known of the leverage of a row: a = αh and 1 − a, and how far both may be off.
#[derive(Clone, Copy)]
struct Leverage {
    value: f64,
    complement: f64,
    error: f64,
}

impl Leverage {
    /// −log(1 − a).
    fn missed(self) -> f64 {
        if self.value < 0.5 { -(-self.value).ln_1p() } else { -self.complement.ln() }
    }

    /// A lower bound of it.
    fn surely_missed(self) -> f64 {
        let least = if self.value < 0.5 {
            -(-(self.value - self.error).max(0.0)).ln_1p()
        } else {
            -(self.complement + self.error).min(1.0).ln()
        };
        least * (1.0 - rounding(8))
    }
}

/// The exact total curvature of U over all rows of the pool, in two passes and without a loop over subsets: with
/// M = I + αF_D and h = gᵀM⁻¹g, Δ_x(D∖{x}) = −log(1 − αh).
///
/// It takes n·d²/2 multiplications each for M and for the whitening of the rows, and d × d cells of memory; where there
/// are no more rows than columns the n × n matrix I + αGGᵀ instead, on whose inverse's diagonal 1 − αh is.
///
/// # Errors
/// [`crate::Error::InvalidInput`] if α is out of range or the matrices do not fit into memory;
/// [`crate::Error::Interrupted`].
pub fn curvature(survey: &Survey<'_>, alpha: f64, monitor: &Monitor) -> Result<Curvature> {
    let passes = Passes::new(survey, alpha, monitor)?;
    let (n, dim) = (survey.len(), survey.dim());
    let size = n.min(dim) as f64;
    passes.check_memory(
        8.0 * (3.0 * size * size + 4.0 * n as f64 + 16.0 * (passes.chunk() * dim) as f64),
    )?;
    monitor.plan(3 * n);
    let leverages = if n <= dim { by_pairs(passes)? } else { by_columns(passes)? };

    let slack = rounding(dim + 16);
    let mut found = Curvature {
        total: 0.0,
        error: 0.0,
        position: None,
        leverages: leverages.iter().map(|leverage| leverage.value).collect(),
        ratios: Vec::with_capacity(n),
    };
    let (mut smallest, mut surely) = (f64::INFINITY, f64::INFINITY);
    for (position, leverage) in Position::all(n).zip(&leverages) {
        let base = passes.signal(position).ln_1p();
        if base == 0.0 {
            found.ratios.push(f64::NAN);
            continue;
        }
        let ratio = (leverage.missed() / base).min(1.0);
        let lower = |other| survey.dataset_row(position) < survey.dataset_row(other);
        if ratio < smallest || ratio == smallest && found.position.is_some_and(lower) {
            (smallest, found.position) = (ratio, Some(position));
        }
        surely = surely.min(leverage.surely_missed() / base * (1.0 - slack));
        found.ratios.push(ratio);
    }
    if found.position.is_some() {
        found.total = 1.0 - smallest;
        found.error = (smallest - surely.min(smallest)).max(0.0) + f64::EPSILON;
    }
    Ok(found)
}

/// The leverages from the d × d matrix: αh = α‖L⁻¹g‖².
fn by_columns(passes: Passes<'_>) -> Result<Vec<Leverage>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let mut matrix = identity(dim);
    passes.add_rows(&mut matrix, &Position::all(n).collect::<Vec<_>>())?;
    let whitening = passes.factor(matrix, dim, passes.terms(n))?;
    let mut values = vec![0.0; n];
    passes.map_rows(1, &mut values, |cells, out| lengths(&whitening, passes, cells, out))?;
    let slack = whitening.slack() + rounding(8);
    let leverage = |(position, value): (Position, f64)| {
        let signal = passes.signal(position);
        // A row alone has s/(1 + s), and other rows only take from it.
        let most = signal / (1.0 + signal);
        let value = value.min(most);
        let error = if slack.is_finite() { (slack * value).min(1.0) } else { 1.0 };
        Leverage { value, complement: 1.0 - value, error: error + rounding(4) * value }
    };
    Ok(Position::all(n).zip(values).map(leverage).collect())
}

/// α‖L⁻¹g‖² of each row of `cells`, which are whitened.
pub(super) fn lengths(
    whitening: &Whitening,
    passes: Passes<'_>,
    cells: &mut [f64],
    out: &mut [f64],
) -> Result<()> {
    whitening.whiten(cells, || passes.monitor.check())?;
    let kernels = passes.survey.kernels();
    let rows = cells.chunks_exact(passes.survey.dim());
    out.iter_mut().zip(rows).for_each(|(out, row)| *out = passes.alpha * kernels.dot(row, row));
    Ok(())
}

/// The leverages from the n × n matrix C = I + αGGᵀ: 1 − αh is on the diagonal of C⁻¹. Where αh is small, digits of
/// it are lost that way, and αh = s − ‖L⁻¹c‖² has them, with c the row's column of C − I and s = α‖g‖².
fn by_pairs(passes: Passes<'_>) -> Result<Vec<Leverage>> {
    let (n, dim) = (passes.survey.len(), passes.survey.dim());
    let all: Vec<Position> = Position::all(n).collect();
    let matrix = passes.gram(&all)?;
    let whitening = passes.factor(matrix.clone(), n, dim + 8)?;
    let complements = whitening.inverse_diagonal(|| passes.monitor.check())?;
    let (slack, pairs) = (whitening.slack(), pairs_error(&whitening, dim, n));
    let chunks = all.par_chunks(passes.chunk()).map(|positions| {
        passes.monitor.check()?;
        let mut columns = vec![0.0; positions.len() * n];
        for (&position, column) in positions.iter().zip(columns.chunks_exact_mut(n)) {
            pair_column(passes, &matrix, &all, position, column);
        }
        whitening.whiten(&mut columns, || passes.monitor.check())?;
        let kernels = passes.survey.kernels();
        let leverages = positions.iter().zip(columns.chunks_exact(n)).map(|(&position, column)| {
            let signal = passes.signal(position);
            let most = signal / (1.0 + signal);
            let complement = complements[position.get()].clamp(1.0 / (1.0 + signal), 1.0);
            let by_complement = if slack.is_finite() { (slack * complement).min(1.0) } else { 1.0 };
            let value = (signal - kernels.dot(column, column)).clamp(0.0, most);
            let by_value = if pairs.is_finite() { (pairs * signal).min(1.0) } else { 1.0 };
            let error = by_value.min(by_complement) + rounding(8) * value.min(complement);
            // Where neither is proven, the one that loses fewer digits.
            let other = by_value == by_complement && complement < 0.5;
            if by_value <= by_complement && !other {
                Leverage { value, complement: 1.0 - value, error }
            } else {
                Leverage { value: 1.0 - complement, complement, error }
            }
        });
        let leverages: Vec<Leverage> = leverages.collect();
        passes.monitor.add_surveyed(positions.len());
        Ok(leverages)
    });
    Ok(chunks.collect::<Result<Vec<_>>>()?.concat())
}

/// How far s − ‖L⁻¹c‖² may be off, in parts of s; see [`by_pairs`]. L is of the first `count` rows.
pub(super) fn pairs_error(whitening: &Whitening, dim: usize, count: usize) -> f64 {
    // Of c itself as much as of the solution: both are within μ in the norm of L⁻¹.
    let shift = 2.0 * whitening.solving() * (1.0 + rounding(dim));
    whitening.distance() + 2.0 * shift + shift * shift + rounding(2 * (count + dim) + 32)
}

/// αGg, g a row of the pool, G the rows of a list, from `matrix`, I + αGGᵀ of the whole pool.
pub(super) fn pair_column(
    passes: Passes<'_>,
    matrix: &[f64],
    list: &[Position],
    position: Position,
    column: &mut [f64],
) {
    let n = passes.survey.len();
    for (cell, &other) in column.iter_mut().zip(list) {
        let (row, column) = (position.get(), other.get());
        *cell = match column.cmp(&row) {
            std::cmp::Ordering::Less => matrix[column * n + row],
            std::cmp::Ordering::Equal => passes.signal(position),
            std::cmp::Ordering::Greater => matrix[row * n + column],
        };
    }
}
