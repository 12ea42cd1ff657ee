"""Rows of any source as numpy arrays: some of them, or all of them block by block, scaled as the selection scales them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.store.sources import Normalize, Source

BLOCK_BYTES = 32 << 20
"""Memory that a block of rows takes, unless the caller says how many rows it has."""


class RowReader:
    """Reads rows of a source by position, out of core, as float64 or float32.

    Args:
        source: the rows.
        normalize: scale of the rows, as for `spice_rs.select`.
        dtype: float64 or float32, what rows are returned as; scaling is done in float64.

    Attributes:
        rows: number of rows n.
        dim: number of columns d.
        normalize: the scale, "auto" resolved.

    Raises:
        InvalidInputError: the source does not record what the normalisation needs.
        CorruptStoreError: while rows are read: a file has become shorter, or was written to.
    """

    def __init__(
        self, source: Source, normalize: Normalize = "auto", *, dtype: npt.DTypeLike = np.float64
    ) -> None:
        self.rows, self.dim, self._dtype = source.rows, source.dim, np.dtype(dtype)
        pool = source.pool(normalize)
        self.normalize, self._scale, self._unit = pool.normalize, pool.scale, pool.unit
        self._blocks = [_Block(block, source.dim) for block in source.blocks]
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])

    def read(self, positions: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the (m, d) rows at (m,) positions, 0 ≤ position < n, in any order, repeated or not."""
        wanted = np.asarray(positions, np.int64)
        rows = np.empty((len(wanted), self.dim), np.float64)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(owner).tolist():
            here = np.flatnonzero(owner == number)
            rows[here] = self._blocks[number].read(wanted[here] - self._starts[number])
        if self._scale is not None:
            rows *= self._scale[wanted, None]
        if self._unit:
            unit_rows(rows)
        return rows.astype(self._dtype, copy=False)

    def blocks(
        self, rows_per_block: int | None = None, order: npt.ArrayLike | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Yield (positions, their rows) until every row was there, or every position in `order`.

        Args:
            rows_per_block: rows of a block; by default as many as take `BLOCK_BYTES`.
            order: positions in the order wanted; by default 0 … n − 1, the order of the files.
        """
        size = rows_per_block or max(1, BLOCK_BYTES // (8 * self.dim))
        positions = np.arange(self.rows) if order is None else np.asarray(order, np.int64)
        for start in range(0, len(positions), size):
            chunk = positions[start : start + size]
            yield chunk, self.read(chunk)


def unit_rows(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide each of (m, d) rows by its norm, in place, and return them; rows of zeros stay as they are."""
    # The largest cell first: squares of very long and very short rows leave float64.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    np.divide(rows, largest, out=rows, where=largest > 0)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    np.divide(rows, norms, out=rows, where=norms > 0)
    return rows


class _Block:
    """The rows of one block of a `Source`, as they are stored and without their scale."""

    def __init__(self, block: Any, dim: int) -> None:
        self._store = None if isinstance(block, tuple) else block
        if isinstance(block, tuple):
            cells, dtype, self._rows, *self._files = block
            stored = np.dtype("u2" if dtype == "bfloat16" else dtype)
            self._cells = cells.view(stored).reshape(self._rows, dim)
            self._is_bfloat16 = dtype == "bfloat16"
        else:
            self._rows = len(block)
            self._scale = block.scale.astype(np.float64)

    def __len__(self) -> int:
        return int(self._rows)

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if self._store is not None:  # it scales its rows, in float32
            stored = np.empty((len(positions), self._store.dim), np.float32)
            self._store.read(positions, stored)
            rows: npt.NDArray[np.float64] = stored / self._scale[positions, None]
            return np.rint(rows) if self._store.dtype == "int8" else rows
        for file in self._files:
            file.check()
        cells: npt.NDArray[Any] = self._cells[positions]
        if self._is_bfloat16:  # the upper half of a float32
            return (cells.astype(np.uint32) << 16).view(np.float32)
        return cells
