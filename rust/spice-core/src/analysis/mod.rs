//! What can be proven of a selection: how far from the best it can be, for any pool and for this one.
//!
//! [`curvature`] measures how far U(S) = log det(I + αF_S) is from adding up, which bounds greedy selection over the
//! whole pool before anything is selected. [`certify`] bounds U of the best k rows from what a run has picked, and
//! holds however these were picked. Both are about U alone: with a conflict penalty the picks are not
//! greedy for U, so that the curvature guarantees nothing of them, and the certificate says what they reach of the
//! best U, not of the best penalised score.
//!
//! The quantity behind both is the leverage αh, h = gᵀM⁻¹g: of a row outside M = I + αF_S it gives what the row adds,
//! Δ = log(1 + αh), and of one inside what it would be missed, −log(1 − αh). `prefixes` has it for all rows of
//! the pool at many S at once.
//!
//! All of it is computed in f64, and each number comes with a proven bound of its error
//! ([`crate::linalg::Whitening`]); what is claimed is rounded against the claim. Where α‖g‖² is
//! so large that nothing can be proven, the bounds become the trivial ones.

mod bounds;
mod certificate;
mod curvature;
mod passes;
mod prefixes;
mod relaxation;

pub use certificate::{Certificate, certify};
pub use curvature::{Curvature, curvature, guarantee};
