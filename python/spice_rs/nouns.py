"""Numbers of things in messages: "1 row", "2 rows", "0 batches"."""

from __future__ import annotations

_ODD = ("ch", "s", "sh", "x")
"""Ends of nouns whose plural takes "es"."""


def counted(count: int, one: str, many: str | None = None, *, form: str = "") -> str:
    """Return a number with what it is of.

    Args:
        count: the number.
        one: what it is of, in the singular: "row", or "row was".
        many: the same in the plural, where it is more than an s or es at the end: "rows were".
        form: how the number is written: "," has commas at the thousands.
    """
    if many is None:
        many = f"{one}{'es' if one.endswith(_ODD) else 's'}"
    return f"{count:{form}} {one if count == 1 else many}"
