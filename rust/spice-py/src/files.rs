//! The files that rows are read from through maps: looked at before a pass, while it goes on and when it has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use spice_core::Result;
use spice_core::store::{self, Reader};

use crate::errors::to_py;

/// The file behind an array that numpy has mapped.
#[pyclass(frozen, module = "spice_rs._core")]
pub(crate) struct MappedFile {
    file: Arc<store::MappedFile>,
    /// Goes after the name of the map, so that the name is of no other one.
    _cells: Py<PyAny>,
}

#[pymethods]
impl MappedFile {
    #[new]
    fn new(path: PathBuf, cells: PyReadonlyArray1<'_, u8>, constant: bool) -> PyResult<Self> {
        let file = store::MappedFile::new(&path, cells.as_slice()?, constant).map_err(to_py)?;
        Ok(Self { file: Arc::new(file), _cells: cells.as_any().clone().unbind() })
    }

    /// Raises if the file has become shorter, or was written to.
    fn check(&self) -> PyResult<()> {
        self.file.check().map_err(to_py)
    }
}

/// The files of some sources.
#[derive(Default)]
pub(crate) struct Files {
    stores: Vec<Arc<Reader>>,
    files: Vec<Arc<store::MappedFile>>,
    /// When they are looked at next.
    due: Option<Instant>,
}

impl Files {
    pub(crate) fn add_store(&mut self, store: &Arc<Reader>) {
        self.stores.push(store.clone());
    }

    pub(crate) fn add(&mut self, file: &MappedFile) {
        self.files.push(file.file.clone());
    }

    /// These and others.
    pub(crate) fn and(mut self, others: Self) -> Self {
        self.stores.extend(others.stores);
        self.files.extend(others.files);
        self
    }

    /// Looks whether all files are as long as they were; of files without checksums, whether they were written to, too.
    ///
    /// Often, but not so often that looking at thousands of files takes a tenth of the time.
    pub(crate) fn check(&mut self) -> Result<()> {
        let begun = Instant::now();
        if self.due.is_some_and(|due| begun < due) {
            return Ok(());
        }
        self.stores.iter().try_for_each(|store| store.check_lengths())?;
        self.files.iter().try_for_each(|file| file.check())?;
        let took = begun.elapsed();
        let wait = if took < Duration::from_millis(1) { Duration::ZERO } else { took * 10 };
        self.due = Some(Instant::now() + wait);
        Ok(())
    }

    /// Looks whether what was read is what was opened: shards that were written to are read again, against their checksums.
    pub(crate) fn check_end(&mut self) -> Result<()> {
        self.due = None;
        self.check()?;
        self.stores.iter().try_for_each(|store| store.check_touched())
    }
}
