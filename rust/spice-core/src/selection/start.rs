//! The one door to all searches: settings and conditions are checked, then the search of the objective goes on from what
//! was picked before.

use std::collections::HashSet;

use super::conditions::Conditions;
use super::greedy::Greedy;
use super::information::{log_det, log_dets};
use super::objective::{DiagonalFisher, FixedGain, Objective};
use super::pick::{NearDuplicate, Pick, Selection, StopReason};
use super::run::{Outcome, Past, RESUME_REMEDY, Run};
use super::settings::{Fisher, Method, Search, Settings};
use super::{eager, full, lazy, top_k};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{Survey, check_positions, check_scale};

/// Selects up to `k` rows of the whole pool; all of them if `k` is `None`.
///
/// # Errors
/// [`Error::InvalidInput`] if a setting or k is out of range; [`Error::Interrupted`].
pub fn select(
    survey: &Survey<'_>,
    settings: &Settings,
    k: Option<usize>,
    monitor: &Monitor,
) -> Result<Selection> {
    resume(survey, settings, &Conditions::default(), k, (&[], &[]), monitor)
}

/// Selects under conditions, going on with a run that has made some picks before and skipped some near-duplicates on
/// the way; without `k` as many rows as there are and the conditions allow. It ends with the same bits whatever part
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
    k: Option<usize>,
    (made, near_duplicates): (&[Pick], &[NearDuplicate]),
    monitor: &Monitor,
) -> Result<Selection> {
    start(survey, settings, conditions, k, Past { made, near_duplicates, old: None }, monitor)
}

/// Selects from a pool that has grown since a run over its rows `old` (n,) made the picks `made`: with the same bits as
/// [`select`], but as long as the picks stay the same only new rows are looked at.
///
/// # Errors
/// As [`select`]; [`Error::InvalidInput`] too if `made` cannot be picks of such a run.
pub fn extend(
    survey: &Survey<'_>,
    settings: &Settings,
    k: Option<usize>,
    made: &[Pick],
    old: &[bool],
    monitor: &Monitor,
) -> Result<Selection> {
    let strangers = made.iter().any(|pick| !old.get(pick.position.get()).is_some_and(|&old| old));
    if old.len() != survey.len() || strangers {
        let expected = "picks among the rows that were there before, and which of all rows those are";
        return Err(Error::invalid("picks to extend", "others", expected, RESUME_REMEDY));
    }
    let past = Past { made, near_duplicates: &[], old: Some(old) };
    start(survey, settings, &Conditions::default(), k, past, monitor)
}

fn start(
    survey: &Survey<'_>,
    settings: &Settings,
    conditions: &Conditions,
    k: Option<usize>,
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
            "an approximate one beside limits, weights or initial rows",
            "an exact method",
            "Use method=\"greedy\".",
        ));
    }
    let n = survey.len();
    if k.is_some_and(|k| k == 0 || k > n) {
        return Err(Error::invalid(
            "k",
            k.unwrap_or(0),
            format!("a number from 1 to {n}, the rows of the source"),
            "Ask for fewer rows, or for at least one.",
        ));
    }
    let size = k.unwrap_or(n);
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
        past.near_duplicates.iter().for_each(|&found| monitor.add_near_duplicate(found));
    }
    let mut candidates = conditions.candidates(survey);
    let available = candidates.len() + conditions.include.len();
    let skipped: HashSet<Position> = past.near_duplicates.iter().map(|found| found.position).collect();
    candidates.retain(|position| !skipped.contains(position));
    // What is planned for: a budget of cost pays for few rows of many.
    let planned = match &conditions.limits {
        Some(limits) if k.is_none() => {
            limits.most_picks(&candidates, &conditions.include).clamp(1, size)
        }
        _ => size,
    };
    let run = || run(survey, settings, conditions, candidates, planned, past, monitor);
    let Outcome { picks, mut stop } = match monitor.within_limit(run) {
        // Whatever the limit cut short was no pick yet.
        Err(Error::TimeLimit) => {
            let picks = monitor.log();
            let stop = if picks.len() < size { StopReason::TimeLimit } else { StopReason::Budget };
            Outcome { picks, stop }
        }
        result => result?,
    };
    let near_duplicates = monitor.near_duplicates();
    let by_cost = conditions.limits.as_ref().is_some_and(|limits| limits.costs.is_some());
    let left = available.saturating_sub(picks.len() + near_duplicates.len());
    if k.is_none() && matches!(stop, StopReason::Budget | StopReason::Exhausted) {
        // Rows may be left that the budget does not pay for.
        stop = if by_cost && left > 0 { StopReason::Budget } else { StopReason::Exhausted };
    }
    let initial = log_det(survey, settings.alpha, &conditions.initial, monitor)?;
    let log_dets = match (settings.method, settings.fisher) {
        // det(M_j) = det(M_{j−1})(1 + αq): the gains add up to U, with more digits than a factor of M_j has.
        (Method::Greedy | Method::EpsilonLazy | Method::Stochastic, Fisher::Full) => {
            let mut sum = initial;
            let add = |pick: &Pick| {
                sum += pick.gain;
                sum
            };
            picks.iter().map(add).collect()
        }
        _ => {
            let positions: Vec<Position> =
                conditions.initial.iter().copied().chain(positions_of(&picks)).collect();
            log_dets(survey, settings.alpha, &positions, monitor)?.split_off(conditions.initial.len())
        }
    };
    let log_det = log_dets.last().copied().unwrap_or(initial);
    Ok(Selection { picks, stop, log_dets, log_det, near_duplicates })
}

pub(super) fn positions_of(picks: &[Pick]) -> Vec<Position> {
    picks.iter().map(|pick| pick.position).collect()
}

/// Checks that the picks made and the near-duplicates skipped may be so, each once, included rows first, and no more than k.
fn check_past(survey: &Survey<'_>, conditions: &Conditions, past: Past<'_>, k: usize) -> Result<()> {
    let made = past.made;
    let near_duplicates: Vec<Position> =
        past.near_duplicates.iter().map(|found| found.position).collect();
    check_positions(survey, &positions_of(made))?;
    check_positions(survey, &near_duplicates)?;
    let mut taken = vec![false; survey.len()];
    conditions
        .initial
        .iter()
        .chain(&conditions.exclude)
        .chain(&near_duplicates)
        .for_each(|&position| taken[position.get()] = true);
    let other = made.iter().zip(&conditions.include).find(|(pick, include)| pick.position != **include);
    if let Some((pick, &include)) = other {
        let expected = format!("row {}, which is to be included", survey.dataset_row(include));
        return Err(Error::invalid(
            "picks to resume from",
            format!("row {}", pick.row),
            expected,
            RESUME_REMEDY,
        ));
    }
    let twice = made.iter().find(|pick| std::mem::replace(&mut taken[pick.position.get()], true));
    let found = match twice {
        Some(pick) => {
            format!("row {} twice, or one that is initial, excluded or a near-duplicate", pick.row)
        }
        None if made.len() > k => format!("{} picks", made.len()),
        None => return Ok(()),
    };
    let expected = format!("at most {k} picks, each row once");
    Err(Error::invalid("picks to resume from", found, expected, RESUME_REMEDY))
}

/// Checks the settings, alone and against the scale of the rows.
pub(super) fn check(survey: &Survey<'_>, settings: &Settings) -> Result<()> {
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

/// One greedy run over the `candidates`.
pub(super) fn run(
    survey: &Survey<'_>,
    settings: &Settings,
    conditions: &Conditions,
    mut candidates: Vec<Position>,
    k: usize,
    past: Past<'_>,
    monitor: &Monitor,
) -> Result<Outcome> {
    let (kernels, alpha, dim) = (survey.kernels(), settings.alpha, survey.dim());
    if settings.method == Method::TopK {
        let factor = if settings.fisher == Fisher::Scalar { 1.0 / (1.0 + alpha) } else { 1.0 };
        let run = Run::new(survey, settings, 0.0, conditions, monitor);
        let mut greedy = Greedy::new(run, FixedGain { factor });
        greedy.begin(past.replayed(), &mut candidates)?;
        return top_k::search(greedy, candidates, k);
    }
    if settings.method == Method::Stochastic {
        // Rows are drawn by their name, which must not depend on how they are spread over files.
        candidates.sort_unstable_by_key(|&position| survey.dataset_row(position));
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
                    .then(|| full::Sampling::new(candidates.len(), k, settings.epsilon, settings.seed)),
            };
            full::search(run, candidates, k, past, strategy)
        }
        Fisher::Diagonal => {
            let greedy = Greedy::new(run, DiagonalFisher::new(kernels, alpha, dim));
            one_by_one(greedy, search, candidates, k, past)
        }
        Fisher::Scalar => {
            let greedy = Greedy::new(run, FixedGain { factor: 1.0 / (1.0 + alpha) });
            one_by_one(greedy, search, candidates, k, past)
        }
    }
}

fn one_by_one<O: Objective>(
    mut greedy: Greedy<'_, O>,
    search: Search,
    mut candidates: Vec<Position>,
    k: usize,
    past: Past<'_>,
) -> Result<Outcome> {
    greedy.begin(past.replayed(), &mut candidates)?;
    match search {
        Search::Eager => eager::search(greedy, candidates, k),
        Search::Lazy | Search::LazyGain => lazy::search(greedy, candidates, k, past),
    }
}
