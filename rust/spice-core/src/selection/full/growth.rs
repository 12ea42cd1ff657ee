//! A pool that has grown: the picks of the run before it grew, against the new rows alone.
//!
//! While the picks so far are the same, the next pick of the earlier run still beats every row that was there then, and
//! by the same bits. So only new rows can beat it. Once one has, the rows of the earlier run come back, each with a
//! bound that the pick which beat it has left.

use std::collections::HashMap;

use super::messages::News;
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
                self.wake(pick.score)?;
                return Ok(None);
            }
            // Rows asleep are beaten, but their merit may be larger: the earlier run knows.
            let overruled = pick.overruled || self.overruled(&found)?;
            let read = std::mem::take(&mut self.read);
            if let Some(stop) = self.run.accept(&found.best, overruled, read, &mut cells) {
                return Ok(Some(stop));
            }
            self.push(found.best.slot)?;
        }
        // As of the last pick's prefix: a later one only lowers bounds.
        self.wake(made.last().map_or(f64::INFINITY, |pick| pick.score))?;
        Ok(None)
    }

    /// Brings the rows of the earlier run back, none of which scores higher than `score`.
    fn wake(&mut self, score: f64) -> Result<()> {
        let unbeaten = self.unbeaten(score, self.epoch.slack());
        self.waiting.wake(unbeaten, News::of(&self.run, &self.directions, &self.epoch))?;
        self.period = None;
        Ok(())
    }
}
