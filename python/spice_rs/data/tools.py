"""Tools that a conversation may call, and its calls, in the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.data.values import plain, words


def read_calls(value: Any, where: str) -> list[Any]:
    """Calls of a turn: a list of objects, one of them, or the same as JSON text; {"name", "arguments"} is one too.

    Raises:
        BadRecord: It is something else.
    """
    value = _parsed(value, where)
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list) or not all(isinstance(each, Mapping) for each in calls):
        raise _no_calls(value, where)
    return calls


def as_calls(value: Any, where: str) -> list[Any]:
    """The same, of words that are the JSON of {"name", "arguments"}, each wrapped as chat templates take it.

    Raises:
        BadRecord: It is something else.
    """
    calls = read_calls(value, where)
    if not calls or not all("function" in call or isinstance(call.get("name"), str) for call in calls):
        raise _no_calls(value, where)
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def read_tools(value: Any, field: str, *, needed: bool) -> list[Any] | None:
    """Descriptions of tools: a list of objects, one of them, or the same as JSON text; None if there are none.

    Args:
        value: What the record has.
        field: Where, for messages. OpenAI's `functions` are wrapped as `tools` are.
        needed: Whether the record calls tools, or `columns` names the field. Where not, numbers say nothing.

    Raises:
        BadRecord: They are something else.
    """
    try:
        value = _parsed(value, f"field {field!r}")
        tools = [value] if isinstance(value, Mapping) and value else value
        if tools is not None and not (
            isinstance(tools, list) and all(isinstance(each, Mapping) for each in tools)
        ):
            raise BadRecord(
                "wrong type", f"field {field!r}: found {found(value)}, expected a list of objects"
            )
    except BadRecord as error:
        if not needed and not any(words(value)):
            return None
        raise BadRecord(
            error.reason, f"{error}. Correct it, or pass {ignoring(field)} if it says nothing to learn from"
        ) from None
    if tools and field == "functions":
        tools = [each if "function" in each else {"type": "function", "function": each} for each in tools]
    return tools or None


def _parsed(value: Any, where: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise BadRecord(
                "wrong type", f"{where}: found {found(value)}, expected JSON of a list of objects"
            ) from None
    return plain(value, where)


def _no_calls(value: Any, where: str) -> BadRecord:
    return BadRecord(
        "wrong type",
        f"{where}: found {found(value)}, expected a call of a tool with its name and arguments, or a list of them",
    )
