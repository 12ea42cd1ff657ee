"""What callers give to a store, as the core takes it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spice_rs.arguments import has_truth_values, refused
from spice_rs.errors import InvalidInputError


def json_object(value: Mapping[str, Any] | None) -> str:
    """JSON text of a mapping."""
    if value is not None and not isinstance(value, Mapping):
        raise refused("provenance", value, "a mapping of plain JSON", "Give names and what they stand for.")
    try:
        return json.dumps(dict(value or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"provenance: found {error}, expected plain JSON. Record names, numbers and hashes."
        ) from error


def as_array(field: str, values: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """A numpy array of the values, of the wanted shape, where None stands for any length. Nothing is copied but lists.

    Tensors are recognised by their methods, so that torch is not imported.
    """
    source: Any = values
    if hasattr(source, "detach") and hasattr(source, "device"):
        if str(source.device) != "cpu":
            raise InvalidInputError(
                f"{field}: found a tensor on {source.device}, expected one on the CPU. Call .cpu() on it."
            )
        source = source.detach()
        check_shape(field, tuple(source.shape), shape)
        # numpy has no bfloat16.
        source = source.float() if str(source.dtype) == "torch.bfloat16" else source
    try:
        array = np.asarray(source)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{field}: found {error}, expected an array. Give a numpy array.") from error
    check_shape(field, array.shape, shape)
    return array


def check_shape(field: str, found: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    """Refuse a shape other than the wanted one, where None stands for any length."""
    if len(found) == len(wanted) and all(n is None or n == m for n, m in zip(wanted, found, strict=True)):
        return
    lengths = ", ".join("m" if n is None else str(n) for n in wanted)
    text = f"({lengths},)" if len(wanted) == 1 else f"({lengths})"
    remedy = "one row for each sample" if len(wanted) == 2 else "one value for each row"
    raise InvalidInputError(f"{field}: found shape {found}, expected {text}. Give {remedy}.")


def is_as_stored(values: ArrayLike) -> bool:
    """Whether `floats` takes the values as they lie."""
    return isinstance(values, np.ndarray) and values.dtype == np.float32 and values.flags.c_contiguous


def floats(field: str, values: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """C-contiguous float32 of the wanted shape, where None stands for any length; a copy unless it is that already."""
    array = as_array(field, values, shape)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InvalidInputError(f"{field}: found {array.dtype}, expected floats. Convert it to float32.")
    # What float32 cannot hold becomes Inf here, which is then refused with its place.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def integers(field: str, values: ArrayLike, dtype: type[Any], length: int | None = None) -> NDArray[Any]:
    """C-contiguous integers (m,) of ``dtype``; values that do not fit are refused."""
    array = as_array(field, values, (length,))
    if (array.dtype.kind not in "iu" and array.size > 0) or has_truth_values(values):
        found = "bool" if has_truth_values(values) else array.dtype
        raise InvalidInputError(f"{field}: found {found}, expected integers. Convert it to int64.")
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
        raise InvalidInputError(
            f"{field}: found {type(out).__name__}, expected a numpy array or None. Make it with numpy.empty."
        )
    found = f"{out.dtype} {out.shape}"
    if not out.flags.c_contiguous or not out.flags.writeable:
        found += ", " + ("read-only" if out.flags.c_contiguous else "not C-contiguous")
    elif out.dtype == np.float32 and out.shape == shape:
        return out
    raise InvalidInputError(
        f"{field}: found {found}, expected writable, C-contiguous float32 {shape}. "
        "Make it with np.empty(shape, np.float32)."
    )
