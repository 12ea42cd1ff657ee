//! Rows at a scale: `spice_rs.store.pool.Pool` → the core's pool and its survey.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use spice_core::matrix::{Dtype, Pool, RowBlock};
use spice_core::monitor::Monitor;
use spice_core::rows::Position;
use spice_core::survey::Survey;
use spice_core::{Error, Result};

use crate::errors::to_py;
use crate::files::{Files, MappedFile};
use crate::store::Store;

/// The rows that all computations of the core are over.
#[derive(FromPyObject)]
pub(crate) struct PoolOptions<'py> {
    blocks: Vec<Rows<'py>>,
    dim: usize,
    index: Option<PyReadonlyArray1<'py, i64>>,
    scale: Option<PyReadonlyArray1<'py, f64>>,
    unit: bool,
    weights: Option<PyReadonlyArray1<'py, f64>>,
}

/// Rows that lie together.
#[derive(FromPyObject)]
enum Rows<'py> {
    /// An open store.
    Store(Bound<'py, Store>),
    /// Memory: cells as bytes, dtype name, number of rows.
    Array(PyReadonlyArray1<'py, u8>, String, usize),
    /// The same of a map, with its file.
    File(PyReadonlyArray1<'py, u8>, String, usize, Bound<'py, MappedFile>),
}

impl PoolOptions<'_> {
    /// The rows, of which nothing is known yet.
    pub(crate) fn open(&self) -> PyResult<Pool<'_>> {
        let mut blocks = Vec::new();
        for rows in &self.blocks {
            match rows {
                Rows::Store(store) => blocks.extend(store.get().reader.blocks().map_err(to_py)?),
                Rows::Array(cells, dtype, rows) | Rows::File(cells, dtype, rows, _) => {
                    let dtype = parse_dtype(dtype).map_err(to_py)?;
                    let bytes = cells.as_slice().map_err(|_| {
                        let expected = "contiguous rows";
                        to_py(Error::invalid(
                            "source",
                            "strided memory",
                            expected,
                            "Copy the array first.",
                        ))
                    })?;
                    blocks.push(RowBlock::new(bytes, dtype, *rows, self.dim).map_err(to_py)?);
                }
            }
        }
        let mut pool = Pool::new(blocks).map_err(to_py)?;
        if let Some(index) = &self.index {
            pool = pool.with_index(index.as_array().to_vec()).map_err(to_py)?;
        }
        if let Some(scale) = &self.scale {
            pool = pool.with_scale(numbers_of(scale)).map_err(to_py)?;
        }
        Ok(pool)
    }

    /// The files that its rows are read from.
    pub(crate) fn files(&self) -> Files {
        let mut files = Files::default();
        for rows in &self.blocks {
            match rows {
                Rows::Store(store) => files.add_store(&store.get().reader),
                Rows::File(.., file) => files.add(file.get()),
                Rows::Array(..) => {}
            }
        }
        files
    }

    /// How its rows are to be measured.
    pub(crate) fn scaling(&self) -> Scaling {
        Scaling { unit: self.unit, weights: self.weights.as_ref().map(numbers_of) }
    }
}

/// What becomes of the rows of a pool before they compete.
pub(crate) struct Scaling {
    unit: bool,
    weights: Option<Vec<f64>>,
}

impl Scaling {
    /// Reads all rows.
    pub(crate) fn survey<'a>(self, pool: Pool<'a>, monitor: &Monitor) -> Result<Survey<'a>> {
        let survey = Survey::new(pool, self.unit, monitor)?;
        match self.weights {
            Some(weights) => survey.with_weights(weights),
            None => Ok(survey),
        }
    }
}

/// Whether they are in range is for the core to say.
pub(crate) fn positions_of(positions: &PyReadonlyArray1<'_, i64>) -> Vec<Position> {
    positions.as_array().iter().map(|&position| Position::new(position as usize)).collect()
}

pub(crate) fn numbers_of(numbers: &PyReadonlyArray1<'_, f64>) -> Vec<f64> {
    numbers.as_array().to_vec()
}

fn parse_dtype(name: &str) -> Result<Dtype> {
    Dtype::from_name(name).ok_or_else(|| {
        Error::invalid("dtype", name, "float16, bfloat16, float32 or float64", "Convert the rows first.")
    })
}
