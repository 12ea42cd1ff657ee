//! Rows that are the same to the bit.
//!
//! They score alike at every step and are picked lowest dataset row first, so that all but the first of
//! them may wait out of sight until the one before is picked. Without that, a pool with many copies of one row
//! would have to follow all of them at once.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::rows::{DatasetRow, Position};
use crate::selection::places::{Name, PlaceVec};
use crate::selection::run::Run;

/// The next twin of each row that has one.
///
/// Rows that limits or merits tell apart are no twins.
pub(super) fn next_twins(positions: &PlaceVec<Name, Position>, run: &Run<'_>) -> HashMap<Name, Name> {
    let survey = run.survey;
    // Twins have one norm; only where norms agree are rows looked at.
    let mut keys: Vec<(u64, Name)> =
        positions.iter().map(|(name, &position)| (survey.norm_key(position), name)).collect();
    keys.par_sort_unstable();
    let alike: Vec<&[(u64, Name)]> =
        keys.chunk_by(|a, b| a.0 == b.0).filter(|alike| alike.len() > 1).collect();
    let chains: Vec<(Name, Name)> = alike
        .into_par_iter()
        .flat_map_iter(|alike| {
            let mut rows: Vec<(u64, DatasetRow, Name)> = alike
                .iter()
                .map(|&(_, name)| {
                    let position = positions[name];
                    let content = survey.content_hash(position) ^ run.terms_key(position);
                    (content, survey.dataset_row(position), name)
                })
                .collect();
            rows.sort_unstable();
            let pairs: Vec<(Name, Name)> = rows
                .windows(2)
                .filter(|pair| pair[0].0 == pair[1].0)
                .map(|pair| (pair[0].2, pair[1].2))
                .collect();
            pairs
        })
        .filter(|&(name, next)| run.are_alike(positions[name], positions[next]))
        .collect();
    chains.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Dtype, Pool, RowBlock};
    use crate::monitor::Monitor;
    use crate::selection::places::Place;
    use crate::selection::{Conditions, Settings, Survey};

    #[test]
    fn twins_follow_each_other_by_their_dataset_row() {
        let cells: [[f32; 2]; 6] =
            [[3.0, 4.0], [4.0, 3.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]];
        let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F32, 6, 2).unwrap();
        let pool = Pool::new(vec![block]).unwrap().with_index(vec![9, 1, 5, 2, 7, 0]).unwrap();
        let monitor = Monitor::default();
        let survey = Survey::new(pool, false, &monitor).unwrap();
        let (settings, conditions) = (Settings::default(), Conditions::default());
        let run = Run::new(&survey, &settings, 0.1, &conditions, &monitor);
        let next = next_twins(&PlaceVec::new(Position::all(6).collect()), &run);
        let expected = [(2, 4), (4, 0), (5, 3)].map(|(name, next)| (Name::new(name), Name::new(next)));
        assert_eq!(next, HashMap::from(expected));
    }
}
