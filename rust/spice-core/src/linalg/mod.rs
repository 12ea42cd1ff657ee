//! Linear algebra whose result depends on its operands alone.
//!
//! [`Kernels`] are ours: everything that decides a pick goes through them, in `f64` and in one fixed
//! order of operations. Matrix products, factorisations and inverses are faer's, run on one thread
//! over blocks of fixed size; blocks are what is spread over threads. Products in single precision
//! decide nothing: they bound, and say how far they may be off.

mod cholesky;
mod kernels;
mod outer;
mod products;
mod span;
mod whitening;

pub use cholesky::{Cholesky, LogDets, add_outer_products};
pub use kernels::Kernels;
pub(crate) use kernels::{CHUNK, dot_twofold};
pub(crate) use outer::{add_many_outer_products, stride_of};
pub(crate) use products::sure_squares;
pub use products::{product_error, products_of};
pub use span::Span;
pub use whitening::{Whitening, rounding};
