"""A selection as JSON Lines, joined with the data it came from."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, time
from typing import Any

from spice_rs.atomic import check_place, replacing
from spice_rs.data.records import raw_records
from spice_rs.errors import InvalidInputError
from spice_rs.selection.result import Selection

KEY = "spice"
"""The key that is added to each chosen record."""


def pick_lines(selection: Selection, data: Any = None) -> Iterator[dict[str, Any]]:
    """Yield one object per pick, in pick order.

    Args:
        selection: the picks.
        data: what the store was extracted from; None for the numbers alone.

    Yields:
        The record, unchanged, plus {"spice": {"index", "rank", "gain", "conflict", "score"}}, with "group" and "cost"
        where the selection has them; without `data` that inner object alone.

    Raises:
        InvalidInputError: the data lacks a picked row, or a record has a key "spice" already.
    """
    more = {"group": selection.groups, "cost": selection.costs}
    given = {name: values.tolist() for name, values in more.items() if values is not None}
    yield from joined(
        [
            {
                "index": row,
                "rank": rank,
                "gain": float(selection.gains[rank]),
                "conflict": float(selection.conflict[rank]),
                "score": float(selection.scores[rank]),
                **{name: values[rank] for name, values in given.items()},
            }
            for rank, row in enumerate(selection.indices.tolist())
        ],
        data,
    )


def joined(picks: Sequence[dict[str, Any]], data: Any = None) -> Iterator[dict[str, Any]]:
    """Yield the record of each pick with the pick's numbers under `KEY`; without `data` the numbers alone.

    Args:
        picks: objects with the dataset row under "index".
        data: what the picks were made from, or None.

    Raises:
        InvalidInputError: see `pick_lines`.
    """
    if data is None:
        yield from picks
        return
    wanted = {pick["index"] for pick in picks}
    records = dict(raw_records(data, wanted))
    missing = wanted - records.keys()
    if missing:
        raise InvalidInputError(
            f"{data}: found no record {min(missing)}, expected all {len(wanted)} picked rows."
            " Give the data that the gradients were extracted from."
        )
    for pick in picks:
        row = pick["index"]
        if KEY in records[row]:
            raise InvalidInputError(
                f"{data}: found a key {KEY!r} in record {row}, expected none. Rename it, or leave out the data."
            )
        yield {**records[row], KEY: pick}


def write_picks(selection: Selection, out: str | os.PathLike[str], data: Any = None) -> None:
    """Write `pick_lines` to a file, whole or not at all; to stdout if `out` is "-".

    Raises:
        InvalidInputError: see `pick_lines`.
        OSError: the file cannot be written.
    """
    write_lines(pick_lines(selection, data), out)


def write_lines(objects: Iterable[dict[str, Any]], out: str | os.PathLike[str]) -> None:
    """Write objects as JSON Lines to a file, whole or not at all; to stdout if `out` is "-".

    Raises:
        InvalidInputError: an object holds what JSON cannot.
        OSError: the file cannot be written.
    """
    lines = map(_encoded, objects)
    if os.fspath(out) == "-":
        sys.stdout.writelines(lines)
        return
    with replacing(out) as file:
        file.writelines(line.encode() for line in lines)


def read_rows(path: str | os.PathLike[str]) -> Selection | list[int]:
    """Return the dataset rows in a file: row numbers, picks as `write_picks` writes them, or a saved selection.

    Args:
        path: a saved selection, or text with one row number or one JSON object per line, or one JSON list of these.
            Of an object counts the number under "spice"."index", or else under "index".

    Raises:
        InvalidInputError: there is no such file, or a line of it is something else.
        StoreError: the saved selection is damaged.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            contents = file.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        found = "a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise InvalidInputError(f"{name}: found {found}, expected a file of rows. Check the path.") from error
    if name.endswith(".safetensors") or contents[8:].startswith(b'{"__metadata__"'):
        return Selection.load(path)
    if contents.lstrip().startswith(b"["):
        items = [("", contents)]
    else:
        lines = enumerate(contents.splitlines(), start=1)
        items = [(f", line {number}", line) for number, line in lines if line.strip()]
    rows: list[int] = []
    for place, text in items:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        for item in parsed if isinstance(parsed, list) else [parsed]:
            inner = item.get(KEY, item) if isinstance(item, dict) else item
            row = inner.get("index") if isinstance(inner, dict) else inner
            if type(row) is not int:
                found = repr(text[:60].decode(errors="replace") if parsed is None else item)
                raise InvalidInputError(
                    f"{name}{place}: found {found[:80]}, expected a row number, or an object with one under 'index' or"
                    f" '{KEY}'. Write one per line."
                )
            rows.append(row)
    return rows


def check_output(out: str | os.PathLike[str], data: Any = None) -> None:
    """Fail now if `write_picks` would fail after a long selection.

    Raises:
        InvalidInputError: the data cannot be read, or the file cannot lie there.
    """
    if os.fspath(out) != "-":
        check_place(out)
    if data is not None:
        next(raw_records(data, range(1)), None)


def _encoded(line: dict[str, Any]) -> str:
    try:
        text = json.dumps(line, ensure_ascii=False, default=_plain)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, legal in JSON's own spelling
        text = json.dumps(line, default=_plain)
    return text + "\n"


def _plain(value: Any) -> Any:
    """Return what stands for a value that JSON does not know."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return value.tolist()
    raise InvalidInputError(
        f"record: found a {type(value).__name__}, expected values that JSON can hold. Leave out that field, or the data."
    )
