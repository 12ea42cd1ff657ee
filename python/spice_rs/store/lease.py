"""One extraction at a time in a store: two would compute the same rows, and the store could not be opened any more.

The system lets go of the lock when a process ends, however it ends. Of the processes of one run (`torchrun`) the first has
the lease, and the others look whether another run has it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from spice_rs.errors import StoreError
from spice_rs.locks import HeldError, hold, let_go, locked, note_in
from spice_rs.paths import local

FILE = ".extracting"
"""In the store's folder while an extraction goes on; it is no part of the store."""

_PATIENCE = 0.5
"""Seconds until a lease counts as taken: whoever looks at it holds it for a moment."""


@contextmanager
def lease(store: str | os.PathLike[str], run: str | None = None) -> Iterator[None]:
    """Inside, no other extraction that asks for a lease works on the store.

    Where the system or the file system has no such locks, nothing is promised.

    Args:
        store: The folder of a store.
        run: What the processes of a run are known by; None where this one is alone.

    Raises:
        StoreError: Another one does; the message names its host and process.
    """
    path = Path(local(store)) / FILE
    descriptor = _held(path, f"process {os.getpid()} on {socket.gethostname()}\n{run or ''}")
    try:
        yield
    finally:
        if descriptor is not None:
            let_go(path, descriptor)


def check_lease(store: str | os.PathLike[str], run: str) -> None:
    """Look whether the lease is that of another run, from one of the processes that have none of their own.

    Args:
        store: The folder of a store.
        run: What the processes of this run are known by.

    Raises:
        StoreError: It is; the message names its host and process.
    """
    path = Path(local(store)) / FILE
    end = time.monotonic() + _PATIENCE
    while (holder := _of_another(path, run)) is not None:
        if time.monotonic() > end:
            _refuse(path, holder)
        time.sleep(_PATIENCE / 10)


def _of_another(path: Path, run: str) -> str | None:
    """Who of another run has the lease, or has it for so short a time that nothing is noted yet; None if nobody."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # nobody has it
        return None
    try:
        holder, _, whose = note_in(descriptor).partition("\n")
        return holder if whose != run and locked(descriptor, shared=True) is False else None
    finally:
        os.close(descriptor)


def _held(path: Path, note: str) -> int | None:
    """The open file, locked; None where there are no locks."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return hold(path, note)
        except HeldError as error:
            if time.monotonic() > end:
                _refuse(path, str(error).partition("\n")[0])
            time.sleep(_PATIENCE / 10)
        except OSError as error:
            raise StoreError(
                f"{path}: lease: cannot be opened ({error.strerror}). Remove that file."
            ) from error


def _refuse(path: Path, holder: str) -> NoReturn:
    raise StoreError(
        f"{path.parent}: lease: found an extraction at work ({holder or 'another process'}), expected none: two would"
        " compute the same rows. Wait for it, or stop it and run this one again."
    )
