"""Pools to select from: the four laws of the benchmarks, and adversarial cases for the property tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from laws import LAWS, law

__all__ = ["LAWS", "Case", "cases", "law"]


@dataclass
class Case:
    """One call of `select` on the full objective."""

    rows: np.ndarray
    k: int
    alpha: float
    penalty: float

    def __repr__(self) -> str:
        return (
            f"Case({self.rows.dtype}{list(self.rows.shape)}, k={self.k}, alpha={self.alpha}, penalty={self.penalty},"
            f" rows={self.rows.tolist()})"
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random and adversarial cases.

    Twins, ± pairs, whole pools of ± pairs (whose mean comes back to zero), zero rows, equal norms, norms from 1e-6 to
    1e4, low rank, k = n, k = 20·d, and rows far longer than there are rows.
    """
    shape = draw(st.sampled_from(["wide", "wide", "wide", "narrow", "narrow", "long"]))
    if shape == "wide":
        n, d = draw(st.integers(1, 60)), draw(st.sampled_from([1, 2, 3, 5, 8, 16, 33, 64]))
    elif shape == "narrow":
        d = draw(st.integers(1, 4))
        n = draw(st.integers(20 * d, 120))
    else:
        # More columns than a block of the kernels has, and no multiple of it; no more, as norms that spread cost d² or d³.
        n, d = draw(st.integers(12, 40)), draw(st.sampled_from([300, 600]))
    r = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = _directions(draw(st.sampled_from(KINDS)), n, d, r) / np.sqrt(max(1, d / 64))
    norms = draw(st.sampled_from(["free", "free", "equal", "spread", "tiny", "huge"]))
    if norms == "equal":
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    elif norms == "spread":
        rows *= 10.0 ** r.uniform(-6, 4, (n, 1))
    elif norms == "tiny":
        rows *= 1e-6
    elif norms == "huge":
        rows *= 1e4
    for _ in range(draw(st.integers(0, 6))):
        a, b = r.integers(0, n, 2)
        rows[a] = rows[b] * r.choice([1.0, -1.0, 0.0])
    dtype = draw(st.sampled_from([np.float64, np.float32, np.float16]))
    with np.errstate(over="ignore"):
        rows = np.clip(rows, -6e4, 6e4).astype(dtype)
    budgets = {
        "wide": [1, n, n, max(1, n // 2), max(1, n // 4)],
        "narrow": [20 * d, 20 * d, n],
        "long": [n, n // 2],
    }
    return Case(
        rows,
        draw(st.sampled_from(budgets[shape])),
        draw(st.sampled_from([1.0, 1.0, 0.01, 30.0])),
        draw(st.sampled_from([0, 0.01, 0.1, 0.5, 2.0, 10.0])),
    )


KINDS = ("gauss", "low rank", "opposed", "camps", "cone", "few directions", "pairs", "integers")


def _directions(kind: str, n: int, d: int, r: np.random.Generator) -> np.ndarray:
    if kind == "gauss":
        return r.standard_normal((n, d))
    if kind == "low rank":
        rank = r.integers(1, 4)
        return r.standard_normal((n, rank)) @ r.standard_normal((rank, d))
    if kind == "opposed":
        return r.choice([-1.0, 1.0], (n, 1)) * r.standard_normal(d) + 0.3 * r.standard_normal((n, d))
    if kind == "camps":  # of unequal size and free length: the few conflict with the many for ever
        side = r.choice([-1.0, 1.0], (n, 1), p=[0.3, 0.7]) * r.gamma(2, 0.7, (n, 1))
        return side * r.standard_normal(d) + 0.3 * r.standard_normal((n, d))
    if kind == "cone":  # close to one direction, but for one or two rows: these are all that is cold for long
        rows = r.standard_normal(d) + 0.1 * r.standard_normal((n, d))
        rows[r.integers(0, n, 2)] *= -1
        return rows
    if kind == "few directions":
        return r.standard_normal((3, d))[r.integers(0, 3, n)] * r.choice([1.0, -1.0, 0.5], (n, 1))
    if kind == "pairs":
        half = r.standard_normal(((n + 1) // 2, d))
        return np.vstack([half, -half])[r.permutation(2 * len(half))[:n]]
    return r.integers(-2, 3, (n, d)).astype(float)
