"""Conditions for the pools of `pools.cases()`: each kind alone or all together, and always possible to satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

import constraint_rules
import pools

KINDS = ("groups", "budget", "initial", "include", "exclude", "max_similarity", "weights", "prior")


@dataclass
class Asked:
    """Rows and the keywords of one call of `select`."""

    rows: np.ndarray
    keywords: dict[str, Any]

    @property
    def conditions(self) -> constraint_rules.Conditions:
        return constraint_rules.resolve(len(self.rows), self.keywords)

    def without(self, *names: str, **others: Any) -> Asked:
        """The same call without some of its keywords, and with others."""
        return Asked(self.rows, {k: v for k, v in self.keywords.items() if k not in names} | others)

    def __repr__(self) -> str:
        keywords = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.keywords.items()}
        return f"Asked(np.array({self.rows.tolist()}, np.{self.rows.dtype}), {keywords})"


@st.composite
def asked(draw: st.DrawFn, kinds: tuple[str, ...] | None = None, readings: bool = True) -> Asked:
    """A pool and conditions of the given kinds, of any if None; with `readings` also other modes than the paper's."""
    case = draw(pools.cases())
    if kinds is None:
        kinds = tuple(kind for kind in KINDS if draw(st.booleans()))
    r = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = len(case.rows)
    keywords: dict[str, Any] = {"alpha": case.alpha, "conflict_penalty": case.penalty}
    if readings:
        fisher, method = draw(
            st.sampled_from(
                [("full", "greedy")] * 5
                + [(f, "greedy") for f in ("diagonal", "scalar")]
                + [("full", "top_k")]
            )
        )
        keywords.update(fisher=fisher, method=method)
    _rows_of_their_own(kinds, n, keywords, r)
    free = np.setdiff1d(np.arange(n), keywords.get("initial", []) + keywords.get("exclude", []))
    if "weights" in kinds:
        few_bits = r.choice([0.25, 0.5, 1, 1.5, 2, 3, 4, 16], n)
        weights = r.choice([few_bits, few_bits, few_bits, r.lognormal(0, 1, n)])
        lengths = (case.rows.astype(np.float64) ** 2).sum(1)
        while (case.alpha * weights * lengths).max() > 1e12:  # float64 has no digits beyond
            weights = weights / 4
        keywords["weights"] = weights
    if "prior" in kinds:
        size = r.choice([0.01, 0.3, 3.0])
        keywords["prior"] = r.choice([size * r.standard_normal(n), size * r.integers(-1, 2, n)])
        keywords["prior_weight"] = float(r.choice([1.0, 0.25, 3.0]))
    if "max_similarity" in kinds:
        keywords["max_similarity"] = float(r.choice([0.2, 0.5, 0.8, 0.95, 0.999, 0.999999]))
    if "budget" in kinds:
        _budget(n, free, keywords, r)
    else:
        keywords["k"] = min(int(r.choice([case.k, n // 2, n // 2, n // 4, 16])) or 1, len(free))
    include = r.permutation(free)[: r.integers(0, 4)].tolist() if "include" in kinds else []
    if "include" in kinds:
        keywords["include"] = include[: keywords.get("k")]
        _shorten(n, keywords)
    stop = draw(st.sampled_from([None] * 6 + [0.1, 0.4, 0.8]))
    if "groups" in kinds:
        _groups(case.rows, keywords, r, stop is not None)
        _shorten(n, keywords)
    keywords["early_stop"] = stop
    if any(low > 0 for low in constraint_rules.resolve(n, keywords).minima):
        keywords["early_stop"] = None
    made = Asked(case.rows, keywords)
    assert constraint_rules.infeasible(made.conditions) is None
    return made


def _rows_of_their_own(
    kinds: tuple[str, ...], n: int, keywords: dict[str, Any], r: np.random.Generator
) -> None:
    """Owned and excluded rows, at least one row being neither."""
    order = r.permutation(n).tolist()
    if "exclude" in kinds:
        keywords["exclude"] = order[: r.integers(0, n // 2 + 1)] if n > 1 else []
    if "initial" in kinds:
        left = order[len(keywords.get("exclude", [])) :]
        keywords["initial"] = left[: min(int(r.choice([0, 1, 2, 5, n // 3])), len(left) - 1)]


def _budget(n: int, free: np.ndarray, keywords: dict[str, Any], r: np.random.Generator) -> None:
    law = r.integers(0, 4)
    if law == 0:
        costs = np.full(n, r.choice([1.0, 2.5]))
    elif law == 1:
        costs = r.integers(1, 40, n).astype(float)
    elif law == 2:
        costs = r.integers(1, 24, n) / 8
    else:
        costs = 2.0 ** r.integers(-3, 6, n)
    keywords["costs"] = costs
    share = int(r.integers(1, 8)) / 8
    if share * costs.sum() >= 1 and r.random() < 0.4:
        keywords["budget"] = share
    else:
        budget = max(1.0, np.floor(r.uniform(0.05, 1.1) * costs[free].sum() * 8) / 8)
        keywords["budget"] = int(budget) if budget == int(budget) and r.random() < 0.5 else float(budget)


def _shorten(n: int, keywords: dict[str, Any]) -> None:
    """Leave out included rows, from the last one on, until the limits allow the rest."""
    while keywords.get("include") and constraint_rules.infeasible(constraint_rules.resolve(n, keywords)):
        keywords["include"] = keywords["include"][:-1]


def _groups(rows: np.ndarray, keywords: dict[str, Any], r: np.random.Generator, no_minima: bool) -> None:
    n, count = len(rows), int(r.integers(1, 6))
    by_side = (rows @ r.standard_normal(rows.shape[1]) > 0).astype(int)
    numbers = r.choice([r.integers(0, count, n), by_side, np.minimum(r.geometric(0.4, n), count)])
    labels = [f"group {g}" for g in numbers] if r.random() < 0.5 else numbers.tolist()
    keywords["groups"] = labels if r.random() < 0.5 else np.array(labels)
    keywords["group_shares"] = {}
    ungrouped = constraint_rules.resolve(n, keywords)
    enough = ungrouped.total <= sum(constraint_rules.sizes(ungrouped))
    if r.random() < 0.3 and not no_minima and enough:
        keywords["group_shares"] = "pool"
        if r.random() < 0.5:
            del keywords["group_shares"]
        return
    conditions = constraint_rules.resolve(n, keywords)
    total, sizes = conditions.total, constraint_rules.sizes(conditions)
    assert total is not None
    quotas = _allocation(conditions, total, sizes, r)
    unit = Fraction(1, 8) if conditions.budget is not None else Fraction(1)
    for name, quota, size in zip(conditions.names, quotas, sizes, strict=True):
        low = r.choice([0, 0.5, 1]) if not no_minima else 0
        low = Fraction(quota * Fraction(float(low))) // unit * unit
        high = [None, quota, quota, quota + (size - quota) // 2 // unit * unit][r.integers(0, 4)]
        if r.random() < 0.85:
            amounts = [_written(value, total, conditions.budget is not None, r) for value in (low, high)]
            keywords["group_shares"][name] = tuple(amounts)


def _allocation(
    conditions: constraint_rules.Conditions, total: Fraction, sizes: list[Fraction], r: np.random.Generator
) -> list[Fraction]:
    """Amounts per group that a selection can have: limits around them can be satisfied."""
    quotas = [Fraction(0)] * len(sizes)
    chosen = conditions.include + [
        int(x) for x in r.permutation(np.flatnonzero(conditions.candidates())) if x not in conditions.include
    ]
    left = total
    for x in chosen:
        cost = Fraction(float(conditions.costs[x]))
        if cost <= left:
            quotas[conditions.groups[x]] += cost
            left -= cost
    return quotas


def _written(
    value: Fraction | None, total: Fraction, by_cost: bool, r: np.random.Generator
) -> int | float | None:
    """An amount in one of the ways to write it: a whole number, cost units or a share that is exact."""
    if value is None or (value == 0 and r.random() < 0.5):
        return None
    share = value / total
    if share <= 1 and Fraction(float(share)) == share and share.denominator <= 64 and r.random() < 0.5:
        return float(share)
    if value.denominator == 1:
        return int(value)
    return float(value) if value > 1 and by_cost else None
