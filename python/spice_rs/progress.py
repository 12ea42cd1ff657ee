"""Progress that appears once something takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

DELAY = 2.0
"""Seconds of silence before a bar is drawn."""

Progress = bool | Callable[..., object] | None
"""True: always a bar. False: none. None: a bar if a person can see it. A callable: it is called instead."""


class Bar(Protocol):
    """The part of a tqdm bar that the package uses."""

    def update(self, n: float = 1) -> object:
        """Move on by `n`."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:
        """Show `s` behind the bar."""

    def close(self) -> object:
        """Leave the last state on the screen."""


class Silent:
    """A bar that nobody sees."""

    def update(self, n: float = 1) -> None:
        """Do nothing."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainLine:
    """A counter on one line of stderr, for installations without tqdm."""

    def __init__(self, total: int, what: str, unit: str, stream: TextIO | None = None) -> None:
        self._total, self._what, self._unit = total, what, unit
        self._stream = stream or sys.stderr
        self._started = self._drawn = time.monotonic()
        self._done: float = 0
        self._note = ""
        self._visible = False

    def update(self, n: float = 1) -> None:
        """Move on by `n` and redraw at most twice a second."""
        self._done += n
        now = time.monotonic()
        if now - self._started >= DELAY and now - self._drawn >= 0.5:
            self._draw(now)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Show `s` behind the counter from the next redraw on."""
        self._note = s

    def close(self) -> None:
        """Draw the last state and end the line, if anything was drawn."""
        if self._visible:
            self._draw(time.monotonic())
            print(file=self._stream)
            self._visible = False

    def _draw(self, now: float) -> None:
        rate = self._done / max(now - self._started, 1e-9)
        text = f"\r{self._what}: {self._done:.0f}/{self._total} {self._unit}, {rate:.1f}/s {self._note}"
        print(text.ljust(78), end="", file=self._stream, flush=True)
        self._drawn, self._visible = now, True


def bar(progress: Progress, *, total: int, what: str, unit: str) -> Bar:
    """Return a bar over `total` units of work; see `Progress` for when it shows."""
    always = progress is True
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        return Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return PlainLine(total, what, unit)
    delay = 0 if always else DELAY
    drawn: Any = tqdm(total=total, desc=what, unit=unit, delay=delay, file=sys.stderr, leave=always)
    return drawn  # type: ignore[no-any-return]
