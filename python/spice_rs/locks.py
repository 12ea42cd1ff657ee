"""Locks of the system on files: held by one process at a time, and let go of when it ends, however it ends."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

HAS_LOCKS = True
try:  # here and not at its first use: a child that is forked in an import waits for good
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
except ImportError:  # Windows
    HAS_LOCKS = False

_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
_LONGEST_NOTE = 1000  # bytes


class HeldError(Exception):
    """Another process holds a lock; the text is the note that it has left in the file."""


def locked(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder.

    Args:
        descriptor: of the file.
        shared: whether others may have it too, as long as they share it.

    Returns:
        True if nobody else had it, False if somebody has, None where the system or the file system has no locks.
    """
    if not HAS_LOCKS:
        return None
    try:
        flock(descriptor, (LOCK_SH if shared else LOCK_EX) | LOCK_NB)
    except OSError as error:
        return False if isinstance(error, BlockingIOError) else None
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has that name: whoever ended meanwhile has removed it, and a lock on it is on nothing."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def hold(path: Path, note: str) -> int | None:
    """Make a file of that name, if it is not there, and lock it.

    Args:
        path: the file.
        note: what it says of its holder.

    Returns:
        Its descriptor, for `let_go`; None where there are no locks, or something else than a file has that name.

    Raises:
        HeldError: another process has it.
        OSError: it cannot be opened.
    """
    while True:
        descriptor = os.open(path, _FLAGS, 0o666)
        ours = stat.S_ISREG(os.fstat(descriptor).st_mode)  # a pipe in its place is somebody's
        found = locked(descriptor) if ours else None
        if found and is_at(descriptor, path):
            with suppress(OSError):  # a disk that is full
                os.truncate(descriptor, 0)
                os.write(descriptor, note.encode())
            return descriptor
        holder = note_in(descriptor) if found is False else ""
        os.close(descriptor)
        if found is None:
            return None
        if found is False:
            raise HeldError(holder)


def let_go(path: Path, descriptor: int) -> None:
    """Remove a file that `hold` has locked, and end the lock, also where a child process has the file."""
    path.unlink(missing_ok=True)
    flock(descriptor, LOCK_UN)
    os.close(descriptor)


def note_in(descriptor: int) -> str:
    """Return what the holder of a lock has left in its file."""
    try:
        return os.pread(descriptor, _LONGEST_NOTE, 0).decode(errors="replace")
    except OSError:
        return ""
