"""Where the record of each dataset row is: eight bytes for each row, where rows are as many as they go high."""

from __future__ import annotations

from array import array

_SPARSE = 64  # times as many rows as were met may be passed over before a dict takes less


class RowPlaces:
    """Dataset row ≥ 0 → number of its record ≥ 0, as they are met."""

    def __init__(self) -> None:
        self._dense = array("q")
        self._others: dict[int, int] = {}
        self._count = 0

    def get(self, row: int) -> int | None:
        """Return the number of a row's record; None if it was not met."""
        if row < len(self._dense) and self._dense[row] >= 0:
            return self._dense[row]
        return self._others.get(row)

    def put(self, row: int, place: int) -> None:
        """Take over the number of a row's record."""
        self._count += 1
        if row >= len(self._dense) and row < _SPARSE * self._count:
            self._dense.frombytes(b"\xff" * (8 * (max(row + 1, 2 * len(self._dense)) - len(self._dense))))
        if row < len(self._dense):
            self._dense[row] = place
        else:
            self._others[row] = place

    def __contains__(self, row: int) -> bool:
        return self.get(row) is not None

    def __len__(self) -> int:
        return self._count
