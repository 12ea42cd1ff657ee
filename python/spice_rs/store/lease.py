"""One extraction at a time in a store: two would compute the same rows, and the store could not be opened any more.

The system lets go of the lock when a process ends, however it ends.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spice_rs.errors import StoreError
from spice_rs.paths import local

FILE = ".extracting"
"""In the store's folder while an extraction goes on; it is no part of the store."""

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def lease(store: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, no other extraction that asks for a lease works on the store.

    Where the system or the file system has no such locks, nothing is promised.

    Args:
        store: The folder of a store.

    Raises:
        StoreError: Another one does; the message names its host and process.
    """
    path = Path(local(store)) / FILE
    descriptor = _locked(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(path: Path) -> int | None:
    """The open file, locked; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise StoreError(
                f"{path}: lease: cannot be opened ({error.strerror}). Remove that file."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever ended meanwhile has removed the name: this would be a lock on nothing.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError as error:
            if error.errno not in _TAKEN:
                os.close(descriptor)
                return None
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise StoreError(
                f"{path.parent}: lease: found an extraction at work ({holder}), expected none: two would compute the same"
                " rows. Wait for it, or stop it and run this one again."
            ) from None
        os.close(descriptor)
