"""Memory that runs out: how torch says so, and what gives back what is no longer used."""

from __future__ import annotations

import gc
import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from spice_rs.errors import InvalidInputError
from spice_rs.memory import check_memory
from spice_rs.printable import short

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch says that memory ran out; on a CPU it does so in words alone."""
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _NO_MEMORY)


def check_parts(folder: Path) -> None:
    """Refuses a folder whose list of weight files names files elsewhere.

    Raises:
        InvalidInputError: It does. A list that cannot be read is left to whoever loads it.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            parts = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        for part in parts:
            if not isinstance(part, str) or os.path.isabs(part) or ".." in part.replace("\\", "/").split("/"):
                raise InvalidInputError(
                    f"{index}: weight_map: found the file {short(part)}, expected names of files in this folder. Get the"
                    " model again from where it comes from."
                )


def check_weights(folder: Path) -> None:
    """Refuses a folder whose weights, read as float32, are more than this process can still take.

    Raises:
        InvalidInputError: They are. A file that cannot be read is left to whoever loads it.
    """
    # Others may lie beside: the same weights under other names, for other programs.
    index = folder / "model.safetensors.index.json"
    try:
        parts = (
            json.loads(index.read_text())["weight_map"].values() if index.is_file() else ["model.safetensors"]
        )
        cells = sum(_cells(folder / part) for part in set(parts))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError):
        return
    check_memory(
        f"{folder}: {cells:,} weights to be read as float32",
        4.0 * cells,
        "Use a smaller proxy of the same family, a GPU (device), or raise the limit.",
        field="model",
    )


def _cells(file: Path) -> int:
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())


def free_memory() -> None:
    """Gives back what is no longer referenced; to be called where the failed call's error is not held any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
