"""Per-sample gradients from one forward and one backward of a whole batch.

A layer's gradient for one sample follows from its input and the gradient of its output (Goodfellow 2015, arXiv
1510.01799; `layers.py` has the kinds), as long as samples do not mix inside the model. The hooks catch the input on the
way forward and the gradient on the way back, and hand both to the projection at once.

No parameter takes part in autograd, so no weight gradient is computed and no `.grad` is filled. The graph
begins at the output of the first tracked layer; what lies below is never differentiated. A layer that runs
several times in one forward adds up, and so do layers that share a parameter, because columns are keyed by
the parameter's name.

Gradient checkpointing: without re-entrance a layer's second forward changes nothing. With it, gradients are taken in the
second forward; a layer that then gets none at all is an error by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.experts import ExpertsLayer
from spice_rs.extraction.layers import BatchShape, Layer
from spice_rs.extraction.projection import Projection


class GradientCapture:
    """Adds the projected per-sample gradients of `layers` to the current batch's rows."""

    def __init__(self, layers: Sequence[Layer | ExpertsLayer], projection: Projection) -> None:
        self.layers = layers
        self.projection = projection
        self._rows = torch.empty(0)
        self._shape = BatchShape(0, 0)
        self._blind: set[str] = set()  # ran where autograd was off
        self._seen: set[str] = set()  # ran where it was on

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are in place inside, and gone afterwards."""
        handles: list[Any] = []
        swapped: list[Any] = []
        try:
            for layer in self.layers:
                if isinstance(layer, ExpertsLayer):
                    layer.module.forward = partial(self._experts, layer, layer.module.forward)
                    swapped.append(layer.module)
                else:
                    hook = partial(self._forward, layer)
                    handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in swapped:
                del module.forward  # the instance's: the class's is there again

    @contextmanager
    def batch(self, samples: int, length: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Gives the rows (samples, dim) float32 that a forward and backward inside will fill.

        Raises:
            InvalidInputError: A layer ran without gradients alone.
        """
        self._rows = torch.zeros(samples, self.projection.dim, device=device)
        self._shape = BatchShape(samples, length)
        self._blind.clear()
        self._seen.clear()
        try:
            yield self._rows
            if self._blind - self._seen:
                raise InvalidInputError(
                    f"layer {min(self._blind - self._seen)!r} runs without gradients (inside no_grad, or re-entrant "
                    "checkpointing whose input needs none), so its own cannot be taken; use_reentrant=False, or leave "
                    "it out with target_modules"
                )
        finally:
            self._rows = torch.empty(0)

    def _forward(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor
    ) -> torch.Tensor:
        del module
        if not self._active(layer.name):
            return output
        values = (args[0] if args else next(iter(kwargs.values()))).detach()
        kept = layer.keep(self._shape, self.projection, values, output)
        shared = kept is not None and kept.data_ptr() == values.data_ptr()
        version = values._version

        def add(gradient: torch.Tensor) -> None:
            if (
                shared and values._version != version
            ):  # autograd checks this for what it saves; frozen weights save nothing
                raise InvalidInputError(
                    f"the input of layer {layer.name!r} is changed in place after the layer has seen it; leave the "
                    "layer out with target_modules"
                )
            errors = self._shape.by_sample(layer.name, gradient)
            layer.add(self.projection, self._rows, kept, errors)

        return self._tap(layer.output(self._shape, output), add)

    def _experts(
        self,
        layer: ExpertsLayer,
        forward: Callable[..., torch.Tensor],
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        if not self._active(layer.name):
            return forward(hidden_states, top_k_index, top_k_weights)
        return layer.forward(
            self._shape,
            self.projection,
            self._rows,
            self._tap,
            hidden_states,
            top_k_index,
            top_k_weights,
        )

    def _active(self, name: str) -> bool:
        """Whether gradients are taken: inside `batch`, and where autograd is on."""
        if self._rows.numel() == 0:
            return False
        enabled = bool(torch.is_grad_enabled())
        (self._seen if enabled else self._blind).add(name)
        return enabled

    @staticmethod
    def _tap(output: torch.Tensor, add: Callable[[torch.Tensor], None]) -> torch.Tensor:
        if not output.requires_grad:
            # Nothing below is tracked: the graph begins here. The copy is no leaf, so that a model may change
            # it in place, as some clip their queries.
            output = output.detach().requires_grad_(True).clone()
        output.register_hook(add)
        return output
