"""The mark of a store whose extraction has not ended: how many rows it will have.

`unfinished.json` lies in the store's folder from the start of an extraction until one of its processes sees all rows there.
It is no part of the store's format: without it nothing is claimed, and a reader that does not know it misses nothing.
Stores of earlier versions, and those that were filled by hand, have none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.store.notes import read_note, write_note

FILE = "unfinished.json"


@dataclass(frozen=True)
class Unfinished:
    """What an extraction that has begun will come to.

    Attributes:
        rows: of the store when it has ended.
        longest_first: whether the longest samples are computed first, so that the rows that are there are these.
        lost: whether rows are missing that were there, since a repair has set damaged shards aside.
    """

    rows: int
    longest_first: bool
    lost: bool = False

    def text(self, there: int) -> str:
        """Return how far it is, for people."""
        if self.lost:
            return (
                f"{there} of {counted(self.rows, 'row')}: the others were in damaged shards, which a repair has set"
                " aside"
            )
        which = ", the longest first" if self.longest_first else ""
        return f"{there} of {counted(self.rows, 'row')}{which}: the extraction has not ended (or is still running)"


def mark(store: str | os.PathLike[str], unfinished: Unfinished) -> None:
    """Write the mark into the folder of a store.

    Raises:
        OSError: it cannot be written.
    """
    write_note(store, FILE, asdict(unfinished))


def read_mark(store: str | os.PathLike[str]) -> Unfinished | None:
    """Return the mark of a store; None if there is none, or none that can be read: it is a help and no more."""
    match found := read_note(store, FILE, 1 << 12):
        case {"rows": int(rows), "longest_first": bool(order)} if type(rows) is int and rows > 0:
            return Unfinished(rows, order, found.get("lost") is True)
    return None


def unmark(store: str | os.PathLike[str]) -> None:
    """Remove the mark, if it is there.

    Raises:
        OSError: it cannot be removed.
    """
    (Path(local(store)) / FILE).unlink(missing_ok=True)


def of_all(marks: Sequence[Unfinished | None]) -> Unfinished | None:
    """Return the mark of what is put together from several stores: of parts of one data set, the largest."""
    known = [each for each in marks if each is not None]
    return max(known, key=lambda each: each.rows, default=None)
