"""Marks of what is learned: of a turn, of a record, of each turn of a record; and of replies that are not wanted.

A turn that is marked as not to be learned is context. What no gradient of a summed loss can follow is refused by name:
a weight between 0 and 1, marks of parts of a turn, a user's turn that is to be learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from spice_rs.data.layouts import kind_of_mark, parts
from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.data.values import is_blank, is_null

_WORDS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


class Mark(NamedTuple):
    """A mark of one turn: its name, 0 or 1 as it stands there, and what to ignore to be rid of it."""

    name: str
    flag: bool
    column: str


def marks_of_turn(turn: Mapping[str, Any], field: str, number: int) -> list[Mark]:
    """The marks of one turn.

    Raises:
        BadRecord: One is neither 0 nor 1, or marks a part of the turn.
    """
    marks = []
    for name, value in turn.items():
        kind, column = kind_of_mark(name), f"{field}.{name}"
        if kind is None or is_blank(value):
            continue
        where = f"{field}[{number}].{name}"
        if kind == "partial":
            raise BadRecord(
                "unknown mark",
                f"{where} marks parts of a turn, expected marks of whole turns. Split the turn, or leave the mark out with"
                f" {ignoring(column)}",
            )
        if kind == "alike":
            _check_alike(name, value, where, column)
        elif kind != "wanted" or isinstance(value, bool):
            marks.append(Mark(name, _flag(value, where, column), column))
    return marks


def marks_by_turn(name: str, values: Any, roles: Sequence[str], field: str) -> list[list[Mark]]:
    """A record's list of marks as marks of its turns: one for each, or one for each of the assistant's.

    Raises:
        BadRecord: There are more or fewer, or one is neither 0 nor 1.
    """
    given = list(np.atleast_1d(values).tolist() if isinstance(values, np.ndarray) else values)
    replies = [number for number, role in enumerate(roles) if role == "assistant"]
    if len(given) not in (len(roles), len(replies)):
        raise BadRecord(
            "unknown mark",
            f"field {name!r} has {len(given)} marks, expected {len(roles)}, one for each turn of {field!r}, or"
            f" {len(replies)}, one for each of the assistant's. Correct it, or pass {ignoring(name)}",
        )
    places = range(len(roles)) if len(given) == len(roles) else replies
    marks: list[list[Mark]] = [[] for _ in roles]
    for place, value in zip(places, given, strict=True):
        if not is_null(value):
            marks[place].append(Mark(name, _flag(value, f"{name}[{place}]", name), name))
    return marks


def learned_turns(roles: Sequence[str], marks: Sequence[Sequence[Mark]], field: str) -> list[bool]:
    """Which turns are learned as far as the marks say, by turn.

    Args:
        roles: Of the turns.
        marks: Of each turn.
        field: Of the turns, for messages.

    Raises:
        BadRecord: They contradict each other, or ask for what cannot be learned.
    """
    masks = _masks([(role, mark) for role, own in zip(roles, marks, strict=True) for mark in own], field)
    learned = []
    for number, (role, own) in enumerate(zip(roles, marks, strict=True)):
        yes = [mark for mark in own if mark.flag != (mark.name in masks)]
        no = [mark for mark in own if mark.flag == (mark.name in masks)]
        if yes and no:
            raise BadRecord(
                "marks contradict",
                f"{field}[{number}] is marked as to be learned by {yes[0].name!r} and as not by {no[0].name!r}, expected"
                " one of the two",
            )
        # That a turn is not masked says nothing where it is no reply.
        asked = [mark for mark in yes if kind_of_mark(mark.name) != "masked"]
        if asked and role != "assistant":
            raise BadRecord(
                "unknown mark",
                f"{field}[{number}] is a turn of the {role} that {asked[0].name!r} marks as to be learned, expected marks"
                f" of the assistant's. Correct it, or leave the mark out with {ignoring(asked[0].column)}",
            )
        learned.append(not no)
    return learned


def check_record_mark(name: str, value: Any) -> None:
    """Follows a mark of the whole record.

    Raises:
        BadRecord: Nothing of it is to be learned, or the mark cannot be followed.
    """
    kind = kind_of_mark(name)
    if kind == "wanted":
        number = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if isinstance(number, bool | np.bool_ | int | float | np.integer | np.floating) and number <= 0:
            raise unwanted(name, value)
    elif kind == "alike":
        _check_alike(name, value, f"field {name!r}", name)
    elif kind in ("either", "partial"):
        raise BadRecord(
            "unknown mark",
            f"field {name!r} is {found(value)}: it does not say whether 1 stands for what is learned. Call it 'learned' or"
            f" 'masked', or leave it out with {ignoring(name)}",
        )
    elif _is_fraction(value):
        raise BadRecord(
            "fractional weight",
            f"field {name!r}: found {value}, expected 0 or 1 (false or true): a gradient is of what is learned, or"
            " not. If it"
            f" is what the sample counts, pass {ignoring(name)} here, and weights={name!r} to select",
        )
    elif _flag(value, f"field {name!r}", name) == (kind == "masked"):
        raise BadRecord(
            "nothing to learn",
            f"field {name!r} is {value}: the whole record is marked as not to be learned. Leave it out, or the mark with"
            f" {ignoring(name)}",
        )


def unwanted(name: str, value: Any) -> BadRecord:
    """Says that a mark calls the only reply unwanted."""
    return BadRecord(
        "unwanted reply",
        f"field {name!r} is {value}: the reply is not wanted (KTO), and there is no other to learn. Leave the record"
        f" out; if {name!r} means something else, pass {ignoring(name)}",
    )


def _flag(value: Any, where: str, column: str) -> bool:
    """0 or 1, in any of the forms that data have."""
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    if isinstance(value, bool | np.bool_ | int | float | np.integer | np.floating):
        if not _is_fraction(value):
            return bool(value)
        raise BadRecord(
            "fractional weight",
            f"{where}: found {value}, expected 0 or 1 (false or true): a gradient is of what is learned, or not."
            " Correct it, or"
            f" leave the mark out with {ignoring(column)}",
        )
    raise BadRecord(
        "unknown mark",
        f"{where}: found {found(value)}, expected 0 or 1 (false or true). Correct it, or leave the mark out with"
        f" {ignoring(column)}",
    )


def _is_fraction(value: Any) -> bool:
    """Whether it is a number that says neither that something is learned nor that it is not."""
    return isinstance(value, int | float | np.integer | np.floating) and value not in (0, 1)


def _check_alike(name: str, value: Any, where: str, column: str) -> None:
    """Refuses what may say that something is not learned, under a name that is not known."""
    masking = any(part.startswith("mask") for part in parts(name))
    values = value.tolist() if isinstance(value, np.ndarray) else value
    values = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(each, bool | np.bool_) and bool(each) == masking for each in values):
        raise BadRecord(
            "unknown mark",
            f"{where} is {found(value)}, and may say that something is not to be learned. Call it 'learned' or 'masked', or"
            f" leave it out with {ignoring(column)}",
        )


def _masks(marks: Iterable[tuple[str, Mark]], field: str) -> set[str]:
    """Names of marks of which 1 stands for masked; turns that are no replies tell of those that may be either."""
    marks = list(marks)
    masks = {mark.name for _, mark in marks if kind_of_mark(mark.name) == "masked"}
    for name, column in {
        (mark.name, mark.column) for _, mark in marks if kind_of_mark(mark.name) == "either"
    }:
        others = {mark.flag for role, mark in marks if mark.name == name and role != "assistant"}
        if len(others) != 1:
            raise BadRecord(
                "unknown mark",
                f"{field}: {name!r} may mean what is learned or what is not, and turns that are no replies do not tell"
                f" which. Call it 'learned' or 'masked', or leave it out with {ignoring(column)}",
            )
        if others.pop():
            masks.add(name)
    return masks
