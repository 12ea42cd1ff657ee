"""A selection joined with the data it came from, as objects and as JSON Lines; rows read back from such files."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from spice_rs.atomic import replacing
from spice_rs.data.records import raw_records
from spice_rs.errors import InvalidInputError
from spice_rs.selection.encoding import encoded, name_of, place_in
from spice_rs.selection.result import Selection

KEY = "spice"
"""The key that is added to each chosen record."""

EARLIER = "earlier"
"""Where in it the numbers of an earlier round are kept, for records that were picked before."""


def pick_lines(selection: Selection, data: Any = None) -> Iterator[dict[str, Any]]:
    """Yield one object per pick, in pick order.

    Args:
        selection: the picks.
        data: what the store was extracted from; None for the numbers alone.

    Yields:
        The record, unchanged, plus {"spice": {"index", "rank", "gain", "conflict", "score"}}, with "group" and "cost"
        where the selection has them; without `data` that inner object alone. Where the record is a pick of an earlier
        round, what it has under "spice" is kept there under "earlier".

    Raises:
        InvalidInputError: the data lacks a picked row, or a record has a key "spice" that is not ours.
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
    records = records_of([pick["index"] for pick in picks], data)
    for pick, record in zip(picks, records, strict=True):
        before = earlier(record, place_in(data, pick["index"]))
        yield {**record, KEY: pick if before is None else {**pick, EARLIER: before}}


def records_of(rows: Sequence[int], data: Any) -> list[dict[str, Any]]:
    """Return the records of dataset rows, as they stand in the data, in the order of `rows`.

    Raises:
        InvalidInputError: the data cannot be read, or lack a row.
    """
    records = dict(raw_records(data, set(rows)))
    missing = set(rows) - records.keys()
    if missing:
        raise InvalidInputError(
            f"{name_of(data)}: found no record {min(missing)}, expected all {len(rows)} picked rows. Give the data that"
            " the gradients were extracted from."
        )
    return [records[row] for row in rows]


def earlier(record: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    """Return what an earlier round wrote into a record; None if there is nothing.

    Raises:
        InvalidInputError: somebody else's value is where ours go.
    """
    value = record.get(KEY)
    if value is None or (isinstance(value, Mapping) and type(value.get("index")) is int):
        return value
    raise InvalidInputError(
        f"{place}: found a key {KEY!r} that no selection wrote, expected none: the numbers of a pick go there. Rename it,"
        " or leave out the data."
    )


def place_of(line: Mapping[str, Any]) -> str:
    """Return what a line of picks is called in messages: the record's row in the data."""
    return f"record {line.get(KEY, line).get('index')}"


def write_lines(objects: Iterable[Mapping[str, Any]], out: str | os.PathLike[str]) -> None:
    """Write objects as JSON Lines to a file, whole or not at all; to stdout if `out` is "-", packed if it ends in .gz.

    Raises:
        InvalidInputError: an object holds what JSON cannot.
        OSError: the file cannot be written.
    """
    lines = [encoded(each, place_of(each)) + "\n" for each in objects]
    if os.fspath(out) == "-":
        sys.stdout.writelines(lines)
    else:
        write_text(lines, out)


def write_text(lines: Iterable[str], out: str | os.PathLike[str]) -> None:
    """Write text to a file, whole or not at all, packed if its name ends in .gz.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(out) as file:
        if os.fspath(out).lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                packed.writelines(line.encode() for line in lines)
        else:
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
