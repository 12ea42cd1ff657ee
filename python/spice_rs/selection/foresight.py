"""What an export would fail of after a long selection, found before it: a look at the data for what a format lacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from spice_rs.data.reading import BadRecord, open_data
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
    for row, (place, record) in enumerate(_looked_at(data, flat)):
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


def _looked_at(data: Any, flat: bool) -> Iterator[tuple[str, Any]]:
    """Yield (place, record) of each record, None for one that is none, without the columns whose types need no look."""
    if hasattr(data, "select_columns") and getattr(data, "format", {}).get("type") != "custom":
        names = _doubtful(data.features.arrow_schema, flat)
        columns = data.select_columns(names) if names else ()
        yield from ((f"data[{row}]", record) for row, record in enumerate(columns))
    elif isinstance(data, str | os.PathLike) and os.fspath(data).lower().endswith(".parquet"):
        yield from _of_parquet(data, flat)
    else:
        _, parsed = open_data(data)
        for place, parse in parsed:
            try:
                yield place, parse()
            except BadRecord:
                yield place, None


def _of_parquet(path: str | os.PathLike[str], flat: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    _, parsed = open_data(path)
    next(parsed, None)  # what is wrong with the file is said as everywhere
    import pyarrow.parquet

    row = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        names = _doubtful(file.schema_arrow, flat)
        for batch in file.iter_batches(columns=names) if names else ():
            for record in batch.to_pylist():
                yield f"{os.fspath(path)}, row {row}", record
                row += 1


def _doubtful(schema: Any, flat: bool) -> list[str]:
    """Return the columns whose type does not say that JSON, or a flat table, can hold all their values."""
    return [field.name for field in schema if field.name == KEY or not _is_plain(field.type, flat)]


def _is_plain(kind: Any, flat: bool) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type, flat)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return not flat and _is_plain(kind.value_type, flat)
    if types.is_struct(kind):
        return not flat and all(_is_plain(kind.field(i).type, flat) for i in range(kind.num_fields))
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_integer,
            types.is_boolean,
            types.is_null,
            types.is_string,
            types.is_large_string,
            types.is_date,
            types.is_time,
            types.is_timestamp,
        )
    )
