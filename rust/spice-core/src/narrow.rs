//! Numbers as stored cells: rounded to nearest, ties to even, and as fast as they can be read.
//!
//! Plain loops without branches, compiled for each instruction set and chosen at run time ([`pulp`]) as those of
//! [`convert`](crate::convert) are. The bits are the same everywhere.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

/// A stored number that single precision is rounded to.
trait Narrow: Copy {
    fn round(cell: f32) -> Self;
}

impl Narrow for f16 {
    #[inline(always)]
    fn round(cell: f32) -> Self {
        let bits = cell.to_bits();
        let magnitude = bits & 0x7FFF_FFFF;
        // The bias shrinks by 112, and half a unit in the last place is added, less a bit if that unit is even.
        let odd = magnitude >> 13 & 1;
        let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xFFF + odd) >> 13;
        // Added to ½, a number below the smallest normal one is rounded to a multiple of 2⁻²⁴, in the lowest bits.
        let tiny = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(126 << 23);
        let value = if magnitude < 113 << 23 { tiny } else { normal.min(0x7C00) };
        Self::from_bits((value | bits >> 16 & 0x8000) as u16)
    }
}

impl Narrow for bf16 {
    #[inline(always)]
    fn round(cell: f32) -> Self {
        let bits = cell.to_bits();
        Self::from_bits((bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
    }
}

impl Narrow for i8 {
    #[inline(always)]
    fn round(cell: f32) -> Self {
        // Added to this, a small number is rounded to a whole one, which is then in the lowest byte.
        const WHOLE: f32 = 1.5 * (1u32 << 23) as f32;
        (cell + WHOLE).to_bits() as i8
    }
}

/// `out = cells · factor`, rounded.
struct Round<'a, T>(&'a [f32], f32, &'a mut [T]);

impl<T: Narrow> WithSimd for Round<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, &cell) in self.2.iter_mut().zip(self.0) {
            *out = T::round(cell * self.1);
        }
    }
}

/// Rounds `cells · factor` to bytes; no product may be above 127 by more than its own rounding.
pub fn to_bytes(cells: &[f32], factor: f32, out: &mut [i8]) {
    Arch::new().dispatch(Round(cells, factor, out));
}

/// Rounds `cells · factor`, which is no NaN, to halves; what is too large for them becomes infinite.
pub fn to_halves(cells: &[f32], factor: f32, out: &mut [f16]) {
    Arch::new().dispatch(Round(cells, factor, out));
}

/// Rounds `cells · factor`, which is no NaN, to bfloats.
pub fn to_brains(cells: &[f32], factor: f32, out: &mut [bf16]) {
    Arch::new().dispatch(Round(cells, factor, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every exponent and sign, with the mantissas next to all that is rounded up, down or is a tie; no NaN.
    fn hard_cells() -> Vec<f32> {
        let mut cells = Vec::new();
        for top in 0..1u32 << 12 {
            for low in [0u32, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001] {
                for middle in [0u32, 1 << 16, 3 << 17, 7 << 16, 0xF << 16] {
                    cells.push(f32::from_bits(top << 20 | middle & 0xF_FFFF | low));
                }
            }
        }
        cells.retain(|cell| !cell.is_nan());
        cells
    }

    #[test]
    fn halves_are_the_nearest() {
        let cells = hard_cells();
        let mut fast = vec![f16::ZERO; cells.len()];
        to_halves(&cells, 1.0, &mut fast);
        for (&cell, fast) in cells.iter().zip(&fast) {
            assert_eq!(fast.to_bits(), f16::from_f32_const(cell).to_bits(), "{cell:e}");
        }
    }

    #[test]
    fn bfloats_are_the_nearest() {
        let cells = hard_cells();
        let mut fast = vec![bf16::ZERO; cells.len()];
        to_brains(&cells, 1.0, &mut fast);
        for (&cell, fast) in cells.iter().zip(&fast) {
            assert_eq!(fast.to_bits(), bf16::from_f32_const(cell).to_bits(), "{cell:e}");
        }
    }

    #[test]
    fn bytes_are_the_nearest() {
        let cells: Vec<f32> = (-1270..=1270).map(|cell| cell as f32 * 0.05).collect();
        let mut out = vec![0; cells.len()];
        to_bytes(&cells, 2.0, &mut out);
        for (&cell, &byte) in cells.iter().zip(&out) {
            assert_eq!((cell * 2.0).round_ties_even(), f32::from(byte));
        }
    }

    #[test]
    fn rows_of_any_length_are_scaled_and_rounded_cell_by_cell() {
        for len in [0, 1, 7, 8, 9, 31, 32, 33, 100] {
            let cells: Vec<f32> = (0..len).map(|i| (i as f32 - 40.3) * 0.77).collect();
            for factor in [1.0, 0.5, 1.3] {
                let (mut bytes, mut halves) = (vec![0; len], vec![f16::ZERO; len]);
                let mut brains = vec![bf16::ZERO; len];
                to_bytes(&cells, factor, &mut bytes);
                to_halves(&cells, factor, &mut halves);
                to_brains(&cells, factor, &mut brains);
                for (i, &cell) in cells.iter().enumerate() {
                    assert_eq!(f32::from(bytes[i]), (cell * factor).round_ties_even());
                    assert_eq!(halves[i], f16::from_f32_const(cell * factor));
                    assert_eq!(brains[i], bf16::from_f32_const(cell * factor));
                }
            }
        }
    }
}
