"""U and what rows add to it in extended precision, from the definitions: what analyses are judged by.

Everything is taken of N = αGGᵀ: det(I + N) is that of I + αF, rows may be of any length, and without the I tiny ones lose
no digits.
"""

from __future__ import annotations

import itertools

import numpy as np

Wide = np.longdouble


def pairs(rows: np.ndarray, alpha: float) -> np.ndarray:
    """Return N = αGGᵀ in extended precision."""
    wide = rows.astype(np.float64).astype(Wide)
    return Wide(alpha) * (wide @ wide.T)


def gains(matrix: np.ndarray, order) -> np.ndarray:
    """Return what each of some rows adds to those before it, by elimination."""
    left = matrix[np.ix_(list(order), list(order))].copy()
    found = np.empty(len(left), Wide)
    for i in range(len(left)):
        found[i] = left[i, i]
        left[i + 1 :, i + 1 :] -= np.outer(left[i + 1 :, i], left[i, i + 1 :]) / (1 + found[i])
    return np.log1p(found)


def log_det(matrix: np.ndarray, rows) -> float:
    """U of some rows, given N of all."""
    return float(gains(matrix, rows).sum())


def gain(matrix: np.ndarray, row: int, beside) -> float:
    """Δ of a row beside others, which do not hold it."""
    return float(gains(matrix, [*beside, row])[-1])


def best(matrix: np.ndarray, k: int, owned=()) -> float:
    """The largest U of any k rows beside the owned ones, by looking at all of them."""
    free = [row for row in range(len(matrix)) if row not in owned]
    return max(log_det(matrix, [*owned, *chosen]) for chosen in itertools.combinations(free, k))
