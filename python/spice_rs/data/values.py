"""Values of records: which of them say nothing, what JSON has of them, and the words that they hold.

A null says nothing, wherever it stands in an object: Arrow gives every row of a column all keys that any row has, so
that the same record has more or fewer nulls in one file than in another. pandas writes a null as NaN.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spice_rs.data.reading import BadRecord, found

LONGEST = 300
"""Letters of a text under a name of metadata."""

_ADDRESS = re.compile(r"\w+://\S+")
_NULL_TYPES = ("NAType", "NaTType")  # pandas' own


def is_null(value: Any) -> bool:
    """Whether it is null, in JSON's, numpy's or pandas' way."""
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return bool(value != value)
    return type(value).__name__ in _NULL_TYPES


def is_blank(value: Any) -> bool:
    """Whether a value that is no null says nothing: white space, an empty list or object, a list of nothing else."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, Mapping):
        return all(is_null(each) or is_blank(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(is_null(each) or is_blank(each) for each in value)
    if isinstance(value, np.ndarray):
        return value.size == 0 or (value.dtype.kind == "O" and is_blank(value.tolist()))
    return False


def text(value: Any, field: str) -> str:
    """The value, if it is Unicode text.

    Raises:
        BadRecord: It is something else.
    """
    if not isinstance(value, str):
        raise BadRecord("wrong type", f"field {field!r}: found {found(value)}, expected a string")
    _check_letters(value, f"field {field!r}")
    return value


def plain(value: Any, where: str) -> Any:
    """The value in what JSON has, without the nulls in its objects; those in its lists keep their places.

    Args:
        value: Objects, lists, tuples, arrays and scalars.
        where: Its place in the record, for messages.

    Raises:
        BadRecord: It holds something else.
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise BadRecord("wrong type", f"{where} is nested too deeply to be read") from None


def _plain(value: Any, where: str) -> Any:
    kind = type(value)
    if kind is str:
        _check_letters(value, where)
        return value
    if kind is bool or kind is int or is_null(value):
        return None if kind is not bool and kind is not int else value
    if isinstance(value, Mapping):
        return {str(key): _plain(each, where) for key, each in value.items() if not is_null(each)}
    if isinstance(value, list | tuple):
        return [_plain(each, where) for each in value]
    if isinstance(value, str):
        return _plain(str(value), where)
    if isinstance(value, int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where) if value.dtype.kind in "biufOU" else _refused(value, where)
    return _refused(value, where)


def _refused(value: Any, where: str) -> Any:
    raise BadRecord("wrong type", f"{where} holds what JSON does not have ({found(value)})")


def _check_letters(value: str, where: str) -> None:
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRecord("not Unicode", f"{where}: found half of a surrogate pair, expected Unicode text")


def words(value: Any) -> Iterator[str]:
    """Every text in the value that is not blank, at any depth, keys left out."""
    if isinstance(value, str):
        if value and not value.isspace():
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from words(each)
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OUS"):
        for each in value:
            yield from words(each)


def is_long(value: Any) -> bool:
    """Whether a text in the value, at any depth, is longer than what describes a record; addresses may be."""
    return any(len(each) > LONGEST and not _ADDRESS.fullmatch(each.strip()) for each in words(value))


def holds_more_than_json(value: Any) -> bool:
    """Whether bytes or objects are in it: an image or a sound as `datasets` decodes them, for example."""
    if isinstance(value, str | bool | int | float) or is_null(value):
        return False
    if isinstance(value, Mapping):
        return any(holds_more_than_json(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(holds_more_than_json(each) for each in value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return any(holds_more_than_json(each) for each in value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return False
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return kind not in ("b", "i", "u", "f", "M", "m", "U") and type(value).__module__.split(".")[0] != "torch"
