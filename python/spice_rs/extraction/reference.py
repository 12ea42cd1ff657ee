"""Gradients by plain autograd, which knows nothing of hooks: what those that the hooks form are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch


def plain_gradients(
    loss: Callable[[], torch.Tensor], tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """A loss and its gradient by each of the tensors; None where one takes no part in it.

    Args:
        loss: Makes the loss, a single number.
        tensors: Parameters. Whether they require gradients is as before afterwards, and no `.grad` is filled.
    """
    before = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            value = loss()
            if not value.requires_grad:
                return value.detach(), [None] * len(tensors)
            kind = value.device.type
            # As in the run, products of gradients are made as the forward left them, whatever the caller has on.
            off = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
            with off:
                gradients = torch.autograd.grad(value, list(tensors), allow_unused=True)
        return value.detach(), list(gradients)
    finally:
        for tensor, flag in zip(tensors, before, strict=True):
            tensor.requires_grad_(flag)


def part_of(name: str, gradients: Mapping[str, torch.Tensor | None]) -> torch.Tensor | None:
    """The gradient of the tracked parameter called `name`, which may be one expert's part ("…[3]") of a whole one."""
    if name in gradients:
        return gradients[name]
    whole, _, expert = name.rpartition("[")
    gradient = gradients[whole]
    return None if gradient is None else gradient[int(expert[:-1])]


def whole_name(name: str, known: Mapping[str, object]) -> str:
    """The name of the parameter that an expert's part belongs to; the name itself where it is known as such."""
    return name if name in known else name.rpartition("[")[0]
