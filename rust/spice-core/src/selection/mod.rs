//! Greedy selection.
