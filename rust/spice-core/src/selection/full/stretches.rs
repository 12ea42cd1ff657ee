//! The epochs of a list of rows, kept: what takes any row past the first of them, as a search does it.

use super::epoch::{Basis, Epoch, Follower};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::rows::Position;
use crate::survey::Survey;

/// The epochs in which some prefixes end, each as far as the last of these.
pub(in crate::selection) struct Stretches {
    dim: usize,
    stretches: Vec<Stretch>,
}

struct Stretch {
    basis: Basis,
    /// How many picks of the epoch each of its prefixes has, ascending.
    ends: Vec<usize>,
}

/// Room for the rows of one task.
#[derive(Default)]
pub(in crate::selection) struct Room {
    whitened: Vec<f64>,
    products: Vec<f64>,
    coordinates: Vec<f64>,
}

impl Stretches {
    /// Of the prefixes of `list` that have `ends` rows, ascending.
    ///
    /// Other than in a search an epoch ends as soon as digits may have been lost of *any* row, not only of those that can
    /// still win: what is asked here is also what losers are worth.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] if I + αF is not positive definite in float64; [`crate::Error::Interrupted`].
    pub(in crate::selection) fn new(
        survey: &Survey<'_>,
        alpha: f64,
        list: &[Position],
        ends: &[usize],
        monitor: &Monitor,
    ) -> Result<Self> {
        let dim = survey.dim();
        let last = ends.last().copied().unwrap_or(0);
        // Few and long rows go without a matrix, as in a search.
        let mut epoch = Epoch::new(survey, alpha, 4 * list.len() <= dim, monitor);
        let (mut stretches, mut inside, mut next) = (Vec::new(), Vec::new(), ends.iter().peekable());
        let (mut cells, mut whitened, mut products) = (Vec::new(), vec![0.0; dim], Vec::new());
        for done in 0..=last {
            monitor.check()?;
            if (done < last && epoch.is_over()) || epoch.is_doubtful(0.0) {
                if !inside.is_empty() {
                    let ends = std::mem::take(&mut inside);
                    stretches.push(Stretch { basis: epoch.basis().clone(), ends });
                }
                epoch.restart()?;
            }
            while next.next_if(|&&end| end == done).is_some() {
                inside.push(epoch.picks());
            }
            let Some(&position) = list[..last].get(done) else { break };
            let mut value = epoch.whiten(&[position], &mut cells, &mut whitened)[0];
            let mut coordinates = vec![0.0; epoch.picks()];
            let follower = Follower {
                position,
                whitened: &whitened,
                coordinates: &mut coordinates,
                value: &mut value,
            };
            epoch.follow(&mut [follower], 0, &mut products);
            epoch.push(position, &whitened, &coordinates, value);
        }
        if !inside.is_empty() {
            stretches.push(Stretch { basis: epoch.basis().clone(), ends: inside });
        }
        Ok(Self { dim, stretches })
    }

    /// Writes q of each row in `cells` at each prefix to `out`, row after row.
    pub(in crate::selection) fn values(
        &self,
        cells: &[f64],
        norms_sq: &[f64],
        width: usize,
        room: &mut Room,
        out: &mut [f64],
    ) {
        let mut first = 0;
        room.whitened.resize(cells.len(), 0.0);
        for Stretch { basis, ends } in &self.stretches {
            let starts = basis.whiten(cells, norms_sq.iter().copied(), &mut room.whitened);
            let most = ends.last().copied().unwrap_or(0).min(basis.picks());
            let rows: Vec<&[f64]> = room.whitened.chunks_exact(self.dim).collect();
            room.products.resize(rows.len() * most, 0.0);
            if most > 0 {
                basis.products(&rows, 0..most, &mut room.products);
            }
            room.coordinates.resize(most, 0.0);
            for (row, start) in starts.into_iter().enumerate() {
                let (mut value, mut seen) = (start, 0);
                let products = &room.products[row * most..][..most];
                let out = &mut out[row * width + first..][..ends.len()];
                for (&end, out) in ends.iter().zip(out) {
                    for (j, &product) in (seen..end).zip(&products[seen..end]) {
                        value = basis.pass(j, product, &mut room.coordinates, value);
                    }
                    (seen, *out) = (end, value);
                }
            }
            first += ends.len();
        }
    }
}
