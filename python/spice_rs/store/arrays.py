"""Arrays in .npy and .npz files, of which nothing is believed before it agrees with the size of the file."""

from __future__ import annotations

import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from spice_rs.errors import InvalidInputError
from spice_rs.files import check_room, opened
from spice_rs.nearness import meant
from spice_rs.nouns import counted
from spice_rs.printable import short
from spice_rs.store.tensors import MEMBER_SEPARATOR, some

_NPY = ".npy"
_LONGEST_HEADER = 1 << 16  # numpy refuses headers of more than 10,000 letters
_MOST_AXES = 32
_PLAIN = "fiub"  # kinds of element types that are numbers: others need pickle, or have fields


@dataclass(frozen=True)
class _Header:
    """What a .npy file says of its array, and where the data begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Map the array of a .npy file.

    Raises:
        InvalidInputError: it is no .npy file, not of plain numbers, or its size is not the one that it states.
    """
    with opened(path, "a .npy file") as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(file, str(path))
    _check(header, size, str(path))
    if header.fortran or not header.dtype.isnative:  # such rows are put in order in memory
        check_room(
            path, header.bytes, f"{header.shape} values column by column, or with their bytes reversed"
        )
    order: Any = "F" if header.fortran else "C"
    try:
        if header.bytes == 0:
            return np.empty(header.shape, header.dtype)
        return np.memmap(path, header.dtype, "r", header.start, header.shape, order)
    except (ValueError, OSError, OverflowError, MemoryError) as error:
        raise _unreadable(path, ".npy file", error, "one") from error


def read_npz(path: Path, member: str) -> tuple[npt.NDArray[Any], str]:
    """Read the matrix `member` of an .npz archive; without a name, the only one.

    Returns:
        (the array, the member's name).

    Raises:
        InvalidInputError: it is no archive that can be read, has no such matrix, or memory has no room for it.
    """
    with opened(path, "an .npz archive") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _from_archive(archive, path, member)
        except InvalidInputError:
            raise
        except (
            Exception
        ) as error:  # zipfile and its unpackers let anything out, and NotImplementedError says nothing
            raise _unreadable(path, "archive", error, ".npz") from error


def _from_archive(archive: zipfile.ZipFile, path: Path, member: str) -> tuple[npt.NDArray[Any], str]:
    members = _members(archive, path)
    if member and member not in members:
        raise InvalidInputError(
            f"{path}: found no member {member!r}, expected one of {some(members)}{meant(member, members) or '.'} Choose one"
            " of these."
        )
    if not member:
        matrices = [name for name in members if len(_of_member(archive, members[name], path).shape) == 2]
        if len(matrices) != 1:
            raise InvalidInputError(
                f"{path}: found the matrices {some(matrices)}, expected one. Name the member:"
                f" {path}{MEMBER_SEPARATOR}{matrices[0] if matrices else 'member'}"
            )
        member = matrices[0]
    info = members[member]
    header = _of_member(archive, info, path)
    _check(header, info.file_size, f"{path}{MEMBER_SEPARATOR}{member}")
    check_room(path, header.bytes, f"the member {member!r} of shape {header.shape}, {header.dtype}")
    with archive.open(info) as file:
        # To the end, where the archive's checksum is compared.
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member}: more data than its shape has")
    return array, member


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of an archive by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(_NPY)
        if name == info.filename:
            continue
        if name in members:
            raise InvalidInputError(
                f"{path}: found the member {name!r} twice, expected names that differ. Write it again."
            )
        members[name] = info
    return members


def _of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Header:
    if info.flag_bits & 1:
        raise InvalidInputError(
            f"{path}: found an encrypted member {info.filename!r}, expected none. Write the archive without a password."
        )
    with archive.open(info) as file:
        return _header(file, f"{path}{MEMBER_SEPARATOR}{info.filename.removesuffix(_NPY)}")


def _header(file: IO[bytes], place: str) -> _Header:
    """Read the header of a .npy file."""
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    try:
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(start)
    except Exception as error:  # a header is a literal of Python, whose parser raises whatever it likes
        raise _unreadable(place, ".npy file", error, "one") from error
    if len(shape) > _MOST_AXES or not all(type(length) is int and 0 <= length < 1 << 62 for length in shape):
        raise InvalidInputError(
            f"{place}: found the shape {short(shape)}, expected whole numbers of at least 0, up to {_MOST_AXES} of them."
            " Write it again with numpy.save."
        )
    return _Header(tuple(shape), bool(fortran), dtype, start.tell())


def _check(header: _Header, size: int, place: str) -> None:
    """Refuse what is not plain numbers, or not as many as a file of so many bytes has."""
    if header.dtype.kind not in _PLAIN or header.dtype.subdtype is not None:
        raise InvalidInputError(
            f"{place}: found elements of {short(header.dtype, written=str)}, expected plain numbers. Convert them, for"
            " example with .astype('float32')."
        )
    if header.start + header.bytes != size:
        raise InvalidInputError(
            f"{place}: found {counted(size - header.start, 'byte')} of data, expected {header.bytes}, as shape"
            f" {header.shape} of"
            f" {header.dtype} has. The file was cut short, or written to again: write it anew with numpy.save."
        )


def _unreadable(place: object, what: str, error: Exception, expected: str) -> InvalidInputError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return InvalidInputError(
        f"{place}: found no readable {what} ({short(reason, 160, str)}), expected {expected}. Write it again."
    )
