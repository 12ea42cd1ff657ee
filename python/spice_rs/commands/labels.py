"""The column of `--data` that says what records are of, where one can be seen: for what is said of picks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from spice_rs.errors import SpiceError
from spice_rs.selection.columns import Columns
from spice_rs.selection.composition import MOST_LABELS
from spice_rs.store.source import RowLabels, Source

NAMES = (
    "source",
    "dataset",
    "dataset_name",
    "subset",
    "domain",
    "category",
    "task",
    "topic",
    "type",
    "language",
    "lang",
)
"""What people call a column of labels, the most telling first."""

LONGEST = 80
"""Letters of a label: longer ones are a text, in which the record says something else."""


def label_column(records: Iterable[tuple[int, Mapping[str, Any]]]) -> str | None:
    """Return the first of `NAMES` that all records have as text, with 2 to 50 different ones; None if there is none.

    All of the records are taken, whatever is found.
    """
    seen: dict[str, set[str] | None] = {name: set() for name in NAMES}
    for _, record in records:
        for name, values in seen.items():
            if values is None:
                continue
            value = record.get(name)
            if isinstance(value, str) and len(value) <= LONGEST and len(values) <= MOST_LABELS:
                values.add(value)
            else:
                seen[name] = None
    return next((name for name in NAMES if 2 <= len(seen[name] or ()) <= MOST_LABELS), None)


def labelled(source: Source, data: str, column: str | None, index_column: str | None) -> Source:
    """Return a source whose rows are labelled with a column of the data; as it is where not all of them can be."""
    if column is None:
        return source
    try:
        columns = Columns(source, data, {"groups": column}, index_column)
        labels, codes = columns.labels("groups", column)
    except SpiceError:  # nobody asked for it, and the data were looked at already where they can be
        return source
    if not 2 <= len(labels) <= MOST_LABELS:
        return source
    return replace(source, labels=RowLabels(labels, columns.by_position(codes), column))
