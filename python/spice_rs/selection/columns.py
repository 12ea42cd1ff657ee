"""One value per dataset row: columns of the data and arrays that the caller gives, checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.arguments import has_truth_values, number_of, rows_given
from spice_rs.data.matching import JOINING, check_index_column, check_records, raw_records, spread
from spice_rs.data.row_set import RowSet
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted
from spice_rs.printable import short
from spice_rs.store.source import Label
from spice_rs.store.sources import Source

__all__ = ["HASH_DIGITS", "Columns", "Label", "digest", "row_list"]

HASH_DIGITS = 16
"""Hex digits of a hash that stands for given values: enough to tell two runs apart."""


class Columns:
    """Looks values up for the rows of a source, in the order of the dataset rows.

    Args:
        source: the rows.
        data: where column names are looked up: a path, a Dataset or a list of records; None if there is none.
        given: argument → what the caller gave for it; a text is the name of a column.
        index_column: column of the data with the dataset rows, as for `raw_records`; None if the n-th record is row n.
        data_field: what the argument of the data is called.
        joins: whether the caller has an `index_column`, so that messages may advise it.

    Raises:
        InvalidInputError: the data lacks a column or a row, or are not those that the rows were extracted from.
    """

    def __init__(
        self,
        source: Source,
        data: Any,
        given: Mapping[str, Any],
        index_column: str | None = None,
        *,
        data_field: str = "data",
        joins: bool = True,
    ) -> None:
        self._source = source
        self._order = source.dataset_order()
        self.rows = self._order if source.index is None else source.index[self._order]
        names = {field: name for field, name in given.items() if isinstance(name, str)}
        check_index_column(index_column, data)
        if names and data is None:
            field, name = next(iter(names.items()))
            raise InvalidInputError(
                f"{field}: found the column name {name!r} and no data, expected {data_field}= beside it. Give the data, or"
                " one value per dataset row."
            )
        if data is not None and not names:
            *first, last = (f"{name}=…" for name in given)
            fields = f"{', '.join(first)} or {last}" if first else last
            raise InvalidInputError(
                f"{data_field}: found it without the name of a column, expected one in {fields}. Name one, or"
                " leave the data out."
            )
        self._place = os.fspath(data) if isinstance(data, str | os.PathLike) else data_field
        with _said_of(data_field, joins):
            self._columns = _read(data, names, self.rows, source, index_column, data_field) if names else {}

    def by_position(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values in the order of the source's blocks, given in the order of the dataset rows."""
        placed = np.empty_like(values)
        placed[self._order] = values
        return placed

    def numbers(self, field: str, given: Any, *, positive: bool) -> npt.NDArray[np.float64]:
        """Return (n,) float64, finite and, if asked for, above 0.

        Raises:
            InvalidInputError: a value is something else; the message names its row.
        """
        values = self._values(field, given)
        try:
            array = np.asarray(values)
        except ValueError:  # lists of different lengths
            array = np.empty(0, object)
        if array.ndim == 1 and array.dtype.kind in "iuf" and not has_truth_values(values):
            numbers = array.astype(np.float64)
        else:
            numbers = np.array([self._number(field, i, value) for i, value in enumerate(values)], np.float64)
        wrong = ~np.isfinite(numbers) | (numbers <= 0 if positive else False)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            expected = "finite numbers above 0" if positive else "finite numbers"
            raise InvalidInputError(
                f"{field}: found {numbers[i]:g} for row {self.rows[i]}, expected {expected}. Correct"
                " it, or leave the row out of the source."
            )
        return numbers

    def labels(self, field: str, given: Any) -> tuple[list[Label], npt.NDArray[np.int64]]:
        """Return the different labels, by first appearance, and the (n,) number of each row's label.

        Raises:
            InvalidInputError: a label is no text, whole number or bool, or they are not all of one kind.
        """
        values = self._values(field, given)
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        kinds = set(map(type, values))
        if len(kinds) > 1 or not kinds <= {str, int, bool}:
            usual = type(values[0]) if type(values[0]) in (str, int, bool) else str
            i = next(i for i, value in enumerate(values) if type(value) is not usual)
            where = f" of column {given!r} of {self._place}" if isinstance(given, str) else ""
            what = "none" if values[i] is None else f"{type(values[i]).__name__} {short(values[i], 60)}"
            remedy = "Give rows without a label one of their own" + (
                "" if values[i] is None else ", and make texts of the others"
            )
            raise InvalidInputError(
                f"{field}: found {what} for row {self.rows[i]}{where}, expected a text, a whole number or a bool, of one"
                f" kind for all rows. {remedy}."
            )
        numbers: dict[Label, int] = {}
        codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
        return list(numbers), codes

    def _values(self, field: str, given: Any) -> Any:
        """Return one value per row of the source, in the order of the dataset rows."""
        if isinstance(given, str):
            return self._columns[given]
        if isinstance(given, Mapping) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            raise InvalidInputError(
                f"{field}: found {type(given).__name__}, expected the name of a column or one value per dataset row. Give"
                " a list or an array."
            )
        if isinstance(given, Sequence) and not isinstance(given, list | tuple):
            given = given[:]  # a column of `datasets`: all of it at once
        if not isinstance(given, list | tuple):
            given = np.asarray(given)
            if given.ndim != 1:
                raise InvalidInputError(
                    f"{field}: found an array of shape {given.shape}, expected one value per dataset row. Give one column."
                )
        index, needed = self._source.index, int(self.rows[-1]) + 1
        belonging = self._source.belonging
        total = needed if index is None else None if belonging is None else belonging.total
        if len(given) < needed or (total is not None and len(given) not in (needed, total)):
            expected = (
                f"at least {needed}, one per dataset row"
                if total is None
                else f"{total}, one per {'row' if index is None else 'record of the data'}"
            )
            raise InvalidInputError(
                f"{field}: found {counted(len(given), 'value')}, expected {expected}: the last row of"
                f" {self._source.description} is"
                f" {needed - 1}. Give a value for every row, in the order of the data."
            )
        if isinstance(given, list | tuple):
            return given if index is None else [given[row] for row in self.rows.tolist()]
        return given if index is None else given[self.rows]

    def _number(self, field: str, i: int, value: Any) -> float:
        number = number_of(value)
        if number is None:
            raise InvalidInputError(
                f"{field}: found {type(value).__name__} {short(value, 60)} for row {self.rows[i]}, expected a number."
                " Correct it, or name another column."
            )
        try:
            return float(number)
        except OverflowError:
            return float("inf")


def row_list(field: str, given: Any) -> npt.NDArray[np.int64]:
    """Return dataset rows, none of them twice, in the order given.

    Raises:
        InvalidInputError: they are no whole numbers in one dimension, or one is there twice.
    """
    rows = rows_given(field, given)
    different, counts = np.unique(rows, return_counts=True)
    if len(different) < len(rows):
        raise InvalidInputError(
            f"{field}: found row {different[counts > 1][0]} twice, expected different rows. Leave it out once."
        )
    return rows


def digest(*parts: npt.NDArray[Any] | list[Label]) -> str:
    """Return a short hash of arrays and labels, the same on every machine."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, list):
            whole.update(json.dumps(part).encode())
        else:
            whole.update(part.astype(part.dtype.newbyteorder("<")).tobytes())
    return whole.hexdigest()[:HASH_DIGITS]


@contextmanager
def _said_of(data_field: str, joins: bool) -> Iterator[None]:
    """Inside, what is said of data names the argument that has them, and advises nothing that the caller lacks."""
    try:
        yield
    except InvalidInputError as error:
        message = re.sub(r"^data(?=[\[:])", data_field, str(error))
        raise InvalidInputError(message if joins else message.replace(JOINING, ".")) from error


def _read(
    data: Any,
    names: Mapping[str, str],
    rows: npt.NDArray[np.int64],
    source: Source,
    index_column: str | None,
    data_field: str,
) -> dict[str, list[Any]]:
    """Return the named columns of the data, for `rows` (ascending) alone."""
    if index_column is not None:
        return _read_by_index(data, names, rows, source, index_column)
    belonging = source.belonging
    place = os.fspath(data) if isinstance(data, str | os.PathLike) else data_field
    columns: dict[str, list[Any]] = {name: [] for name in names.values()}
    if (
        hasattr(data, "select_columns")
        and hasattr(data, "__len__")
        and set(columns) <= set(data.column_names)
    ):
        # Others are decoded of the records that are compared alone.
        check_records(data, spread(rows), belonging)
        data, belonging = data.select_columns(list(columns)), None
    contiguous, whole = int(rows[-1]) + 1 == len(rows), source.index is None
    # Without an index every record has a row: one more is looked for, and refused.
    wanted = range(len(rows) + whole) if contiguous else RowSet(rows)
    read, same = -1, dict[str, str]()
    for row, record in raw_records(data, wanted, belonging, checked=spread(rows)):
        if read + 1 == len(rows):
            raise InvalidInputError(
                f"{place}: found more than {counted(len(rows), 'record')}, expected {len(rows)}, one per row: the"
                " last row of"
                f" {source.description} is {len(rows) - 1}. Give the data that the gradients were extracted from."
            )
        _check_there(names, record, row, place)
        for name, values in columns.items():
            values.append(_once(record[name], same))
        read += 1
    if read + 1 < len(rows):
        raise InvalidInputError(
            f"{place}: found no record {rows[read + 1]}, expected all {counted(len(rows), 'row')} of the source."
            " Give the data that"
            " the gradients were extracted from."
        )
    return columns


def _read_by_index(
    data: Any,
    names: Mapping[str, str],
    rows: npt.NDArray[np.int64],
    source: Source,
    index_column: str,
) -> dict[str, list[Any]]:
    """Return the named columns of the data, for `rows` alone, in their order; records come in any order."""
    place = os.fspath(data) if isinstance(data, str | os.PathLike) else "data"
    found: dict[int, list[Any]] = {}
    wanted = RowSet(rows)
    same: dict[str, str] = {}
    for row, record in raw_records(
        data, wanted, source.belonging, index_column=index_column, checked=spread(rows)
    ):
        _check_there(names, record, row, place)
        found[row] = [_once(record[name], same) for name in names.values()]
    values = zip(*(found[row] for row in rows.tolist()), strict=True)
    return dict(zip(names.values(), map(list, values), strict=True))


def _check_there(names: Mapping[str, str], record: Mapping[str, Any], row: int, place: str) -> None:
    for field, name in names.items():
        if name not in record:
            raise InvalidInputError(
                f"{field}: found no {name!r} in record {row} of {place} (only {short(list(record), 60)}), expected it in"
                " every record. Name a column that all rows have."
            )


def _once(value: Any, same: dict[str, str]) -> Any:
    """The value; of equal texts the first, so that each is held once."""
    return same.setdefault(value, value) if type(value) is str else value
