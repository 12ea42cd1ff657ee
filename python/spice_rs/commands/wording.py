"""Messages of Python in the words of the command line: `max_length=64` becomes `--max-length 64`.

Messages are written where arguments have their names of Python. This is the one place where they become options, and it
leaves alone what stands in quotation marks: names of columns, paths and texts of records.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Mapping

_QUOTED = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
_VALUE = rf"(?:{_QUOTED}|\[[^\]\n]*\]|\{{[^}}\n]*\}}|…|-?\w(?:[\w.+-]*\w)?)"
_NOTHING = (
    (re.compile(r",? or None\b"), ""),
    (re.compile(r", or one value per dataset row\b"), ""),
    (re.compile(r"\bfound None\b"), "found none"),
    (re.compile(r"(?<=\. )None(?= [a-z])"), "Leaving it out"),
    (re.compile(r"(?<=; )None(?= [a-z])"), "leaving it out"),
    (re.compile(r"\bSelection\.save\b"), "select --save"),
    (re.compile(r"\bGradientStore\.repair\b"), "`spice-rs repair`"),
)
"""What is None or called in Python is left out or an option on the command line, and a list of values is a column."""
_FACTS = ("rows", "dim", "dtype")
"""What a file says of itself, `sel.safetensors: rows: found 60`, though an option may have the same name."""
_CALL = re.compile(rf"`spice_rs\.(\w+)\((\w+={_VALUE}(?:, \w+={_VALUE})*)\)`")
_ARGUMENT = re.compile(rf"(\w+)=({_VALUE})")
"""A call in full, ready to be typed."""
_BOTH = re.compile(r" \((--?[a-z][\w-]*[^()]*)\)")


def in_flags(text: str, flags: Mapping[str, str], typed: Collection[str] = ()) -> str:
    """Return a message with options for arguments.

    Args:
        text: The message.
        flags: Argument → its option, or the placeholder of what stands without one.
        typed: What the caller has typed: a path of his that is called as an argument is none.
    """
    if not flags:
        return text
    text = _CALL.sub(_as_command, _first(text, flags, typed))
    flags = {name: flag for name, flag in flags.items() if len(name) > 1 or name not in typed}
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    # As `name=value`, as what is given or left out, or by a name that is no word of English: `max_length`, `k`.
    pattern = re.compile(
        rf"(?P<quoted>(?<![\w=]){_QUOTED})"
        rf"|(?<=[:;.] )(?P<about>{names})(?=: found )"  # a message in a message
        rf"|(?<![\w./\\@:'\"-])(?P<given>{names})=(?P<value>{_VALUE})?(?P<flag>{_BOTH.pattern})?"
        rf"|\b(?P<before>without|beside|[Gg]ive|[Ll]eave) (?P<word>{names})(?=[,.;:]|$| out\b| and\b| beside\b)(?!\.\w)"
        rf"|(?<![\w./\\@'\"=-])(?P<bare>{names})(?![\w=/(-]|\.\w| =| rows\b)"
    )

    def option(match: re.Match[str]) -> str:
        if match["quoted"]:
            return match[0]
        if match["about"]:
            is_fact = match[0] in _FACTS and text[: match.start()].endswith(": ")
            return match[0] if match[0] in typed or is_fact else flags[match[0]]
        if match["word"]:
            return f"{match['before']} {flags[match['word']]}"
        if match["bare"]:
            flag = flags[match["bare"]]
            return flag if "_" in match["bare"] or flag == f"-{match['bare']}" else match[0]
        return match[0] if match["given"] is None else _written(flags[match["given"]], match["value"])

    text = pattern.sub(option, text)
    for pattern, instead in _NOTHING:
        text = pattern.sub(instead, text)
    return _once(text)


def _as_command(call: re.Match[str]) -> str:
    """`spice_rs.extract(data=…, out=…)` as a command."""
    typed = [_written(f"--{name.replace('_', '-')}", value) for name, value in _ARGUMENT.findall(call[2])]
    return " ".join(["`spice-rs", call[1], *typed]) + "`"


def _first(text: str, flags: Mapping[str, str], typed: Collection[str]) -> str:
    """The argument that a message is about stands in front: `k: found 0`, `max_length is 1`, `lora_rank was given`."""
    match = re.match(r"([a-z]\w*)(: | is | was |\[)", text)
    if match is None or match[1] not in flags or match[1] in typed:
        return text
    return flags[match[1]] + text[match.end(1) :]


def _written(flag: str, value: str | None) -> str:
    """An option with its value, as one types it."""
    if not flag.startswith("-") or value is None:
        return flag
    if value in ("True", "False", "None"):
        off = {"True": flag, "False": f"--no-{flag.removeprefix('--')}", "None": f"no {flag}"}
        return off[value]
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return f"{flag} {value}"
    if isinstance(found, dict):
        found = ",".join(f"{key}={each}" for key, each in found.items())
    elif isinstance(found, list | tuple):
        found = ",".join(map(str, found))
    return f"{flag} {value if not isinstance(found, str) else shlex.quote(found)}"


def _once(text: str) -> str:
    """A message without the same option twice, where it was written in both languages."""
    twice = r"(?P<option>--[a-z][\w-]*)(?P<value> [^()\n]{0,200}?)? ?\((?P=option)(?: [^()]*)?\)"
    return re.sub(twice, r"\g<option>\g<value>", text)
