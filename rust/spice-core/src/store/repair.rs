//! A store with damaged or forgotten files, or with copies of rows, made one that opens.

use std::path::Path;

use super::compact::Work;
use super::copies::{Dropped, drop_copies};
use super::folder;
use super::lock::Lock;
use super::observer::{Observer, observe};
use super::reader::{self, Reader, no_store};
use super::shard::{self, Shard};
use crate::error::{Error, Result};

/// What [`repair`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Repaired {
    /// Unfinished files of dead writers, the lease of a dead extraction, and superseded shards, which were removed.
    pub removed: Vec<String>,
    /// Unfinished files and a lease that stay: their holders live, or the file system cannot tell.
    pub kept: Vec<String>,
    /// Damaged shards, which were set aside.
    pub damaged: Vec<Damaged>,
    /// Copies of rows that are there once now.
    pub duplicates: Vec<Dropped>,
}

impl Repaired {
    /// An error that ends a repair, with the damaged shards that nobody would hear of any more.
    fn told_with(&self, error: Error) -> Error {
        match error {
            Error::Store { path, field, found, expected, remedy } if !self.damaged.is_empty() => {
                let names: Vec<&str> = self.damaged.iter().map(|shard| &*shard.name).collect();
                let remedy =
                    format!("{remedy} Damaged shards were set aside before: {}.", names.join(", "));
                Error::Store { path, field, found, expected, remedy }
            }
            error => error,
        }
    }
}

/// A shard that [`repair`] has set aside.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damaged {
    /// Its name now; the store does not look at it any more.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Removes unfinished files of dead writers and superseded shards, sets damaged shards aside, under a new name in the
/// same folder, and keeps one of the rows that are there more than once and are the same to the bit. Reads the whole store.
///
/// Rows of a damaged shard are missing afterwards, unless the shards that it replaced are still there: those count
/// again. A damaged shard that a sound one has replaced is removed with the other superseded ones.
///
/// # Errors
/// [`Error::Store`] if there is no store, or one of another version, while another process compacts, deletes or
/// repairs, and if two rows of one index are not the same: then all else is repaired, and no row is dropped; [`Error::CorruptStore`] if `store.json` is damaged, which cannot be repaired; [`Error::Io`];
/// [`Error::Interrupted`].
pub fn repair(path: &Path, observer: &mut Observer<'_>) -> Result<Repaired> {
    let folder = &std::path::absolute(path).map_err(Error::io(path, "resolve"))?;
    if !folder.is_dir() {
        return Err(no_store(folder, if folder.exists() { "a file" } else { "nothing" }));
    }
    let there = || no_store(folder, "a folder without store.json");
    let schema = reader::read_schema(folder)?.ok_or_else(there)?.schema;
    let schema_id = schema.id();
    let lock = Lock::take(folder)?;

    let listing = folder::list(folder)?;
    let mut done = Repaired::default();
    // The lease of an extraction that was killed holds nobody up, and says that one is at work.
    for name in listing.leftovers.into_iter().chain([folder::LEASE_FILE.to_string()]) {
        let leftover = folder.join(&name);
        if folder::remove_forgotten(&leftover)? {
            done.removed.push(name);
        } else if leftover.symlink_metadata().is_ok() {
            done.kept.push(name);
        }
    }

    let (mut sound, mut damaged) = (Vec::new(), Vec::new());
    let total = listing.shards.len();
    for (number, name) in listing.shards.into_iter().enumerate() {
        let mut check = || {
            let file = reader::read_schema(folder)?.ok_or_else(there)?;
            let open = || Shard::open(folder, name.clone(), &schema, &schema_id);
            let part = Reader::over(folder, file, vec![open()?])?;
            // Shards are counted, not rows: those of a damaged shard are not known.
            part.verify_shard(&part.shards[0], &mut |_| observe(observer, number, total))?;
            open()
        };
        match check() {
            Ok(shard) => sound.push(shard),
            Err(error @ Error::CorruptStore { .. }) => {
                let header = Shard::open(folder, name.clone(), &schema, &schema_id).ok();
                damaged.push((name, error.to_string(), header));
            }
            Err(error) => return Err(error),
        }
        observe(observer, number + 1, total)?;
    }

    // A damaged shard that another has replaced is not missed; and what it had replaced itself must not come back.
    let is_replaced = |shard: &Shard, sound: &[Shard]| {
        sound.iter().any(|other| other.header.supersedes.contains(&shard.identity()))
    };
    while let Some(place) = (damaged.iter())
        .position(|(_, _, shard)| shard.as_ref().is_some_and(|shard| is_replaced(shard, &sound)))
    {
        sound.extend(damaged.remove(place).2);
    }
    sound.sort_by(|a, b| a.name.cmp(&b.name));

    let superseded = shard::superseded(folder, &sound)?;
    if !(damaged.is_empty() && superseded.is_empty()) {
        lock.announce(folder)?;
    }
    for (name, reason, _) in damaged {
        done.damaged.push(Damaged { name: folder::set_aside(folder, &name)?, reason });
    }
    folder::sync_folder(folder)?;
    folder::remove(folder, &superseded)?;
    done.removed.extend(superseded);

    let store = Reader::open_with_duplicates(folder, None)?;
    let mut work = Work::on(&store, lock);
    let copies = drop_copies(&mut work, &store, &mut |_, _| observer(total, total));
    done.duplicates = copies.map_err(|error| done.told_with(error))?;
    Ok(done)
}
