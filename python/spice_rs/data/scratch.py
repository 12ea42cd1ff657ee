"""Files for what a process would hold in memory otherwise: written once from start to end, then mapped.

A scratch file has no name where the system allows it, so that nothing is left behind however the process ends. What is
mapped belongs to the system's cache of files: it is dropped when memory is short, and processes that map one file share it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import IO, Any

from spice_rs.errors import InvalidInputError

_AT_ONCE = 1 << 20  # bytes that are gathered before they are written


class Scratch:
    """One such file.

    Args:
        folder: Where it lies; None for the system's folder of temporary files.
        path: Its name, which must not be taken; None for a file without one.
        digest: A hash object of hashlib that is fed with all that is written; None for none.

    Attributes:
        size: Bytes written so far.

    Raises:
        InvalidInputError: It cannot be made.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, path: Path | None = None, digest: Any = None
    ) -> None:
        self.size = 0
        self._folder = Path(folder or tempfile.gettempdir()) if path is None else path.parent
        self._waiting: list[bytes] = []
        self._gathered = 0
        self._digest = digest
        try:
            if path is None:
                self._file: IO[bytes] = tempfile.TemporaryFile(dir=self._folder, buffering=0)
            else:
                self._file = open(path, "x+b", buffering=0)
        except OSError as error:
            raise self._no_room(error) from error

    def write(self, content: bytes) -> None:
        """Append bytes.

        Raises:
            InvalidInputError: There is no room for them, or the folder cannot be written to.
        """
        self._waiting.append(content)
        self._gathered += len(content)
        self.size += len(content)
        if self._gathered >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Hand all that was written to the system.

        Raises:
            InvalidInputError: See `write`.
        """
        content = b"".join(self._waiting)
        self._waiting, self._gathered = [], 0
        if self._digest is not None:
            self._digest.update(content)
        try:
            put(self._file, content)
        except OSError as error:
            raise self._no_room(error) from error

    def mapped(self) -> memoryview:
        """The whole content, not to be written to; the map lasts as long as this view and what is made of it.

        Raises:
            InvalidInputError: See `write`; the system cannot map it.
        """
        self.flush()
        try:
            return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise self._no_room(error) from error

    def close(self) -> None:
        """End writing. Views stay."""
        self._file.close()

    def _no_room(self, error: Exception) -> InvalidInputError:
        reason = getattr(error, "strerror", None) or str(error)
        return InvalidInputError(
            f"{self._folder}: found no room for the tokens of the data ({reason}, after {self.size / 1e6:.0f} MB),"
            " expected a folder with room for them. Make room, or name another one: in cache_dir."
        )


def put(file: IO[bytes], content: bytes) -> None:
    """Write all of the content to a file without a buffer of its own.

    Raises:
        OSError: It cannot be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
