"""The fields of records by which LLaMA-Factory reads them, and words for what it cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spice_rs.data import layouts
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
}
"""Fields that `columns` can name a column for."""

NAME_COLUMNS = "Name the columns to train on with columns= (--columns)"
AS_JSON_LINES = (
    "write the picks as JSON Lines (--out picks.jsonl) for a trainer that reads them, TRL for example"
)


@dataclass
class Seen:
    """One record: its place, and its fields that have a value."""

    place: str
    fields: Mapping[str, Any]

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
                "Correct the record, or name the column with columns= (--columns)",
            )
