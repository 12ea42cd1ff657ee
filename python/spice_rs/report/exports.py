"""A selection in other shapes: columns, files of them, a `datasets.Dataset` in pick order."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spice_rs.atomic import check_place, replacing
from spice_rs.data.matching import places_of
from spice_rs.errors import InvalidInputError
from spice_rs.paths import local
from spice_rs.selection.encoding import check_json, encoded, spelled
from spice_rs.selection.foresight import Check, OneKind, check_records
from spice_rs.selection.picks import KEY, pick_lines, place_of, write_lines, write_picks, write_text

if TYPE_CHECKING:
    from spice_rs.selection.result import Selection

METADATA_KEY = "spice_rs"
"""Key in a Parquet file's metadata under which the settings are, as JSON."""


def pick_columns(selection: Selection) -> dict[str, npt.NDArray[Any]]:
    """Return one column per number of a pick, in pick order; see `Selection.to_dict`."""
    found: dict[str, npt.NDArray[Any]] = {
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
    for name, values in (
        ("group", selection.groups),
        ("cost", selection.costs),
        ("relevance", selection.relevance),
    ):
        if values is not None:
            found[name] = values
    return {name: column.copy() for name, column in found.items()}


def write_file(
    selection: Selection, out: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
) -> None:
    """Write the picks in the format that the name of the file says; to stdout, as JSON Lines, if `out` is "-".

    Raises:
        InvalidInputError: see `pick_lines` and `file_format`, or the format cannot hold a value.
        OSError: the file cannot be written.
    """
    _WRITERS[file_format(out)](selection, out, data, index_column=index_column)


def file_format(out: str | os.PathLike[str]) -> str:
    """Return the format that a name says, as the end that names it: one of `SUFFIXES`; JSON Lines for one without an end.

    Raises:
        InvalidInputError: the name says another format.
    """
    if os.fspath(out) == "-":
        return ".jsonl"
    name = os.path.basename(os.fspath(out)).lower()
    stem, suffix = os.path.splitext(name.removesuffix(".gz"))
    found = ".jsonl" if suffix in ("", ".ndjson") else suffix
    if found not in SUFFIXES or (name.endswith(".gz") and found == ".parquet"):
        remedy = " Selection.save writes a whole selection." if suffix == ".safetensors" else ""
        raise InvalidInputError(
            f"{os.fspath(out)}: found a name that ends in {name.removeprefix(stem)!r}, expected .jsonl, .ndjson, .json or"
            f" .csv (.gz after these packs them), or .parquet. Name the file so.{remedy}"
        )
    return found


def check_picks(data: Any, kind: str) -> None:
    """Fail now, before a long selection, if the picks of data could not be written in a format, one of `SUFFIXES`.

    Raises:
        InvalidInputError: see `check_records`.
    """
    checks: dict[str, Check] = {".csv": _check_cells, ".parquet": OneKind()}
    check_records(data, checks.get(kind, check_json), flat=kind == ".csv")


def _check_cells(record: Mapping[str, Any], place: str) -> None:
    for name, value in record.items():
        if name != KEY:
            cell(value, name, place)


def write_as(
    selection: Selection,
    path: str | os.PathLike[str],
    data: Any,
    kind: str,
    *,
    index_column: str | None = None,
) -> None:
    """Write the picks in the format `kind`, one of `SUFFIXES`, under a name that says no other.

    Raises:
        InvalidInputError: see `write_file`, or the name says another format, or no file can lie there.
        OSError: the file cannot be written.
    """
    name = local(path)
    for suffix in SUFFIXES:
        if suffix != kind and name.lower().removesuffix(".gz").endswith(suffix):
            raise InvalidInputError(
                f"{name}: found a name that ends in {suffix!r}, expected {kind!r}, which to_{kind[1:]} writes. Name it so,"
                f" or call to_{suffix[1:]}."
            )
    check_place(path)
    _WRITERS[kind](
        selection, os.path.abspath(name), data, index_column=index_column
    )  # "-" is a name here, not stdout


def write_json(
    selection: Selection, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
) -> None:
    """Write one JSON list, an element on each line; see `Selection.to_json`."""
    lines = [encoded(line, place_of(line)) for line in pick_lines(selection, data, index_column=index_column)]
    write_text(["[\n", ",\n".join(lines), "\n]\n"], path)


def write_csv(
    selection: Selection, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
) -> None:
    """Write a table with a line of names; see `Selection.to_csv`."""
    if data is None:
        columns = pick_columns(selection)
        places, rows = [], []
        for values in zip(*(column.tolist() for column in columns.values()), strict=True):
            rows.append(dict(zip(columns, values, strict=True)))
            places.append(place_of(rows[-1]))
        names = list(columns)
    else:
        lines = list(pick_lines(selection, data, index_column=index_column))
        places, rows = [place_of(line) for line in lines], [_flat(line) for line in lines]
        names = list(dict.fromkeys(name for row in rows for name in row))
    text = StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    for place, row in zip(places, rows, strict=True):
        table.writerow([cell(row.get(name), name, place) for name in names])
    write_text(_as_utf8(text.getvalue(), path), path)


def write_columns(columns: Mapping[str, npt.NDArray[Any]], out: str | os.PathLike[str]) -> None:
    """Write columns of numbers in the format that the name of the file says; as JSON Lines to stdout if it is "-".

    Raises:
        InvalidInputError: see `file_format`, or pyarrow is not installed and the name ends in .parquet.
        OSError: the file cannot be written.
    """
    kind = file_format(out)
    if kind == ".parquet":
        check_pyarrow(out)
        import pyarrow
        import pyarrow.parquet

        with replacing(out) as file:
            pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)
        return
    rows = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    if kind == ".csv":
        text = StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([[*columns], *rows])
        write_text(_as_utf8(text.getvalue(), out), out)
        return
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if kind == ".json":
        write_text(["[\n", ",\n".join(json.dumps(each) for each in objects), "\n]\n"], out)
    else:
        write_lines(objects, out)


def cell(value: Any, name: str, place: str) -> Any:
    """Return what stands for a value in a cell of a table in CSV: text or a number.

    Raises:
        InvalidInputError: it is neither.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        value = value.item()
    if isinstance(value, date | time) and value == value:
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | Decimal):
        return value
    raise InvalidInputError(
        f"{place}: field {spelled((name,))}: found {type(value).__name__}, expected text or a number, as cells of CSV have"
        " it. Write .jsonl or .parquet."
    )


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with a column for each number of its pick: "spice.index", "spice.rank" and so on."""
    record = {name: value for name, value in line.items() if name != KEY}
    pending = [(KEY, line[KEY])]
    while pending:
        name, value = pending.pop(0)
        if isinstance(value, Mapping):
            pending += [(f"{name}.{inner}", each) for inner, each in value.items()]
        elif name in record:
            raise InvalidInputError(
                f"{place_of(line)}: found a field {name!r}, expected none: a number of the pick goes there. Rename it, or"
                " write .jsonl."
            )
        else:
            record[name] = value
    return record


def _as_utf8(text: str, path: str | os.PathLike[str]) -> Iterator[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{os.fspath(path)}: found half of a surrogate pair in a text, expected Unicode. Correct the text, or write"
            " .jsonl."
        ) from error
    yield text


def write_parquet(
    selection: Selection, path: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
) -> None:
    """Write the picks to a Parquet file, whole or not at all; see `Selection.to_parquet`."""
    check_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    if data is None:
        columns: dict[str, Any] = dict(pick_columns(selection))
    else:
        lines = list(pick_lines(selection, data, index_column=index_column))
        names = dict.fromkeys(name for line in lines for name in line)
        columns = {name: [line.get(name) for line in lines] for name in names}
    failures = (pyarrow.ArrowException, OverflowError, TypeError, ValueError)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values)
        except failures as error:
            raise InvalidInputError(
                f"{os.fspath(path)}: column {name!r}: found values of several kinds ({error}), expected one kind, as"
                " Parquet has it. Write .jsonl, or leave the data out."
            ) from error
    table = pyarrow.table(arrays).replace_schema_metadata({METADATA_KEY: json.dumps(selection.settings)})
    with replacing(path) as file:
        try:
            pyarrow.parquet.write_table(table, file)
        except failures as error:  # objects without any field, for example
            raise InvalidInputError(
                f"{os.fspath(path)}: found what Parquet does not have ({error}). Write .jsonl, or leave the data out."
            ) from error


def check_pyarrow(path: str | os.PathLike[str]) -> None:
    """Fail where Parquet cannot be written.

    Raises:
        InvalidInputError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InvalidInputError(
            f"{os.fspath(path)}: writing Parquet needs pyarrow; pip install pyarrow, or write .jsonl"
        ) from None


_WRITERS = {".jsonl": write_picks, ".json": write_json, ".csv": write_csv, ".parquet": write_parquet}

SUFFIXES = tuple(_WRITERS)
"""What a file of picks can be: JSON Lines, a JSON list, CSV, Parquet."""


def picked_dataset(selection: Selection, dataset: Any, *, index_column: str | None = None) -> Any:
    """Return the picked rows of a `datasets.Dataset`; see `Selection.dataset`."""
    is_dataset = hasattr(dataset, "column_names") and hasattr(dataset, "select")  # frames select columns
    if isinstance(dataset, Mapping) or not (is_dataset and hasattr(dataset, "__len__")):
        remedy = "pass one of its splits" if isinstance(dataset, Mapping) else "load the data with `datasets`"
        raise InvalidInputError(
            f"dataset: found {type(dataset).__name__}, expected a datasets.Dataset with rows by number; {remedy}."
        )
    rows = selection.indices.tolist()
    return dataset.select(places_of(dataset, rows, selection.belonging, index_column=index_column))
