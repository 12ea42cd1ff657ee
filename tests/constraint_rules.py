"""The rules of a constrained selection: what `select` was asked for, and what rows are worth along a prefix.

Groups, budgets, owned rows, near-duplicates, weights and priors in numpy float64. `resolve` reads the arguments of
`select`; limits are compared in fractions, which are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

import oracle

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


class WeightedMean(oracle.Exact):
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


class Prefixes:
    """Scores along a growing prefix: owned rows first, then picks."""

    def __init__(self, rows: np.ndarray, conditions: Conditions):
        self.conditions = conditions
        # √w·g in place of g: the Fisher information is then Σ w g gᵀ.
        scaled = rows * np.sqrt(conditions.weights)[:, None]
        self.base = np.log1p(conditions.alpha * conditions.weights * (rows**2).sum(1))
        self.norms = np.sqrt((rows**2).sum(1))
        self.rows = rows
        self.mean = WeightedMean(rows, conditions.weights)
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
