"""The fields of one record: which say something, which are read, and what becomes of the others.

Text that nothing reads is refused by name: a column that is dropped changes what is learned. Let go are columns whose
name says that they describe the record (`layouts.is_metadata`), numbers, words that are read elsewhere in the record,
and what the caller ignores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spice_rs.arguments import choice, mapping_or_none, names_or_none
from spice_rs.data import layouts
from spice_rs.data.layouts import ALPACA_FIELDS, FIELDS, NEEDED_FIELDS
from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.data.turns import ROLES, is_plain_turns
from spice_rs.data.values import holds_more_than_json, is_blank, is_long, is_null, words
from spice_rs.errors import InvalidInputError


@dataclass(frozen=True)
class Rules:
    """What the caller says of the fields; see `load_records`.

    Attributes:
        columns: Field → column of the data; empty where the data have the names of `FIELDS`.
        ignored: Columns, and keys "field.key" of turns, that say nothing.
        preference: "chosen", or None where preference data are refused.
    """

    columns: Mapping[str, str]
    ignored: frozenset[str]
    preference: str | None

    @staticmethod
    def of(
        columns: Mapping[str, str] | None, ignore_columns: str | Sequence[str] | None, preference: str | None
    ) -> Rules:
        """The rules as arguments give them.

        Raises:
            InvalidInputError: An argument is wrong; the message names it.
        """
        columns = mapping_or_none("columns", columns) or {}
        names_or_none("ignore_columns", ignore_columns)
        ignored = [ignore_columns] if isinstance(ignore_columns, str) else list(ignore_columns or ())
        for each in ignored:
            if not each:
                raise InvalidInputError(f"ignore_columns: found {each!r}, expected names of columns")
        preference = choice("preference", preference, ("chosen", None))
        for field, column in columns.items():
            if field not in FIELDS:
                raise InvalidInputError(f"columns: found {field!r}, expected fields of {', '.join(FIELDS)}")
            if column in ignored:
                raise InvalidInputError(
                    f"columns: found {column!r} as the {field}, and in ignore_columns too; leave it out of one of them"
                )
        for alike in layouts.ALTERNATIVES.values():
            named = [field for field in alike if field in columns]
            if len(named) > 1:
                raise InvalidInputError(
                    f"columns: found {' and '.join(map(repr, named))}, expected one of them: a record has one such field"
                )
        return Rules(dict(columns), frozenset(ignored), preference)


@dataclass(frozen=True)
class _Kinds:
    """What the names of a record's fields are, as far as names tell."""

    marks: tuple[str, ...]
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    alike: Mapping[str, tuple[str, ...]]


@functools.lru_cache(maxsize=4096)
def _kinds(fields: tuple[str, ...], others: tuple[str, ...]) -> _Kinds:
    names = (*fields, *others)
    return _Kinds(
        marks=tuple(name for name in names if layouts.kind_of_mark(name) is not None),
        wanted=tuple(name for name in layouts.WANTED_FIELDS if name in names),
        unwanted=tuple(name for name in names if layouts.is_unwanted(name)),
        alike={
            kind: tuple(name for name in alike if name in fields)
            for kind, alike in layouts.ALTERNATIVES.items()
        },
    )


class Fields:
    """One record's fields without its nulls.

    Args:
        given: The record as the data have it.
        rules: What the caller says of it.

    Raises:
        BadRecord: A column that `columns` names is missing.
    """

    def __init__(self, given: Mapping[str, Any], rules: Rules) -> None:
        self.rules = rules
        # Most values are text, of which none is null.
        self.nulls = [name for name, value in given.items() if type(value) is not str and is_null(value)]
        said = {name: value for name, value in given.items() if not is_null(value)} if self.nulls else given
        if rules.ignored:
            said = {name: value for name, value in said.items() if name not in rules.ignored}
        self.others: Mapping[str, Any] = {}
        self.values: Mapping[str, Any] = said
        if rules.columns:
            named = set(rules.columns.values())
            self.others = {name: value for name, value in said.items() if name not in named}
            self.values = {field: said[name] for field, name in rules.columns.items() if name in said}
            for field, column in rules.columns.items():
                if field not in self.values and field in NEEDED_FIELDS:
                    raise BadRecord(
                        "missing field",
                        f"found {self.there(said)}, expected {column!r} as the {field} (see columns)",
                    )
        self._read: set[str] = set()
        self._left: set[str] = set()
        self.kinds = _kinds(tuple(self.values), tuple(self.others))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def there(self, said: Mapping[str, Any] | None = None) -> str:
        """What the record has, for messages."""
        names = ", ".join(map(repr, self.values if said is None else said))
        nulls = f"null in {', '.join(map(repr, self.nulls))}" if self.nulls else ""
        return " and ".join(each for each in (names, nulls) if each) or "no fields"

    def says(self, name: str) -> bool:
        """Whether the field is there with more than blanks."""
        return name in self.values and not is_blank(self.values[name])

    def first(self, kind: str) -> str | None:
        """Of fields that mean the same the first that says something, or else that is there at all.

        Args:
            kind: A key of `layouts.ALTERNATIVES`.
        """
        there = self.kinds.alike[kind]
        for name in there:
            if not is_blank(self.values[name]):
                return name
        return there[0] if there else None

    def take(self, name: str) -> Any:
        """The field, which counts as read from now on."""
        self._read.add(name)
        return self.values[name]

    def taken_if(self, name: str) -> Any:
        """The field if it says something, else None."""
        return self.take(name) if self.says(name) else None

    def anywhere(self, name: str) -> Any:
        """A field or a column that no field is read from, by its own name."""
        return self.values[name] if name in self.values else self.others.get(name)

    def is_done(self, name: str) -> bool:
        """Whether a field is read, or its meaning followed."""
        return name in self._left or (name in self._read and name in self.values)

    def leave(self, names: Iterable[str]) -> None:
        """Lets fields go whatever they say, because their meaning is followed."""
        self._left.update(names)

    def check_rest(self, layout: str, *, tokens: bool = False) -> None:
        """Refuses what is not read.

        Args:
            layout: What the record is read as, for messages.
            tokens: Whether that is tokens: then the fields of text are what these were made of.

        Raises:
            BadRecord: There is text, or a picture, or the like, or a field that `columns` names.
        """
        if len(self._read) == len(self.values) and not self.others:
            return
        rest = [(name, value) for name, value in self.values.items() if not self.is_done(name)]
        if self.rules.columns:
            for name, value in rest:
                self._check_named(name, value, layout)
            # Who names a column as the prompt has decided against another that is called prompt.
            own = self.rules.columns
            rest = [each for each in self.others.items() if each[0] not in own and each[0] not in self._left]
        unread = [name for name, value in rest if self._is_unread(name, value, tokens=tokens)]
        if unread:
            raise self._unread(unread, layout)

    def _check_named(self, name: str, value: Any, layout: str) -> None:
        if is_blank(value) or (isinstance(value, str) and value.strip() in self._words()):
            return
        raise BadRecord(
            "unread column",
            f"columns names {self.rules.columns[name]!r} as {name!r}, which is not read of {layout}. Leave it out of"
            " columns=…, or name it as a field that is",
        )

    def _is_unread(self, name: str, value: Any, *, tokens: bool) -> bool:
        """Whether a column holds what is lost if nothing reads it.

        Raises:
            BadRecord: It holds what is no text.
        """
        if name in layouts.TEMPLATE_VARIABLES and isinstance(value, bool):
            raise BadRecord(
                "unread column",
                f"field {name!r}: found {value}, a variable of the chat template, expected it in"
                f" {layouts.OPTIONS_FIELD!r}. Put"
                f" it there, or pass {ignoring(name)}",
            )
        if type(value) in (int, float, bool):
            return False
        if tokens and name not in FIELDS and not layouts.is_media(name) and _has_numbers(value):
            return True
        if layouts.is_metadata(name):
            return is_long(value)
        if is_blank(value):
            return False
        if layouts.is_media(name) or holds_more_than_json(value):
            raise BadRecord(
                "not text",
                f"field {name!r} holds {found(value)}, expected text alone: what is no text is not learned from, and the"
                f" words about it would be learned without it. Leave such records out, or pass"
                f" {ignoring(name)} if the words stand for themselves",
            )
        if tokens and name in FIELDS:
            return False  # what the tokens are made of
        there = [each.strip() for each in words(value)]
        if is_plain_turns(value):
            there = [each for each in there if each.lower() not in ROLES]
        read = self._words() if there else set()
        if read.issuperset(there):
            return False
        if name in layouts.fitting(frozenset(self.values)):
            # Alpaca's `text` is a rendering of three other fields; one that is not says something of its own.
            rendered = self._words(ALPACA_FIELDS) if name == "text" else set()
            return not all(each in there[0] for each in rendered)
        return True

    def _words(self, names: Iterable[str] | None = None) -> set[str]:
        """All that is read, by text; or what is read of some fields."""
        read = self._read if names is None else self._read.intersection(names)
        return {each.strip() for name in read for each in words(self.values[name])}

    def _unread(self, names: Sequence[str], layout: str) -> BadRecord:
        several = ", ".join(map(repr, names))
        what = "text" if any(words(self.anywhere(names[0]))) else "numbers"
        reason = next(
            (
                each
                for each in layouts.LAYOUTS
                if names[0] in each.refuses and each.fits(frozenset(self.values))
            ),
            None,
        )
        kind = f" ({reason.name}: {reason.read_as})" if reason is not None else ""
        return BadRecord(
            "unread column",
            f"found {what} in {several}, which is not read of {layout}{kind}. Name what is to be read with"
            f" columns=…, or pass {ignoring(*names)} if it says nothing to learn from, or remove or rename it",
        )


def _has_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(
            _has_numbers(each) or (isinstance(each, int | float) and not is_null(each)) for each in value
        )
    return getattr(value, "ndim", 0) > 0
