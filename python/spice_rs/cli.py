"""The command line: `spice-rs COMMAND`. Options, defaults and their help come from the functions behind them."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import spice_rs
from spice_rs.commands import (
    agreement,
    analysis,
    comparison,
    demo,
    explanation,
    exports,
    extraction,
    relevance,
    report,
    schedule,
    selection,
    stores,
)
from spice_rs.commands.exits import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USER_ERROR
from spice_rs.commands.parser import Commands, Parser
from spice_rs.commands.values import meant
from spice_rs.commands.wording import in_flags
from spice_rs.data.splits import with_split
from spice_rs.errors import InvalidInputError, SpiceError, SpiceWarning
from spice_rs.printable import say
from spice_rs.signs import heard
from spice_rs.streams import ours_alone, stdout

_FLOW = {
    "from data to a store": ("extract", "plan", "doctor"),
    "from a store to picks": ("select", "extend", "relevance", "run"),
    "about picks": ("explain", "certify", "report", "compare", "agreement", "curvature"),
    "from picks to the trainer": ("export-picks",),
    "stores": ("info", "verify", "repair", "merge", "compact", "delete", "convert", "export"),
    "all of it, on a small model": ("demo",),
}
"""Commands by the place where they stand in the flow of data."""

TRACEBACK = "SPICE_TRACEBACK"
"""The variable of the environment that shows where an error of ours comes from."""

_NEED_TORCH = ("extract", "plan", "doctor", "run", schedule.ALIAS, "demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 where a check fails, 2 for an error of the user's, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without λ shows an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    words: dict[str, str] = {}
    try:
        return _run(arguments, words)
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return EXIT_BROKEN_PIPE
    except (SpiceError, OSError, ModuleNotFoundError) as error:
        say(f"spice-rs: {' '.join(in_flags(str(error), words, arguments).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except MemoryError as error:
        say(f"spice-rs: memory ran out ({error}); use less data, or a machine with more", file=sys.stderr)
        return EXIT_USER_ERROR
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        say(_unexpected(error), file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("spice-rs: interrupted; what was committed to a store or a checkpoint is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(arguments: Sequence[str], words: dict[str, str]) -> int:
    """Run one command; `words` gets the options of all commands, by which messages name arguments."""
    quiet = any(len(each) > 5 and "--no-progress".startswith(each) for each in arguments)
    if quiet and sys.argv[1:] == [*arguments]:  # this process is the command's alone
        os.environ.setdefault("TQDM_DISABLE", "1")
    loads = bool({*arguments[:1]} & {*_NEED_TORCH}) and "torch" not in sys.modules
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _shows_warnings(words, arguments)
        warnings.simplefilter("always", SpiceWarning)
        if not {"-h", "--help", "--version"} & {*arguments}:  # whose output is theirs
            stack.enter_context(ours_alone(descriptor=bool({*arguments[:1]} & {*_NEED_TORCH})))
        if quiet:
            stack.enter_context(_unlogged())
        elif os.environ.get("RANK", "0") == "0":  # of the processes of one run the first speaks
            stack.enter_context(heard("loading torch and transformers" if loads else None))
        commands, listed = _parsers(arguments)
        called = listed.get(arguments[0]) if arguments else None
        words.update(_words(called, listed.values()))
        _check_command(arguments, commands, listed)
        if called is not None:
            called.check_options(arguments[1:])
        known, more = commands.parse_known_args(arguments)
        if more and called is not None:
            raise InvalidInputError(f"{more[0]}: found this beside all that is known. {called.whole()}")
        options = vars(known)
        if "split" in options:
            options["data"] = with_split(options["data"], options.pop("split"))
        command: Callable[..., int | None] = options.pop("run")
        code = command(**options)
        stdout().flush()
    return code or 0


@contextmanager
def _unlogged() -> Iterator[None]:
    """Inside, libraries log nothing."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _check_command(arguments: Sequence[str], commands: Parser, listed: Mapping[str, Parser]) -> None:
    if not arguments:
        raise InvalidInputError(
            "found no command, expected one: extract, then select, for example. `spice-rs --help` has all of them."
        )
    if arguments[0].startswith("-"):
        commands.check_options(arguments[:1])
    elif arguments[0] not in listed:
        near = meant(arguments[0], [*listed])
        raise InvalidInputError(
            f"{arguments[0]}: no such command{near or '. `spice-rs --help` has all of them.'}"
        )


def _parsers(called: Sequence[str]) -> tuple[Parser, Mapping[str, Parser]]:
    """Return the parser, and those of the commands by name."""
    parser = Commands(
        prog="spice-rs",
        description="Choose fine-tuning data by Fisher information and gradient conflict (SPICE).",
        epilog="examples:\n"
        "  spice-rs extract --model MODEL --data pool.jsonl --out store\n"
        "  spice-rs select store -k 1000 --data pool.jsonl --out picks.jsonl --save sel.safetensors\n"
        "  spice-rs select --help",
    )
    parser.groups = _FLOW
    parser.add_argument("--version", action="version", version=f"spice-rs {spice_rs.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    extraction.add(commands, called[:1], alike=any(each.split("=")[0] == "--like" for each in called))
    selection.add(commands)
    explanation.add(commands)
    report.add(commands)
    exports.add(commands)
    comparison.add(commands)
    relevance.add(commands)
    schedule.add(commands, called[:1])
    agreement.add(commands)
    analysis.add(commands)
    stores.add(commands)
    demo.add(commands)
    return parser, commands.choices


def _unexpected(error: Exception) -> str:
    """What to say of an error that is ours, in one line: where it came up, and how to see the whole of it."""
    at = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {os.path.basename(frame.filename)}:{frame.lineno}" for frame in at)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"spice-rs: a fault of spice-rs{where} ({text}). Please report it, with what {TRACEBACK}=1 before the same command"
        " shows"
    )


def _words(called: Parser | None, others: Iterable[Parser]) -> dict[str, str]:
    """Return the options by argument: those of the command, and of others for what is said of them."""
    return {
        name: word
        for parser in (*others, called)
        if parser is not None
        for name, word in parser.words().items()
    }


def _shows_warnings(words: Mapping[str, str], typed: Sequence[str]) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, SpiceWarning):
            say(
                f"spice-rs: warning: {' '.join(in_flags(str(message), words, typed).split())}",
                file=sys.stderr,
            )

    return show
