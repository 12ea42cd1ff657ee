"""The name that was meant, where one of those that there are is nearly the one that was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(text: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name that is nearest to what was given; None if none is near."""
    return next(iter(difflib.get_close_matches(text, list(names), n=1, cutoff=cutoff)), None)


def meant(text: object, names: Iterable[str]) -> str:
    """Return a question to be put behind what was found; "" if no name is near."""
    near = nearest(text.lower(), names) if isinstance(text, str) else None
    return f"; did you mean {near}?" if near else ""
