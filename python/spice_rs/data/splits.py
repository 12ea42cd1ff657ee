"""Splits of data: which one is meant, as `split=…`, as `folder::test`, or as a store remembers it.

A path with the name of a split goes through all functions as a path does, since records are read in many places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spice_rs.errors import InvalidInputError
from spice_rs.paths import local

SEPARATOR = "::"
"""Between a path and the name of a split."""


def with_split(data: Any, split: str | None) -> Any:
    """Return one split of the data, as `open_data` takes it; the data themselves if none is named.

    Raises:
        InvalidInputError: there is no such split, or these data have none.
    """
    if split is None:
        return data
    if data is None:
        raise InvalidInputError(
            f"split: found {split!r} without data, expected both. Give the data, or leave it out."
        )
    if isinstance(data, str | os.PathLike):
        path, given = parted(data)
        if given not in (None, split):
            raise InvalidInputError(
                f"split: found {split!r} beside {os.fspath(data)!r}, expected one split. Leave one of the two out."
            )
        return f"{path}{SEPARATOR}{split}"
    if isinstance(data, Mapping) and are_splits(data):
        return chosen(data, "data", split)
    raise InvalidInputError(
        f"split: found {split!r} beside a {type(data).__name__}, expected data with splits: a DatasetDict, a folder or a"
        " hub id. Leave it out."
    )


def parted(data: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return the path, and the split that is named behind it; None if none is."""
    text = os.fspath(data)
    path, separator, split = text.rpartition(SEPARATOR)
    return (path, split) if separator and path and not os.path.lexists(local(text)) else (text, None)


def are_splits(data: Mapping[Any, Any]) -> bool:
    """Whether a mapping is one of splits, as DatasetDict is."""
    return bool(data) and all(isinstance(name, str) and _may_be_split(part) for name, part in data.items())


def _may_be_split(part: Any) -> bool:
    """Whether a value of a mapping may be records: a column is a list of something else."""
    if not hasattr(part, "__len__") or isinstance(part, str | Mapping):
        return False
    return not isinstance(part, list | tuple) or all(isinstance(record, Mapping) for record in part[:1])


def chosen(splits: Mapping[str, Any], name: str, split: str | None) -> Any:
    """Return the split that is named, or the only one.

    Args:
        splits: Name → records.
        name: Of the data, for messages.
        split: What is wanted; None if nothing was said.

    Raises:
        InvalidInputError: There is no such split, or there are several and none is named.
    """
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is not None and split in splits:
        return splits[split]
    counts = ", ".join(f"{each} ({len(rows):,} records)" for each, rows in splits.items())
    first = next(iter(splits))
    found = f"the splits {counts}" if split is None else f"no split {split!r} but {counts}"
    other = f"data[{first!r}]" if name == "data" else repr(name + SEPARATOR + first)
    raise InvalidInputError(
        f"{name}: found {found}, expected the name of one. Add split={first!r}, or give {other} as data."
    )


def remembered(data: Any, split: str | None) -> Any:
    """Return the data, with the split that rows were extracted from, if they are a place that has it beside others.

    Args:
        data: as given; a split that it names stands.
        split: what is remembered; None for nothing.
    """
    if split is None:
        return data
    if isinstance(data, Mapping):
        return data[split] if split in data and are_splits(data) else data
    if not isinstance(data, str | os.PathLike) or parted(data)[1] is not None:
        return data
    path = Path(local(data))
    if path.is_file() or (path / "state.json").is_file():
        return data
    try:
        listed = json.loads((path / "dataset_dict.json").read_bytes())
    except (OSError, ValueError):
        listed = None
    if isinstance(listed, dict) and split not in listed.get("splits", ()):
        return data
    return f"{os.fspath(data)}{SEPARATOR}{split}"
