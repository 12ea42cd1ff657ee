"""What an export would fail of after a long selection, found before it: a look at the data for what a format lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from spice_rs.data.survey import survey
from spice_rs.errors import InvalidInputError
from spice_rs.selection.encoding import check_json, spelled
from spice_rs.selection.picks import KEY, earlier

Check = Callable[[Mapping[str, Any], str], object]
"""Raises InvalidInputError where a record, of which it also gets the place, has a fault."""


def check_records(data: Any, check: Check, *, flat: bool = False, key: bool = True) -> None:
    """Show the records to `check`, and look whether somebody else's value is where the numbers of picks go.

    Columns of Parquet and of a `datasets.Dataset` whose type has no fault that checks look for are not read. Records
    that cannot be read are passed over: extraction leaves them out, or has refused them.

    Args:
        data: as for `spice_rs.data.records.load_records`.
        check: what looks for a fault.
        flat: whether it minds lists and objects.
        key: whether the numbers of picks are written too.

    Raises:
        InvalidInputError: the data cannot be read, or something was found.
    """
    for row, (place, record) in enumerate(survey(data, needed=(KEY,), flat=flat)):
        if isinstance(record, Mapping):
            if key:
                earlier(record, place, row)
            check(record, place)


def check_for_json(data: Any, *, key: bool = True) -> None:
    """Fail now if the picks of data could not be written as JSON.

    Args:
        data: see `check_records`.
        key: see `check_records`.

    Raises:
        InvalidInputError: see `check_records`.
    """
    check_records(data, check_json, key=key)


class OneKind:
    """Refuses columns of several kinds, which tables with typed columns do not have."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def __call__(self, record: Mapping[str, Any], place: str) -> None:
        """Refuse a record with a value of another kind than those before it."""
        for name, value in record.items():
            if value is None or name == KEY:
                continue
            kind = _kind(value)
            first, where = self._seen.setdefault(name, (kind, place))
            if kind != first:
                raise InvalidInputError(
                    f"{place}: field {spelled((name,))}: found {kind} and, in {where}, {first}, expected one kind of"
                    " values, as Parquet has them. Write .jsonl, or correct the data."
                )


def _kind(value: Any) -> str:
    for name, types in (
        ("a bool", (bool, np.bool_)),
        ("a number", (int, float, Decimal, np.number)),
        ("text", (str,)),
        ("an object", (Mapping,)),
        ("a list", (list, tuple, np.ndarray)),
    ):
        if isinstance(value, types):
            return name
    return "another value"
