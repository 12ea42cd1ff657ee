"""JSON that this package wrote, or that another program wrote for it: read strictly, since people read the data's own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from spice_rs.printable import short


def parsed(text: bytes | str) -> Any:
    """Return what JSON says: finite numbers alone, every key once, and nested no deeper than Python goes.

    Raises:
        ValueError: it says something else; the message is for people.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite_number
        )
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} twice")
    return found


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {short(text)}, which float64 does not hold")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no JSON")
