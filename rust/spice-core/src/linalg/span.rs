//! Rows in the coordinates of their own span, by orthogonal steps alone: what [`super::Cholesky`] of I + αF cannot do where the
//! rows are so long that its 1 is lost beside them.

use super::kernels::Kernels;

/// Times a row is freed of what is known: once more than once (Giraud, Langou and Rozložník 2005).
const PASSES: usize = 2;

/// A residual below this share of its row is rounding.
const NOTHING: f64 = 16.0 * f64::EPSILON;

/// Rows r with I + Σ rrᵀ = RᵀR in an orthonormal basis of their span; beyond it that matrix is I.
///
/// RᵀR itself is never formed: rows are turned into R by Givens rotations (Gill, Golub, Murray and Saunders 1974).
#[derive(Clone)]
pub struct Span {
    kernels: Kernels,
    dim: usize,
    /// (r, d), orthonormal.
    basis: Vec<f64>,
    /// R: row i has the cells i … r − 1.
    rows: Vec<Vec<f64>>,
}

impl Span {
    /// Of no rows yet, of `dim` cells each.
    pub fn new(kernels: Kernels, dim: usize) -> Self {
        Self { kernels, dim, basis: Vec::new(), rows: Vec::new() }
    }

    /// r.
    fn rank(&self) -> usize {
        self.rows.len()
    }

    /// Adds a row.
    pub fn push(&mut self, row: &[f64]) {
        let mut rest = row.to_vec();
        let mut within = vec![0.0; self.rank()];
        for _ in 0..PASSES {
            self.free(0..self.rank(), &mut rest, &mut within);
        }
        let length = self.length(&rest);
        if self.rank() < self.dim && length > NOTHING * self.length(row) {
            self.basis.extend(rest.iter().map(|cell| cell / length));
            self.rows.iter_mut().for_each(|cells| cells.push(0.0));
            self.rows.push(vec![1.0]);
            within.push(length);
        }
        for (i, cells) in self.rows.iter_mut().enumerate() {
            let (a, b) = (cells[0], within[i]);
            if b == 0.0 {
                continue;
            }
            let length = a.hypot(b);
            let (cos, sin) = (a / length, b / length);
            for (r, w) in cells.iter_mut().zip(&mut within[i..]) {
                (*r, *w) = (cos * *r + sin * *w, cos * *w - sin * *r);
            }
        }
    }

    /// R as it is now, of this rank, to measure with later.
    pub fn factor(&self) -> Vec<Vec<f64>> {
        self.rows.clone()
    }

    /// ‖L⁻¹g‖², LLᵀ = I + Σ rrᵀ, of the row `cells` at each of some earlier factors, of ascending rank.
    pub fn lengths(&self, factors: &[Vec<Vec<f64>>], cells: &[f64], out: &mut [f64]) {
        let mut rest = cells.to_vec();
        let mut within = vec![0.0; self.rank()];
        let mut known = 0;
        for (factor, out) in factors.iter().zip(out) {
            let rank = factor.len();
            for _ in 0..PASSES {
                self.free(known..rank, &mut rest, &mut within);
            }
            known = rank;
            // Rᵀz = w, row after row of R.
            let mut left = within[..rank].to_vec();
            let mut sum = self.kernels.dot(&rest, &rest);
            for (i, row) in factor.iter().enumerate() {
                let z = left[i] / row[0];
                sum += z * z;
                left[i + 1..].iter_mut().zip(&row[1..]).for_each(|(left, cell)| *left -= z * cell);
            }
            *out = sum;
        }
    }

    /// Takes what lies along some vectors of the basis off `rest` and adds it to `within`.
    fn free(&self, vectors: std::ops::Range<usize>, rest: &mut [f64], within: &mut [f64]) {
        for i in vectors {
            let vector = &self.basis[i * self.dim..][..self.dim];
            let part = self.kernels.dot(vector, rest);
            within[i] += part;
            rest.iter_mut().zip(vector).for_each(|(rest, cell)| *rest -= part * cell);
        }
    }

    fn length(&self, cells: &[f64]) -> f64 {
        self.kernels.dot(cells, cells).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_beside_a_trillion_is_not_lost() {
        let mut span = Span::new(Kernels::default(), 3);
        span.push(&[1e12, 0.0, 0.0]);
        let first = span.factor();
        span.push(&[1e12, 1.0, 0.0]);
        let factors = [first, span.factor()];
        let mut found = [0.0; 2];
        span.lengths(&factors, &[0.0, 0.0, 3.0], &mut found);
        assert_eq!(found, [9.0, 9.0]);
        span.lengths(&factors, &[2e12, 1.0, 0.0], &mut found);
        // gᵀM⁻¹g of M = I + e²·diag(1, 0) is 4 − 4e⁻² + 1; beside both, by the inverse of a 2 × 2 matrix, 3 to twelve digits.
        assert!((found[0] - 5.0).abs() < 1e-9, "{found:?}");
        let (a, b, c) = (2e24 + 1.0, 1e12, 2.0_f64);
        let expected = (c * 4e24 - 2.0 * b * 2e12 + a) / (1.5 * 2e24);
        assert!((found[1] - expected).abs() < 1e-3, "{found:?} {expected}");
    }

    #[test]
    fn rows_of_the_span_again_add_no_vector() {
        let mut span = Span::new(Kernels::default(), 4);
        for row in
            [[1.0, 2.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]
        {
            span.push(&row);
        }
        assert_eq!(span.rank(), 2);
        let mut found = [0.0];
        span.lengths(&[span.factor()], &[0.0, 0.0, 0.0, 2.0], &mut found);
        assert_eq!(found, [4.0]);
    }
}
