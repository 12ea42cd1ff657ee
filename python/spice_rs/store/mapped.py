"""Files behind arrays that numpy has mapped: they are looked at before and after each pass over the rows."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from spice_rs import _core
from spice_rs.errors import StoreError


def mapped_file(mapped: np.memmap[Any, Any]) -> _core.MappedFile:
    """Return the file of a map that we have made; whoever finds it shorter or written to raises.

    Raises:
        StoreError: the file is gone, or shorter by now.
    """
    return _core.MappedFile(os.fspath(mapped.filename), _bytes(mapped), True)


def callers_file(array: Any) -> _core.MappedFile | None:
    """Return the file of a map that the caller has made and may write to; None of anything else."""
    if not isinstance(array, np.memmap) or not isinstance(array.filename, str | os.PathLike):
        return None
    try:
        if array._mmap.size() != os.stat(array.filename).st_size:  # another file by that name
            return None
        return _core.MappedFile(os.fspath(array.filename), _bytes(array), False)
    except (OSError, ValueError, StoreError):
        return None


def _bytes(mapped: np.memmap[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(mapped._mmap, np.uint8)
