"""Batches by token budget, longest first, so that samples of like length share one and padding stays small.

A `Task` is what the gradients are of: it makes the losses of a batch, of text here, of the user's own data in
`own_data.py`.

Padding is on the right: with causal attention no learned token sees it, and position ids need no correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from spice_rs.data.dataset import IGNORED, Example
from spice_rs.data.token_file import TokenFile
from spice_rs.extraction.loss import Learned, SummedLoss
from spice_rs.extraction.transfer import to_device


class Sample(Protocol):
    """What a batch is made of."""

    @property
    def index(self) -> int:
        """Row of the data."""

    @property
    def length(self) -> int:
        """Its tokens, or 1 where it has none."""

    @property
    def num_tokens(self) -> int:
        """Learned tokens, or 1."""


class Table(Protocol):
    """Many samples, of which each is made when it is asked for."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """(n,) rows of the data."""

    @property
    def lengths(self) -> NDArray[Any]:
        """(n,) integers, as `Sample.length`."""

    @property
    def num_tokens(self) -> NDArray[Any]:
        """(n,) integers, as `Sample.num_tokens`."""

    def __getitem__(self, place: int, /) -> Sample:
        """One of them."""


class Samples(Sequence[Sample]):
    """Some samples of a table in some order, at eight bytes each: those of a batch, of a rank, of a run.

    Args:
        table: All.
        places: (n,) int64, which of them.
    """

    def __init__(self, table: Table, places: NDArray[np.int64]) -> None:
        self.table = table
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, which: int) -> Sample: ...

    @overload
    def __getitem__(self, which: slice | NDArray[Any]) -> Samples: ...

    def __getitem__(self, which: int | slice | NDArray[Any]) -> Sample | Samples:
        if isinstance(which, slice | np.ndarray):
            return Samples(self.table, self.places[which])
        return self.table[int(self.places[which])]

    def __iter__(self) -> Iterator[Sample]:
        return (self.table[place] for place in self.places.tolist())

    def of_rows(self, rows: Sequence[int]) -> Samples:
        """Those of the table with these rows of the data, in their order; they must be there, and the table ascending."""
        return Samples(self.table, np.searchsorted(self.table.rows, np.array(rows, np.int64)))


def chosen(samples: Sequence[Sample], which: NDArray[Any]) -> Sequence[Sample]:
    """Those at the places (m,) int64, or where a mask (n,) bool says so."""
    if isinstance(samples, Samples):
        return samples[which]
    places = np.flatnonzero(which) if which.dtype == np.bool_ else which
    return [samples[place] for place in places.tolist()]


def together(parts: Sequence[Sequence[Sample]]) -> Sequence[Sample]:
    """All samples of some parts of one sequence, at least one, in their order."""
    own = [part for part in parts if isinstance(part, Samples)]
    if len(own) < len(parts):
        return [sample for part in parts for sample in part]
    return Samples(own[0].table, np.concatenate([part.places for part in own]))


def rows_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(n,) rows of the data."""
    if isinstance(samples, Samples):
        return samples.table.rows[samples.places]
    return np.array([sample.index for sample in samples], dtype=np.int64)


def lengths_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(n,) tokens of each."""
    if isinstance(samples, Samples):
        return samples.table.lengths[samples.places].astype(np.int64)
    return np.array([sample.length for sample in samples], dtype=np.int64)


def learned_of(samples: Sequence[Sample]) -> NDArray[np.int32]:
    """(n,) learned tokens of each."""
    if isinstance(samples, Samples):
        return samples.table.num_tokens[samples.places].astype(np.int32)
    return np.array([sample.num_tokens for sample in samples], dtype=np.int32)


class Task(Protocol):
    """What the gradients are of."""

    @property
    def network(self) -> torch.nn.Module:
        """The model."""

    def losses(self, samples: Sequence[Any], length: int, device: torch.device) -> torch.Tensor:
        """One loss per sample, (B,), of samples padded to `length`."""

    def plain(self) -> Task:
        """The same without what makes it fast."""

    def of_model(self) -> Task | None:
        """The same with a loss that is known to heed padding, where the own one may not."""


class TextTask:
    """The summed loss of a language model's learned tokens."""

    def __init__(self, loss: SummedLoss) -> None:
        self.loss = loss

    @property
    def network(self) -> torch.nn.Module:
        """The model."""
        return self.loss.model

    def losses(self, samples: Sequence[Example], length: int, device: torch.device) -> torch.Tensor:
        """Losses (B,) float32."""
        batch = collate(samples, device, length)
        return self.loss(batch.input_ids, batch.attention_mask, batch.labels, batch.learned)

    def plain(self) -> TextTask:
        """The same, of logits at all positions."""
        return TextTask(SummedLoss(self.loss.model, None, self.loss.loss_fn))

    def of_model(self) -> TextTask | None:
        """The cross-entropy, in place of a loss_fn."""
        return None if self.loss.loss_fn is None else TextTask(SummedLoss(self.loss.model, None, None))


@dataclass(frozen=True)
class Batch:
    """Padded tensors of one batch, all (B, T) int64, and what of it is learned."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    learned: Learned


def longest_first(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Samples by falling length, ties by index: the batch that needs most memory comes first."""
    return chosen(samples, np.lexsort((rows_of(samples), -lengths_of(samples))))


def take_batch(samples: Sequence[Sample], start: int, tokens: int, most: int) -> Sequence[Sample]:
    """The samples from `start` on that fit: B·T ≤ tokens and B ≤ most, but at least one."""
    longest = int(lengths_of(samples[start : start + 1])[0])
    return samples[start : start + max(1, min(tokens // longest, most))]


def one_by_one(samples: Sequence[Sample], tokens: int) -> bool:
    """Whether no two of the samples share a batch of so many padded tokens, however they are cut."""
    return len(take_batch(longest_first(samples)[-2:], 0, tokens, 2)) < 2


def collate(examples: Sequence[Example], device: torch.device, length: int = 0) -> Batch:
    """Pads to the longest example or `length`. The pad id is 0; by mask and labels no value depends on it."""
    lengths = lengths_of(examples)
    shape = (len(examples), max(length, int(lengths.max())))
    ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, (own, learned) in enumerate(_tokens_of(examples)):
        ids[row, : len(own)] = own
        labels[row, : len(own)] = learned
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    host = torch.from_numpy(labels)
    return Batch(
        to_device(torch.from_numpy(ids), device),
        to_device(torch.from_numpy(mask), device),
        to_device(host, device),
        Learned.of(host, device),
    )


def _tokens_of(examples: Sequence[Example]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Ids and labels of each."""
    if isinstance(examples, Samples) and isinstance(examples.table, TokenFile):
        return examples.table.tokens(examples.places)
    return ((example.input_ids, example.labels) for example in examples)
