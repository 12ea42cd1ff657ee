"""Sets of dataset rows: a byte for each row of the data, where most of them are in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPARSE = 64  # rows of the data for each in the set, from which on a set of Python takes less


class RowSet(Collection[int]):
    """Rows of the data that are wanted.

    Args:
        rows: (n,) integers ≥ 0, in any order, each once.
    """

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = np.sort(rows)
        last = int(self._rows[-1]) if len(rows) else -1
        self._few: frozenset[int] | None = None
        self._there = b""
        if last >= _SPARSE * len(rows):
            self._few = frozenset(self._rows.tolist())
        else:
            there = np.zeros(last + 1, np.uint8)
            there[self._rows] = 1
            self._there = there.tobytes()

    def __contains__(self, row: Any) -> bool:
        if self._few is not None:
            return row in self._few
        return bool(0 <= row < len(self._there) and self._there[row])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self._rows), 4096):
            yield from self._rows[start : start + 4096].tolist()
