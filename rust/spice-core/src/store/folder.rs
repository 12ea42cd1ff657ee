//! The files of a store, and how one appears in it: complete, durable and never over another.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::faults;
pub(super) use super::names::{SCHEMA_FILE, is_shard_name, shard_name, shard_sequence};
use crate::error::{Error, Result};

/// Locked by the extraction that is going on; see `python/spice_rs/store/lease.py`.
pub(super) const LEASE_FILE: &str = ".extracting";
const TEMPORARY: &str = ".tmp-";
const DAMAGED: &str = "damaged-";

/// A name that no other writer has: microseconds since 1970, process id and chance, in hex, so that the shards of
/// writers that follow each other are in the order of time.
pub(super) fn unique_writer() -> String {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros());
    format!("{micros:014x}-{:x}-{:08x}", std::process::id(), chance() as u32)
}

/// A number that differs between calls and processes; not for secrets.
pub(super) fn chance() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    // A forked child goes on with its parent's chance.
    hasher.write_u32(std::process::id());
    hasher.write_u128(
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos()),
    );
    hasher.finish()
}

/// The files of a store, each list sorted by name.
pub(super) struct Listing {
    pub(super) shards: Vec<String>,
    pub(super) leftovers: Vec<String>,
}

/// Lists the shards and the leftovers in `folder`; other files are not ours.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing { shards: Vec::new(), leftovers: Vec::new() };
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let name = entry.map_err(Error::io(folder, "list"))?.file_name();
        match name.to_str() {
            Some(name) if name.starts_with(TEMPORARY) => listing.leftovers.push(name.to_string()),
            Some(name) if is_shard_name(name) => listing.shards.push(name.to_string()),
            _ => {}
        }
    }
    listing.shards.sort_unstable();
    listing.leftovers.sort_unstable();
    Ok(listing)
}

/// Opens the regular file at `path`; a link, a pipe or a device is refused, and nothing outside the folder is opened.
///
/// # Errors
/// [`Error::CorruptStore`] if the path is no regular file; [`Error::Io`].
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let irregular = || faults::corrupt(path, "file", "no regular file", "a regular file");
    // Looked at by name first, because opening some devices already does something; and again through the open file,
    // because the name may have become another's in between.
    if !fs::symlink_metadata(path).map_err(Error::io(path, "open"))?.is_file() {
        return Err(irregular());
    }
    let mut options = OpenOptions::new();
    let file = careful(options.read(true)).open(path);
    let file = file.map_err(|error| match is_link(path) {
        true => irregular(),
        false => Error::io(path, "open")(error),
    })?;
    match file.metadata().map_err(Error::io(path, "open"))?.is_file() {
        true => Ok(file),
        false => Err(irregular()),
    }
}

/// Makes opening fail on links, and never wait for the other end of a pipe, where the system has such a thing.
pub(super) fn careful(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

pub(super) fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// Reads a regular file of at most `limit` bytes, no link; `None` if it does not exist.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match open_regular(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > limit {
        let found = format!("more than {limit} bytes");
        return Err(faults::corrupt(path, "size", found, format!("at most {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// A complete file under a temporary name; dropping it removes that name.
///
/// It is locked while its writer lives, where the file system has locks: that is how leftovers are told.
pub(super) struct Temporary {
    folder: PathBuf,
    path: PathBuf,
    file: File,
}

/// Removes the temporary file `path` if its writer is gone; false if it is not, or if that cannot be told.
pub(super) fn remove_forgotten(path: &Path) -> Result<bool> {
    let Ok(file) = open_regular(path) else { return Ok(false) };
    if file.try_lock().is_err() {
        return Ok(false);
    }
    // Still locked: a writer that has just created the file and comes late with its own lock finds it gone.
    match fs::remove_file(path) {
        // The writer has done with it and removed it itself.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true).map_err(Error::io(path, "remove")),
    }
}

impl Temporary {
    /// Writes `parts`, one after the other; with `fsync` they are on disk when this returns.
    pub(super) fn write(folder: &Path, parts: &[&[u8]], fsync: bool) -> Result<Self> {
        let mut temporary = loop {
            let path = folder.join(format!("{TEMPORARY}{}-{:016x}", std::process::id(), chance()));
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(Error::io(folder, "create a file in"))?;
            // Without locks the file is as good; it only cannot be told from one that is in use.
            let locked = !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            // A repair may have come between and taken it for a forgotten one.
            if locked && fs::symlink_metadata(&path).is_ok() {
                break Self { folder: folder.to_path_buf(), path, file };
            }
        };
        for part in parts {
            temporary.file.write_all(part).map_err(Error::io(&temporary.path, "write"))?;
        }
        if fsync {
            temporary.file.sync_all().map_err(Error::io(&temporary.path, "sync"))?;
        }
        Ok(temporary)
    }

    /// Gives the file the first name that is free among the shards of `writer` from `sequence` on.
    ///
    /// `sequence` becomes the next one to try.
    pub(super) fn publish_shard(&self, writer: &str, sequence: &mut u64) -> Result<()> {
        loop {
            let name = shard_name(writer, *sequence);
            *sequence += 1;
            // The name can be taken if another writer was given the same.
            if self.publish(&name)? {
                return Ok(());
            }
        }
    }

    /// Gives the file the name `name`; false, and nothing done, if that name is taken.
    ///
    /// The name is durable after [`sync_folder`].
    pub(super) fn publish(&self, name: &str) -> Result<bool> {
        let target = self.folder.join(name);
        link_or_rename(&self.path, &target).map_err(Error::io(&target, "create"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already if it was renamed; if it stays, readers ignore it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Moves `from` to `to` unless that exists: a hard link is the exclusive rename that every system has.
///
/// File systems without hard links get a rename after a look, which leaves a moment for a race of two writers of
/// one name; names of shards are unique unless the caller chose them.
fn link_or_rename(from: &Path, to: &Path) -> io::Result<bool> {
    let Err(error) = fs::hard_link(from, to) else { return Ok(true) };
    if fs::symlink_metadata(to).is_ok() {
        // A network file system may carry out a request and lose the answer.
        return Ok(is_same_file(from, to));
    }
    if error.kind() == ErrorKind::AlreadyExists {
        return Ok(false);
    }
    fs::rename(from, to).map(|()| true)
}

/// Whether two names are of one file; false where the system does not tell.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let a = FileId::at(a);
    a.is_some() && a == FileId::at(b)
}

/// What no two files have in common while both are there, be it only as a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(unix), allow(dead_code))] // none is ever made there
pub(super) struct FileId(u64, u64);

impl FileId {
    /// That of an open file; `None` where the system does not tell.
    pub(super) fn of(file: &File) -> Option<Self> {
        file.metadata().ok().as_ref().and_then(Self::from_metadata)
    }

    /// That of the file at `path`, a link not being followed; `None` without one, too.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().as_ref().and_then(Self::from_metadata)
    }

    #[cfg(unix)]
    pub(super) fn from_metadata(found: &fs::Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        Some(Self(found.dev(), found.ino()))
    }

    #[cfg(not(unix))]
    pub(super) fn from_metadata(_: &fs::Metadata) -> Option<Self> {
        None
    }
}

/// Removes files that are named in `names` and may be gone, for good when this returns.
pub(super) fn remove(folder: &Path, names: &[String]) -> Result<()> {
    for name in names {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(&path, "remove")(error));
            }
            _ => {}
        }
    }
    if names.is_empty() { Ok(()) } else { sync_folder(folder) }
}

/// Renames the file `name` so that it is no shard any more; returns its new name.
pub(super) fn set_aside(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    for number in 0u64.. {
        let end = if number == 0 { String::new() } else { format!(".{number}") };
        let aside = format!("{DAMAGED}{name}{end}");
        let target = folder.join(&aside);
        if fs::symlink_metadata(&target).is_err() {
            fs::rename(&path, &target).map_err(Error::io(&path, "rename"))?;
            return Ok(aside);
        }
    }
    unreachable!("some number is free")
}

/// Creates a folder with its parents, for good when this returns.
pub(super) fn create_all(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(path).map_err(Error::io(path, "create"))?;
    // Also of a folder that was there: its creator may not have come to this yet.
    for folder in [path].into_iter().chain(missing.into_iter().skip(1)) {
        match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_parent(parent)?,
            _ => {}
        }
    }
    Ok(())
}

/// [`sync_folder`] of a folder above a store's own, which one may pass and not be allowed to read.
pub(super) fn sync_parent(folder: &Path) -> Result<()> {
    match sync_folder(folder) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Makes new names in `folder` survive a power cut, where the file system can be asked to.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    // Only Unix opens a folder as a file; elsewhere the file system journals names itself.
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|file| file.sync_all()) {
        Err(error) if !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            Err(Error::io(folder, "sync")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_file_never_replaces_another() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Temporary::write(folder.path(), &[b"a", b"b"], true).unwrap().publish("x").unwrap());
        assert!(!Temporary::write(folder.path(), &[b"c"], false).unwrap().publish("x").unwrap());
        assert_eq!(fs::read(folder.path().join("x")).unwrap(), b"ab");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_of_shards_cannot_leave_the_folder() {
        assert!(is_shard_name(&shard_name("w", 3)));
        for bad in [
            "../shard-a.safetensors",
            "shard-/../a.safetensors",
            "shard-..\\a.safetensors",
            "store.json",
        ] {
            assert!(!is_shard_name(bad), "{bad}");
        }
        assert_eq!(shard_sequence(&shard_name("a-b", 17), "a-b"), Some(17));
        assert_eq!(shard_sequence(&shard_name("a-b", 17), "a"), None);
    }
}
