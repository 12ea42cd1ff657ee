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
fn unsafe_code_is_in_two_small_files() {
    let rust = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for folder in ["spice-core/src", "spice-py/src"] {
        sources(&rust.join(folder), &mut found);
    }
    assert!(found.len() > 50);
    found.retain(|(_, text)| text.contains("unsafe_code"));
    found.sort();
    // One maps, one gives pages back; a handler is set, installed, told of the fault, and does its four calls of the system.
    let allowed = [("store/mmap.rs", 2, 65), ("store/sigbus.rs", 6, 180)];
    assert_eq!(found.len(), allowed.len(), "{found:?}");
    for ((name, text), (file, blocks, lines)) in found.iter().zip(allowed) {
        assert!(name.ends_with(file), "{name}");
        assert_eq!(text.matches("unsafe {").count(), blocks, "{name}");
        assert!(text.lines().count() < lines, "{name}: {}", text.lines().count());
    }
    let workspace = fs::read_to_string(rust.join("../Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"deny\""));
    for package in ["spice-core", "spice-py"] {
        let manifest = fs::read_to_string(rust.join(package).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{package}");
    }
}
