//! Messages between a search and owners elsewhere, as bytes.
//!
//! A message is `spice-rs`, the version and the kind as u16, the body, and the XXH3-64 of all of it; numbers are little-endian,
//! floats as their bits, and a list is its length as u64 and its items. What arrives is read as a file of a store is: nothing
//! is believed that was not checked, no length is trusted, and no NaN gets in.
//!
//! A call goes to an owner: how far the selection is, and what is asked. Of the directions only those are sent that the owner
//! lacks, and the factor once an epoch; an owner that cannot follow says so, and gets all of it. A reply is what it answers.

mod parts;
mod reading;
mod writing;

pub(super) use parts::{Known, Part, Progress, Returning, Sizes};
pub(super) use reading::{read_call, read_returning};
pub(super) use writing::{call, returning, sealed};
