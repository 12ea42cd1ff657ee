"""Whether a constrained run is one of the right ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from constraint_rules import GRAIN, Conditions, Prefixes, Scores

CLOSE = 1e-12
"""A similarity this close to the threshold may be taken for either side of it."""


class _Limits:
    """What each group may still take, as one largest cost per group."""

    def __init__(self, conditions: Conditions):
        self.conditions = conditions
        self.spent = Fraction(0)
        self.by_group = [Fraction(0)] * len(conditions.names)
        self.eighths = np.round(conditions.costs * GRAIN)

    def take(self, row: int) -> None:
        cost = Fraction(float(self.conditions.costs[row]))
        self.spent += cost
        self.by_group[self.conditions.groups[row]] += cost

    def fitting(self) -> np.ndarray:
        """Mask of the rows that no limit forbids."""
        total = self.conditions.total
        unmet = [max(Fraction(0), a - s) for a, s in zip(self.conditions.minima, self.by_group, strict=True)]
        slack = None if total is None else total - self.spent - sum(unmet)
        caps = []
        for g, highest in enumerate(self.conditions.maxima):
            bounds = []
            if slack is not None:
                bounds.append(unmet[g] + slack if slack >= 0 else Fraction(-1))
            if highest is not None:
                bounds.append(highest - self.by_group[g])
            caps.append(float(min(bounds) * GRAIN // 1) if bounds else np.inf)
        return self.eighths <= np.array(caps)[self.conditions.groups]


def judge_constrained(rows: np.ndarray, run: Any, conditions: Conditions, every: int = 1) -> str | None:
    """Return why a run is not one of those that the conditions allow, or None.

    Args:
        rows: (n, d) rows.
        run: a `spice_rs.Selection`, or anything with its attributes.
        conditions: what was asked for; with a budget the `costed` ones of the run that was kept.
        every: judge only one score in so many steps, the first and the last among them (not with `max_similarity`).
    """
    return _Judge(rows.astype(np.float64), run, conditions, every).verdict()


class _Judge:
    def __init__(self, rows: np.ndarray, run: Any, conditions: Conditions, every: int):
        assert every == 1 or conditions.max_similarity is None
        self.rows, self.run, self.conditions, self.every = rows, run, conditions, every
        self.picks = [int(x) for x in run.indices]
        self.prefix = Prefixes(rows, conditions)
        self.limits = _Limits(conditions)
        self.free = conditions.candidates()
        found = getattr(run, "near_duplicates", None)
        self.reported = [] if found is None else [int(x) for x in found.rows]
        self.seen = 0
        """Reported near-duplicates that have been accounted for."""

    def verdict(self) -> str | None:
        if why := self._forms():
            return why
        first_gain = None
        for step, pick in enumerate(self.picks):
            forced = step < len(self.conditions.include)
            if not self.free[pick]:
                return f"step {step}: row {pick} is excluded, owned or picked already"
            fits = self.limits.fitting() & self.free
            if not forced and not fits[pick]:
                return f"step {step}: row {pick} is not eligible: {self._state(pick)}"
            if step % self.every == 0 or step == len(self.picks) - 1 or step == 0:
                at = self.prefix.scores()
                if why := self._series(step, pick, at):
                    return why
                if not forced and (why := self._best(step, pick, fits, at, first_gain)):
                    return why
                if first_gain is None:
                    first_gain = at.gain[pick]
            if not forced and (why := self._twins(step, pick, fits)):
                return why
            self.prefix.push(pick)
            self.limits.take(pick)
            self.free[pick] = False
            if self.every == 1 or step == len(self.picks) - 1:
                (expected, margin), found = self.prefix.log_det(), float(self.run.log_dets[step])
                if not abs(found - expected) <= margin:
                    return f"step {step}: log_dets {found!r}, expected {expected!r} ± {margin:.2g}"
        expected, margin = self.prefix.log_det()
        if not abs(self.run.log_det - expected) <= margin:
            return f"log_det {self.run.log_det!r}, expected {expected!r} ± {margin:.2g}"
        return self._end(first_gain) or self._duplicates()

    def _forms(self) -> str | None:
        include, k = self.conditions.include, self.conditions.k
        if self.picks[: len(include)] != include:
            return f"the picks start with {self.picks[: len(include)]}, expected the included {include}"
        if self.run.forced != len(include):
            return f"forced is {self.run.forced}, expected {len(include)}"
        if k is not None and len(self.picks) > k:
            return f"{len(self.picks)} picks, more than {k}"
        if len(set(self.picks)) < len(self.picks):
            return "a row was picked twice"
        return None

    def _state(self, row: int) -> str:
        g = self.conditions.groups[row]
        return (
            f"cost {self.conditions.costs[row]}, group {self.conditions.names[g]!r} has spent {self.limits.by_group[g]}"
            f" of {self.conditions.minima[g]} to {self.conditions.maxima[g]}, all {self.limits.spent} of"
            f" {self.conditions.total}"
        )

    def _similar(self, sure: bool) -> np.ndarray:
        """Mask of the rows that are too similar for sure, or perhaps."""
        if self.conditions.max_similarity is None:
            return np.zeros(len(self.rows), bool)
        margin = CLOSE if sure else -CLOSE
        return self.prefix.similarity > self.conditions.max_similarity + margin

    def _account(self, fits: np.ndarray, at: Scores) -> None:
        """Go past the reported near-duplicates that were best here; mark them as taken care of."""
        while self.seen < len(self.reported):
            row = self.reported[self.seen]
            others = np.where(fits & self._unseen(), at.score, -np.inf)
            best = int(np.argmax(others))
            if not fits[row] or not self._similar(False)[row]:
                return
            if at.score[row] < others[best] - max(at.tolerance[best], at.tolerance[row]):
                return
            self.seen += 1

    def _unseen(self) -> np.ndarray:
        mask = np.ones(len(self.rows), bool)
        mask[self.reported[: self.seen]] = False
        return mask

    def _best(
        self, step: int, pick: int, fits: np.ndarray, at: Scores, first_gain: float | None
    ) -> str | None:
        if self._similar(True)[pick]:
            return f"step {step}: row {pick} has a similarity of {self.prefix.similarity[pick]!r} to a pick"
        self._account(fits, at)
        if pick in self.reported:
            return f"step {step}: row {pick} is picked and reported as a near-duplicate"
        above = at.score - at.score[pick] > np.maximum(at.tolerance, at.tolerance[pick])
        if (better := np.flatnonzero(fits & ~self._similar(False) & above)).size:
            best = better[np.argmax(at.score[better])]
            return (
                f"step {step}: picked {pick} ({at.score[pick]!r}), but {best} scores {at.score[best]!r}"
                f" ({self._state(best)})"
            )
        if (skipped := np.flatnonzero(fits & self._similar(True) & above & self._unseen())).size:
            return f"step {step}: rows {skipped} were skipped as near-duplicates and not reported"
        omega = self.conditions.early_stop
        if (
            omega is not None
            and first_gain is not None
            and at.gain[pick] < omega * first_gain * (1 - 2 * at.slip)
        ):
            return (
                f"step {step}: picked {pick} with a gain of {at.gain[pick]!r} after a first of {first_gain!r}"
            )
        if self.conditions.max_similarity is None:
            other = at.merit - at.merit[pick]
            margin = np.maximum(at.tolerance, at.tolerance[pick])
            rivals = fits.copy()
            rivals[pick] = False
            if bool(self.run.overruled[step]):
                if not (rivals & (other > -margin)).any():
                    return f"step {step}: overruled, but no row has a larger merit than {pick}"
            elif (rivals & (other > margin)).any():
                return f"step {step}: not overruled, but row {np.argmax(np.where(rivals, other, -np.inf))} has more merit"
        return None

    def _twins(self, step: int, pick: int, fits: np.ndarray) -> str | None:
        like = fits[:pick] & self._unseen()[:pick] & (self.rows[:pick] == self.rows[pick]).all(1)
        for values in (self.conditions.weights, self.conditions.multiplier, self.conditions.bonus):
            like &= values[:pick] == values[pick]
        if like.any():
            return f"step {step}: picked {pick} before its lower twin {np.flatnonzero(like)[0]}"
        return None

    def _series(self, step: int, pick: int, at: Scores) -> str | None:
        c, run = self.conditions, self.run
        gain, conflict = float(run.gains[step]), float(run.conflict[step])
        merit, penalty = (
            c.multiplier[pick] * gain,
            (0.0 if c.method == "top_k" else c.penalty * conflict),
        )
        checks = {
            "gains": (gain, at.gain[pick], 10 * at.slip * at.gain[pick]),
            "conflict": (conflict, at.conflict[pick], 1e-9),
            "base": (run.base[step], self.prefix.base[pick], 1e-12 * self.prefix.base[pick]),
            "scores": (
                run.scores[step],
                merit - penalty + c.bonus[pick],
                1e-13 * (merit + penalty + abs(c.bonus[pick])),
            ),
        }
        for name, (found, expected, margin) in checks.items():
            if not abs(found - expected) <= margin:
                return f"step {step}: row {pick} has {name} {float(found)!r}, expected {float(expected)!r} ± {margin:.2g}"
        return None

    def _end(self, first_gain: float | None) -> str | None:
        c, reason = self.conditions, self.run.stop_reason
        if c.k is not None and len(self.picks) == c.k:
            return None if reason == "budget" else f"stopped for {reason} with all {c.k} rows"
        fits = self.limits.fitting() & self.free
        at = self.prefix.scores()
        self._account(fits, at)
        open_ = fits & ~self._similar(False)
        above = np.zeros(len(self.rows), bool)
        if reason == "early_stop":
            if c.early_stop is None or first_gain is None:
                return "stopped early without a reason to"
            last = c.early_stop * first_gain
            # The best rows, some of which may be similar or not, and among them one that ends the run.
            best = np.where(open_, at.score, -np.inf).max()
            ends = fits & ~self._similar(True) & (at.score >= best - at.tolerance)
            ends &= at.gain <= last * (1 + 2 * at.slip)
            if not ends.any():
                return f"stopped early, but the best row has more than {last!r}"
            above = (at.score > at.score[ends].max() + at.tolerance) & (at.gain > last * (1 + 2 * at.slip))
        else:
            if open_.any():
                row = np.flatnonzero(open_)[0]
                return f"stopped for {reason}, but row {row} is still eligible: {self._state(row)}"
            above[:] = True
            if reason not in (expected := self._reasons(fits)):
                return f"stopped for {reason}, expected {expected}"
        missed = np.flatnonzero(fits & self._similar(True) & self._unseen() & above)
        return f"near-duplicates {missed} are not reported at the end" if missed.size else None

    def _reasons(self, fits: np.ndarray) -> set[str]:
        """Why the run may have ended, now that no row is eligible."""
        if self.conditions.budget is None or not self.free.any():
            return {"exhausted"}
        if fits.any() or (self._similar(False) | ~self.free).all():
            return {"exhausted", "budget"}  # near-duplicates that would fit: the contract does not say
        return {"budget"}

    def _duplicates(self) -> str | None:
        if self.seen < len(self.reported):
            return f"row {self.reported[self.seen]} is reported as a near-duplicate, but was never best"
        found, order = getattr(self.run, "near_duplicates", None), self.prefix.order
        for row, of, cosine in [] if found is None else zip(found.rows, found.of, found.cosine, strict=True):
            against = np.array([cosines[row] for cosines in self.prefix.cosines])
            first = np.flatnonzero(np.abs(against) > self.conditions.max_similarity + CLOSE)
            maybe = np.flatnonzero(np.abs(against) > self.conditions.max_similarity - CLOSE)
            last = first[0] if first.size else len(order)
            allowed = {order[i]: against[i] for i in maybe if i <= last}
            if of not in allowed:
                return f"near-duplicate {row} is said to be one of {of}, expected {list(allowed)}"
            if abs(allowed[of] - cosine) > CLOSE:
                return f"near-duplicate {row} of {of} has cosine {cosine!r}, expected {allowed[of]!r}"
        return None
