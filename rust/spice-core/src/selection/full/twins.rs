//! Rows that are the same to the bit.
//!
//! They score alike at every step and are picked lowest dataset index first, so that all but the first of
//! them may wait out of sight until the one before is picked. Without that, a pool with many copies of one row
//! would have to follow all of them at once.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::selection::run::Run;

/// The next twin of each row that has one; rows by their place in `rows`.
///
/// Rows that limits or merits tell apart are no twins.
pub(super) fn next_twins(rows: &[usize], run: &Run<'_>) -> HashMap<usize, usize> {
    let survey = run.survey;
    // Twins have one norm; only where norms agree are rows looked at.
    let mut places: Vec<(u64, usize)> =
        rows.iter().enumerate().map(|(place, &row)| (survey.norm_key(row), place)).collect();
    places.par_sort_unstable();
    let alike: Vec<&[(u64, usize)]> =
        places.chunk_by(|a, b| a.0 == b.0).filter(|alike| alike.len() > 1).collect();
    let chains: Vec<(usize, usize)> = alike
        .into_par_iter()
        .flat_map_iter(|alike| {
            let mut rows: Vec<(u64, i64, usize)> = alike
                .iter()
                .map(|&(_, place)| {
                    let row = rows[place];
                    (survey.content_hash(row) ^ run.terms_key(row), survey.index(row), place)
                })
                .collect();
            rows.sort_unstable();
            let pairs: Vec<(usize, usize)> = rows
                .windows(2)
                .filter(|pair| pair[0].0 == pair[1].0)
                .map(|pair| (pair[0].2, pair[1].2))
                .collect();
            pairs
        })
        .filter(|&(place, next)| run.are_alike(rows[place], rows[next]))
        .collect();
    chains.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Dtype, Pool, RowBlock};
    use crate::monitor::Monitor;
    use crate::selection::{Conditions, Settings, Survey};

    #[test]
    fn twins_follow_each_other_by_their_dataset_index() {
        let cells: [[f32; 2]; 6] =
            [[3.0, 4.0], [4.0, 3.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]];
        let block = RowBlock::new(bytemuck::cast_slice(&cells), Dtype::F32, 6, 2).unwrap();
        let pool = Pool::new(vec![block]).unwrap().with_index(vec![9, 1, 5, 2, 7, 0]).unwrap();
        let monitor = Monitor::default();
        let survey = Survey::new(pool, false, &monitor).unwrap();
        let (settings, conditions) = (Settings::default(), Conditions::default());
        let run = Run::new(&survey, &settings, 0.1, &conditions, &monitor);
        let next = next_twins(&[0, 1, 2, 3, 4, 5], &run);
        assert_eq!(next, HashMap::from([(2, 4), (4, 0), (5, 3)]));
    }
}
