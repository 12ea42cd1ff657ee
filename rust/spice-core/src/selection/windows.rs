//! Many short runs: each window of rows on its own, as the released code selects.

use rayon::prelude::*;

use super::conditions::Conditions;
use super::information::log_det;
use super::pick::{Pick, Selection, StopReason};
use super::run::{Outcome, Past};
use super::settings::Settings;
use super::start::{check, positions_of, run};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::{Survey, check_positions};

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
    windows: &[&[Position]],
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
    windows.iter().try_for_each(|window| check_positions(survey, window))?;
    let none = Conditions::default();
    let select_within = |window: &&[Position]| {
        let k = per_window.min(window.len());
        match run(survey, settings, &none, window.to_vec(), k, Past::default(), monitor) {
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
    // Windows are no run of their own: what their first picks amount to is nobody's k.
    let mut log_dets = vec![f64::NAN; picks.len()];
    let log_det = log_det(survey, settings.alpha, &positions_of(&picks), monitor)?;
    if let Some(last) = log_dets.last_mut() {
        *last = log_det;
    }
    Ok(Selection { picks, stop, log_dets, log_det, near_duplicates: Vec::new() })
}
