"""Records: what one row of a data set says, checked; `reading.py` opens files, `datasets` objects and lists.

The *index* of a record is its position in the data: the number of records before it, bad ones that `skip_bad`
passes over included. In a JSON Lines file every line that is not blank is a record; blank lines are none. So
an index means the same sample whatever was skipped, and it is the index that the gradient store keeps.

Layouts, told apart by the fields that are present (the first match in this order):

=====================  ==============================================================================
`input_ids`, `labels`  tokenised already; -100 in `labels` marks tokens that are not learned
`messages`             chat: a list of {"role", "content"}; all assistant turns are learned, their `tool_calls`
                       too; `tools` beside it describes these, as chat templates take them
`conversations`        the same in ShareGPT's words: a list of {"from", "value"}
prompt and response    `instruction` (+ `input`) | `prompt` | `question`, then `response` | `output` |
                       `completion` | `answer`
`text`                 plain text, all of it learned
=====================  ==============================================================================

Data that call these fields otherwise are read with `columns`, field → column of the data: {"prompt": "frage",
"response": "antwort"}. Then the columns named there are the whole record.

This file needs neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.reading import BadRecord, Columns, found, open_data
from spice_rs.errors import InvalidInputError

PROMPT_FIELDS = ("instruction", "prompt", "question")
RESPONSE_FIELDS = ("response", "output", "completion", "answer")
MORE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""What a turn of `messages` may have besides its role and content, and chat templates know."""
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
FIELDS = (
    "input_ids",
    "labels",
    "messages",
    "conversations",
    "tools",
    *PROMPT_FIELDS,
    "input",
    *RESPONSE_FIELDS,
    "text",
)
"""Fields that a record can have, and that `columns` can name a column for."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Of the speaker.
        content: The words, empty where a turn does nothing but call tools.
        more: What else templates show of a turn, as it stands in the data: see `MORE`.
        learned: Whether an assistant's turn is learned; one that the data mark otherwise is context.
    """

    role: str
    content: str
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learned: bool = True

    @property
    def calls(self) -> bool:
        """Whether it calls tools."""
        return bool(self.more.get("tool_calls"))

    def turn(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content, **self.more}


@dataclass(frozen=True)
class Record:
    """One sample of the data: a conversation, plain text, or tokens that somebody else made.

    Attributes:
        index: Position in the data (see the module's text).
        place: Where it stands, for messages to people: "pool.jsonl, line 7".
        messages: The turns, empty for text and tokens.
        tokens: (2, T) int64, rows `input_ids` and `labels`, or None.
        text: Text that is learned as a whole, or None.
        tools: Descriptions of the tools that a conversation may call, for the chat template.
        template_options: Further variables of the chat template that the record sets, as TRL's `chat_template_kwargs`.
    """

    index: int
    place: str
    messages: tuple[Message, ...] = ()
    tokens: NDArray[np.int64] | None = None
    text: str | None = None
    tools: Sequence[Any] | None = None
    template_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """The records of one data set, in its order.

    Attributes:
        items: The good records, ascending in `index`.
        rows: Number of records in the data, bad ones included: indices are in [0, rows).
        bad: The records that were left out.
        source: The data's name for people.
    """

    items: tuple[Record, ...]
    rows: int
    bad: tuple[LeftOut, ...]
    source: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
        return self.items[position]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)


def load_records(data: Any, *, skip_bad: bool = False, columns: Mapping[str, str] | None = None) -> Records:
    """Reads and checks every record of `data`.

    Args:
        data: Path to a .jsonl, .json or .parquet file (.gz of the first two as well), a folder or hub id for
            `datasets`, a `datasets.Dataset`, or a sequence of dicts.
        skip_bad: Leave bad records out and count them, instead of stopping at the first.
        columns: Field → column of the data, for data that do not use the names of `FIELDS`.

    Raises:
        InvalidInputError: The data cannot be read, or a record is malformed, lacks a field or has an empty
            response; the message names file, line, field, what was found and what to do.
    """
    _check_columns(columns)
    source, parsed = open_data(data)
    items: list[Record] = []
    bad: list[LeftOut] = []
    rows = 0
    for index, (place, parse) in enumerate(parsed):
        rows = index + 1
        try:
            items.append(_record(index, place, parse(), columns))
        except BadRecord as error:
            left_out = LeftOut(index, place, error.reason, str(error))
            if not skip_bad:
                raise InvalidInputError(f"{left_out}; {SKIP_REMEDY}") from None
            bad.append(left_out)
    if rows == 0:
        raise InvalidInputError(
            f"{source}: found no records, expected at least one; check the path and the split"
        )
    if not items:
        raise InvalidInputError(f"{source}: all {rows} records are bad; the first: {bad[0]}")
    return Records(tuple(items), rows, tuple(bad), source)


def chosen_records(
    data: Any, rows: Container[int], columns: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """Yields the wanted records, checked, in the order of the data.

    Args:
        data: As for `load_records`.
        rows: Row numbers as `load_records` counts them.
        columns: As for `load_records`.

    Raises:
        InvalidInputError: The data cannot be read, or a wanted record is bad.
    """
    _check_columns(columns)
    _, parsed = open_data(data)
    for index, (place, parse) in enumerate(parsed):
        if index in rows:
            try:
                yield _record(index, place, parse(), columns)
            except BadRecord as error:
                raise InvalidInputError(f"{place}: {error}") from None


def raw_records(data: Any, rows: Container[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, record as it stands in the data) of the wanted rows, unchecked.

    Args:
        data: As for `load_records`.
        rows: Row numbers as `load_records` counts them.

    Raises:
        InvalidInputError: The data cannot be read, or a wanted record is no object.
    """
    _, parsed = open_data(data)
    for index, (place, parse) in enumerate(parsed):
        if index not in rows:
            continue
        try:
            fields = parse()
        except BadRecord as error:
            raise InvalidInputError(f"{place}: {error}") from None
        if not isinstance(fields, Mapping):
            raise InvalidInputError(f"{place}: found {found(fields)}, expected an object with named fields")
        yield index, dict(fields)


def dataset_fingerprint(records: Records) -> str:
    """Hash of what is learned from: every good record's index and content, and the number of rows.

    Fields that extraction does not read (ids, sources, scores) do not count: adding one keeps a store valid.
    """
    digest = hashlib.sha256(f"records:{records.rows}\n".encode())
    for record in records:
        if record.tokens is not None:
            content: Any = hashlib.sha256(np.ascontiguousarray(record.tokens).tobytes()).hexdigest()
        elif record.text is not None:
            content = {"text": record.text}
        else:
            content = [
                [each.role, each.content, *([each.more] if each.more else [])] for each in record.messages
            ]
            content += [] if record.tools is None else [{"tools": record.tools}]
        line = json.dumps([record.index, content], ensure_ascii=True, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _check_columns(columns: Mapping[str, str] | None) -> None:
    for field in columns or {}:
        if field not in FIELDS:
            raise InvalidInputError(f"columns: found {field!r}, expected fields of {', '.join(FIELDS)}")


# ------------------------------------------------------------------------------------------ one record


def _record(index: int, place: str, fields: Any, columns: Mapping[str, str] | None) -> Record:
    if not isinstance(fields, Mapping):
        raise BadRecord("no object", f"found {found(fields)}, expected an object with named fields")
    if isinstance(fields, Columns):
        fields = {name: value for name, value in fields.items() if value is not None}
    if columns:
        fields = _mapped(fields, columns)
    if "input_ids" in fields:
        return Record(index, place, tokens=_tokens(fields))
    if "messages" in fields:
        turns = _messages(fields["messages"], "messages", "role", "content")
        return Record(index, place, messages=turns, tools=_tools(fields.get("tools"), turns))
    if "conversations" in fields:
        turns = _messages(fields["conversations"], "conversations", "from", "value")
        return Record(index, place, messages=turns, tools=_tools(fields.get("tools"), turns))
    if "text" in fields and not any(name in fields for name in (*PROMPT_FIELDS, *RESPONSE_FIELDS)):
        text = _text(fields["text"], "text")
        if not text.strip():
            raise BadRecord("empty text", "field 'text' is empty, expected the text to learn")
        return Record(index, place, text=text)
    prompt_field = _first_present(fields, PROMPT_FIELDS, "the prompt")
    response_field = _first_present(fields, RESPONSE_FIELDS, "the response")
    prompt = _text(fields[prompt_field], prompt_field)
    extra = fields.get("input") if prompt_field == "instruction" else None
    if extra is not None and _text(extra, "input").strip():
        prompt = f"{prompt}\n\n{extra}"
    response = _text(fields[response_field], response_field)
    if not response.strip():
        raise BadRecord("empty response", f"field {response_field!r} is empty, expected the text to learn")
    return Record(index, place, messages=(Message("user", prompt), Message("assistant", response)))


def _mapped(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record under the names of `FIELDS`; an Alpaca `input` and `tools` may be absent."""
    for field, column in columns.items():
        if column not in fields and field not in ("input", "tools"):
            there = ", ".join(map(repr, fields)) or "no fields"
            raise BadRecord(
                "missing field", f"found {there}, expected {column!r} as the {field} (see columns)"
            )
    return {field: fields[column] for field, column in columns.items() if column in fields}


def _first_present(fields: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in fields:
            return name
    there = ", ".join(map(repr, fields)) or "no fields"
    known = ", ".join(map(repr, names))
    raise BadRecord(
        "missing field",
        f"found {there}, expected {what} in one of {known} (or 'messages', 'text', 'input_ids', or columns=)",
    )


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise BadRecord("wrong type", f"field {field!r} is {found(value)}, expected a string")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRecord(
            "not Unicode", f"field {field!r} holds half of a surrogate pair, expected Unicode text"
        )
    return value


def _messages(value: Any, field: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        raise BadRecord("wrong type", f"field {field!r} is {found(value)}, expected a list of turns")
    turns: list[Message] = []
    for number, turn in enumerate(value):
        where = f"{field}[{number}]"
        if not isinstance(turn, Mapping):
            raise BadRecord(
                "wrong type",
                f"{where} is {found(turn)}, expected an object with {role_key!r} and {content_key!r}",
            )
        given = {name: turn[name] for name in MORE if role_key == "role" and turn.get(name) is not None}
        more = {name: value for name, value in _values(given, where).items() if value}
        for key in (role_key, content_key):
            if key not in turn and not (key == content_key and "tool_calls" in more):
                raise BadRecord(
                    "missing field",
                    f"{where} has no {key!r}, found {', '.join(map(repr, turn)) or 'no fields'}",
                )
        role = _text(turn[role_key], f"{where}.{role_key}")
        if role_key == "from":
            if role not in SHAREGPT_ROLES:
                known = ", ".join(SHAREGPT_ROLES)
                raise BadRecord("unknown role", f"{where}.from is {role!r}, expected one of {known}")
            role = SHAREGPT_ROLES[role]
        words = turn.get(content_key)
        empty = words is None and "tool_calls" in more
        content = "" if empty else _content(words, f"{where}.{content_key}")
        turns.append(Message(role, content, more))
    replies = [turn for turn in turns if turn.role == "assistant"]
    if not replies:
        raise BadRecord(
            "no assistant turn", f"field {field!r} has no assistant turn, expected at least one to learn"
        )
    if not any(reply.content.strip() or reply.calls for reply in replies):
        raise BadRecord(
            "empty response", f"field {field!r}: every assistant turn is empty, expected text to learn"
        )
    return tuple(turns)


def _tools(value: Any, turns: Sequence[Message]) -> Sequence[Any] | None:
    """Descriptions of tools: a list of objects, one of them, or the same as JSON text.

    Where no turn calls any, what cannot be understood is left out: many data sets have such a column for other uses.
    """
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        value = _values(value, "tools")
        value = [value] if isinstance(value, dict) and value else value
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, dict) for each in value)
        ):
            raise BadRecord("wrong type", f"field 'tools' is {found(value)}, expected a list of objects")
    except (BadRecord, ValueError, RecursionError) as error:
        if not any(turn.calls for turn in turns):
            return None
        detail = (
            error if isinstance(error, BadRecord) else f"field 'tools' is {found(value)}, expected a list"
        )
        raise BadRecord("wrong type", str(detail)) from None
    return value or None


def _values(value: Any, where: str) -> Any:
    """The value, if it is made of what JSON has, and arrays."""
    try:
        return json.loads(json.dumps(value, default=lambda array: array.tolist()))
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        raise BadRecord("wrong type", f"{where} holds what JSON does not have ({error})") from None


def _content(value: Any, field: str) -> str:
    """A turn's text: a string, or a list of {"type": "text", "text"} parts."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for part in value:
            if part.get("type") != "text":
                raise BadRecord(
                    "not text", f"{field} has a part of type {part.get('type')!r}, expected text alone"
                )
        return "".join(_text(part.get("text"), f"{field}.text") for part in value)
    return _text(value, field)


def _tokens(fields: Mapping[str, Any]) -> NDArray[np.int64]:
    columns = []
    for name in ("input_ids", "labels"):
        if name not in fields:
            raise BadRecord(
                "missing field", f"field {name!r} is missing beside {', '.join(map(repr, fields))}"
            )
        value = fields[name]
        try:
            column = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):
            raise BadRecord(
                "wrong type", f"field {name!r} is {found(value)}, expected a list of integers"
            ) from None
        if column.ndim != 1 or column.dtype.kind not in "iu" or column.size == 0:
            raise BadRecord(
                "wrong type", f"field {name!r} is {found(value)}, expected a non-empty list of integers"
            )
        columns.append(np.minimum(column, np.iinfo(np.int64).max).astype(np.int64))
    if columns[0].size != columns[1].size:
        raise BadRecord(
            "bad tokens",
            f"found {columns[0].size} input_ids and {columns[1].size} labels, expected equal lengths",
        )
    if max(column.max() for column in columns) >= 1 << 31:
        raise BadRecord("bad tokens", "found a token id of 2³¹ or more, expected ids of a vocabulary")
    if columns[0].min() < 0:
        raise BadRecord(
            "bad tokens", f"field 'input_ids' holds {columns[0].min()}, expected token ids of 0 and above"
        )
    if columns[1].min() < 0 and np.any((columns[1] < 0) & (columns[1] != -100)):
        raise BadRecord(
            "bad tokens", "field 'labels' holds a negative id that is not -100, expected token ids or -100"
        )
    return np.stack(columns)
