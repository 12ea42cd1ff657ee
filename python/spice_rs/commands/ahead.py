"""What is wrong with a line of `extract`, `plan` or `doctor` before torch is loaded, which takes seconds.

Their options come from functions beside torch. Here the names of these are read from the text of `extract`, and refused is
only what their parsers, or the functions themselves, would refuse after that.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from spice_rs.commands.parser import Parser
from spice_rs.errors import SpiceError

_SOURCE = Path(__file__).parent.parent / "extraction" / "extractor.py"


def check(arguments: Sequence[str]) -> None:
    """Refuse options of `extract` that do not exist, and data or an earlier store that are not there.

    Raises:
        InvalidInputError: there is such an option, or data are missing.
        SpiceError: what is to be extracted alike is no store.
    """
    if {"-h", "--help"} & {*arguments}:
        return
    if arguments[0] == "extract" and (known := options()):
        _parser(known).check_options(arguments[1:])
    if (data := _value("--data", arguments)) is not None:
        from spice_rs.data.reading import check_there

        check_there(data)
    if arguments[0] == "extract" and (like := _value("--like", arguments)) is not None:
        from spice_rs.store.store import GradientStore

        try:
            GradientStore(like)
        except SpiceError as error:
            raise type(error)(f"--like: {error}") from error


def options() -> list[str]:
    """Return the options that `extract` has for its arguments; none where its text cannot be read."""
    try:
        tree = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return []
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "extract":
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                name = argument.arg.replace("_", "-")
                found += [f"--{name}"] if "Function" not in kind else []
                found += [f"--no-{name}"] if "bool" in kind else []
    return found


def _parser(known: Sequence[str]) -> Parser:
    """A parser that knows the options and nothing more."""
    parser = Parser(prog="spice-rs extract")
    for option in known:
        parser.add_argument(option)
    return parser


def _value(option: str, arguments: Sequence[str]) -> str | None:
    """What stands behind an option that is written out, the last time it is there."""
    found = None
    for at, each in enumerate(arguments):
        name, equals, value = each.partition("=")
        if name == option:
            found = value if equals else next(iter(arguments[at + 1 : at + 2]), None)
    return found
