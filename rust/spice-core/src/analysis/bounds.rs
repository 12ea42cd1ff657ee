//! The two bounds of max U at one point, rounded up by whatever may be off.

use super::passes::Passes;
use super::prefixes::Point;
use crate::linalg::rounding;
use crate::rows::Position;

/// The bound by submodularity at a prefix of the list that ends before `end`; `places` has the place in the list of each
/// row of the pool that is in it.
pub(super) fn submodular_bound(
    passes: Passes<'_>,
    point: &Point,
    places: &[Option<usize>],
    end: usize,
    k: usize,
) -> f64 {
    let outside = Position::all(places.len())
        .filter(|position| places[position.get()].is_none_or(|place| place >= end));
    let mut above: Vec<f64> =
        outside.map(|position| point.above(position, passes.signal(position), false)).collect();
    let gains: f64 = largest(&mut above, k).iter().map(|value| value.ln_1p()).sum();
    (point.log_det + point.log_det_error + gains) * (1.0 + rounding(2 * k + 16))
}

/// The bound by concavity at a point of which every row has a `weight`, initial rows 1.
pub(super) fn concave_bound(
    passes: Passes<'_>,
    point: &Point,
    weight: impl Fn(Position) -> f64,
    initial: &[Position],
    k: usize,
) -> f64 {
    let n = passes.survey.len();
    let mut free = vec![true; n];
    initial.iter().for_each(|position| free[position.get()] = false);
    let (mut above, mut inside) = (Vec::with_capacity(n), 0.0);
    for position in Position::all(n).filter(|position| free[position.get()]) {
        let (signal, weight) = (passes.signal(position), weight(position));
        above.push(point.above(position, signal, weight == 1.0));
        if weight > 0.0 {
            inside += weight * point.below(position, signal);
        }
    }
    let linear: f64 = largest(&mut above, k).iter().sum();
    let start = point.log_det + point.log_det_error;
    // Any number of rows may have a weight.
    start + linear - inside + rounding(2 * n + 16) * (start + linear + inside)
}

/// The `count` largest values, or all, largest first: in one order, so that their sum does not depend on how they were found.
fn largest(values: &mut [f64], count: usize) -> &[f64] {
    let count = count.min(values.len());
    if count < values.len() {
        values.select_nth_unstable_by(count, |a, b| b.total_cmp(a));
    }
    let largest = &mut values[..count];
    largest.sort_unstable_by(|a, b| b.total_cmp(a));
    largest
}
