//! What any rows are worth beside the first rows of a list, by the parts that a search is made of: afterwards, of rows that
//! it never looked at or gave up.

use rayon::prelude::*;

use super::conflict::SelectedMean;
use super::full::{Room, Stretches};
use super::objective::{DiagonalFisher, FixedGain, Marginal, Objective};
use super::run::gain;
use super::settings::check_alpha;
use crate::error::{Error, Result};
use crate::linalg::{Kernels, Span};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::Survey;

/// Largest α‖g‖² whose value is followed pick by pick: beyond, what subtraction leaves of a loser has not nine digits, and
/// its length is measured anew at each prefix, by orthogonal steps.
pub const MOST_SIGNAL: f64 = 1e7;

/// Rows that one task takes along together.
const GROUP: usize = 16;

/// How Δ is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formula {
    /// Δ_x(S) of the paper.
    Full,
    /// Δ_x(∅), whatever S is.
    Alone,
    /// As the released code has them.
    Scalar,
    /// The same.
    Diagonal,
}

/// Δ_x(∅) of every row of a pool, (n,).
///
/// # Errors
/// [`Error::InvalidInput`] if α is not positive, or if float64 does not hold the squares of the rows.
pub fn single_gains(survey: &Survey<'_>, alpha: f64) -> Result<Vec<f64>> {
    check_alpha(alpha)?;
    survey.check_squares()?;
    Ok(survey.norms_sq().iter().map(|&norm_sq| gain(alpha, norm_sq)).collect())
}

/// The prefixes of a list of rows, ready to measure any rows against.
pub struct Prefixes {
    kernels: Kernels,
    dim: usize,
    alpha: f64,
    count: usize,
    values: Values,
    /// The mean of each prefix.
    means: Vec<SelectedMean>,
}

enum Values {
    Followed(Stretches),
    Anew(Span, Vec<Vec<Vec<f64>>>),
    Fixed(FixedGain),
    Diagonal(Vec<DiagonalFisher>),
}

/// What b rows are at s prefixes, (b · s,) each, row after row.
pub struct Measured {
    /// Δ.
    pub gains: Vec<f64>,
    /// max(0, −⟨g, m⟩/(‖g‖‖m‖ + η)).
    pub conflicts: Vec<f64>,
    /// The cosine with the mean; 0 where it is not defined.
    pub cosines: Vec<f64>,
    /// Δ_x(∅), (b,).
    pub bases: Vec<f64>,
}

impl Prefixes {
    /// Of the first `ends[t]` rows of the pool, ascending; none of the rows that will be measured has a larger α‖g‖² than `signal`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the ends do not ascend to at most the rows that there are, or if float64 does not hold
    /// I + αF; [`Error::Interrupted`].
    pub fn new(
        survey: &Survey<'_>,
        alpha: f64,
        ends: &[usize],
        reading: Formula,
        signal: f64,
        monitor: &Monitor,
    ) -> Result<Self> {
        check_alpha(alpha)?;
        let last = ends.last().copied().unwrap_or(0);
        if !ends.is_sorted() || last > survey.len() {
            let expected = format!("ascending numbers of at most {} rows", survey.len());
            return Err(Error::invalid("ends", format!("{ends:?}"), expected, "Give other sizes."));
        }
        let (kernels, dim) = (survey.kernels(), survey.dim());
        let list: Vec<Position> = Position::all(last).collect();
        let long = signal.max(alpha * survey.largest_norm_sq()) > MOST_SIGNAL;
        let mut values = match reading {
            Formula::Full if long => Values::Anew(Span::new(kernels, dim), Vec::new()),
            Formula::Full => Values::Followed(Stretches::new(survey, alpha, &list, ends, monitor)?),
            Formula::Alone => Values::Fixed(FixedGain { factor: 1.0 }),
            Formula::Scalar => Values::Fixed(FixedGain { factor: 1.0 / (1.0 + alpha) }),
            Formula::Diagonal => Values::Diagonal(Vec::new()),
        };
        let mut mean = SelectedMean::new(dim);
        let mut diagonal = DiagonalFisher::new(kernels, alpha, dim);
        let (mut means, mut done, mut cells) = (Vec::with_capacity(ends.len()), 0, vec![0.0; dim]);
        for &end in ends {
            for &position in &list[done..end] {
                monitor.check()?;
                survey.load(position, &mut cells);
                mean.push(kernels, &cells, survey.weight(position));
                match &mut values {
                    Values::Diagonal(_) => diagonal.push(&cells),
                    Values::Anew(span, _) => {
                        cells.iter_mut().for_each(|cell| *cell *= alpha.sqrt());
                        span.push(&cells);
                    }
                    _ => {}
                }
            }
            done = end;
            means.push(mean.clone());
            match &mut values {
                Values::Diagonal(known) => known.push(diagonal.clone()),
                Values::Anew(span, factors) => factors.push(span.factor()),
                _ => {}
            }
        }
        Ok(Self { kernels, dim, alpha, count: ends.len(), values, means })
    }

    /// Measures rows of `dim` cells, each times the root of its weight; all weights are 1 if there are none.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is not a weight for each row; [`Error::Interrupted`].
    pub fn measure(
        &self,
        cells: &[f64],
        weights: Option<&[f64]>,
        monitor: &Monitor,
    ) -> Result<Measured> {
        let rows = cells.len() / self.dim;
        if !cells.len().is_multiple_of(self.dim) || weights.is_some_and(|weights| weights.len() != rows)
        {
            let expected = format!("rows of {} columns, and a weight for each", self.dim);
            return Err(Error::invalid("rows", "others", expected, "Give rows of the source."));
        }
        let size = rows * self.count;
        let (mut gains, mut conflicts, mut cosines) =
            (vec![0.0; size], vec![0.0; size], vec![0.0; size]);
        let mut bases = vec![0.0; rows];
        let sums: Vec<&[f64]> = self.means.iter().map(SelectedMean::sum).collect();
        let width = (GROUP * self.count).max(1);
        let groups = gains
            .par_chunks_mut(width)
            .zip(conflicts.par_chunks_mut(width))
            .zip(cosines.par_chunks_mut(width))
            .zip(bases.par_chunks_mut(GROUP).zip(cells.par_chunks(GROUP * self.dim)))
            .enumerate();
        groups.with_max_len(1).try_for_each_init(Room::default, |room, (group, parts)| {
            monitor.check()?;
            let (((gains, conflicts), cosines), (bases, cells)) = parts;
            let weight = |row: usize| weights.map_or(1.0, |weights| weights[group * GROUP + row]);
            let mut scaled = cells.to_vec();
            if weights.is_some() {
                scaled.chunks_exact_mut(self.dim).enumerate().for_each(|(row, cells)| {
                    let root = weight(row).sqrt();
                    cells.iter_mut().for_each(|cell| *cell *= root);
                });
            }
            let norms_sq: Vec<f64> = cells
                .chunks_exact(self.dim)
                .enumerate()
                .map(|(row, cells)| self.kernels.dot(cells, cells) * weight(row))
                .collect();
            self.fill(&scaled, &norms_sq, room, gains);
            gains.iter_mut().for_each(|value| *value = gain(self.alpha, *value));
            let views: Vec<&[f64]> = scaled.chunks_exact(self.dim).collect();
            self.kernels.dots(&views, &sums, cosines);
            for (row, (&view, &norm_sq)) in views.iter().zip(&norms_sq).enumerate() {
                bases[row] = gain(self.alpha, norm_sq);
                let part = row * self.count..(row + 1) * self.count;
                let out = conflicts[part.clone()].iter_mut().zip(&mut cosines[part]);
                for ((conflict, cosine), mean) in out.zip(&self.means) {
                    *conflict = mean.conflict_by(*cosine, view, norm_sq, weight(row));
                    *cosine = mean.cosine_by(*cosine, norm_sq);
                }
            }
            Ok(())
        })?;
        Ok(Measured { gains, conflicts, cosines, bases })
    }

    /// Writes v in Δ = log(1 + αv) of each row at each prefix to `out`.
    fn fill(&self, cells: &[f64], norms_sq: &[f64], room: &mut Room, out: &mut [f64]) {
        let rows = norms_sq.iter().zip(cells.chunks_exact(self.dim));
        let rows = rows.zip(out.chunks_exact_mut(self.count.max(1)));
        match &self.values {
            Values::Followed(stretches) => {
                stretches.values(cells, norms_sq, self.count, room, out);
            }
            Values::Anew(span, factors) => rows.for_each(|((_, cells), out)| {
                span.lengths(factors, cells, out);
            }),
            Values::Fixed(fixed) => rows.for_each(|((&norm_sq, _), out)| out.fill(fixed.start(norm_sq))),
            Values::Diagonal(known) => rows.for_each(|((&norm_sq, cells), out)| {
                for (fisher, out) in known.iter().zip(out) {
                    let mut marginal = [Marginal::start(fisher.start(norm_sq))];
                    fisher.refresh(cells, &mut marginal);
                    *out = marginal[0].value;
                }
            }),
        }
    }
}
