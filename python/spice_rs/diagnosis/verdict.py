"""One line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was looked at.
        passed: None if it does not apply, or is there to be read.
        found: In words.
        expected: In words.
    """

    name: str
    passed: bool | None
    found: str
    expected: str
