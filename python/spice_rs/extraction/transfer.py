"""Copies between the host and a GPU that run beside its work; on a CPU there is nothing to copy.

A copy is asynchronous only if the host's side is pinned memory, and it runs beside the kernels of the next batch only on
a stream of its own. torch keeps pinned blocks and hands them out again once their copy is over.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`, without waiting for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class HostCopy:
    """Values on their way to the host.

    Args:
        values: Tensors of one device, not to be changed afterwards. Work that was queued on them before is waited for by
            the copy, and not by the caller.
    """

    def __init__(self, *values: torch.Tensor) -> None:
        self._values = values
        self._done: Any = None
        device = values[0].device
        if device.type != "cuda":
            return
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._values = tuple(
                torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(each, non_blocking=True)
                for each in values
            )
        for each in values:
            each.record_stream(stream)  # not to be handed out again while it is read
        self._done = stream.record_event()

    def wait(self) -> tuple[torch.Tensor, ...]:
        """The values on the host; returns when they are there. Others may run meanwhile: no lock is held."""
        if self._done is not None:
            self._done.synchronize()
        return tuple(each.cpu() for each in self._values)


@cache
def _stream(device: torch.device) -> Any:
    """The stream for copies to the host: one for each GPU."""
    return torch.cuda.Stream(device)
