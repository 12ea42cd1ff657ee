//! Any files as a store: opened, verified, read, repaired, compacted and appended to.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    spice_core::store::fuzzing::folder(bytes, &scratch.path().join("store"));
});
