//! How far the mean of the picks has turned: what an old angle still says about a conflict.
//!
//! The angle between a row and the mean changes by no more than the mean itself turns. A row that was
//! seen at angle θ from the mean m_τ is at least θ − φ from the mean m_t, φ = ∠(m_τ, m_t), and so
//!
//!   conflict ≥ ‖g‖‖m_t‖/(‖g‖‖m_t‖ + η) · max(0, −cos(max(0, θ − φ))).
//!
//! φ comes from the chord between unit means, 2·asin(‖u − v‖/2), which keeps its digits where an arc
//! cosine has lost them.

use std::f64::consts::FRAC_PI_2;

/// A turn of the mean, as what the bound needs of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    cos: f64,
    sin: f64,
}

impl Turn {
    /// A turn by the angle between two unit vectors and `more` beyond that, in radians.
    pub(super) fn between(u: &[f64], v: &[f64], more: f64) -> Self {
        Self::by(angle(u, v) + more)
    }

    /// A turn by `angle` radians and a rounding error.
    pub(super) fn by(angle: f64) -> Self {
        let angle = (angle + 1e-9).min(FRAC_PI_2);
        Self { cos: angle.cos(), sin: angle.sin() }
    }

    /// Its cosine and sine.
    #[cfg(any(test, fuzzing))]
    pub(super) const fn parts(self) -> [f64; 2] {
        [self.cos, self.sin]
    }

    #[cfg(any(test, fuzzing))]
    pub(super) const fn known([cos, sin]: [f64; 2]) -> Self {
        Self { cos, sin }
    }

    /// The largest cosine that a row can have to the turned mean if it had `cosine` to the mean before;
    /// 0 stands for anything not negative.
    pub(super) fn cosine(self, cosine: f64) -> f64 {
        if cosine >= 0.0 {
            return 0.0;
        }
        let cosine = cosine.max(-1.0);
        // The root loses up to eight digits near -1.
        let turned = cosine * self.cos + ((1.0 - cosine * cosine).sqrt() + 2e-8) * self.sin;
        turned.min(0.0)
    }
}

/// The angle between two unit vectors, in radians.
pub(super) fn angle(u: &[f64], v: &[f64]) -> f64 {
    let chord = u.iter().zip(v).map(|(u, v)| (u - v) * (u - v)).sum::<f64>().sqrt();
    2.0 * (0.5 * chord).min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_bounds_the_cosine_of_every_row() {
        // Rows and means in the plane: the turned cosine is reached when all lie on one side.
        for step in 0..60 {
            let theta = FRAC_PI_2 + f64::from(step) * 0.026;
            for turn in [0.0, 1e-7, 0.1, 0.5, 1.5, 2.0, 3.0] {
                let bound = Turn::by(turn).cosine(theta.cos());
                for part in [-1.0, -0.5, 0.0, 0.5, 1.0] {
                    assert!((theta - part * turn).cos().min(0.0) <= bound + 1e-12);
                }
                let reached = (theta - turn).cos().min(0.0);
                assert!(turn > FRAC_PI_2 || bound <= reached + 1e-7);
            }
        }
    }

    #[test]
    fn small_angles_keep_their_digits() {
        let (u, v) = ([1.0, 0.0], [(3e-9_f64).cos(), (3e-9_f64).sin()]);
        assert!((angle(&u, &v) / 3e-9 - 1.0).abs() < 1e-7);
    }
}
