//! The thread that makes shards of rows: convert, checksum, write, sync, give the name.
//!
//! The caller's thread checks rows and copies them into a queue of bounded size; when that is full it waits, so that a slow
//! disk slows the caller down and takes no more memory. A shard is due when it is full or old, also while nobody appends.
//!
//! A shard that cannot be written stays in memory, and the thread stops until the caller has been told: by the next call,
//! whatever it is. The call after that lets it try again.

use std::collections::VecDeque;
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::buffer::Buffer;
use super::cells::{self, Measure};
use super::folder;
use super::known::KnownRow;
use super::observer::{Observer, observe};
use super::options::WriterOptions;
use super::schema::Schema;
use crate::error::{Error, Result};

/// Time between two calls of an observer.
const POLL: Duration = Duration::from_millis(50);

/// Checked rows on their way to a shard.
pub(super) struct Batch {
    /// One row after the other.
    pub(super) rows: Vec<f32>,
    pub(super) measures: Vec<Measure>,
    pub(super) index: Vec<i64>,
    pub(super) known: Vec<KnownRow>,
}

impl Batch {
    fn bytes(&self) -> usize {
        size_of_val(&*self.rows)
    }
}

/// What the caller's thread and the writing thread tell each other.
#[derive(Default)]
struct Orders {
    queue: VecDeque<Batch>,
    /// Bytes of rows that are not converted yet.
    waiting: usize,
    /// Rows that were handed over, that are to be on disk without delay, and that are.
    handed: u64,
    wanted: u64,
    durable: u64,
    /// What the caller has to be told.
    failed: Option<Error>,
    /// Nothing is tried again until the caller, who was told, calls once more.
    stuck: bool,
    closing: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        // No step under the lock leaves it half done.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller's side of the thread; dropping it writes what is left, and cannot say if that fails. What the caller knows
/// to have failed is not tried again then.
pub(super) struct Background {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    folder: PathBuf,
    queue_bytes: usize,
    /// A forked child has no such thread, and must not write its parent's rows a second time.
    process: u32,
}

impl Background {
    /// Starts the thread; `sequence` is the number of the first shard of the writer `name`.
    pub(super) fn start(
        folder: PathBuf,
        schema: Schema,
        options: WriterOptions,
        name: String,
        sequence: u64,
        buffer: Buffer,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let queue_bytes = options.queue_bytes;
        let path = folder.clone();
        let worker = Worker {
            shared: shared.clone(),
            folder: path,
            schema,
            options,
            name,
            sequence,
            buffer,
            current: None,
            published: 0,
            unsynced: false,
        };
        let thread = thread::Builder::new().name("spice-write".to_string());
        let thread =
            thread.spawn(move || worker.run()).map_err(Error::io(&folder, "start a thread for"))?;
        Ok(Self { shared, thread: Some(thread), folder, queue_bytes, process: std::process::id() })
    }

    /// Hands rows over, as soon as there is room for them.
    ///
    /// # Errors
    /// Why an earlier shard could not be written, and [`Error::Interrupted`]; the rows were not handed over then.
    pub(super) fn hand(&self, batch: Batch, observer: &mut Observer<'_>) -> Result<()> {
        let size = batch.bytes();
        let fits = |orders: &Orders| orders.waiting == 0 || orders.waiting + size <= self.queue_bytes;
        let mut orders = self.wait_until(fits, observer)?;
        orders.waiting += size;
        orders.handed += batch.index.len() as u64;
        orders.queue.push_back(batch);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Waits until all rows that were handed over are on disk.
    ///
    /// # Errors
    /// Why a shard could not be written; [`Error::Interrupted`], and the thread goes on.
    pub(super) fn commit(&self, observer: &mut Observer<'_>) -> Result<()> {
        let mut orders = self.resume()?;
        orders.wanted = orders.handed;
        drop(orders);
        self.shared.changed.notify_all();
        self.wait_until(|orders| orders.durable == orders.handed, observer).map(drop)
    }

    /// Tells the caller what has failed, or lets the thread try again what the caller knows of.
    fn resume(&self) -> Result<MutexGuard<'_, Orders>> {
        if self.process != std::process::id() {
            return Err(Error::invalid(
                "writer",
                "a writer that another process has created",
                "one of this process",
                "Open a writer in each process, after the fork.",
            ));
        }
        let mut orders = self.shared.lock();
        if let Some(error) = orders.failed.take() {
            return Err(error);
        }
        if mem::take(&mut orders.stuck) {
            self.shared.changed.notify_all();
        }
        Ok(orders)
    }

    fn wait_until(
        &self,
        done: impl Fn(&Orders) -> bool,
        observer: &mut Observer<'_>,
    ) -> Result<MutexGuard<'_, Orders>> {
        let mut orders = self.resume()?;
        loop {
            if let Some(error) = orders.failed.take() {
                return Err(error);
            }
            if done(&orders) {
                return Ok(orders);
            }
            if orders.ended {
                let ended = std::io::Error::other("the writing thread has ended");
                return Err(Error::io(&self.folder, "write")(ended));
            }
            let waited = self.shared.changed.wait_timeout(orders, POLL);
            orders = waited.unwrap_or_else(PoisonError::into_inner).0;
            if done(&orders) {
                continue;
            }
            // Whoever looks may take time, and may want to write from another thread.
            let (durable, handed) = (orders.durable, orders.handed);
            drop(orders);
            observe(observer, durable as usize, handed as usize)?;
            orders = self.shared.lock();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.process != std::process::id() {
            // There is no such thread here, and nobody to unlock what it held.
            return mem::forget(thread);
        }
        let mut orders = self.shared.lock();
        orders.closing = true;
        // A failure that the caller knows of is final here: by now another writer may have written the same rows.
        orders.stuck &= orders.failed.is_none();
        drop(orders);
        self.shared.changed.notify_all();
        // A panic of the thread has been seen by whoever waited for it.
        let _ = thread.join();
    }
}

/// The thread's side.
struct Worker {
    shared: Arc<Shared>,
    folder: PathBuf,
    schema: Schema,
    options: WriterOptions,
    name: String,
    sequence: u64,
    buffer: Buffer,
    /// A batch of which not all rows are in the buffer, and how many are.
    current: Option<(Batch, usize)>,
    /// Rows that have become part of the store.
    published: u64,
    /// Whether the folder may forget names of shards.
    unsynced: bool,
}

impl Worker {
    fn run(mut self) {
        let shared = self.shared.clone();
        let _end = OnDrop(|| {
            shared.lock().ended = true;
            shared.changed.notify_all();
        });
        while let Some(due) = self.next() {
            if let Err(error) = self.work(due) {
                let mut orders = self.shared.lock();
                orders.failed = Some(error);
                orders.stuck = true;
                drop(orders);
                self.shared.changed.notify_all();
            }
        }
    }

    /// Waits for something to do: rows, or (true) a shard that is due. `None` when all is done.
    fn next(&mut self) -> Option<bool> {
        let mut orders = self.shared.lock();
        loop {
            if !orders.stuck {
                if self.current.is_none() {
                    self.current = orders.queue.pop_front().map(|batch| (batch, 0));
                }
                if self.current.is_some() {
                    return Some(false);
                }
                let left = !self.buffer.is_empty() || self.unsynced;
                if left && (orders.closing || orders.wanted > orders.durable || self.is_old()) {
                    return Some(true);
                }
            }
            if orders.closing {
                return None;
            }
            let limit = (!orders.stuck && !self.buffer.is_empty())
                .then(|| self.options.time_per_shard.saturating_sub(self.buffer.age()));
            orders = match limit {
                Some(limit) => {
                    let waited = self.shared.changed.wait_timeout(orders, limit);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Converts the rows of the current batch and commits what is full or old; everything if it is `due`.
    fn work(&mut self, due: bool) -> Result<()> {
        while let Some((batch, next)) = &mut self.current {
            let dim = self.schema.dim;
            let rows = batch.rows.chunks_exact(dim).zip(&batch.measures).enumerate();
            let mut full = is_full(&self.buffer, &self.options);
            for (row, (cells, measure)) in rows.skip(*next) {
                if full {
                    break;
                }
                self.buffer.push(
                    cells,
                    cells::scale_for(self.schema.dtype, measure.largest),
                    measure.norm as f32,
                    batch.index[row],
                    batch.known[row],
                );
                *next += 1;
                full = is_full(&self.buffer, &self.options);
            }
            if *next == batch.index.len() {
                self.shared.lock().waiting -= batch.bytes();
                self.shared.changed.notify_all();
                self.current = None;
            }
            if full {
                self.commit()?;
            }
        }
        if due || self.is_old() { self.commit() } else { Ok(()) }
    }

    /// Whether the oldest row has waited for long enough.
    fn is_old(&self) -> bool {
        !self.buffer.is_empty() && self.buffer.age() >= self.options.time_per_shard
    }

    /// Makes the buffer a shard. If that fails the rows stay; if the folder cannot be synced, that is tried again.
    fn commit(&mut self) -> Result<()> {
        let rows = self.buffer.rows();
        if rows > 0 {
            let file = self.buffer.write(&self.folder, &self.schema, &[], self.options.fsync)?;
            file.publish_shard(&self.name, &mut self.sequence)?;
            self.buffer.clear();
            self.published += rows as u64;
            self.unsynced = true;
        }
        if self.unsynced && self.options.fsync {
            folder::sync_folder(&self.folder)?;
        }
        self.unsynced = false;
        self.shared.lock().durable = self.published;
        self.shared.changed.notify_all();
        Ok(())
    }
}

fn is_full(buffer: &Buffer, options: &WriterOptions) -> bool {
    options.rows_per_shard.is_some_and(|rows| buffer.rows() >= rows)
        || buffer.rows() > 0 && buffer.bytes() >= options.bytes_per_shard
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
