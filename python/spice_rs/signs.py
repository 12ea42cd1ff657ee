"""Signs of life: what a command is at, on stderr, within a second or two, and a line for each step that takes longer.

`step` is called where something may take long. It costs nothing, and nobody hears it unless the command line listens: a
thread then says the step, if it goes on for longer than `FIRST` or `PATIENCE` and no bar is seen meanwhile. In Python
bars alone are shown.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from spice_rs.printable import say

FIRST = 0.5
"""Seconds that a command may take without a word."""

PATIENCE = 1.0
"""Seconds that a later step may take without one."""

_listener: Listener | None = None


def step(what: str) -> None:
    """Tell what begins now, in a few words: "loading the model"."""
    if _listener is not None:
        _listener.begin(what)


def seen() -> None:
    """Tell that something about the present step is on the screen."""
    if _listener is not None:
        _listener.seen()


class Listener:
    """Says steps that take long."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._what: str | None = None
        self._ended = self._said = False
        self._thread = threading.Thread(target=self._listen, name="spice-signs", daemon=True)

    def begin(self, what: str) -> None:
        """Take over a step."""
        with self._changed:
            self._what = what
            self._changed.notify()

    def seen(self) -> None:
        """Forget the step: people see it otherwise."""
        self._what = None

    def say(self, what: str) -> None:
        """Print a step."""
        self._said = True
        say(f"spice-rs: {what} …", file=sys.stderr)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _listen(self) -> None:
        with self._changed:
            while not self._ended:
                what = self._what
                end = time.monotonic() + (PATIENCE if self._said else FIRST)
                while what is not None and self._what is what and not self._ended:
                    left = end - time.monotonic()
                    if left <= 0:
                        self._what = None
                        self.say(what)
                        break
                    self._changed.wait(left)
                else:
                    if self._what is None and not self._ended:
                        self._changed.wait()


def _forget() -> None:
    """In a process that was forked there is no thread to listen."""
    global _listener
    _listener = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def heard(now: str | None = None) -> Iterator[None]:
    """Inside, steps that take long are said on stderr.

    Args:
        now: A step that is known to take long, said at once: while some libraries are loaded no other thread runs.
    """
    global _listener
    before, _listener = _listener, Listener()
    listener = _listener
    if now is not None:
        listener.say(now)
    listener.start()
    try:
        yield
    finally:
        _listener = before
        listener.stop()
