"""Preference data: of two or more replies, the one that is wanted, with all that goes before it as context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from spice_rs.data.reading import BadRecord, found
from spice_rs.data.turns import Message, as_context, is_turns, read_turns
from spice_rs.data.values import text

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_REMEDY = (
    'pass preference="chosen" to learn the wanted replies alone, or give the replies to learn as responses'
)


def refused(names: Sequence[str]) -> BadRecord:
    """Says that preference data are not learned from unless that is asked for."""
    there = " and ".join(map(repr, names))
    return BadRecord(
        "preference data", f"found {there}, preference data, expected one reply to learn; {_REMEDY}"
    )


def chosen_turns(
    before: Sequence[Message], chosen: Any, rejected: Any, fields: tuple[str, str], ignored: frozenset[str]
) -> list[Message]:
    """The turns of the wanted side; those that both sides share are context.

    Args:
        before: Turns that the record has beside the two sides: a system turn, a prompt, a conversation.
        chosen: The wanted side: a text, a turn, or turns, which may hold those before again.
        rejected: The other side, or None.
        fields: Their names, for messages.
        ignored: As for `read_turns`.

    Raises:
        BadRecord: A side cannot be read, both are the same, or they do not follow what goes before.
    """
    bare = not any(turn.role == "user" for turn in before)
    end = max([number + 1 for number, turn in enumerate(before) if turn.role != "assistant"], default=0)
    prompt, replies = before[:end], before[end:]  # some data have the wanted reply there too
    wanted = _whole(prompt, _side(chosen, fields[0], bare=bare, ignored=ignored), fields[0])
    if not all(any(_same(turn, each) for each in wanted[end:]) for turn in replies):
        raise BadRecord(
            "preference data",
            f"field {fields[0]!r} stands beside turns that end with another reply, expected them to end with the prompt",
        )
    shared = len(prompt)
    if rejected is not None:
        other = _whole(prompt, _side(rejected, fields[1], bare=bare, ignored=ignored), fields[1])
        shared = max(shared, _shared(wanted, other))
        if shared == len(wanted) == len(other):
            raise BadRecord(
                "nothing to learn",
                f"fields {fields[0]!r} and {fields[1]!r} are the same, expected one better",
            )
    else:
        shared = max(
            [number + 1 for number, turn in enumerate(wanted) if turn.role == "user"], default=shared
        )
    return [*as_context(wanted[:shared]), *wanted[shared:]]


def last_reply(turns: Sequence[Message], field: str) -> list[Message]:
    """The turns of a conversation whose last reply is wanted, and another not: those before are context.

    Raises:
        BadRecord: The last turn is no reply.
    """
    if not turns or turns[-1].role != "assistant":
        raise BadRecord(
            "no assistant turn",
            f"field {field!r} does not end with the assistant's turn, expected the wanted reply there",
        )
    return [*as_context(turns[:-1]), turns[-1]]


def best_reply(replies: Any, scores: Any, fields: tuple[str, str]) -> str:
    """The reply with the highest score.

    Raises:
        BadRecord: There is no score for each, or the highest is there twice.
    """
    replies, scores = (
        value.tolist() if isinstance(value, np.ndarray) else value for value in (replies, scores)
    )
    numbers = isinstance(scores, list | tuple) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and each == each for each in scores
    )
    if not numbers or not isinstance(replies, list | tuple) or len(replies) != len(scores) or not replies:
        raise BadRecord(
            "preference data",
            f"fields {fields[0]!r} and {fields[1]!r} are {found(replies)} and {found(scores)}, expected a list of replies"
            " and as many numbers",
        )
    best = max(scores)
    if list(scores).count(best) > 1:
        raise BadRecord(
            "preference data",
            f"field {fields[1]!r} holds its highest, {best}, more than once, expected one best reply",
        )
    return text(replies[list(scores).index(best)], fields[0])


def _side(value: Any, field: str, *, bare: bool, ignored: frozenset[str]) -> list[Message]:
    """One side: turns, a reply, or, where nothing goes before, HH-RLHF's conversation in one text."""
    if is_turns(value):
        return read_turns(value, field, ignored=ignored)
    reply = text(value, field)
    marks = list(_SPEAKER.finditer(reply)) if bare else []
    if not marks:
        if bare:
            raise BadRecord(
                "missing field",
                f"field {field!r}: found {found(reply)}, expected a prompt beside it, or turns after 'Human:'",
            )
        return [Message("assistant", reply)]
    turns = (
        [Message("system", reply[: marks[0].start()].strip())] if reply[: marks[0].start()].strip() else []
    )
    ends = [*(mark.start() for mark in marks[1:]), len(reply)]
    for mark, end in zip(marks, ends, strict=True):
        turns.append(Message("user" if mark[1] == "Human" else "assistant", reply[mark.end() : end].strip()))
    return turns


def _whole(before: Sequence[Message], side: list[Message], field: str) -> list[Message]:
    """What goes before and the side, which may have it again, as a whole conversation or its end."""
    if not any(turn.role == "user" for turn in side):
        return [*before, *side]
    rest = [turn for turn in before if turn.role != "system" or side[0].role == "system"]
    head = list(before[: len(before) - len(rest)])
    missing = [turn for turn in rest if not any(_same(turn, each) for each in side)]
    if missing:
        raise BadRecord(
            "preference data",
            f"field {field!r} is a conversation of its own without {missing[0].role} {missing[0].content[:60]!r}, which"
            " stands before it, expected the same prompt in both",
        )
    return [*head, *side]


def _shared(left: Sequence[Message], right: Sequence[Message]) -> int:
    shorter = min(len(left), len(right))
    return next((at for at in range(shorter) if not _same(left[at], right[at])), shorter)


def _same(left: Message, right: Message) -> bool:
    return (left.role, left.content.strip(), left.more) == (right.role, right.content.strip(), right.more)
