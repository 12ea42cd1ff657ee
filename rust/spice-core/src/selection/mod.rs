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
mod survey;
mod top_k;

use std::collections::HashSet;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::monitor::Monitor;
pub use conditions::{Conditions, Limits};
use greedy::Greedy;
pub use information::log_det;
use information::log_dets;
pub use near::NearDuplicate;
use objective::{DiagonalFisher, FixedGain, Objective};
use run::{Outcome, Past, Run};
pub use survey::{Survey, fingerprint};

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
    /// Greedy, but content with a row whose score is at least 1 − ε times the best.
    EpsilonLazy,
    /// Greedy, each time over n/k·log(1/ε) rows drawn at random.
    Stochastic,
}

/// How the best row of a greedy step is found. The picks do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Every row is evaluated at every pick: the oracle and the baseline.
    Eager,
    /// Rows are evaluated while an earlier, larger Δ keeps them in the running, and an earlier angle to
    /// the mean does not put them out of it.
    Lazy,
    /// The same without angles: what Δ alone is worth as a bound.
    LazyGain,
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
    /// Rows of the full objective that are followed pick by pick; `None` for what the caches hold. It
    /// changes the time and the memory that a lazy search takes, and no pick.
    pub hot_rows: Option<usize>,
    /// ε of the approximate methods; inside (0, 1).
    pub epsilon: f64,
    /// Seed of [`Method::Stochastic`].
    pub seed: u64,
}

impl Default for Settings {
    /// The paper's method with its α and λ, exactly.
    fn default() -> Self {
        Self {
            alpha: 1.0,
            conflict_penalty: 0.1,
            early_stop: None,
            fisher: Fisher::Full,
            method: Method::Greedy,
            search: Search::Lazy,
            hot_rows: None,
            epsilon: 0.1,
            seed: 0,
        }
    }
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
        let approximate = matches!(self.method, Method::EpsilonLazy | Method::Stochastic);
        let epsilon = self.epsilon;
        if approximate {
            let legal = epsilon > 0.0 && epsilon < 1.0;
            let remedy = "A small number such as 0.05 stays close to the exact picks.";
            number("epsilon", epsilon, legal, "a number between 0 and 1, both excluded", remedy)?;
        }
        if approximate && (self.fisher != Fisher::Full || self.search == Search::Eager) {
            return Err(Error::invalid(
                "method",
                "an approximate one with another Fisher information or an eager search",
                "fisher=\"full\" and a lazy search",
                "Use method=\"greedy\": it is exact, and fast in the other modes.",
            ));
        }
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

/// Selects `per_window` rows of every window on its own, F and the mean starting anew in each.
///
/// `windows` lists disjoint sets of rows; a window with fewer rows than `per_window` gives all. A window that is
/// not done when the time limit passes gives none.
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
    let none = Conditions::default();
    let select_within = |window: &&[usize]| {
        let budget = per_window.min(window.len());
        match run(survey, settings, &none, window.to_vec(), budget, Past::default(), monitor) {
            Err(Error::TimeLimit) => Ok(Outcome { stop: StopReason::TimeLimit, ..Outcome::default() }),
            result => result,
        }
    };
    let parts = monitor
        .within_limit(|| windows.par_iter().map(select_within).collect::<Result<Vec<Outcome>>>())?;
    let any = |reason| parts.iter().any(|part| part.stop == reason);
    let stop = [StopReason::TimeLimit, StopReason::EarlyStop].into_iter().find(|&reason| any(reason));
    let stop = stop.unwrap_or(StopReason::Budget);
    let picks: Vec<Pick> = parts.into_iter().flat_map(|part| part.picks).collect();
    // Windows are no run of their own: what their first picks amount to is nobody's budget.
    let mut log_dets = vec![f64::NAN; picks.len()];
    let log_det = log_det(survey, settings.alpha, &rows_of(&picks), monitor)?;
    if let Some(last) = log_dets.last_mut() {
        *last = log_det;
    }
    Ok(Selection { picks, stop, log_dets, log_det, duplicates: Vec::new() })
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
    check_scale(survey, settings.alpha)
}

/// Largest α‖g‖²: beyond, the I of I + αF is lost in the rounding of αF.
const LARGEST_SIGNAL: f64 = 1e13;

fn check_scale(survey: &Survey<'_>, alpha: f64) -> Result<()> {
    let largest = alpha * survey.largest_norm_sq();
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
