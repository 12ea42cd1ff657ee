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
    """Random and adversarial cases: twins, ± pairs, zero rows, equal norms, low rank, k = n, k ≫ d, wild norms."""
    n = draw(st.integers(1, 60))
    d = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 33, 64]))
    r = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["gauss", "low rank", "opposed", "few directions", "integers"]))
    if kind == "gauss":
        rows = r.standard_normal((n, d))
    elif kind == "low rank":
        rank = draw(st.integers(1, 3))
        rows = r.standard_normal((n, rank)) @ r.standard_normal((rank, d))
    elif kind == "opposed":
        rows = r.choice([-1.0, 1.0], (n, 1)) * r.standard_normal(d) + 0.3 * r.standard_normal((n, d))
    elif kind == "few directions":
        rows = r.standard_normal((3, d))[r.integers(0, 3, n)] * r.choice([1.0, -1.0, 0.5], (n, 1))
    else:
        rows = r.integers(-2, 3, (n, d)).astype(float)
    norms = draw(st.sampled_from(["free", "equal", "spread", "tiny", "huge"]))
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
    k = draw(st.sampled_from([1, n, n, max(1, n // 2), max(1, n // 4)]))
    return Case(
        rows,
        k,
        draw(st.sampled_from([1.0, 1.0, 0.01, 30.0])),
        draw(st.sampled_from([0, 0.1, 0.5, 2.0, 10.0])),
    )
