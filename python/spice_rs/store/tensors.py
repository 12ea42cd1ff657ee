"""Matrices in safetensors files, by their header alone: numpy reads the rest through a map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.errors import InvalidInputError
from spice_rs.store.mapped import mapped_file

MEMBER_SEPARATOR = "::"
"""`pool.npz::gradients` names a member of an archive."""

DTYPES = {"F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8)}
"""safetensors' name of an element type: our name and the bytes of a cell."""

_LARGEST_HEADER = 100 << 20  # as in the safetensors library


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
    if not name and len(matrices) != 1:
        raise InvalidInputError(
            f"{path}: found the matrices {matrices}, expected one. Name the tensor:"
            f" {path}{MEMBER_SEPARATOR}{matrices[0] if matrices else 'tensor'}"
        )
    name = name or matrices[0]
    if name not in header:
        raise InvalidInputError(
            f"{path}: found no tensor {name!r}, expected one of {list(header)}. Choose one of these."
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
    if end > data.size or end - first != shape[0] * shape[1] * size:
        raise _unreadable(path, f"{name} at bytes {first} to {end} of {data.size}")
    cells = data[first:end]
    if first % size:  # maps start at a page; cells are read where they lie only if they are aligned
        cells = cells.copy()
        file.check()
        return cells, dtype, shape[0], shape[1], name, None
    return cells, dtype, shape[0], shape[1], name, file


def _open(path: Path) -> tuple[np.memmap[Any, np.dtype[np.uint8]], int]:
    """Return the bytes of a file and where its data section starts."""
    if path.stat().st_size < 8:
        raise _unreadable(path, "less than 8 bytes")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(_LARGEST_HEADER, data.size - 8):
        raise _unreadable(path, f"a header of {length} bytes")
    return data, 8 + length


def _header(path: Path, data: npt.NDArray[np.uint8], start: int) -> dict[str, Any]:
    """Return the descriptions of the tensors by name."""
    try:
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        for tensor in header.values():
            first, end = tensor["data_offsets"]
            numbers = [first, end, *tensor["shape"]]
            if not all(type(number) is int and number >= 0 for number in numbers) or first > end:
                raise ValueError(f"the numbers {numbers}")
            str(tensor["dtype"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    tensors: dict[str, Any] = header
    return tensors


def _unreadable(path: Path, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path}: found no readable .safetensors file ({found}), expected one. Write it again."
    )
