//! Rows by their bounds, largest first, put in order no further than they are asked for.

use crate::selection::places::Name;

/// Rows that are put in order at least.
const LEAST: usize = 1 << 14;

/// (bound, name) of rows; equal bounds by name.
pub(super) struct Ranked {
    /// In no order; none is above one of `front`.
    rest: Vec<(f64, Name)>,
    /// In ascending order, to be taken from the end.
    front: Vec<(f64, Name)>,
}

impl Ranked {
    pub(super) const fn new(rows: Vec<(f64, Name)>) -> Self {
        Self { rest: rows, front: Vec::new() }
    }

    /// Takes out the `count` largest rows, or as many as are above `bound`; returns their names, the largest first.
    pub(super) fn next_above(&mut self, bound: f64, count: usize) -> Vec<Name> {
        let mut names = Vec::new();
        while names.len() < count {
            if self.front.is_empty() {
                self.advance(bound);
            }
            match self.front.last() {
                Some(&(largest, name)) if largest > bound => names.push(name),
                _ => break,
            }
            self.front.pop();
        }
        names
    }

    /// Puts a part of the rows above `bound` in order: a quarter at a time, so that to take all of them one after the other
    /// is a sort, and to take a few is a look at each.
    fn advance(&mut self, bound: f64) {
        self.rest.retain(|&(reach, _)| reach > bound);
        let order = |a: &(f64, Name), b: &(f64, Name)| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1));
        let part = self.rest.len().div_ceil(4).max(LEAST);
        if part < self.rest.len() {
            let kept = self.rest.len() - part;
            self.rest.select_nth_unstable_by(kept, order);
            self.front = self.rest.split_off(kept);
        } else {
            self.front = std::mem::take(&mut self.rest);
        }
        self.front.sort_unstable_by(order);
    }
}

/// Keeps so many of the rows, those that reach highest; returns what none of the others exceeds.
pub(super) fn highest(rows: &mut Vec<(f64, Name)>, count: usize) -> f64 {
    rows.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0));
    let (reach, _) = rows[count];
    rows.truncate(count);
    reach
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::selection::places::Place;

    proptest! {
        #[test]
        fn rows_come_as_a_sort_has_them(
            distinct in 1_usize..5000,
            len in 0_usize..60_000,
            counts in proptest::collection::vec(1_usize..20_000, 1..8),
            rise in 0.0..0.4,
        ) {
            let bounds: Vec<f64> =
                (0..len).map(|i| (i * 7919 % distinct) as f64 / distinct as f64 - 0.2).collect();
            let mut sorted: Vec<usize> = (0..len).collect();
            sorted.sort_by(|&a, &b| bounds[b].total_cmp(&bounds[a]).then(a.cmp(&b)));
            let mut ranked = Ranked::new(bounds.iter().copied().zip((0..).map(Name::new)).collect());
            let mut bound = -0.1;
            for count in counts {
                let expected: Vec<Name> = (sorted.iter().copied())
                    .filter(|&place| bounds[place] > bound)
                    .take(count)
                    .map(Name::new)
                    .collect();
                prop_assert_eq!(&ranked.next_above(bound, count), &expected);
                sorted.drain(..expected.len());
                bound += rise;
            }
        }
    }
}
