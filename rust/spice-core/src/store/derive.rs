//! New stores made from others: merged, or in another dtype. They appear when they are whole.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::aside::Aside;
use super::buffer::Buffer;
use super::cells::Cells;
use super::folder::{self, SCHEMA_FILE, Temporary};
use super::known::Kinds;
use super::observer::{Observer, observe};
use super::options::WriterOptions;
use super::reader::Reader;
use super::schema::no_cells;
use super::version::WRITTEN_BY;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::matrix::Dtype;

/// Values that are converted at a time.
const CHUNK: usize = 1 << 20;

/// What [`merge`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Merged {
    /// Rows of the new store.
    pub rows: usize,
    /// Rows that were there more than once, and are kept once.
    pub duplicates: usize,
}

/// What becomes of rows with one dataset index that are not the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Differing {
    /// They are an error.
    #[default]
    Refuse,
    /// The first one is kept, in the order of the sources and of their positions.
    First,
    /// The last one is kept.
    Last,
}

impl Differing {
    /// The inverse of `refuse`, `first` and `last`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "refuse" => Some(Self::Refuse),
            "first" => Some(Self::First),
            "last" => Some(Self::Last),
            _ => None,
        }
    }
}

/// Makes a store at `path`, which must not be there yet, of all rows of `sources`, in their order.
///
/// Rows are copied as they are stored and verified on the way. Of rows with one dataset index that are the same to the
/// bit, the first is kept; `differing` says what becomes of others. Sources may have such rows twice themselves. Optional
/// columns are those of all sources.
///
/// # Errors
/// [`Error::StoreMismatch`] if two sources have different schemas; [`Error::Store`] if two rows with one index differ, or
/// if `path` is taken; as [`Reader::open`], [`Reader::verify`] and [`Writer::commit`]; [`Error::Interrupted`].
pub fn merge(
    sources: &[PathBuf],
    path: &Path,
    differing: Differing,
    observer: &mut Observer<'_>,
) -> Result<Merged> {
    let open = |source: &PathBuf| Reader::open_with_duplicates(source, None);
    let sources: Vec<Reader> = sources.iter().map(open).collect::<Result<_>>()?;
    let Some(first) = sources.first() else {
        return Err(Error::invalid("sources", "no store", "at least one", "Name the stores to merge."));
    };
    let schema = first.schema().clone();
    for source in &sources[1..] {
        source.schema().join(source.path(), &schema)?;
    }
    let chosen = choose(&sources, differing)?;
    let total: usize = sources.iter().map(Reader::len).sum();
    let with_rows = sources.iter().filter(|source| !source.is_empty());
    let kinds = with_rows.map(|source| source.known().kinds()).reduce(Kinds::and).unwrap_or_default();
    build(path, |folder| {
        Temporary::write(folder, &[&schema.encode(WRITTEN_BY)?], true)?.publish(SCHEMA_FILE)?;
        let mut buffer = Buffer::new(Cells::new(schema.dtype).ok_or_else(|| no_cells(&schema))?);
        let (name, mut sequence) = (folder::unique_writer(), 0);
        let (mut rows, mut before) = (0, 0);
        for (source, chosen) in sources.iter().zip(&chosen) {
            for (number, shard) in source.shards.iter().enumerate() {
                let (start, end) = (source.starts[number], source.starts[number + 1]);
                let told = &mut |rows| observe(observer, before + start + rows, total);
                source.verify_shard(shard, told)?;
                for position in (start..end).filter(|&position| chosen[position]) {
                    buffer.push_stored(source, position, kinds);
                    rows += 1;
                    if buffer.bytes() >= WriterOptions::default().bytes_per_shard {
                        buffer.write(folder, &schema, &[], true)?.publish_shard(&name, &mut sequence)?;
                        buffer.clear();
                    }
                }
            }
            before += source.len();
        }
        if !buffer.is_empty() {
            buffer.write(folder, &schema, &[], true)?.publish_shard(&name, &mut sequence)?;
        }
        Ok(Merged { rows, duplicates: total - rows })
    })
}

/// For each row of each source, whether it is the one to keep of those with its index.
fn choose(sources: &[Reader], differing: Differing) -> Result<Vec<Vec<bool>>> {
    let mut kept: HashMap<i64, (usize, usize)> = HashMap::new();
    let mut chosen: Vec<Vec<bool>> = sources.iter().map(|source| vec![true; source.len()]).collect();
    for (number, source) in sources.iter().enumerate() {
        for (position, &row) in source.index().iter().enumerate() {
            match kept.entry(row) {
                Entry::Vacant(place) => _ = place.insert((number, position)),
                Entry::Occupied(mut there) => {
                    let (other, at) = *there.get();
                    let is_same = same(&sources[other], at, source, position);
                    match differing {
                        Differing::Refuse if !is_same => {
                            return Err(differ(row, (&sources[other], at), (source, position)));
                        }
                        Differing::Last if !is_same => {
                            there.insert((number, position));
                            chosen[other][at] = false;
                        }
                        _ => chosen[number][position] = false,
                    }
                }
            }
        }
    }
    Ok(chosen)
}

/// Whether two rows are the same to the bit, with all that both stores know of them.
fn same(a: &Reader, i: usize, b: &Reader, j: usize) -> bool {
    let values = |store: &Reader, row: usize| {
        (store.scale()[row].to_bits(), store.norm()[row].to_bits(), store.index()[row])
    };
    values(a, i) == values(b, j)
        && a.stored(i) == b.stored(j)
        && a.known().row(i).agrees(b.known().row(j))
}

/// The error for two rows with one index that are not the same.
fn differ(row: i64, (a, i): (&Reader, usize), (b, j): (&Reader, usize)) -> Error {
    let place = |store: &Reader, position: usize| {
        let name = &store.shards[store.shard_of(position)].name;
        store.path().join(name).display().to_string()
    };
    Error::Store {
        path: b.path().to_path_buf(),
        field: format!("index {row}"),
        found: format!("different rows in {} and {}", place(a, i), place(b, j)),
        expected: "one row for each index, or the same one".to_string(),
        remedy:
            "Say which of them to keep, the first or the last; or delete the row from one of the stores."
                .to_string(),
    }
}

/// Makes a store at `path`, which must not be there yet, of the rows of `source` in another dtype.
///
/// From `float32` the rows are those that would have been written in that dtype at once. Rows that had been rounded
/// already are rounded again, and `converted_from` in the provenance says what they were.
///
/// # Errors
/// [`Error::InvalidInput`] for a dtype that is not stored; else as [`merge`].
pub fn convert(source: &Reader, path: &Path, dtype: Dtype, observer: &mut Observer<'_>) -> Result<()> {
    let mut schema = source.schema().clone();
    if schema.dtype != Dtype::F32 && schema.dtype != dtype {
        let before = json!(schema.dtype.name());
        schema.provenance.entry("converted_from").or_insert(before);
    }
    schema.dtype = dtype;
    let dim = source.dim();
    let rows_per_chunk = (CHUNK / dim).max(1);
    build(path, |folder| {
        let mut writer = Writer::create(folder, schema, WriterOptions::default())?;
        let mut rows = Vec::new();
        for (number, shard) in source.shards.iter().enumerate() {
            let (start, end) = (source.starts[number], source.starts[number + 1]);
            source.verify_shard(shard, &mut |rows| observe(observer, start + rows, source.len()))?;
            for first in (start..end).step_by(rows_per_chunk) {
                let part = first..(first + rows_per_chunk).min(end);
                let positions: Vec<usize> = part.clone().collect();
                rows.resize(positions.len() * dim, 0.0);
                source.read(&positions, &mut rows)?;
                writer.append(&rows, &source.index()[part.clone()], source.known().part(part))?;
            }
        }
        writer.close()
    })
}

/// Fills a folder beside `path` and gives it that name when it is whole.
fn build<T>(path: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let path = &std::path::absolute(path).map_err(Error::io(path, "resolve"))?;
    let is_free = match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    let (true, Some(parent), Some(name)) = (is_free, path.parent(), path.file_name()) else {
        return Err(Error::Store {
            path: path.to_path_buf(),
            field: "path".to_string(),
            found: "something that is there already".to_string(),
            expected: "the name of a new folder".to_string(),
            remedy: "Choose another name; nothing is written over.".to_string(),
        });
    };
    folder::create_all(parent)?;
    let aside = Aside::beside(parent, name)?;
    let filled = fill(aside.path())?;
    folder::sync_folder(aside.path())?;
    aside.place(path)?;
    folder::sync_parent(parent)?;
    Ok(filled)
}
