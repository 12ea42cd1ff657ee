"""What `explain` returns: why one row was or was not picked, in numbers, words, and records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.prefixes import Floats, Integers
from spice_rs.frames import Framed
from spice_rs.printable import one_line
from spice_rs.tables import UNKNOWN, html_view

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(Framed):
    """Why a row was or was not picked; printed, it says so in words. See `spice_rs.explain`.

    Attributes:
        row: the dataset row.
        reason: "picked", "initial", "excluded", "points_away" and "in_target" (with a target), "near_duplicate",
            "group_full", "budget", "conflict", "redundant",
            "small_gain", "tie" or "unknown".
        text: the reason in a sentence or two.
        rank: the rank of the row if it was picked, else of the pick to which it came closest, ties aside; None if it was
            never scored.
        gap: that pick's score minus the row's, 0 if it was picked; None if the row was never scored.
        last_gap: the score of the last pick that the row could have been, minus the row's there: how far it was below
            the cut. None if it was never scored.
        base: log(1 + α‖g‖²), what the row is worth alone.
        norm: ‖g‖ of the row as it competed.
        nearest: the selected dataset row with the largest |cosine|; None beside nothing.
        nearest_cosine: that cosine, with its sign; 0 beside nothing.
        redundant_with: the selected dataset row that takes most of Δ: without it alone Δ after the last pick would be
            larger by `taken`. None beside nothing, and under another reading than the full one.
        taken: in nats.
        ranks: (s,) picks made before each step at which the row was scored.
        gain: (s,) Δ of the row there.
        conflict: (s,) its conflict.
        scores: (s,) its score.
        needed: (s,) the pick's score.
        allowed: (s,) bool, whether the conditions allowed the row there.
        relevance: the row's r to the target; None without one.
        record: what the row's record says, its prompt and its answer shortened; None unless `data` were given.
        nearest_record: the same of `nearest`.
        redundant_record: the same of `redundant_with`.
    """

    row: int
    reason: str
    text: str
    rank: int | None
    gap: float | None
    last_gap: float | None
    base: float
    norm: float
    nearest: int | None
    nearest_cosine: float
    redundant_with: int | None
    taken: float
    ranks: Integers
    gain: Floats
    conflict: Floats
    scores: Floats
    needed: Floats
    allowed: Bools
    relevance: float | None = None
    record: str | None = None
    nearest_record: str | None = None
    redundant_record: str | None = None

    def __str__(self) -> str:
        return "\n".join([one_line(self.text), *(f"  {name}: {record}" for name, record in self._records())])

    def __repr__(self) -> str:
        numbers = {
            "relevance": self.relevance,
            "rank": self.rank,
            "gap": self.gap,
            "nearest": self.nearest,
            "redundant_with": self.redundant_with,
        }
        known = "".join(
            f", {name}={value:.4g}" if isinstance(value, float) else f", {name}={value}"
            for name, value in numbers.items()
            if value is not None
        )
        record = "record=None: give data to see it" if self.record is None else f"record={self.record!r}"
        return f"Explanation(row={self.row}, reason={self.reason!r}{known}, {record})"

    def _repr_html_(self) -> str:
        numbers = {"rank": self.rank, "gap": self.gap, "base": self.base, "nearest": self.nearest}
        cells = [(name, UNKNOWN if value is None else f"{value:.6g}") for name, value in numbers.items()]
        return html_view(
            [("row", str(self.row)), ("reason", self.reason), *cells, *self._records()], self.text
        )

    def _records(self) -> list[tuple[str, str]]:
        """Return what is known of the records: which row, and what it says."""
        found = [(f"row {self.row}", self.record)]
        if self.nearest is not None:
            found.append(
                (f"row {self.nearest}, nearest, cosine {self.nearest_cosine:.3f}", self.nearest_record)
            )
        if self.redundant_with not in (None, self.nearest):
            found.append((f"row {self.redundant_with}, takes most of Δ", self.redundant_record))
        return [(name, record) for name, record in found if record is not None]

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the numbers of the s steps as columns, name → (s,): rank, gain, conflict, score, needed, allowed."""
        return {
            "rank": self.ranks,
            "gain": self.gain,
            "conflict": self.conflict,
            "score": self.scores,
            "needed": self.needed,
            "allowed": self.allowed,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of the row, those of its closest step among them, as JSON holds them."""
        at = None if self.rank is None else int(np.flatnonzero(self.ranks == self.rank)[0])
        here = {"gain": self.gain, "conflict": self.conflict, "score": self.scores, "needed": self.needed}
        return {
            "row": self.row,
            "reason": self.reason,
            "text": self.text,
            "rank": self.rank,
            **{name: None if at is None else float(values[at]) for name, values in here.items()},
            "gap": self.gap,
            "last_gap": self.last_gap,
            "base": self.base,
            "norm": self.norm,
            "nearest": self.nearest,
            "nearest_cosine": self.nearest_cosine,
            "redundant_with": self.redundant_with,
            "taken": self.taken,
            **({} if self.relevance is None else {"relevance": self.relevance}),
            **({} if self.record is None else {"record": self.record, "nearest_record": self.nearest_record}),
        }
