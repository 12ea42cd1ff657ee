"""All records of data, for a look at them before long work: what reading would refuse is passed over.

Columns of Parquet and of a `datasets.Dataset` whose types say that there is nothing to find are not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spice_rs.data.reading import BadRecord, open_data
from spice_rs.paths import local

Looked = Iterator[tuple[str, Any]]
"""(place, record) of each, with None for what is no record."""


def all_records(data: Any) -> Looked:
    """Yield (place, record) of all records, None in place of one that cannot be read.

    Raises:
        InvalidInputError: the data cannot be read.
    """
    _, parsed = open_data(data)
    for place, parse in parsed:
        try:
            record = parse()
        except BadRecord:
            record = None
        yield place, record if isinstance(record, Mapping) else None


def survey(data: Any, *, needed: Sequence[str] = (), flat: bool = False) -> Looked:
    """Yield the same, where it is known without the columns whose values JSON holds whatever they are.

    Args:
        data: as for `spice_rs.data.records.load_records`.
        needed: columns that are read in any case.
        flat: whether to read columns of lists and objects too.

    Raises:
        InvalidInputError: the data cannot be read.
    """
    if hasattr(data, "select_columns") and getattr(data, "format", {}).get("type") != "custom":
        names = _doubtful(data.features.arrow_schema, needed, flat)
        columns = data.select_columns(names) if names else ()
        yield from ((f"data[{row}]", record) for row, record in enumerate(columns))
    elif isinstance(data, str | os.PathLike) and os.fspath(data).lower().endswith(".parquet"):
        yield from _of_parquet(data, needed, flat)
    else:
        yield from all_records(data)


def _of_parquet(path: str | os.PathLike[str], needed: Sequence[str], flat: bool) -> Looked:
    _, parsed = open_data(path)
    next(parsed, None)  # what is wrong with the file is said as everywhere
    import pyarrow.parquet

    row = 0
    with pyarrow.parquet.ParquetFile(local(path)) as file:
        names = _doubtful(file.schema_arrow, needed, flat)
        for batch in file.iter_batches(columns=names) if names else ():
            for record in batch.to_pylist():
                yield f"{os.fspath(path)}, row {row}", record
                row += 1


def _doubtful(schema: Any, needed: Sequence[str], flat: bool) -> list[str]:
    """Return the columns that are needed, or whose type does not say that JSON can hold all their values."""
    return [each.name for each in schema if each.name in needed or not _is_plain(each.type, flat)]


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
