"""Marks of what is learned: of a turn, of a record, of each turn of a record; and of replies that are not wanted.

A turn that is marked as not to be learned is context. What no gradient of a summed loss can follow is refused by name:
a weight between 0 and 1, marks of parts of a turn, a user's turn that is to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spice_rs.data.layouts import (
    EITHER_MARKS,
    LEARNED_MARKS,
    MASKED_MARKS,
    PARTIAL_MARKS,
    WANTED_FIELDS,
    WANTED_MARKS,
)
from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.data.values import is_null

MARKS = frozenset((*LEARNED_MARKS, *MASKED_MARKS, *EITHER_MARKS))
ALL_MARKS = MARKS | frozenset(PARTIAL_MARKS) | frozenset(WANTED_MARKS)

_WORDS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def _flag(value: Any, where: str, name: str) -> bool:
    """0 or 1, in any of the forms that data have."""
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    if isinstance(value, bool | np.bool_ | int | float | np.integer | np.floating):
        if value in (0, 1):
            return bool(value)
        raise BadRecord(
            "fractional weight",
            f"{where} is {value}, expected 0 or 1 (false or true): a gradient is of what is learned, or not. Correct it, or"
            f" leave the mark out with {ignoring(name)}",
        )
    raise BadRecord(
        "unknown mark",
        f"{where} is {found(value)}, expected 0 or 1 (false or true). Correct it, or leave the mark out with"
        f" {ignoring(name)}",
    )


def marks_of_turn(
    turn: Mapping[str, Any], field: str, number: int, ignored: frozenset[str]
) -> list[tuple[str, bool]]:
    """The marks of one turn as (name, flag as it stands), those ignored left out."""
    marks = []
    for name in turn:
        if name not in ALL_MARKS or f"{field}.{name}" in ignored:
            continue
        value, where = turn[name], f"{field}[{number}].{name}"
        if name in PARTIAL_MARKS:
            if value not in ([], {}, ""):
                raise _partial(where, f"{field}.{name}")
        elif name not in WANTED_MARKS or isinstance(value, bool):
            marks.append((name, _flag(value, where, f"{field}.{name}")))
    return marks


def _partial(where: str, name: str) -> BadRecord:
    return BadRecord(
        "unknown mark",
        f"{where} marks parts of a turn, expected marks of whole turns. Split the turn, or leave the mark out with"
        f" {ignoring(name)}",
    )


def learned_turns(
    roles: Sequence[str], marks: Sequence[Sequence[tuple[str, bool]]], field: str
) -> list[bool]:
    """Which turns are learned as far as the marks say, by turn.

    Args:
        roles: Of the turns.
        marks: (name, flag) of each turn.
        field: Of the turns, for messages.

    Raises:
        BadRecord: They contradict each other, or ask for what cannot be learned.
    """
    masking = _masking({name for each in marks for name, _ in each} & set(EITHER_MARKS), roles, marks, field)
    learned = []
    for number, (role, own) in enumerate(zip(roles, marks, strict=True)):
        wishes = {flag != (name in MASKED_MARKS or masking.get(name, False)): name for name, flag in own}
        if len(wishes) == 2:
            raise BadRecord(
                "marks contradict",
                f"{field}[{number}] is marked as to be learned by {wishes[True]!r} and as not by {wishes[False]!r},"
                " expected one of the two",
            )
        if True in wishes and role != "assistant":
            # "masked": false and "ignore": false say no more than nothing where the turn is no reply.
            name = wishes[True]
            if name not in MASKED_MARKS:
                raise BadRecord(
                    "unknown mark",
                    f"{field}[{number}].{name} marks a turn of the {role} as to be learned, expected marks of the"
                    " assistant's. Correct it, or leave the mark out with"
                    f" {ignoring(f'{field}.{name}')}",
                )
        learned.append(False not in wishes)
    return learned


def _masking(
    names: set[str], roles: Sequence[str], marks: Sequence[Sequence[tuple[str, bool]]], field: str
) -> dict[str, bool]:
    """Whether 1 stands for masked, of marks that may mean either: what is no reply is never learned, and tells."""
    masking = {}
    for name in names:
        others = {
            flag
            for role, own in zip(roles, marks, strict=True)
            for each, flag in own
            if each == name and role != "assistant"
        }
        if len(others) != 1:
            raise BadRecord(
                "unknown mark",
                f"{field}: {name!r} may mean what is learned or what is not, and turns that are no replies do not tell"
                f" which. Call it 'learned' or 'masked', or leave it out with {ignoring(f'{field}.{name}')}",
            )
        masking[name] = others.pop()
    return masking


def check_record_mark(name: str, value: Any) -> None:
    """Follows a mark of the whole record.

    Raises:
        BadRecord: Nothing of it is to be learned, or the mark cannot be followed.
    """
    if name in WANTED_MARKS or name in WANTED_FIELDS:
        if isinstance(value, bool | np.bool_ | int | float | np.integer | np.floating) and value == 0:
            raise BadRecord(
                "unwanted reply",
                f"field {name!r} is {value}: the reply is not wanted (KTO), and there is no other to learn. Leave the"
                f" record out; if {name!r} means something else, pass {ignoring(name)}",
            )
        return
    if name in EITHER_MARKS or name in PARTIAL_MARKS:
        raise BadRecord(
            "unknown mark",
            f"field {name!r} is {found(value)}: it does not say whether 1 stands for what is learned. Call it 'learned' or"
            f" 'masked', or leave it out with {ignoring(name)}",
        )
    if _flag(value, f"field {name!r}", name) == (name in MASKED_MARKS):
        raise BadRecord(
            "nothing to learn",
            f"field {name!r} is {value}: the whole record is marked as not to be learned. Leave it out, or the mark with"
            f" {ignoring(name)}",
        )


def marks_by_turn(name: str, values: Any, roles: Sequence[str], field: str) -> list[list[tuple[str, bool]]]:
    """A record's list of marks as marks of its turns: one for each, or one for each of the assistant's.

    Raises:
        BadRecord: There are more or fewer.
    """
    given = list(values.tolist() if isinstance(values, np.ndarray) else values)
    replies = [number for number, role in enumerate(roles) if role == "assistant"]
    if len(given) not in (len(roles), len(replies)):
        raise BadRecord(
            "unknown mark",
            f"field {name!r} has {len(given)} marks, expected {len(roles)}, one for each turn of {field!r}, or"
            f" {len(replies)}, one for each of the assistant's. Correct it, or pass {ignoring(name)}",
        )
    places = range(len(roles)) if len(given) == len(roles) else replies
    marks: list[list[tuple[str, bool]]] = [[] for _ in roles]
    for place, value in zip(places, given, strict=True):
        if not is_null(value):
            marks[place].append((name, _flag(value, f"{name}[{place}]", name)))
    return marks
