"""The fields of records by which LLaMA-Factory reads them, and words for what it cannot read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spice_rs.data import layouts
from spice_rs.data.values import is_blank, is_null
from spice_rs.errors import InvalidInputError

PROMPTS = layouts.PROMPT_FIELDS
QUERIES = ("input", "context")
RESPONSES = tuple(name for name in layouts.RESPONSE_FIELDS if name != "answers")
CHOSEN = layouts.WANTED_FIELDS
REJECTED = layouts.UNWANTED_FIELDS
CHATS = layouts.TURN_FIELDS
SYSTEMS = layouts.SYSTEM_FIELDS
TOOLS = layouts.TOOL_FIELDS
MEDIA = {"images": ("images", "image"), "videos": ("videos", "video"), "audios": ("audios", "audio")}
"""LLaMA-Factory's column → fields that are it."""
MEDIA_MARKS = tuple(f"<{column[:-1]}>" for column in MEDIA)
"""What stands in the text in place of each: <image>, <video>, <audio>."""
LABELS = layouts.WANTED_MARKS
UNREAD = (layouts.OPTIONS_FIELD,)
"""Fields that templates read, and LLaMA-Factory does not."""

KNOWN = {
    *(*PROMPTS, *QUERIES, *RESPONSES, *CHOSEN, *REJECTED, *CHATS, *SYSTEMS, *TOOLS, *LABELS, *UNREAD),
    *("history", "text", "input_ids", "labels"),
    *(name for names in MEDIA.values() for name in names),
    *layouts.FIELDS,
}
"""Fields that `columns` can name a column for: those of `extract` too, whose names are taken over."""

NAME_COLUMNS = "Name the columns to train on with columns="
AS_JSON_LINES = "write the picks as JSON Lines for a trainer that reads them, TRL for example"


@dataclass
class Seen:
    """One record: its place, its fields that have a value, and its marks of what is learned.

    Marks count whether `columns` names them or not, as for extraction.
    """

    place: str
    fields: Mapping[str, Any]
    marks: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(
        place: str, record: Mapping[str, Any], columns: Mapping[str, str] | None, ignored: Collection[str]
    ) -> Seen:
        """Return a record as it stands in the data, with lists for arrays, and without what says nothing.

        Args:
            place: What it is called in messages.
            record: The record.
            columns: Field → column of the data; no other column is then a field.
            ignored: Columns, and keys "field.key" of turns, that say nothing.

        Raises:
            InvalidInputError: It is nested too deeply.
        """
        said = {name: value for name, value in record.items() if name not in ignored and not is_null(value)}
        try:
            said = {name: listed(value) for name, value in said.items()}
        except RecursionError:
            raise Seen(place, record).refuse(
                "a value that is nested too deeply to be read", "Correct it"
            ) from None
        fields, others = said, {}
        if columns:
            named = set(columns.values())
            others = {name: value for name, value in said.items() if name not in named}
            fields = {name: said[column] for name, column in columns.items() if column in said}
        marks = {
            name: value
            for name, value in {**others, **fields}.items()
            if layouts.kind_of_mark(name) is not None and not is_blank(value)
        }
        own = {
            name: _of_turns(value, name, ignored) if name in (*CHATS, *CHOSEN, *REJECTED) else value
            for name, value in fields.items()
        }
        return Seen(place, own, marks)

    def first(self, names: Sequence[str]) -> str | None:
        """Return the first of some fields that the record has."""
        return next((name for name in names if name in self.fields), None)

    def has(self, name: str) -> bool:
        """Whether the record has a field that is not empty."""
        value = self.fields.get(name)
        return value is not None and not (hasattr(value, "__len__") and len(value) == 0)

    def only(self, names: Sequence[str]) -> str | None:
        """Return the one of some fields that the record has: of two, the one that is not empty.

        Raises:
            InvalidInputError: Two are not empty, of which one would be passed over.
        """
        full = [name for name in names if self.has(name)]
        if len(full) > 1:
            raise self.refuse(
                f"{' and '.join(map(repr, full))}, of which LLaMA-Factory reads one, expected one of them",
                NAME_COLUMNS,
            )
        return full[0] if full else self.first(names)

    def refuse(self, found: str, remedy: str) -> InvalidInputError:
        """Return what to raise of the record."""
        return InvalidInputError(f"{self.place}: found {found}. {remedy}.")

    def text(self, name: str) -> str:
        """Return a field that must be text."""
        value = self.fields[name]
        if not isinstance(value, str):
            raise self.refuse(
                f"a {type(value).__name__} as {name!r}, which LLaMA-Factory passes over, expected text",
                f"{NAME_COLUMNS}, or {AS_JSON_LINES}",
            )
        return value


def listed(value: Any) -> Any:
    """Return a value with lists and numbers for the arrays and scalars that pandas has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: listed(each) for name, each in value.items()}
    return [listed(each) for each in value] if isinstance(value, list | tuple) else value


def _of_turns(value: Any, name: str, ignored: Collection[str]) -> Any:
    """Return turns, or one, without their nulls and the keys that say nothing."""
    if isinstance(value, list):
        return [_of_turns(each, name, ignored) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {key: each for key, each in value.items() if not is_null(each) and f"{name}.{key}" not in ignored}


class Columns:
    """LLaMA-Factory's columns → columns of the data, the same for all records."""

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given
        self._field: dict[str, tuple[str, str]] = {}
        self.named: dict[str, str] = {}

    def use(self, column: str, name: str, record: Seen) -> None:
        """Let a field be a column of LLaMA-Factory's, which has one field in all records."""
        first, place = self._field.setdefault(column, (name, record.place))
        if name != first:
            raise record.refuse(
                f"{name!r} and, in {place}, {first!r}, of which LLaMA-Factory reads one as its {column}, expected one"
                " name in all picks",
                "Select from one kind at a time, or rename the fields",
            )
        self.named[column] = self._given.get(name, name)


def check_media(record: Seen, contents: Sequence[str]) -> None:
    """Refuse marks of images without their images, and images without their marks."""
    for (column, names), mark in zip(MEDIA.items(), MEDIA_MARKS, strict=True):
        name = record.only(names)
        value = [] if name is None else record.fields[name]
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            frames = item if isinstance(item, list | tuple) else [item]
            if not all(isinstance(frame, str) for frame in frames):
                raise record.refuse(
                    f"a {type(frames[0]).__name__} in {name!r}, expected paths of files",
                    "Save the files, and give their paths",
                )
        marks = sum(words.count(mark) for words in contents)
        if marks != len(items):
            where = f"in {name!r}" if name is not None else f"and no column {names[0]!r} for them"
            raise record.refuse(
                f"{marks} marks {mark} and {len(items)} {column} {where}, expected as many of one as of the other",
                "Correct the record, or name the column with columns=",
            )
