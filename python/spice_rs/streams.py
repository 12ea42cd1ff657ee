"""Standard output belongs to what was asked for: while a command runs, what libraries print goes to stderr."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

_ours: list[TextIO] = []


@contextmanager
def always_there() -> Iterator[None]:
    """Inside, standard output and error take what is written: where one was closed before, it goes nowhere.

    Letters that a terminal does not have are shown as escapes.
    """
    kept = sys.stdout, sys.stderr
    with ExitStack() as stack:
        for name, stream in (("stdout", kept[0]), ("stderr", kept[1])):
            if stream is None:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nowhere)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = kept


def unheard(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere, as whoever read it has gone: else Python complains at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):
        pass  # something of Python's own


def stdout() -> TextIO:
    """Return standard output for what was asked for."""
    return _ours[-1] if _ours else sys.stdout


@contextmanager
def ours_alone(*, descriptor: bool) -> Iterator[None]:
    """Inside, `stdout` alone reaches standard output.

    Args:
        descriptor: Also of what is not written by Python. Files such as /dev/stdout are then stderr, too.
    """
    before = sys.stdout
    sys.stdout = sys.stderr
    kept = _moved(before) if descriptor else None
    _ours.append(before if kept is None else kept[0])
    try:
        yield
        _ours[-1].flush()
    finally:
        _ours.pop()
        sys.stdout = before
        if kept is not None:
            _moved_back(*kept)


def _moved(stream: TextIO) -> tuple[TextIO, int] | None:
    """A new place for a standard output that is a file of the system, and its old number, which is stderr's file now."""
    try:
        number, errors = stream.fileno(), sys.stderr.fileno()
        stream.flush()
        place = os.dup(number)
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return None  # something of Python's own, or closed
    os.dup2(errors, number)
    return open(place, "w", encoding=stream.encoding, errors=stream.errors), number


def _moved_back(stream: TextIO, number: int) -> None:
    os.dup2(stream.fileno(), number)
    try:
        stream.close()
    except BrokenPipeError:
        pass  # whoever calls has seen it already
