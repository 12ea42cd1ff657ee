"""The data that a store belongs to since it has grown with them.

`store.json` is written once, with the data that the first rows were extracted from. Where more records have come since, and
every row is still that of its record, `grown.json` has what `dataset` in the provenance says of the data as they are now.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from spice_rs.data.matching import Belonging
from spice_rs.store.notes import read_note, write_note

FILE = "grown.json"

_LONGEST = 1 << 20  # bytes


def write_grown(store: str | os.PathLike[str], dataset: Mapping[str, Any]) -> None:
    """Note the data that a store belongs to from now on: `dataset` of the provenance.

    Raises:
        OSError: it cannot be written.
    """
    write_note(store, FILE, dataset)


def read_grown(store: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return `dataset` of the provenance, as it is since the data have grown; None if they have not."""
    found = read_note(store, FILE, _LONGEST)
    return found if isinstance(found, dict) and Belonging.about({"dataset": found}) is not None else None


def largest(grown: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return what holds of the stores together: the data that have most records."""
    known = [each for each in grown if each is not None]
    return max(known, key=lambda each: each["rows"], default=None)
