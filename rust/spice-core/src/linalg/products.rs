//! Products in single precision, with a proven error: what bounds are made of.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Simd, WithSimd};

/// Cells that are summed in one go; sums of such parts are added up.
const DEPTH: usize = 512;

/// `out = a bᵀ` in single precision: for each row of `a` its inner products with all rows of `b`.
///
/// Rows of `a` are `stride` cells apart, of which the first `len` count; rows of `b` have `len` cells. On one
/// thread.
///
/// # Panics
/// If `out` has fewer cells than there are products.
pub fn products_of(a: &[f32], stride: usize, b: &[f32], len: usize, out: &mut [f32]) {
    let (m, p) = (a.len() / stride, b.len() / len);
    let a = MatRef::from_row_major_slice(a, m, stride).subcols(0, len);
    let b = MatRef::from_row_major_slice(b, p, len);
    let mut target = MatMut::from_column_major_slice_mut(&mut out[..m * p], p, m);
    for first in (0..len).step_by(DEPTH) {
        let depth = DEPTH.min(len - first);
        let accum = if first == 0 { Accum::Replace } else { Accum::Add };
        let (a, b) = (a.subcols(first, depth).transpose(), b.subcols(first, depth));
        matmul(target.as_mut(), accum, b, a, 1.0, Par::Seq);
    }
}

/// Error of a product of rows of `dim` cells by [`products_of`], relative to the product of their norms.
///
/// With any order of additions inside a part at most (part + number of parts)·u; some more, since both rows
/// have been rounded, one of them with a rounded factor.
pub fn product_error(dim: usize) -> f64 {
    let operations = dim.min(DEPTH) + dim.div_ceil(DEPTH) + 12;
    operations as f64 * f64::from(f32::EPSILON) / 2.0 * 1.01
}

/// `Σ max(0, |p| − e)²`, from below: what products that may be off by their errors are sure to amount to.
pub(crate) fn sure_squares(products: &[f32], errors: &[f32]) -> f64 {
    pulp::Arch::new().dispatch(SureSquares(products, errors))
}

struct SureSquares<'a>(&'a [f32], &'a [f32]);

impl WithSimd for SureSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        const LANES: usize = 16;
        let (products, products_rest) = self.0.as_chunks::<LANES>();
        let (errors, errors_rest) = self.1.as_chunks::<LANES>();
        let sure = |product: f32, error: f32| {
            let least = (product.abs() - error).max(0.0);
            least * least
        };
        let mut sums = [0.0_f32; LANES];
        for (products, errors) in products.iter().zip(errors) {
            for lane in 0..LANES {
                sums[lane] += sure(products[lane], errors[lane]);
            }
        }
        let rest = products_rest.iter().zip(errors_rest);
        let total = sums.iter().map(|&sum| f64::from(sum)).sum::<f64>()
            + rest.map(|(&product, &error)| f64::from(sure(product, error))).sum::<f64>();
        // Four roundings a term, and one for each addition in its lane.
        let roundings = (self.0.len() / LANES + 6) as f64;
        total * (1.0 - roundings * f64::from(f32::EPSILON))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_stay_within_their_error() {
        let dim = 1500;
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.4
        };
        let a: Vec<f32> = (0..9 * dim).map(|_| next()).collect();
        let b: Vec<f32> = (0..5 * dim).map(|_| next()).collect();
        let mut out = vec![0.0; 9 * 5];
        products_of(&a, dim, &b, dim, &mut out);
        let exact = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        for (i, a) in a.chunks_exact(dim).enumerate() {
            for (j, b) in b.chunks_exact(dim).enumerate() {
                let error = (f64::from(out[i * 5 + j]) - exact(a, b)).abs();
                assert!(error <= product_error(dim) * (exact(a, a) * exact(b, b)).sqrt());
            }
        }
    }

    #[test]
    fn columns_beyond_the_length_do_not_count() {
        let mut out = [0.0; 2];
        products_of(&[1.0, 2.0, 9.0, 3.0, 4.0, 9.0], 3, &[5.0, 6.0], 2, &mut out);
        assert_eq!(out, [17.0, 39.0]);
    }

    #[test]
    fn squares_are_counted_from_below() {
        let products: Vec<f32> = (0..83).map(|i| (i as f32 - 40.0) * 0.01).collect();
        let errors = vec![0.005_f32; 83];
        let exact: f64 = products.iter().map(|&p| f64::from((p.abs() - 0.005).max(0.0)).powi(2)).sum();
        let sure = sure_squares(&products, &errors);
        assert!(sure < exact && sure > exact * (1.0 - 1e-5));
        assert_eq!(sure_squares(&[0.001, -0.002], &[0.005, 0.005]), 0.0);
    }
}
