//! A pool that has grown: the picks of the run before it grew, against the new rows alone.
//!
//! While the picks so far are the same, the next pick of the earlier run still beats every row that was there then, and
//! by the same bits. So only new rows can beat it. Once one has, the rows of the earlier run come back, each with a
//! bound that the pick which beat it has left.

use std::collections::{HashMap, HashSet};

use super::search::Search;
use crate::error::Result;
use crate::rows::Position;
use crate::selection::pick::{Pick, StopReason};
use crate::selection::places::Name;

impl Search<'_> {
    /// Takes the picks that the earlier run has `made` as long as no new row beats them; `names` has the name of each row.
    pub(super) fn contest(
        &mut self,
        made: &[Pick],
        names: &HashMap<Position, Name>,
    ) -> Result<Option<StopReason>> {
        let mut cells = vec![0.0; self.run.survey.dim()];
        for pick in made {
            if let Some(&name) = names.get(&pick.position) {
                self.bring(Some(name), pick.position)?;
            }
            let Some(found) = self.find()? else { return Ok(Some(StopReason::Exhausted)) };
            if found.best.position != pick.position {
                self.wake(pick.score);
                return Ok(None);
            }
            // Rows asleep are beaten, but their merit may be larger: the earlier run knows.
            let overruled = pick.overruled || self.overruled(&found)?;
            let read = std::mem::take(&mut self.read);
            if let Some(stop) = self.run.accept(&found.best, overruled, read, &mut cells) {
                return Ok(Some(stop));
            }
            self.mark_picked(found.best.slot);
            self.push(found.best.slot)?;
        }
        // As of the last pick's prefix: a later one only lowers bounds.
        self.wake(made.last().map_or(f64::INFINITY, |pick| pick.score));
        Ok(None)
    }

    /// Brings the rows of the earlier run back, none of which scores higher than `score`.
    fn wake(&mut self, score: f64) {
        let (seen, slack, penalty) = (self.run.selected(), self.epoch.slack(), self.run.penalty);
        // The sum has lost digits of a score that is small beside a penalty.
        let most = score + penalty + 4.0 * f64::EPSILON * (score.abs() + penalty);
        let hot: HashSet<Name> = self.hot.names().collect();
        for name in std::mem::take(&mut self.out_of_sight.asleep) {
            // A pick that lost may be hot, or cold already.
            if self.cold.is_picked(name) || self.cold.waits(name) || hot.contains(&name) {
                continue;
            }
            let position = self.cold.position(name);
            let (norm_sq, bound) =
                (self.run.survey.norm_sq(position), self.run.value_at(position, most) * (1.0 + slack));
            if bound < norm_sq {
                self.cold.put(name, bound, seen, None);
            } else {
                self.cold.put(name, norm_sq, 0, None);
            }
        }
        self.period = None;
    }
}
