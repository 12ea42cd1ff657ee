"""A prompt and a response, each a text or turns, with what some layouts put before and beside the prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from spice_rs.data.fields import Fields
from spice_rs.data.layouts import FIELDS, PROMPT_FIELDS, RESPONSE_FIELDS, is_metadata, kind_of_mark
from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.data.turns import Message, as_context, is_turns, read_turns
from spice_rs.data.values import LONGEST, is_blank, plain, text
from spice_rs.nouns import counted


def read_plain(given: Mapping[str, Any]) -> tuple[Message, Message] | None:
    """A record that is two texts and their description, as most are; None where it may be more.

    What it gives is what `read_prompt` and `read_response` would: it is there for data of millions of records.
    """
    names = _plain_names(tuple(given))
    if names is None:
        return None
    prompt, response = given[names[0]], given[names[1]]
    if type(prompt) is not str or type(response) is not str or not response or response.isspace():
        return None
    for name in names[2:]:
        value = given[name]
        if type(value) is str:
            if len(value) > LONGEST:
                return None
        elif value is not None and type(value) not in (int, float, bool):
            return None  # lists and objects may hold more
    return Message("user", text(prompt, names[0])), Message("assistant", text(response, names[1]))


@functools.lru_cache(maxsize=4096)
def _plain_names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Prompt, response and the others, if there is one of each and the others describe the record."""
    prompts = [name for name in names if name in PROMPT_FIELDS]
    responses = [name for name in names if name in RESPONSE_FIELDS and name != "answers"]
    others = [name for name in names if name not in (*prompts, *responses)]
    if len(prompts) == len(responses) == 1 and all(map(_describes, others)):
        return (*prompts, *responses, *others)
    return None


def _describes(name: str) -> bool:
    return is_metadata(name) and name not in FIELDS and kind_of_mark(name) is None


def read_prompt(fields: Fields, *, needed: bool = True) -> list[Message]:
    """The turns before the response: system, the history's, the prompt's.

    Raises:
        BadRecord: There is no prompt, and it is needed, or a field is of another type.
    """
    name = fields.first("prompt")
    if name is None:
        if needed:
            raise _missing(fields, PROMPT_FIELDS, "the prompt")
        return with_system(fields, [])
    value = fields.take(name)
    if is_turns(value):
        return with_system(fields, as_context(read_turns(value, name, ignored=fields.rules.ignored)))
    prompt = text(value, name)
    more = fields.taken_if("input")
    if more is not None:
        prompt = f"{prompt}\n\n{text(more, 'input')}"
    context = fields.taken_if("context")
    if context is not None:
        given = text(context, "context")
        prompt = f"{given}\n\n{prompt}" if name == "question" else f"{prompt}\n\n{given}"
    history = fields.taken_if("history")
    earlier = [] if history is None else _history(history, fields.rules.ignored)
    return with_system(fields, [*earlier, Message("user", prompt)])


def read_response(fields: Fields) -> list[Message]:
    """The turns that answer.

    Raises:
        BadRecord: There are none, or they are empty.
    """
    name = fields.first("response")
    if name is None:
        raise _missing(fields, RESPONSE_FIELDS, "the response")
    value = fields.take(name)
    if name == "answers":
        value = _answer(value)
    if is_turns(value):
        turns = read_turns(value, name, ignored=fields.rules.ignored)
        if not any(turn.role == "assistant" for turn in turns):
            raise BadRecord(
                "no assistant turn",
                f"field {name!r}: found no assistant turn, expected at least one to learn",
            )
        return turns
    if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(each, str) for each in value):
        raise BadRecord(
            "preference data",
            f"field {name!r} is a list of {counted(len(value), 'text')}, expected one reply to learn. Give the"
            " one that is wanted;"
            " where all of them are, give each a record of its own",
        )
    response = text(value, name)
    if not response.strip():
        raise BadRecord("empty response", f"field {name!r}: found empty text, expected the text to learn")
    return [Message("assistant", response)]


def with_system(fields: Fields, turns: list[Message]) -> list[Message]:
    """The turns after what a column says to the system.

    Raises:
        BadRecord: The turns have another system turn.
    """
    name = fields.first("system")
    if name is None or not fields.says(name):
        return turns
    words = text(fields.take(name), name)
    if turns and turns[0].role in ("system", "developer"):
        if turns[0].content.strip() == words.strip():
            return turns
        raise BadRecord(
            "two system turns",
            f"field {name!r} and the first turn say different things to the system, expected one of the two. Remove one, or"
            f" pass {ignoring(name)}",
        )
    return [Message("system", words), *turns]


def _history(value: Any, ignored: frozenset[str]) -> list[Message]:
    """Earlier turns: pairs of what was asked and answered, or turns as elsewhere."""
    if is_turns(value):
        return read_turns(value, "history", ignored=ignored)
    turns = []
    given = plain(value, "field 'history'")
    for number, pair in enumerate(given if isinstance(given, list) else [given]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecord(
                "wrong type",
                f"history[{number}]: found {found(pair)}, expected a pair of what was asked and what was answered",
            )
        for role, words in zip(("user", "assistant"), pair, strict=True):
            if words is not None:
                turns.append(Message(role, text(words, f"history[{number}]")))
    return turns


def _answer(value: Any) -> Any:
    """The answer that all of SQuAD's annotators gave."""
    given = plain(value, "field 'answers'")
    if isinstance(given, Mapping):
        given = given.get("text")
    if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
        different = list(dict.fromkeys(given))
        if len(different) > 1:
            raise BadRecord(
                "several answers",
                f"field 'answers' holds {len(different)} different answers ({found(different)}), expected one. Name a field"
                " that holds the one to learn with columns=…",
            )
        return different[0]
    if given == []:
        return ""
    return given


def _missing(fields: Fields, names: tuple[str, ...], what: str) -> BadRecord:
    known = ", ".join(map(repr, names))
    return BadRecord(
        "missing field",
        f"found {fields.there()}, expected {what} in one of {known} (or 'messages', 'text', 'input_ids', or columns=)"
        f"{_advice(fields)}",
    )


def _advice(fields: Fields) -> str:
    """What to type, where it can be guessed: a column of turns, or two columns of text."""
    rest = {
        name: value
        for name, value in (fields.others or fields.values).items()
        if not is_metadata(name) and not is_blank(value)
    }
    turns = [name for name, value in rest.items() if is_turns(value)]
    texts = [name for name, value in rest.items() if isinstance(value, str)]
    if turns:
        return f". If {turns[0]!r} holds the turns: columns={{'messages': {turns[0]!r}}}"
    if len(texts) == 2:
        prompt, response = texts
        return f". For example columns={{'prompt': {prompt!r}, 'response': {response!r}}}"
    return ""
