"""What others would pick: by chance, to cover the pool, or with a library's facility location."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.waiting import waited
from spice_rs.memory import check_memory
from spice_rs.nouns import counted
from spice_rs.store.rows import RowReader, unit_rows

Positions = npt.NDArray[np.int64]

FACILITY_ROWS = 5_000
"""Largest pool for facility location: its kernel has n² cells, of which the libraries keep copies."""

FEWEST, MOST = 16, 1024
"""Rows whose distances k-center brings up to date at a time: few at first, and twice as many each time for one pick."""

NEAR = 1e-6
"""Below this share of the lengths, a squared distance is taken from the difference: what is left of ‖x‖² − 2xc + ‖c‖² is
rounding."""

Watch = Callable[[int], object]
"""Called with the number of picks made so far; an exception from it ends the work."""


class NotAvailable(Exception):
    """Why a method cannot be run here."""


def random_rows(candidates: Positions, k: int, seed: int) -> Positions:
    """Return k of some positions, given by dataset row, drawn without replacement."""
    return candidates[np.random.default_rng(seed).permutation(len(candidates))[:k]]


def k_center(order: Positions, reader: RowReader, k: int, watch: Watch | None = None) -> Positions:
    """Return k positions by farthest-first traversal: each next row is the one farthest from all picked before it.

    The greedy 2-approximation of the k-center problem (Gonzalez 1985; as core-set selection Sener and Savarese, ICLR
    2018), with Euclidean distances between gradients. The first is the longest row; equal distances go to the lowest
    dataset row.

    A distance to the nearest pick can only shrink, so that one computed earlier is a bound: a row is measured again only
    while its bound is the largest. Takes memory for the picked rows and three numbers a row.

    Args:
        order: positions to pick from and to cover, by dataset row.
        reader: the rows, float64.
        k: rows to pick, at most all of them.
        watch: told of each pick.
    """
    check_memory(
        f"k_center with {k} picks of {counted(reader.dim, 'column')}",
        8.0 * k * reader.dim + 40.0 * len(order),
        "Leave method 'k_center' out, or pick fewer rows.",
        field="methods",
    )
    lengths = np.concatenate([np.einsum("ij,ij->i", rows, rows) for _, rows in reader.blocks(order=order)])
    picks = np.empty(k, np.int64)
    picks[0] = np.argmax(lengths)
    covered = _Covered(reader, order, lengths, k)
    for step in range(k):
        if step:
            picks[step] = covered.farthest()
        covered.add(int(picks[step]))
        if watch is not None:
            watch(step + 1)
    return order[picks]


class _Covered:
    """How far each row is from the nearest centre, or an upper bound of it; rows by their place among the dataset rows."""

    def __init__(
        self, reader: RowReader, order: Positions, lengths: npt.NDArray[np.float64], most: int
    ) -> None:
        self._reader, self._order, self._lengths = reader, order, lengths
        self._centres, self._squares = np.empty((most, reader.dim)), np.empty(most)
        self._count = 0
        self._bounds = np.full(len(order), np.inf)  # squared
        self._seen = np.zeros(len(order), np.int64)  # how many centres a bound takes into account

    def add(self, row: int) -> None:
        self._centres[self._count] = self._reader.read(self._order[row : row + 1])[0]
        self._squares[self._count] = self._lengths[row]
        self._count += 1
        if self._count == 1:
            start = 0
            for _, rows in self._reader.blocks(order=self._order):
                self._measure(np.arange(start, start + len(rows)), rows)
                start += len(rows)
        self._bounds[row] = -1.0  # below all others, whose distance may be 0

    def farthest(self) -> int:
        size = FEWEST
        while True:
            top = int(np.argmax(self._bounds))
            if self._seen[top] == self._count:
                return top
            stale = np.flatnonzero((self._seen < self._count) & (self._bounds >= 0))
            if len(stale) > size:
                stale = stale[np.argpartition(self._bounds[stale], -size)[-size:]]
                if top not in stale:  # of many equal bounds, others were taken
                    stale[0] = top
            self._measure(stale, self._reader.read(self._order[stale]))
            size = min(2 * size, MOST)

    def _measure(self, which: Positions, rows: npt.NDArray[np.float64]) -> None:
        """Bring the bounds of these rows up to date."""
        oldest = int(self._seen[which].min())
        centres = self._centres[oldest : self._count]
        sums = self._lengths[which, None] + self._squares[None, oldest : self._count]
        distances = sums - 2.0 * waited(np.matmul, rows, centres.T)
        for i, j in np.argwhere(distances < NEAR * sums):
            difference = rows[i] - centres[j]
            distances[i, j] = difference @ difference
        self._bounds[which] = np.minimum(self._bounds[which], distances.min(axis=1))
        self._seen[which] = self._count


def facility_location(reader: RowReader, k: int) -> tuple[Positions, str]:
    """Return k positions by a library's facility location, Σ_x max_{y∈S} (1 + cos(g_x, g_y))/2, and the library's name.

    Raises:
        NotAvailable: neither submodlib nor apricot is installed, or the pool is too large for an n × n kernel.
    """
    if reader.rows > FACILITY_ROWS:
        raise NotAvailable(
            f"its kernel of n × n numbers is computed for up to {FACILITY_ROWS} rows, and the pool has {reader.rows}"
        )
    for run in (_by_submodlib, _by_apricot):
        try:
            return run(reader, k), run.__name__.removeprefix("_by_")
        except ModuleNotFoundError:
            continue
    raise NotAvailable("neither submodlib nor apricot is installed (pip install submodlib-py)")


def _by_submodlib(reader: RowReader, k: int) -> Positions:
    function = import_module("submodlib").FacilityLocationFunction(
        n=reader.rows, mode="dense", separate_rep=False, sijs=_similarity(reader)
    )
    # It cannot be asked for all rows.
    most = min(k, reader.rows - 1)
    maximize = partial(function.maximize, budget=most, optimizer="LazyGreedy", show_progress=False)
    made = waited(maximize)
    picks = np.array([position for position, _ in made], np.int64)
    return np.append(picks, np.setdiff1d(np.arange(reader.rows), picks)[: k - len(picks)])


def _by_apricot(reader: RowReader, k: int) -> Positions:
    selection = import_module("apricot").FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    waited(selection.fit, _similarity(reader).astype(np.float64))
    return np.asarray(selection.ranking, np.int64)


def _similarity(reader: RowReader) -> npt.NDArray[np.float32]:
    """Return (n, n) float32 (1 + cosine)/2, in [0, 1]; rows of zeros have cosine 0."""
    n, dim = reader.rows, reader.dim
    check_memory(
        f"a kernel of {n} × {n} numbers, of rows of {counted(dim, 'column')}",
        # Rows and their units; the kernel, what makes it, and a library's copies.
        20.0 * n * dim + 24.0 * n * n,
        "Leave method 'facility_location' out, or compare a smaller pool.",
        field="methods",
    )
    rows = np.concatenate([rows for _, rows in reader.blocks()])
    unit = unit_rows(rows).astype(np.float32)
    kernel: npt.NDArray[np.float32] = waited(np.matmul, unit, unit.T)
    return np.clip((1 + kernel) / 2, 0, 1)
