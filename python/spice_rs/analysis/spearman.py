"""Rank correlation, with ties at the mean of their ranks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ranks(values: Floats) -> Floats:
    """Return (n,) ranks from 1; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = last - (counts - 1) / 2.0
    return middle[where.reshape(-1)]


def spearman(a: Floats, b: Floats, alike: float = 0.0) -> float:
    """Return Spearman's ρ of two lists of numbers; nan if all of either differ by at most `alike` of the largest."""
    if any(values.size < 2 or np.ptp(values) <= alike * np.abs(values).max() for values in (a, b)):
        return float("nan")
    x, y = ranks(a), ranks(b)
    x -= x.mean()
    y -= y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else float("nan")
