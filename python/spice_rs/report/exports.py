"""A selection in other shapes: columns, Parquet, a `datasets.Dataset` in pick order."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spice_rs.atomic import check_place, replacing
from spice_rs.errors import InvalidInputError
from spice_rs.selection.picks import pick_lines

if TYPE_CHECKING:
    from spice_rs.selection.result import Selection

METADATA_KEY = "spice_rs"
"""Key in a Parquet file's metadata under which the settings are, as JSON."""


def frame(selection: Selection) -> dict[str, npt.NDArray[Any]]:
    """Return one column per number of a pick, in pick order; see `Selection.to_frame`."""
    columns: dict[str, npt.NDArray[Any]] = {
        "index": selection.indices,
        "rank": np.arange(len(selection)),
        "gain": selection.gains,
        "base": selection.base,
        "epsilon": selection.epsilon,
        "conflict": selection.conflict,
        "score": selection.scores,
        "log_det": selection.log_dets,
        "overruled": selection.overruled,
        "rows_read": selection.rows_read,
    }
    for name, values in (("group", selection.groups), ("cost", selection.costs)):
        if values is not None:
            columns[name] = values
    return {name: column.copy() for name, column in columns.items()}


def write_parquet(selection: Selection, path: str | os.PathLike[str], data: Any = None) -> None:
    """Write the picks to a Parquet file, whole or not at all; see `Selection.to_parquet`."""
    check_place(path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInputError(
            f"{os.fspath(path)}: writing Parquet needs pyarrow; pip install pyarrow, or write .jsonl"
        ) from None
    if data is None:
        columns: dict[str, Any] = dict(frame(selection))
    else:
        lines = list(pick_lines(selection, data))
        names = dict.fromkeys(name for line in lines for name in line)
        columns = {name: [line.get(name) for line in lines] for name in names}
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, TypeError) as error:
            raise InvalidInputError(
                f"{os.fspath(path)}: column {name!r}: found values of several kinds ({error}), expected one kind, as"
                " Parquet has it. Write .jsonl, or leave the data out."
            ) from error
    table = pyarrow.table(arrays).replace_schema_metadata({METADATA_KEY: json.dumps(selection.settings)})
    with replacing(path) as file:
        pyarrow.parquet.write_table(table, file)


def picked_dataset(selection: Selection, dataset: Any) -> Any:
    """Return the picked rows of a `datasets.Dataset`; see `Selection.dataset`."""
    if isinstance(dataset, Mapping) or not (hasattr(dataset, "select") and hasattr(dataset, "__len__")):
        remedy = "pass one of its splits" if isinstance(dataset, Mapping) else "load the data with `datasets`"
        raise InvalidInputError(
            f"dataset: found {type(dataset).__name__}, expected a datasets.Dataset with rows by number; {remedy}."
        )
    last = int(selection.indices.max(initial=-1))
    if last >= len(dataset):
        raise InvalidInputError(
            f"dataset: found {len(dataset)} rows, expected more than {last}, the largest row picked. Give the data that"
            " the gradients were extracted from."
        )
    return dataset.select(selection.indices.tolist())
