"""Files that are read: known to be files before they are opened, and no larger than memory once they are unpacked.

A pipe that nobody writes to is waited for without end, a device never ends, and a few kilobytes unpack to gigabytes. So
whatever reads a file that somebody named opens it here, or asks `check_file` before a library opens it.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from functools import cache
from typing import IO, Any, cast

from spice_rs.errors import InvalidInputError
from spice_rs.memory import check_memory
from spice_rs.nouns import counted
from spice_rs.paths import local

LONGEST_LINE = 1 << 26
"""Bytes of a line of text: no sample is as long, and a file without line ends is none of records."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SPOOL = "write what comes out of it to a file first, since files are read more than once"
_PIECE = 1 << 20
_PACKED = 200
"""Times its size that a packed file may unpack to: text and numbers come to a tenth of it."""


def opened(path: str | os.PathLike[str], expected: str) -> IO[bytes]:
    """Open a file for reading.

    Args:
        path: its name.
        expected: what should be there, for messages ("a saved selection").

    Raises:
        InvalidInputError: there is no such file, it cannot be opened, or it is none: a folder, a pipe, a socket, a device
            or what the system keeps in /proc.
    """
    path = local(path)
    check_file(path, expected)
    try:
        file = os.fdopen(os.open(path, _FLAGS), "rb")
    except OSError as error:
        raise _refused(path, _reason(error), expected) from error
    found = _kind(os.fstat(file.fileno()))  # of what was opened, whatever lies there now
    if found is not None:
        file.close()
        raise _refused(path, found, expected)
    return file


def check_file(path: str | os.PathLike[str], expected: str) -> None:
    """Refuse what is no file before somebody else opens it.

    Raises:
        InvalidInputError: see `opened`.
    """
    found = what_is(path)
    if found is not None:
        raise _refused(path, found, expected)


def check_folder(path: str | os.PathLike[str], expected: str) -> None:
    """Refuse a folder in which a pipe, a socket or a device lies, before a library reads what it finds there.

    Raises:
        InvalidInputError: the message names it.
    """
    path = local(path)
    try:
        with os.scandir(path) as entries:
            names = [entry.path for entry in entries if not entry.is_file() and not entry.is_dir()]
    except OSError:
        return  # which whoever reads it will explain
    for name in sorted(names):
        if os.path.exists(name):  # others are links that lead nowhere
            check_file(name, expected)


def unreadable(folder: str | os.PathLike[str], expected: str) -> InvalidInputError | None:
    """Return what to say of a folder of which this user may not read a file, or which he may not list; else None.

    Libraries that look for files by name take such a one for one that is not there.
    """
    path = local(folder)
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.path for entry in entries if entry.is_file())
    except PermissionError as error:
        return _refused(path, _reason(error), expected)
    except OSError:
        return None
    for name in names:
        try:
            opened(name, expected).close()
        except InvalidInputError as error:
            return error
    return None


def what_is(path: str | os.PathLike[str]) -> str | None:
    """Return what is at a path for messages, "a pipe" or "no such file"; None if it is a file."""
    path = local(path)
    try:
        return _kind(os.stat(path))
    except (OSError, ValueError) as error:
        return _reason(error)


_PACKERS = {
    re.compile(rb"\x1f\x8b"): "gzip",
    re.compile(rb"\x28\xb5\x2f\xfd"): "zstd",
    re.compile(rb"\xfd7zXZ\x00"): "xz",
    re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"): "bzip2",
    re.compile(rb"PK\x03\x04"): "zip",
}
"""How packed files begin, as no text does → what has packed them."""

_LONGEST_START = 10  # bytes


def unpacked(path: str | os.PathLike[str], expected: str) -> IO[bytes]:
    """Open a file of text for reading; one that gzip has packed, or whose name ends in .gz, is unpacked on the way.

    Raises:
        InvalidInputError: see `opened`; another program has packed the file.
    """
    path = local(path)
    file = opened(path, expected)
    start = file.read(_LONGEST_START)
    file.seek(0)
    packer = next((name for begins, name in _PACKERS.items() if begins.match(start)), None)
    if packer == "gzip" or os.fspath(path).lower().endswith(".gz"):
        return cast(IO[bytes], _Unpacked(file))
    if packer is not None:
        file.close()
        raise InvalidInputError(
            f"{path}: found a file that {packer} has packed, expected {expected}, plain or by gzip. Unpack it first."
        )
    return file


class _Unpacked(gzip.GzipFile):
    """A packed file that is closed with what it is read through."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self.myfileobj = cast(Any, file)  # as gzip calls a file that is its own


def read_whole(path: str | os.PathLike[str], expected: str) -> bytes:
    """Return the contents of a file of text, unpacked if gzip has packed it.

    Raises:
        InvalidInputError: see `opened`; it is no whole gzip file, or memory has no room for what it holds.
    """
    name = path = local(path)
    try:
        with unpacked(path, expected) as file:
            size = os.stat(path).st_size
            packed = isinstance(file, gzip.GzipFile)
            most = max(64 * _PIECE, _PACKED * size) if packed else None
            if not packed:
                check_room(path, size, counted(size, "byte"))
            pieces, length = [], 0
            while piece := file.read(_PIECE):
                pieces.append(piece)
                length += len(piece)
                if most is not None and length > most:
                    raise InvalidInputError(
                        f"{name}: found {size} bytes that unpack to more than {most}, expected {expected}. Unpack it"
                        " yourself if that is right."
                    )
                if packed and length % (64 * _PIECE) == 0:
                    check_room(path, length, f"{size} bytes that unpack to {length} and more")
            return b"".join(pieces)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInputError(
            f"{name}: found no whole gzip file ({error}), expected one. Write it again."
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"{name}: found a file that cannot be read ({error.strerror or error}), expected {expected}. Copy it"
            " again."
        ) from error


def lines_of(file: IO[bytes], path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the lines of a file with their ends.

    Raises:
        InvalidInputError: a line is longer than `LONGEST_LINE`.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InvalidInputError(
                f"{os.fspath(path)}, line {number}: found more than {LONGEST_LINE} bytes without a line end, expected one"
                " record per line. Write it again, one record per line."
            )
        yield line


def check_room(path: str | os.PathLike[str], size: int, found: str) -> None:
    """Refuse a file for which memory has no room.

    Args:
        path: the file, for the message.
        size: bytes that it will take.
        found: what takes them, for the message.

    Raises:
        InvalidInputError: there is less.
    """
    check_memory(found, size, "Use a machine with more, or less data.", field=os.fspath(path))


def _kind(status: os.stat_result) -> str | None:
    found = _KINDS.get(stat.S_IFMT(status.st_mode))
    if found is None and status.st_dev == _system():
        return "a file of the system's, in /proc"
    return found


@cache
def _system() -> int | None:
    """The device of what the system makes up as it is read: some of it has no end."""
    try:
        return os.stat("/proc/self").st_dev
    except OSError:
        return None


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"no file that can be opened ({error.strerror})"
    return f"no name of a file ({error})"  # a NUL in it


def _refused(path: str | os.PathLike[str], found: str, expected: str) -> InvalidInputError:
    remedy = _SPOOL if found == "a pipe" else "check the path"
    if os.strerror(errno.EACCES) in found:
        remedy = "give this user the permission to read it, or name another"
    return InvalidInputError(
        f"{os.fspath(path)}: found {found}, expected {expected}. {remedy[0].upper()}{remedy[1:]}."
    )
