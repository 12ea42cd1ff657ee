//! What a row is worth to a target: the cosine of what it teaches beyond the pool to what the target asks for beyond it.
//!
//! All rows of a pool share a direction, that of what any record teaches. With unit rows u, their mean μ, and the mean t̄ of
//! the unit rows of a target, the *contrast* is q = t̄ − μ, and the *relevance* of a row is r = cos(u − μ, q).
//!
//! Sums run in the order of the dataset rows, a fixed number of rows at a time, so that no bit of a relevance depends on
//! threads, or on how rows are spread over blocks.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linalg::{Kernels, product_error, products_of};
use crate::memory;
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{AHEAD, Survey};

/// Rows that are summed one after the other; such sums are added up one after the other too.
const CHUNK: usize = 256;

/// Chunks that threads share, whose sums are kept.
const AT_ONCE: usize = 64;

/// Target rows that are multiplied by a chunk at once.
const BAND: usize = 1024;

/// A cosine above this is that of the same record, or of one that says the same.
pub const SAME: f64 = 0.999;

/// Differences of unit rows that are shorter than this have too few digits for a direction.
const NO_DIRECTION: f64 = 1e-9;

/// A row of the pool that is one of the target too, or as good as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Where it is in the pool.
    pub position: Position,
    /// Where in the target the row with the largest cosine is, of several the lowest dataset row.
    pub target: Position,
    /// Their cosine, above [`SAME`].
    pub cosine: f64,
}

/// What targets ask for beyond what any row of a pool teaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Contrast {
    /// μ, the mean of the pool's unit rows, (d,). Zero rows have no direction and do not count.
    pub mean: Vec<f64>,
    /// q = t̄ − μ of each target, (g, d); zeros where it is too short for a direction.
    pub directions: Vec<f64>,
    /// ‖q‖ of each.
    pub norms: Vec<f64>,
    /// Standard error of each t̄, √((1 − ‖t̄‖²)/(T − 1)): what ‖q‖ of T random rows would be. NaN of a single row.
    pub noise: Vec<f64>,
}

impl Contrast {
    /// Reads both pools, whose rows are unit rows or zero. A target is the rows of `target` that have its number in `groups`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the pools differ in dimension, a group's number is out of range, or a group has only zero
    /// rows; [`Error::Interrupted`].
    pub fn new(
        pool: &Survey<'_>,
        target: &Survey<'_>,
        groups: &[usize],
        count: usize,
        monitor: &Monitor,
    ) -> Result<Self> {
        let dim = pool.dim();
        if target.dim() != dim {
            let remedy = "Extract the target with the settings of the pool.";
            return Err(Error::invalid(
                "target: dim",
                target.dim(),
                format!("{dim}, as the pool"),
                remedy,
            ));
        }
        if groups.len() != target.len() || groups.iter().any(|&group| group >= count) {
            let expected = format!("{} numbers below {count}, one for each row", target.len());
            return Err(Error::invalid(
                "target_groups",
                "other numbers",
                expected,
                "Number the groups.",
            ));
        }
        let mean = mean_of(pool, &pool.in_dataset_order(|_| true), monitor)?.0;
        let mut contrast = Self { mean, directions: Vec::new(), norms: Vec::new(), noise: Vec::new() };
        let kernels = pool.kernels();
        for group in 0..count {
            let rows = target.in_dataset_order(|position| groups[position.get()] == group);
            let (mut direction, counted) = mean_of(target, &rows, monitor)?;
            if counted == 0 {
                let found = format!("{} rows, all zero", rows.len());
                let remedy = "Zero rows have no direction: look at how the target was extracted.";
                return Err(Error::invalid("target", found, "rows that are not zero", remedy));
            }
            let spread = (1.0 - kernels.dot(&direction, &direction)).max(0.0);
            contrast.noise.push(if counted > 1 {
                (spread / (counted - 1) as f64).sqrt()
            } else {
                f64::NAN
            });
            direction.iter_mut().zip(&contrast.mean).for_each(|(cell, mean)| *cell -= mean);
            let norm = kernels.dot(&direction, &direction).sqrt();
            if norm <= NO_DIRECTION {
                direction.fill(0.0);
            }
            contrast.norms.push(norm);
            contrast.directions.extend(direction);
        }
        Ok(contrast)
    }

    /// The contrast of an earlier run, by its mean, (d,), and its directions, (g, d).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is not one direction or more of as many cells as the mean, all finite.
    pub fn known(mean: Vec<f64>, directions: Vec<f64>) -> Result<Self> {
        let dim = mean.len();
        let whole = dim > 0 && !directions.is_empty() && directions.len().is_multiple_of(dim);
        if !whole || !mean.iter().chain(&directions).all(|cell| cell.is_finite()) {
            let found = format!("{} and {} numbers", dim, directions.len());
            let expected = "finite numbers, as many columns in all directions as in the mean";
            return Err(Error::invalid(
                "target",
                found,
                expected,
                "Give what a selection for a target keeps.",
            ));
        }
        let kernels = Kernels::default();
        let norms: Vec<f64> = directions.chunks_exact(dim).map(|q| kernels.dot(q, q).sqrt()).collect();
        let noise = vec![f64::NAN; norms.len()];
        Ok(Self { mean, directions, norms, noise })
    }

    /// r of every row of `pool` to each target, (n, g), in [−1, 1]; 0 of rows without a direction, and to targets without.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the pool has another dimension; [`Error::Interrupted`].
    pub fn relevance(&self, pool: &Survey<'_>, monitor: &Monitor) -> Result<Vec<f64>> {
        self.read(pool, None, monitor).map(|(values, _)| values)
    }

    /// [`Contrast::relevance`], and the rows of `pool` that are rows of `target` too, by position.
    ///
    /// # Errors
    /// As for [`Contrast::relevance`], and [`Error::InvalidInput`] if the target's rows do not fit into memory.
    pub fn relevance_beside(
        &self,
        pool: &Survey<'_>,
        target: &Survey<'_>,
        monitor: &Monitor,
    ) -> Result<(Vec<f64>, Vec<Overlap>)> {
        self.read(pool, Some(&Beside::new(target)?), monitor)
    }

    fn read(
        &self,
        pool: &Survey<'_>,
        beside: Option<&Beside>,
        monitor: &Monitor,
    ) -> Result<(Vec<f64>, Vec<Overlap>)> {
        let (dim, count) = (pool.dim(), self.norms.len());
        if self.mean.len() != dim {
            let expected = format!("{}, as the rows that the mean is of", self.mean.len());
            return Err(Error::invalid(
                "source: dim",
                dim,
                expected,
                "Give the pool that was selected from.",
            ));
        }
        let mut values = vec![0.0; pool.len() * count];
        let chunks = values.par_chunks_mut(CHUNK * count).enumerate();
        let overlaps = chunks.map_init(Scratch::default, |scratch, (chunk, values)| {
            monitor.check()?;
            let rows = chunk * CHUNK..chunk * CHUNK + values.len() / count;
            scratch.load(pool, rows.clone());
            let cells = scratch.cells.chunks_exact(dim);
            let places = rows.clone().map(Position::new);
            for ((position, cells), values) in places.zip(cells).zip(values.chunks_exact_mut(count)) {
                if pool.norm_sq(position) > 0.0 {
                    self.measure(pool, cells, &mut scratch.beyond, values);
                }
            }
            let found =
                beside.map_or_else(Vec::new, |beside| beside.overlaps(pool, rows.start, scratch));
            monitor.add_surveyed(rows.len());
            Ok(found)
        });
        let overlaps: Vec<Vec<Overlap>> = overlaps.collect::<Result<_>>()?;
        Ok((values, overlaps.concat()))
    }

    /// r of one unit row to each target.
    fn measure(&self, pool: &Survey<'_>, row: &[f64], beyond: &mut Vec<f64>, out: &mut [f64]) {
        let kernels = pool.kernels();
        beyond.clear();
        beyond.extend(row.iter().zip(&self.mean).map(|(cell, mean)| cell - mean));
        let length = kernels.dot(beyond, beyond).sqrt();
        if length <= NO_DIRECTION {
            return;
        }
        let directions = self.directions.chunks_exact(row.len());
        for ((out, direction), &norm) in out.iter_mut().zip(directions).zip(&self.norms) {
            if norm > NO_DIRECTION {
                *out = (kernels.dot(beyond, direction) / (length * norm)).clamp(-1.0, 1.0);
            }
        }
    }
}

/// Cells of a chunk of rows.
#[derive(Default)]
struct Scratch {
    cells: Vec<f64>,
    narrow: Vec<f32>,
    products: Vec<f32>,
    beyond: Vec<f64>,
}

impl Scratch {
    fn load(&mut self, pool: &Survey<'_>, rows: std::ops::Range<usize>) {
        let dim = pool.dim();
        self.cells.resize(rows.len() * dim, 0.0);
        for (at, (row, cells)) in rows.clone().zip(self.cells.chunks_exact_mut(dim)).enumerate() {
            if at % AHEAD == 0 {
                pool.fetch((row..rows.end).map(Position::new));
            }
            pool.load(Position::new(row), cells);
        }
    }
}

/// The unit rows of a target, to look for them in a pool.
struct Beside {
    dim: usize,
    /// Their positions, in the order of the dataset.
    positions: Vec<Position>,
    cells: Vec<f64>,
    narrow: Vec<f32>,
}

impl Beside {
    fn new(target: &Survey<'_>) -> Result<Self> {
        let dim = target.dim();
        let positions = target.in_dataset_order(|position| target.norm_sq(position) > 0.0);
        let found = || format!("{} rows of {dim} columns", positions.len());
        let remedy = "Give fewer records as target: some hundreds say what is wanted.";
        memory::check("target", found, 12.0 * positions.len() as f64 * dim as f64, remedy)?;
        let mut cells = vec![0.0; positions.len() * dim];
        let places = cells.chunks_exact_mut(dim).zip(&positions);
        places.for_each(|(cells, &position)| target.load(position, cells));
        let narrow = cells.iter().map(|&cell| cell as f32).collect();
        Ok(Self { dim, positions, cells, narrow })
    }

    /// The rows of a chunk, of which the first is `first`, that are here too. Products in single precision tell which may be;
    /// which are is told in double precision.
    fn overlaps(&self, pool: &Survey<'_>, first: usize, scratch: &mut Scratch) -> Vec<Overlap> {
        let dim = self.dim;
        let rows = scratch.cells.len() / dim;
        let least = (SAME - product_error(dim)) as f32;
        scratch.narrow.clear();
        scratch.narrow.extend(scratch.cells.iter().map(|&cell| cell as f32));
        let mut best: Vec<Option<Overlap>> = vec![None; rows];
        for (band, narrow) in self.narrow.chunks(BAND * dim).enumerate() {
            let width = narrow.len() / dim;
            scratch.products.resize(rows * width, 0.0);
            products_of(&scratch.narrow, dim, narrow, dim, &mut scratch.products);
            for (at, best) in best.iter_mut().enumerate() {
                let products = &scratch.products[at * width..][..width];
                for (place, _) in products.iter().enumerate().filter(|&(_, &product)| product >= least) {
                    let place = band * BAND + place;
                    let own = &scratch.cells[at * dim..][..dim];
                    let cosine = pool.kernels().dot(own, &self.cells[place * dim..][..dim]).min(1.0);
                    if cosine > best.map_or(SAME, |best| best.cosine) {
                        let position = Position::new(first + at);
                        *best = Some(Overlap { position, target: self.positions[place], cosine });
                    }
                }
            }
        }
        best.into_iter().flatten().collect()
    }
}

/// The mean of those rows that are not zero, (d,), and how many they are. Zeros if none is.
fn mean_of(survey: &Survey<'_>, positions: &[Position], monitor: &Monitor) -> Result<(Vec<f64>, usize)> {
    let dim = survey.dim();
    let mut sum = vec![0.0; dim];
    for chunks in positions.chunks(CHUNK * AT_ONCE) {
        let sums = chunks.par_chunks(CHUNK).map_init(
            || vec![0.0; dim],
            |cells, positions| {
                monitor.check()?;
                let mut sum = vec![0.0; dim];
                for (at, &position) in positions.iter().enumerate() {
                    if at % AHEAD == 0 {
                        survey.fetch(positions[at..].iter().copied());
                    }
                    survey.load(position, cells); // zeros add nothing
                    sum.iter_mut().zip(&*cells).for_each(|(sum, cell)| *sum += cell);
                }
                monitor.add_surveyed(positions.len());
                Ok(sum)
            },
        );
        for part in sums.collect::<Result<Vec<_>>>()? {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
    let counted = positions.iter().filter(|&&position| survey.norm_sq(position) > 0.0).count();
    sum.iter_mut().for_each(|cell| *cell /= counted.max(1) as f64);
    Ok((sum, counted))
}
