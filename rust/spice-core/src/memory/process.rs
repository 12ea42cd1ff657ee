//! A process's own limits, as `ulimit -v` and `ulimit -d` set them.

use std::fs;
use std::path::Path;

use super::{Room, kilobytes, limit};

/// (the limit's name in `/proc/self/limits`, what counts against it in `/proc/self/status`, what it is called.)
const LIMITS: [(&str, &str, &str); 2] = [
    ("Max address space", "VmSize:", "RLIMIT_AS, ulimit -v"),
    ("Max data size", "VmData:", "RLIMIT_DATA, ulimit -d"),
];

/// Bytes that a thread reserves, of which most are never touched: a stack, a heap of its own, and room for products of
/// matrices. Such limits count them all the same.
const THREAD: f64 = 72e6;

/// What each of the limits leaves beside what `threads` threads reserve.
pub(super) fn rooms(root: &Path, threads: usize) -> Vec<Room> {
    let reserved = THREAD * (threads + 1) as f64;
    let read = |name: &str| fs::read_to_string(root.join("proc/self").join(name)).unwrap_or_default();
    let (limits, status) = (read("limits"), read("status"));
    let room = |(name, taken, call): (&str, &str, &str)| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let most = limit(line.split_whitespace().next()?)?;
        let bytes = (most - kilobytes(&status, taken).unwrap_or(0.0) - reserved).max(0.0);
        let most = super::size(most);
        let limit = format!("/proc/self/limits ({call}: {most}) with {threads} threads");
        Some(Room { bytes, limit })
    };
    LIMITS.into_iter().filter_map(room).collect()
}
