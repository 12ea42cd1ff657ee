//! Where a row that competes is, seen from the cold ones.
//!
//! Every period goes through all of them, so that a row's standing is packed into the eight bytes of its bound: whoever does
//! not wait has a number below every bound, and one comparison tells who may reach one.

/// What a row does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// It is cold; its q is at most this, and that is not negative.
    Waiting(f64),
    /// It is hot, out of sight, out of the running or picked.
    Away,
}

/// A [`State`], packed.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Standing(f64);

impl Standing {
    pub(super) const AWAY: Self = Self(-1.0);

    /// Of a cold row whose q is at most `bound`.
    pub(super) fn waiting(bound: f64) -> Self {
        Self(bound.max(0.0))
    }

    pub(super) fn state(self) -> State {
        if self.0 >= 0.0 { State::Waiting(self.0) } else { State::Away }
    }

    pub(super) fn is_waiting(self) -> bool {
        matches!(self.state(), State::Waiting(_))
    }

    /// Upper bound of q; below zero, which no q is, if the row does not wait.
    pub(super) const fn bound(self) -> f64 {
        self.0
    }

    /// Whether the row waits and its q may reach `least`, which is not negative.
    pub(super) fn may_reach(self, least: f64) -> bool {
        self.0 >= least
    }

    /// The one of the larger bound; one that waits, if there is one.
    pub(super) fn larger(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_state_is_the_state() {
        for bound in [0.0, 1e-300, 7.0, f64::INFINITY] {
            let standing = Standing::waiting(bound);
            assert_eq!(standing.state(), State::Waiting(bound));
            assert!(standing.may_reach(bound) && standing.may_reach(0.0));
            assert_eq!(Standing::AWAY.larger(standing).state(), State::Waiting(bound));
        }
        assert_eq!(Standing::waiting(-1e-9).state(), State::Waiting(0.0));
        assert_eq!(Standing::AWAY.state(), State::Away);
        assert!(!Standing::AWAY.is_waiting() && !Standing::AWAY.may_reach(0.0));
        assert_eq!(size_of::<Standing>(), size_of::<f64>());
    }
}
