"""The parser of the command line: its errors in one line and in our words, its help in groups.

What argparse says of a wrong command line is a usage of twenty lines and one of `invalid int value: 'x'`. Here options that
do not exist are found before it looks, and what it finds itself is said again: what was given, what was expected.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from spice_rs.errors import InvalidInputError
from spice_rs.nearness import meant

WIDEST = 100
"""Columns of help on a wide terminal."""

_NUMBER = re.compile(r"-\d+$|-\d*\.\d+$")


class Parser(argparse.ArgumentParser):
    """One command, or all of them.

    Attributes:
        groups: title → names of options, in the order of the help; others come last.
        kept: what an interruption of the command leaves, in words, by the options that were given; "" for nothing.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(formatter_class=_Help, **keywords)
        self.groups: Mapping[str, Sequence[str]] = {}
        self.kept: Callable[[Mapping[str, Any]], str] = lambda options: ""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found.

        Raises:
            InvalidInputError: always.
        """
        text = _reworded(message)
        end = "" if text.endswith((".", "?")) else "."
        raise InvalidInputError(f"{text}{end} {self.whole()}")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            (file or sys.stderr).write(message)  # argparse says nothing of a pipe that nobody reads

    def whole(self) -> str:
        """Return what a whole command line looks like, and where to read more."""
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        return f"A whole one: `{usage}`; `{self.prog} --help` has all options."

    def check_options(self, arguments: Sequence[str]) -> None:
        """Refuse options that do not exist, by the name that was meant.

        Raises:
            InvalidInputError: there is one.
        """
        found: dict[str, str] = {}
        for place, given in enumerate(arguments):
            if given == "--":
                return
            if not given.startswith("-") or given == "-" or " " in given or _NUMBER.match(given):
                continue
            name = given.partition("=")[0]
            known = list(self._option_string_actions)
            if given.startswith("--"):
                near = [each for each in known if each.startswith(name)]
                if name in known or len(near) == 1:
                    self._check_once(name if name in known else near[0], arguments[place:], found)
                    continue
                if near:
                    raise InvalidInputError(
                        f"{name}: found the beginning of {_listed(near)}, expected one of them. Write it out."
                    )
            elif given[:2] in known:
                self._check_once(given[:2], arguments[place:], found)
                continue
            raise InvalidInputError(
                f"{name}: no such option of {self.prog}{meant(name, known) or f'. `{self.prog} --help` has all.'}"
            )

    def _check_once(self, option: str, arguments: Sequence[str], found: dict[str, str]) -> None:
        """Refuse another value of an option that takes one; `arguments` begin with it, and `found` has those of before."""
        action = self._option_string_actions[option]
        if action.nargs is not None or not isinstance(action, argparse._StoreAction):
            return
        given, _, value = arguments[0].partition("=")
        if not value and not option.startswith("--"):
            value = given[2:]
        value = value or next(iter(arguments[1:]), "")
        before = found.setdefault(action.dest, value)
        if before != value:
            several = " Several targets are one file of records, told apart by --target-groups."
            raise InvalidInputError(
                f"{action.option_strings[0]}: found twice ({before} and {value}), expected once. Leave one out."
                + (several if option == "--target" else "")
            )

    def words(self) -> dict[str, str]:
        """Return argument → its option here, or what its place is called."""
        named = (each for each in self._actions if each.dest != "help")
        return {
            each.dest: each.option_strings[0] if each.option_strings else str(each.metavar) for each in named
        }

    def parts(self) -> list[tuple[str, list[argparse.Action]]]:
        """Return the options by title, as the help shows them; what no group names comes last."""
        actions = [each for each in self._actions if each.option_strings]
        placed: list[tuple[str, list[argparse.Action]]] = [
            ("", [each for each in self._actions if not each.option_strings])
        ]
        for title, names in self.groups.items():
            chosen = [each for name in names for each in actions if each.dest == name]
            placed.append((title, chosen))
            actions = [each for each in actions if each not in chosen]
        placed.append(("options", actions))
        return [part for part in placed if part[1]]

    def format_usage(self) -> str:
        """Return the usage: what must be given."""
        must = [_shown(each) for each in self._actions if each.option_strings and each.required]
        given = [_positional(each) for each in self._actions if not each.option_strings]
        return f"usage: {' '.join([self.prog, *given, *must, '[options]'])}\n"

    def format_help(self) -> str:
        """Return the whole help."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for title, actions in self.parts():
            formatter.start_section(title or "what is given")
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return f"{self.format_usage()}\n{formatter.format_help()}"


class Commands(Parser):
    """The parser of `spice-rs` itself, whose groups are of commands."""

    def format_help(self) -> str:
        """Return the commands in the order in which data flow."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        listed: dict[str, argparse.Action] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for each in action._get_subactions():
                    each.metavar = each.dest  # without the other name, which the help has
                    listed[each.dest] = each
        for title, names in self.groups.items():
            formatter.start_section(title)
            formatter.add_arguments([listed.pop(name) for name in names])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([*listed.values(), *(each for each in self._actions if each.option_strings)])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return f"usage: {self.prog} COMMAND [options]\n\n{formatter.format_help()}"


class _Help(argparse.HelpFormatter):
    """Names on the left, texts on the right, on a terminal of any width; lines of examples stay as they are."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        width = min(shutil.get_terminal_size().columns - 2, WIDEST)
        super().__init__(prog, max_help_position=max(14, min(30, width // 3)), width=max(width, 40))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # "--no-" is no option

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        return _shown(action)


def _shown(action: argparse.Action) -> str:
    """How an option is written, with what stands behind it."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return f"--[no-]{action.option_strings[0].removeprefix('--')}"
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = str(action.metavar or action.dest.upper())
    return f"{names} {value}{' …' if action.nargs == '+' else ''}"


def _positional(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper())
    return {"?": f"[{value}]", "*": f"[{value} …]", "+": f"{value} …"}.get(str(action.nargs), value)


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _reworded(message: str) -> str:
    """What argparse says, as what was found and what was expected."""
    name, text = "", message
    if match := re.match(r"argument ([^:]+): (.*)", message, re.DOTALL):
        name, text = f"{match[1].split('/')[-1]}: ", match[2]
    if re.match(r"expected (at least )?one argument", text):
        text = "found no value behind it, expected one"
    elif match := re.match(r"ignored explicit argument (.*)", text):
        text = f"found the value {match[1]}, expected none behind it"
    elif match := re.match(r"the following arguments are required: (.*)", text):
        missing = match[1].split(", ")
        text = (
            f"found no {' and no '.join(missing)}, expected {'one' if len(missing) == 1 else 'each of them'}"
        )
    return name + text
