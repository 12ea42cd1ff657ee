"""Whether a text shows the calls of tools that its turns make, and the tools that may be called.

Names, numbers and keys cannot stand between letters as words can: they would be other names, in another order. So a
second rendering has other ones in their place, which no template has seen before, and each must be found in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spice_rs.data.letters import MOST, begin, unescaped
from spice_rs.data.records import Message
from spice_rs.data.templates import Rendering, TemplateFault

_NUMBER = 7_310_000_000


class _Probe:
    """Calls and tools whose every name and value is one that no template has seen before."""

    def __init__(self) -> None:
        self.needed: dict[str, str] = {}

    def mark(self, text: str, what: str) -> str:
        letter = begin(len(self.needed) % MOST)
        self.needed[letter] = what
        return letter + text

    def changed(self, value: Any, what: str) -> Any:
        """The value, every string and name in it marked, all others replaced by numbers."""
        if isinstance(value, str):
            return self.mark(value, f"{what} ({value!r:.40})")
        if isinstance(value, Mapping):
            return {
                self.mark(name, f"{what} ({name!r})"): self.changed(each, f"{what} ({name!r})")
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self.changed(each, what) for each in value]
        number = _NUMBER + len(self.needed)
        self.needed[str(number)] = f"{what} ({value!r})"
        return number


def _function(description: Any) -> Mapping[str, Any]:
    """The part that has a name: calls and descriptions come with and without {"type": "function", "function": …}."""
    inner = description.get("function") if isinstance(description, Mapping) else None
    if isinstance(inner, Mapping):
        return inner
    return description if isinstance(description, Mapping) else {}


def _with_function(description: Any, changed: Mapping[str, Any]) -> Any:
    inner = description.get("function") if isinstance(description, Mapping) else None
    return {**description, "function": changed} if isinstance(inner, Mapping) else changed


def check_calls_and_tools(rendering: Rendering, messages: Sequence[Message], text: str) -> None:
    """Refuses calls of tools, and tools, that the text does not show: by a rendering with others in their place.

    Args:
        rendering: The template.
        messages: The turns.
        text: Their text.

    Raises:
        TemplateFault: A name, an argument or a tool is left out; the message names it.
    """
    probe = _Probe()
    turns = []
    for number, message in enumerate(messages):
        turn = message.turn()
        if message.calls and isinstance(message.more["tool_calls"], list):
            out = f"turn {number} ({message.role}): the chat template leaves tool calls out"
            calls = []
            for call in message.more["tool_calls"]:
                function = _function(call)
                what = f"{out}: the call of {function.get('name')!r}"
                parts = {
                    name: probe.changed(function[name], what if name == "name" else f"{what}, its arguments")
                    for name in ("name", "arguments")
                    if function.get(name) is not None
                }
                calls.append(_with_function(call, {**function, **parts}))
            turn["tool_calls"] = calls
        turns.append(turn)
    tools = []
    for tool in rendering.tools or ():
        function = _function(tool)
        name = function.get("name")
        if isinstance(name, str) and name:
            out = f"the chat template leaves out the description of the tool {name!r}"
            tools.append(_with_function(tool, {**function, "name": probe.mark(name, out)}))
        else:
            tools.append(tool)
    if not probe.needed:
        return
    try:
        found = rendering.text(turns, tools=tools or None)
    except TemplateFault:
        # A template that cannot show them: whether anything is shown is left to ask.
        silent = [{name: each for name, each in turn.items() if name != "tool_calls"} for turn in turns]
        try:
            without = rendering.text(silent)
        except TemplateFault:
            return  # it misses the calls
        found = "" if without == text else "".join(probe.needed)
    found = unescaped(found)
    for sign, what in probe.needed.items():
        if sign not in found:
            raise TemplateFault(f"{what}; use one that shows them (chat_template=FILE)")
