"""Batches by token budget, longest first, so that samples of like length share one and padding stays small.

A `Task` is what the gradients are of: it makes the losses of a batch, of text here, of the user's own data in
`own_data.py`.

Padding is on the right: with causal attention no learned token sees it, and position ids need no correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from spice_rs.data.dataset import IGNORED, Example
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


def longest_first(samples: Sequence[Sample]) -> list[Sample]:
    """Samples by falling length, ties by index: the batch that needs most memory comes first."""
    return sorted(samples, key=lambda sample: (-sample.length, sample.index))


def take_batch(samples: Sequence[Sample], start: int, tokens: int, most: int) -> Sequence[Sample]:
    """The samples from `start` on that fit: B·T ≤ tokens and B ≤ most, but at least one."""
    return samples[start : start + max(1, min(tokens // samples[start].length, most))]


def one_by_one(samples: Sequence[Sample], tokens: int) -> bool:
    """Whether no two of the samples share a batch of so many padded tokens, however they are cut."""
    return len(take_batch(longest_first(samples)[-2:], 0, tokens, 2)) < 2


def collate(examples: Sequence[Example], device: torch.device, length: int = 0) -> Batch:
    """Pads to the longest example or `length`. The pad id is 0; by mask and labels no value depends on it."""
    shape = (len(examples), max(length, *(example.length for example in examples)))
    ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = example.input_ids
        mask[row, :length] = 1
        labels[row, :length] = example.labels
    host = torch.from_numpy(labels)
    return Batch(
        to_device(torch.from_numpy(ids), device),
        to_device(torch.from_numpy(mask), device),
        to_device(host, device),
        Learned.of(host, device),
    )
