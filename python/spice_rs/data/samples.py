"""Hashes of single records and of samples of the user's own: what rows of a store are recognised by.

Torch is not imported: tensors are told by their methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spice_rs.data.reading import BadRecord, found

HASH_BYTES = 8
"""Of a hash, as an integer of 64 bits with its sign."""


def short_hash(content: bytes) -> int:
    """Return a hash of bytes that fits an int64."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=HASH_BYTES).digest(), "little", signed=True)


def sample_hash(sample: Any, fields: Sequence[str] | None = None) -> int:
    """Return a hash of a sample of the user's own, an int64: its structure and values.

    Numbers count by their value, whatever type holds them: a list and a tensor of the same numbers are the same, so that
    it does not matter in which format a data set hands them out.

    Args:
        sample: a tensor, array, number or text, or a tuple, list or mapping of such.
        fields: of a mapping, the fields that count; None for all.

    Raises:
        BadRecord: it holds something else, or lacks a field.
    """
    if isinstance(sample, Mapping) and fields is not None:
        for name in fields:
            if name not in sample:
                raise BadRecord(
                    "missing field", f"found {', '.join(map(str, sample))}, expected {name!r} too"
                )
        sample = {name: sample[name] for name in fields}
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    _feed(digest, sample)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        digest.update(b"{")
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, value[key])
        digest.update(b"}")
    elif isinstance(value, str):
        digest.update(b"s" + value.encode("utf-8", "surrogatepass") + b"\0")
    else:
        array = _numbers(value)
        if array is not None:
            kind = "f" if array.dtype.kind == "f" else array.dtype.kind.replace("u", "i").replace("b", "i")
            plain = array.astype({"f": "<f8", "c": "<c16"}.get(kind, "<i8"))
            digest.update(f"{kind}{array.shape}".encode() + np.ascontiguousarray(plain).tobytes())
        elif isinstance(value, list | tuple):
            digest.update(b"(")
            for each in value:
                _feed(digest, each)
            digest.update(b")")
        else:
            raise BadRecord("wrong type", f"found {found(value)}, expected tensors, arrays, numbers and text")


def _numbers(value: Any) -> np.ndarray[Any, Any] | None:
    """The value as an array, if it is made of numbers alone."""
    if hasattr(value, "detach") and hasattr(value, "device"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths
        return None
    return array if array.dtype.kind in "biufc" else None
