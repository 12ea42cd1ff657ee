//! Which files are the shards of a store, while writers add some and a compaction replaces others.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::bytes::FileBytes;
use super::folder::Listing;
use super::lock;
use super::schema::Schema;
use super::shard::Shard;
use crate::error::{Error, Result};

/// What the header of a shard hardly ever exceeds.
const HEADER_BYTES: usize = 1 << 13;

/// Maps all shards in `folder`, sorted by name, whatever a compaction does meanwhile: see [`lock::generation`].
///
/// `list` is [`super::folder::list`], or what a test puts in its place.
///
/// # Errors
/// [`Error::CorruptStore`] for a file that is no shard of this store; [`Error::Io`]; [`Error::Store`] if shards are replaced so
/// fast that no listing is whole.
pub(super) fn open_shards(
    folder: &Path,
    schema: &Schema,
    mut list: impl FnMut(&Path) -> Result<Listing>,
) -> Result<(Vec<Shard>, Listing)> {
    const ATTEMPTS: usize = 1000;
    // Then it takes a while: a network file system may show what was there some seconds ago.
    const IN_A_ROW: usize = 10;
    const PAUSE: Duration = Duration::from_millis(5);
    let schema_id = schema.id();
    let mut opened = BTreeMap::new();
    let mut vanished = None;
    for attempt in 0..ATTEMPTS {
        if attempt >= IN_A_ROW {
            thread::sleep(PAUSE);
        }
        let generation = lock::generation(folder)?;
        let listing = list(folder)?;
        // A name that is still there may have become that of a later shard.
        opened.retain(|name, shard: &mut Shard| {
            listing.shards.binary_search(name).is_ok() && shard.has_its_name()
        });
        vanished = None;
        // The disk is asked for the headers of all before the first is parsed, and then for the columns of all.
        let mut mapped = Vec::new();
        for name in listing.shards.iter().filter(|name| !opened.contains_key(*name)) {
            match FileBytes::open(&folder.join(name)) {
                Err(Error::Io { path, action, source })
                    if matches!(
                        source.kind(),
                        ErrorKind::NotFound | ErrorKind::StaleNetworkFileHandle
                    ) =>
                {
                    vanished = Some(Error::Io { path, action, source });
                }
                map => {
                    let map = map?;
                    map.will_need(0..map.len().min(HEADER_BYTES));
                    mapped.push((name, map));
                }
            }
        }
        for (name, map) in mapped {
            let shard = Shard::over(folder, name.clone(), map, schema, &schema_id)?;
            shard.map.will_need(shard.header.columns());
            opened.insert(name.clone(), shard);
        }
        if vanished.is_none() && lock::generation(folder)? == generation {
            return Ok((opened.into_values().collect(), listing));
        }
    }
    Err(vanished.unwrap_or_else(|| Error::Store {
        path: folder.to_path_buf(),
        field: "shards".to_string(),
        found: format!("others in their place at each of {ATTEMPTS} looks"),
        expected: "a store that is not compacted all the time".to_string(),
        remedy: "Open it again when the compaction has ended.".to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::folder;
    use super::super::{Known, Reader, Writer, WriterOptions, compact, delete, repair};
    use super::*;
    use crate::matrix::Dtype;

    fn schema() -> Schema {
        Schema { dim: 1, dtype: Dtype::F32, reduction: None, provenance: serde_json::Map::new() }
    }

    /// Writes a shard for each of these rows.
    fn add(folder: &Path, rows: &[i64], writer: &str) {
        let options = WriterOptions {
            rows_per_shard: Some(1),
            writer: Some(writer.to_string()),
            ..Default::default()
        };
        let mut writer = Writer::create(folder, schema(), options).unwrap();
        rows.iter().for_each(|&row| writer.append(&[row as f32], &[row], Known::default()).unwrap());
        writer.close().unwrap();
    }

    fn go(_: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn rows(shards: Vec<Shard>) -> Vec<i64> {
        let of = |shard: &Shard| {
            shard.values(&shard.header.index).iter().map(|&row| i64::from_le_bytes(row)).collect()
        };
        let mut rows: Vec<i64> =
            shards.iter().flat_map(|shard: &Shard| -> Vec<i64> { of(shard) }).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn a_listing_that_is_overtaken_by_replacements_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        add(folder, &[0, 1, 2, 3, 4], "w");
        // Names come one by one: each of the first listings is past the place of a successor when that appears, and
        // comes to the place of what it replaces when that is gone.
        let mut listings = 0;
        let overtaken = |folder: &Path| {
            listings += 1;
            let before = folder::list(folder)?;
            match listings {
                1 => _ = compact(folder, 1 << 20, &mut go)?,
                2..=4 => _ = delete(folder, &[listings - 2], &mut go)?,
                _ => return folder::list(folder),
            }
            let after = folder::list(folder)?.shards;
            let shards = before.shards.into_iter().filter(|name| after.contains(name)).collect();
            Ok(Listing { shards, leftovers: Vec::new() })
        };
        let (shards, _) = open_shards(folder, &schema(), overtaken).unwrap();
        assert_eq!(rows(shards), [3, 4]);
        assert_eq!(listings, 5);
    }

    #[test]
    fn shards_that_come_meanwhile_take_no_second_look() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        add(folder, &[0, 1], "w");
        let mut listings = 0;
        let with_writers = |folder: &Path| {
            listings += 1;
            let listing = folder::list(folder);
            add(folder, &[2], "x");
            listing
        };
        let (shards, _) = open_shards(folder, &schema(), with_writers).unwrap();
        assert_eq!((rows(shards), listings), (vec![0, 1], 1));
    }

    #[test]
    fn whoever_replaces_shards_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        add(folder, &[0, 1, 2, 3], "w");
        let mut before = 0;
        let mut grown = || {
            let now = lock::generation(folder).unwrap();
            std::mem::replace(&mut before, now) < now
        };
        assert!(!grown());
        let names = folder::list(folder).unwrap().shards;
        let old: Vec<_> =
            names.iter().map(|name| (name, std::fs::read(folder.join(name)).unwrap())).collect();
        compact(folder, 1 << 20, &mut go).unwrap();
        assert!(grown());
        add(folder, &[4], "w");
        assert!(!grown());
        delete(folder, &[4], &mut go).unwrap();
        assert!(grown());
        delete(folder, &[4], &mut go).unwrap();
        compact(folder, 1 << 20, &mut go).unwrap();
        repair(folder, &mut go).unwrap();
        assert!(!grown());
        // As after a compaction that was killed before it removed the old ones.
        for work in [
            |folder: &Path| repair(folder, &mut go).map(drop),
            |folder: &Path| delete(folder, &[], &mut go).map(drop),
        ] {
            old.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
            work(folder).unwrap();
            assert!(grown());
            assert_eq!(Reader::open(folder).unwrap().superseded().len(), 0);
        }
        std::fs::write(folder.join(&names[0]), "x").unwrap();
        repair(folder, &mut go).unwrap();
        assert!(grown());
    }

    #[test]
    fn a_store_that_is_replaced_all_the_time_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        add(folder, &[0], "w");
        let lock = lock::Lock::take(folder).unwrap();
        let busy = |folder: &Path| {
            lock.announce(folder)?;
            folder::list(folder)
        };
        let Err(error) = open_shards(folder, &schema(), busy) else { panic!("opened") };
        assert!(error.to_string().contains("compacted all the time"), "{error}");
    }
}
