//! Choose the samples that carry the most Fisher information.
//!
//! The crate knows no Python. Data flows one way: a [`store`] on disk hands out memory-mapped
//! [`matrix::RowBlock`]s; a [`matrix::Pool`] is a read-only view over some of them; [`selection`]
//! picks rows of a pool; [`analysis`] says how good such picks can be at all. Neither imports the store.

pub mod analysis;
pub mod convert;
pub mod error;
pub mod linalg;
pub mod matrix;
pub mod memory;
pub mod monitor;
pub mod narrow;
mod once;
pub mod relevance;
pub mod represent;
pub mod rows;
pub mod selection;
pub mod store;
pub mod survey;

pub use error::{Error, Result};
pub use once::settle;
