"""The naive algorithm in numpy float64: what every fast path is judged by."""

from __future__ import annotations

from dataclasses import dataclass

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
    prefix = _Prefixes(rows.astype(np.float64), alpha, penalty)
    for i in picked:
        prefix.push(i)
    return prefix.scores()


def conflicts(rows: np.ndarray, picked: list[int]) -> np.ndarray:
    """max(0, −⟨g, m⟩/(‖g‖‖m‖ + η)) of all rows; 0 while nothing is picked.

    Dot products that cancel are taken again in exact arithmetic: where Δ is tiny, the rounding of a conflict that
    should be zero would decide.
    """
    return Exact(rows.astype(np.float64)).conflicts(picked)


class Exact:
    """Rows as whole numbers, all over one power of two: sums and products of them are exact."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.norms = np.sqrt((rows**2).sum(1))
        smallest = np.abs(rows[rows != 0]).min(initial=1.0)
        self.power = 53 - int(np.frexp(smallest)[1])
        self.cache: dict[int, np.ndarray] = {}
        self.sum = np.zeros(rows.shape[1], object)
        self.picked: list[int] = []

    def whole(self, row: int) -> np.ndarray:
        """The row times 2^power."""
        if row not in self.cache:
            mantissas, exponents = np.frexp(self.rows[row])
            shifts = np.where(mantissas == 0, 0, exponents - 53 + self.power)
            self.cache[row] = (mantissas * 2.0**53).astype(np.int64).astype(object) << shifts.astype(object)
        return self.cache[row]

    def conflicts(self, picked: list[int]) -> np.ndarray:
        """See `conflicts`; quick if `picked` only grows from call to call."""
        if not picked:
            return np.zeros(len(self.rows))
        if picked[: len(self.picked)] != self.picked:
            self.sum, self.picked = np.zeros(self.rows.shape[1], object), []
        for i in picked[len(self.picked) :]:
            self.sum = self.sum + self.whole(i)
        self.picked = list(picked)
        # The quotient of two whole numbers is rounded once.
        mean = np.array([cell / (len(picked) << self.power) for cell in self.sum])
        norms = self.norms * np.sqrt((mean**2).sum())
        aligned = self.rows @ mean
        for x in np.flatnonzero(np.abs(aligned) < 1e-3 * norms):
            aligned[x] = int(self.whole(x) @ self.sum) / (len(picked) << 2 * self.power)
        return np.maximum(0.0, -aligned / (norms + ETA))


class _Prefixes:
    """Scores along a growing prefix."""

    def __init__(self, rows: np.ndarray, alpha: float, penalty: float):
        self.alpha, self.penalty = alpha, penalty
        self.exact = Exact(rows)
        # Δ and the condition of I + αF depend on inner products alone: of long rows a triangle has them all.
        self.rows = np.linalg.qr(rows.T, mode="r").T if rows.shape[1] > len(rows) else rows
        self.matrix = np.eye(self.rows.shape[1])
        self.picked: list[int] = []

    def push(self, row: int) -> None:
        self.matrix += self.alpha * np.outer(self.rows[row], self.rows[row])
        self.picked.append(row)

    def scores(self) -> Scores:
        # ‖L⁻¹g‖² is a sum of squares: nothing cancels.
        solved = np.linalg.solve(np.linalg.cholesky(self.matrix), self.rows.T)
        gain = np.log1p(self.alpha * (solved**2).sum(0))
        conflict = self.exact.conflicts(self.picked)
        eigenvalues = np.linalg.eigvalsh(self.matrix)
        # The least eigenvalue is 1 while there are directions that no pick has.
        least = 1.0 if len(self.picked) < self.exact.rows.shape[1] else max(1.0, eigenvalues[0])
        cond = eigenvalues[-1] / least
        tolerance = 1e-10 * (gain + self.penalty * conflict) * max(1.0, cond * 1e-6)
        return Scores(gain, conflict, gain - self.penalty * conflict, tolerance)


def judge(rows: np.ndarray, picks: np.ndarray, alpha: float, penalty: float, every: int = 1) -> str | None:
    """Return why a run of the full mode is wrong, or None: at each of its own prefixes the pick must be best.

    Bit-identical rows must be picked lowest index first. With `every` > 1 only one in so many steps is judged, the
    first and the last among them.
    """
    rows = rows.astype(np.float64)
    prefix = _Prefixes(rows, alpha, penalty)
    free = np.ones(len(rows), bool)
    for step, pick in enumerate(int(p) for p in picks):
        if not free[pick]:
            return f"step {step}: row {pick} was picked twice"
        if step % every == 0 or step == len(picks) - 1:
            at = prefix.scores()
            best = int(np.argmax(np.where(free, at.score, -np.inf)))
            if at.score[pick] < at.score[best] - max(at.tolerance[best], at.tolerance[pick]):
                return (
                    f"step {step}: picked {pick} ({at.score[pick]!r}), but {best} scores {at.score[best]!r}"
                )
        twins = np.flatnonzero(free[:pick] & (rows[:pick] == rows[pick]).all(1))
        if twins.size:
            return f"step {step}: picked {pick} before its lower twin {twins[0]}"
        prefix.push(pick)
        free[pick] = False
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
