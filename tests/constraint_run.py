"""The naive constrained selection, written so that nobody can get it wrong: one row after the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from constraint_judge import CLOSE
from constraint_rules import GRAIN, Conditions, Prefixes, Scores


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
    prefix = Prefixes(rows, c)
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
