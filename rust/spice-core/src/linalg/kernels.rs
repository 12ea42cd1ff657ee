//! Dot products in one fixed order of operations.
//!
//! A dot product is cut into chunks of 4096 cells; within a chunk, term i goes to running sum i mod 16,
//! the sums are added pairwise, and chunks are added one after the other. Products and sums are
//! rounded separately. So the result is the same bits on registers of any width, on any number of
//! threads, and whether a row is taken alone or in a tile with others. Vector instructions are chosen
//! at run time ([`pulp`]); a fused multiply-add would not be faster where it counts (multipliers and
//! adders work side by side), and without one these bits are the same on every machine.

use pulp::{Simd, WithSimd};

/// Running sums of a dot product: two AVX-512 registers, four AVX2 registers or eight NEON ones.
const LANES: usize = 16;

/// Cells of a chunk: a tile of chunks stays in the first two caches however long the rows are.
pub(crate) const CHUNK: usize = 4096;

/// Vector kernels, with the instruction set chosen once.
#[derive(Clone, Copy)]
pub struct Kernels {
    arch: pulp::Arch,
}

impl Default for Kernels {
    fn default() -> Self {
        Self { arch: pulp::Arch::new() }
    }
}

impl Kernels {
    /// `Σ a_i b_i` over the shorter of the two.
    pub fn dot(self, a: &[f64], b: &[f64]) -> f64 {
        self.arch.dispatch(Dot(a, b))
    }

    /// `Σ a_i² b_i` over the shorter of the two.
    pub fn dot_squared(self, a: &[f64], b: &[f64]) -> f64 {
        self.arch.dispatch(DotSquared(a, b))
    }

    /// All dot products of the rows `a` with the rows `b`, each the bits of [`Kernels::dot`].
    ///
    /// `out` (a.len() × b.len(), row after row) gets `⟨a_i, b_j⟩`; rows of one call have one length.
    ///
    /// # Panics
    /// If rows differ in length or `out` is too short.
    pub fn dots(self, a: &[&[f64]], b: &[&[f64]], out: &mut [f64]) {
        self.arch.dispatch(Dots(a, b, out));
    }

    /// `sum + rest += cells`, the rest being what rounding leaves out of the sum.
    pub(crate) fn add_twofold(self, sum: &mut [f64], rest: &mut [f64], cells: &[f64]) {
        self.arch.dispatch(AddTwofold(sum, rest, cells));
    }

    /// `sum += alpha · cells⁴` and `inverse = 1/sum`.
    pub(crate) fn add_fourth_powers(
        self,
        sum: &mut [f64],
        inverse: &mut [f64],
        cells: &[f64],
        alpha: f64,
    ) {
        self.arch.dispatch(AddFourthPowers(sum, inverse, cells, alpha));
    }
}

struct AddTwofold<'a>(&'a mut [f64], &'a mut [f64], &'a [f64]);

impl WithSimd for AddTwofold<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((sum, rest), &cell) in self.0.iter_mut().zip(self.1).zip(self.2) {
            let (high, low) = two_sum(*sum, cell);
            (*sum, *rest) = two_sum(high, low + *rest);
        }
    }
}

struct AddFourthPowers<'a>(&'a mut [f64], &'a mut [f64], &'a [f64], f64);

impl WithSimd for AddFourthPowers<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((sum, inverse), &cell) in self.0.iter_mut().zip(self.1).zip(self.2) {
            let square = cell * cell;
            *sum += self.3 * square * square;
            *inverse = 1.0 / *sum; // monotone, rounded or not, as is all that follows from it
        }
    }
}

struct Dot<'a>(&'a [f64], &'a [f64]);

impl WithSimd for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let len = self.0.len().min(self.1.len());
        tile::<S, 1, 1>(simd, [&self.0[..len]], [&self.1[..len]], Product)[0][0]
    }
}

struct DotSquared<'a>(&'a [f64], &'a [f64]);

impl WithSimd for DotSquared<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let len = self.0.len().min(self.1.len());
        tile::<S, 1, 1>(simd, [&self.0[..len]], [&self.1[..len]], SquareProduct)[0][0]
    }
}

struct Dots<'a>(&'a [&'a [f64]], &'a [&'a [f64]], &'a mut [f64]);

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many running sums as there are registers for.
        if S::F64_LANES >= 8 {
            tiles::<S, 4, 3>(simd, self.0, self.1, self.2);
        } else {
            tiles::<S, 2, 1>(simd, self.0, self.1, self.2);
        }
    }
}

#[inline(always)]
fn tiles<S: Simd, const R: usize, const P: usize>(simd: S, a: &[&[f64]], b: &[&[f64]], out: &mut [f64]) {
    let width = b.len();
    for (j, b) in b.chunks(P).enumerate() {
        for (i, a) in a.chunks(R).enumerate() {
            let out = &mut out[i * R * width + j * P..];
            if let (Ok(a), Ok(b)) = (<[&[f64]; R]>::try_from(a), <[&[f64]; P]>::try_from(b)) {
                store(&tile::<S, R, P>(simd, a, b, Product), width, out);
            } else if let Ok(a) = <[&[f64]; R]>::try_from(a) {
                for (j, &b) in b.iter().enumerate() {
                    store(&tile::<S, R, 1>(simd, a, [b], Product), width, &mut out[j..]);
                }
            } else {
                for (i, &a) in a.iter().enumerate() {
                    for (j, &b) in b.iter().enumerate() {
                        out[i * width + j] = tile::<S, 1, 1>(simd, [a], [b], Product)[0][0];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn store<const R: usize, const P: usize>(tile: &[[f64; P]; R], width: usize, out: &mut [f64]) {
    for (i, line) in tile.iter().enumerate() {
        out[i * width..][..P].copy_from_slice(line);
    }
}

/// What is summed, cell by cell.
trait Term: Copy {
    fn scalar(self, a: f64, b: f64) -> f64;
    fn vector<S: Simd>(self, simd: S, a: S::f64s, b: S::f64s) -> S::f64s;
}

#[derive(Clone, Copy)]
struct Product;

impl Term for Product {
    #[inline(always)]
    fn scalar(self, a: f64, b: f64) -> f64 {
        a * b
    }

    #[inline(always)]
    fn vector<S: Simd>(self, simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.mul_f64s(a, b)
    }
}

#[derive(Clone, Copy)]
struct SquareProduct;

impl Term for SquareProduct {
    #[inline(always)]
    fn scalar(self, a: f64, b: f64) -> f64 {
        a * a * b
    }

    #[inline(always)]
    fn vector<S: Simd>(self, simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.mul_f64s(simd.mul_f64s(a, a), b)
    }
}

/// The sums of R rows against P rows, all of one length.
#[inline(always)]
fn tile<S: Simd, const R: usize, const P: usize>(
    simd: S,
    a: [&[f64]; R],
    b: [&[f64]; P],
    term: impl Term,
) -> [[f64; P]; R] {
    let len = a[0].len();
    let mut total = [[0.0; P]; R];
    let mut first = 0;
    while first < len {
        let end = (first + CHUNK).min(len);
        let a: [&[f64]; R] = std::array::from_fn(|i| &a[i][first..end]);
        let b: [&[f64]; P] = std::array::from_fn(|j| &b[j][first..end]);
        // The registers that the running sums of a pair fill.
        let chunk = match S::F64_LANES {
            8 => chunk_tile::<S, R, P, 2>(simd, a, b, term),
            4 => chunk_tile::<S, R, P, 4>(simd, a, b, term),
            2 => chunk_tile::<S, R, P, 8>(simd, a, b, term),
            _ => chunk_tile::<S, R, P, LANES>(simd, a, b, term),
        };
        for (total, chunk) in total.iter_mut().zip(&chunk) {
            for (total, chunk) in total.iter_mut().zip(chunk) {
                *total += chunk;
            }
        }
        first = end;
    }
    total
}

#[inline(always)]
fn chunk_tile<S: Simd, const R: usize, const P: usize, const G: usize>(
    simd: S,
    a: [&[f64]; R],
    b: [&[f64]; P],
    term: impl Term,
) -> [[f64; P]; R] {
    let len = a[0].len();
    let whole = len - len % LANES;
    let steps = whole / LANES;
    let va: [&[[S::f64s; G]]; R] =
        std::array::from_fn(|i| &S::as_simd_f64s(&a[i][..whole]).0.as_chunks::<G>().0[..steps]);
    let vb: [&[[S::f64s; G]]; P] =
        std::array::from_fn(|j| &S::as_simd_f64s(&b[j][..whole]).0.as_chunks::<G>().0[..steps]);
    let mut sums = [[[simd.splat_f64s(0.0); G]; P]; R];
    for step in 0..steps {
        for register in 0..G {
            let vb: [S::f64s; P] = std::array::from_fn(|j| vb[j][step][register]);
            for i in 0..R {
                let va = va[i][step][register];
                for j in 0..P {
                    let product = term.vector(simd, va, vb[j]);
                    sums[i][j][register] = simd.add_f64s(sums[i][j][register], product);
                }
            }
        }
    }
    let mut out = [[0.0; P]; R];
    for i in 0..R {
        for j in 0..P {
            let mut lanes = [0.0; LANES];
            S::as_mut_simd_f64s(&mut lanes).0.copy_from_slice(&sums[i][j]);
            for (lane, (&a, &b)) in lanes.iter_mut().zip(a[i][whole..].iter().zip(&b[j][whole..])) {
                *lane += term.scalar(a, b);
            }
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    lanes[lane] += lanes[lane + width];
                }
                width /= 2;
            }
            out[i][j] = lanes[0];
        }
    }
    out
}

/// `a + b` as its rounded value and the exact rest (Knuth).
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// `Σ a_i (high_i + low_i)` as if computed in twice the digits (Ogita, Rump and Oishi's Dot2).
///
/// For sums that cancel; some twenty times the cost of [`Kernels::dot`].
pub(crate) fn dot_twofold(a: &[f64], high: &[f64], low: &[f64]) -> f64 {
    let (mut sum, mut rest) = (0.0, 0.0);
    for ((&a, &high), &low) in a.iter().zip(high).zip(low) {
        let product = a * high;
        let (next, lost) = two_sum(sum, product);
        sum = next;
        rest += a.mul_add(high, -product) + lost + a * low;
    }
    sum + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn the_width_of_registers_does_not_show() {
        let kernels = Kernels::default();
        for len in [5, 16, 100, 1001, 9001] {
            let (a, b) = (cells(len, 7), cells(len, 8));
            let narrow = Dot(&a, &b).with_simd(pulp::Scalar);
            assert_eq!(kernels.dot(&a, &b).to_bits(), narrow.to_bits());
            let narrow = DotSquared(&a, &b).with_simd(pulp::Scalar);
            assert_eq!(kernels.dot_squared(&a, &b).to_bits(), narrow.to_bits());
        }
    }

    #[test]
    fn a_tile_holds_the_bits_of_single_dots() {
        let kernels = Kernels::default();
        for (rows, columns, len) in [(1, 1, 7), (4, 3, 64), (9, 7, 77), (3, 4, 5000), (13, 1, 33)] {
            let (a, b) = (cells(rows * len, 1), cells(columns * len, 2));
            let a: Vec<&[f64]> = a.chunks(len).collect();
            let b: Vec<&[f64]> = b.chunks(len).collect();
            let mut out = vec![0.0; rows * columns];
            kernels.dots(&a, &b, &mut out);
            let mut narrow = vec![0.0; rows * columns];
            Dots(&a, &b, &mut narrow).with_simd(pulp::Scalar);
            for i in 0..rows {
                for j in 0..columns {
                    let alone = kernels.dot(a[i], b[j]).to_bits();
                    assert_eq!(out[i * columns + j].to_bits(), alone);
                    assert_eq!(narrow[i * columns + j].to_bits(), alone);
                }
            }
        }
    }

    #[test]
    fn zeros_behind_a_row_change_nothing() {
        let kernels = Kernels::default();
        let (mut a, b) = (cells(150, 3), cells(150, 4));
        a[101..].fill(0.0);
        assert_eq!(kernels.dot(&a, &b), kernels.dot(&a[..101], &b[..101]));
    }

    #[test]
    fn twofold_dots_survive_cancellation() {
        let c = 1e-6_f64;
        let high = [3.0 * c, -1.0, 3.0 * c];
        let low = [c.mul_add(3.0, -high[0]), 0.0, c.mul_add(3.0, -high[2])];
        assert_eq!(dot_twofold(&[c, 0.0, -c], &high, &low), 0.0);
        assert_eq!(dot_twofold(&[1e17, 1.0, -1e17], &[1.0; 3], &[0.0; 3]), 1.0);
    }

    #[test]
    fn dots_agree_with_the_definition_at_every_length() {
        let kernels = Kernels::default();
        for len in 0..70 {
            let (a, b) = (cells(len, 1), cells(len, 2));
            let naive: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((kernels.dot(&a, &b) - naive).abs() < 1e-13);
            let naive: f64 = a.iter().zip(&b).map(|(a, b)| a * a * b).sum();
            assert!((kernels.dot_squared(&a, &b) - naive).abs() < 1e-13);
        }
    }
}
