"""Whether data are those that rows were extracted from: everything that joins rows with records does so here.

A store keeps the number of records that its data had, and with each row a hash of what was learned from in its record.
Data that are given later are held against both: else a record would be joined with another one's numbers, without a word.
What extraction does not read does not count: columns of ids or scores may be added, and the records may come from another
kind of file.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from spice_rs.arguments import text_or_none
from spice_rs.data.layouts import kind_of_mark
from spice_rs.data.reading import BadRecord, found, open_data
from spice_rs.data.records import FIELDS, dataset_fingerprint, load_records, parse_record, record_hash
from spice_rs.data.row_places import RowPlaces
from spice_rs.data.samples import sample_hash
from spice_rs.data.splits import remembered
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.nouns import counted

MOST_CHECKED = 20_000
"""Records that are compared where a whole column is read: see `spread`."""

LAYOUT = ("columns", "ignore_columns", "preference")
"""The arguments of `extract` that decide how a record is read."""

JOINING = "; or, if the records say which rows they are, name that column: index_column=…"
"""What a message says to callers that can join data to rows by a column."""

REMEDY = f"Give the data that the gradients were extracted from, as they were{JOINING}"

_SAID = frozenset(name for name in FIELDS if kind_of_mark(name) is None) - {"scores", "rewards"}
"""Fields that say what is learned; people add others for the selection."""

warned: set[str] = set()
"""What people have been told of already that cannot be compared: once in a process."""


@dataclass(frozen=True)
class Belonging:
    """What is known of the data that rows were extracted from.

    Attributes:
        name: what has the rows, for messages: a store.
        total: number of records in the data; None if it is not known.
        fingerprint: of all of them, as `dataset_fingerprint` has it; None if it is not known.
        layout: how they were read: those of `LAYOUT` that were given, and the "split", where they had several.
        own: whether they were samples of the user's own.
        fields: the fields of such samples, if they were mappings.
        rows: (n,) int64 dataset rows, ascending.
        hashes: (n,) int64 hash of the record of each; None if they are not known.
    """

    name: str
    total: int | None = None
    fingerprint: str | None = None
    layout: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    fields: Sequence[str] | None = None
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    hashes: npt.NDArray[np.int64] | None = None

    @staticmethod
    def about(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a store's provenance says of its data, for `of`; None if it says nothing that `extract` writes.

        A selection keeps it, as plain JSON: {"total", "fingerprint", "layout", "own", "fields"}.
        """
        dataset = provenance.get("dataset")
        if not isinstance(dataset, Mapping):
            return None
        about = {
            "total": dataset.get("rows"),
            "fingerprint": dataset.get("fingerprint"),
            "layout": {name: dataset[name] for name in (*LAYOUT, "split") if name in dataset},
            "own": dataset.get("own", False),
            "fields": dataset.get("fields"),
        }
        return about if Belonging.is_about(about) else None

    @staticmethod
    def is_about(value: Any) -> bool:
        """Whether this is what `about` returns: files say what they like."""
        match value:
            case {
                "total": int() as total,
                "fingerprint": str() | None,
                "layout": dict() as layout,
                "own": bool(),
                "fields": list() | None as fields,
            } if len(value) == 5 and not isinstance(total, bool) and total >= 0:
                columns = layout.get("columns", {})
                ignored = layout.get("ignore_columns", [])
                texts = [ignored] if isinstance(ignored, str) else ignored
                return (
                    layout.keys() <= {*LAYOUT, "split"}
                    and isinstance(layout.get("split", ""), str)
                    and layout.get("preference") in (None, "chosen")
                    and isinstance(columns, dict)
                    and isinstance(texts, list)
                    and all(isinstance(each, str) for each in (*columns.values(), *texts, *(fields or ())))
                )
        return False

    @staticmethod
    def of(
        name: str,
        about: Mapping[str, Any],
        rows: npt.NDArray[np.int64],
        hashes: npt.NDArray[np.int64] | None,
    ) -> Belonging:
        """Return what `about` and the hashes (n,) of dataset rows (n,) tell."""
        order = np.argsort(rows, kind="stable")
        return Belonging(
            name,
            **copy.deepcopy(dict(about)),
            rows=rows[order],
            hashes=None if hashes is None else hashes[order],
        )

    @property
    def reading(self) -> dict[str, Any]:
        """Return the arguments by which records were read."""
        return {name: value for name, value in self.layout.items() if name in LAYOUT}

    def part_of(self, data: Any) -> Any:
        """Return the split of the data that the rows were extracted from, where they are a place with several."""
        return remembered(data, self.layout.get("split"))

    def difference(self, row: int, place: str, parse: Callable[[], Any], expected: int) -> str | None:
        """Return how a record differs from the one that a row came from: in words, or "" if it is just another one.

        None if it is the same, or if the two cannot be compared.
        """
        try:
            record = parse()
            if isinstance(record, Mapping):  # columnar data fill fields that a record does not have
                record = {name: value for name, value in record.items() if value is not None}
            if not self.own:
                return self._difference_of_text(row, place, record, expected)
            if isinstance(record, Mapping) and self.fields is None:
                _warn(
                    self,
                    "its samples were no records with fields, as these are: the number of them alone was compared",
                )
                return None
            return None if sample_hash(record, self.fields) == expected else ""
        except BadRecord as error:
            return str(error)

    def _difference_of_text(self, row: int, place: str, record: Any, expected: int) -> str | None:
        """See `difference`; columns that have been added since may be such as extraction would refuse."""
        wrong = ""
        readings = [record]
        if isinstance(record, Mapping):
            own = {*_SAID, *(self.layout.get("columns") or {}).values()}
            readings.append({name: value for name, value in record.items() if name in own})
        for each in readings:
            try:
                if record_hash(parse_record(row, place, each, **self.reading)) == expected:
                    return None
            except BadRecord as error:
                wrong = wrong or str(error)
        return wrong

    def known(self, rows: Collection[int]) -> dict[int, int]:
        """Return dataset row → hash of those of `rows` whose hashes are known."""
        if self.hashes is None:
            return {}
        there = np.isin(self.rows, np.fromiter(rows, np.int64, len(rows)))
        return dict(zip(self.rows[there].tolist(), self.hashes[there].tolist(), strict=True))


def check_index_column(index_column: str | None, data: Any) -> None:
    """Refuse the name of a column where there are no data.

    Raises:
        InvalidInputError: see above.
    """
    if text_or_none("index_column", index_column) is not None and data is None:
        raise InvalidInputError(
            f"index_column: found {index_column!r} without data that are joined, expected both. Give the data (and name a"
            " column of them where values are to be looked up), or leave it out."
        )


def spread(rows: npt.NDArray[np.int64], most: int = MOST_CHECKED) -> list[int]:
    """Return all of the rows, or so many of them at even distances, the first and the last included."""
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    kept: list[int] = rows.tolist()
    return kept


def raw_records(
    data: Any,
    rows: Collection[int],
    belonging: Belonging | None,
    *,
    index_column: str | None = None,
    checked: Collection[int] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, record as it stands in the data) of the wanted rows, after a look whether they are the right ones.

    Args:
        data: as for `load_records`.
        rows: dataset rows.
        belonging: what is known of the data that the rows came from; None if nothing is.
        index_column: column of the data with the dataset row of each record, for data in another order or with fewer
            records; a dot leads into an object ("spice.index"). By default the n-th record is row n.
        checked: those of the rows that are compared; None for all.

    Raises:
        InvalidInputError: the data cannot be read, or are not those that the rows were extracted from; the message names
            the first record that differs. Some of this is known only when all records were taken.
    """
    for row, _, fields in _joined(data, rows, belonging, index_column, checked):
        yield row, fields


def check_records(data: Any, rows: Collection[int], belonging: Belonging | None) -> None:
    """Look whether a data set with records by number is the one that rows were extracted from; decodes few of them.

    Raises:
        InvalidInputError: as for `raw_records`.
    """
    if belonging is None:
        return
    _check_all(data, belonging)
    for row, expected in belonging.known(rows).items():
        if row >= len(data) or _differs(data, row, belonging, expected):
            _refuse(data, belonging)
    _check_total(data, len(data), belonging)


def places_of(
    data: Any, rows: Sequence[int], belonging: Belonging | None, *, index_column: str | None = None
) -> list[int]:
    """Return where the records of dataset rows are in a data set with records by number, checked.

    Raises:
        InvalidInputError: as for `raw_records`, or a record is not there.
    """
    if index_column is None:
        check_records(data, rows, belonging)
        last = max(rows, default=-1)
        if last >= len(data):
            raise InvalidInputError(
                f"data: found {counted(len(data), 'record')}, expected more than {last}, the largest row wanted."
                " Give the data that"
                " the gradients were extracted from."
            )
        return list(rows)
    column = data[index_column] if index_column in getattr(data, "column_names", ()) else None
    if belonging is not None:
        _check_all(data, belonging, whole=False)
    values = iter(column) if column is not None else (_at(data[n], index_column) for n in range(len(data)))
    places = RowPlaces()
    for place, value in enumerate(values):
        _put(
            places,
            _row(value, index_column, f"data[{place}]", belonging),
            place,
            f"data[{place}]",
            index_column,
        )
    known = {} if belonging is None else belonging.known(rows)
    found_at: dict[int, int] = {}
    for row in rows:
        if (met := places.get(row)) is None:
            raise _absent("data", row, index_column)
        found_at[row] = met
        if belonging is not None and row in known:
            place = found_at[row]
            wrong = belonging.difference(row, f"data[{place}]", partial(data.__getitem__, place), known[row])
            if wrong is not None:
                raise _another(f"data[{place}]", row, belonging, wrong, index_column)
    return [found_at[row] for row in rows]


# ------------------------------------------------------------------------------------------ one after the other


def _joined(
    data: Any,
    rows: Collection[int],
    belonging: Belonging | None,
    index_column: str | None,
    checked: Collection[int] | None,
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield (row, place, record) of the wanted rows, in the order of the data."""
    if belonging is not None:
        data = belonging.part_of(data)
        _check_all(data, belonging, whole=index_column is None)
    known = {} if belonging is None else belonging.known(rows if checked is None else checked)
    source, parsed = open_data(data)
    places = RowPlaces()
    count = 0
    for position, (place, parse) in enumerate(parsed):
        count, row = position + 1, position
        if index_column is not None:
            fields = _fields(place, parse)
            row = _row(_at(fields, index_column), index_column, place, belonging)
            _put(places, row, position, place, index_column)
        if row not in rows:
            continue
        if belonging is not None and row in known:
            wrong = belonging.difference(row, place, parse, known[row])
            if wrong is not None and index_column is not None:
                raise _another(place, row, belonging, wrong, index_column)
            if wrong is not None:
                _refuse(data, belonging)
        yield row, place, _fields(place, parse)
    if index_column is not None:
        missing = next((row for row in rows if row not in places), None)
        if missing is not None:
            raise _absent(source, missing, index_column)
    elif belonging is not None:
        _check_total(data, count, belonging)


def _fields(place: str, parse: Callable[[], Any]) -> dict[str, Any]:
    try:
        fields = parse()
    except BadRecord as error:
        raise InvalidInputError(f"{place}: {error}") from None
    if not isinstance(fields, Mapping):
        raise InvalidInputError(f"{place}: found {found(fields)}, expected an object with named fields")
    return dict(fields)


def _at(fields: Any, name: str) -> Any:
    """The value of a column, or of a field inside of one; None if there is none."""
    if isinstance(fields, Mapping) and name in fields:
        return fields[name]
    for part in name.split("."):
        fields = fields.get(part) if isinstance(fields, Mapping) else None
    return fields


def _row(value: Any, index_column: str, place: str, belonging: Belonging | None) -> int:
    total = None if belonging is None else belonging.total
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)  # as tables of text have it
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 0:
        raise InvalidInputError(
            f"{place}: found {found(value)} under index_column={index_column!r}, expected the dataset row of the record, a"
            " whole number of at least 0. Name a column that has it in every record."
        )
    if total is not None and value >= total:
        raise InvalidInputError(
            f"{place}: found row {value} under index_column={index_column!r}, expected rows below {total}, the records of"
            " the data that the gradients were extracted from. Name the column that has these."
        )
    return int(value)


def _put(places: RowPlaces, row: int, position: int, place: str, index_column: str) -> None:
    if (first := places.get(row)) is not None:
        raise InvalidInputError(
            f"{place}: found row {row} under index_column={index_column!r} a second time (the first: record"
            f" {first}), expected each row once. Leave one of the records out."
        )
    places.put(row, position)


def _absent(source: str, row: int, index_column: str) -> InvalidInputError:
    return InvalidInputError(
        f"{source}: found no record with row {row} under index_column={index_column!r}, expected one for every row that is"
        " wanted. Give data that have it."
    )


def _another(place: str, row: int, belonging: Belonging, wrong: str, index_column: str) -> InvalidInputError:
    reason = f" ({wrong})" if wrong else ""
    return InvalidInputError(
        f"{place}: the record with row {row} under index_column={index_column!r} is not the one that row {row} of"
        f" {belonging.name} was extracted from{reason}. Name the column that has the rows of these data, and leave the"
        " records as they were."
    )


# ------------------------------------------------------------------------------------------ the whole of the data


def _differs(data: Any, row: int, belonging: Belonging, expected: int) -> bool:
    return belonging.difference(row, f"data[{row}]", partial(data.__getitem__, row), expected) is not None


def _check_total(data: Any, count: int, belonging: Belonging) -> None:
    if belonging.total is not None and count != belonging.total:
        _refuse(data, belonging)


def _check_all(data: Any, belonging: Belonging, *, whole: bool = True) -> None:
    """Compare all data at once where single records are not known, if they are few and `whole`; warn if they cannot be."""
    if belonging.hashes is not None:
        return
    finding = "whether the data are those that its rows were extracted from is not known"
    small = whole and belonging.total is not None and belonging.total <= MOST_CHECKED
    if small and belonging.fingerprint is not None and not belonging.own:
        _check_total(data, sum(1 for _ in open_data(data)[1]), belonging)
        try:
            found_fingerprint = dataset_fingerprint(load_records(data, skip_bad=True, **belonging.reading))
        except InvalidInputError:
            pass  # they have names of columns that the store does not know
        else:
            if found_fingerprint == belonging.fingerprint:
                return
            # Not refused: of such stores it is not known how their records were read.
            finding = "the data are others than those it was extracted from, or were read in another way then"
    _warn(
        belonging,
        f"it keeps nothing to compare single records with, as an earlier version made it: {finding}. Extract again to have"
        " it checked",
    )


def _warn(belonging: Belonging, reason: str) -> None:
    """Tell people once that data are not compared."""
    if belonging.name in warned:
        return
    warned.add(belonging.name)
    message = f"{belonging.name}: {reason}. Make sure that the data are those, in their order."
    warnings.warn(message, SpiceWarning, stacklevel=3)


def _refuse(data: Any, belonging: Belonging) -> NoReturn:
    """Say which record is the first that differs, and how many there are."""
    known = belonging.known(belonging.rows.tolist())
    source, parsed = open_data(data)
    first: tuple[str, int, str] | None = None
    extra, count = "", 0
    for row, (place, parse) in enumerate(parsed):
        count = row + 1
        if row == belonging.total:
            extra = place
        if first is None and row in known:
            wrong = belonging.difference(row, place, parse, known[row])
            if wrong is not None:
                first = (place, row, wrong)
    total = belonging.total
    counts = (
        "" if total in (None, count) else f"; there are {counted(count, 'record')}, and there were {total}"
    )
    if first is not None:
        place, row, wrong = first
        reason = f" ({wrong})" if wrong else ""
        raise InvalidInputError(
            f"{place}: record {row} is not the one that row {row} of {belonging.name} was extracted from{reason}{counts}."
            f" {REMEDY}"
        )
    where = f"; the first that it did not have: {extra}" if extra else f"; it ends before record {count}"
    raise InvalidInputError(
        f"{source}: found {counted(count, 'record')}, expected {total}, as in the data that {belonging.name} was extracted"
        f" from{where}. {REMEDY}"
    )
