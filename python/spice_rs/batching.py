"""Batches by token budget, longest first, so that samples of like length share one and padding stays small.

Padding is on the right: with causal attention no learned token sees it, and position ids need no correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spice_rs.dataset import IGNORED, Example


@dataclass(frozen=True)
class Batch:
    """Padded tensors of one batch, all (B, T) int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def longest_first(examples: Sequence[Example]) -> list[Example]:
    """Examples by falling length, ties by index: the batch that needs most memory comes first."""
    return sorted(examples, key=lambda example: (-len(example.input_ids), example.index))


def take_batch(examples: Sequence[Example], start: int, tokens: int, samples: int) -> Sequence[Example]:
    """The examples from `start` on that fit: B·T ≤ tokens and B ≤ samples, but at least one."""
    longest = len(examples[start].input_ids)
    return examples[start : start + max(1, min(tokens // longest, samples))]


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pads to the longest example. The pad id is 0; by mask and labels no value depends on it."""
    shape = (len(examples), max(len(example.input_ids) for example in examples))
    ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = example.input_ids
        mask[row, :length] = 1
        labels[row, :length] = example.labels
    arrays = (torch.from_numpy(array).to(device, non_blocking=True) for array in (ids, mask, labels))
    return Batch(*arrays)
