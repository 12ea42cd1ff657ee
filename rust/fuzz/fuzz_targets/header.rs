//! Any bytes as the header of a shard and as `store.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| spice_core::store::fuzzing::header(bytes));
