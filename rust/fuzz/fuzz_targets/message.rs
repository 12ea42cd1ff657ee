//! Any bytes as a message between a search and an owner of waiting rows.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| spice_core::selection::fuzzing::message(bytes));
