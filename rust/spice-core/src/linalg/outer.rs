//! Sums of very many outer products: a whole pool's, where [`super::add_outer_products`] is for the rows of an epoch.

use std::collections::VecDeque;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Columns of the sum that one task updates.
const PANEL: usize = 128;

/// Rows that are multiplied in one go.
const DEPTH: usize = 64;

/// Cells from one row to the next: rows that lie a power of two apart get in each other's way in the caches.
pub(crate) const fn stride_of(dim: usize) -> usize {
    dim.next_multiple_of(8) + 8
}

/// Adds `alpha · Σ r rᵀ` to the lower triangle of a symmetric matrix, and to nothing else.
///
/// `matrix` holds `dim × dim` cells, column after column; `rows` holds rows that are [`stride_of`] their length apart, the
/// last one padded as the others.
pub(crate) fn add_many_outer_products(matrix: &mut [f64], dim: usize, rows: &[f64], alpha: f64) {
    let stride = stride_of(dim);
    let update = |(panel, cells): (usize, &mut [f64])| {
        let (first, width) = (panel * PANEL, cells.len() / dim);
        let target = MatMut::from_column_major_slice_mut(cells, dim, width);
        let (mut diagonal, mut below) = target.subrows_mut(first, dim - first).split_at_row_mut(width);
        for rows in rows.chunks(DEPTH * stride) {
            let columns = MatRef::from_column_major_slice(rows, stride, rows.len() / stride);
            let (lhs, under) =
                (columns.subrows(first, width), columns.subrows(first + width, dim - first - width));
            triangular_matmul(
                diagonal.rb_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                lhs,
                BlockStructure::Rectangular,
                lhs.transpose(),
                BlockStructure::Rectangular,
                alpha,
                Par::Seq,
            );
            matmul(below.rb_mut(), Accum::Add, under, lhs.transpose(), alpha, Par::Seq);
        }
    };
    // A long panel and a short one are one task: all tasks take equally long.
    let mut panels: VecDeque<_> = matrix.chunks_mut(dim * PANEL).enumerate().collect();
    let mut tasks = Vec::with_capacity(panels.len().div_ceil(2));
    while let Some(long) = panels.pop_front() {
        tasks.push((long, panels.pop_back()));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(long, short)| {
        update(long);
        short.into_iter().for_each(update);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::add_outer_products;

    #[test]
    fn the_sum_is_that_of_fewer_rows() {
        for (dim, count) in [(1, 5), (7, 3), (128, 64), (300, 200)] {
            let cell = |i: usize, j: usize| ((i * 31 + j * 17) % 23) as f64 - 11.0;
            let plain: Vec<f64> = (0..count * dim).map(|at| cell(at / dim, at % dim)).collect();
            let stride = stride_of(dim);
            let mut padded = vec![f64::NAN; count * stride];
            for (row, cells) in plain.chunks(dim).zip(padded.chunks_mut(stride)) {
                cells[..dim].copy_from_slice(row);
            }
            let (mut expected, mut sum) = (vec![1.0; dim * dim], vec![1.0; dim * dim]);
            add_outer_products(&mut expected, dim, &plain, 0.5);
            add_many_outer_products(&mut sum, dim, &padded, 0.5);
            for j in 0..dim {
                assert_eq!(sum[j * dim + j..(j + 1) * dim], expected[j * dim + j..(j + 1) * dim]);
                assert!(sum[j * dim..j * dim + j].iter().all(|&above| above == 1.0));
            }
        }
    }
}
