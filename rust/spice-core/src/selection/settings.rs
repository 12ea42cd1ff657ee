//! What decides a selection besides the rows.

use crate::error::{Error, Result};

/// Which reading of the Fisher information Δ is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fisher {
    /// The paper's: Δ = log(1 + α gᵀ(I + αF)⁻¹g).
    Full,
    /// The released code's diagonal of fourth powers; not the paper's formula.
    Diagonal,
    /// The released code's constant: Δ = log(1 + α‖g‖²/(1 + α)).
    Scalar,
}

/// How rows compete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One pick at a time, each changing the gains of the rest.
    Greedy,
    /// The k largest Δ(∅); no interaction and no penalty.
    TopK,
    /// Greedy, but content with a row whose score is at least 1 − ε times the best.
    EpsilonLazy,
    /// Greedy, each time over n/k·log(1/ε) rows drawn at random.
    Stochastic,
}

/// How the best row of a greedy step is found. The picks do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Every row is evaluated at every pick: the oracle and the baseline.
    Eager,
    /// Rows are evaluated while an earlier, larger Δ keeps them in the running, and an earlier angle to
    /// the mean does not put them out of it.
    Lazy,
    /// The same without angles: what Δ alone is worth as a bound.
    LazyGain,
}

/// Everything that decides a selection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Weight α of the Fisher information; positive.
    pub alpha: f64,
    /// Weight λ of the conflict penalty; not negative.
    pub conflict_penalty: f64,
    /// Stop once the best row's Δ is at most this fraction ω of the first pick's; inside (0, 1).
    pub early_stop: Option<f64>,
    /// The reading of the Fisher information.
    pub fisher: Fisher,
    /// How rows compete.
    pub method: Method,
    /// How the best row is found.
    pub search: Search,
    /// Rows of the full objective that are followed pick by pick; `None` for what the caches hold. It
    /// changes the time and the memory that a lazy search takes, and no pick.
    pub hot_rows: Option<usize>,
    /// ε of the approximate methods; inside (0, 1).
    pub epsilon: f64,
    /// Seed of [`Method::Stochastic`].
    pub seed: u64,
}

impl Default for Settings {
    /// The paper's method with its α and λ, exactly.
    fn default() -> Self {
        Self {
            alpha: 1.0,
            conflict_penalty: 0.1,
            early_stop: None,
            fisher: Fisher::Full,
            method: Method::Greedy,
            search: Search::Lazy,
            hot_rows: None,
            epsilon: 0.1,
            seed: 0,
        }
    }
}

impl Settings {
    /// # Errors
    /// [`Error::InvalidInput`] naming the setting that is out of range.
    pub(super) fn check(&self) -> Result<()> {
        let number = |field: &str, value: f64, legal: bool, expected: &str, remedy: &str| {
            if legal { Ok(()) } else { Err(Error::invalid(field, value, expected, remedy)) }
        };
        let (alpha, penalty) = (self.alpha, self.conflict_penalty);
        check_alpha(alpha)?;
        let legal = penalty.is_finite() && penalty >= 0.0;
        let remedy = "The paper uses 0.1; 0 switches the penalty off.";
        number("conflict_penalty", penalty, legal, "a number of at least 0", remedy)?;
        let approximate = matches!(self.method, Method::EpsilonLazy | Method::Stochastic);
        let epsilon = self.epsilon;
        if approximate {
            let legal = epsilon > 0.0 && epsilon < 1.0;
            let remedy = "A small number such as 0.05 stays close to the exact picks.";
            number("epsilon", epsilon, legal, "a number between 0 and 1, both excluded", remedy)?;
        }
        if approximate && (self.fisher != Fisher::Full || self.search == Search::Eager) {
            return Err(Error::invalid(
                "method",
                "an approximate one with another Fisher information or an eager search",
                "fisher=\"full\" and a lazy search",
                "Use method=\"greedy\": it is exact, and fast in the other modes.",
            ));
        }
        let omega = self.early_stop.unwrap_or(0.5);
        let remedy = "The paper uses 0.5; None switches early stop off.";
        number(
            "early_stop",
            omega,
            omega > 0.0 && omega < 1.0,
            "a number between 0 and 1, both excluded",
            remedy,
        )
    }
}

pub(crate) fn check_alpha(alpha: f64) -> Result<()> {
    if alpha.is_finite() && alpha > 0.0 {
        return Ok(());
    }
    Err(Error::invalid("alpha", alpha, "a positive number", "The paper uses alpha=1."))
}
