"""Constraints that are a number, or a number for each row, each declared once: its name, and what it may be.

From here follow how an argument of `select` is checked and resolved, how the core is told, what a selection remembers, what
its file may say, what a summary and the command line show, and what `explain`, `analyze` and `write_report` compare. Beside
it stand an argument with its docstring, and the rule in the core; CONTRIBUTING lists the places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.arguments import real


@dataclass(frozen=True)
class Scalar:
    """A constraint that is one number, or None where it is not asked for.

    Attributes:
        name: the argument of `select`.
        above: what it has to be larger than.
        below: what it has to be smaller than.
        expected: that in words, for messages.
        remedy: what to do otherwise, a sentence.
    """

    name: str
    above: float
    below: float
    expected: str
    remedy: str

    def checked(self, value: Any) -> float | None:
        """Return an argument as a number.

        Raises:
            InvalidInputError: it is none, or out of range.
        """
        if value is None:
            return None
        limits = {"above": self.above, "below": self.below}
        return real(self.name, value, **limits, expected=self.expected, remedy=self.remedy)

    def is_legal(self, value: Any) -> bool:
        """Whether a value of a file is in range; a whole number is one too."""
        return type(value) in (int, float) and self.above < value < self.below


@dataclass(frozen=True)
class PerRow:
    """A constraint that is a number for each row, or None where it is not asked for.

    Attributes:
        name: the argument of `select`: the name of a column of `data`, or (N,) numbers by dataset row.
        positive: whether the numbers have to be above 0.
        scored: whether it is part of a row's score, which then is more than Δ − λ·conflict.
        neutral: the number that changes no pick if all rows have it; None if any does.
        absent: what holds without it, in words.
    """

    name: str
    positive: bool = False
    scored: bool = False
    neutral: float | None = None
    absent: str = "none"

    def is_inert(self, values: npt.NDArray[np.float64]) -> bool:
        """Whether (n,) numbers change no pick."""
        return bool((values == values[0]).all()) and self.neutral in (None, values[0])


SCALARS = (Scalar("max_similarity", 0.0, 1.0, "a cosine in (0, 1)", "Leave it out to allow any."),)
"""All that are one number."""

PER_ROW = (
    PerRow("weights", positive=True, neutral=1.0, absent="1 each"),
    PerRow("prior", scored=True),
)
"""All that are a number for each row."""

COLUMNS = ("groups", "costs", *(each.name for each in PER_ROW))
"""Arguments of `select` that may be the name of a column of `data`."""

KEYS = (
    "budget",
    "costs",
    "groups",
    "initial",
    "include",
    "exclude",
    *(each.name for each in SCALARS),
    *(each.name for each in PER_ROW),
    "prior_weight",
    "target",
    "represent",
)
"""The entries of `Selection.settings` that constraints have; None where there is no such constraint."""
