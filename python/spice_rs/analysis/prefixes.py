"""What rows are worth beside the first t rows of a selection: Δ, the angle to their mean, and how they overlap with them.

Δ and conflict are the core's, by the code that a search runs; sums of squared products, which nothing is decided by, are
numpy's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.store.pool import Pool

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Integers = npt.NDArray[np.int64]
"""Ranks, sizes, numbers of groups, dataset rows: what is no position."""

MOST_SIGNAL = _core.MOST_SIGNAL
"""Largest α‖g‖² of rows that are followed pick by pick: beyond, each prefix costs a product of its own."""

MOST_RECURSIVE = 4096
"""Largest number of selected rows for which a square matrix of them is kept."""


@dataclass(frozen=True)
class Measured:
    """What b rows are at s prefixes.

    Attributes:
        gain: (b, s) Δ_x(S) under the run's reading of the Fisher information.
        cosine: (b, s) cosine of the row with the mean of S, with its sign; 0 where one of them is zero.
        conflict: (b, s) max(0, −⟨g, m⟩/(‖g‖‖m‖ + η)).
        base: (b,) Δ_x(∅) = log(1 + α‖g‖²), whatever the reading.
        overlap: (b, s) α²·Σ_{y∈S}(g_xᵀg_y)², weights included; None if not asked for.
    """

    gain: Floats
    cosine: Floats
    conflict: Floats
    base: Floats
    overlap: Floats | None


class Prefixes:
    """The prefixes of a list of selected rows, ready to measure any rows against.

    Args:
        selected: (m, d) rows in the order in which they were selected.
        alpha: weight α of the Fisher information.
        sizes: (s,) numbers of rows of the prefixes, ascending, each at most m.
        weights: (m,) weight of each selected row in F and in the mean; None for 1.
        reading: "full"; "alone" for Δ(∅) whatever is selected; "scalar" or "diagonal" as the released code has them.
        signal: largest αw‖g‖² of the rows that will be measured.
    """

    def __init__(
        self,
        selected: Floats,
        alpha: float,
        sizes: Integers,
        *,
        weights: Floats | None = None,
        reading: str = "full",
        signal: float = 0.0,
    ) -> None:
        self.sizes, self._alpha = np.ascontiguousarray(sizes, np.int64), alpha
        most = int(sizes[-1]) if len(sizes) else 0
        self._selected = selected[:most]
        self._weights = None if weights is None else weights[:most]
        self._core = _core.Prefixes(
            pool_of(self._selected, self._weights),
            ends=self.sizes,
            alpha=alpha,
            reading=reading,
            signal=signal,
            threads=None,
        )

    def measure(self, rows: Floats, weights: Floats | None = None, *, overlap: bool = False) -> Measured:
        """Measure (b, d) rows of (b,) weights at every prefix."""
        rows = np.ascontiguousarray(rows, np.float64)
        found = self._core.measure(rows, weights)
        return Measured(**found, overlap=self._overlaps(rows, weights) if overlap else None)

    def _overlaps(self, rows: Floats, weights: Floats | None) -> Floats:
        products = (rows @ self._selected.T) * self._alpha
        squares: Floats = products**2
        if self._weights is not None:
            squares *= self._weights
        if weights is not None:
            squares *= weights[:, None]
        sums = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(squares, axis=1)], axis=1)
        columns: Floats = sums[:, self.sizes]
        return columns


def pool_of(rows: Floats, weights: Floats | None = None) -> Pool:
    """Return (m, d) rows at hand as the core takes them; of no rows, one of zeros."""
    if not len(rows):
        rows, weights = np.zeros((1, rows.shape[1])), None
    cells = np.ascontiguousarray(rows, np.float64).view(np.uint8).reshape(-1)
    return Pool([(cells, "float64", len(rows))], rows.shape[1], None, weights=weights)


def first_near_duplicates(rows: Floats, selected: Floats, max_similarity: float) -> tuple[Integers, Floats]:
    """Return for each of (b, d) rows the place of the first selected row that it is a near-duplicate of, and their cosine.

    Of a row that is none, the number of selected rows: a place behind all of them.
    """
    if not len(rows) or not len(selected):
        return np.full(len(rows), len(selected), np.int64), np.zeros(len(rows))
    places, cosines = _core.near_duplicates(
        pool_of(np.concatenate([selected, rows])),
        listed=len(selected),
        max_similarity=max_similarity,
        threads=None,
    )
    return np.where(places < 0, len(selected), places), cosines


def log_dets(rows: Floats, alpha: float, weights: Floats | None = None) -> Floats:
    """Return U of the first t + 1 of (m, d) rows of (m,) weights, for every t."""
    return _core.log_dets(pool_of(rows, weights), positions=np.arange(len(rows)), alpha=alpha, threads=None)


def cost(sizes: Integers, rows: int, dim: int, *, recursive: bool) -> float:
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
