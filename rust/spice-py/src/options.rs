//! What a run is asked for: `spice_rs.selection.options`'s dataclasses → the core's own structs.

use std::collections::HashMap;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use spice_core::Error;
use spice_core::rows::Position;
use spice_core::selection::{Conditions, Fisher, Limits, Method, Search, Settings};

use crate::errors::to_py;
use crate::pool::{numbers_of, positions_of};

/// `spice_rs.selection.options.Objective`: the settings.
#[derive(FromPyObject)]
pub(crate) struct ObjectiveOptions {
    pub(crate) k: Option<usize>,
    alpha: f64,
    conflict_penalty: f64,
    early_stop: Option<f64>,
    fisher: String,
    method: String,
    search: String,
    hot_rows: Option<usize>,
    epsilon: Option<f64>,
    seed: Option<u64>,
}

impl ObjectiveOptions {
    pub(crate) fn settings(&self) -> PyResult<Settings> {
        let defaults = Settings::default();
        Ok(Settings {
            alpha: self.alpha,
            conflict_penalty: self.conflict_penalty,
            early_stop: self.early_stop,
            fisher: parse(
                "fisher",
                &self.fisher,
                &[("full", Fisher::Full), ("diagonal", Fisher::Diagonal), ("scalar", Fisher::Scalar)],
            )?,
            method: parse(
                "method",
                &self.method,
                &[
                    ("greedy", Method::Greedy),
                    ("top_k", Method::TopK),
                    ("epsilon_lazy", Method::EpsilonLazy),
                    ("stochastic", Method::Stochastic),
                ],
            )?,
            search: parse(
                "search",
                &self.search,
                &[("lazy", Search::Lazy), ("lazy_gain", Search::LazyGain), ("eager", Search::Eager)],
            )?,
            hot_rows: self.hot_rows,
            epsilon: self.epsilon.unwrap_or(defaults.epsilon),
            seed: self.seed.unwrap_or(defaults.seed),
        })
    }
}

/// `spice_rs.selection.options.Windows`.
#[derive(FromPyObject)]
pub(crate) struct WindowOptions<'py> {
    order: PyReadonlyArray1<'py, i64>,
    pub(crate) size: usize,
    pub(crate) per_window: usize,
}

impl WindowOptions<'_> {
    /// All rows, window after window.
    pub(crate) fn positions(&self) -> Vec<Position> {
        positions_of(&self.order)
    }
}

/// `spice_rs.selection.options.Constraints`, by position of the pool.
#[derive(FromPyObject)]
pub(crate) struct ConstraintOptions<'py> {
    per_row: HashMap<String, PyReadonlyArray1<'py, f64>>,
    initial: Option<PyReadonlyArray1<'py, i64>>,
    include: Option<PyReadonlyArray1<'py, i64>>,
    exclude: Option<PyReadonlyArray1<'py, i64>>,
    groups: Option<PyReadonlyArray1<'py, i64>>,
    minima: Option<PyReadonlyArray1<'py, f64>>,
    maxima: Option<PyReadonlyArray1<'py, f64>>,
    costs: Option<PyReadonlyArray1<'py, f64>>,
    budget: Option<f64>,
    scalars: HashMap<String, Option<f64>>,
}

/// The rules alone: what may be picked before each of some picks, and what rows are worth.
///
/// (m + 1, g) row after row: the largest cost of a row of each group that may be picked before each of the picks at
/// `positions`, and after all; None without limits. `k`: what all groups together may have without a budget of cost.
#[pyfunction]
#[pyo3(signature = (constraints, *, positions, k))]
pub(crate) fn allowances<'py>(
    py: Python<'py>,
    constraints: ConstraintOptions<'py>,
    positions: PyReadonlyArray1<'py, i64>,
    k: usize,
) -> PyResult<Option<Bound<'py, PyArray1<f64>>>> {
    let Some(limits) = constraints.conditions(k)?.limits else { return Ok(None) };
    let found = limits.allowances(&positions_of(&positions)).map_err(to_py)?;
    Ok(Some(found.into_pyarray(py)))
}

/// The scores of the rows at `positions` whose Δ are `gains` and whose conflicts are `conflicts`, (m,) each.
#[pyfunction]
#[pyo3(signature = (constraints, *, positions, gains, conflicts, conflict_penalty))]
pub(crate) fn scores<'py>(
    py: Python<'py>,
    constraints: ConstraintOptions<'py>,
    positions: PyReadonlyArray1<'py, i64>,
    gains: PyReadonlyArray1<'py, f64>,
    conflicts: PyReadonlyArray1<'py, f64>,
    conflict_penalty: f64,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (positions, gains, conflicts) =
        (positions_of(&positions), numbers_of(&gains), numbers_of(&conflicts));
    let found = constraints.conditions(0)?.scores(&positions, &gains, &conflicts, conflict_penalty);
    Ok(found.map_err(to_py)?.into_pyarray(py))
}

/// Constraints by name, of which each is to be taken.
struct Named<T>(HashMap<String, T>);

impl<T> Named<T> {
    fn take(&mut self, name: &str) -> Option<T> {
        self.0.remove(name)
    }

    fn all_taken(&self) -> PyResult<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                let expected = "constraints that the core knows";
                Err(to_py(Error::invalid("constraints", name, expected, "Build the extension again.")))
            }
        }
    }
}

impl ConstraintOptions<'_> {
    /// `k`: what all groups together may have where there is no budget of cost.
    ///
    /// # Errors
    /// A constraint that nobody takes: the core does not know it.
    pub(crate) fn conditions(&self, k: usize) -> PyResult<Conditions> {
        let mut scalars = Named(self.scalars.clone());
        let mut per_row = Named(
            self.per_row.iter().map(|(name, values)| (name.clone(), numbers_of(values))).collect(),
        );
        let listed = |positions: &Option<PyReadonlyArray1<'_, i64>>| {
            positions.as_ref().map_or_else(Vec::new, positions_of)
        };
        let limited = self.groups.is_some() || self.budget.is_some();
        let conditions = Conditions {
            multiplier: per_row.take("multiplier"),
            bonus: per_row.take("bonus"),
            initial: listed(&self.initial),
            include: listed(&self.include),
            exclude: listed(&self.exclude),
            limits: limited.then(|| Limits {
                groups: self.groups.as_ref().map(groups_of),
                minima: self.minima.as_ref().map_or_else(|| vec![0.0], numbers_of),
                maxima: self.maxima.as_ref().map_or_else(|| vec![f64::INFINITY], numbers_of),
                costs: self.costs.as_ref().map(numbers_of),
                budget: self.budget.unwrap_or(k as f64),
            }),
            max_similarity: scalars.take("max_similarity").flatten(),
        };
        scalars.all_taken()?;
        per_row.all_taken()?;
        Ok(conditions)
    }
}

/// Numbers of groups; whether they are in range is for the core to say.
fn groups_of(groups: &PyReadonlyArray1<'_, i64>) -> Vec<usize> {
    groups.as_array().iter().map(|&group| group as usize).collect()
}

pub(crate) fn parse<T: Copy>(field: &str, found: &str, legal: &[(&str, T)]) -> PyResult<T> {
    if let Some((_, value)) = legal.iter().find(|(name, _)| *name == found) {
        return Ok(*value);
    }
    let names: Vec<String> = legal.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let error = Error::invalid(field, format!("{found:?}"), names.join(" or "), "Choose one of these.");
    Err(to_py(error))
}
