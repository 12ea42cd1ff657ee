//! Greedy selection of the rows with the most Fisher information and the least conflict.
//!
//! At every pick the row with the largest score Δ_x(S) − λ·conflict_x(S) joins the selected set S;
//! equal scores go to the lowest dataset index. `full` is the paper's objective and its search;
//! `objective` knows the released code's readings of Δ, for which `eager` and `lazy` find the best row;
//! `conflict` knows the penalty and `run` what a pick changes. An eager and a lazy search find the same
//! rows, bit for bit. The method is that of *SPICE:
//! Submodular Penalized Information-Conflict Selection*, arXiv 2601.23155.

mod conflict;
mod eager;
mod full;
mod greedy;
mod lazy;
mod objective;
mod run;
mod survey;
mod top_k;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::linalg::{Cholesky, add_outer_products};
use crate::monitor::Monitor;
use greedy::Greedy;
use objective::{DiagonalFisher, FixedGain, Objective};
use run::Run;
pub use survey::Survey;

/// Which reading of the Fisher information Δ is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fisher {
    /// The paper's: Δ = log(1 + α gᵀ(I + αF)⁻¹g).
    Full,
    /// The released code's diagonal of fourth powers; not the paper's formula.
    Diagonal,
    /// The released code's constant: Δ = log(1 + α‖g‖²/(1 + α)).
    Scalar,
}

/// How rows compete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One pick at a time, each changing the gains of the rest.
    Greedy,
    /// The k largest Δ(∅); no interaction and no penalty.
    TopK,
}

/// How the best row of a greedy step is found. The picks do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Every row is evaluated at every pick: the oracle and the baseline.
    Eager,
    /// Rows are evaluated while an earlier, larger Δ keeps them in the running.
    Lazy,
}

/// Everything that decides a selection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Weight α of the Fisher information; positive.
    pub alpha: f64,
    /// Weight λ of the conflict penalty; not negative.
    pub conflict_penalty: f64,
    /// Stop once the best row's Δ is at most this fraction ω of the first pick's; inside (0, 1).
    pub early_stop: Option<f64>,
    /// The reading of the Fisher information.
    pub fisher: Fisher,
    /// How rows compete.
    pub method: Method,
    /// How the best row is found.
    pub search: Search,
}

impl Settings {
    /// # Errors
    /// [`Error::InvalidInput`] naming the setting that is out of range.
    fn check(&self) -> Result<()> {
        let number = |field: &str, value: f64, legal: bool, expected: &str, remedy: &str| {
            if legal { Ok(()) } else { Err(Error::invalid(field, value, expected, remedy)) }
        };
        let (alpha, penalty) = (self.alpha, self.conflict_penalty);
        check_alpha(alpha)?;
        let legal = penalty.is_finite() && penalty >= 0.0;
        let remedy = "The paper uses 0.1; 0 switches the penalty off.";
        number("conflict_penalty", penalty, legal, "a number of at least 0", remedy)?;
        let omega = self.early_stop.unwrap_or(0.5);
        let remedy = "The paper uses 0.5; None switches early stop off.";
        number(
            "early_stop",
            omega,
            omega > 0.0 && omega < 1.0,
            "a number between 0 and 1, both excluded",
            remedy,
        )
    }
}

/// One selected row and the numbers that selected it.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    /// Row of the pool.
    pub row: usize,
    /// The row's dataset index.
    pub index: i64,
    /// Δ_x(S), the marginal gain, in nats.
    pub gain: f64,
    /// log(1 + α‖g‖²): the full Δ_x(∅), in nats.
    pub base: f64,
    /// conflict_x(S), in [0, 1].
    pub conflict: f64,
    /// Δ − λ·conflict (for [`Method::TopK`]: Δ).
    pub score: f64,
    /// Whether some other row had a larger Δ: the penalty decided.
    pub overruled: bool,
    /// Rows evaluated to find it.
    pub rows_read: u64,
}

/// Why a selection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// As many rows as asked for.
    Budget,
    /// The best Δ fell to ω times the first.
    EarlyStop,
    /// No row was left.
    Exhausted,
}

/// The selected rows in pick order.
#[derive(Clone, Debug)]
pub struct Selection {
    /// One entry per selected row.
    pub picks: Vec<Pick>,
    /// Why the last (with windows: any) greedy run ended before it had its budget, or that it had it.
    pub stop: StopReason,
    /// U(S) = log det(I + αF_S) of all picks, in nats, whatever the mode.
    pub log_det: f64,
}

/// Selects up to `budget` rows of the whole pool; all of them if `budget` is `None`.
///
/// # Errors
/// [`Error::InvalidInput`] if a setting or the budget is out of range; [`Error::Interrupted`].
pub fn select(
    survey: &Survey<'_>,
    settings: &Settings,
    budget: Option<usize>,
    monitor: &Monitor,
) -> Result<Selection> {
    check(survey, settings)?;
    let n = survey.len();
    if budget.is_some_and(|k| k == 0 || k > n) {
        return Err(Error::invalid(
            "k",
            budget.unwrap_or(0),
            format!("a number from 1 to {n}, the rows of the source"),
            "Ask for fewer rows, or for at least one.",
        ));
    }
    let rows = (0..n).collect();
    let (picks, mut stop) = run(survey, settings, rows, budget.unwrap_or(n), monitor)?;
    if budget.is_none() && stop == StopReason::Budget {
        stop = StopReason::Exhausted;
    }
    let log_det = match (settings.method, settings.fisher) {
        // det(M_j) = det(M_{j−1})(1 + αq): the gains add up to U, but for what rounding has taken from each.
        (Method::Greedy, Fisher::Full) if settings.alpha * largest(survey) < 1e4 => {
            picks.iter().map(|pick| pick.gain).sum()
        }
        _ => log_det(survey, settings.alpha, &rows_of(&picks), monitor)?,
    };
    Ok(Selection { picks, stop, log_det })
}

/// Selects `per_window` rows of every window on its own, F and the mean starting anew in each.
///
/// `windows` lists disjoint sets of rows; a window with fewer rows than `per_window` gives all.
///
/// # Errors
/// [`Error::InvalidInput`] if a setting, `per_window` or a row is out of range; [`Error::Interrupted`].
pub fn select_windows(
    survey: &Survey<'_>,
    settings: &Settings,
    windows: &[&[usize]],
    per_window: usize,
    monitor: &Monitor,
) -> Result<Selection> {
    check(survey, settings)?;
    let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
    if per_window == 0 || per_window > longest {
        return Err(Error::invalid(
            "select_per_window",
            per_window,
            format!("a number from 1 to {longest}, the rows of a window"),
            "Ask for fewer rows, or use wider windows.",
        ));
    }
    windows.iter().try_for_each(|window| check_rows(survey, window))?;
    let parts = windows
        .par_iter()
        .map(|window| {
            let budget = per_window.min(window.len());
            run(survey, settings, window.to_vec(), budget, monitor)
        })
        .collect::<Result<Vec<_>>>()?;
    let early = parts.iter().any(|(_, stop)| *stop == StopReason::EarlyStop);
    let stop = if early { StopReason::EarlyStop } else { StopReason::Budget };
    let picks: Vec<Pick> = parts.into_iter().flat_map(|(picks, _)| picks).collect();
    let log_det = log_det(survey, settings.alpha, &rows_of(&picks), monitor)?;
    Ok(Selection { picks, stop, log_det })
}

fn rows_of(picks: &[Pick]) -> Vec<usize> {
    picks.iter().map(|pick| pick.row).collect()
}

fn check_alpha(alpha: f64) -> Result<()> {
    if alpha.is_finite() && alpha > 0.0 {
        return Ok(());
    }
    Err(Error::invalid("alpha", alpha, "a positive number", "The paper uses alpha=1."))
}

fn check_rows(survey: &Survey<'_>, rows: &[usize]) -> Result<()> {
    match rows.iter().find(|&&row| row >= survey.len()) {
        None => Ok(()),
        Some(row) => Err(Error::invalid(
            "rows",
            row,
            format!("rows from 0 to {}", survey.len() - 1),
            "Name rows of the source.",
        )),
    }
}

/// Checks the settings, alone and against the scale of the rows.
fn check(survey: &Survey<'_>, settings: &Settings) -> Result<()> {
    settings.check()?;
    check_scale(survey, settings.alpha)
}

/// Largest α‖g‖²: beyond, the I of I + αF is lost in the rounding of αF.
const LARGEST_SIGNAL: f64 = 1e13;

fn largest(survey: &Survey<'_>) -> f64 {
    survey.norm_sq().iter().copied().fold(0.0, f64::max)
}

fn check_scale(survey: &Survey<'_>, alpha: f64) -> Result<()> {
    let largest = alpha * largest(survey);
    if largest <= LARGEST_SIGNAL {
        return Ok(());
    }
    Err(Error::invalid(
        "alpha",
        format!("{alpha} with rows up to alpha·‖g‖² = {largest:e}"),
        format!("at most {LARGEST_SIGNAL:e}: beyond, float64 loses the 1 in 1 + alpha·‖g‖²"),
        "Lower alpha, or use normalize=\"unit\".",
    ))
}

/// One greedy run over `rows`.
fn run(
    survey: &Survey<'_>,
    settings: &Settings,
    rows: Vec<usize>,
    budget: usize,
    monitor: &Monitor,
) -> Result<(Vec<Pick>, StopReason)> {
    let (kernels, alpha, dim) = (survey.kernels(), settings.alpha, survey.dim());
    if settings.method == Method::TopK {
        let factor = if settings.fisher == Fisher::Scalar { 1.0 / (1.0 + alpha) } else { 1.0 };
        let run = Run::new(survey, settings, 0.0, monitor);
        return top_k::search(Greedy::new(run, FixedGain { factor }), rows, budget);
    }
    let run = Run::new(survey, settings, settings.conflict_penalty, monitor);
    let search = settings.search;
    match settings.fisher {
        Fisher::Full => {
            let strategy = full::Strategy {
                exhaustive: search == Search::Eager,
                capacity: None,
                angles: search != Search::Eager,
            };
            full::search(run, rows, budget, strategy)
        }
        Fisher::Diagonal => {
            one_by_one(Greedy::new(run, DiagonalFisher::new(kernels, alpha, dim)), search, rows, budget)
        }
        Fisher::Scalar => {
            one_by_one(Greedy::new(run, FixedGain { factor: 1.0 / (1.0 + alpha) }), search, rows, budget)
        }
    }
}

fn one_by_one<O: Objective>(
    greedy: Greedy<'_, O>,
    search: Search,
    rows: Vec<usize>,
    budget: usize,
) -> Result<(Vec<Pick>, StopReason)> {
    match search {
        Search::Eager => eager::search(greedy, rows, budget),
        Search::Lazy => lazy::search(greedy, rows, budget),
    }
}

/// U(S) = log det(I + αF_S) of any rows, by the smaller of the two Gram matrices.
///
/// # Errors
/// [`Error::InvalidInput`] if a row is out of range or α is not positive; [`Error::Interrupted`].
pub fn log_det(survey: &Survey<'_>, alpha: f64, rows: &[usize], monitor: &Monitor) -> Result<f64> {
    check_alpha(alpha)?;
    check_scale(survey, alpha)?;
    check_rows(survey, rows)?;
    if rows.is_empty() {
        return Ok(0.0);
    }
    let (dim, count) = (survey.dim(), rows.len());
    let size = dim.min(count);
    let mut matrix = vec![0.0; size * size];
    (0..size).for_each(|i| matrix[i * size + i] = 1.0);
    let mut cells = vec![0.0; dim];
    if dim <= count {
        for batch in rows.chunks(256) {
            monitor.check()?;
            cells.resize(batch.len() * dim, 0.0);
            for (&row, cells) in batch.iter().zip(cells.chunks_exact_mut(dim)) {
                survey.load(row, cells);
            }
            add_outer_products(&mut matrix, dim, &cells, alpha);
        }
    } else {
        // G Gᵀ in bands of columns: a band, transposed, is a list of rows of `count` cells.
        let band = (1 << 22) / count.max(1) + 1;
        for first in (0..dim).step_by(band) {
            monitor.check()?;
            let width = band.min(dim - first);
            let mut columns = vec![0.0; width * count];
            for (i, &row) in rows.iter().enumerate() {
                survey.load(row, &mut cells);
                for (j, cell) in cells[first..first + width].iter().enumerate() {
                    columns[j * count + i] = *cell;
                }
            }
            add_outer_products(&mut matrix, count, &columns, alpha);
        }
    }
    let factor = Cholesky::new(matrix, size, || monitor.check())?.ok_or_else(|| {
        Error::invalid(
            "alpha",
            alpha,
            "I + alpha F within float64",
            "Lower alpha, or use normalize=\"unit\".",
        )
    })?;
    Ok(factor.log_det())
}
