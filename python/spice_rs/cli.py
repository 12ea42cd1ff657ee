"""The command line: `spice-rs COMMAND`. Options, defaults and their help come from the functions behind them."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import spice_rs
from spice_rs.commands import (
    agreement,
    analysis,
    comparison,
    demo,
    explanation,
    exports,
    extraction,
    report,
    schedule,
    selection,
    stores,
)
from spice_rs.commands.exits import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USER_ERROR
from spice_rs.errors import SpiceError, SpiceWarning
from spice_rs.printable import one_line, say

TRACEBACK = "SPICE_TRACEBACK"
"""The variable of the environment that shows where an error of ours comes from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 where a check fails, 2 for an error of the user's, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without λ shows an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", SpiceWarning)
            options = vars(_parser(arguments[:1]).parse_args(arguments))
            command: Callable[..., int | None] = options.pop("run")
            code = command(**options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return EXIT_BROKEN_PIPE
    except (SpiceError, OSError, ModuleNotFoundError) as error:
        say(f"spice-rs: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except MemoryError as error:
        print(f"spice-rs: memory ran out ({error}); use less data, or a machine with more", file=sys.stderr)
        return EXIT_USER_ERROR
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(_unexpected(error), file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("spice-rs: interrupted; what was committed to a store or a checkpoint is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code or 0


class _Parser(argparse.ArgumentParser):
    """A parser whose messages quote arguments that may hold anything."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def _parser(called: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="spice-rs",
        description="Choose fine-tuning data by Fisher information and gradient conflict (SPICE).",
        epilog="Example: spice-rs extract --model MODEL --data pool.jsonl --out store && "
        "spice-rs select store -k 1000 --data pool.jsonl --out picks.jsonl",
    )
    parser.add_argument("--version", action="version", version=f"spice-rs {spice_rs.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    extraction.add(commands, called)
    selection.add(commands)
    explanation.add(commands)
    report.add(commands)
    exports.add(commands)
    comparison.add(commands)
    schedule.add(commands, called)
    agreement.add(commands)
    analysis.add(commands)
    stores.add(commands)
    demo.add(commands)
    return parser


def _unexpected(error: Exception) -> str:
    """What to say of an error that is ours, in one line: where it came up, and how to see the whole of it."""
    at = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {os.path.basename(frame.filename)}:{frame.lineno}" for frame in at)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"spice-rs: a fault of spice-rs{where} ({text}). Please report it, with what {TRACEBACK}=1 before the same command"
        " shows"
    )


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, SpiceWarning):
        say(f"spice-rs: warning: {message}", file=sys.stderr)
