//! Who may replace and remove shards, and how readers notice that it happens.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::folder::{careful, is_link};
use crate::error::{Error, Result};

const LOCK_FILE: &str = ".lock";

/// The right to replace and remove shards of a store, which one process has at a time.
///
/// It ends with the process; that of a process that was killed ends with the children that it had forked.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough where a child that was forked meanwhile has it open too.
        let _ = self.0.unlock();
    }
}

impl Lock {
    /// Lets readers that are opening the store know that shards go: those in whose place others have come, or deleted ones.
    /// To be called after the successors have their names, and before the first shard is removed. See [`generation`].
    pub(super) fn announce(&self, folder: &Path) -> Result<()> {
        let longer = self.0.metadata().and_then(|found| self.0.set_len(found.len() + 1));
        longer.map_err(Error::io(&folder.join(LOCK_FILE), "write"))
    }

    /// Takes the lock of the store in `folder`, or fails at once.
    pub(super) fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK_FILE);
        let irregular = || Error::Store {
            path: path.clone(),
            field: "file".to_string(),
            found: "no regular file".to_string(),
            expected: "a regular file, or none".to_string(),
            remedy: "Remove it; the next one is made when it is needed.".to_string(),
        };
        let other = |found: io::Result<fs::Metadata>| found.is_ok_and(|found| !found.is_file());
        if other(fs::symlink_metadata(&path)) {
            return Err(irregular());
        }
        let file = Self::open(folder, &path);
        let file = file.map_err(|error| match is_link(&path) {
            true => irregular(),
            false => Error::io(&path, "open")(error),
        })?;
        if other(file.metadata()) {
            return Err(irregular());
        }
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::Error(error)) => Err(Error::io(&path, "lock")(error)),
            Err(TryLockError::WouldBlock) => Err(Error::Store {
                path: folder.to_path_buf(),
                field: "lock".to_string(),
                found: "another compaction, deletion or repair at work".to_string(),
                expected: "one at a time".to_string(),
                remedy: "Wait until it has ended.".to_string(),
            }),
        }
    }

    /// Opens the file, which whoever may write into the folder may write.
    fn open(folder: &Path, path: &Path) -> io::Result<File> {
        let mut new = OpenOptions::new();
        match careful(new.create_new(true).write(true)).open(path) {
            Ok(file) => {
                // Some file systems have no such rights; then it is its maker's.
                let _ = share(folder, &file);
                Ok(file)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                careful(OpenOptions::new().write(true)).open(path)
            }
            Err(error) => Err(error),
        }
    }
}

/// Lets those write into a file who may write into its folder.
#[cfg(unix)]
fn share(folder: &Path, file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(folder)?.permissions().mode();
    file.set_permissions(fs::Permissions::from_mode(mode & 0o666))
}

#[cfg(not(unix))]
fn share(_: &Path, _: &File) -> io::Result<()> {
    Ok(())
}

/// How often shards have been replaced in `folder`: the length of the lock's file, which needs no room on the disk.
///
/// Who lists a folder while shards are replaced can miss both an old one and its successor. The successor's name is there
/// before the number grows, and the old one goes after that: so if the number is the same after the shards have been opened as
/// it was before they were listed, what was listed is whole.
pub(super) fn generation(folder: &Path) -> Result<u64> {
    let path = folder.join(LOCK_FILE);
    match fs::symlink_metadata(&path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io(&path, "look at")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder_though_a_child_has_the_file_open() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        assert!(Lock::take(folder.path()).is_err());
        // What a forked child has.
        let _copy = lock.0.try_clone().unwrap();
        drop(lock);
        Lock::take(folder.path()).unwrap();
    }
}
