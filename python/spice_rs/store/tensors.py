"""Matrices in safetensors files, by their header alone: numpy reads the rest through a map."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.errors import InvalidInputError
from spice_rs.files import opened
from spice_rs.nearness import meant
from spice_rs.nouns import counted
from spice_rs.own_json import parsed
from spice_rs.printable import short
from spice_rs.store.mapped import mapped_file

MEMBER_SEPARATOR = "::"
"""`pool.npz::gradients` names a member of an archive."""

DTYPES = {"F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8)}
"""safetensors' name of an element type: our name and the bytes of a cell."""

_LARGEST_HEADER = 16 << 20  # the library's own limit takes seconds and gigabytes to read
_MOST_TENSORS = 1 << 17
_MOST_SEPARATORS = 100


def split_member(text: str) -> tuple[str, str]:
    """Return the file and the member that `file::member` names; the member is "" if there is none.

    Names of files may hold "::" too: what is there as it stands is a file, and else the shortest that is.
    """
    parts = text.split(MEMBER_SEPARATOR)
    splits = [
        (MEMBER_SEPARATOR.join(parts[:count]), MEMBER_SEPARATOR.join(parts[count:]))
        for count in range(1, min(len(parts), _MOST_SEPARATORS))
    ]
    if not splits or os.path.lexists(text):
        return text, ""
    return next((split for split in splits if os.path.lexists(split[0])), splits[0])


def tensor_cells(
    path: Path, name: str
) -> tuple[npt.NDArray[np.uint8], str, int, int, str, _core.MappedFile | None]:
    """Map the matrix `name` of a safetensors file; without a name, the only one.

    Returns:
        (cells as (bytes,) uint8, dtype, rows, columns, name, the file behind the cells or None if they were copied).

    Raises:
        InvalidInputError: the file is not readable, or has no such matrix of floats.
    """
    data, start = _open(path)
    file = mapped_file(data)
    header = _header(path, data, start)
    matrices = [key for key, tensor in header.items() if len(tensor["shape"]) == 2]
    if not name and {"indices", "gains", "log_dets"} <= header.keys():
        raise InvalidInputError(
            f"{path}: found a saved selection, expected gradients. Give the store that it was selected from, or another."
        )
    if not name and len(matrices) != 1:
        raise InvalidInputError(
            f"{path}: found the matrices {some(matrices)}, expected one. Name the tensor:"
            f" {path}{MEMBER_SEPARATOR}{matrices[0] if matrices else 'tensor'}"
        )
    name = name or matrices[0]
    if name not in header:
        raise InvalidInputError(
            f"{path}: found no tensor {name!r}, expected one of {some(header)}{meant(name, header) or '.'} Choose one of"
            " these."
        )
    tensor = header[name]
    shape, kind = tensor["shape"], tensor["dtype"]
    if len(shape) != 2 or 0 in shape or kind not in DTYPES:
        raise InvalidInputError(
            f"{path}{MEMBER_SEPARATOR}{name}: found {kind} of shape {shape}, expected (rows, columns) of"
            f" {', '.join(DTYPES)}. Choose or write another tensor."
        )
    dtype, size = DTYPES[kind]
    first, end = (start + offset for offset in tensor["data_offsets"])
    cells = data[first:end]
    if first % size:  # maps start at a page; cells are read where they lie only if they are aligned
        cells = cells.copy()
        file.check()
        return cells, dtype, shape[0], shape[1], name, None
    return cells, dtype, shape[0], shape[1], name, file


def some(names: Iterable[str]) -> str:
    """Return names for a message: the first of many."""
    listed = list(names)
    return f"{listed[:10]}" if len(listed) <= 10 else f"{listed[:10]} and {len(listed) - 10} more"


def _open(path: Path) -> tuple[np.memmap[Any, np.dtype[np.uint8]], int]:
    """Return the bytes of a file and where its data section starts."""
    with opened(path, "a .safetensors file") as file:
        first, size = file.read(8), os.fstat(file.fileno()).st_size
    length = int.from_bytes(first, "little")
    if len(first) < 8:
        raise _unreadable(path, "less than 8 bytes")
    if length > min(_LARGEST_HEADER, size - 8):
        raise _unreadable(path, f"a header of {counted(length, 'byte')} in a file of {size}")
    try:
        return np.memmap(path, dtype=np.uint8, mode="r"), 8 + length
    except (ValueError, OSError, MemoryError) as error:
        raise _unreadable(path, str(error)) from error


def _header(path: Path, data: npt.NDArray[np.uint8], start: int) -> dict[str, Any]:
    """Return the descriptions of the tensors by name, which together describe all data."""
    try:
        header = parsed(data[8:start].tobytes())
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ that is no object of texts")
        ends = [_end(name, tensor) for name, tensor in header.items()]
        if len(ends) > _MOST_TENSORS:
            raise ValueError(counted(len(ends), "tensor"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    at = 0
    for first, end in sorted(ends):
        if first != at:
            raise _unreadable(path, f"a tensor from byte {first} of the data on, where {at} is next")
        at = end
    if at != data.size - start:
        raise _unreadable(path, f"{counted(data.size - start, 'byte')} of data, where its tensors have {at}")
    tensors: dict[str, Any] = header
    return tensors


def _end(name: str, tensor: Mapping[str, Any]) -> tuple[int, int]:
    """Return where the data of a tensor begin and end.

    Raises:
        ValueError: its description contradicts itself.
    """
    kind, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    if not isinstance(kind, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"{short(name)} described as {short(tensor)}")
    first, end = offsets
    if (
        not all(type(number) is int and 0 <= number < 1 << 63 for number in (first, end, *shape))
        or first > end
    ):
        raise ValueError(f"{short(name)} described as {short(tensor)}")
    if kind in DTYPES and math.prod(shape) * DTYPES[kind][1] != end - first:
        raise ValueError(f"{short(name)}: {end - first} bytes for {kind} of shape {short(shape)}")
    return first, end


def _unreadable(path: Path, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path}: found no readable .safetensors file ({found}), expected one. Write it again."
    )
