"""How LLaMA-Factory reads turns: which of its tags their speakers are, and what beside the words it passes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spice_rs.report.llama_fields import (
    AS_JSON_LINES,
    CHATS,
    CHOSEN,
    MEDIA_MARKS,
    NAME_COLUMNS,
    REJECTED,
    SYSTEMS,
    Columns,
    Seen,
    check_media,
)
from spice_rs.report.llama_marks import check_record_marks, check_turn_marks

KEYS = (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content"))
"""What turns call their speaker and their words."""

TAGS = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot"),
    "observation": (
        *("tool", "observation", "function", "tool_response", "function_response"),
        *("tool_result", "ipython"),
    ),
    "function": ("function_call", "tool_call"),
    "system": ("system", "developer"),
}
"""Whose words a turn is → names of the speaker; the first one is written where the picks have none."""

CALLS = ("tool_calls", "function_call")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def turn_tags(seen: Sequence[Seen], stage: str, used: Columns) -> tuple[dict[str, str], list[str]]:
    """Name the columns of chats; return the tags, and the places of the records that would be skipped."""
    tags = _Tags()
    skipped = []
    for record in seen:
        name = record.only(CHATS)
        assert name is not None
        used.use("messages", name, record)
        turns = record.fields[name]
        if not isinstance(turns, list) or not turns:
            raise record.refuse(
                f"a {type(turns).__name__} as {name!r}, expected a list of turns", NAME_COLUMNS
            )
        told = [tags.read(record, turn, f"{name}[{i}]") for i, turn in enumerate(turns)]
        by_turn = check_record_marks(record, turns=True)
        check_turn_marks(record, turns, [speaker for speaker, _ in told], name, by_turn)
        system = told.pop(0)[1] if told[0][0] == "system" else None
        _check_system(record, system)
        if not _alternates([speaker for speaker, _ in told], stage):
            skipped.append(record.place)
        if stage == "dpo":
            for column, names in (("chosen", CHOSEN), ("rejected", REJECTED)):
                field = record.only(names)
                assert field is not None
                used.use(column, field, record)
                reply = tags.read(record, record.fields[field], field)
                if reply[0] not in ("assistant", "function"):
                    raise record.refuse(
                        f"{field!r} that is not the assistant's, expected its own words",
                        "Correct the record",
                    )
                check_turn_marks(record, [record.fields[field]], [reply[0]], field)
                check_media(record, [words for _, words in (*told, reply)])
        else:
            check_media(record, [words for _, words in told])
    return tags.entry(), skipped


class _Tags:
    """What LLaMA-Factory's tags are in turns, the same for all records."""

    def __init__(self) -> None:
        self._keys: tuple[tuple[str, str], str] | None = None
        self._names: dict[str, tuple[str, str]] = {}

    def read(self, record: Seen, turn: Any, where: str) -> tuple[str, str]:
        """Return whose words a turn is, and the words.

        Raises:
            InvalidInputError: LLaMA-Factory would not read it, or not by the tags of the turns before it.
        """
        pair = _keys(record, turn, where)
        first, place = self._keys = self._keys or (pair, record.place)
        if pair != first:
            raise record.refuse(
                f"turns of {' and '.join(map(repr, pair))}, and in {place} of {' and '.join(map(repr, first))},"
                " expected the same names in all picks",
                "Select from one kind at a time",
            )
        name, words = (turn[key] for key in pair)
        speaker = next((whose for whose, names in TAGS.items() if str(name).lower() in names), None)
        if speaker is None:
            known = ", ".join(name for names in TAGS.values() for name in names)
            raise record.refuse(f"{name!r} as the speaker of {where}, expected one of {known}", "Rename it")
        if not isinstance(words, str):
            raise record.refuse(
                f"a {type(words).__name__} as the words of {where}, expected text, with marks such as <image> and a"
                " column 'images' for what is no text",
                f"Convert the data, or {AS_JSON_LINES}",
            )
        tag, place = self._names.setdefault(speaker, (name, record.place))
        if tag != name:
            raise record.refuse(
                f"speakers {name!r} and, in {place}, {tag!r}, of which LLaMA-Factory knows one as its {speaker},"
                " expected one name in all picks",
                "Rename one of them",
            )
        return speaker, words

    def entry(self) -> dict[str, str]:
        """Return all tags: one that is left out is none at all, once another is given."""
        assert self._keys is not None
        (role, content), _ = self._keys
        names = {whose: names[0] for whose, names in TAGS.items()}
        if role == "from":
            names |= {"user": "human", "assistant": "gpt", "observation": "observation"}
        names |= {whose: name for whose, (name, _) in self._names.items()}
        return {"role_tag": role, "content_tag": content} | {
            f"{whose}_tag": name for whose, name in names.items()
        }


def _check_system(record: Seen, system: str | None) -> None:
    """Refuse two system prompts, and marks of images in one."""
    column = record.only(SYSTEMS)
    if system is not None and column is not None and record.has(column) and record.fields[column] != system:
        raise record.refuse(
            f"a turn of the system and {column!r} beside it, of which LLaMA-Factory reads the turn, expected one",
            NAME_COLUMNS,
        )
    mark = next((mark for mark in MEDIA_MARKS if mark in (system or "")), None)
    if mark is not None:
        raise record.refuse(
            f"{mark} in the words of the system, where LLaMA-Factory reads none, expected it in others",
            "Correct the record",
        )


def _keys(record: Seen, turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise record.refuse(
            f"a {type(turn).__name__} as {where}, which LLaMA-Factory does not read, expected one turn",
            f"{NAME_COLUMNS}, or {AS_JSON_LINES}",
        )
    _check_unread(record, turn, where)
    for pair in KEYS:
        if all(turn.get(key) is not None for key in pair):
            return pair
    there = ", ".join(map(repr, turn)) or "no fields"
    raise record.refuse(f"{there} in {where}, expected a speaker and its words", "Correct the record")


def _check_unread(record: Seen, turn: Mapping[str, Any], where: str) -> None:
    """Refuse what a turn has besides its words that LLaMA-Factory would not train on."""
    for name in CALLS:
        if turn.get(name):
            raise record.refuse(
                f"{name!r} in {where}, tools and calls of them that LLaMA-Factory does not read so, expected the words of a"
                ' turn of "function_call", as {"name", "arguments"}',
                f"Convert the data, or {AS_JSON_LINES}",
            )
    for name in THOUGHTS:
        if turn.get(name):
            raise record.refuse(
                f"{name!r} in {where}, thoughts that LLaMA-Factory does not read beside the words, expected them in these",
                f"Convert the data, or {AS_JSON_LINES}",
            )


def _alternates(speakers: Sequence[str], stage: str) -> bool:
    """Whether those who speak after the system take turns as LLaMA-Factory wants it."""
    whole = len(speakers) % 2 == (1 if stage == "dpo" else 0)
    asked, answered = set(speakers[::2]), set(speakers[1::2])
    return (
        len(speakers) > 0
        and whole
        and asked <= {"user", "observation"}
        and answered <= {"assistant", "function"}
    )
