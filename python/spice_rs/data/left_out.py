"""Records that cannot be used: counted by reason, and listed in a file beside the store, never silently dropped."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spice_rs.atomic import replacing
from spice_rs.interface import spoken
from spice_rs.paths import local

SKIP_REMEDY = "correct it, or pass skip_bad=True to leave such records out and count them"


@dataclass(frozen=True)
class LeftOut:
    """A record that was left out.

    Attributes:
        row: Its index in the data.
        place: Where it stands, for people: "pool.jsonl, line 7".
        reason: A few words that are the same for all records of one kind: "empty response".
        detail: What was found and what was expected.
    """

    row: int
    place: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"


def reasons(items: Sequence[LeftOut]) -> dict[str, int]:
    """Number of records by reason, the most frequent first."""
    return dict(Counter(item.reason for item in items).most_common())


def left_out_file(store: str | os.PathLike[str]) -> Path:
    """The side file of a store: `pool-store.left-out.jsonl` beside `pool-store`."""
    path = Path(local(store))
    return path.with_name(f"{path.name}.left-out.jsonl")


def write_left_out(items: Sequence[LeftOut], store: str | os.PathLike[str]) -> Path | None:
    """Writes one line {"row", "reason", "place", "detail"} per record, by row; removes the file if there is none.

    Returns:
        The file, or None.
    """
    path = left_out_file(store)
    if not items:
        path.unlink(missing_ok=True)  # of an earlier run whose data were worse
        return None
    with replacing(path) as file:
        for item in sorted(items, key=lambda item: item.row):
            line = {
                "row": item.row,
                "reason": item.reason,
                "place": item.place,
                "detail": spoken(item.detail),
            }
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    return path
