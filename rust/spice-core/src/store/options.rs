//! When a writer commits a shard, and under which name.

use std::time::Duration;

/// When a shard is committed, and who writes it.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Commit when this many rows are buffered.
    pub rows_per_shard: Option<usize>,
    /// Commit when this many bytes are buffered.
    pub bytes_per_shard: usize,
    /// Commit when the oldest buffered row has waited this long.
    pub time_per_shard: Duration,
    /// Bytes of rows, as `f32`, that may wait to be converted; who appends more waits.
    pub queue_bytes: usize,
    /// Whether a committed shard survives a power cut. Without it the system decides when files reach the disk: rows survive
    /// the end of the process alone, and after a power cut shards may be missing or damaged, which checksums find.
    pub fsync: bool,
    /// The writer's part of the names of its shards: 1 to 64 of `A-Z a-z 0-9 . _ -`. `None` makes a unique one.
    pub writer: Option<String>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            rows_per_shard: None,
            bytes_per_shard: 64 << 20,
            time_per_shard: Duration::from_secs(30),
            queue_bytes: 64 << 20,
            fsync: true,
            writer: None,
        }
    }
}
