//! Stored cells as numbers: exact, and as fast as they can be read.
//!
//! The loops are plain; compiled for each instruction set and chosen at run time ([`pulp`]), they become
//! vector code on every one of them.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

/// A stored number that single precision holds exactly.
trait Narrow: Copy {
    fn single(self) -> f32;
}

impl Narrow for f16 {
    #[inline(always)]
    fn single(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7FFF;
        // The exponent's bias grows by 112; that of infinities and NaN by as much again. Numbers below the
        // smallest normal one are whole multiples of 2⁻²⁴.
        let bias = if magnitude >= 0x7C00 { 224 << 23 } else { 112 << 23 };
        let normal = (magnitude << 13) + bias;
        let tiny = (magnitude as f32 * f32::from_bits(103 << 23)).to_bits();
        let value = if magnitude < 0x400 { tiny } else { normal };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }
}

impl Narrow for bf16 {
    #[inline(always)]
    fn single(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Narrow for i8 {
    #[inline(always)]
    fn single(self) -> f32 {
        f32::from(self)
    }
}

impl Narrow for f32 {
    #[inline(always)]
    fn single(self) -> f32 {
        self
    }
}

/// `out = cells · factor` in double precision, rounded once.
struct Widen<'a, T>(&'a [T], f64, &'a mut [f64]);

impl<T: Narrow> WithSimd for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, &cell) in self.2.iter_mut().zip(self.0) {
            *out = f64::from(cell.single()) * self.1;
        }
    }
}

/// `out = cells · factor` in single precision; the factor is rounded, then the product.
struct Scale<'a, T>(&'a [T], f64, &'a mut [f32]);

impl<T: Narrow> WithSimd for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let factor = self.1 as f32;
        for (out, &cell) in self.2.iter_mut().zip(self.0) {
            *out = cell.single() * factor;
        }
    }
}

/// The same by way of double precision, for factors that single precision cannot hold.
struct ScaleWide<'a, T>(&'a [T], f64, &'a mut [f32]);

impl<T: Copy + Into<f64>> WithSimd for ScaleWide<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, &cell) in self.2.iter_mut().zip(self.0) {
            *out = (cell.into() * self.1) as f32;
        }
    }
}

/// Halves on processors that convert sixteen at once, which takes a quarter of the instructions.
#[cfg(target_arch = "x86_64")]
mod sixteen {
    use super::{Narrow, Simd, WithSimd, f16};
    use pulp::cast;
    use pulp::x86::V4;

    /// [`super::Widen`] of halves.
    pub(super) struct Widen<'a>(
        pub(super) V4,
        pub(super) &'a [f16],
        pub(super) f64,
        pub(super) &'a mut [f64],
    );

    impl WithSimd for Widen<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(simd, cells, factor, out) = self;
            let factors = simd.splat_f64s(factor);
            let (cells, cells_rest) = cells.as_chunks::<16>();
            let (out, out_rest) = out.as_chunks_mut::<16>();
            for (out, &cells) in out.iter_mut().zip(cells) {
                let bits: [u16; 16] = cells.map(f16::to_bits);
                let singles: [[f32; 8]; 2] = cast(simd.avx512f._mm512_cvtph_ps(cast(bits)));
                let wide = singles.map(|singles| {
                    let wide = cast(simd.avx512f._mm512_cvtps_pd(cast(singles)));
                    cast::<_, [f64; 8]>(simd.mul_f64s(wide, factors))
                });
                *out = cast(wide);
            }
            for (out, &cell) in out_rest.iter_mut().zip(cells_rest) {
                *out = f64::from(cell.single()) * factor;
            }
        }
    }

    /// [`super::Scale`] of halves.
    pub(super) struct Scale<'a>(
        pub(super) V4,
        pub(super) &'a [f16],
        pub(super) f64,
        pub(super) &'a mut [f32],
    );

    impl WithSimd for Scale<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(simd, cells, factor, out) = self;
            let factor = factor as f32;
            let factors = simd.splat_f32s(factor);
            let (cells, cells_rest) = cells.as_chunks::<16>();
            let (out, out_rest) = out.as_chunks_mut::<16>();
            for (out, &cells) in out.iter_mut().zip(cells) {
                let bits: [u16; 16] = cells.map(f16::to_bits);
                let singles = cast(simd.avx512f._mm512_cvtph_ps(cast(bits)));
                *out = cast(simd.mul_f32s(singles, factors));
            }
            for (out, &cell) in out_rest.iter_mut().zip(cells_rest) {
                *out = cell.single() * factor;
            }
        }
    }
}

/// `out = cells · factor` in double precision.
fn widen_halves(cells: &[f16], factor: f64, out: &mut [f64]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return Simd::vectorize(simd, sixteen::Widen(simd, cells, factor, out));
    }
    Arch::new().dispatch(Widen(cells, factor, out));
}

/// `out = cells · factor` in single precision.
fn scale_halves(cells: &[f16], factor: f64, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return Simd::vectorize(simd, sixteen::Scale(simd, cells, factor, out));
    }
    Arch::new().dispatch(Scale(cells, factor, out));
}

fn widen<T: Narrow>(cells: &[T], factor: f64, out: &mut [f64]) {
    Arch::new().dispatch(Widen(cells, factor, out));
}

fn scale<T: Narrow>(cells: &[T], factor: f64, out: &mut [f32]) {
    Arch::new().dispatch(Scale(cells, factor, out));
}

macro_rules! cells {
    ($(#[$doc:meta])* $name:ident, $type:ty, $widen:path, $scale:path) => {
        $(#[$doc])*
        pub mod $name {
            use super::{Arch, ScaleWide};

            /// `out = cells · factor`; exact if `factor` is a power of two.
            pub fn widen(cells: &[$type], factor: f64, out: &mut [f64]) {
                $widen(cells, factor, out);
            }

            /// `out = cells · factor`, each cell with a relative error of at most 1.5 units of single precision
            /// (or of an absolute error below the smallest normal number).
            pub fn scale(cells: &[$type], factor: f64, out: &mut [f32]) {
                if (1e-30..1e30).contains(&factor) {
                    $scale(cells, factor, out);
                } else {
                    Arch::new().dispatch(ScaleWide(cells, factor, out));
                }
            }
        }
    };
}

cells!(
    /// Stored bytes.
    bytes, i8, super::widen, super::scale);
cells!(
    /// Stored `float16`.
    halves, half::f16, super::widen_halves, super::scale_halves);
cells!(
    /// Stored `bfloat16`.
    brains, half::bf16, super::widen, super::scale);
cells!(
    /// Stored `float32`.
    singles, f32, super::widen, super::scale);

/// `out = cells · factor` in single precision.
pub(crate) fn scale_doubles(cells: &[f64], factor: f64, out: &mut [f32]) {
    Arch::new().dispatch(ScaleWide(cells, factor, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_converted_exactly() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut out = vec![0.0; all.len()];
        halves::widen(&all, 1.0, &mut out);
        for (half, out) in all.iter().zip(&out) {
            assert!(half.to_f64().to_bits() == out.to_bits() || (half.is_nan() && out.is_nan()));
            assert_eq!(half.to_f32().is_sign_negative(), half.single().is_sign_negative());
            assert!(half.to_f32().to_bits() == half.single().to_bits() || half.is_nan());
        }
    }

    #[test]
    fn halves_come_out_the_same_sixteen_at_a_time_and_one_by_one() {
        for len in [0, 1, 15, 16, 37, 64] {
            let cells: Vec<f16> =
                (0..len).map(|i| f16::from_bits((i * 1237 + 5) as u16 % 0x7C00)).collect();
            for factor in [1.0, 0.3, 1e-20] {
                let (mut wide, mut narrow) = (vec![0.0; len], vec![0.0; len]);
                halves::widen(&cells, factor, &mut wide);
                halves::scale(&cells, factor, &mut narrow);
                assert!(wide.iter().zip(&cells).all(|(&out, cell)| out == cell.to_f64() * factor));
                let factor = factor as f32;
                assert!(narrow.iter().zip(&cells).all(|(&out, cell)| out == cell.to_f32() * factor));
            }
        }
    }

    #[test]
    fn every_bfloat_is_converted_exactly() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut out = vec![0.0; all.len()];
        brains::widen(&all, 1.0, &mut out);
        for (brain, out) in all.iter().zip(&out) {
            assert!(brain.to_f64().to_bits() == out.to_bits() || (brain.is_nan() && out.is_nan()));
        }
    }

    #[test]
    fn every_byte_is_converted_exactly() {
        let all: Vec<i8> = (i8::MIN..=i8::MAX).collect();
        let (mut wide, mut narrow) = (vec![0.0; all.len()], vec![0.0; all.len()]);
        bytes::widen(&all, 0.5, &mut wide);
        bytes::scale(&all, 0.5, &mut narrow);
        for ((&byte, wide), narrow) in all.iter().zip(wide).zip(narrow) {
            assert_eq!((wide, narrow), (0.5 * f64::from(byte), 0.5 * f32::from(byte)));
        }
    }

    #[test]
    fn factors_that_single_precision_cannot_hold_are_applied_all_the_same() {
        let mut out = [0.0_f32; 2];
        singles::scale(&[3e-40, -1e-42], 1e41, &mut out);
        assert!((out[0] / 30.0 - 1.0).abs() < 1e-4);
        scale_doubles(&[1e200, 2e200], 1e-200, &mut out);
        assert_eq!(out, [1.0, 2.0]);
    }
}
