//! The gradient store for `spice_rs.store`: arrays to slices, the GIL released while files are read or written.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2};
use pyo3::prelude::*;
use spice_core::matrix::Dtype;
use spice_core::store::{Known, Observer, Reader, Reduction, Schema, Writer, WriterOptions};
use spice_core::{Error, Result};

use crate::errors::to_py;

/// Values read between two looks at pending signals.
const VALUES_PER_CHUNK: usize = 4 << 20;

/// JSON of a result of the core.
pub(crate) fn json(value: &impl serde::Serialize) -> PyResult<String> {
    serde_json::to_string(value)
        .map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))
}

/// Runs `work` without the GIL; its observer looks for signals and calls `progress(done, total)`.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&mut Observer<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut observer = |done: usize, total: usize| {
        Python::attach(|py| {
            let told = py.check_signals().and_then(|()| match &progress {
                Some(progress) => progress.call1(py, (done, total)).map(drop),
                None => Ok(()),
            });
            match told {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    // `to_py` picks it up when the interruption has come back to it.
                    error.restore(py);
                    ControlFlow::Break(())
                }
            }
        })
    };
    py.detach(|| work(&mut observer)).map_err(to_py)
}

/// An open store.
#[pyclass(frozen, module = "spice_rs._core")]
pub(crate) struct Store {
    /// For the selection, which takes its rows from here.
    pub(crate) reader: Arc<Reader>,
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (path, memory_limit=None))]
    fn new(py: Python<'_>, path: PathBuf, memory_limit: Option<usize>) -> PyResult<Self> {
        let reader = py.detach(|| Reader::open_within(&path, memory_limit)).map_err(to_py)?;
        Ok(Self { reader: Arc::new(reader) })
    }

    fn __len__(&self) -> usize {
        self.reader.len()
    }

    #[getter]
    fn dim(&self) -> usize {
        self.reader.dim()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.reader.dtype().name()
    }

    #[getter]
    fn reduction(&self) -> Option<&'static str> {
        self.reader.reduction().map(Reduction::name)
    }

    #[getter]
    fn rows_at_a_time(&self) -> usize {
        self.reader.rows_at_a_time()
    }

    #[getter]
    fn fingerprint(&self) -> String {
        self.reader.fingerprint()
    }

    #[getter]
    fn index<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_slice(py, self.reader.index())
    }

    #[getter]
    fn scale<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, self.reader.scale())
    }

    #[getter]
    fn norm<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, self.reader.norm())
    }

    #[getter]
    fn loss<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f32>>> {
        self.reader.loss().map(|values| PyArray1::from_slice(py, values))
    }

    #[getter]
    fn num_tokens<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<i32>>> {
        self.reader.num_tokens().map(|values| PyArray1::from_slice(py, values))
    }

    #[getter]
    fn record<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<i64>>> {
        self.reader.record().map(|values| PyArray1::from_slice(py, values))
    }

    /// All that `info()` says, as JSON.
    fn info(&self) -> PyResult<String> {
        json(&self.reader.info())
    }

    /// Fills `out`, a row for each position.
    fn read(
        &self,
        py: Python<'_>,
        positions: PyReadonlyArray1<'_, i64>,
        mut out: PyReadwriteArray2<'_, f32>,
    ) -> PyResult<()> {
        let dim = self.reader.dim();
        // The column is copied once, behind a lock. With the GIL: nobody forks meanwhile, and no child finds it held for good.
        self.reader.scale();
        // A negative position becomes one that no store has.
        let positions: Vec<usize> = positions
            .as_array()
            .iter()
            .map(|&position| usize::try_from(position).unwrap_or(usize::MAX))
            .collect();
        let most = self.reader.rows_at_a_time();
        if positions.len() > most {
            let found = format!("{} rows of {dim} columns", positions.len());
            let expected = format!("at most {most} at a time, for which memory_limit leaves room");
            let remedy = "Read fewer at a time, or allow more.";
            return Err(to_py(Error::invalid("positions", found, expected, remedy)));
        }
        let out = out.as_slice_mut()?;
        if positions.len().checked_mul(dim) != Some(out.len()) {
            // The core has the words for it.
            return self.reader.read(&positions, out).map_err(to_py);
        }
        let rows_per_chunk = (VALUES_PER_CHUNK / dim).max(1);
        for (positions, out) in
            positions.chunks(rows_per_chunk).zip(out.chunks_mut(rows_per_chunk.saturating_mul(dim)))
        {
            py.detach(|| self.reader.read(positions, out)).map_err(to_py)?;
            py.check_signals()?;
        }
        Ok(())
    }

    /// What was checked, as JSON.
    fn verify(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<String> {
        json(&watched(py, progress, |observer| self.reader.verify(observer))?)
    }
}

/// `spice_rs.store.options.Schema`: what a store's rows are.
#[derive(FromPyObject)]
pub(crate) struct SchemaOptions {
    dim: usize,
    dtype: String,
    reduction: Option<String>,
    provenance: String,
}

impl SchemaOptions {
    fn schema(&self) -> Result<Schema> {
        schema(self.dim, &self.dtype, self.reduction.as_deref(), &self.provenance)
    }
}

/// `spice_rs.store.options.Shards`: when a shard is committed, and who writes it.
#[derive(FromPyObject)]
pub(crate) struct ShardOptions {
    rows: Option<usize>,
    bytes: Option<usize>,
    seconds: Option<f64>,
    fsync: bool,
    writer: Option<String>,
}

impl ShardOptions {
    fn options(self) -> Result<WriterOptions> {
        let defaults = WriterOptions::default();
        let time_per_shard = match self.seconds {
            None => defaults.time_per_shard,
            Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| {
                Error::invalid("seconds_per_shard", seconds, error, "Give seconds, 0 or more.")
            })?,
        };
        Ok(WriterOptions {
            rows_per_shard: self.rows,
            bytes_per_shard: self.bytes.unwrap_or(defaults.bytes_per_shard),
            time_per_shard,
            fsync: self.fsync,
            writer: self.writer,
            ..defaults
        })
    }
}

/// A writer into a store; closed once, by `close`.
#[pyclass(frozen, module = "spice_rs._core")]
pub(crate) struct StoreWriter {
    writer: Mutex<Option<Writer>>,
    /// Who has the writer: the process, or the last one that had it, and the number of the thread, 0 for none.
    process: AtomicU32,
    thread: AtomicU64,
}

impl StoreWriter {
    /// Runs `work` on the writer, without the GIL, so that waiting for another thread blocks nobody; signals are looked for
    /// while it waits.
    fn watched<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Option<Writer>, &mut Observer<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        watched(py, None, |observer| {
            let mut writer = self.lock(observer)?;
            let result = work(&mut writer, observer);
            self.hold(0);
            result
        })
    }

    /// [`Self::watched`] with an open writer.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Writer, &mut Observer<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.watched(py, |writer, observer| match writer {
            Some(writer) => work(writer, observer),
            None => Err(Error::invalid(
                "writer",
                "a closed writer",
                "an open one",
                "Call GradientStore.create again to append more rows.",
            )),
        })
    }

    /// Waits for the writer, which another thread may have.
    ///
    /// Whoever can never get it is told: a signal's handler that runs in the middle of a call of its own thread, and a child
    /// that was forked while another thread had it.
    fn lock(&self, observer: &mut Observer<'_>) -> Result<MutexGuard<'_, Option<Writer>>> {
        const POLL: Duration = Duration::from_millis(5);
        loop {
            // A panic in the middle of an append is a bug; what was appended before is still whole.
            let guard = match self.writer.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if let Some(guard) = guard {
                self.hold(this_thread());
                return Ok(guard);
            }
            if self.process.load(Ordering::Acquire) != std::process::id() {
                return Err(Error::invalid(
                    "writer",
                    "a writer that another process has created",
                    "one of this process",
                    "Open a writer in each process, after the fork.",
                ));
            }
            if self.thread.load(Ordering::Acquire) == this_thread() {
                return Err(Error::invalid(
                    "writer",
                    "a call in the middle of another one of this thread",
                    "one at a time",
                    "Let the signal's handler set a flag or raise, and use the writer when the call has returned.",
                ));
            }
            if observer(0, 0).is_break() {
                return Err(Error::Interrupted);
            }
            thread::sleep(POLL);
        }
    }

    fn hold(&self, thread: u64) {
        self.process.store(std::process::id(), Ordering::Release);
        self.thread.store(thread, Ordering::Release);
    }
}

/// A number above 0 that no other thread of this process has.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}

#[pymethods]
impl StoreWriter {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        schema: SchemaOptions,
        shards: ShardOptions,
    ) -> PyResult<Self> {
        let open = || Writer::create(&path, schema.schema()?, shards.options()?);
        let writer = py.detach(open).map_err(to_py)?;
        let process = AtomicU32::new(std::process::id());
        Ok(Self { writer: Mutex::new(Some(writer)), process, thread: AtomicU64::new(0) })
    }

    fn append(
        &self,
        py: Python<'_>,
        rows: PyReadonlyArray2<'_, f32>,
        index: PyReadonlyArray1<'_, i64>,
        num_tokens: Option<PyReadonlyArray1<'_, i32>>,
        loss: Option<PyReadonlyArray1<'_, f32>>,
        record: Option<PyReadonlyArray1<'_, i64>>,
    ) -> PyResult<()> {
        let (rows, index) = (rows.as_slice()?, index.as_slice()?);
        let known = Known {
            num_tokens: num_tokens.as_ref().map(|values| values.as_slice()).transpose()?,
            loss: loss.as_ref().map(|values| values.as_slice()).transpose()?,
            record: record.as_ref().map(|values| values.as_slice()).transpose()?,
        };
        self.with(py, |writer, observer| writer.append_observed(rows, index, known, observer))
    }

    fn contains<'py>(
        &self,
        py: Python<'py>,
        index: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let index = index.as_slice()?;
        let there = self.with(py, |writer, _| {
            Ok(index.iter().map(|&row| writer.contains(row)).collect::<Vec<bool>>())
        })?;
        Ok(there.into_pyarray(py))
    }

    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Writer::commit_observed)
    }

    /// Commits and closes; closing again does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.watched(py, |writer, observer| {
            if let Some(open) = writer {
                // Stays open if this fails, so that it can be tried again.
                open.commit_observed(observer)?;
                *writer = None;
            }
            Ok(())
        })
    }
}

/// A dtype by its name.
pub(crate) fn stored_dtype(name: &str) -> Result<Dtype> {
    Dtype::from_name(name).filter(|dtype| Schema::DTYPES.contains(dtype)).ok_or_else(|| {
        Error::invalid(
            "dtype",
            format!("{name:?}"),
            "\"int8\", \"float16\", \"bfloat16\" or \"float32\"",
            "Choose one of these.",
        )
    })
}

/// The schema from Python's arguments; `provenance` is JSON.
fn schema(dim: usize, dtype: &str, reduction: Option<&str>, provenance: &str) -> Result<Schema> {
    let unknown = |field: &str, found: &dyn std::fmt::Display, expected: &str| {
        Error::invalid(field, found, expected, "Choose one of these.")
    };
    let dtype = stored_dtype(dtype)?;
    let reduction = reduction
        .map(|name| {
            Reduction::from_name(name)
                .ok_or_else(|| unknown("reduction", &format!("{name:?}"), "\"sum\", \"mean\" or None"))
        })
        .transpose()?;
    let provenance = serde_json::from_str(provenance).map_err(|error| {
        Error::invalid("provenance", error, "a JSON object", "Record names, numbers and hashes.")
    })?;
    Ok(Schema { dim, dtype, reduction, provenance })
}
