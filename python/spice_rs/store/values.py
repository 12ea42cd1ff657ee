"""What callers give to a store, as the core takes it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spice_rs.errors import InvalidInputError


def non_negative(field: str, value: int) -> int:
    """An integer that an unsigned one can hold."""
    try:
        number = value.__index__()
    except AttributeError:
        raise TypeError(f"{field}: found {value!r}, expected an integer.") from None
    if not 0 <= number < 1 << 63:
        raise InvalidInputError(f"{field}: found {value!r}, expected a count. Give a positive integer.")
    return number


def json_object(value: Mapping[str, Any] | None) -> str:
    """JSON text of a mapping."""
    try:
        return json.dumps(dict(value or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"provenance: found {error}, expected plain JSON. Record names, numbers and hashes."
        ) from error


def _as_array(field: str, values: ArrayLike) -> NDArray[Any]:
    """A numpy array of the values; tensors are recognised by their methods, so that torch is not imported."""
    source: Any = values
    if hasattr(source, "detach") and hasattr(source, "device"):
        if str(source.device) != "cpu":
            raise InvalidInputError(
                f"{field}: found a tensor on {source.device}, expected one on the CPU. Call .cpu() on it."
            )
        source = source.detach()
        # numpy has no bfloat16.
        source = source.float() if str(source.dtype) == "torch.bfloat16" else source
    try:
        return np.asarray(source)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{field}: found {error}, expected an array. Give a numpy array.") from error


def floats(field: str, values: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """C-contiguous float32 of the wanted shape, where None stands for any length."""
    array = _as_array(field, values)
    wanted = (
        "(" + ", ".join("m" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    )
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        raise InvalidInputError(
            f"{field}: found shape {array.shape}, expected {wanted}. Give one row for each sample."
        )
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InvalidInputError(f"{field}: found {array.dtype}, expected floats. Convert it to float32.")
    # What float32 cannot hold becomes Inf here, which is then refused with its place.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def integers(field: str, values: ArrayLike, dtype: type[Any]) -> NDArray[Any]:
    """C-contiguous integers (m,) of ``dtype``; values that do not fit are refused."""
    array = _as_array(field, values)
    if array.ndim != 1:
        raise InvalidInputError(
            f"{field}: found shape {array.shape}, expected (m,). Give one value for each row."
        )
    if array.dtype.kind not in "iu" and array.size > 0:
        raise InvalidInputError(f"{field}: found {array.dtype}, expected integers. Convert it to int64.")
    if array.size > 0:
        limits = np.iinfo(dtype)
        smallest, largest = int(array.min()), int(array.max())
        if smallest < limits.min or largest > limits.max:
            raise InvalidInputError(
                f"{field}: found values from {smallest} to {largest}, expected at most {limits.max}. "
                "Check where they come from."
            )
    return np.ascontiguousarray(array, dtype=dtype)


def room(field: str, out: NDArray[np.float32] | None, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The array to be filled: the caller's if it has the shape and the layout, or a new one."""
    if out is None:
        if math.prod(shape) > sys.maxsize // 4:
            raise MemoryError(f"{shape[0]} rows of {shape[1]} float32 do not fit into memory")
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{field}: found {type(out).__name__}, expected a numpy array or None.")
    found = f"{out.dtype} {out.shape}"
    if not out.flags.c_contiguous or not out.flags.writeable:
        found += ", " + ("read-only" if out.flags.c_contiguous else "not C-contiguous")
    elif out.dtype == np.float32 and out.shape == shape:
        return out
    raise InvalidInputError(
        f"{field}: found {found}, expected writable, C-contiguous float32 {shape}. "
        "Make it with np.empty(shape, np.float32)."
    )
