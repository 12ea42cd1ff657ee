"""How conflict and overlap go with gain, step by step over the candidates."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from spice_rs import _core
from spice_rs.analysis.prefixes import Floats, Integers
from spice_rs.analysis.spearman import spearman

ROUNDING = 4096 * np.finfo(np.float64).eps
"""What a difference of two Δ may be off, in parts of 1 + α‖g‖²."""


@dataclass(frozen=True, eq=False)
class Stepwise:
    """Spearman's ρ over candidates, one number per step; nan where all of either quantity are equal.

    Attributes:
        ranks: (c,) picks made before each step.
        rows: (c,) candidates that were ranked there.
        conflict_gain: (c,) conflict against Δ (the paper reports −0.79).
        conflict_epsilon: (c,) conflict against |ε| (the paper reports 0.90).
        cosine_gain: (c,) |cosine to the mean| against Δ.
        cosine_epsilon: (c,) |cosine to the mean| against |ε|.
        overlap_gain: (c,) Σ_{y∈S}(g_xᵀg_y)², the sum of Theorem 4, against Δ.
        overlap_epsilon: (c,) the same against |ε|.
    """

    ranks: Integers
    rows: Integers
    conflict_gain: Floats
    conflict_epsilon: Floats
    cosine_gain: Floats
    cosine_epsilon: Floats
    overlap_gain: Floats
    overlap_epsilon: Floats

    def averages(self) -> dict[str, tuple[float, float, int]]:
        """Return for each pair (mean over steps, median over steps, steps at which it is defined)."""
        found = {}
        for each in fields(self)[2:]:
            values = getattr(self, each.name)
            defined = values[np.isfinite(values)]
            middle = (float(defined.mean()), float(np.median(defined))) if len(defined) else (np.nan, np.nan)
            found[each.name] = (*middle, len(defined))
        return found


@dataclass(frozen=True, eq=False)
class Tightness:
    """|ε_x(S)| against α²Σ_{y∈S}(g_xᵀg_y)²/(1 + α‖g_x‖²), the bound of Theorem 4 with C = 1, over candidates.

    Attributes:
        median: (c,) median of |ε|/bound at each step of `Stepwise`, over rows whose bound is not 0.
        largest: (c,) the largest.
        violations: pairs of row and step where |ε| exceeds the bound by more than rounding.
        checked: pairs looked at.
    """

    median: Floats
    largest: Floats
    violations: int
    checked: int


NAMES = {
    "conflict_gain": "conflict and Δ",
    "conflict_epsilon": "conflict and |ε|",
    "cosine_gain": "|cosine to the mean| and Δ",
    "cosine_epsilon": "|cosine to the mean| and |ε|",
    "overlap_gain": "Σ(gᵀg_y)² and Δ",
    "overlap_epsilon": "Σ(gᵀg_y)² and |ε|",
}
"""Pairs of `Stepwise` in words."""

NO_STEPS = "Nothing is correlated: that takes a step with other candidates and a pick before it."
"""What is said where `Stepwise` has no steps."""


@dataclass(frozen=True)
class Ranked:
    """A sample of r candidates of a run at c of its steps.

    Attributes:
        ranks: (c,) picks made before each step.
        base: (r,) log(1 + α‖g‖²).
        gain: (r, c) Δ; nan for rows picked by then.
        conflict: (r, c).
        cosine: (r, c) with the mean of the picks.
        overlap: (r, c) α²Σ(g_xᵀg_y)².
    """

    ranks: Integers
    base: Floats
    gain: Floats
    conflict: Floats
    cosine: Floats
    overlap: Floats


def stepwise(parts: list[Ranked]) -> Stepwise:
    """Return the rank correlations of all steps."""
    columns: dict[str, list[float]] = {each.name: [] for each in fields(Stepwise)}
    for part in parts:
        for at, rank in enumerate(part.ranks.tolist()):
            free = np.isfinite(part.gain[:, at])
            gain = part.gain[free, at]
            lost = np.abs(gain - part.base[free])
            columns["ranks"].append(rank)
            columns["rows"].append(int(free.sum()))
            for name, values in (
                ("conflict", part.conflict[free, at]),
                ("cosine", np.abs(part.cosine[free, at])),
                ("overlap", part.overlap[free, at]),
            ):
                columns[f"{name}_gain"].append(spearman(values, gain))
                columns[f"{name}_epsilon"].append(spearman(values, lost))
    ranks, rows = (np.array(columns.pop(name), np.int64) for name in ("ranks", "rows"))
    return Stepwise(ranks, rows, **{name: np.array(values, float) for name, values in columns.items()})


def tightness(parts: list[Ranked]) -> Tightness:
    """Return |ε| against the bound of Theorem 4 at all steps."""
    medians, largest, violations, checked = [], [], 0, 0
    for part in parts:
        signal = np.expm1(part.base)
        for at in range(len(part.ranks)):
            free = np.isfinite(part.gain[:, at])
            lost = np.abs(part.gain[free, at] - part.base[free])
            bound = part.overlap[free, at] / (1.0 + signal[free])
            rounding = ROUNDING * (1.0 + signal[free])
            violations += int((lost > bound * (1 + _core.SLACK) + rounding).sum())
            checked += len(lost)
            some = bound > rounding
            ratios = lost[some] / bound[some]
            medians.append(float(np.median(ratios)) if len(ratios) else float("nan"))
            largest.append(float(ratios.max()) if len(ratios) else float("nan"))
    return Tightness(np.array(medians), np.array(largest), violations, checked)
