"""Examples in a mapped file: their tokens stay on disk, and processes that map one file share what is in memory of it.

Layout, all numbers little-endian: for each example its ids, int32, and what of them is learned: a bit each, filled up to
a multiple of four bytes, or the labels, int32, where those are not the ids; then `TABLES`, one after the other, each at
a multiple of eight bytes; then JSON: where these lie, and what else is known of the data; then the length of that JSON
(8 bytes), BLAKE2b of all of this (32 bytes), and `MAGIC`.

The file of one process is its own. One that is found by name is checked from end to end before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.examples import Example
from spice_rs.data.scratch import Scratch
from spice_rs.data.tokens import IGNORED

MAGIC = b"SPICETK1"
TABLES = {
    "rows": "<i8",
    "starts": "<i8",
    "lengths": "<i4",
    "num_tokens": "<i4",
    "flags": "<u1",
    "record_rows": "<i8",
    "record_hashes": "<i8",
}
"""By example: row of the data, first byte, tokens, learned ones, flags; by good record: row and hash."""

_CUT, _LABELS = 1, 2  # flags: longer in the data; labels in full
_NOT_LEARNED = np.int32(IGNORED)
_DIGEST = 32
_TAIL = 8 + _DIGEST + len(MAGIC)
_PIECE = 1 << 24  # bytes that are hashed at a time


class TokenWriter:
    """Takes examples in their order.

    Args:
        folder: Where the file lies, as for `Scratch`.
        path: Its name, as for `Scratch`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, path: Path | None = None) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST)
        self._file = Scratch(folder, path, self._digest)
        self._tables = {name: array(kind) for name, kind in zip(TABLES, "qqiiB", strict=False)}
        self.largest = self.longest = 0

    def __len__(self) -> int:
        return len(self._tables["rows"])

    def append(self, example: Example) -> None:
        """Take the next one.

        Raises:
            InvalidInputError: There is no room for it.
        """
        ids, labels = example.input_ids, example.labels
        learned = labels != IGNORED
        plain = not (learned & (labels != ids)).any()
        kept = np.packbits(learned).tobytes() if plain else labels.tobytes()
        flags = _CUT * example.cut | _LABELS * (not plain)
        values = (example.index, self._file.size, len(ids), example.num_tokens, flags)
        for table, value in zip(self._tables.values(), values, strict=True):
            table.append(value)
        self._file.write(ids.tobytes() + kept + bytes(-len(kept) % 4))
        self.largest = max(self.largest, int(ids.max()), 0 if plain else int(labels.max()))
        self.longest = max(self.longest, len(ids))

    def finish(
        self, rows: NDArray[np.int64], hashes: NDArray[np.int64], about: Mapping[str, Any]
    ) -> TokenFile:
        """Return them.

        Args:
            rows: (m,) rows of all good records, ascending.
            hashes: (m,) of each.
            about: What else is known of the data, in what JSON has.

        Raises:
            InvalidInputError: There is no room for them.
        """
        tables: dict[str, Any] = {**self._tables, "record_rows": rows, "record_hashes": hashes}
        places = {}
        for name, kind in TABLES.items():
            table = np.asarray(tables[name], kind)
            self._file.write(bytes(-self._file.size % 8))
            places[name] = [self._file.size, len(table)]
            self._file.write(table.tobytes())
        limits = {"largest": self.largest, "longest": self.longest}
        head = json.dumps({"tables": places, **limits, "about": about}).encode()
        self._file.write(head + len(head).to_bytes(8, "little"))
        self._file.flush()
        digest = self._digest.digest()
        self._file.write(digest + MAGIC)
        content = self._file.mapped()
        self._file.close()
        return TokenFile(content)


class TokenFile(Sequence[Example]):
    """Examples, ascending in index, that are made anew whenever they are asked for.

    Attributes:
        rows: (n,) int64, row of the data of each.
        lengths: (n,) int32, its tokens.
        num_tokens: (n,) int32, learned targets.
        record_rows: (m,) int64, rows of all good records.
        record_hashes: (m,) int64, hash of each.
        largest: Largest token id.
        longest: Tokens of the longest.
        about: What else is known of the data.
        digest: Of the file, as it says itself.

    Raises:
        ValueError: It contradicts itself.
    """

    def __init__(self, content: memoryview) -> None:
        self._content = content
        end = len(content) - _TAIL
        if end < 0 or content[-len(MAGIC) :] != MAGIC:
            raise ValueError("no end")
        self.digest = bytes(content[end + 8 : end + 8 + _DIGEST])
        size = int.from_bytes(content[end : end + 8], "little")
        if size > end:
            raise ValueError("no head")
        head = json.loads(bytes(content[end - size : end]))
        try:
            tables = {
                name: _table(content[: end - size], kind, *head["tables"][name])
                for name, kind in TABLES.items()
            }
            self.about: dict[str, Any] = head["about"]
            self.largest, self.longest = int(head["largest"]), int(head["longest"])
        except (TypeError, KeyError) as error:
            raise ValueError("no tables") from error
        self.rows, self.lengths, self.num_tokens = (
            tables[name] for name in ("rows", "lengths", "num_tokens")
        )
        self._starts, self._flags = tables["starts"], tables["flags"]
        self.record_rows, self.record_hashes = tables["record_rows"], tables["record_hashes"]

    @staticmethod
    def open(path: Path) -> TokenFile | None:
        """The file of this name; None if there is none, or no whole one. `is_whole` says whether to trust it."""
        try:
            descriptor = os.open(
                path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            )
        except OSError:
            return None
        try:
            return TokenFile(memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)))
        except (OSError, ValueError, RecursionError):
            return None
        finally:
            os.close(descriptor)

    def is_whole(self) -> bool:
        """Whether every byte is what was written, and every example lies inside of the file."""
        digest, end = hashlib.blake2b(digest_size=_DIGEST), len(self._content) - _TAIL + 8
        for start in range(0, end, _PIECE):
            digest.update(self._content[start : min(start + _PIECE, end)])
        if digest.digest() != self.digest:
            return False
        counts = {len(each) for each in (self.rows, self._starts, self.lengths, self.num_tokens, self._flags)}
        if len(counts) != 1 or len(self.record_rows) != len(self.record_hashes):
            return False
        tokens = self.lengths.astype(np.int64)
        ends = self._starts + 4 * tokens + np.where(self._flags & _LABELS, 4 * tokens, (tokens + 7) // 8)
        inside = len(self) > 0 and self._starts.min() >= 0 and self.lengths.min() > 0 and ends.max() <= end
        return bool(inside and not (self._starts % 4).any())

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return len(self._content)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self._at(place) for place in range(*position.indices(len(self)))]
        return self._at(position)

    def __iter__(self) -> Iterator[Example]:
        return map(self._at, range(len(self)))

    def tokens(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Yield ids (T,), not to be written to, and labels (T,) of the examples at the places (m,)."""
        columns = (self._starts, self.lengths, self._flags)
        for start, count, flags in zip(*(column[places].tolist() for column in columns), strict=True):
            ids = np.frombuffer(self._content, np.int32, count, start)
            behind = start + 4 * count
            if flags & _LABELS:
                yield ids, np.frombuffer(self._content, np.int32, count, behind)
            else:
                bits = np.frombuffer(self._content, np.uint8, (count + 7) // 8, behind)
                yield ids, np.where(np.unpackbits(bits, count=count).view(np.bool_), ids, _NOT_LEARNED)

    def _at(self, place: int) -> Example:
        ((ids, labels),) = self.tokens(np.array([place]))
        cut = bool(self._flags[place] & _CUT)
        return Example(int(self.rows[place]), ids.copy(), labels.copy(), int(self.num_tokens[place]), cut)


def _table(content: memoryview, kind: str, start: int, count: int) -> NDArray[Any]:
    if start < 0 or count < 0:
        raise ValueError("no tables")
    return np.frombuffer(content, kind, count, start)
