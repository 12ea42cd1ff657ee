"""Marks of what is learned. LLaMA-Factory reads none of them: it learns all that the assistant says.

They are read as extraction reads them, under all names that it knows. Marks by which everything is learned do no harm;
what others mean would be lost, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spice_rs.data.layouts import kind_of_mark
from spice_rs.data.marks import Mark, check_record_mark, learned_turns, marks_by_turn, marks_of_turn
from spice_rs.data.reading import BadRecord
from spice_rs.errors import InvalidInputError
from spice_rs.report.llama_fields import AS_JSON_LINES, LABELS, Seen

REMEDY = f"Leave the mark out, or {AS_JSON_LINES}"

_ROLES = {"function": "assistant", "observation": "tool"}
"""Whose words LLaMA-Factory takes a turn for → the role that extraction reads, where it is another."""


def check_record_marks(record: Seen, *, turns: bool = False, replies: bool = True) -> dict[str, Any]:
    """Refuse marks by which a whole record is not to be learned, or its reply is not wanted.

    Args:
        record: The record.
        turns: Whether it is made of turns, which lists of marks are of.
        replies: Whether it has replies, which marks of wanted ones are of.

    Returns:
        These lists, by name.

    Raises:
        InvalidInputError: It is not to be learned, or a mark cannot be followed.
    """
    by_turn = {}
    tag = next((name for name in LABELS if isinstance(record.fields.get(name), bool)), None)
    for name, value in record.marks.items():
        if kind_of_mark(name) == "wanted" and (name == tag or not replies):
            continue  # LLaMA-Factory's own tag, or none
        if turns and isinstance(value, list) and kind_of_mark(name) in ("learned", "masked", "either"):
            by_turn[name] = value
            continue
        try:
            check_record_mark(name, value)
        except BadRecord as error:
            # A fraction is what the record counts, which is the selection's business.
            if error.reason != "fractional weight":
                raise _unread(record, f"{name!r}", error) from None
    return by_turn


def check_turn_marks(
    record: Seen,
    turns: Sequence[Mapping[str, Any]],
    speakers: Sequence[str],
    field: str,
    by_turn: Mapping[str, Any] | None = None,
) -> None:
    """Refuse marks by which a turn of the assistant's is not to be learned.

    Args:
        record: What has the turns.
        turns: Without nulls.
        speakers: Of each, as in `TAGS`.
        field: Where the turns stand.
        by_turn: Lists of marks that the record has for the turns, by name.

    Raises:
        InvalidInputError: One is not to be learned, or a mark cannot be followed.
    """
    roles = [_ROLES.get(speaker, speaker) for speaker in speakers]
    marks = [_marks(record, turn, field, number) for number, turn in enumerate(turns)]
    for name, values in (by_turn or {}).items():
        try:
            given = marks_by_turn(name, values, roles, field)
        except BadRecord as error:
            raise _unread(record, f"{name!r}", error) from None
        for own, more in zip(marks, given, strict=True):
            own.extend(more)
    if not any(marks):
        return
    try:
        learned = learned_turns(roles, marks, field)
    except BadRecord as error:
        number, first = next((number, own[0]) for number, own in enumerate(marks) if own)
        raise _unread(record, _spoken(first, f"{field}[{number}]"), error) from None
    for number, (role, own) in enumerate(zip(roles, marks, strict=True)):
        if role == "assistant" and not learned[number]:
            raise record.refuse(
                f"{_spoken(own[0], f'{field}[{number}]')}, the mark of a turn that is not to be learned, while"
                " LLaMA-Factory learns all of the assistant's, expected none",
                REMEDY,
            )


def _marks(record: Seen, turn: Mapping[str, Any], field: str, number: int) -> list[Mark]:
    marks = []
    for name, value in turn.items():
        try:
            marks += marks_of_turn({name: value}, field, number)
        except BadRecord as error:
            raise _unread(record, f"{name!r} in {field}[{number}]", error) from None
    return marks


def _spoken(mark: Mark, where: str) -> str:
    return f"{mark.name!r} {'for' if mark.column == mark.name else 'in'} {where}"


def _unread(record: Seen, what: str, error: BadRecord) -> InvalidInputError:
    return record.refuse(f"{what}, a mark that LLaMA-Factory does not read ({error})", REMEDY)
