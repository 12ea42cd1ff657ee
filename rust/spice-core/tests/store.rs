//! The store as the selection uses it: blocks without a copy, the same rows however they were written.

// Helpers of tests are not seen as tests by clippy.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;
use spice_core::Error;
use spice_core::matrix::{Dtype, Pool};
use spice_core::monitor::Monitor;
use spice_core::rows::Position;
use spice_core::selection::Survey;
use spice_core::store::{
    Differing, Known, Reader, Reduction, Schema, Writer, WriterOptions, compact, convert, merge,
};

fn schema(dim: usize, dtype: Dtype) -> Schema {
    Schema { dim, dtype, reduction: Some(Reduction::Sum), provenance: serde_json::Map::new() }
}

fn options(rows_per_shard: usize, writer: &str) -> WriterOptions {
    WriterOptions {
        rows_per_shard: Some(rows_per_shard),
        writer: Some(writer.to_string()),
        ..WriterOptions::default()
    }
}

/// Numbers of tokens as all that is known of rows.
fn tokens(num_tokens: &[i32]) -> Known<'_> {
    Known { num_tokens: Some(num_tokens), ..Known::default() }
}

/// Writes `rows`, numbered from 0, to a new store at `path`.
fn fill(path: &Path, rows: &[f32], dim: usize, dtype: Dtype, rows_per_shard: usize) -> Reader {
    let mut writer = Writer::create(path, schema(dim, dtype), options(rows_per_shard, "w")).unwrap();
    let index: Vec<i64> = (0..(rows.len() / dim) as i64).collect();
    writer.append(rows, &index, tokens(&vec![1; index.len()])).unwrap();
    writer.close().unwrap();
    Reader::open(path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_pool_over_the_blocks_has_the_rows_that_were_read(
        rows in prop::collection::vec(prop_oneof![-1e3f32..1e3, -1e9f32..1e9, -1e-6f32..1e-6], 3..60),
        rows_per_shard in 1usize..8,
        dtype in prop::sample::select(Schema::DTYPES.to_vec()),
    ) {
        let dim = 3;
        let rows = &rows[..rows.len() / dim * dim];
        let folder = tempfile::tempdir().unwrap();
        let store = fill(folder.path(), rows, dim, dtype, rows_per_shard);
        let positions: Vec<usize> = (0..store.len()).collect();
        let mut read = vec![0.0; rows.len()];
        store.read(&positions, &mut read).unwrap();

        let scale = store.scale().iter().map(|&scale| f64::from(scale)).collect();
        let pool = Pool::new(store.blocks().unwrap()).unwrap();
        let pool = pool.with_index(store.index().to_vec()).unwrap().with_scale(scale).unwrap();
        let mut row = vec![0.0; dim];
        for position in positions {
            pool.load(Position::new(position), &mut row);
            let expected: Vec<f64> = read[position * dim..][..dim].iter().map(|&x| f64::from(x)).collect();
            prop_assert_eq!(&row, &expected);
            prop_assert_eq!(pool.dataset_row(Position::new(position)).get(), position as i64);
        }
        if dtype == Dtype::F32 {
            prop_assert_eq!(rows, &read[..]);
        }
        let counts = store.verify(&mut |_, _| ControlFlow::Continue(())).unwrap();
        prop_assert_eq!((counts.rows, counts.bytes), (store.len(), store.info().bytes));
    }
}

#[test]
fn a_reader_sees_the_store_as_it_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let before = fill(folder.path(), &[1.0, 2.0], 1, Dtype::F16, 9);
    let mut writer = Writer::create(folder.path(), schema(1, Dtype::F16), options(9, "v")).unwrap();
    assert!(writer.contains(1) && !writer.contains(2));
    writer.append(&[3.0], &[2], tokens(&[1])).unwrap();
    drop(writer);
    assert_eq!(before.len(), 2);
    let after = Reader::open(folder.path()).unwrap();
    // Shards come in the order of their names.
    assert_eq!(after.index(), [2, 0, 1]);
    assert_eq!(after.num_tokens(), Some(&[1, 1, 1][..]));
    assert_eq!((after.loss(), after.reduction()), (None, Some(Reduction::Sum)));
    assert_ne!(before.fingerprint(), after.fingerprint());
}

#[test]
fn the_observer_can_end_a_verification() {
    let folder = tempfile::tempdir().unwrap();
    let store = fill(folder.path(), &[1.0; 6], 1, Dtype::F32, 2);
    let mut calls = Vec::new();
    let stopped = store.verify(&mut |done, total| {
        calls.push((done, total));
        if done < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(calls, [(2, 6), (4, 6)]);
}

#[test]
fn wrong_lengths_and_positions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = fill(folder.path(), &[1.0; 4], 2, Dtype::F32, 2);
    assert!(matches!(store.read(&[0], &mut [0.0; 3]), Err(Error::InvalidInput { .. })));
    assert!(matches!(store.read(&[2], &mut [0.0; 2]), Err(Error::InvalidInput { .. })));
    let mut writer = Writer::create(folder.path(), schema(2, Dtype::F32), options(2, "v")).unwrap();
    assert!(matches!(writer.append(&[1.0; 3], &[5], tokens(&[1])), Err(Error::InvalidInput { .. })));
    assert!(matches!(writer.append(&[1.0; 2], &[5], tokens(&[])), Err(Error::InvalidInput { .. })));
    let wide = Writer::create(folder.path(), schema(3, Dtype::F32), WriterOptions::default());
    assert!(matches!(wide, Err(Error::StoreMismatch { field, .. }) if field == "dim"));
}

#[test]
fn hashes_of_records_are_kept_and_count_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, record: Option<&[i64]>| {
        let mut writer = Writer::create(&path(name), schema(1, Dtype::I8), options(1, "w")).unwrap();
        writer.append(&[1.0, 2.0], &[3, 4], Known { record, ..Known::default() }).unwrap();
        writer.close().unwrap();
        Reader::open(&path(name)).unwrap()
    };
    let (with, other, without) =
        (write("a", Some(&[i64::MIN, 7])), write("b", Some(&[i64::MIN, 8])), write("c", None));
    assert_eq!(with.record(), Some(&[i64::MIN, 7][..]));
    assert_eq!(without.record(), None);
    // A store of the first versions keeps its fingerprint.
    assert_eq!(without.fingerprint(), "eb8bae8dad48732e98db8052bf072b76");
    assert_ne!(with.fingerprint(), other.fingerprint());
    assert_ne!(with.fingerprint(), without.fingerprint());

    let go = &mut |_: usize, _: usize| ControlFlow::Continue(());
    compact(&path("a"), 1 << 20, go).unwrap();
    let compacted = Reader::open(&path("a")).unwrap();
    assert_eq!((compacted.info().shards, compacted.record()), (1, with.record()));
    assert_eq!(compacted.fingerprint(), with.fingerprint());
    compacted.verify(go).unwrap();
    convert(&compacted, &path("converted"), Dtype::F32, go).unwrap();
    assert_eq!(Reader::open(&path("converted")).unwrap().record(), with.record());

    // Of what only one store knows, a merge keeps nothing; of records that differ, none.
    let merged = |names: [&str; 2], to: &str| {
        let sources = names.map(path);
        merge(&sources, &path(to), Differing::Refuse, &mut |_, _| ControlFlow::Continue(()))
    };
    assert!(merged(["a", "b"], "differing").unwrap_err().to_string().contains("index 4"));
    assert_eq!(merged(["a", "c"], "both").unwrap().rows, 2);
    assert_eq!(Reader::open(&path("both")).unwrap().record(), None);

    // Whoever appends to it goes on with them, or without them.
    let append = |name: &str, index: i64, record: Option<&[i64]>| {
        let mut writer = Writer::create(&path(name), schema(1, Dtype::I8), options(1, "v")).unwrap();
        writer.append(&[3.0], &[index], Known { record, ..Known::default() })?;
        writer.close()
    };
    assert!(append("b", 5, None).unwrap_err().to_string().contains("record"));
    append("b", 5, Some(&[0])).unwrap();
    append("c", 5, Some(&[0])).unwrap();
    let part = Reader::open(&path("c")).unwrap();
    assert_eq!((part.len(), part.record()), (3, None));
    // Its shards have different columns, so two of them are two.
    assert_eq!(compact(&path("c"), 1 << 20, go).unwrap().shards, 2);
    Reader::open(&path("c")).unwrap().verify(go).unwrap();
}

#[test]
fn a_flipped_bit_is_found_by_whoever_reads_all_rows() {
    let (dim, rows_per_shard) = (5, 3);
    let rows: Vec<f32> = (0..8 * dim).map(|cell| (cell as f32 * 0.7).sin()).collect();
    for dtype in Schema::DTYPES {
        let folder = tempfile::tempdir().unwrap();
        let store = fill(folder.path(), &rows, dim, dtype, rows_per_shard);
        let names: Vec<String> = store.shard_names().map(str::to_string).collect();
        let survey = |index: Vec<i64>| {
            let store = Reader::open(folder.path()).unwrap();
            let pool = Pool::new(store.blocks().unwrap()).unwrap().with_index(index).unwrap();
            Survey::new(pool, false, &Monitor::default()).map(|_| ())
        };
        let (own, others) = (store.index().to_vec(), vec![7, 3, 9, 100, 4, 5, 6, 0]);
        survey(own.clone()).unwrap();
        survey(others.clone()).unwrap(); // numbered anew, and still the rows that were written

        for (place, name) in names.iter().enumerate() {
            let path = folder.path().join(name);
            let sound = std::fs::read(&path).unwrap();
            let rows_here = rows_per_shard.min(8 - place * rows_per_shard);
            let start = sound.len() - rows_here * dim * dtype.size();
            for byte in start..sound.len() {
                let mut changed = sound.clone();
                changed[byte] ^= 1 << (byte % 8);
                std::fs::write(&path, &changed).unwrap();
                for index in [&own, &others] {
                    let found = survey(index.clone()).unwrap_err();
                    assert!(
                        matches!(&found, Error::CorruptStore { path: at, field, .. }
                            if *at == path && field.starts_with("rows_checksum")),
                        "{found}"
                    );
                }
            }
            // What a row's norm tells is told.
            let mut changed = sound.clone();
            let last = sound.len() - 1;
            changed[last] ^= 0x40;
            std::fs::write(&path, &changed).unwrap();
            let row = place * rows_per_shard + rows_here - 1;
            let expected = format!("row {} of the file (index {row})", rows_here - 1);
            assert!(survey(own.clone()).unwrap_err().to_string().contains(&expected), "{dtype:?}");
            std::fs::write(&path, &sound).unwrap();
        }
    }
}
