//! What the fuzz target `message` in `rust/fuzz` runs on an input, and the tests on the inputs that it has kept.
//!
//! Whatever the bytes are, an owner that gets them neither panics nor hangs nor takes memory by a number that they state.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use super::owner::{OutOfSight, Owner};
use super::remote::Far;
use super::wire::{Sizes, read_returning, returning, sealed};
use crate::matrix::{Dtype, Pool, RowBlock};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::selection::limits::Limits;
use crate::selection::run::Run;
use crate::selection::{Conditions, Settings};
use crate::survey::Survey;

const SIZES: Sizes = Sizes { rows: 40, pool: 40, dim: 3, groups: 2 };

/// Takes bytes as a call to an owner of a small pool, and as what one returns; as they are and with a checksum that holds.
pub fn message(bytes: &[u8]) {
    with_run(|run| {
        for bytes in [bytes, &sealed(bytes)] {
            if let Ok(found) = read_returning(bytes, SIZES) {
                assert_eq!(returning(&found), bytes);
            }
            let mut far =
                Far::new(Owner::new(Position::all(SIZES.rows).collect(), OutOfSight::Twins, run));
            for _ in 0..2 {
                match far.answer(bytes, run, SIZES) {
                    Ok(reply) => assert_eq!(returning(&read_returning(&reply, SIZES).unwrap()), reply),
                    Err(error) => _ = error.to_string(),
                }
            }
        }
    });
}

/// The cells of a pool with twins and a row of zeros.
fn cells() -> Vec<f32> {
    let cell = |(i, row): (usize, usize)| ((row % 31 * 7 + i * 5) % 11) as f32 - 5.0;
    let rows = (0..SIZES.pool).flat_map(|row| (0..SIZES.dim).map(move |i| (i, row)));
    rows.map(|(i, row)| if row == 5 { 0.0 } else { cell((i, row)) }).collect()
}

fn conditions() -> Conditions {
    let limits = Limits {
        groups: Some((0..SIZES.pool).map(|row| row % SIZES.groups).collect()),
        minima: vec![0.0; SIZES.groups],
        maxima: vec![9.0, 30.0],
        costs: None,
        budget: 30.0,
    };
    Conditions { limits: Some(limits), ..Conditions::default() }
}

fn with_run<T>(work: impl FnOnce(&Run<'_>) -> T) -> T {
    let (cells, conditions, monitor) = (cells(), conditions(), Monitor::default());
    let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F32, SIZES.pool, SIZES.dim).unwrap();
    let survey = Survey::new(Pool::new(vec![block]).unwrap(), false, &monitor).unwrap();
    work(&Run::new(&survey, &Settings::default(), 0.1, &conditions, &monitor))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::*;
    use crate::selection::full::remote::HEARD;
    use crate::selection::full::tests::owners::{over_bytes, resumed};

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/message")
    }

    /// What is said while the pool is selected from.
    fn said() -> Vec<Vec<u8>> {
        HEARD.set(Some(Vec::new()));
        with_run(|run| {
            let settings = Settings { hot_rows: Some(4), ..Settings::default() };
            over_bytes(|| resumed(run.survey, &settings, run.conditions));
        });
        HEARD.take().unwrap()
    }

    #[test]
    fn what_the_fuzzer_has_kept_does_no_harm() {
        let entries: Vec<_> = fs::read_dir(corpus()).unwrap().collect();
        assert!(entries.len() >= 8);
        for entry in entries {
            message(&fs::read(entry.unwrap().path()).unwrap());
        }
    }

    /// Where the corpus begins: `cargo test -p spice-core write_messages -- --ignored`.
    #[test]
    #[ignore = "writes to rust/fuzz/corpus"]
    fn write_messages() {
        fs::create_dir_all(corpus()).unwrap();
        let said = said();
        let mut kinds = std::collections::BTreeSet::new();
        for bytes in said.into_iter().filter(|bytes| bytes.len() < 1000) {
            // One of each kind and of about each length.
            if kinds.insert((bytes[10], bytes.len() / 100)) {
                fs::write(corpus().join(format!("seed-{}", kinds.len())), bytes).unwrap();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn messages_with_any_change_do_no_harm(
            place in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            words in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![
                0_u64, 1, 39, 40, u64::MAX, u64::MAX / 8, f64::INFINITY.to_bits(), f64::NAN.to_bits(), (-1.0_f64).to_bits(),
            ])), 0..3),
            cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        ) {
            thread_local! {
                static SAID: Vec<Vec<u8>> = said();
            }
            let mut bytes = SAID.with(|said| place.get(said).clone());
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for (at, word) in words {
                let at = at.index(bytes.len() - 8);
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            message(&bytes);
        }
    }
}
