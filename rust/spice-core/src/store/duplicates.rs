//! Which indices are there more than once.

/// The indices that are there more than once, with the positions of each; both in ascending order.
pub(super) fn twice(index: &[i64]) -> Vec<(i64, Vec<usize>)> {
    // What one writer that goes through a dataset leaves behind.
    if index.is_sorted_by(|a, b| a < b) {
        return Vec::new();
    }
    let mut rows: Vec<(i64, usize)> = index.iter().copied().zip(0..).collect();
    rows.sort_unstable();
    let groups = rows.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1);
    groups.map(|group| (group[0].0, group.iter().map(|row| row.1).collect())).collect()
}
