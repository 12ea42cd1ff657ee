"""Options of the command line, derived from the signature and the docstring of the function behind a command."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from spice_rs.commands import values
from spice_rs.commands.groups import SELECTION
from spice_rs.commands.parser import Parser
from spice_rs.commands.shell import DEFAULTS, TEXTS, without_python
from spice_rs.commands.wording import in_flags


def add_command(
    commands: Any,
    name: str,
    run: Callable[..., int | None],
    summary: str,
    *,
    alias: str | None = None,
    groups: Mapping[str, Sequence[str]] = SELECTION,
    examples: Sequence[str] = (),
    kept: str | Callable[[Mapping[str, Any]], str] = "",
) -> Parser:
    """Add a command without options; `run` takes them by name and returns the exit code.

    Args:
        commands: What `add_subparsers` has returned.
        name: Of the command.
        run: What it does.
        summary: In one line.
        alias: Another name, as the function behind it is called from Python.
        groups: Title → names of options that the help shows under it, where there are any.
        examples: Command lines that the help ends with.
        kept: What an interruption leaves, in words, or what says that by the options that were given.
    """
    command: Parser = commands.add_parser(
        name,
        help=summary if alias is None else f"{summary} (also: {alias})",
        description=f"{summary[0].upper()}{summary[1:]}.",
        aliases=() if alias is None else (alias,),
        epilog="\n".join(["examples:", *(f"  {each}" for each in examples)]) if examples else None,
    )
    command.groups = groups
    command.kept = kept if callable(kept) else lambda options: kept
    command.set_defaults(run=run)
    return command


def add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    *,
    skip: Sequence[str] = (),
    required: Sequence[str] = (),
    words: Mapping[str, tuple[str, str]] | None = None,
    typed_alone: bool = False,
) -> None:
    """Add an option for every parameter of `function` that can be given in words.

    Args:
        parser: Of the command.
        function: What has the parameters, and their explanations.
        skip: Parameters that get no option here.
        required: Those that must be given.
        words: Parameter → placeholder, and what is to be said of it here.
        typed_alone: Whether options that nobody types are left to the function's own defaults.
    """
    helps = argument_docs(function)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    flags = {name: flag_of(name) for name in parameters if name not in skip}
    for name, parameter in parameters.items():
        if name in skip:
            continue
        keywords = _option(hints.get(name, str))
        if keywords is None:
            continue
        text = helps.get(name, "")
        if name in TEXTS:
            own = TEXTS[name]
            text = text if words and name in words else own.text or text
            if "type" not in keywords or own.kind is not None:
                keywords |= {
                    key: each for key, each in (("type", own.kind), ("metavar", own.metavar)) if each
                }
        if name.endswith("_columns"):
            keywords = {"type": values.columns, "metavar": "COLUMN,…"}
        if words and name in words:
            keywords["metavar"], note = words[name]
            text += f" {note}"
            if "FILE" in keywords["metavar"].split("|"):
                keywords["type"] = values.path
        text = without_python(text)
        if name in required:
            keywords["required"] = True
        else:
            default = None if parameter.default is parameter.empty else parameter.default
            keywords["default"] = argparse.SUPPRESS if typed_alone else default
            text = _with_default(text, name, default)
        parser.add_argument(
            flag_of(name), dest=name, help=in_flags(text, flags).replace("%", "%%"), **keywords
        )


def add_data(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the data that a store was made from, and which split of them."""
    parser.add_argument("--data", metavar="DATA", type=values.path, help=text)
    add_split(parser)


def add_split(parser: argparse.ArgumentParser) -> None:
    """Add the split of the data, which `cli` puts behind them."""
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="which split of --data, where they have several (default: the one that the store was made from)",
    )


def flag_of(name: str) -> str:
    """Return the option of a parameter."""
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def _with_default(text: str, name: str, default: Any) -> str:
    """What an option does, and what holds without it."""
    shown = DEFAULTS.get(name) if default is None else default
    if default is True:
        shown = "on"
    if shown is None or default is False or re.search(r"\bdefault\b|Without it", text, re.I):
        return text
    return f"{text.rstrip('.')} (default: {shown})"


def _option(hint: Any) -> dict[str, Any] | None:
    """Return argparse's keywords for a type; None for what cannot be given in words."""
    choices = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else ()
    )
    choices = tuple(choice for choice in choices if choice is not type(None)) or (hint,)
    listed = next((choice for choice in choices if typing.get_origin(choice) is Sequence), None)
    if listed is not None and typing.get_args(listed) == (float,):
        return {"type": values.number, "nargs": "+", "metavar": "FLOAT"}
    if listed is not None and os.PathLike[str] in typing.get_args(typing.get_args(listed)[0]):
        return {"type": values.path, "nargs": "+", "metavar": "PATH"}
    if bool in choices:
        return {"action": argparse.BooleanOptionalAction}
    words = tuple(
        word for choice in choices if typing.get_origin(choice) is Literal for word in typing.get_args(choice)
    )
    for kind, read in ((int, values.whole), (float, values.number)):
        if kind in choices and words:
            metavar = "|".join([kind.__name__.upper(), *words])
            return {"type": values.number_or(read, words), "metavar": metavar}
        if kind in choices:
            return {"type": read, "metavar": kind.__name__.upper()}
    if words:
        return {"type": values.one_of(words), "metavar": "|".join(words)}
    if os.PathLike[str] in choices:
        return {"type": values.path, "metavar": "PATH"}
    if str in choices and any(typing.get_origin(choice) in (list, Sequence) for choice in choices):
        return {"type": values.names, "metavar": "NAMES"}
    if str in choices or Any in choices:
        return {"metavar": "TEXT"}
    if any(typing.get_origin(choice) is Mapping for choice in choices):
        return {"type": values.pairs, "metavar": "NAME=COLUMN,…"}
    return None


def argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """Return the Args section of a docstring, name → text on one line."""
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", doc + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.finditer(
        r"^    (\w+): ((?:.*\n)(?:        .*\n)*)", section[1] if section else "", re.MULTILINE
    ):
        found[entry[1]] = " ".join(entry[2].split()).replace("`", "")
    return found
