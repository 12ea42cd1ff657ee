//! What the fuzz targets in `rust/fuzz` run on an input, and the tests on the inputs that these have kept.
//!
//! Whatever the bytes are, nothing may panic, hang, or take memory by a number that a file merely states; and what is
//! accepted has to keep the promises of the store, which are asserted here.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use super::folder::SCHEMA_FILE;
use super::header::{self, Content, Header};
use super::schema::{self, Schema};
use super::{Known, Reader, Writer, WriterOptions, checksum, compact, repair};
use crate::error::{Error, Result};
use crate::matrix::Pool;
use crate::rows::Position;

/// The names that files of an input can have; a file's first byte chooses.
const NAMES: [&str; 8] = [
    SCHEMA_FILE,
    "shard-a-000000.safetensors",
    "shard-b-000000.safetensors",
    "shard-b-000001.safetensors",
    ".tmp-1-0",
    ".lock",
    "shard-.safetensors",
    "damaged-shard-a-000000.safetensors",
];
/// The bits of a file's first byte that choose its name, and those that say what it is.
const NAME: u8 = 7;
const KIND: u8 = 3 << 3;
const SEALED: u8 = 1 << 3;
const LINK: u8 = 2 << 3;
const FOLDER: u8 = 3 << 3;
/// More cells than this are not read: the inputs are small, but a file may say what it likes.
const MOST_CELLS: usize = 1 << 16;

/// Parses `bytes` as a shard and as `store.json`, as they are and with checksums that hold.
pub fn header(bytes: &[u8]) {
    let path = Path::new("input");
    for bytes in [bytes, &sealed_shard(bytes, None), &sealed_schema(bytes)] {
        match header::parse(path, bytes) {
            Ok(header) => check_header(bytes, &header),
            Err(error) => _ = error.to_string(),
        }
        match Schema::decode(path, bytes) {
            Ok(file) => {
                let again = file.schema.encode(&file.written_by).unwrap();
                assert_eq!(Schema::decode(path, &again).unwrap().schema, file.schema);
            }
            Err(error) => _ = error.to_string(),
        }
    }
}

/// Makes the files that `bytes` list in the new folder `path`, and uses them as a store in every way.
///
/// A file is a byte for its name and kind, its length (u16, little-endian) and its bytes.
pub fn folder(bytes: &[u8], path: &Path) {
    fs::create_dir(path).unwrap();
    unpack(bytes, path);
    let before = match Reader::open(path) {
        Ok(store) => Some(use_store(&store)),
        Err(error) => {
            _ = error.to_string();
            None
        }
    };
    let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
    if let Err(error) = repair(path, go_on) {
        _ = error.to_string();
        return;
    }
    // What is left is sound, and each row is there once.
    let store = Reader::open(path).unwrap();
    store.verify(go_on).unwrap();
    if let Some((rows, true)) = &before {
        assert_eq!(*rows, rows_of(&store));
    }
    let before = rows_of(&store);
    compact(path, WriterOptions::default().bytes_per_shard, go_on).unwrap();
    let store = Reader::open(path).unwrap();
    assert_eq!(before, rows_of(&store));
    store.verify(go_on).unwrap();
    if store.dim() <= MOST_CELLS {
        append(path, &store).unwrap();
    }
}

/// Puts one more row into a sound store.
fn append(path: &Path, store: &Reader) -> Result<()> {
    let index = (0..).find(|index| !store.index().contains(index)).unwrap();
    let mut writer = Writer::create(path, store.schema().clone(), WriterOptions::default())?;
    let known = Known {
        num_tokens: store.num_tokens().map(|_| &[1][..]),
        loss: store.loss().map(|_| &[0.5][..]),
        record: store.record().map(|_| &[-1][..]),
    };
    let row = vec![1.0; store.dim()];
    writer.append(&row, &[index], known)?;
    writer.close()?;
    assert!(Reader::open(path)?.index().contains(&index));
    Ok(())
}

/// Reads all that an open store has; its rows, and whether they are sound.
fn use_store(store: &Reader) -> (BTreeSet<i64>, bool) {
    let info = store.info();
    assert_eq!((info.rows, info.dim), (store.len(), store.dim()));
    assert_eq!(store.blocks().unwrap().iter().map(|block| block.rows()).sum::<usize>(), store.len());
    let sound =
        store.verify(&mut |_, _| ControlFlow::Continue(())).map_err(|error| error.to_string()).is_ok();
    let cells = store.len().saturating_mul(store.dim());
    if (1..=MOST_CELLS).contains(&cells) {
        let positions: Vec<usize> = (0..store.len()).rev().collect();
        let mut out = vec![0.0; cells];
        store.read(&positions, &mut out).unwrap();
        let scale = store.scale().iter().map(|&scale| f64::from(scale)).collect();
        let pool = Pool::new(store.blocks().unwrap()).unwrap().with_scale(scale).unwrap();
        let mut row = vec![0.0; store.dim()];
        for (&position, read) in positions.iter().zip(out.chunks_exact(store.dim())) {
            pool.load(Position::new(position), &mut row);
            // What was verified is finite, and comes out of both readers alike.
            assert!(!sound || row.iter().zip(read).all(|(&a, &b)| a.is_finite() && a == f64::from(b)));
        }
    }
    (rows_of(store), sound)
}

fn rows_of(store: &Reader) -> BTreeSet<i64> {
    store.index().iter().copied().collect()
}

/// What a parsed header promises to the code that slices the file by it.
fn check_header(bytes: &[u8], header: &Header) {
    let mut end = header.index.start;
    let columns = [
        Some(&header.index),
        header.record.as_ref(),
        Some(&header.scale),
        Some(&header.norm),
        header.loss.as_ref(),
        header.num_tokens.as_ref(),
        Some(&header.gradients),
    ];
    for range in columns.into_iter().flatten() {
        assert_eq!(range.start, end);
        end = range.end;
    }
    assert_eq!(end, bytes.len());
    assert_eq!(header.index.len(), 8 * header.rows);
    assert_eq!(header.norm.len(), 4 * header.rows);
    assert_eq!(header.gradients.len(), header.rows * header.dim * header.dtype.size());
    let content = Content {
        rows: header.rows,
        dim: header.dim,
        dtype: header.dtype,
        kinds: header.kinds(),
        schema_id: &header.schema_id,
        columns_checksum: header.columns_checksum,
        data_checksum: header.data_checksum,
        rows_checksum: header.rows_checksum,
        nonce: header.nonce,
        supersedes: &header.supersedes,
    };
    // Text that needs more escapes than it came with may not fit any more.
    let Some(mut again) = header::encode(&content) else { return };
    again.extend_from_slice(&bytes[header.index.start..]);
    let again = header::parse(Path::new("again"), &again).unwrap();
    assert_eq!(again.supersedes, header.supersedes);
    assert_eq!(
        (again.rows, again.dim, again.schema_id),
        (header.rows, header.dim, header.schema_id.clone())
    );
}

/// The files of a folder as an input, all of them with this kind.
#[cfg(test)]
fn pack(path: &Path, kind: u8) -> Vec<u8> {
    let mut packed = Vec::new();
    for (number, name) in NAMES.iter().enumerate() {
        if let Ok(bytes) = fs::read(path.join(name)) {
            packed.push(number as u8 | kind);
            packed.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
            packed.extend_from_slice(&bytes);
        }
    }
    packed
}

fn unpack(mut bytes: &[u8], path: &Path) {
    let mut schema_id = None;
    while let [first, low, high, rest @ ..] = bytes {
        let (content, rest) = rest.split_at(rest.len().min(u16::from_le_bytes([*low, *high]).into()));
        bytes = rest;
        let name = NAMES[usize::from(first & NAME)];
        let file = path.join(name);
        if fs::symlink_metadata(&file).is_ok() {
            continue;
        }
        match first & KIND {
            SEALED if name == SCHEMA_FILE => {
                let content = sealed_schema(content);
                schema_id = Schema::decode(&file, &content).ok().map(|found| found.schema.id());
                fs::write(file, content).unwrap();
            }
            SEALED => fs::write(file, sealed_shard(content, schema_id.as_deref())).unwrap(),
            #[cfg(unix)]
            LINK => {
                std::os::unix::fs::symlink(String::from_utf8_lossy(content).replace('\0', "/"), file)
                    .unwrap_or_default()
            }
            FOLDER => fs::create_dir(file).unwrap(),
            _ => fs::write(file, content).unwrap(),
        }
    }
}

/// The bytes with the checksums of a shard put right, so that what they guard is looked at; with this schema's id.
fn sealed_shard(bytes: &[u8], schema_id: Option<&str>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some((length, _)) = bytes.split_first_chunk::<8>() else { return bytes };
    let data = u64::from_le_bytes(*length).saturating_add(8);
    let Some(data) = usize::try_from(data).ok().filter(|&data| data <= bytes.len()) else {
        return bytes;
    };
    let text = |key: &str| format!("\"{key}\":\"");
    if let Some(id) = schema_id {
        replace(&mut bytes[..data], &text("schema_id"), id);
    }
    let all = checksum::text(checksum::of(&bytes[data..]));
    replace(&mut bytes[..data], &text("data_checksum"), &all);
    for _ in 0..2 {
        if let Some(at) =
            position(&bytes[..data], checksum::PREFIX).map(|at| at + checksum::PREFIX.len())
            && at + checksum::DIGITS <= data
        {
            checksum::seal(&mut bytes[..data], at);
        }
        // Where the gradients begin is known to who can parse the header, which needs the first checksum.
        if let Ok(header) = header::parse(Path::new("input"), &bytes) {
            let columns = checksum::text(checksum::of(&bytes[header.columns()]));
            replace(&mut bytes[..data], &text("columns_checksum"), &columns);
        }
    }
    bytes
}

/// The bytes with the checksum and the schema id of `store.json` put right.
fn sealed_schema(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some(at) = schema::seal_position(&bytes) else { return bytes };
    checksum::seal(&mut bytes, at);
    if let Err(Error::CorruptStore { field, expected, .. }) = Schema::decode(Path::new("input"), &bytes)
        && field == "schema_id"
    {
        replace(&mut bytes, "\"schema_id\": \"", &expected);
        checksum::seal(&mut bytes, at);
    }
    bytes
}

/// Writes `text` behind the first `key`, if both are in the bytes.
fn replace(bytes: &mut [u8], key: &str, text: &str) {
    if let Some(place) =
        position(bytes, key).and_then(|at| bytes[at + key.len()..].get_mut(..text.len()))
    {
        place.copy_from_slice(text.as_bytes());
    }
}

fn position(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Reduction, delete};
    use super::*;

    fn corpus(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
    }

    /// The inputs that a target has kept, with their names.
    fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(corpus(target)).unwrap();
        let mut inputs: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty());
        inputs
    }

    /// Small stores of every dtype, with and without optional columns, compacted, and with a deleted row.
    fn seeds() -> Vec<tempfile::TempDir> {
        let mut seeds = Vec::new();
        for (number, dtype) in Schema::DTYPES.into_iter().enumerate() {
            let seed = tempfile::tempdir().unwrap();
            let path = seed.path();
            let provenance = serde_json::json!({"model": "m", "layers": [1, {"seed": null}]});
            let serde_json::Value::Object(provenance) = provenance else { unreachable!() };
            let schema = Schema { dim: 3, dtype, reduction: Some(Reduction::Sum), provenance };
            for (writer, start) in [("a", 0), ("b", 2)] {
                let options = WriterOptions {
                    writer: Some(writer.to_string()),
                    rows_per_shard: Some(2),
                    ..WriterOptions::default()
                };
                let mut writer = Writer::create(path, schema.clone(), options).unwrap();
                let rows = [1.0, -2.0, 3e-9, 0.0, 0.0, 0.0, 1e9, 7.0, -1.5];
                let count = if start == 0 { 2 } else { 3 };
                let index: Vec<i64> = (start..start + count as i64).collect();
                let known = Known {
                    num_tokens: (number % 2 == 0).then_some(&[1, 2, 3][..count]),
                    loss: (number < 2).then_some(&[0.5, 0.25, 9.0][..count]),
                    record: (number % 3 == 0).then_some(&[7, i64::MIN, -1][..count]),
                };
                writer.append(&rows[..3 * count], &index, known).unwrap();
                writer.close().unwrap();
            }
            let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
            match number {
                0 => _ = compact(path, 1 << 20, go_on).unwrap(),
                1 => _ = delete(path, &[3], go_on).unwrap(),
                _ => fs::write(path.join(".tmp-1-0"), b"half a shard").unwrap(),
            }
            // Shards that came in the place of others have names of their own.
            for (number, entry) in fs::read_dir(path).unwrap().enumerate() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                if super::super::folder::is_shard_name(&name) && !NAMES.contains(&&*name) {
                    let free = NAMES[1..4].iter().find(|name| !path.join(name).exists()).unwrap();
                    fs::rename(entry.path(), path.join(free)).unwrap_or_else(|_| panic!("{number}"));
                }
            }
            seeds.push(seed);
        }
        seeds
    }

    /// One of its shards under another name, as a second writer of the same rows leaves it.
    fn copy_a_shard(store: &Path) {
        let shard = NAMES[1..4].iter().map(|name| store.join(name)).find(|path| path.exists()).unwrap();
        fs::copy(shard, store.join("shard-.safetensors")).unwrap();
    }

    #[test]
    fn rows_that_are_there_twice_are_there_once_after_a_repair() {
        for seed in seeds() {
            let whole = rows_of(&Reader::open(seed.path()).unwrap());
            copy_a_shard(seed.path());
            assert!(Reader::open(seed.path()).is_err());
            let scratch = tempfile::tempdir().unwrap();
            folder(&pack(seed.path(), 0), &scratch.path().join("fuzzed"));
            let done = repair(seed.path(), &mut |_, _| ControlFlow::Continue(())).unwrap();
            assert_eq!(done.duplicates.len(), 1);
            assert_eq!(rows_of(&Reader::open(seed.path()).unwrap()), whole);
        }
    }

    #[test]
    fn the_kept_inputs_of_headers_are_parsed_or_refused() {
        inputs("header").iter().for_each(|(_, bytes)| header(bytes));
    }

    #[test]
    fn the_kept_inputs_of_folders_are_stores_or_refused() {
        let scratch = tempfile::tempdir().unwrap();
        for (number, (_, bytes)) in inputs("folder").iter().enumerate() {
            folder(bytes, &scratch.path().join(number.to_string()));
        }
    }

    #[test]
    fn a_packed_store_is_that_store() {
        for seed in seeds() {
            let expected = Reader::open(seed.path()).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            for kind in [0, SEALED] {
                let copy = scratch.path().join(kind.to_string());
                fs::create_dir(&copy).unwrap();
                unpack(&pack(seed.path(), kind), &copy);
                let found = Reader::open(&copy).unwrap();
                assert_eq!((found.fingerprint(), use_store(&found).1), (expected.fingerprint(), true));
            }
        }
    }

    /// Where the corpus begins: `cargo test -p spice-core write_seeds -- --ignored`.
    #[test]
    #[ignore = "writes to rust/fuzz/corpus"]
    fn write_seeds() {
        for (number, seed) in seeds().iter().enumerate() {
            for (target, parts) in [
                ("folder", vec![pack(seed.path(), 0), pack(seed.path(), SEALED)]),
                (
                    "header",
                    NAMES.iter().filter_map(|name| fs::read(seed.path().join(name)).ok()).collect(),
                ),
            ] {
                fs::create_dir_all(corpus(target)).unwrap();
                for (part, bytes) in parts.iter().enumerate() {
                    fs::write(corpus(target).join(format!("seed-{number}-{part}")), bytes).unwrap();
                }
            }
            copy_a_shard(seed.path());
            fs::write(corpus("folder").join(format!("copies-{number}")), pack(seed.path(), 0)).unwrap();
        }
    }
}
