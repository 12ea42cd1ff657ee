"""Rows of two sources that are to be compared: refused where they are gradients of another kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from spice_rs.errors import StoreMismatchError
from spice_rs.nouns import counted
from spice_rs.printable import short
from spice_rs.store.sources import Source, differing_origin
from spice_rs.store.store import GradientStore

Difference = tuple[str, Any, Any]
"""The name of what differs, what it is there, and what it should be."""

_HASH = re.compile(r"(?:[a-z0-9-]+:)?[0-9a-f]{32,}")
_MOST = 6
"""Differences that a message lists: of another architecture nearly all entries are others."""


def check_alike(field: str, other: Source, source: Source) -> None:
    """Refuse rows that lie in another space than a source's.

    Args:
        field: the argument that the other rows were given as.
        other: these rows.
        source: the pool.

    Raises:
        StoreMismatchError: it names what differs.
    """
    if other.dim != source.dim:
        raise StoreMismatchError(
            f"{field}: {other.description} has {counted(other.dim, 'column')}, {source.description} has {source.dim}."
            f" {_remedy(source)}"
        )
    if differences := differing_origin(source, other):
        raise StoreMismatchError(
            f"{field}: {other.description} was extracted otherwise than {source.description}: {told(differences)}."
            f" {_remedy(source)}"
        )


def told(differences: Iterable[Difference]) -> str:
    """Return differences as a sentence has them: entries that differ alone, and no hashes."""
    leaves = [each for difference in differences for each in _leaves(*difference)]
    parts = list(dict.fromkeys(_one(*leaf) for leaf in leaves))
    more = len(parts) - _MOST
    return "; ".join([*parts[:_MOST], *([f"and {more} more"] if more > 0 else [])])


def _leaves(name: str, found: Any, expected: Any) -> Iterator[Difference]:
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        yield name, found, expected
        return
    for key in {**expected, **found}:
        if found.get(key) != expected.get(key):
            yield from _leaves(f"{name}.{key}", found.get(key), expected.get(key))


def _one(name: str, found: Any, expected: Any) -> str:
    if any(isinstance(each, str) and _HASH.fullmatch(each) for each in (found, expected)):
        return f"other {name.rsplit('.', 1)[-1]}"
    # `hidden_size` says enough beside its whole path.
    name = name.rsplit(".", 1)[-1] if name.startswith("model.settings.config.") else name
    return f"{name} {_value(found)}, expected {_value(expected)}"


def _value(value: Any) -> str:
    return "none" if value is None else short(value)


def _remedy(source: Source) -> str:
    first = source.keep_alive[0] if source.is_joined else source
    if not isinstance(first.keep_alive, GradientStore):
        return "Give rows of the same columns, made as those were."
    return f"Extract it as that was: `spice_rs.extract(data=…, out=…, like={first.description!r})`."
