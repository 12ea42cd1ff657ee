"""What rows are worth beside the first t rows of a selection: Δ, the angle to their mean, and how they overlap with them.

Two ways to Δ, both in float64 and in blocks of rows:

- *recursive*: with A the selected rows times √α and LLᵀ = I + AAᵀ, a row x has ‖L⁻¹Ax‖² taken off its ‖x‖², and the
  first t terms of that sum are what the first t rows take. So one product of the rows with the selection serves
  every prefix. The difference has an absolute error of some 1e-16·α‖x‖².
- *direct*: for each prefix on its own, ‖L⁻¹x‖² with LLᵀ = I + AᵀA, or for few rows in the coordinates of their own
  span and the rest. Sums of squares alone, and L by orthogonal steps from [I; A], so that 1 beside 10¹² is not lost; each
  prefix costs a product of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.waiting import waited

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

ETA = 1e-8
"""η of the conflict, as in `rust/spice-core/src/selection/conflict.rs`."""

MOST_SIGNAL = 1e7
"""Largest α‖g‖² for which differences are trusted: their error then is some 1e-9."""

MOST_RECURSIVE = 4096
"""Largest number of selected rows for which a square matrix of them is kept."""


@dataclass(frozen=True)
class Measured:
    """What b rows are at s prefixes.

    Attributes:
        gain: (b, s) Δ_x(S) under the run's reading of the Fisher information.
        cosine: (b, s) cosine of the row with the mean of S, with its sign; 0 where one of them is zero.
        conflict: (b, s) max(0, −⟨g, m⟩/(‖g‖‖m‖ + η)).
        overlap: (b, s) α²·Σ_{y∈S}(g_xᵀg_y)², weights included; None if not asked for.
        nearest: (b, s) largest |cosine| with a row of S; None if not asked for.
    """

    gain: Floats
    cosine: Floats
    conflict: Floats
    overlap: Floats | None
    nearest: Floats | None


class Prefixes:
    """The prefixes of a list of selected rows, ready to measure any rows against.

    Args:
        selected: (m, d) rows in the order in which they were selected.
        alpha: weight α of the Fisher information.
        sizes: (s,) numbers of rows of the prefixes, ascending, each at most m.
        weights: (m,) weight of each selected row in F and in the mean; None for 1.
        reading: "full"; "alone" for Δ(∅) whatever is selected; "scalar" or "diagonal" as the released code has them.
        recursive: how "full" is computed; see the module.
    """

    def __init__(
        self,
        selected: Floats,
        alpha: float,
        sizes: Rows,
        *,
        weights: Floats | None = None,
        reading: str = "full",
        recursive: bool = True,
    ) -> None:
        self.sizes, self._alpha, self._reading, self._recursive = sizes, alpha, reading, recursive
        roots = np.sqrt(np.ones(len(selected)) if weights is None else weights)
        self._selected = selected[: int(sizes[-1])] if len(sizes) else selected[:0]
        self._roots = roots[: len(self._selected)]
        self._scaled = self._selected * (np.sqrt(alpha) * self._roots)[:, None]
        self._sums, self._counts = _prefix_sums(self._selected, self._roots**2, sizes)
        self._sum_norms = np.sqrt((self._sums**2).sum(1))
        self._bases: list[tuple[Floats | None, Floats]] = []
        self._inverse = np.empty((0, 0))
        self._reciprocals = np.empty((0, 0))
        if reading == "diagonal":
            self._reciprocals = self._diagonals()
        elif reading == "full" and recursive:
            self._inverse = waited(_inverse_of_pairs, self._scaled)
        elif reading == "full":
            self._bases = [waited(self._basis, self._scaled[:size]) for size in sizes.tolist()]

    def measure(
        self, rows: Floats, weights: Floats | None = None, *, overlap: bool = False, nearest: bool = False
    ) -> Measured:
        """Measure (b, d) rows of (b,) weights at every prefix."""
        roots = np.ones(len(rows)) if weights is None else np.sqrt(weights)
        scaled = rows * (np.sqrt(self._alpha) * roots)[:, None]
        signal = (scaled**2).sum(1)
        products = None
        if overlap or nearest or (self._reading == "full" and self._recursive):
            products = scaled @ self._scaled.T
        with np.errstate(over="ignore"):
            gain = np.log1p(np.maximum(self._values(scaled, signal, products), 0.0))
        norms = np.sqrt((rows**2).sum(1))[:, None]
        aligned = rows @ self._sums.T
        lengths = norms * self._sum_norms
        cosine = np.divide(aligned, lengths, out=np.zeros_like(aligned), where=lengths > 0)
        # With weights η is scaled as the rows are: the quotient is that of the rows themselves.
        floor = np.where(self._counts > 0, ETA * self._counts, 1.0)
        conflict = np.maximum(-aligned / (lengths + floor), 0.0) + 0.0  # and no −0
        return Measured(
            gain,
            cosine,
            conflict,
            self._overlaps(products) if overlap and products is not None else None,
            self._cosines(products, signal) if nearest and products is not None else None,
        )

    def _values(self, scaled: Floats, signal: Floats, products: Floats | None) -> Floats:
        """Return (b, s) v in Δ = log(1 + v)."""
        if self._reading == "alone":
            return np.repeat(signal[:, None], len(self.sizes), axis=1)
        if self._reading == "scalar":
            return np.repeat(signal[:, None] / (1.0 + self._alpha), len(self.sizes), axis=1)
        if self._reading == "diagonal":
            values: Floats = scaled**2 @ self._reciprocals.T
            return values
        if self._recursive and products is not None:
            solved = products @ self._inverse.T
            return signal[:, None] - self._up_to(np.cumsum(solved**2, axis=1))
        values = np.empty((len(scaled), len(self.sizes)))
        for at, (span, inverse) in enumerate(self._bases):
            if span is None:
                values[:, at] = ((scaled @ inverse.T) ** 2).sum(1)
            else:
                within = scaled @ span
                rest = scaled - within @ span.T
                values[:, at] = (rest**2).sum(1) + ((within @ inverse.T) ** 2).sum(1)
        return values

    def _up_to(self, sums: Floats) -> Floats:
        """Return the columns of running sums (b, m) that belong to the prefixes; 0 for that of no rows."""
        padded = np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)
        columns: Floats = padded[:, self.sizes]
        return columns

    def _overlaps(self, products: Floats) -> Floats:
        return self._up_to(np.cumsum(products**2, axis=1))

    def _cosines(self, products: Floats, signal: Floats) -> Floats:
        lengths = np.sqrt(np.outer(signal, (self._scaled**2).sum(1)))
        cosines = np.divide(np.abs(products), lengths, out=np.zeros_like(products), where=lengths > 0)
        return self._up_to(np.maximum.accumulate(cosines, axis=1))

    def _basis(self, scaled: Floats) -> tuple[Floats | None, Floats]:
        """Return (d × r span of few rows or None for the whole space, L⁻¹ of I + F in its coordinates)."""
        size, dim = scaled.shape
        if 2 * size < dim:
            span, triangle = np.linalg.qr(scaled.T)
            return span, _inverse_factor(triangle.T)
        return None, _inverse_factor(scaled)

    def _diagonals(self) -> Floats:
        """Return (s, d) 1/den of the released code, den growing by α·g⁴."""
        den = np.ones(self._selected.shape[1])
        found, done = [], 0
        fourth = (self._selected * self._roots[:, None]) ** 4
        for size in self.sizes.tolist():
            den = den + self._alpha * fourth[done:size].sum(0)
            done = size
            found.append(1.0 / den)
        return np.array(found).reshape(len(found), len(den))


def cost(sizes: Rows, rows: int, dim: int, *, recursive: bool) -> float:
    """Return about how many multiplications it takes to measure so many rows at these prefixes."""
    if not len(sizes):
        return 0.0
    most = float(sizes[-1])
    if recursive:
        return most**3 + rows * most * (2.0 * dim + most)
    few = sizes[2 * sizes < dim].astype(np.float64)
    many = len(sizes) - len(few)
    own = (few**2 * (dim + few)).sum() + many * (dim**3 + most * dim**2)
    return float(own + rows * ((few * (2.0 * dim + few)).sum() + many * dim**2 + len(sizes) * dim))


def _inverse_of_pairs(rows: Floats) -> Floats:
    """Return L⁻¹ of LLᵀ = I + AAᵀ."""
    gram = rows @ rows.T
    gram[np.diag_indices_from(gram)] += 1.0
    inverse: Floats = np.linalg.inv(np.linalg.cholesky(gram))
    return inverse


def log_dets(matrix: Floats) -> Floats:
    """Return log det of the leading minors of I + A, (m,), from a positive semi-definite A, (m, m), which is changed.

    They have the digits of A: where it is small, those are lost in I + A.
    """
    diagonal = np.diagonal(matrix).copy()
    matrix[np.diag_indices_from(matrix)] += 1.0
    factor = waited(np.linalg.cholesky, matrix)
    taken = (np.tril(factor, -1) ** 2).sum(1)
    small = np.log1p(np.maximum(np.where(diagonal < 1, diagonal - taken, 0.0), 0.0))
    sums: Floats = np.cumsum(np.where(diagonal < 1, small, 2.0 * np.log(np.diagonal(factor))))
    return sums


def _inverse_factor(rows: Floats) -> Floats:
    """Return L⁻¹ of LLᵀ = I + AᵀA. AᵀA itself is not formed: it would round I away where the rows are long."""
    factor = np.linalg.qr(np.concatenate([np.eye(rows.shape[1]), rows]), mode="r")
    inverse: Floats = np.linalg.inv(factor).T
    return inverse


class RunningSum:
    """A weighted sum of rows in two parts, the second what rounding leaves out: opposite rows leave nothing behind.

    Args:
        dim: columns of the rows.
    """

    def __init__(self, dim: int) -> None:
        self._sum, self._rest = np.zeros(dim), np.zeros(dim)
        self.weight = 0.0

    def add(self, row: Floats, weight: float = 1.0) -> None:
        """Add a row times its weight."""
        part = weight * row
        new = self._sum + part
        back = new - self._sum
        self._rest += (self._sum - (new - back)) + (part - back)
        self._sum = new
        self.weight += weight

    @property
    def value(self) -> Floats:
        """(d,) the sum."""
        return self._sum + self._rest


def _prefix_sums(rows: Floats, weights: Floats, sizes: Rows) -> tuple[Floats, Floats]:
    """Return (s, d) weighted sums of the prefixes and their (s,) weights."""
    running, done = RunningSum(rows.shape[1]), 0
    sums, counts = np.empty((len(sizes), rows.shape[1])), np.empty(len(sizes))
    for at, size in enumerate(sizes.tolist()):
        for row in range(done, size):
            running.add(rows[row], float(weights[row]))
        done = size
        sums[at], counts[at] = running.value, running.weight
    return sums, counts
