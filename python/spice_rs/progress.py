"""Progress that appears once something takes longer than a moment."""

from __future__ import annotations

import functools
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from spice_rs.nouns import counted
from spice_rs.signs import seen, step

DELAY = 1.0
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


PER_CENT = "%"
"""The unit of work whose amount tells nobody anything, as that of rows that are read in several passes."""


class PlainLine:
    """A counter on one line of stderr, for installations without tqdm."""

    def __init__(
        self, total: int, what: str, unit: str, stream: TextIO | None = None, *, initial: int = 0
    ) -> None:
        self._total, self._what, self._unit = total, what, unit
        self._stream = stream or sys.stderr
        self._started = self._drawn = time.monotonic()
        self._done: float = initial
        self._initial = initial
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
        rate = (self._done - self._initial) / max(now - self._started, 1e-9)
        text = f"\r{self._what}: {self._done:.0f}/{self._total} {self._unit}, {rate:.1f}/s {self._note}"
        print(text.ljust(78), end="", file=self._stream, flush=True)
        self._drawn, self._visible = now, True
        seen()


def bar(progress: Progress, *, total: int, what: str, unit: str, initial: int = 0) -> Bar:
    """Return a bar over `total` units of work, `initial` of them done before; see `Progress` for when it shows."""
    always = progress is True
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
        step(f"{what}: {total:,} {unit}" if total > 0 and unit != PER_CENT else what)
    if not progress:
        return Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return PlainLine(total, what, unit, initial=initial)
    delay = 0 if always else DELAY
    drawn: Any = _announced(tqdm)(
        total=total, initial=initial, desc=what, unit=unit, delay=delay, file=sys.stderr, leave=always
    )
    return drawn  # type: ignore[no-any-return]


@functools.cache
def _announced(kind: Any) -> Any:
    """A bar of tqdm that tells when it is on the screen."""

    class Announced(kind):  # type: ignore[misc]
        def display(self, *args: Any, **keywords: Any) -> Any:
            if str(self).strip():  # a terminal without a width shows nothing
                seen()
            return super().display(*args, **keywords)

    return Announced


@contextmanager
def libraries_silent(progress: Progress, *, load: bool = True) -> Iterator[None]:
    """Inside, the bars of transformers, datasets and huggingface_hub are not shown either, where `progress` is False.

    Args:
        progress: what the user wants to see.
        load: whether those libraries will be used; else only those that are loaded already are told.
    """
    steps = _silence(load) if progress is False else []
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the environment decides, the hub says that it stays so
            for step in steps:
                step()


def _silence(load: bool) -> list[Callable[[], object]]:
    """Turns the bars of libraries off; what turns those on again that were on, in this order."""
    hub, models = _there("huggingface_hub.utils", load), _there("transformers.utils.logging", load)
    data = sys.modules.get("datasets")
    steps: list[Callable[[], object]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if models is not None and models.is_progress_bar_enabled():
            steps.append(models.enable_progress_bar)  # which turns on the hub's too: those come next
        if hub is not None:
            shown = not hub.are_progress_bars_disabled()
            steps.append(hub.enable_progress_bars if shown else hub.disable_progress_bars)
            hub.disable_progress_bars()
        if models is not None:
            models.disable_progress_bar()
        if data is not None and not data.are_progress_bars_disabled():
            steps.append(data.enable_progress_bars)
            data.disable_progress_bars()
    return steps


def _there(module: str, load: bool) -> Any:
    """A module of a library that may not be installed; None if it is not, or is not loaded and is not to be."""
    if not load:
        return sys.modules.get(module)
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


class Watcher:
    """Turns what the core reports into a bar, or into calls of the user's function.

    Args:
        progress: what the user wants to see.
        rows: rows of the source.
        picks: picks that a run makes, or about as many.
        runs: runs to come, one after the other; they are counted together.
    """

    def __init__(self, progress: Progress, rows: int, picks: int, runs: int = 1) -> None:
        self._call = progress if callable(progress) else None
        shown: Progress = False if self._call else progress
        self._reading = bar(shown, total=rows * runs, what="read", unit="rows")
        self._selecting = bar(shown, total=picks * runs, what="select", unit="picks")
        self._runs, self._run = runs, 1
        self._read = self._picked = self._evaluated = 0
        self._before = (0, 0)
        if shown is None:
            step(f"read: {counted(rows * runs, 'row', form=',')}")
            self._next_step = f"select: {counted(picks * runs, 'pick', form=',')}"
        else:
            self._next_step = ""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.close()
        self._selecting.close()

    def next_run(self) -> None:
        """Go on counting from here."""
        self._run += 1
        self._read = 0
        self._before, self._picked = (self._before[0] + self._picked, self._evaluated), 0

    def __call__(self, surveyed: int, picks: int, gain: float, rows_read: int) -> None:
        """Take what `_core.select` reports of the run that is going on."""
        if self._call:
            if picks > self._picked:
                self._call(self._before[0] + picks, gain, self._before[1] + rows_read)
        else:
            self._reading.update(surveyed - self._read)
            if picks > self._picked:
                if self._next_step:
                    step(self._next_step)
                    self._next_step = ""
                of = f", run {self._run} of {self._runs}" if self._runs > 1 else ""
                self._selecting.set_postfix_str(f"gain {gain:.3g}{of}", refresh=False)
                self._selecting.update(picks - self._picked)
        self._read, self._picked = surveyed, picks
        self._evaluated = self._before[1] + rows_read


@contextmanager
def counting(progress: Progress, what: str, unit: str = "rows") -> Iterator[Callable[[int, int], object]]:
    """Yield what to call with (done, all): the user's function, or one that moves a bar, of shares for `PER_CENT`."""
    if callable(progress):
        yield progress
        return
    drawn: Bar | None = None
    counted = 0
    if progress is None:
        step(what)

    def count(done: int, total: int) -> None:
        nonlocal drawn, counted
        if unit == PER_CENT:
            done, total = 100 * done // max(total, 1), 100
        drawn = drawn or bar(progress, total=total, what=what, unit=unit)
        drawn.update(done - counted)
        counted = done

    try:
        yield count
    finally:
        if drawn is not None:
            drawn.close()
