//! How much memory there is to use, and the refusal of what would take more.

mod groups;
mod process;

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// What nobody needs to be asked for, in bytes: to ask takes longer than it does.
const SMALL: f64 = 16e6;

/// What a run takes beside what is counted: threads' own buffers, and what a heap loses to gaps.
const MARGIN: f64 = 32e6;

/// Limits above this many bytes are how systems write "none".
const NO_LIMIT: u64 = 1 << 60;

/// Memory that can still be taken, as the narrowest limit has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    /// Bytes.
    pub bytes: f64,
    /// What limits it: a file of the system, and what it says there.
    pub limit: String,
}

/// What this process can still take: of the memory that the system has available, of each control group that it is in, and
/// of its own limits. `None` where the system does not say.
///
/// Pages of files that a group is charged for count as free: the system takes them back when they are needed.
pub fn room() -> Option<Room> {
    // Outside of a pool of threads, the question alone would start one.
    let threads = rayon::current_thread_index().map_or(1, |_| rayon::current_num_threads());
    room_below(Path::new("/"), threads)
}

/// [`room`] by the files of a system below `root`.
fn room_below(root: &Path, threads: usize) -> Option<Room> {
    let rooms = system(root).into_iter().chain(groups::rooms(root)).chain(process::rooms(root, threads));
    rooms.min_by(|a, b| a.bytes.total_cmp(&b.bytes))
}

/// Refuses what takes more memory than there is.
///
/// # Errors
/// [`Error::InvalidInput`] for `field`: `found`, the bytes `needed` for it, what is there and what limits it, and `remedy`.
pub fn check(field: &str, found: impl FnOnce() -> String, needed: f64, remedy: &str) -> Result<()> {
    if needed < SMALL { Ok(()) } else { check_in(room().as_ref(), field, found, needed, remedy) }
}

/// Refuses to start threads for which the process's own limits leave no room: an allocation that such a limit fails ends the
/// process.
///
/// # Errors
/// [`Error::InvalidInput`] for `threads`.
pub fn check_threads(threads: usize) -> Result<()> {
    let rooms = process::rooms(Path::new("/"), threads);
    let narrowest = rooms.into_iter().min_by(|a, b| a.bytes.total_cmp(&b.bytes));
    let remedy = "Raise the limit, or use fewer threads.";
    check_in(narrowest.as_ref(), "threads", || format!("{threads}"), 0.0, remedy)
}

fn check_in(
    room: Option<&Room>,
    field: &str,
    found: impl FnOnce() -> String,
    needed: f64,
    remedy: &str,
) -> Result<()> {
    match room {
        Some(room) if needed + MARGIN > room.bytes => {
            let found = format!("{}, which takes some {} of memory", found(), size(needed + MARGIN));
            let expected = format!("at most the {} that {} leaves", size(room.bytes), room.limit);
            Err(Error::invalid(field, found, expected, remedy))
        }
        _ => Ok(()),
    }
}

/// Bytes as people write them.
fn size(bytes: f64) -> String {
    if bytes < 0.95e9 { format!("{:.0} MB", bytes / 1e6) } else { format!("{:.1} GB", bytes / 1e9) }
}

/// What the system has without swapping.
fn system(root: &Path) -> Option<Room> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let bytes = kilobytes(&text, "MemAvailable:")?;
    Some(Room { bytes, limit: "/proc/meminfo (MemAvailable)".to_string() })
}

/// The bytes that a line `name: … kB` of a file of `/proc` says.
fn kilobytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes as f64 * 1024.0)
}

/// A limit in bytes; `None` if the text sets none, or none that can be read.
fn limit(text: &str) -> Option<f64> {
    let bytes: u64 = text.trim().parse().ok()?;
    (bytes < NO_LIMIT).then_some(bytes as f64)
}

#[cfg(test)]
mod tests;
