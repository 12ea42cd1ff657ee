//! The two bounds of max U at one point, rounded up by whatever may be off.

use super::passes::Passes;
use super::prefixes::Point;
use crate::linalg::rounding;

/// The bound by submodularity at a prefix of the list that ends before `end`; `places` has the place in the list of each
/// row of the pool.
pub(super) fn submodular_bound(
    passes: Passes<'_>,
    point: &Point,
    places: &[usize],
    end: usize,
    k: usize,
) -> f64 {
    let outside = (0..places.len()).filter(|&row| places[row] >= end);
    let mut above: Vec<f64> = outside.map(|row| point.above(row, passes.signal(row), false)).collect();
    let gains: f64 = largest(&mut above, k).iter().map(|value| value.ln_1p()).sum();
    (point.log_det + point.log_det_error + gains) * (1.0 + rounding(2 * k + 16))
}

/// The bound by concavity at a point of which every row has a `weight`, owned rows 1.
pub(super) fn concave_bound(
    passes: Passes<'_>,
    point: &Point,
    weight: impl Fn(usize) -> f64,
    owned: &[usize],
    k: usize,
) -> f64 {
    let n = passes.survey.len();
    let mut free = vec![true; n];
    owned.iter().for_each(|&row| free[row] = false);
    let (mut above, mut inside) = (Vec::with_capacity(n), 0.0);
    for row in (0..n).filter(|&row| free[row]) {
        let (signal, weight) = (passes.signal(row), weight(row));
        above.push(point.above(row, signal, weight == 1.0));
        if weight > 0.0 {
            inside += weight * point.below(row, signal);
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
