//! The bytes of a shard's file: mapped, or read where a process has no more maps to give.
//!
//! Systems limit the maps of a process (Linux to 65,530), and a store that many writers have filled for days may have more
//! shards. It has to open, if only to be compacted.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::folder::{self, FileId};
use super::mapped_file::State;
use super::mmap::Mapped;
use crate::error::{Error, Result};

/// So many files are mapped at a time; what else a process maps has to find room, too.
const MOST_MAPS: usize = 50_000;
static MAPS: AtomicUsize = AtomicUsize::new(0);

/// The bytes of a file, aligned for any cell.
pub(super) struct FileBytes {
    content: Content,
    id: Option<FileId>,
    state: State,
}

enum Content {
    Mapped(Mapped),
    /// In words, for their alignment, and how many bytes there are.
    Read(Vec<u64>, usize),
}

impl FileBytes {
    /// Opens the regular file at `path`; a link is refused.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::open_within(path, MOST_MAPS)
    }

    fn open_within(path: &Path, most_maps: usize) -> Result<Self> {
        let file = folder::open_regular(path)?;
        let found = file.metadata().map_err(Error::io(path, "open"))?;
        let (id, state) = (FileId::from_metadata(&found), State::of(&found));
        if MAPS.fetch_add(1, Ordering::Relaxed) < most_maps {
            match Mapped::of(&file, path) {
                Ok(mapped) => return Ok(Self { content: Content::Mapped(mapped), id, state }),
                // The system allows fewer.
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::OutOfMemory => {}
                Err(error) => {
                    forget_map();
                    return Err(error);
                }
            }
        }
        forget_map();
        // Without a map nothing keeps the file's identity from becoming another one's.
        Ok(Self { content: read(file, path)?, id: None, state })
    }

    /// What tells the file from others, where the system does and it is mapped.
    pub(super) fn id(&self) -> Option<FileId> {
        self.id
    }

    /// What the file was when it was opened; `None` if it is in memory, where nobody can change it.
    pub(super) fn mapped_state(&self) -> Option<State> {
        matches!(self.content, Content::Mapped(_)).then_some(self.state)
    }

    /// Tells the system that a part will be read soon, so that the disk works meanwhile; a hint.
    pub(super) fn will_need(&self, range: Range<usize>) {
        if let Content::Mapped(mapped) = &self.content {
            mapped.will_need(range);
        }
    }

    /// Gives memory that can be had again from the file back.
    pub(super) fn release(&self) {
        if let Content::Mapped(mapped) = &self.content {
            mapped.release();
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(mapped) => mapped,
            Content::Read(words, bytes) => &bytemuck::cast_slice(words)[..*bytes],
        }
    }
}

impl Drop for FileBytes {
    fn drop(&mut self) {
        if let Content::Mapped(_) = self.content {
            forget_map();
        }
    }
}

fn forget_map() {
    MAPS.fetch_sub(1, Ordering::Relaxed);
}

fn read(mut file: File, path: &Path) -> Result<Content> {
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let too_large = |_| Error::io(path, "read")(ErrorKind::FileTooLarge.into());
    let bytes = usize::try_from(length).map_err(too_large)?;
    let mut words: Vec<u64> = Vec::new();
    let refused = |_| Error::io(path, "read")(ErrorKind::OutOfMemory.into());
    words.try_reserve_exact(bytes.div_ceil(8)).map_err(refused)?;
    words.resize(bytes.div_ceil(8), 0);
    file.read_exact(&mut bytemuck::cast_slice_mut(&mut words)[..bytes])
        .map_err(Error::io(path, "read"))?;
    Ok(Content::Read(words, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_would_be_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for length in [1usize, 7, 8, 9, 4097] {
            let content: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            std::fs::write(&path, &content).unwrap();
            let [mapped, read] =
                [usize::MAX, 0].map(|most| FileBytes::open_within(&path, most).unwrap());
            assert!(matches!((&mapped.content, &read.content), (Content::Mapped(_), Content::Read(..))));
            assert_eq!((&*mapped, &*read), (&*content, &*content));
            assert_eq!(read.as_ptr().align_offset(8), 0);
            assert_eq!((mapped.id(), read.id()), (FileId::at(&path), None));
            [&mapped, &read].into_iter().for_each(FileBytes::release);
            assert_eq!(&*mapped, &*content);
        }
        assert!(FileBytes::open_within(&folder.path().join("none"), 0).is_err());
    }
}
