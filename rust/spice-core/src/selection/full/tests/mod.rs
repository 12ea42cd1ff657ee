//! Properties of the parts. Here is what they are tested on: rows, a run, and picks by hand.

mod angles;
mod bounds;
mod epochs;
mod hot;
pub(super) mod owners;

use std::ops::Range;

use super::directions::Directions;
use super::epoch::Epoch;
use super::hot::Hot;
use crate::linalg::{Cholesky, add_outer_products};
use crate::matrix::{Dtype, Pool, RowBlock};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::selection::places::{Name, Place, Slot};
use crate::selection::run::Run;
use crate::selection::{Conditions, Settings, Survey};

/// Numbers in [−1, 1) that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
    }

    fn below(&mut self, end: usize) -> usize {
        (((self.next() + 1.0) / 2.0 * end as f64) as usize).min(end - 1)
    }

    /// Rows near a few directions, every fourth one the twin or the opposite of another, one of zeros; norms
    /// are 10 to a power between the two given ones.
    fn rows(&mut self, n: usize, dim: usize, powers: (f64, f64)) -> Vec<f64> {
        let centres: Vec<f64> = (0..3 * dim).map(|_| self.next()).collect();
        let mut cells = Vec::with_capacity(n * dim);
        for row in 0..n {
            let (from, sign) = (self.below(row.max(1)), self.next().signum());
            if row % 4 == 3 {
                cells.extend_from_within(from * dim..(from + 1) * dim);
                cells[row * dim..].iter_mut().for_each(|cell| *cell *= sign);
                continue;
            }
            let centre = &centres[self.below(3) * dim..][..dim];
            let mut fresh: Vec<f64> =
                centre.iter().map(|cell| sign * cell + 0.5 * self.next()).collect();
            let norm = fresh.iter().map(|cell| cell * cell).sum::<f64>().sqrt();
            let power = (powers.0 + powers.1 + self.next() * (powers.1 - powers.0)) / 2.0;
            let scale = if row == 5 { 0.0 } else { 10_f64.powf(power) / norm };
            fresh.iter_mut().for_each(|cell| *cell *= scale);
            cells.extend(fresh);
        }
        cells
    }
}

/// Calls `check` with a run over `cells` on which nothing is picked yet.
fn with_run(cells: &[f64], dim: usize, alpha: f64, penalty: f64, check: impl FnOnce(Run<'_>)) {
    let block = RowBlock::new(bytemuck::cast_slice(cells), Dtype::F64, cells.len() / dim, dim).unwrap();
    let monitor = Monitor::default();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    let settings = Settings { alpha, conflict_penalty: penalty, ..Settings::default() };
    let conditions = Conditions::default();
    check(Run::new(&survey, &settings, penalty, &conditions, &monitor));
}

/// An epoch and the directions of its picks, for which rows are picked by hand.
struct Picked<'a> {
    epoch: Epoch<'a>,
    directions: Directions,
    rows: Vec<Position>,
    epochs: usize,
}

impl<'a> Picked<'a> {
    fn new(run: &Run<'a>) -> Self {
        let (survey, monitor) = (run.survey, run.monitor);
        let epoch = Epoch::new(survey, run.alpha, false, monitor);
        Self { epoch, directions: Directions::new(survey.dim()), rows: Vec::new(), epochs: 1 }
    }

    /// Picks a row; returns whether an epoch ended with it.
    fn push(&mut self, row: Position, run: &Run<'_>) -> bool {
        let (hot, slot) = (made_hot([row], &self.epoch, run), Slot::new(0));
        self.epoch.push(row, hot.whitened(slot), hot.coordinates(slot), hot.value(slot));
        self.rows.push(row);
        if !self.epoch.is_over() {
            return false;
        }
        self.restart(run);
        true
    }

    fn restart(&mut self, run: &Run<'_>) {
        self.directions.extend(&self.epoch).unwrap();
        self.directions.end_epoch(2 * run.survey.dim());
        self.epoch.restart().unwrap();
        self.directions.start_epoch(&self.epoch, run);
        self.epochs += 1;
    }

    /// q of rows by a factor of I + αF, the definition.
    fn values(&self, rows: &[Position], run: &Run<'_>) -> Vec<f64> {
        let dim = run.survey.dim();
        let mut matrix = vec![0.0; dim * dim];
        (0..dim).for_each(|i| matrix[i * dim + i] = 1.0);
        let mut cells = vec![0.0; dim];
        for &row in &self.rows {
            run.survey.load(row, &mut cells);
            add_outer_products(&mut matrix, dim, &cells, run.alpha);
        }
        let factor = Cholesky::new(matrix, dim, || Ok(())).unwrap().unwrap();
        let value = |&row: &Position| {
            run.survey.load(row, &mut cells);
            factor.solve_lower(&mut cells, || Ok(())).unwrap();
            cells.iter().map(|cell| cell * cell).sum()
        };
        rows.iter().map(value).collect()
    }
}

/// Rows made hot, each under its own number.
fn made_hot(rows: impl IntoIterator<Item = Position>, epoch: &Epoch<'_>, run: &Run<'_>) -> Hot {
    let mut hot = Hot::new(epoch.row_len(), epoch.picks() + 1);
    hot.insert(rows.into_iter().map(named), epoch, run).unwrap();
    hot
}

/// A row under its own number, as where all rows compete.
fn named(row: Position) -> (Option<Name>, Position) {
    (Some(name_of(row)), row)
}

fn name_of(row: Position) -> Name {
    Name::new(row.get())
}

/// The row of a name, where all rows compete.
fn row_of(name: Name) -> Position {
    Position::new(name.get())
}

/// Rows from one number to another.
fn rows(range: Range<usize>) -> impl DoubleEndedIterator<Item = Position> + ExactSizeIterator + Clone {
    range.map(Position::new)
}

/// The same of names.
fn names(range: Range<usize>) -> impl ExactSizeIterator<Item = Name> + Clone {
    range.map(Name::new)
}
