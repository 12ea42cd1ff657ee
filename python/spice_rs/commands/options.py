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


def add_command(
    commands: Any, name: str, run: Callable[..., int | None], summary: str, *, alias: str | None = None
) -> argparse.ArgumentParser:
    """Add a command without options; `run` takes them by name and returns the exit code.

    Args:
        commands: What `add_subparsers` has returned.
        name: Of the command.
        run: What it does.
        summary: In one line.
        alias: Another name, as the function behind it is called from Python.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        aliases=() if alias is None else (alias,),
    )
    command.set_defaults(run=run)
    return command


def add_options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    *,
    skip: Sequence[str] = (),
    required: Sequence[str] = (),
    words: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Add an option for every parameter of `function` that can be given in words."""
    helps = _argument_docs(function)
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip:
            continue
        keywords = _option(hints.get(name, str))
        if keywords is None:
            continue
        flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        text = helps.get(name, "")
        if words and name in words:
            keywords["metavar"], note = words[name]
            text += f" {note}"
        if name.endswith("_columns"):
            keywords = {"type": _columns, "metavar": "COLUMN,…"}
        if name in required:
            keywords["required"] = True
        else:
            keywords["default"] = parameter.default
            if parameter.default not in (None, False):
                text += f" (default: {parameter.default})"
        parser.add_argument(flag, dest=name, help=text.replace("%", "%%"), **keywords)


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
        return {"type": float, "nargs": "+", "metavar": "FLOAT"}
    if listed is not None and os.PathLike[str] in typing.get_args(typing.get_args(listed)[0]):
        return {"nargs": "+", "metavar": "PATH"}
    if bool in choices:
        return {"action": argparse.BooleanOptionalAction}
    words = tuple(
        word for choice in choices if typing.get_origin(choice) is Literal for word in typing.get_args(choice)
    )
    for kind in (int, float):
        if kind in choices and words:
            return {"type": _number_or(kind, words), "metavar": "|".join([kind.__name__.upper(), *words])}
        if kind in choices:
            return {"type": kind, "metavar": kind.__name__.upper()}
    for choice in choices:
        if typing.get_origin(choice) is Literal:
            return {"choices": typing.get_args(choice)}
    if str in choices and any(typing.get_origin(choice) in (list, Sequence) for choice in choices):
        return {"type": _names, "metavar": "NAMES"}
    if str in choices or Any in choices:
        return {"metavar": "TEXT"}
    if any(typing.get_origin(choice) is Mapping for choice in choices):
        return {"type": _pairs, "metavar": "NAME=COLUMN,…"}
    return None


def _number_or(kind: Callable[[str], Any], words: tuple[str, ...]) -> Callable[[str], Any]:
    """Return what reads a number or one of the words."""

    def read(text: str) -> Any:
        if text in words:
            return text
        try:
            return kind(text)
        except ValueError:
            expected = " or ".join(["a number", *words])
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from None

    return read


def _names(text: str) -> str | list[str]:
    """Read `q_proj,k_proj` and `!q_proj,!k_proj` as lists of names, and anything else as one pattern."""
    return text.split(",") if re.fullmatch(r"!?[\w.]+(,!?[\w.]+)+", text) else text


def _columns(text: str) -> list[str]:
    """Read `notes,raw text,judge-1`: names of columns may hold anything but commas."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected COLUMN,COLUMN")
    return names


def _pairs(text: str) -> dict[str, str]:
    """Read `prompt=frage,response=antwort`."""
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=COLUMN,NAME=COLUMN")
    return {name.strip(): column.strip() for name, column in pairs}


def _argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """Return the Args section of a docstring, name → text on one line."""
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", doc + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.finditer(
        r"^    (\w+): ((?:.*\n)(?:        .*\n)*)", section[1] if section else "", re.MULTILINE
    ):
        found[entry[1]] = " ".join(entry[2].split()).replace("`", "")
    return found
