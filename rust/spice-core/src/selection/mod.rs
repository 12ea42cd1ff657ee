//! Greedy selection of the rows with the most Fisher information and the least conflict.
//!
//! At every pick the row with the largest score Δ_x(S) − λ·conflict_x(S) joins the selected set S;
//! equal scores go to the lowest dataset index. `full` is the paper's objective and its search;
//! `objective` knows the released code's readings of Δ, for which `eager` and `lazy` find the best row;
//! `conflict` knows the penalty and `run` what a pick changes. An eager and a lazy search find the same
//! rows, bit for bit. The method is that of *SPICE:
//! Submodular Penalized Information-Conflict Selection*, arXiv 2601.23155.

mod conditions;
mod conflict;
mod eager;
mod full;
mod greedy;
mod information;
mod lazy;
mod ledger;
mod merit;
mod near;
mod objective;
mod run;
mod settings;
mod survey;
mod top_k;
mod windows;

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::monitor::Monitor;
pub use conditions::{Conditions, Limits};
use greedy::Greedy;
pub use information::log_det;
use information::log_dets;
pub use near::NearDuplicate;
use objective::{DiagonalFisher, FixedGain, Objective};
use run::{Outcome, Past, Run};
pub(crate) use settings::check_alpha;
pub use settings::{Fisher, Method, Search, Settings};
pub(crate) use survey::AHEAD;
pub use survey::{Survey, fingerprint};
pub use windows::select_windows;

/// One selected row and the numbers that selected it.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Δ − λ·conflict (for [`Method::TopK`]: Δ), with the m and b of [`Conditions`]: m·Δ − λ·conflict + b.
    pub score: f64,
    /// Whether some other row that could be picked had a larger Δ (m·Δ + b): the penalty decided.
    pub overruled: bool,
    /// Rows evaluated to find it.
    pub rows_read: u64,
}

/// Why a selection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopReason {
    /// As many rows as asked for, or as the budget pays for.
    #[default]
    Budget,
    /// The best Δ fell to ω times the first.
    EarlyStop,
    /// No row was left that may be picked.
    Exhausted,
    /// The monitor's time limit passed.
    TimeLimit,
}

/// The selected rows in pick order.
#[derive(Clone, Debug)]
pub struct Selection {
    /// One entry per selected row.
    pub picks: Vec<Pick>,
    /// Why the last (with windows: any) greedy run ended before it had its budget, or that it had it.
    pub stop: StopReason,
    /// U(S) = log det(I + αF_S) of the picks up to and including each, and of the rows that were owned before, in nats,
    /// whatever the mode; with windows NaN but for the last.
    pub log_dets: Vec<f64>,
    /// U(S) of all picks: the last of `log_dets`, and of the rows that were owned if there are no picks.
    pub log_det: f64,
    /// Rows that would have been picked, were they not too similar to selected ones.
    pub duplicates: Vec<NearDuplicate>,
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
    resume(survey, settings, &Conditions::default(), budget, (&[], &[]), monitor)
}

/// Selects under conditions, going on with a run that has made some picks before and left out some near-duplicates on
/// the way; without a budget as many rows as there are and the conditions allow. It ends with the same bits whatever part
/// of the run was made before.
///
/// Picks made before are replayed in order, without search; only what [`Pick::rows_read`] says of the later ones may differ,
/// because what the first run knew of the rows that it left is lost.
///
/// # Errors
/// As [`select`]; [`Error::InvalidInput`] too if a condition is out of range, if `made` cannot be the first picks of this
/// run, or if there are any and the method is an approximate one, whose later picks depend on what was known of the
/// rows left.
pub fn resume(
    survey: &Survey<'_>,
    settings: &Settings,
    conditions: &Conditions,
    budget: Option<usize>,
    (made, left_out): (&[Pick], &[NearDuplicate]),
    monitor: &Monitor,
) -> Result<Selection> {
    start(survey, settings, conditions, budget, Past { made, left_out, old: None }, monitor)
}

/// Selects from a pool that has grown since a run over its rows `old` (n,) made the picks `made`: with the same bits as
/// [`select`], but as long as the picks stay the same only new rows are looked at.
///
/// # Errors
/// As [`select`]; [`Error::InvalidInput`] too if `made` cannot be picks of such a run.
pub fn extend(
    survey: &Survey<'_>,
    settings: &Settings,
    budget: Option<usize>,
    made: &[Pick],
    old: &[bool],
    monitor: &Monitor,
) -> Result<Selection> {
    let strangers = made.iter().any(|pick| !old.get(pick.row).is_some_and(|&old| old));
    if old.len() != survey.len() || strangers {
        let expected = "picks among the rows that were there before, and which of all rows those are";
        return Err(Error::invalid("picks to extend", "others", expected, RESUME_REMEDY));
    }
    let past = Past { made, left_out: &[], old: Some(old) };
    start(survey, settings, &Conditions::default(), budget, past, monitor)
}

fn start(
    survey: &Survey<'_>,
    settings: &Settings,
    conditions: &Conditions,
    budget: Option<usize>,
    past: Past<'_>,
    monitor: &Monitor,
) -> Result<Selection> {
    check(survey, settings)?;
    conditions.check(survey)?;
    let approximate = matches!(settings.method, Method::EpsilonLazy | Method::Stochastic);
    let beside = Conditions { exclude: Vec::new(), ..conditions.clone() };
    if approximate && !beside.is_empty() {
        return Err(Error::invalid(
            "method",
            "an approximate one beside limits, weights or owned rows",
            "an exact method",
            "Use method=\"greedy\".",
        ));
    }
    let n = survey.len();
    if budget.is_some_and(|k| k == 0 || k > n) {
        return Err(Error::invalid(
            "k",
            budget.unwrap_or(0),
            format!("a number from 1 to {n}, the rows of the source"),
            "Ask for fewer rows, or for at least one.",
        ));
    }
    let size = budget.unwrap_or(n);
    if conditions.include.len() > size {
        let found = format!("{} rows", conditions.include.len());
        return Err(Error::invalid("include", found, format!("at most {size}"), "Leave some out."));
    }
    if !past.made.is_empty() && approximate {
        let found = format!("{} of an approximate run", past.made.len());
        let remedy = "Start anew, or use method=\"greedy\".";
        return Err(Error::invalid("picks to resume from", found, "those of an exact method", remedy));
    }
    if past.old.is_none() {
        check_past(survey, conditions, past, size)?;
        past.made.iter().for_each(|&pick| monitor.accept(pick));
        past.left_out.iter().for_each(|&found| monitor.leave_out(found));
    }
    let mut rows = conditions.candidates(survey);
    let candidates = rows.len() + conditions.include.len();
    let left_out: HashSet<usize> = past.left_out.iter().map(|found| found.row).collect();
    rows.retain(|row| !left_out.contains(row));
    // What is planned for: a budget of cost pays for few rows of many.
    let planned = match &conditions.limits {
        Some(limits) if budget.is_none() => limits.most_picks(&rows, &conditions.include).clamp(1, size),
        _ => size,
    };
    let run = || run(survey, settings, conditions, rows, planned, past, monitor);
    let Outcome { picks, mut stop } = match monitor.within_limit(run) {
        // Whatever the limit cut short was no pick yet.
        Err(Error::TimeLimit) => {
            let picks = monitor.log();
            let stop = if picks.len() < size { StopReason::TimeLimit } else { StopReason::Budget };
            Outcome { picks, stop }
        }
        result => result?,
    };
    let duplicates = monitor.left_out();
    let by_cost = conditions.limits.as_ref().is_some_and(|limits| limits.costs.is_some());
    let left = candidates - picks.len() - duplicates.len();
    if budget.is_none() && matches!(stop, StopReason::Budget | StopReason::Exhausted) {
        // Rows may be left that the budget does not pay for.
        stop = if by_cost && left > 0 { StopReason::Budget } else { StopReason::Exhausted };
    }
    let owned = log_det(survey, settings.alpha, &conditions.initial, monitor)?;
    let log_dets = match (settings.method, settings.fisher) {
        // det(M_j) = det(M_{j−1})(1 + αq): the gains add up to U, with more digits than a factor of M_j has.
        (Method::Greedy | Method::EpsilonLazy | Method::Stochastic, Fisher::Full) => {
            let mut sum = owned;
            let add = |pick: &Pick| {
                sum += pick.gain;
                sum
            };
            picks.iter().map(add).collect()
        }
        _ => {
            let rows: Vec<usize> = conditions.initial.iter().copied().chain(rows_of(&picks)).collect();
            log_dets(survey, settings.alpha, &rows, monitor)?.split_off(conditions.initial.len())
        }
    };
    let log_det = log_dets.last().copied().unwrap_or(owned);
    Ok(Selection { picks, stop, log_dets, log_det, duplicates })
}

fn rows_of(picks: &[Pick]) -> Vec<usize> {
    picks.iter().map(|pick| pick.row).collect()
}

pub(crate) fn check_rows(survey: &Survey<'_>, rows: &[usize]) -> Result<()> {
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

/// Checks that the picks made and the rows left out may be so, each once, forced ones first, and within the budget.
fn check_past(
    survey: &Survey<'_>,
    conditions: &Conditions,
    past: Past<'_>,
    budget: usize,
) -> Result<()> {
    let made = past.made;
    let left_out: Vec<usize> = past.left_out.iter().map(|found| found.row).collect();
    check_rows(survey, &rows_of(made))?;
    check_rows(survey, &left_out)?;
    let mut taken = vec![false; survey.len()];
    conditions
        .initial
        .iter()
        .chain(&conditions.exclude)
        .chain(&left_out)
        .for_each(|&row| taken[row] = true);
    let other = made.iter().zip(&conditions.include).find(|(pick, include)| pick.row != **include);
    if let Some((pick, &include)) = other {
        let expected = format!("row {}, which is to be included", survey.index(include));
        return Err(Error::invalid(
            "picks to resume from",
            format!("row {}", pick.index),
            expected,
            RESUME_REMEDY,
        ));
    }
    let twice = made.iter().find(|pick| std::mem::replace(&mut taken[pick.row], true));
    let found = match twice {
        Some(pick) => format!("row {} twice, or one that was owned, excluded or left out", pick.index),
        None if made.len() > budget => format!("{} picks", made.len()),
        None => return Ok(()),
    };
    let expected = format!("at most {budget} picks, each row once");
    Err(Error::invalid("picks to resume from", found, expected, RESUME_REMEDY))
}

/// What to do about picks that this run cannot have made.
const RESUME_REMEDY: &str = "Start anew, without the picks of an earlier run.";

/// Checks the settings, alone and against the scale of the rows.
fn check(survey: &Survey<'_>, settings: &Settings) -> Result<()> {
    settings.check()?;
    check_scale(survey, settings.alpha)?;
    // No cell's fourth power is larger.
    let fourth = survey.largest_norm_sq().powi(2);
    if settings.fisher == Fisher::Diagonal && !fourth.is_finite() {
        return Err(Error::invalid(
            "fisher",
            format!("\"diagonal\" with rows of ‖g‖² = {:e}", survey.largest_norm_sq()),
            "rows whose fourth powers float64 holds, of norms below 1e77",
            "Scale the rows down, or use normalize=\"unit\".",
        ));
    }
    Ok(())
}

/// Largest α‖g‖²: beyond, the I of I + αF is lost in the rounding of αF.
const LARGEST_SIGNAL: f64 = 1e13;

/// Smallest α‖g‖² of the longest row: below, a gain has lost digits, or all of them.
const LEAST_SIGNAL: f64 = f64::MIN_POSITIVE;

/// Checks that float64 holds α‖g‖² of the rows.
pub(crate) fn check_scale(survey: &Survey<'_>, alpha: f64) -> Result<()> {
    survey.check_squares()?;
    let largest = alpha * survey.largest_norm_sq();
    let (expected, remedy) = if largest > LARGEST_SIGNAL {
        let expected =
            format!("at most {LARGEST_SIGNAL:e}: beyond, float64 loses the 1 in 1 + alpha·‖g‖²");
        (expected, "Lower alpha, or use normalize=\"unit\".")
    } else if largest < LEAST_SIGNAL && survey.largest_norm_sq() > 0.0 {
        (
            format!("at least {LEAST_SIGNAL:e}: below, float64 has too few digits for gains"),
            "Raise alpha, or use alpha=\"auto\".",
        )
    } else {
        return Ok(());
    };
    let alpha = if (1e-4..1e6).contains(&alpha) { alpha.to_string() } else { format!("{alpha:e}") };
    let found = format!("{alpha} with rows up to alpha·‖g‖² = {largest:e}");
    Err(Error::invalid("alpha", found, expected, remedy))
}

/// One greedy run over `rows`.
fn run(
    survey: &Survey<'_>,
    settings: &Settings,
    conditions: &Conditions,
    mut rows: Vec<usize>,
    budget: usize,
    past: Past<'_>,
    monitor: &Monitor,
) -> Result<Outcome> {
    let (kernels, alpha, dim) = (survey.kernels(), settings.alpha, survey.dim());
    if settings.method == Method::TopK {
        let factor = if settings.fisher == Fisher::Scalar { 1.0 / (1.0 + alpha) } else { 1.0 };
        let run = Run::new(survey, settings, 0.0, conditions, monitor);
        let mut greedy = Greedy::new(run, FixedGain { factor });
        greedy.begin(past.replayed(), &mut rows)?;
        return top_k::search(greedy, rows, budget);
    }
    if settings.method == Method::Stochastic {
        // Rows are drawn by their place, which must not depend on how they are spread over files.
        rows.sort_unstable_by_key(|&row| survey.index(row));
    }
    let run = Run::new(survey, settings, settings.conflict_penalty, conditions, monitor);
    let search = settings.search;
    match settings.fisher {
        Fisher::Full => {
            let strategy = full::Strategy {
                exhaustive: search == Search::Eager,
                capacity: settings.hot_rows,
                angles: search == Search::Lazy,
                epsilon: if settings.method == Method::EpsilonLazy { settings.epsilon } else { 0.0 },
                sampling: (settings.method == Method::Stochastic)
                    .then(|| full::Sampling::new(rows.len(), budget, settings.epsilon, settings.seed)),
            };
            full::search(run, rows, budget, past, strategy)
        }
        Fisher::Diagonal => {
            let greedy = Greedy::new(run, DiagonalFisher::new(kernels, alpha, dim));
            one_by_one(greedy, search, rows, budget, past)
        }
        Fisher::Scalar => {
            let greedy = Greedy::new(run, FixedGain { factor: 1.0 / (1.0 + alpha) });
            one_by_one(greedy, search, rows, budget, past)
        }
    }
}

fn one_by_one<O: Objective>(
    mut greedy: Greedy<'_, O>,
    search: Search,
    mut rows: Vec<usize>,
    budget: usize,
    past: Past<'_>,
) -> Result<Outcome> {
    greedy.begin(past.replayed(), &mut rows)?;
    match search {
        Search::Eager => eager::search(greedy, rows, budget),
        Search::Lazy | Search::LazyGain => lazy::search(greedy, rows, budget, past),
    }
}
