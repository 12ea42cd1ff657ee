"""How LLaMA-Factory reads turns: which of its tags their speakers are, and what beside the words it passes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spice_rs.report.llama_fields import (
    AS_JSON_LINES,
    CHATS,
    NAME_COLUMNS,
    SYSTEMS,
    Columns,
    Seen,
    check_media,
)

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
MARKS = ("weight", "train", "training", "loss", "loss_scale", "learned")
"""What data call the mark of a turn that is learned, or by a 0 or false is not."""


def turn_tags(seen: Sequence[Seen], stage: str, used: Columns) -> tuple[dict[str, str], list[str]]:
    """Name the columns of chats; return the tags, and the places of the records that would be skipped."""
    roles: dict[str, tuple[str, str]] = {}
    keys: tuple[tuple[str, str], str] | None = None
    skipped = []
    for record in seen:
        name = record.only(CHATS)
        assert name is not None
        used.use("messages", name, record)
        turns = record.fields[name]
        if not isinstance(turns, list | tuple) or not turns:
            raise record.refuse(
                f"a {type(turns).__name__} as {name!r}, expected a list of turns", NAME_COLUMNS
            )
        replies = []
        if stage == "dpo":
            for column in ("chosen", "rejected"):
                used.use(column, column, record)
                replies.append((column, record.fields[column]))
        speakers, contents = [], []
        for where, turn in (*((f"{name}[{i}]", turn) for i, turn in enumerate(turns)), *replies):
            pair = _keys(record, turn, where)
            if keys is not None and pair != keys[0]:
                raise record.refuse(
                    f"turns of {' and '.join(map(repr, pair))}, and in {keys[1]} of {' and '.join(map(repr, keys[0]))},"
                    " expected the same names in all picks",
                    "Select from one kind at a time",
                )
            keys = keys or (pair, record.place)
            _check_turn(record, turn, where, *pair)
            speaker = next((whose for whose, names in TAGS.items() if turn[pair[0]] in names), None)
            if speaker is None:
                known = ", ".join(name for names in TAGS.values() for name in names)
                raise record.refuse(
                    f"{turn[pair[0]]!r} as the speaker of {where}, expected one of {known}", "Rename it"
                )
            tag, place = roles.setdefault(speaker, (turn[pair[0]], record.place))
            if tag != turn[pair[0]]:
                raise record.refuse(
                    f"speakers {turn[pair[0]]!r} and, in {place}, {tag!r}, of which LLaMA-Factory knows one as its"
                    f" {speaker}, expected one name in all picks",
                    "Rename one of them",
                )
            speakers.append(speaker)
            contents.append(turn[pair[1]])
        system = record.only(SYSTEMS)
        if speakers[0] == "system" and system is not None and record.has(system):
            raise record.refuse(
                f"a turn of the system and {system!r} beside it, of which LLaMA-Factory reads the turn, expected one",
                NAME_COLUMNS,
            )
        if stage == "dpo" and not set(speakers[-2:]) <= {"assistant", "function"}:
            raise record.refuse(
                "replies that are not the assistant's, expected its own", "Correct the record"
            )
        if not _alternates(speakers[: len(turns)], stage):
            skipped.append(record.place)
        check_media(record, contents[: len(turns) + 1] if stage == "dpo" else contents)
    assert keys is not None
    first = KEYS[0] == keys[0]
    used_tags = {whose: names[0] for whose, names in TAGS.items()}
    if not first:
        used_tags |= {"user": "human", "assistant": "gpt", "observation": "observation"}
    used_tags |= {whose: tag for whose, (tag, _) in roles.items()}
    tags = {"role_tag": keys[0][0], "content_tag": keys[0][1]}
    return tags | {f"{whose}_tag": tag for whose, tag in used_tags.items()}, skipped


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


def _check_turn(record: Seen, turn: Mapping[str, Any], where: str, speaker: str, words: str) -> None:
    if not isinstance(turn[words], str) or not isinstance(turn[speaker], str):
        raise record.refuse(
            f"a {type(turn[words]).__name__} as the words of {where}, expected text, with marks such as <image> and a"
            " column 'images' for what is no text",
            f"Convert the data, or {AS_JSON_LINES}",
        )
    spoken = turn[speaker] in (*TAGS["assistant"], *TAGS["function"])
    marked = next((name for name in MARKS if turn.get(name) not in (None, 1)), None)
    marked = "train_detail" if turn.get("train_detail") else marked
    if spoken and marked is not None:
        raise record.refuse(
            f"{marked!r} in {where}, a turn that is not to be learned, while LLaMA-Factory learns all of the assistant's,"
            " expected none",
            f"Leave the mark out, or {AS_JSON_LINES}",
        )


def _alternates(speakers: Sequence[str], stage: str) -> bool:
    """Whether speakers take turns as LLaMA-Factory wants it."""
    told = list(speakers[1:] if speakers[0] == "system" else speakers)
    whole = len(told) % 2 == (1 if stage == "dpo" else 0)
    asked, answered = set(told[::2]), set(told[1::2])
    return whole and asked <= {"user", "observation"} and answered <= {"assistant", "function"}
