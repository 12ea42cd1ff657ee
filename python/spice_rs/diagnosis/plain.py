"""Rows by plain autograd: a forward and a backward for each sample, without hooks, masks, padding and cut logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from spice_rs.data.dataset import IGNORED, Example
from spice_rs.extraction.batching import Sample
from spice_rs.extraction.gradients import multiplied
from spice_rs.extraction.loss import logits_of, takes_cache
from spice_rs.extraction.own_data import OwnTask
from spice_rs.extraction.preparation import Extraction
from spice_rs.extraction.projection import Projection
from spice_rs.extraction.reference import part_of, plain_gradients, whole_name
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.views import combined

_AT_ONCE = 1 << 20  # coordinates projected at a time


def plain_rows(
    ready: Extraction, samples: Sequence[Sample], settings: Settings, projection: Projection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, dim) and losses (n,) of the samples.

    Args:
        ready: The model, frozen; it is frozen again afterwards.
        samples: Any of its samples.
        settings: For the loss.
        projection: One whose `add_flat` is the whole projection.
    """
    parts = []
    for view in ready.views:
        with view.installed():
            parts.append(_view_rows(ready, samples, settings, view.seen(projection)))
    return combined(parts, ready.views)


def _view_rows(
    ready: Extraction, samples: Sequence[Sample], settings: Settings, projection: Projection
) -> tuple[torch.Tensor, torch.Tensor]:
    """At one checkpoint."""
    named = dict(ready.network.named_parameters())
    wanted = list(dict.fromkeys(whole_name(parameter.name, named) for parameter in ready.tracked.parameters))
    rows = torch.zeros(len(samples), projection.dim, dtype=torch.float32, device=ready.inputs.device)
    losses = []
    for row, sample in zip(rows, samples, strict=True):
        loss, gradients = plain_gradients(
            partial(_loss, ready, sample, settings), [named[name] for name in wanted]
        )
        losses.append(loss)
        found = dict(zip(wanted, gradients, strict=True))
        for parameter in ready.tracked.parameters:
            gradient = part_of(parameter.name, found)
            if gradient is None:
                continue
            values = gradient.reshape(1, -1).float()
            for start in range(0, values.shape[1], _AT_ONCE):
                part = values[:, start : start + _AT_ONCE].clone()
                projection.add_flat(row[None], parameter, start, part)
    return rows, torch.stack(losses)


def _loss(ready: Extraction, sample: Any, settings: Settings) -> torch.Tensor:
    device = ready.inputs.device
    if not isinstance(sample, Example):
        assert isinstance(ready.task, OwnTask)
        with multiplied(device, ready.autocast):
            return ready.task.losses([sample], 1, device).sum()
    ids = torch.from_numpy(sample.input_ids).to(device, torch.int64)[None]
    labels = torch.from_numpy(sample.labels).to(device, torch.int64)[None]
    with multiplied(device, ready.autocast):
        options = {"use_cache": False} if takes_cache(ready.network) else {}
        logits = logits_of(ready.network(input_ids=ids, **options))
        if settings.loss_fn is not None:
            return settings.loss_fn(logits, labels).sum()
    wide = logits[0, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, labels[0, 1:], ignore_index=IGNORED, reduction="sum")
