//! The pool's own second moment as a prior covariance: the geometry of representative picks.
//!
//! With F = Σ uuᵀ over the unit rows of a pool and C = F/λ, λ its largest eigenvalue, the selection by
//! log det(I + αC^{γ/2}F_S C^{γ/2}) is the usual one on rows C^{γ/2}g. Inner products are all that a selection knows of its
//! rows, so they are written in the basis of C's eigenvectors v_j, c_j being its eigenvalues: cell j is c_j^{γ/2}⟨v_j, g⟩.
//! Directions that count little are the last columns then, and those that count nothing are none.
//!
//! F is summed in the order of the dataset rows, by as many at a time as the number of columns says; its decomposition runs on
//! one thread; rows are multiplied in blocks of one shape. So no bit depends on threads, or on how rows are spread over blocks,
//! and rows that are the same to the bit stay so.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linalg::{add_many_outer_products, stride_of};
use crate::memory;
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{AHEAD, Survey};

/// Cells of rows that are added to F together.
const BATCH_CELLS: usize = 1 << 20;

/// Rows that are multiplied together: a multiple of what any kernel takes at once, so that all go the same way through it.
const BLOCK: usize = 240;

/// Directions of which C has less than this share of its largest count nothing.
pub const NOTHING: f64 = 1e-12;

/// Time between two looks whether to go on, where the work itself cannot look.
const LOOK: Duration = Duration::from_millis(50);

/// Columns up to which a decomposition takes less time than anybody waits.
const SHORT: usize = 256;

/// What rows become: their inner products with some directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    dim: usize,
    /// c_j^{γ/2}v_j, (r, d), those that count most first.
    directions: Vec<f64>,
}

/// The eigenvalues and eigenvectors of C.
#[derive(Clone, Debug, PartialEq)]
pub struct SecondMoment {
    /// c, (d,), the largest first, in [0, 1].
    pub spectrum: Vec<f64>,
    /// Eigenvectors in the same order, (d, d).
    vectors: Vec<f64>,
}

impl SecondMoment {
    /// C of a pool of unit rows.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the d × d matrices do not fit into memory; [`Error::Interrupted`].
    pub fn new(survey: &Survey<'_>, monitor: &Monitor) -> Result<Self> {
        let dim = survey.dim();
        let cells = (dim * dim) as f64;
        // F, the vectors twice (as found and in order), and what the decomposition works on.
        let needed = 24.0 * cells + scratch_of(dim).unaligned_bytes_required() as f64;
        let found = || format!("{dim} columns, of which the pool's second moment is taken");
        memory::check("represent", found, needed, "Project the gradients to fewer columns.")?;
        let (values, vectors) = decomposed(second_moment(survey, monitor)?, dim, monitor)?;
        let largest = values.last().copied().unwrap_or(0.0).max(0.0);
        let share = |value: f64| if largest > 0.0 { (value / largest).clamp(0.0, 1.0) } else { 0.0 };
        let columns = vectors.chunks_exact(dim).rev();
        Ok(Self {
            spectrum: values.iter().rev().map(|&value| share(value)).collect(),
            vectors: columns.flatten().copied().collect(),
        })
    }

    /// The geometry of C^{γ/2}, of its leading `rank` directions if given. There is one direction at least.
    pub fn geometry(&self, gamma: f64, rank: Option<usize>) -> Geometry {
        let dim = self.spectrum.len();
        let kept = self.spectrum.iter().take_while(|&&share| share > NOTHING).count();
        let kept = kept.min(rank.unwrap_or(dim)).max(1);
        let mut directions = self.vectors[..kept * dim].to_vec();
        for (direction, share) in directions.chunks_exact_mut(dim).zip(&self.spectrum) {
            let factor = if *share > NOTHING { share.powf(0.5 * gamma) } else { 0.0 };
            direction.iter_mut().for_each(|cell| *cell *= factor);
        }
        Geometry { dim, directions }
    }
}

impl Geometry {
    /// That of directions that are known, (r, d).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is none, or not of as many columns.
    pub fn known(directions: Vec<f64>, dim: usize) -> Result<Self> {
        if dim == 0 || directions.is_empty() || !directions.len().is_multiple_of(dim) {
            let (found, expected) = (directions.len(), format!("directions of {dim} numbers"));
            return Err(Error::invalid("directions", found, expected, "Give those of the pool."));
        }
        Ok(Self { dim, directions })
    }

    /// Number of columns r of the rows.
    pub fn columns(&self) -> usize {
        self.directions.len() / self.dim
    }

    /// c_j^{γ/2}v_j, (r, d).
    pub fn directions(&self) -> &[f64] {
        &self.directions
    }

    /// Writes the rows of a pool in this geometry to `out`, (n, r), each cell rounded once.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the pool has another dimension, or `out` another size; [`Error::Interrupted`].
    pub fn transform(&self, survey: &Survey<'_>, out: &mut [f32], monitor: &Monitor) -> Result<()> {
        let (dim, columns) = (self.dim, self.columns());
        if survey.dim() != dim || out.len() != survey.len() * columns {
            let found = format!("{} columns and {} cells", survey.dim(), out.len());
            let expected = format!("{dim} and {}", survey.len() * columns);
            return Err(Error::invalid("source", found, expected, "Give the pool of the geometry."));
        }
        let directions = MatRef::from_column_major_slice(&self.directions, dim, columns);
        let blocks = out.par_chunks_mut(BLOCK * columns).enumerate();
        blocks.with_max_len(1).try_for_each_init(
            || (vec![0.0; BLOCK * dim], vec![0.0; BLOCK * columns]),
            |(cells, products), (block, out)| {
                monitor.check()?;
                let first = block * BLOCK;
                let positions: Vec<Position> =
                    (first..first + out.len() / columns).map(Position::new).collect();
                cells[positions.len() * dim..].fill(0.0);
                load(survey, &positions, cells, dim);
                let rows = MatRef::from_column_major_slice(cells, dim, BLOCK);
                let products_of = MatMut::from_column_major_slice_mut(products, columns, BLOCK);
                matmul(products_of, Accum::Replace, directions.transpose(), rows, 1.0, Par::Seq);
                out.iter_mut().zip(products).for_each(|(out, product)| *out = *product as f32);
                monitor.add_surveyed(positions.len());
                Ok(())
            },
        )
    }
}

/// F: the lower triangle, column after column.
fn second_moment(survey: &Survey<'_>, monitor: &Monitor) -> Result<Vec<f64>> {
    let dim = survey.dim();
    let stride = stride_of(dim);
    let batch = (BATCH_CELLS / dim).clamp(64, 1024);
    let order = survey.in_dataset_order(|_| true);
    let mut matrix = vec![0.0; dim * dim];
    let mut cells = vec![0.0; batch.min(order.len()) * stride];
    for positions in order.chunks(batch) {
        monitor.check()?;
        let cells = &mut cells[..positions.len() * stride];
        let parts = positions.par_chunks(AHEAD).zip(cells.par_chunks_mut(AHEAD * stride));
        parts.for_each(|(positions, cells)| load(survey, positions, cells, stride));
        add_many_outer_products(&mut matrix, dim, cells, 1.0);
        monitor.add_surveyed(positions.len());
    }
    Ok(matrix)
}

/// Some rows, `stride` cells from one to the next.
fn load(survey: &Survey<'_>, positions: &[Position], cells: &mut [f64], stride: usize) {
    for (ahead, cells) in positions.chunks(AHEAD).zip(cells.chunks_mut(AHEAD * stride)) {
        survey.fetch(ahead.iter().copied());
        let places = ahead.iter().zip(cells.chunks_exact_mut(stride));
        places.for_each(|(&position, cells)| survey.load(position, &mut cells[..survey.dim()]));
    }
}

fn scratch_of(dim: usize) -> StackReq {
    self_adjoint_evd_scratch::<f64>(dim, ComputeEigenvectors::Yes, Par::Seq, Default::default())
}

/// Eigenvalues, ascending, and eigenvectors of the symmetric matrix whose lower triangle is given.
///
/// The decomposition cannot be stopped. It runs beside, and whoever is told to stop leaves it alone: it ends by itself, and
/// nobody hears of it.
fn decomposed(matrix: Vec<f64>, dim: usize, monitor: &Monitor) -> Result<(Vec<f64>, Vec<f64>)> {
    let failed = || {
        let remedy = "Select without it, and please report this.";
        Error::invalid("represent", "a second moment without eigenvalues", "one that has them", remedy)
    };
    if dim <= SHORT {
        return eigen(&matrix, dim).ok_or_else(failed);
    }
    let (sender, receiver) = mpsc::channel();
    let beside = thread::Builder::new().spawn(move || {
        let _ = sender.send(eigen(&matrix, dim)); // nobody listens after an interruption
    });
    beside.map_err(|error| {
        let expected = "one more that the system starts";
        Error::invalid("threads", error, expected, "Raise the system's limits of threads and memory.")
    })?;
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(found) => return found.ok_or_else(failed),
            Err(mpsc::RecvTimeoutError::Timeout) => monitor.check()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(failed()),
        }
    }
}

fn eigen(matrix: &[f64], dim: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    let (mut values, mut vectors) = (vec![0.0; dim], vec![0.0; dim * dim]);
    let mut memory = MemBuffer::new(scratch_of(dim));
    self_adjoint_evd(
        MatRef::from_column_major_slice(matrix, dim, dim),
        DiagMut::from_slice_mut(&mut values),
        Some(MatMut::from_column_major_slice_mut(&mut vectors, dim, dim)),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .ok()?;
    Some((values, vectors))
}
