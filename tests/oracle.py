"""The naive algorithm in numpy float64: what every fast path is judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

ETA = 1e-8


@dataclass
class Scores:
    """Everything about all n rows at one prefix; arrays (n,)."""

    gain: np.ndarray
    conflict: np.ndarray
    score: np.ndarray
    tolerance: np.ndarray


def full_scores(rows: np.ndarray, picked: list[int], alpha: float, penalty: float) -> Scores:
    """Scores of all rows given the picked ones, from the definitions, with the tolerance of a correct pick."""
    rows = rows.astype(np.float64)
    matrix = np.eye(rows.shape[1])
    for i in picked:
        matrix += alpha * np.outer(rows[i], rows[i])
    # ‖L⁻¹g‖² is a sum of squares: nothing cancels.
    solved = np.linalg.solve(np.linalg.cholesky(matrix), rows.T)
    gain = np.log1p(alpha * (solved**2).sum(0))
    conflict = conflicts(rows, picked)
    cond = np.linalg.cond(matrix)
    tolerance = 1e-10 * (gain + penalty * conflict) * max(1.0, cond * 1e-6)
    return Scores(gain, conflict, gain - penalty * conflict, tolerance)


def conflicts(rows: np.ndarray, picked: list[int]) -> np.ndarray:
    """max(0, −⟨g, m⟩/(‖g‖‖m‖ + η)) of all rows; 0 while nothing is picked.

    Dot products that cancel are taken again in exact arithmetic: where Δ is tiny, the rounding of a conflict that
    should be zero would decide.
    """
    if not picked:
        return np.zeros(len(rows))
    rows = rows.astype(np.float64)
    mean = np.array([math.fsum(column) for column in rows[picked].T]) / len(picked)
    norms = np.sqrt((rows**2).sum(1)) * np.sqrt((mean**2).sum())
    aligned = rows @ mean
    for x in np.flatnonzero(np.abs(aligned) < 1e-3 * norms):
        total = sum(
            (Fraction(a) * Fraction(b) for i in picked for a, b in zip(rows[x], rows[i], strict=True)),
            Fraction(),
        )
        aligned[x] = float(total / len(picked))
    return np.maximum(0.0, -aligned / (norms + ETA))


def judge(rows: np.ndarray, picks: np.ndarray, alpha: float, penalty: float) -> str | None:
    """Return why a run of the full mode is wrong, or None: at each of its own prefixes the pick must be best.

    Bit-identical rows must be picked lowest index first.
    """
    rows = rows.astype(np.float64)
    taken: list[int] = []
    for step, pick in enumerate(int(p) for p in picks):
        at = full_scores(rows, taken, alpha, penalty)
        free = np.ones(len(rows), bool)
        free[taken] = False
        if not free[pick]:
            return f"step {step}: row {pick} was picked twice"
        best = int(np.argmax(np.where(free, at.score, -np.inf)))
        if at.score[pick] < at.score[best] - max(at.tolerance[best], at.tolerance[pick]):
            return f"step {step}: picked {pick} ({at.score[pick]!r}), but {best} scores {at.score[best]!r}"
        twins = np.flatnonzero(free[:pick] & (rows[:pick] == rows[pick]).all(1))
        if twins.size:
            return f"step {step}: picked {pick} before its lower twin {twins[0]}"
        taken.append(pick)
    return None


def greedy(
    rows: np.ndarray, k: int, gain_of, penalty: float, omega: float | None = None
) -> tuple[list[int], list]:
    """Run the greedy algorithm with any gain function `gain_of(rows, picked) -> (n,)`."""
    rows = rows.astype(np.float64)
    taken: list[int] = []
    trace = []
    while len(taken) < k:
        gain = gain_of(rows, taken)
        conflict = conflicts(rows, taken)
        score = gain - penalty * conflict
        score[taken] = -np.inf
        best = int(np.argmax(score))
        if omega is not None and taken and gain[best] <= omega * trace[0][0]:
            break
        trace.append((gain[best], conflict[best], score[best]))
        taken.append(best)
    return taken, trace


def diagonal_gain(alpha: float):
    """Δ of the released code's diagonal mode."""

    def gain(rows: np.ndarray, picked: list[int]) -> np.ndarray:
        denominator = 1 + alpha * (rows[picked] ** 4).sum(0)
        return np.log1p(alpha * (rows**2 / denominator).sum(1))

    return gain


def scalar_gain(alpha: float):
    """Δ of the released code's scalar mode."""

    def gain(rows: np.ndarray, picked: list[int]) -> np.ndarray:
        return np.log1p(alpha * (rows**2).sum(1) / (1 + alpha))

    return gain


def log_det(rows: np.ndarray, alpha: float) -> float:
    """U = log det(I + αF) by numpy's slogdet."""
    rows = rows.astype(np.float64)
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + alpha * rows.T @ rows)[1])
