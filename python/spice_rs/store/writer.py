"""Appending to a gradient store."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spice_rs import _core
from spice_rs.errors import InvalidInputError
from spice_rs.store.values import as_array, check_shape, floats, integers, is_as_stored


class GradientWriter:
    """Appends rows to a store; made by :meth:`GradientStore.create`, to be used in a ``with`` statement.

    Leaving the ``with`` statement commits what was appended, also when an exception passes through. Rows are written in the
    background: if that fails, the next call raises StoreError, whatever it is, and does nothing else. The rows stay in
    memory, and the call after that tries again.
    """

    def __init__(self, core: _core.StoreWriter, path: str | os.PathLike[str], dim: int) -> None:
        self._core = core
        self._path = os.fspath(path)
        self._dim = dim

    def append(
        self,
        rows: ArrayLike,
        index: ArrayLike,
        num_tokens: ArrayLike | None = None,
        loss: ArrayLike | None = None,
        record: ArrayLike | None = None,
    ) -> None:
        """Appends rows: all of them, or none if one is invalid.

        Args:
            rows: (m, dim) floats: an array or a CPU tensor.
            index: (m,) integers, the row of the dataset, each once in a store.
            num_tokens: (m,) integers, the learned tokens of each sample; for all rows of a store or for none.
            loss: (m,) floats, the loss of each sample; for all rows of a store or for none.
            record: (m,) integers, a hash of what each row was extracted from (`spice_rs.data.records.record_hash`), by
                which data that are given later are recognised; for all rows of a store or for none.

        Raises:
            InvalidInputError: For a wrong shape or type, NaN or Inf (the message has the dataset row and the
                column), a norm above 1.7e38, and for a row that the store has.
            StoreError: If a shard of earlier rows could not be written; what ``contains`` tells of is kept.
        """
        # All that is small is checked before the rows are copied, which may be most of the memory.
        wanted = (None, self._dim)
        cells: Any = (
            rows if isinstance(getattr(rows, "shape", None), tuple) else as_array("rows", rows, wanted)
        )
        check_shape("rows", tuple(cells.shape), wanted)
        m = cells.shape[0]
        places = integers("index", index, np.int64, m)
        values = (
            None if num_tokens is None else integers("num_tokens", num_tokens, np.int32, m),
            None if loss is None else floats("loss", loss, (m,)),
            None if record is None else integers("record", record, np.int64, m),
        )
        if not is_as_stored(cells):
            self._refuse_known(places)
        self._core.append(floats("rows", cells, (m, self._dim)), places, *values)

    def _refuse_known(self, index: NDArray[np.int64]) -> None:
        """Refuses rows that the core would refuse, before they are copied for it."""
        ordered = np.sort(index)
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        known = ordered[again] if again.size else index[self._core.contains(index)]
        if known.size:
            raise InvalidInputError(
                f"index: found row {known[0]} a second time, expected rows that the store does not have. Append each row of"
                " the dataset once; skip the rows that are there."
            )

    def contains(self, index: ArrayLike) -> NDArray[np.bool_]:
        """Which rows the store had when the writer was created or has got from it since: (m,) bool.

        Args:
            index: (m,) integers, rows of the dataset.
        """
        return self._core.contains(integers("index", index, np.int64))

    def commit(self) -> None:
        """Makes what was appended a shard; it is on disk when this returns.

        Raises:
            StoreError: If a shard cannot be written; the rows stay in memory.
        """
        self._core.commit()

    def close(self) -> None:
        """Commits and closes; closing again does nothing."""
        self._core.close()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"{self!r} cannot be pickled: it has rows that are not written yet. Call GradientStore.create in each process."
        )

    def __enter__(self) -> GradientWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GradientWriter({self._path!r}, dim={self._dim})"
