"""The naive constrained selection in numpy float64: groups, budgets, owned rows, near-duplicates, weights and priors.

`resolve` reads the arguments of `select`, `judge_constrained` says whether a run is a right one, and `greedy_constrained`
is the algorithm itself, written so that nobody can get it wrong. Limits are compared in fractions, which are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

import oracle

CLOSE = 1e-12
"""A similarity this close to the threshold may be taken for either side of it."""

GRAIN = 8
"""Costs are multiples of 1/8: their sums have no rounding."""


@dataclass
class Conditions:
    """What `select` was asked for, by row; limits in the unit of the cost (rows without a budget)."""

    k: int | None
    budget: Fraction | None
    costs: np.ndarray
    weights: np.ndarray
    bonus: np.ndarray
    groups: np.ndarray
    names: list[Any]
    minima: list[Fraction]
    maxima: list[Fraction | None]
    initial: list[int]
    include: list[int]
    exclude: list[int]
    max_similarity: float | None
    early_stop: float | None
    alpha: float = 1.0
    penalty: float = 0.1
    fisher: str = "full"
    method: str = "greedy"
    multiplier: np.ndarray = field(default_factory=lambda: np.ones(1))

    @property
    def total(self) -> Fraction | None:
        """B, all that may be spent; None without a limit."""
        return self.budget if self.budget is not None else None if self.k is None else Fraction(self.k)

    def candidates(self) -> np.ndarray:
        """Mask of the rows that are neither excluded nor owned already."""
        mask = np.ones(len(self.costs), bool)
        mask[self.exclude + self.initial] = False
        return mask

    def costed(self, yes: bool) -> Conditions:
        """The first or the second of the two runs that a budget makes."""
        m = self.costs.sum() / len(self.costs) / self.costs if yes else np.ones(len(self.costs))
        return replace(self, multiplier=m)


# --- the arguments -----------------------------------------------------------------------------------------------


def resolve(n: int, keywords: Mapping[str, Any]) -> Conditions:
    """Read the keywords of `select` for a pool of n rows whose dataset rows are 0 … n − 1."""
    get = keywords.get
    budget = None
    costs = np.ones(n)
    if get("budget") is not None:
        costs = np.asarray(get("costs"), np.float64)
        assert (costs * GRAIN == np.round(costs * GRAIN)).all()
        budget = Fraction(get("budget"))
        if budget < 1:
            budget *= Fraction(costs.sum())
    conditions = Conditions(
        k=get("k"),
        budget=budget,
        costs=costs,
        weights=np.ones(n) if get("weights") is None else np.asarray(get("weights"), np.float64),
        bonus=np.zeros(n)
        if get("prior") is None
        else get("prior_weight", 1.0) * np.asarray(get("prior"), np.float64),
        groups=np.zeros(n, int),
        names=[None],
        minima=[Fraction(0)],
        maxima=[None],
        initial=[int(x) for x in get("initial") or []],
        include=[int(x) for x in get("include") or []],
        exclude=[int(x) for x in get("exclude") or []],
        max_similarity=get("max_similarity"),
        early_stop=get("early_stop"),
        alpha=get("alpha", 1.0),
        penalty=get("conflict_penalty", 0.1),
        fisher=get("fisher", "full"),
        method=get("method", "greedy"),
        multiplier=np.ones(n),
    )
    if get("groups") is not None:
        _resolve_groups(conditions, np.asarray(get("groups")).tolist(), get("group_shares"))
    return conditions


def _resolve_groups(conditions: Conditions, labels: list[Any], shares: Any) -> None:
    names = conditions.names = list(dict.fromkeys(labels))
    numbers = {name: number for number, name in enumerate(names)}
    conditions.groups = np.array([numbers[label] for label in labels])
    total = conditions.total
    if shares is None or shares == "pool":
        assert total is not None
        if conditions.budget is None:
            quotas = [Fraction(q) for q in largest_remainder(sizes(conditions), int(total))]
        else:
            pool = sum(sizes(conditions))
            quotas = [min(total / pool, Fraction(1)) * size for size in sizes(conditions)]
        conditions.minima, conditions.maxima = quotas, list(quotas)
        return

    def amount(value: float | None) -> Fraction | None:
        if value is None:
            return None
        return Fraction(value) * total if isinstance(value, float) and value <= 1 else Fraction(value)

    pairs = [shares.get(name, (None, None)) for name in names]
    conditions.minima = [amount(low) or Fraction(0) for low, _ in pairs]
    conditions.maxima = [amount(high) for _, high in pairs]


def sizes(conditions: Conditions) -> list[Fraction]:
    """What each group has: the cost of its candidates, which is their number without a budget."""
    free = conditions.candidates()
    return [
        Fraction(float(conditions.costs[free & (conditions.groups == g)].sum()))
        for g in range(len(conditions.names))
    ]


def largest_remainder(counts: Sequence[Fraction | int], k: int) -> list[int]:
    """Seats for k in proportion to `counts`; equal remainders go to the earlier one."""
    whole = sum(counts)
    shares = [Fraction(k) * Fraction(count) / Fraction(whole) for count in counts]
    seats = [int(share) for share in shares]
    order = sorted(range(len(counts)), key=lambda g: (seats[g] - shares[g], g))
    for g in order[: k - sum(seats)]:
        seats[g] += 1
    return seats


def infeasible(conditions: Conditions) -> str | None:
    """Say why nothing can satisfy the limits, or None. (That nothing fits for other reasons is no error.)"""
    total, size = conditions.total, sizes(conditions)
    needed = [Fraction(0) for _ in size]
    for x in conditions.include:
        needed[conditions.groups[x]] += Fraction(float(conditions.costs[x]))
    for g, (low, high) in enumerate(zip(conditions.minima, conditions.maxima, strict=True)):
        name = conditions.names[g]
        if high is not None and low > high:
            return f"group {name}: minimum {low} above maximum {high}"
        if low > size[g]:
            return f"group {name}: minimum {low} of {size[g]}"
        if high is not None and needed[g] > high:
            return f"group {name}: {needed[g]} included of at most {high}"
    if total is not None:
        if sum(conditions.minima) > total:
            return f"minima of {sum(conditions.minima)} of {total}"
        if sum(needed) > total:
            return f"{sum(needed)} included of at most {total}"
        if sum(max(low, used) for low, used in zip(conditions.minima, needed, strict=True)) > total:
            return "the included rows leave too little for the minima"
    if conditions.k is not None:
        most = sum(s if z is None else min(s, z) for s, z in zip(size, conditions.maxima, strict=True))
        if most < conditions.k:
            return f"at most {most} of {conditions.k} rows"
    return None


# --- scores ------------------------------------------------------------------------------------------------------


class _WeightedMean(oracle._Exact):
    """Conflicts with the weighted mean Σ w g / Σ w, as exact as those of `oracle.conflicts`."""

    def __init__(self, rows: np.ndarray, weights: np.ndarray):
        super().__init__(rows)
        self.weight_power = 53 - int(np.frexp(weights.min())[1])
        self.weights = [int(Fraction(float(w)) * 2**self.weight_power) for w in weights]
        self.total = 0

    def push(self, row: int) -> None:
        self.sum = self.sum + self.whole(row) * self.weights[row]
        self.total += self.weights[row]

    def now(self) -> np.ndarray:
        if self.total == 0:
            return np.zeros(len(self.rows))
        mean = np.array([cell / (self.total << self.power) for cell in self.sum])
        norms = self.norms * np.sqrt((mean**2).sum())
        aligned = self.rows @ mean
        for x in np.flatnonzero(np.abs(aligned) < 1e-3 * norms):
            aligned[x] = int(self.whole(x) @ self.sum) / (self.total << 2 * self.power)
        return np.maximum(0.0, -aligned / (norms + oracle.ETA))


@dataclass
class Scores:
    """Everything about all n rows at one prefix; arrays (n,)."""

    gain: np.ndarray
    conflict: np.ndarray
    merit: np.ndarray
    score: np.ndarray
    tolerance: np.ndarray
    slip: float
    """Relative error that a gain may have."""


class _Prefixes:
    """Scores along a growing prefix: owned rows first, then picks."""

    def __init__(self, rows: np.ndarray, conditions: Conditions):
        self.conditions = conditions
        # √w·g in place of g: the Fisher information is then Σ w g gᵀ.
        scaled = rows * np.sqrt(conditions.weights)[:, None]
        self.base = np.log1p(conditions.alpha * conditions.weights * (rows**2).sum(1))
        self.norms = np.sqrt((rows**2).sum(1))
        self.rows = rows
        self.mean = _WeightedMean(rows, conditions.weights)
        self.scaled = np.linalg.qr(scaled.T, mode="r").T if rows.shape[1] > len(rows) else scaled
        if conditions.fisher == "diagonal":
            self.scaled = scaled
            self.denominator = np.ones(rows.shape[1])
        self.matrix = np.eye(self.scaled.shape[1])
        self.order: list[int] = []
        self.similarity = np.zeros(len(rows))
        self.cosines: list[np.ndarray] = []
        for x in conditions.initial:
            self.push(x)

    def push(self, row: int) -> None:
        alpha = self.conditions.alpha
        self.matrix += alpha * np.outer(self.scaled[row], self.scaled[row])
        if self.conditions.fisher == "diagonal":
            self.denominator += alpha * self.scaled[row] ** 4
        self.mean.push(row)
        self.order.append(row)
        if self.conditions.max_similarity is not None:
            lengths = self.norms * self.norms[row]
            cosine = np.where(lengths > 0, self.rows @ self.rows[row] / np.where(lengths > 0, lengths, 1), 0)
            self.cosines.append(cosine)
            self.similarity = np.maximum(self.similarity, np.abs(cosine))

    def log_det(self) -> tuple[float, float]:
        """U of all rows so far and what it may be off; singular values keep the digits that products would lose."""
        weights = self.conditions.alpha * self.conditions.weights[self.order]
        values = np.linalg.svd(self.rows[self.order] * np.sqrt(weights)[:, None], compute_uv=False)
        value = float(np.log1p(values**2).sum())
        cond = 1 + float(values.max(initial=0.0)) ** 2
        # The engine takes U from products, which lose eps·cond in every pivot: independent slips add up like a square root.
        return value, 1e-9 * max(1e-3, value) + 5e-16 * cond * (2 + np.sqrt(len(self.order)))

    def scores(self) -> Scores:
        alpha, penalty = self.conditions.alpha, self.conditions.penalty
        cond = 1.0
        if self.conditions.method == "top_k":
            gain, penalty = self.base, 0.0
        elif self.conditions.fisher == "diagonal":
            gain = np.log1p(alpha * (self.scaled**2 / self.denominator).sum(1))
        elif self.conditions.fisher == "scalar":
            gain = np.log1p(alpha * (self.scaled**2).sum(1) / (1 + alpha))
        else:
            solved = np.linalg.solve(np.linalg.cholesky(self.matrix), self.scaled.T)
            gain = np.log1p(alpha * (solved**2).sum(0))
            eigenvalues = np.linalg.eigvalsh(self.matrix)
            least = 1.0 if len(self.order) < self.rows.shape[1] else max(1.0, eigenvalues[0])
            cond = eigenvalues[-1] / least
        conflict = self.mean.now()
        merit = self.conditions.multiplier * gain + self.conditions.bonus
        score = self.conditions.multiplier * gain - penalty * conflict + self.conditions.bonus
        size = self.conditions.multiplier * gain + penalty * conflict + np.abs(self.conditions.bonus)
        slip = 1e-10 * max(1.0, cond * 1e-6)
        return Scores(gain, conflict, merit, score, slip * size, slip)


# --- the judge ---------------------------------------------------------------------------------------------------


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
        self.prefix = _Prefixes(rows, conditions)
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


# --- the algorithm -----------------------------------------------------------------------------------------------


@dataclass
class Duplicates:
    """As `spice_rs.NearDuplicates`."""

    rows: np.ndarray
    of: np.ndarray
    cosine: np.ndarray


@dataclass
class Run:
    """As `spice_rs.Selection`, and what happened on the way."""

    indices: np.ndarray
    gains: np.ndarray
    base: np.ndarray
    conflict: np.ndarray
    scores: np.ndarray
    overruled: np.ndarray
    log_dets: np.ndarray
    log_det: float
    margin: float
    stop_reason: str
    forced: int
    near_duplicates: Duplicates | None
    cost: float
    clear: bool
    """No choice was within the tolerance of another one."""
    events: Counter


def greedy_constrained(rows: np.ndarray, conditions: Conditions) -> Run:
    """Run the greedy algorithm of the contract; one row after the other, every sentence as it stands."""
    rows, c = rows.astype(np.float64), conditions
    n, groups = len(rows), range(len(c.names))
    # Whole numbers of a unit that all costs and limits are multiples of.
    limits = [*c.minima, *c.maxima, c.total]
    unit = math.lcm(GRAIN, *(limit.denominator for limit in limits if limit is not None))
    costs = [int(Fraction(float(cost)) * unit) for cost in c.costs]
    minima = [int(low * unit) for low in c.minima]
    maxima = [None if high is None else int(high * unit) for high in c.maxima]
    total = None if c.total is None else int(c.total * unit)
    prefix = _Prefixes(rows, c)
    barred = set(c.initial) | set(c.exclude)
    picks: list[int] = []
    trace: list[tuple] = []
    log_dets: list[float] = []
    duplicates: list[tuple[int, int, float]] = []
    found: set[int] = set()
    events: Counter = Counter()
    clear = True

    def spent(group: int | None = None) -> int:
        return sum(costs[x] for x in picks if group is None or c.groups[x] == group)

    def fits() -> Callable[[int], bool]:
        used = [spent(g) for g in groups]
        unmet = [max(0, minima[g] - used[g]) for g in groups]
        slack = None if total is None else (total - sum(used)) - sum(unmet)
        events["slack 0"] += slack == 0 and sum(unmet) > 0

        def eligible(x: int) -> bool:
            g = c.groups[x]
            below = maxima[g] is None or used[g] + costs[x] <= maxima[g]
            return below and (slack is None or max(0, costs[x] - unmet[g]) <= slack)

        return eligible

    def too_similar(x: int) -> tuple[int, float] | None:
        if c.max_similarity is None:
            return None
        for s in c.initial + picks:
            length = prefix.norms[x] * prefix.norms[s]
            cosine = float(rows[x] @ rows[s] / length) if length else 0.0
            if abs(cosine) > c.max_similarity:
                return s, cosine
        return None

    def take(x: int, at: Scores, overruled: bool) -> None:
        trace.append((at.gain[x], prefix.base[x], at.conflict[x], at.score[x], overruled))
        prefix.push(x)
        picks.append(x)
        log_dets.append(prefix.log_det()[0])

    for x in c.include:
        take(x, prefix.scores(), False)
    reason = ""
    while not reason:
        if c.k is not None and len(picks) == c.k:
            reason = "budget"
            break
        left = [x for x in range(n) if x not in barred and x not in picks]
        eligible = fits()
        allowed = [x for x in left if x not in found and eligible(x)]
        at = prefix.scores()
        best = max(allowed, key=lambda x: (at.score[x], -x), default=None)
        if best is None:
            reason = "exhausted"
            if c.budget is not None and left and not set(left) <= found:
                reason = "budget"
            break
        best = min(x for x in allowed if x == best or _same(rows, c, x, best))
        for x in left:
            if x not in found and at.score[x] > at.score[best] and not eligible(x):
                group, used = c.groups[x], spent(c.groups[x])
                at_most = maxima[group]
                events["a maximum skips"] += at_most is not None and used + costs[x] > at_most
                events["a minimum skips"] += at_most is None or used + costs[x] <= at_most
                events["a row no longer fits"] += total is not None and spent() + costs[x] > total
        for x in allowed:
            near = at.score[best] - at.score[x] <= 4 * max(at.tolerance[best], at.tolerance[x])
            clear &= x == best or not near or _same(rows, c, x, best)
        if (other := too_similar(best)) is not None:
            duplicates.append((best, *other))
            found.add(best)
            events["a near-duplicate of an owned row"] += other[0] in c.initial
            events["a near-duplicate by its opposite"] += other[1] < 0
            continue
        if c.early_stop is not None and trace:
            last = c.early_stop * trace[0][0]
            clear &= abs(at.gain[best] - last) > 4 * at.slip * last
            if at.gain[best] <= last:
                reason = "early_stop"
                break
        take(best, at, any(at.merit[x] > at.merit[best] for x in allowed))
    for series in duplicates:
        clear &= all(
            abs(abs(cosines[series[0]]) - c.max_similarity) > 2 * CLOSE for cosines in prefix.cosines
        )
    events[f"stop: {reason}"] += 1
    events["a near-duplicate"] += len(duplicates)
    columns = np.array(trace, float).reshape(-1, 5).T
    return Run(
        np.array(picks, np.int64),
        *columns[:4],
        overruled=columns[4].astype(bool),
        log_dets=np.array(log_dets),
        log_det=prefix.log_det()[0],
        margin=prefix.log_det()[1],
        stop_reason=reason,
        forced=len(c.include),
        near_duplicates=None
        if c.max_similarity is None
        else Duplicates(*(np.array([d[i] for d in duplicates]) for i in range(3))),
        cost=spent() / unit,
        clear=bool(clear),
        events=+events,
    )


def _same(rows: np.ndarray, c: Conditions, x: int, y: int) -> bool:
    return (
        bool((rows[x] == rows[y]).all())
        and c.weights[x] == c.weights[y]
        and c.multiplier[x] == c.multiplier[y]
        and c.bonus[x] == c.bonus[y]
    )
