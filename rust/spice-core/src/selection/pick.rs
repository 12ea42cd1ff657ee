//! What a selection consists of: its picks, the near-duplicates that it skipped, and why it ended.

use crate::rows::{DatasetRow, Position};

/// One selected row and the numbers that selected it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// Where the row is in the pool.
    pub position: Position,
    /// The row itself: its number in the data.
    pub row: DatasetRow,
    /// Δ_x(S), the marginal gain, in nats.
    pub gain: f64,
    /// log(1 + α‖g‖²): the full Δ_x(∅), in nats.
    pub base: f64,
    /// conflict_x(S), in [0, 1].
    pub conflict: f64,
    /// Δ − λ·conflict (for [`Method::TopK`](super::Method::TopK): Δ), with the m and b of [`Conditions`](super::Conditions): m·Δ − λ·conflict + b.
    pub score: f64,
    /// Whether some other row that could be picked had a larger Δ (m·Δ + b): the penalty decided.
    pub overruled: bool,
    /// Rows evaluated to find it.
    pub rows_read: u64,
}

/// Why a selection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopReason {
    /// As many rows as asked for, or as the budget pays for.
    #[default]
    Budget,
    /// The best Δ fell to ω times the first.
    EarlyStop,
    /// No row was left that may be picked.
    Exhausted,
    /// The monitor's time limit passed.
    TimeLimit,
}

/// The selected rows in pick order.
#[derive(Clone, Debug)]
pub struct Selection {
    /// One entry per selected row.
    pub picks: Vec<Pick>,
    /// Why the last (with windows: any) greedy run ended before it had its k rows, or that it had them.
    pub stop: StopReason,
    /// U(S) = log det(I + αF_S) of the picks up to and including each, and of the initial rows, in nats,
    /// whatever the mode; with windows NaN but for the last.
    pub log_dets: Vec<f64>,
    /// U(S) of all picks: the last of `log_dets`, and of the initial rows if there are no picks.
    pub log_det: f64,
    /// Rows that would have been picked, were they not too similar to selected ones.
    pub near_duplicates: Vec<NearDuplicate>,
}

/// A row that was skipped since it is too similar to a selected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearDuplicate {
    /// Where the row is in the pool.
    pub position: Position,
    /// The row itself.
    pub row: DatasetRow,
    /// The first selected row that it is too similar to.
    pub of: DatasetRow,
    /// Their cosine.
    pub cosine: f64,
    /// Number of picks that had been made by then.
    pub picks: usize,
}
