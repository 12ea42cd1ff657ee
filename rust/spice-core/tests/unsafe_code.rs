//! `unsafe` is denied in the workspace; this holds the list of the files that are excepted.

// Helpers of tests are not seen as tests by clippy.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// Reads all sources below `folder`.
fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn unsafe_code_is_in_one_small_file() {
    let rust = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for folder in ["spice-core/src", "spice-py/src"] {
        sources(&rust.join(folder), &mut found);
    }
    assert!(found.len() > 50);
    let excepted: Vec<&(String, String)> =
        found.iter().filter(|(_, text)| text.contains("unsafe_code")).collect();
    let [(name, text)] = excepted[..] else { panic!("{excepted:?}") };
    assert!(name.ends_with("store/mmap.rs"), "{name}");
    // One maps, one gives pages back.
    assert_eq!(text.matches("unsafe {").count(), 2);
    assert!(text.lines().count() < 60);
    let workspace = fs::read_to_string(rust.join("../Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"deny\""));
    for package in ["spice-core", "spice-py"] {
        let manifest = fs::read_to_string(rust.join(package).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package}");
    }
}
