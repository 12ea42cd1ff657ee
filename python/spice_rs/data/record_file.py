"""Records in a file instead of in memory: 25 bytes of memory are left of each."""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.records import Message, Record
from spice_rs.data.scratch import Scratch

TURNS, TEXT, TOKENS = range(3)
"""Kinds of records."""


class RecordWriter:
    """Takes the records of a data set in their order.

    Args:
        folder: Where the file lies, as for `Scratch`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._file = Scratch(folder)
        self._starts, self._rows, self._edges, self._kinds = array("q"), array("q"), array("i"), bytearray()

    def append(self, record: Record) -> None:
        """Take the next one.

        Raises:
            InvalidInputError: There is no room for it.
        """
        turns = [
            (each.role, each.content) if each.learned and not each.more else _whole(each)
            for each in record.messages
        ]
        # Token ids are below 2³¹: `read_tokens` refuses others.
        tokens = None if record.tokens is None else record.tokens.astype(np.int32).tobytes()
        self._edges.append(-1 if record.tokens is None else record.tokens.item(0, 0))
        self._edges.append(-1 if record.tokens is None else record.tokens.item(0, -1))
        more = (
            (record.tools, record.template_options)
            if record.tools is not None or record.template_options
            else ()
        )
        content = (record.index, record.place, turns, tokens, record.text, *more)
        self._starts.append(self._file.size)
        self._rows.append(record.index)
        self._kinds.append(TURNS if turns else TEXT if tokens is None else TOKENS)
        # Python's own objects alone, in a file that nobody else can open.
        self._file.write(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))

    def finish(self) -> StoredRecords:
        """Return them.

        Raises:
            InvalidInputError: There is no room for them.
        """
        content = self._file.mapped()
        self._file.close()
        starts, rows = (np.frombuffer(each, np.int64) for each in (self._starts, self._rows))
        edges = np.frombuffer(self._edges, np.int32).reshape(-1, 2)
        return StoredRecords(content, starts, rows, np.frombuffer(self._kinds, np.uint8), edges)


def _whole(message: Message) -> tuple[Any, ...]:
    return (message.role, message.content, message.more, message.learned)


class StoredRecords(Sequence[Record]):
    """Records that are made anew whenever they are asked for.

    Attributes:
        rows: (n,) int64, position of each in the data, ascending.
        kinds: (n,) uint8, `TURNS`, `TEXT` or `TOKENS`.
        edges: (n, 2) int32, the first and the last token id of what is tokenised already, else -1.
    """

    def __init__(
        self,
        content: memoryview,
        starts: NDArray[np.int64],
        rows: NDArray[np.int64],
        kinds: NDArray[np.uint8],
        edges: NDArray[np.int32],
    ) -> None:
        self._content = content
        self._starts = starts
        self.rows = rows
        self.kinds = kinds
        self.edges = edges

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return len(self._content)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, position: int) -> Record: ...

    @overload
    def __getitem__(self, position: slice) -> StoredRecords: ...

    def __getitem__(self, position: int | slice) -> Record | StoredRecords:
        if isinstance(position, slice):
            return self.take(np.arange(len(self))[position])
        return self._at(int(self._starts[position]))

    def __iter__(self) -> Iterator[Record]:
        for first in range(0, len(self), 4096):
            yield from map(self._at, self._starts[first : first + 4096].tolist())

    def take(self, places: NDArray[Any]) -> StoredRecords:
        """Return those at the places (m,) int64, or where a mask (n,) bool says so."""
        return StoredRecords(
            self._content, self._starts[places], self.rows[places], self.kinds[places], self.edges[places]
        )

    def _at(self, start: int) -> Record:
        index, place, turns, tokens, text, *more = pickle.loads(self._content[start:])  # noqa: S301
        messages = tuple(Message(*turn) for turn in turns)
        if tokens is not None:
            tokens = np.frombuffer(tokens, np.int32).reshape(2, -1).astype(np.int64)
        return Record(index, place, messages, tokens, text, *more)


class ByRow(Mapping[int, Record]):
    """The same by their position in the data."""

    def __init__(self, records: StoredRecords) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[int]:
        return iter(self._records.rows.tolist())

    def __getitem__(self, row: int) -> Record:
        place = int(np.searchsorted(self._records.rows, row))
        if place == len(self._records) or self._records.rows[place] != row:
            raise KeyError(row)
        return self._records[place]
