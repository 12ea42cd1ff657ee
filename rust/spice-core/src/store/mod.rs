//! The gradient store.
