"""The user's own data and loss: any torch module whose loss is a sum over samples.

A sample is whatever `data[i]` gives: a tensor, or a tuple, list or dict of tensors and numbers. Samples become a batch
by torch's `default_collate`, as in a DataLoader, and `loss_fn(model, batch)` makes one loss per sample of it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from spice_rs.data.layouts import TELLING_FIELDS
from spice_rs.data.reading import BadRecord
from spice_rs.data.samples import sample_hash
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.loss import OwnLossFunction
from spice_rs.extraction.transfer import to_device


class UnlikeSamplesError(InvalidInputError):
    """Samples whose tensors have different shapes make no batch."""


@dataclass(frozen=True)
class OwnSample:
    """One sample, by its place in the data; it counts as one token, so that sum and mean are the same."""

    index: int
    length: int = 1
    num_tokens: int = 1


class OwnTable:
    """All samples of data, as `batching.Table` has them."""

    def __init__(self, count: int) -> None:
        self.rows = np.arange(count, dtype=np.int64)
        self.lengths = self.num_tokens = np.ones(count, np.int32)

    def __getitem__(self, place: int) -> OwnSample:
        return OwnSample(int(self.rows[place]))


def is_own(data: Any, columns: Mapping[str, str] | None, loss_fn: Any) -> bool:
    """Whether the items of `data` are no records of text or tokens, and the loss takes them as they are.

    What is no mapping is no record. A mapping is one if a field of theirs is text, a list or null, or if it has rows of
    `input_ids` and of `labels`, unless the loss says that it wants the model: `loss_fn(model, batch)`.
    """
    if (
        columns
        or isinstance(data, Mapping)
        or not (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    ):
        return False
    if isinstance(data, str) or len(data) == 0:
        return False
    first = data[0]
    if not isinstance(first, Mapping) or _wants_model(loss_fn):
        return True
    known = [first[field] for field in TELLING_FIELDS if field in first]
    words = any(value is None or isinstance(value, str | list | tuple) for value in known)
    tokens = all(getattr(first.get(field), "ndim", None) == 1 for field in ("input_ids", "labels"))
    return not (words or tokens)


def _wants_model(loss_fn: Any) -> bool:
    """Whether the first argument of a loss has a name of a model."""
    try:
        names = list(inspect.signature(loss_fn).parameters)
    except (TypeError, ValueError):
        return False
    return names[:1] in (["model"], ["module"], ["net"], ["network"])


class OwnTask:
    """The user's loss of the user's data.

    Args:
        model: The module.
        data: data[i] is a sample.
        loss_fn: (model, batch) → losses (B,).
    """

    def __init__(self, model: torch.nn.Module, data: Any, loss_fn: OwnLossFunction) -> None:
        self.network = model
        self.data = data
        self.loss_fn = loss_fn

    def losses(self, samples: Sequence[OwnSample], length: int, device: torch.device) -> torch.Tensor:
        """Losses (B,)."""
        del length
        items = [self.data[sample.index] for sample in samples]
        try:
            batch = default_collate(items)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            others = f" and {len(items) - 1} others" if len(items) > 1 else ""
            reason = " ".join(str(error).split())[:200]
            raise UnlikeSamplesError(
                f"data[{samples[0].index}]{others}: found samples that make no batch ({reason}), expected tensors of one"
                " shape. Pad them, or set tokens_per_batch=1."
            ) from error
        return self.loss_fn(self.network, _moved(batch, device))

    def plain(self) -> OwnTask:
        """This one."""
        return self

    def of_model(self) -> None:
        """None: samples are not padded."""


@dataclass(frozen=True)
class Recognised:
    """By what a store recognises samples of the user's own.

    Attributes:
        fingerprint: Of all of them: their structure, types and values.
        hashes: (n,) int64, `sample_hash` of each.
        fields: Those that all samples have, if they are mappings with the same texts as keys; else None.
    """

    fingerprint: str
    hashes: NDArray[np.int64]
    fields: list[str] | None


def recognised(data: Any) -> Recognised:
    """Looks at every sample once: a data set may load them from disk, or draw them.

    Raises:
        InvalidInputError: A sample holds something that is no tensor, array, number or text.
    """
    digest = hashlib.sha256(f"samples:{len(data)}\n".encode())
    hashes = np.empty(len(data), np.int64)
    kinds: set[tuple[Any, ...] | None] = set()
    for index in range(len(data)):
        sample, place = data[index], f"data[{index}]"
        _digest(digest, sample, place)
        try:
            hashes[index] = sample_hash(sample)
        except BadRecord as error:
            raise InvalidInputError(f"{place}: {error}; convert it in the data set") from None
        kinds.add(tuple(sorted(sample, key=str)) if isinstance(sample, Mapping) else None)
    names = kinds.pop() if len(kinds) == 1 else None
    fields = list(names) if names and all(isinstance(name, str) for name in names) else None
    return Recognised(digest.hexdigest(), hashes, fields)


def _digest(digest: Any, value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        digest.update(b"{")
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _digest(digest, value[key], f"{place}[{key!r}]")
        digest.update(b"}")
    elif isinstance(value, str):
        digest.update(value.encode() + b"\0")
    elif isinstance(value, list | tuple):
        digest.update(b"(")
        for number, each in enumerate(value):
            _digest(digest, each, f"{place}[{number}]")
        digest.update(b")")
    else:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        array = np.ascontiguousarray(value)
        if array.dtype.kind not in "biufc":
            raise InvalidInputError(
                f"{place}: found {type(value).__name__}, expected tensors, arrays and numbers; convert it in the data set"
            )
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return to_device(batch, device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(value, device) for value in batch)
    return batch
