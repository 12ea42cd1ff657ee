//! Rows of `f32` as stored cells and back, and the scale that keeps them in the range of their dtype.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

use crate::convert::{brains, bytes, halves, singles};
use crate::matrix::Dtype;
use crate::narrow;

/// The largest norm of a row. Above it, rounding up could leave the range of `f32`.
pub(super) const MAX_NORM: f64 = (1u128 << 127) as f64;

/// The 2-norm of a row and the size of its largest cell.
#[derive(Clone, Copy)]
pub(super) struct Measure {
    /// Accumulated in `f64` in a fixed order; infinite or NaN if and only if a cell is.
    pub(super) norm: f64,
    pub(super) largest: f32,
}

/// Measures a row. Squares of `f32` cannot overflow or vanish in `f64`, so the norm is 0 only for a row of zeros.
pub(super) fn measure(row: &[f32]) -> Measure {
    Arch::new().dispatch(Measuring(row))
}

struct Measuring<'a>(&'a [f32]);

impl WithSimd for Measuring<'_> {
    type Output = Measure;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Measure {
        const LANES: usize = 16;
        let mut squares = [0.0f64; LANES];
        let mut largest = [0.0f32; LANES];
        let mut add = |lane: usize, cell: f32| {
            squares[lane] += f64::from(cell) * f64::from(cell);
            largest[lane] = if cell.abs() > largest[lane] { cell.abs() } else { largest[lane] };
        };
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &cell) in chunk.iter().enumerate() {
                add(lane, cell);
            }
        }
        for (lane, &cell) in rest.iter().enumerate() {
            add(lane, cell);
        }
        Measure {
            norm: squares.iter().sum::<f64>().sqrt(),
            largest: largest.into_iter().fold(0.0, f32::max),
        }
    }
}

/// The number that a row with this largest cell is divided by before it is stored as `dtype`.
///
/// For floats it is a power of two. For `float16` it is 1 if the cell is 0 or in [2⁻⁴, 65504], else it puts the cell into [2¹⁴, 2¹⁵), the top of the
/// range, where cells 2²⁸ times smaller still have all their bits. `bfloat16` has the range of `f32` and needs
/// help only near its lower end. For `int8` it is the largest cell over 127, rounded up to [`SCALE_BITS`] significant
/// bits, so that the largest cell becomes ±127. Scales stay normal numbers, which bounds them from below by 2⁻¹²⁶.
pub(super) fn scale_for(dtype: Dtype, largest: f32) -> f32 {
    const SMALLEST: i32 = -126;
    // f64 has no subnormals here, so its exponent field is the exponent.
    let exponent = (f64::from(largest).to_bits() >> 52) as i32 - 1023;
    match dtype {
        Dtype::I8 if largest != 0.0 => byte_scale(largest),
        Dtype::F16 if largest != 0.0 && (exponent < -4 || largest > 65504.0) => {
            power_of_two((exponent - 14).max(SMALLEST))
        }
        Dtype::BF16 if largest != 0.0 && exponent < SMALLEST + 10 => power_of_two(SMALLEST),
        _ => 1.0,
    }
}

/// Significant bits of the scale of bytes: with the 7 of a byte, no more than the 24 that `f32` has, so that
/// scale × stored is exact.
const SCALE_BITS: u32 = 16;

/// The scale that brings `largest` to 127.
fn byte_scale(largest: f32) -> f32 {
    let exact = (f64::from(largest) / 127.0).max(f64::from(f32::MIN_POSITIVE));
    let dropped = f64::MANTISSA_DIGITS - SCALE_BITS;
    // Positive floats are in the order of their bits: this rounds up, into the next power of two if need be.
    let bits = (exact.to_bits() + (1 << dropped) - 1) >> dropped << dropped;
    f64::from_bits(bits) as f32
}

/// 2 to the power of `exponent`, which is that of a normal `f32`.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Stored cells that grow row by row.
pub(super) enum Cells {
    I8(Vec<i8>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Cells {
    /// No cells; `None` for a dtype that is not stored.
    pub(super) fn new(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::I8 => Some(Self::I8(Vec::new())),
            Dtype::F16 => Some(Self::F16(Vec::new())),
            Dtype::BF16 => Some(Self::BF16(Vec::new())),
            Dtype::F32 => Some(Self::F32(Vec::new())),
            Dtype::F64 => None,
        }
    }

    /// Appends `row / scale`, rounded to nearest.
    pub(super) fn push(&mut self, row: &[f32], scale: f32) {
        // Exact for floats: a power of two, and no product is subnormal that would not round to zero anyway.
        let factor = scale.recip();
        match self {
            Self::I8(cells) => narrow::to_bytes(row, factor, grown(cells, row.len(), 0)),
            Self::F16(cells) => narrow::to_halves(row, factor, grown(cells, row.len(), f16::ZERO)),
            Self::BF16(cells) => narrow::to_brains(row, factor, grown(cells, row.len(), bf16::ZERO)),
            // Their scale is always 1.
            Self::F32(cells) => cells.extend_from_slice(row),
        }
    }

    /// Appends cells as they are in a file of the same dtype.
    pub(super) fn push_stored(&mut self, stored: &[u8]) {
        match self {
            Self::I8(cells) => cells.extend_from_slice(bytemuck::cast_slice(stored)),
            Self::F16(cells) => cells.extend_from_slice(bytemuck::cast_slice(stored)),
            Self::BF16(cells) => cells.extend_from_slice(bytemuck::cast_slice(stored)),
            Self::F32(cells) => cells.extend_from_slice(bytemuck::cast_slice(stored)),
        }
    }

    /// The cells as they are in the file.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::I8(cells) => bytemuck::cast_slice(cells),
            Self::F16(cells) => bytemuck::cast_slice(cells),
            Self::BF16(cells) => bytemuck::cast_slice(cells),
            Self::F32(cells) => bytemuck::cast_slice(cells),
        }
    }

    /// Forgets the cells and keeps the memory.
    pub(super) fn clear(&mut self) {
        match self {
            Self::I8(cells) => cells.clear(),
            Self::F16(cells) => cells.clear(),
            Self::BF16(cells) => cells.clear(),
            Self::F32(cells) => cells.clear(),
        }
    }
}

/// Appends `more` cells and returns these.
fn grown<T: Copy>(cells: &mut Vec<T>, more: usize, zero: T) -> &mut [T] {
    let start = cells.len();
    cells.resize(start + more, zero);
    &mut cells[start..]
}

/// Writes `scale × stored` to `out`.
///
/// # Panics
/// If `stored` are not `out.len()` aligned cells of a stored dtype; readers have checked the layout.
pub(super) fn load(stored: &[u8], dtype: Dtype, scale: f32, out: &mut [f32]) {
    match dtype {
        Dtype::I8 => bytes::scale(bytemuck::cast_slice(stored), f64::from(scale), out),
        Dtype::F16 => halves::scale(bytemuck::cast_slice(stored), f64::from(scale), out),
        Dtype::BF16 => brains::scale(bytemuck::cast_slice(stored), f64::from(scale), out),
        Dtype::F32 => singles::scale(bytemuck::cast_slice(stored), f64::from(scale), out),
        Dtype::F64 => unreachable!("float64 is never stored"),
    }
}

/// The first column in which `scale × stored` has been rounded to become what [`load`] has made of it, `row`.
pub(super) fn rounded(stored: &[u8], dtype: Dtype, scale: f32, row: &[f32]) -> Option<usize> {
    // Nothing is rounded by 1, nor when the significant bits of the scale and those of a byte go into 24 together.
    let short = scale.is_normal() && scale.to_bits().trailing_zeros() >= u8::BITS - 1;
    if scale == 1.0 || (dtype == Dtype::I8 && short) {
        return None;
    }
    let mut cells = vec![0.0f32; row.len()];
    load(stored, dtype, 1.0, &mut cells);
    let exact = |(&cell, &x): (&f32, &f32)| f64::from(cell) * f64::from(scale) == f64::from(x);
    // All of them first, which compilers turn into a few instructions; then the one to name.
    if cells.iter().zip(row).fold(true, |so_far, pair| so_far & exact(pair)) {
        return None;
    }
    cells.iter().zip(row).position(|pair| !exact(pair))
}

/// How far the norm of a stored row may be from the recorded one.
pub(super) fn norm_tolerance(dtype: Dtype, dim: usize, scale: f32, norm: f32) -> f64 {
    // (relative rounding error of a cell, smallest cell): half a unit in the last place, both doubled for slack.
    let (relative, smallest) = match dtype {
        Dtype::I8 => (2f64.powi(-20), 1.0),
        Dtype::F16 => (2f64.powi(-10), 2f64.powi(-24)),
        Dtype::BF16 => (2f64.powi(-7), 2f64.powi(-133)),
        Dtype::F32 | Dtype::F64 => (2f64.powi(-20), 2f64.powi(-149)),
    };
    relative * f64::from(norm)
        + (dim as f64).sqrt() * smallest * f64::from(scale)
        + f64::from(f32::from_bits(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::schema::Schema;
    use super::*;

    /// (relative, absolute) bound on the error of a cell, the absolute one for scale 1.
    fn bound(dtype: Dtype) -> (f64, f64) {
        match dtype {
            Dtype::I8 => (0.0, 0.5 + 2f64.powi(-15)),
            Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
            Dtype::BF16 => (2f64.powi(-8), 2f64.powi(-134)),
            _ => (0.0, 0.0),
        }
    }

    fn finite_rows() -> impl Strategy<Value = Vec<f32>> {
        (prop::collection::vec(-1.0f32..1.0, 1..40), -149i32..126).prop_map(|(row, exponent)| {
            row.into_iter().map(|cell| (f64::from(cell) * 2f64.powi(exponent)) as f32).collect()
        })
    }

    proptest! {
        #[test]
        fn cells_come_back_within_the_bound_at_every_magnitude(row in finite_rows()) {
            let Measure { norm, largest } = measure(&row);
            prop_assume!(norm <= MAX_NORM);
            for dtype in Schema::DTYPES {
                let scale = scale_for(dtype, largest);
                let mut cells = Cells::new(dtype).unwrap();
                cells.push(&row, scale);
                let mut back = vec![0.0; row.len()];
                load(cells.as_bytes(), dtype, scale, &mut back);
                let (relative, absolute) = bound(dtype);
                for (&x, &y) in row.iter().zip(&back) {
                    let error = (f64::from(x) - f64::from(y)).abs();
                    prop_assert!(y.is_finite());
                    let subnormal = 2f64.powi(-150);
                    prop_assert!(
                        error <= relative * f64::from(x.abs()) + absolute * f64::from(scale) + subnormal,
                        "{dtype:?}: {x:e} -> {y:e} at scale {scale:e}"
                    );
                }
                let stored = measure(&back).norm;
                prop_assert_eq!(rounded(cells.as_bytes(), dtype, scale, &back), None);
                prop_assert!((stored - norm).abs() <= norm_tolerance(dtype, row.len(), scale, norm as f32));
                prop_assert_eq!(norm == 0.0, norm as f32 == 0.0);
            }
        }
    }

    #[test]
    fn a_product_that_was_rounded_is_found() {
        let (third, large) = (1.0f32 / 3.0, f32::MAX / 2.0);
        let check = |dtype, stored: &[u8], scale: f32, columns: usize| {
            let mut row = vec![0.0; columns];
            load(stored, dtype, scale, &mut row);
            rounded(stored, dtype, scale, &row)
        };
        let singles = [4.0f32, third, 0.0];
        assert_eq!(check(Dtype::F32, bytemuck::cast_slice(&singles), 1.0, 3), None);
        assert_eq!(check(Dtype::F32, bytemuck::cast_slice(&singles), 2f32.powi(-100), 3), None);
        assert_eq!(check(Dtype::F32, bytemuck::cast_slice(&singles), 2f32.powi(-126), 3), Some(1));
        assert_eq!(check(Dtype::F32, bytemuck::cast_slice(&singles), 1.0 + f32::EPSILON, 3), Some(1));
        assert_eq!(check(Dtype::F32, bytemuck::cast_slice(&[large]), 4.0, 1), Some(0));
        assert_eq!(check(Dtype::F16, bytemuck::cast_slice(&[f16::from_f32(third)]), third, 1), Some(0));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(check(Dtype::I8, &all, 1.0 + 2f32.powi(-16), 256), None);
        assert_eq!(check(Dtype::I8, &all, 1.0 + 2f32.powi(-20), 256), Some(17));
        assert_eq!(check(Dtype::I8, &all, f32::from_bits(5), 256), None);
    }

    #[test]
    fn the_scale_is_one_for_ordinary_rows_and_a_power_of_two_else() {
        for largest in [0.0, 0.0625, 1.0, 65504.0] {
            assert_eq!(scale_for(Dtype::F16, largest), 1.0);
        }
        assert_eq!(scale_for(Dtype::F16, 65505.0), 2.0);
        assert_eq!(scale_for(Dtype::F16, 1.5 / 32768.0), 2f32.powi(-29));
        assert_eq!(scale_for(Dtype::F16, f32::from_bits(1)), f32::MIN_POSITIVE);
        assert_eq!(scale_for(Dtype::BF16, 1e-30), 1.0);
        assert_eq!(scale_for(Dtype::BF16, 1e-38), f32::MIN_POSITIVE);
        assert_eq!(scale_for(Dtype::F32, f32::from_bits(1)), 1.0);
    }

    #[test]
    fn bytes_use_their_range_and_are_exact_in_single_precision() {
        for exponent in -118..120 {
            let largest = 1.2345 * 2f32.powi(exponent);
            let scale = scale_for(Dtype::I8, largest);
            assert_eq!((f64::from(largest) / f64::from(scale)).round(), 127.0);
            for byte in -127i8..=127 {
                let exact = f64::from(scale) * f64::from(byte);
                assert_eq!(f64::from(exact as f32), exact);
            }
            // Rows that were stored once are stored again as they are.
            assert_eq!(scale_for(Dtype::I8, scale * 127.0), scale);
        }
        assert_eq!(scale_for(Dtype::I8, f32::from_bits(1)), f32::MIN_POSITIVE);
        assert_eq!(scale_for(Dtype::I8, 0.0), 1.0);
    }

    #[test]
    fn the_norm_is_infinite_or_nan_exactly_if_a_cell_is() {
        assert!(measure(&[f32::MAX; 100]).norm.is_finite());
        assert!(!measure(&[0.0, f32::INFINITY]).norm.is_finite());
        assert!(!measure(&[f32::NAN; 3]).norm.is_finite());
        assert!((measure(&[3.0, 4.0]).norm - 5.0).abs() < 1e-15);
    }
}
