"""The command line: `spice-rs COMMAND`. Options, defaults and their help come from the functions behind them."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import spice_rs
from spice_rs.commands import (
    agreement,
    ahead,
    analysis,
    comparison,
    coverage,
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
from spice_rs.commands.wording import in_flags
from spice_rs.data.splits import with_split
from spice_rs.errors import InvalidInputError, SpiceError, SpiceWarning
from spice_rs.interface import speaking
from spice_rs.nearness import meant
from spice_rs.printable import say
from spice_rs.progress import libraries_silent
from spice_rs.signs import heard
from spice_rs.streams import always_there, ours_alone, stdout, unheard

_FLOW = {
    "from data to a store": ("extract", "plan", "doctor"),
    "from a store to picks": ("select", "extend", "relevance", "run"),
    "about picks": ("explain", "certify", "report", "coverage", "compare", "agreement", "curvature"),
    "from picks to the trainer": ("export-picks",),
    "stores": ("info", "verify", "repair", "merge", "compact", "delete", "convert", "export"),
    "all of it, on a small model": ("demo",),
}
"""Commands by the place where they stand in the flow of data."""

TRACEBACK = "SPICE_TRACEBACK"
"""The variable of the environment that shows where an error of ours comes from."""

_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""Variables of the environment by which libraries show no bars."""

_UNKNOWN = "found this beside all that is known."

_NEED_TORCH = ("extract", "plan", "doctor", "run", schedule.ALIAS, "demo")


@dataclass
class _Call:
    """One call of the command line, as far as it is known.

    Attributes:
        arguments: What was typed.
        alone: The process is the command's, and nobody else's.
        words: Argument of Python → its option here, by which messages name it.
        kept: Says what an interruption leaves.
    """

    arguments: Sequence[str]
    alone: bool
    words: dict[str, str] = field(default_factory=dict)
    kept: Callable[[], str] = str

    def worded(self, message: str) -> str:
        """Return a message in words of the command line, on one line."""
        return " ".join(in_flags(message, self.words, self.arguments).split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    It is 0, 1 where a check fails, 2 for an error of the user's, 130 for Ctrl-C, and 141 where whoever reads the output has
    gone.
    """
    call = _Call(sys.argv[1:] if arguments is None else arguments, alone=arguments is None)
    with always_there():
        try:
            code = _ended(call)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads our output has seen enough
            unheard(sys.stdout)
            return EXIT_BROKEN_PIPE
    return code


def _ended(call: _Call) -> int:
    """Run one command; whatever ends it is an exit code, and a line for people."""
    try:
        return _run(call)
    except BrokenPipeError:
        raise
    except SystemExit as stop:  # of argparse, which has shown its help
        return stop.code if isinstance(stop.code, int) else 0
    except (SpiceError, OSError, ModuleNotFoundError) as error:
        _tell(call.worded(str(error)))
        return EXIT_USER_ERROR
    except MemoryError as error:
        _tell(f"memory ran out ({error}); use less data, or a machine with more")
        return EXIT_USER_ERROR
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _tell(_unexpected(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        kept = call.kept()
        _tell(f"interrupted; {kept}" if kept else "interrupted")
        return EXIT_INTERRUPTED


def _tell(text: str) -> None:
    say(f"spice-rs: {text}", file=sys.stderr)


def _run(call: _Call) -> int:
    """Run one command."""
    arguments = call.arguments
    quiet, asked = _given("--no-progress", arguments), _given("--progress", arguments)
    barred = quiet or not (asked or sys.stderr.isatty())  # bars are for eyes, and not for files
    torch = bool({*arguments[:1]} & {*_NEED_TORCH})
    with ExitStack() as stack:
        if barred and call.alone:
            stack.enter_context(_barred())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(speaking(call.worded))
        warnings.showwarning = _shows_warnings(call)
        warnings.simplefilter("always", SpiceWarning)
        if not {"-h", "--help", "--version"} & {*arguments}:  # whose output is theirs
            stack.enter_context(ours_alone(descriptor=torch))
        if torch:
            ahead.check(arguments)
        if quiet:
            stack.enter_context(_unlogged())
        elif os.environ.get("RANK", "0") == "0":  # of the processes of one run the first speaks
            loads = torch and "torch" not in sys.modules
            stack.enter_context(heard("loading torch and transformers" if loads else None))
        commands, listed = _parsers(arguments)
        called = listed.get(arguments[0]) if arguments else None
        call.words.update(_words(called, listed.values()))
        _check_command(arguments, commands, listed)
        if called is not None:
            called.check_options(arguments[1:])
        known, more = commands.parse_known_args(arguments)
        if more and called is not None:
            raise InvalidInputError(_beside(more[0], arguments) or f"{more[0]}: {_UNKNOWN} {called.whole()}")
        options = vars(known)
        if "split" in options:
            options["data"] = with_split(options["data"], options.pop("split"))
        command: Callable[..., int | None] = options.pop("run")
        if called is not None:
            call.kept = functools.partial(called.kept, options)
        if barred:
            stack.enter_context(libraries_silent(False, load=torch))
        code = command(**options)
        stdout().flush()
    return code or 0


def _beside(found: str, arguments: Sequence[str]) -> str | None:
    """What to say of what was typed behind the value of `--target`; None if that is not where it is."""
    at = [*arguments].index(found) if found in arguments else 0
    if at < 2 or arguments[at - 2] != "--target":
        return None
    from spice_rs.selection.target import TOGETHER

    return f"target: found {found!r} beside {arguments[at - 1]!r}, expected one source. {TOGETHER}"


def _given(option: str, arguments: Sequence[str]) -> bool:
    """Whether an option was typed, perhaps not to its end."""
    return any(len(each) > 5 and option.startswith(each) for each in arguments)


@contextmanager
def _barred() -> Iterator[None]:
    """Inside, libraries that are loaded show no bars, nor do processes that are started, unless the environment says so."""
    added = [name for name in _BARS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


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
    coverage.add(commands)
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
        f"a fault of spice-rs{where} ({text}). Please report it, with what {TRACEBACK}=1 before the same command"
        " shows"
    )


def _words(called: Parser | None, others: Collection[Parser]) -> dict[str, str]:
    """Return the options by argument: those of the command, and of others for what is said of them.

    What is an option of some commands and stands without one in others is the option.
    """
    words = {name: word for parser in others for name, word in parser.words().items()}
    for parser in others:
        words.update({name: word for name, word in parser.words().items() if word.startswith("-")})
    return words if called is None else {**words, **called.words()}


def _shows_warnings(call: _Call) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, SpiceWarning):
            _tell(f"warning: {call.worded(str(message))}")

    return show
