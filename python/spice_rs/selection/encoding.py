"""Records as JSON that says what they say: what it cannot hold is refused by name, not turned into something else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import date, time
from typing import Any

import numpy as np

from spice_rs.errors import InvalidInputError
from spice_rs.printable import short

Path = tuple[str | int, ...]
"""Where a value stands in a record: ("turns", 0, "weight")."""

REMEDY = (
    "Write .parquet, which holds numbers, dates and bytes of any kind, or correct or leave out that column."
)


def name_of(data: Any) -> str:
    """Return what data are called in messages: their path, or "data"."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else "data"


def place_in(data: Any, row: int) -> str:
    """Return what a record is called in messages: "pool.jsonl, record 7", or "data[7]"."""
    name = name_of(data)
    return f"data[{row}]" if name == "data" else f"{name}, record {row}"


def encoded(record: Any, place: str) -> str:
    """Return a record, or a value of one, as one line of JSON, without the end of the line.

    Raises:
        InvalidInputError: it holds what JSON cannot; the message names the field.
    """
    check_json(record, place)
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, legal in JSON's own spelling
        text = json.dumps(record, allow_nan=False, default=_plain)
    return text


def check_json(record: Any, place: str) -> None:
    """Refuse a record that JSON cannot hold.

    Raises:
        InvalidInputError: see above; the message names the field and what was found.
    """
    try:
        fault = _fault(record, ())
    except RecursionError:
        fault = (), "values nested too deeply"
    if fault is not None:
        path, what = fault
        raise InvalidInputError(
            f"{place}: field {spelled(path)}: found {what}, expected values that JSON can hold. {REMEDY}"
        )


def spelled(path: Path) -> str:
    """Return where a value stands, for people: 'turns[0].weight'."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return repr(text.removeprefix(".") or "record")


def _fault(value: Any, path: Path) -> tuple[Path, str] | None:
    """Return where something stands that JSON does not have, and what it is."""
    if value is None or isinstance(value, str | bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, f"the number {value}")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                return path, f"a field called {name!r}, which is no text"
            if (fault := _fault(inner, (*path, name))) is not None:
                return fault
        return None
    if isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            if (fault := _fault(inner, (*path, number))) is not None:
                return fault
        return None
    try:
        plain = _plain(value)
    except TypeError:
        return path, f"{type(value).__name__} {short(value, 60)}"
    return _fault(plain, path)


def _plain(value: Any) -> Any:
    """Return what stands for a value that JSON spells otherwise: ISO text of a date, lists of an array.

    Raises:
        TypeError: nothing does.
    """
    if isinstance(value, date | time) and value == value:  # pandas' NaT is a date that differs from itself
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    dtype = getattr(value, "dtype", None)
    dated = isinstance(dtype, np.dtype) and dtype.kind in "mMVS"  # lists of these are numbers or bytes
    if hasattr(value, "tolist") and not dated:
        return value.tolist()
    raise TypeError(type(value).__name__)
