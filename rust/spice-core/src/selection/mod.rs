//! Greedy selection of the rows with the most Fisher information and the least conflict.
//!
//! At every pick the row with the largest score Δ_x(S) − λ·conflict_x(S) joins the selected set S;
//! equal scores go to the lowest dataset row. `full` is the paper's objective and its search;
//! `objective` knows the released code's readings of Δ, for which `eager` (naive greedy) and `lazy` (lazy greedy) find the best row;
//! `conflict` knows the penalty and `run` what a pick changes. An eager and a lazy search find the same
//! rows, bit for bit. The method is that of *SPICE:
//! Submodular Penalized Information-Conflict Selection*, arXiv 2601.23155.

mod conditions;
mod conflict;
mod eager;
mod full;
mod greedy;
mod information;
mod lazy;
mod limits;
mod merit;
mod near_duplicates;
mod objective;
pub(crate) mod pick;
mod places;
mod prefixes;
mod run;
pub(crate) mod settings;
mod start;
mod top_k;
mod windows;

pub use crate::survey::{Survey, fingerprint};
pub use conditions::Conditions;
#[cfg(any(test, fuzzing))]
pub use full::fuzzing;
pub use full::{MOST_GROWTH, SLACK};
pub use information::{log_det, log_dets};
pub use limits::{Limits, ROUNDING};
pub use near_duplicates::near_duplicates;
pub use pick::{NearDuplicate, Pick, Selection, StopReason};
pub use prefixes::{Formula, MOST_SIGNAL, Measured, Prefixes, single_gains};
pub(crate) use settings::check_alpha;
pub use settings::{Fisher, Method, Search, Settings};
pub use start::{extend, resume, select};
pub use windows::select_windows;
