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
