"""Turns of a conversation, from the ways in which data write them.

{"role", "content"} and ShareGPT's {"from", "value"} are the same, whatever the field is called. Calls of tools are those
of chat templates, `tool_calls`; a turn "function_call" whose words are the JSON of calls, or OpenAI's earlier key of
that name, becomes one. A key of a turn that holds text and is not read is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spice_rs.data.layouts import is_media, is_metadata, kind_of_mark
from spice_rs.data.marks import Mark, learned_turns, marks_by_turn, marks_of_turn
from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.data.tools import as_calls, read_calls
from spice_rs.data.values import is_long, is_null, plain, text, words

MORE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""What a turn may have besides its role and content, and chat templates know."""

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Roles as data call them."""

_OF_TEMPLATES = ("developer", "ipython", "document", "documents", "context", "environment", "critic")
_CALLING = ("function_call", "tool_call")  # roles of turns whose words are the JSON of calls
_READ = frozenset(("role", "from", "content", "value", "function_call", *MORE))
_TEXT_PARTS = ("text", "input_text", "output_text")


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


def is_turns(value: Any) -> bool:
    """Whether it is a list of objects, or one: turns, where a text could stand as well."""
    if isinstance(value, str):
        return False
    value = _as_list(value)
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping)


def is_plain_turns(value: Any) -> bool:
    """Whether it is turns that have nothing but words, and who says them."""
    return is_turns(value) and all(
        isinstance(turn, Mapping)
        and all(key in ("role", "content", "from", "value") or is_null(each) for key, each in turn.items())
        for turn in _as_list(value)
    )


def as_context(turns: Iterable[Message]) -> list[Message]:
    """The turns, none of them learned."""
    return [_unlearned(turn) if turn.role == "assistant" else turn for turn in turns]


def read_turns(
    value: Any, field: str, *, ignored: frozenset[str] = frozenset(), marks: Mapping[str, Any] | None = None
) -> list[Message]:
    """Reads turns, and which of them are marked as not to be learned.

    Args:
        value: A list of turns, or one turn.
        field: Where they stand, for messages.
        ignored: Keys "field.key" that say nothing.
        marks: Lists of marks that the record has for all turns, by name.

    Raises:
        BadRecord: A turn cannot be read, or has text that would not be.
    """
    given = _as_list(value)
    if not isinstance(given, list | tuple) or len(given) == 0:
        raise BadRecord("wrong type", f"field {field!r}: found {found(value)}, expected a list of turns")
    if type(given[0]) is str:
        raise BadRecord(
            "wrong type",
            f"field {field!r}: found a list of texts that do not say who speaks, expected turns with 'role' and 'content'",
        )
    turns: list[Message] = []
    marked: list[list[Mark]] = []
    calling: list[int] = []
    for number, each in enumerate(given):
        message, own, calls = _read_turn(each, field, number, ignored)
        turns.append(message)
        marked.append(own)
        if calls:
            calling.append(number)
    roles = [turn.role for turn in turns]
    for name, values in (marks or {}).items():
        for own, more in zip(marked, marks_by_turn(name, values, roles, field), strict=True):
            own.extend(more)
    if any(marked):
        learned = learned_turns(roles, marked, field)
        turns = [turn if own else _unlearned(turn) for turn, own in zip(turns, learned, strict=True)]
    return _joined(turns, calling) if calling else turns


def _as_list(value: Any) -> Any:
    """Arrays of pandas as lists, one turn as a list of one."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [value] if isinstance(value, Mapping) else value


def _unlearned(turn: Message) -> Message:
    return dataclasses.replace(turn, learned=False) if turn.role == "assistant" else turn


def _read_turn(
    given: Any, field: str, number: int, ignored: frozenset[str]
) -> tuple[Message, list[Mark], bool]:
    """The turn, its marks, and whether its words were calls."""
    where = f"{field}[{number}]"
    if not isinstance(given, Mapping):
        raise BadRecord(
            "wrong type", f"{where}: found {found(given)}, expected an object with 'role' and 'content'"
        )
    if ignored:
        given = {key: value for key, value in given.items() if f"{field}.{key}" not in ignored}
    turn: dict[str, Any] = plain(given, where)
    role_key = "role" if "role" in turn or "from" not in turn else "from"
    content_key = "content" if "content" in turn or ("value" not in turn and role_key == "role") else "value"
    more = {name: turn[name] for name in MORE if turn.get(name)}
    if "tool_calls" in more:
        more["tool_calls"] = read_calls(more["tool_calls"], f"{where}.tool_calls")
    if turn.get("function_call"):
        calls = as_calls(turn["function_call"], f"{where}.function_call")
        more["tool_calls"] = [*more.get("tool_calls", ()), *calls]
    for key in (role_key, content_key):
        if key not in turn and not (key == content_key and "tool_calls" in more):
            raise BadRecord(
                "missing field",
                f"{where} has no {key!r}, found {', '.join(map(repr, turn)) or 'no fields'}",
            )
    name = text(turn[role_key], f"{where}.{role_key}")
    spoken = name.strip().lower()
    # Templates know some more; a reply under a name that nobody knows would be context.
    if spoken not in ROLES and (role_key == "from" or spoken not in _OF_TEMPLATES):
        known = ", ".join([*ROLES, *(_OF_TEMPLATES if role_key == "role" else ())])
        raise BadRecord("unknown role", f"{where}.{role_key}: found {name!r}, expected one of {known}")
    role = ROLES.get(spoken, name.strip())
    calling = spoken in _CALLING
    if calling:
        more["tool_calls"] = as_calls(turn[content_key], f"{where}.{content_key}")
    content = (
        "" if calling or content_key not in turn else _content(turn[content_key], f"{where}.{content_key}")
    )
    marks: list[Mark] = []
    if not _READ.issuperset(turn) or len(turn) > 2:
        marks = marks_of_turn(turn, field, number)
        _check_rest(turn, (role_key, content_key), field, number)
    return Message(role, content, more), marks, calling


def _check_rest(turn: Mapping[str, Any], read: tuple[str, str], field: str, number: int) -> None:
    """Refuses text of a turn that nothing reads."""
    said = {turn.get(key) for key in read if isinstance(turn.get(key), str)}
    for key, value in turn.items():
        name = f"{field}.{key}"
        mark = kind_of_mark(key) in ("learned", "masked", "either", "partial")
        if key in read or key in MORE or key == "function_call" or mark:
            continue
        if is_media(key) and value not in ("", [], {}, 0, False):
            raise BadRecord(
                "not text",
                f"{field}[{number}].{key} holds {found(value)}, expected text alone: what is no text is not learned"
                f" from. Leave such records out, or the key with {ignoring(name)}",
            )
        if (is_metadata(key) and not is_long(value)) or all(each in said for each in words(value)):
            continue
        raise BadRecord(
            "unread text",
            f"{field}[{number}] has text in {key!r} ({found(value)}), which nothing reads beside {read[0]!r}, {read[1]!r}"
            f" and {', '.join(map(repr, MORE))}. Leave it out with {ignoring(name)}, or"
            " remove or rename it",
        )


def _content(value: Any, field: str) -> str:
    """A turn's text: a string, or a list of {"type": "text", "text"} parts."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for part in value:
            if part.get("type") not in _TEXT_PARTS:
                raise BadRecord(
                    "not text", f"{field} has a part of type {part.get('type')!r}, expected text alone"
                )
            for key, each in part.items():
                if key in ("type", "text", "cache_control") or each in ("", [], {}):
                    continue
                if is_media(key) or any(words(each)):
                    raise BadRecord("not text", f"{field} has a part with {key!r}, expected its text alone")
        return "".join(text(part.get("text"), f"{field}.text") for part in value)
    return text(value, field)


def _joined(turns: list[Message], calling: list[int]) -> list[Message]:
    """Calls that follow words or other calls of the same turn of the assistant, as one turn."""
    joined: list[Message] = []
    for number, turn in enumerate(turns):
        before = joined[-1] if joined else None
        if (
            number in calling
            and before is not None
            and (before.role, before.learned) == (turn.role, turn.learned)
        ):
            calls = [*before.more.get("tool_calls", ()), *turn.more["tool_calls"]]
            joined[-1] = dataclasses.replace(before, more={**before.more, "tool_calls": calls})
        else:
            joined.append(turn)
    return joined
