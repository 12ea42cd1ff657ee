//! The means of the picks that angles of cold rows were measured from.

use super::drift::Turn;

/// Means that angles may be measured from at one time.
const MOST: u8 = 64;

/// Unit means by number, oldest first.
#[derive(Default)]
pub(super) struct Means(Vec<Vec<f64>>);

impl Means {
    /// The number of the latest one; `None` if there is none.
    pub(super) fn latest(&self) -> Option<u8> {
        self.0.len().checked_sub(1).map(|number| number as u8)
    }

    /// Makes room for one more. If there is none, halves the number of means, and returns how far each of the first, the third
    /// and so on is from the next one, which takes its place.
    pub(super) fn make_room(&mut self) -> Option<Vec<Turn>> {
        if self.0.len() < usize::from(MOST) {
            return None;
        }
        let turns = self.0.chunks_exact(2).map(|pair| Turn::between(&pair[0], &pair[1], 0.0)).collect();
        let mut number = 0;
        self.0.retain(|_| {
            number += 1;
            number % 2 == 0
        });
        Some(turns)
    }

    /// The present unit mean becomes the latest one.
    pub(super) fn add(&mut self, mean: &[f64]) {
        self.0.push(mean.to_vec());
    }

    /// How far each mean is from `present`, and `more` beyond that.
    pub(super) fn turns(&self, present: &[f64], more: f64) -> Vec<Turn> {
        self.0.iter().map(|mean| Turn::between(mean, present, more)).collect()
    }
}
