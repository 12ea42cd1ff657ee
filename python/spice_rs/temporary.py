"""Temporary files and folders, each beside what it is for: `.tmp-spice-<hash of its name>-<place>`.

Whoever makes one holds a lock on it as long as it lives. What a killed process has left is therefore known by its name,
which is no user's, and by having no lock, and the next one of the same target removes it; in a store's folder `repair`
does, too. Where the system or the file system has no locks, nothing is removed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spice_rs.locks import is_at, locked

_PLACES = tuple(map(str, range(8)))
"""So many of one target can be at work at a time before names become long."""

_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def file_beside(target: Path) -> tuple[int, Path]:
    """Make an empty file, readable by its owner, in the folder of `target`.

    Returns:
        (descriptor to write to, path); the lock ends when the descriptor is closed.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        for path in _candidates(target.parent, target.name):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            except FileExistsError:
                continue
            if _is_held(descriptor, path):
                return descriptor, path
            os.close(descriptor)


@contextmanager
def folder_for(name: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder for a purpose, which is removed in the end.

    Args:
        name: the purpose; folders of one purpose know each other's remains.
        parent: where it lies; None for the system's place for such things.

    Raises:
        OSError: it cannot be made.
    """
    descriptor, path = _folder(Path(tempfile.gettempdir()) if parent is None else parent, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _folder(parent: Path, name: str) -> tuple[int | None, Path]:
    while True:
        for path in _candidates(parent, name):
            try:
                path.mkdir(0o700)
            except FileExistsError:
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | _OPEN)
            except FileNotFoundError:  # taken for a forgotten one
                continue
            except OSError:  # folders cannot be opened here
                return None, path
            if _is_held(descriptor, path):
                return descriptor, path
            os.close(descriptor)


def _candidates(parent: Path, name: str) -> list[Path]:
    """Return the names to try, after what dead processes left there was removed."""
    start = f".tmp-spice-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}-"
    places = [parent / (start + place) for place in _PLACES]
    for path in places:
        _remove_forgotten(path)
    return [*places, parent / (start + secrets.token_hex(8))]


def _remove_forgotten(path: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
        descriptor = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | _OPEN)
    except OSError:  # not there, or another user's
        return
    try:
        mode = os.fstat(descriptor).st_mode
        if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and locked(descriptor) and is_at(descriptor, path):
            if is_folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
    except OSError:  # of a folder in which nobody may remove anything
        pass
    finally:
        os.close(descriptor)


def _is_held(descriptor: int, path: Path) -> bool:
    """Lock what was made; False if somebody came between and took it for a forgotten one."""
    return locked(descriptor) is not False and is_at(descriptor, path)
