"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from spice_rs.errors import InvalidInputError
from spice_rs.paths import local
from spice_rs.temporary import file_beside


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file to write to; when the block ends it takes the place of `path`, and is on disk.

    If the block raises, or the process is killed, `path` stays as it was; what a killed process leaves beside it, the
    next call removes (`temporary.py`). A pipe or a device is written to as it is; of a symbolic link the target is
    replaced. A file that was there leaves its permissions to the new one.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(local(path))
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
    descriptor, temporary = file_beside(path)
    with open(descriptor, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def check_place(path: str | os.PathLike[str]) -> None:
    """Fail now if `replacing` would fail after long work.

    Raises:
        InvalidInputError: no file can lie there.
    """
    path = local(path)
    try:
        place = Path(os.path.realpath(path) if os.path.islink(path) else path)  # as `replacing` takes it
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, links in a circle, a NUL
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"{path}: found no place for a file ({reason}), expected one. Name another."
        ) from error
    if place.is_dir() or not place.parent.is_dir():
        found = "a folder" if place.is_dir() else f"no folder {place.parent}"
        raise InvalidInputError(
            f"{path}: found {found}, expected a place for a file. Make the folder, or name a file."
        )
    special = place.exists() and not place.is_file()  # a pipe or a device, which is written to as it is
    if not may_write(place if special else place.parent):
        what = "a pipe or a device" if special else f"a folder, {place.parent},"
        raise InvalidInputError(
            f"{path}: found {what} that this user may not write to, expected a place for a file. Give the permission, or"
            " name another."
        )


def check_folder_place(path: str | os.PathLike[str], what: str) -> None:
    """Fail now if a folder cannot be made, or written to, after long work.

    Args:
        path: the folder, there or not.
        what: what it is for, for the message.

    Raises:
        InvalidInputError: nobody can make it, or this user may not write in it.
    """
    place = Path(os.path.abspath(local(path)))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return  # which whoever makes the folder explains
    if not may_write(place):
        raise InvalidInputError(
            f"{os.fspath(path)}: found a folder, {place}, that this user may not write to, expected a place for {what}."
            " Give the permission, or name another."
        )


def may_write(path: Path) -> bool:
    """Whether the system lets this process write to a file, or make files in a folder."""
    wanted = os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
