"""A selection joined with the data it came from, as objects and as JSON Lines; rows read back from such files."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from typing import Any

from spice_rs.atomic import replacing
from spice_rs.data.matching import Belonging, check_index_column, raw_records
from spice_rs.data.reading import allow_long_cells
from spice_rs.errors import InvalidInputError
from spice_rs.files import check_room, opened, read_whole
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.printable import printable_json
from spice_rs.selection.encoding import encoded, name_of
from spice_rs.selection.result import Selection
from spice_rs.streams import stdout

KEY = "spice"
"""The key that is added to each chosen record."""

EARLIER = "earlier"
"""Where in it the numbers of an earlier round are kept, for records that were picked before."""

READ_BACK = ("index", "gain", "score")
"""Numbers of a pick that are read from tables."""


def pick_lines(
    selection: Selection, data: Any = None, *, index_column: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one object per pick, in pick order.

    Args:
        selection: the picks.
        data: what the store was extracted from; None for the numbers alone.
        index_column: as for `spice_rs.select`.

    Yields:
        The record, unchanged, plus {"spice": {"index", "rank", "gain", "conflict", "score"}}, with "group", "cost" and
        "relevance" where the selection has them; without `data` that inner object alone. Where the record is a pick of an
        earlier round, what it has under "spice" is kept there under "earlier".

    Raises:
        InvalidInputError: the data lack a picked row or are others, or a record has a key "spice" that is not ours.
    """
    more = {"group": selection.groups, "cost": selection.costs, "relevance": selection.relevance}
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
        selection.belonging,
        index_column=index_column,
    )


def joined(
    picks: Sequence[dict[str, Any]],
    data: Any,
    belonging: Belonging | None,
    *,
    index_column: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the record of each pick with the pick's numbers under `KEY`; without `data` the numbers alone.

    Args:
        picks: objects with the dataset row under "index".
        data: what the picks were made from, or None.
        belonging: what is known of these data; None if nothing is.
        index_column: as for `spice_rs.select`.

    Raises:
        InvalidInputError: see `pick_lines`.
    """
    check_index_column(index_column, data)
    if data is None:
        yield from picks
        return
    rows = [pick["index"] for pick in picks]
    records = records_of(rows, data, belonging, index_column=index_column)
    for pick, record in zip(picks, records, strict=True):
        before = earlier(record, name_of(data), pick["index"])
        own = {name: value for name, value in record.items() if not _is_number_of_pick(name, record)}
        yield {**own, KEY: pick if before is None else {**pick, EARLIER: before}}


def records_of(
    rows: Sequence[int], data: Any, belonging: Belonging | None, *, index_column: str | None = None
) -> list[dict[str, Any]]:
    """Return the records of dataset rows, as they stand in the data, in the order of `rows`.

    Raises:
        InvalidInputError: the data cannot be read, lack a row, or are not those that the rows were extracted from.
    """
    records = dict(raw_records(data, set(rows), belonging, index_column=index_column))
    missing = set(rows) - records.keys()
    if missing:
        raise InvalidInputError(
            f"{name_of(data)}: found no record {min(missing)}, expected all {len(rows)} picked rows. Give the data that"
            " the gradients were extracted from."
        )
    return [records[row] for row in rows]


def earlier(record: Mapping[str, Any], place: str, row: int) -> Mapping[str, Any] | None:
    """Return what an earlier round wrote into a record; None if there is nothing.

    Raises:
        InvalidInputError: somebody else's value is where ours go.
    """
    value = record.get(KEY)
    flat = {name.partition(".")[2]: each for name, each in record.items() if _is_number_of_pick(name, record)}
    if value is None and flat:
        return {name: each for name, each in flat.items() if each not in (None, "")}
    if value is None or (isinstance(value, Mapping) and type(value.get("index")) is int):
        return value
    raise InvalidInputError(
        f"{place}: found a key {KEY!r} in record {row} that no selection wrote, expected none: the numbers of a pick go"
        " there. Rename it, or leave out the data."
    )


def _is_number_of_pick(name: Any, record: Mapping[str, Any]) -> bool:
    """Whether a column is one of those that picks have in a table in CSV: "spice.index", "spice.earlier.rank"."""
    row = record.get(f"{KEY}.index")
    ours = type(row) is int or (isinstance(row, str) and row.isdecimal())
    return ours and isinstance(name, str) and name.startswith(f"{KEY}.")


def place_of(line: Mapping[str, Any]) -> str:
    """Return what a line of picks is called in messages: the record's row in the data."""
    return f"record {line.get(KEY, line).get('index')}"


def write_picks(
    selection: Selection, out: str | os.PathLike[str], data: Any = None, *, index_column: str | None = None
) -> None:
    """Write `pick_lines` as JSON Lines to a file, whole or not at all; to stdout if `out` is "-".

    Raises:
        InvalidInputError: see `pick_lines` and `write_lines`.
        OSError: the file cannot be written.
    """
    write_lines(pick_lines(selection, data, index_column=index_column), out)


def write_lines(objects: Iterable[Mapping[str, Any]], out: str | os.PathLike[str]) -> None:
    """Write objects as JSON Lines to a file, whole or not at all; to stdout if `out` is "-", packed if it ends in .gz.

    Raises:
        InvalidInputError: an object holds what JSON cannot.
        OSError: the file cannot be written.
    """
    lines = [encoded(each, place_of(each)) + "\n" for each in objects]
    if os.fspath(out) == "-":
        stdout().writelines(map(printable_json, lines))
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


def read_rows(path: str | os.PathLike[str], belonging: Belonging | None = None) -> Selection | list[int]:
    """Return the dataset rows in a file: row numbers, picks in any format they are written in, or a saved selection.

    Args:
        path: a saved selection, or what `read_items` reads. Of an object counts the number under "spice"."index", or
            else under "index".
        belonging: what is known of the rows that are meant: picks that hold their records are held against it, since
            another store numbers other records.

    Raises:
        InvalidInputError: there is no such file, a line of it is something else, or the pick of another data set.
        StoreError: the saved selection is damaged.
    """
    name = local(path)
    if is_saved(path):
        return Selection.load(path)
    rows: list[int] = []
    items = read_items(path)
    for place, item in items:
        inner = numbers_of(item)
        row = item if inner is None else inner.get("index")
        if type(row) is not int:
            raise InvalidInputError(
                f"{name}{place}: found {repr(item)[:80]}, expected a row number, or an object with one under 'index' or"
                f" '{KEY}'. Write one per line."
            )
        rows.append(row)
    known = {} if belonging is None else belonging.known(rows)
    for row, (place, item) in zip(rows, items, strict=True):
        record = {key: value for key, value in item.items() if key != KEY} if isinstance(item, dict) else {}
        if belonging is None or not record or KEY not in item or row not in known:
            continue
        if belonging.difference(row, f"{name}{place}", partial(dict, record), known[row]) is not None:
            raise InvalidInputError(
                f"{name}{place}: found another record than the one that row {row} of {belonging.name} was extracted from:"
                " these picks are of other data, whose rows are numbered otherwise. Give rows of this source."
            )
    return rows


def numbers_of(item: Any) -> Mapping[str, Any] | None:
    """Return the numbers of a pick that was read back; None for a row number, or anything else without numbers."""
    inner = item.get(KEY, item) if isinstance(item, dict) else None
    return inner if isinstance(inner, dict) else None


def read_items(path: str | os.PathLike[str]) -> list[tuple[str, Any]]:
    """Return what is in a file of rows: (", line 7" or "", number or object) of each; text where a line is no JSON.

    Args:
        path: JSON, one number or object per line, or one list of these; by its name CSV or Parquet, of which the row
            numbers, gains and scores are read; .gz after any but the last.

    Raises:
        InvalidInputError: there is no such file, or it cannot be read.
    """
    name = local(path)
    kind = name.lower().removesuffix(".gz")
    contents = read_whole(path, _EXPECTED)
    if kind.endswith(".parquet"):
        return [("", item) for item in _of_parquet(name, contents)]
    if kind.endswith(".csv"):
        return _of_csv(name, contents)
    if contents.lstrip().startswith(b"["):
        parsed = _parsed(contents)
        return [("", item) for item in (parsed if isinstance(parsed, list) else [parsed])]
    lines = enumerate(contents.splitlines(), start=1)
    found = [(f", line {number}", _parsed(line)) for number, line in lines if line.strip()]
    return [(place, item) for place, each in found for item in (each if isinstance(each, list) else [each])]


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a whole selection."""
    name = os.fspath(path)
    if name.endswith(".safetensors"):
        return True
    with opened(path, _EXPECTED) as file:
        return file.read(64)[8:].startswith(b'{"__metadata__"')


_EXPECTED = "a file of rows"


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text[:60].decode(errors="replace")


def _of_csv(name: str, contents: bytes) -> list[tuple[str, Any]]:
    allow_long_cells()
    try:
        return _items(contents)
    except csv.Error as error:
        raise InvalidInputError(
            f"{name}: found no readable CSV ({error}), expected it. Write it again."
        ) from error


def _items(contents: bytes) -> list[tuple[str, Any]]:
    table = csv.DictReader(StringIO(contents.decode(errors="replace"), newline=""))
    prefix = f"{KEY}." if f"{KEY}.index" in (table.fieldnames or ()) else ""
    found = []
    for row in table:
        numbers = {name: row.get(prefix + name) for name in READ_BACK}
        item = {name: _parsed(text.encode()) for name, text in numbers.items() if text}
        found.append((f", line {table.line_num}", item))
    return found


def _of_parquet(name: str, contents: bytes) -> list[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInputError(f"{name}: reading Parquet needs pyarrow; pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(contents)) as file:
            check_room(name, 200 * file.metadata.num_rows, counted(file.metadata.num_rows, "row"))
            names = [KEY] if KEY in file.schema_arrow.names else list(READ_BACK)
            items: list[Any] = file.read(columns=names).to_pylist()
            return items
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InvalidInputError(
            f"{name}: found no readable Parquet file ({error}). Write it again."
        ) from error
