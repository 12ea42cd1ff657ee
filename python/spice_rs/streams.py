"""Standard output belongs to what was asked for: while a command runs, what libraries print goes to stderr."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_ours: list[TextIO] = []


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
