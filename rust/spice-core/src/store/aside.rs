//! A folder that is filled beside the place that it is to have.
//!
//! It is named after that place and locked while its maker lives, so that whoever makes the next one removes what a killed
//! process has left.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::folder::{self, FileId, careful};
use crate::error::{Error, Result};

/// So many of one name can be at work at a time before names become long.
const PLACES: u64 = 8;

/// A folder that is removed again unless it gets its place.
pub(super) struct Aside {
    path: PathBuf,
    /// Where folders can be locked.
    _lock: Option<File>,
    placed: bool,
}

impl Aside {
    /// Makes an empty folder in `parent` for what is to be `name` there.
    pub(super) fn beside(parent: &Path, name: &OsStr) -> Result<Self> {
        let path_of = |place: u64| {
            parent.join(format!(".tmp-spice-{:016x}-{place:x}", xxh3_64(name.as_encoded_bytes())))
        };
        (0..PLACES).map(path_of).for_each(|path| remove_forgotten(&path));
        for place in (0..PLACES).chain(std::iter::repeat_with(folder::chance)) {
            let path = path_of(place);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.map_err(Error::io(&parent.join(name), "create"))?,
            }
            // Somebody may have come between and taken it for a forgotten one.
            match open(&path) {
                Some(file) if file.try_lock().is_err() || FileId::of(&file) != FileId::at(&path) => {}
                lock => return Ok(Self { path, _lock: lock, placed: false }),
            }
        }
        unreachable!("some name is free")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its place.
    pub(super) fn place(mut self, path: &Path) -> Result<()> {
        fs::rename(&self.path, path).map_err(Error::io(path, "create"))?;
        // By now the name may be another one's.
        self.placed = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the folder at `path` if it was locked by somebody who is gone.
fn remove_forgotten(path: &Path) {
    if let Some(file) = open(path)
        && file.try_lock().is_ok()
        && FileId::of(&file) == FileId::at(path)
    {
        let _ = fs::remove_dir_all(path);
    }
}

/// Opens a folder, where the system does that.
fn open(path: &Path) -> Option<File> {
    let file = careful(OpenOptions::new().read(true)).open(path).ok()?;
    file.metadata().is_ok_and(|found| found.is_dir()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_the_dead_have_left_goes_and_what_is_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let name = OsStr::new("store");
        let used = Aside::beside(folder.path(), name).unwrap();
        let other = Aside::beside(folder.path(), name).unwrap();
        assert_ne!(used.path(), other.path());
        fs::write(used.path().join("file"), "x").unwrap();
        // A killed process leaves the folder and no lock.
        let left = other.path().to_path_buf();
        std::mem::forget(Aside { path: left.clone(), _lock: None, placed: false });
        drop(other);
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "y").unwrap();
        let next = Aside::beside(folder.path(), name).unwrap();
        assert_eq!(fs::read_dir(next.path()).unwrap().count(), 0);
        assert!(used.path().join("file").exists());
        assert_eq!(count(), 2);
        next.place(&folder.path().join("placed")).unwrap();
        drop(used);
        assert_eq!(count(), 1);
        // What is no folder of ours stays, whatever its name.
        fs::write(&left, "mine").unwrap();
        drop(Aside::beside(folder.path(), name).unwrap());
        assert_eq!(fs::read(&left).unwrap(), b"mine");
    }
}
