//! What a run will take of the memory, told before it starts.

use crate::error::Result;
use crate::memory;

/// The sizes that a run's memory follows from.
pub(super) struct Needs {
    /// Candidates and forced rows.
    pub(super) rows: usize,
    pub(super) dim: usize,
    /// Rows that are selected in the end, initial ones included.
    pub(super) selected: usize,
    /// Rows followed pick by pick.
    pub(super) hot: usize,
    /// Picks of the longest epoch.
    pub(super) epoch: usize,
    /// Whether I + αF may have to be factored.
    pub(super) factors: bool,
    /// Whether all inner products are taken at once.
    pub(super) by_gram: bool,
}

impl Needs {
    /// Bytes of private memory, to a tenth or so; the pool itself is mapped and does not count.
    fn bytes(&self) -> f64 {
        let [rows, dim, selected, hot, epoch] =
            [self.rows, self.dim, self.selected, self.hot, self.epoch].map(|size| size as f64);
        let coordinates = 8.0 * (hot * epoch + epoch * epoch / 2.0);
        if self.by_gram {
            return 4.0 * rows * rows + 8.0 * rows * dim.min(4096.0) + coordinates;
        }
        let whitened = 8.0 * dim * (hot + epoch);
        // M, the copy that becomes its factor, and the factor's inverse, twice.
        let matrices = if self.factors { 28.0 * dim * dim } else { 0.0 };
        let waits = hot < rows;
        let directions =
            if waits { 8.0 * dim * epoch + 4.0 * dim * selected.min(2.0 * dim + epoch) } else { 0.0 };
        40.0 * rows + whitened + coordinates + matrices + directions
    }

    /// # Errors
    /// [`Error::InvalidInput`] if the run would take more memory than there is.
    pub(super) fn check(&self) -> Result<()> {
        let found = || format!("{} of {} rows of {} columns", self.selected, self.rows, self.dim);
        let remedy = "Select fewer rows, project the gradients to fewer columns, or select in windows (pool_size=128).";
        memory::check("k", found, self.bytes(), remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_there_is_is_refused_with_the_numbers() {
        let needs = |dim| Needs {
            rows: 1_000_000,
            dim,
            selected: 900_000,
            hot: 256,
            epoch: dim / 2,
            factors: true,
            by_gram: false,
        };
        assert!(needs(64).check().is_ok());
        let error = needs(10_000_000).check().unwrap_err().to_string();
        assert!(error.contains("900000 of 1000000 rows of 10000000 columns"), "{error}");
    }

    #[test]
    fn the_papers_pool_takes_two_gigabytes() {
        let needs = Needs {
            rows: 97_500,
            dim: 8192,
            selected: 9750,
            hot: 256,
            epoch: 4096,
            factors: true,
            by_gram: false,
        };
        assert!((1.8e9..3.2e9).contains(&needs.bytes()), "{}", needs.bytes());
    }
}
