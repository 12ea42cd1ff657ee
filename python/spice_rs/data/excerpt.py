"""A record in one line, for people who want to know which one it is: what is asked and what is answered, both shortened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spice_rs.data.reading import BadRecord
from spice_rs.data.records import FIELDS, Record, parse_record
from spice_rs.nouns import counted
from spice_rs.printable import one_line

LONGEST = 160
"""Letters that are shown of a text."""

_END = 40
"""Letters of these that are its last ones: many answers end with what they come to."""


def excerpt(fields: Mapping[str, Any], layout: Mapping[str, Any] | None = None) -> str:
    """Return what a record says, on one line: its prompt and its answer, or its text, each shortened.

    Records that cannot be read by their layout are shown by the names of their fields.

    Args:
        fields: the record as it stands in the data.
        layout: how it is read: `columns`, `ignore_columns` and `preference` as for `spice_rs.extract`.

    Raises:
        InvalidInputError: the layout names what no field is called.
    """
    layout = dict(layout or {})
    own = {*FIELDS, *(layout.get("columns") or {}).values()}
    # People add columns that extraction would refuse, and preference data may not say which side was meant.
    for reading in (fields, {name: value for name, value in fields.items() if name in own}):
        for more in ({}, {"preference": "chosen"}):
            try:
                return _of_record(parse_record(0, "", reading, **{**layout, **more}))
            except BadRecord:
                continue
    return _joined(_of_fields(fields))


def shortened(text: object) -> str:
    """Return text on one line, its middle left out where it is long, with control characters escaped."""
    words = one_line(" ".join(str(text).split()))
    if len(words) <= LONGEST:
        return words
    return f"{words[: LONGEST - _END - 3]} … {words[-_END:]}"


def _of_record(record: Record) -> str:
    if record.tokens is not None:
        learned = int((record.tokens[1] != -100).sum())
        return f"{counted(record.tokens.shape[1], 'token')}, {learned} of them learned"
    if record.text is not None:
        return _joined([("text", record.text)])
    turns = record.messages
    replies = [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learned]
    last = replies[-1]
    answer = turns[last].content or str(turns[last].more.get("tool_calls", ""))
    asked = next((place for place in range(last - 1, -1, -1) if turns[place].role == "user"), last - 1)
    parts = [("answer", answer)]
    if asked >= 0:
        parts.insert(
            0, ("prompt" if turns[asked].role == "user" else turns[asked].role, turns[asked].content)
        )
    more = len(turns) - len(parts)
    return _joined(parts) + (f" ({more} more turn{'s' * (more > 1)})" if more else "")


def _of_fields(fields: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if value is not None and value != "":
            yield str(name), value


def _joined(parts: Any) -> str:
    return ", ".join(f'{one_line(name)} "{shortened(value)}"' for name, value in parts) or "empty"
