"""Constraints that are one number, each declared once: its name, what it may be, and what to do otherwise.

From here follow how an argument of `select` is checked, how the core is told, what a selection remembers, what its file may
say, and what a summary shows. Beside it stand an argument with its docstring, and the rule in the core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spice_rs.errors import InvalidInputError
from spice_rs.printable import short
from spice_rs.selection.quotas import exact_number


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
        if exact_number(value) is None:
            raise InvalidInputError(
                f"{self.name}: found {short(value)}, expected a finite number. Correct it."
            )
        if not self.is_legal(float(value)):
            raise InvalidInputError(
                f"{self.name}: found {float(value):g}, expected {self.expected}. {self.remedy}"
            )
        return float(value)

    def is_legal(self, value: Any) -> bool:
        """Whether a value of a file is in range; a whole number is one too."""
        return type(value) in (int, float) and self.above < value < self.below


SCALARS = (Scalar("max_similarity", 0.0, 1.0, "a cosine in (0, 1)", "Leave it out to allow any."),)
"""All of them."""
