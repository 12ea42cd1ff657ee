"""Files behind arrays that numpy has mapped: they are looked at before and after each pass over the rows."""

from __future__ import annotations

import mmap
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
    return _core.MappedFile(str(mapped.filename), np.frombuffer(_map(mapped), np.uint8), True)


def callers_file(array: Any) -> _core.MappedFile | None:
    """Return the file of a map that the caller has made and may write to; None of anything else."""
    if not isinstance(array, np.memmap) or not isinstance(array.filename, str | os.PathLike):
        return None
    try:
        if _map(array).size() != os.stat(array.filename).st_size:  # another file by that name
            return None
        return _core.MappedFile(str(array.filename), np.frombuffer(_map(array), np.uint8), False)
    except (OSError, ValueError, StoreError):
        return None


def _map(array: np.memmap[Any, Any]) -> mmap.mmap:
    """The map of an array; no public name of numpy's has it."""
    mapped: mmap.mmap = array._mmap  # type: ignore[attr-defined]
    return mapped
