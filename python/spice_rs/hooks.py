"""Per-sample gradients of linear layers, from one forward and one backward of a whole batch.

A linear layer y = W a + b with activations a (B, T, in) and output gradients e = ∂L/∂y (B, T, out) has the
per-sample gradients ∂L_i/∂W = Σ_t e_it a_itᵀ and ∂L_i/∂b = Σ_t e_it (Goodfellow 2015, arXiv 1510.01799), as
long as samples do not mix inside the model. The hooks catch a on the way forward and e on the way back, and
hand the factors to the projection at once.

No parameter takes part in autograd, so no weight gradient is computed and no `.grad` is filled. The graph
begins at the output of the first tracked layer; what lies below is never differentiated. A layer that runs
several times in one forward adds up, and so do layers that share a parameter, because columns are keyed by
the parameter's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spice_rs.errors import InvalidInputError
from spice_rs.projection import Parameter, Projection


@dataclass(frozen=True)
class Layer:
    """A linear layer that is tracked.

    Attributes:
        name: In `named_modules()`.
        module: `nn.Linear`, or transformers' `Conv1D`.
        weight: (out, in), or (in, out) if `transposed`; None if only the bias is tracked.
        bias: (out,), or None.
        transposed: The weight is stored as (in, out): Conv1D.
    """

    name: str
    module: torch.nn.Module
    weight: Parameter | None
    bias: Parameter | None
    transposed: bool

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The weight and the bias, as far as tracked."""
        return tuple(parameter for parameter in (self.weight, self.bias) if parameter is not None)


class GradientCapture:
    """Adds the projected per-sample gradients of `layers` to the current batch's rows."""

    def __init__(self, layers: list[Layer], projection: Projection) -> None:
        self.layers = layers
        self.projection = projection
        self._rows = torch.empty(0)
        self._length = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are in place inside, and gone afterwards."""
        handles = [
            layer.module.register_forward_hook(partial(self._forward, layer), with_kwargs=True)
            for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def batch(self, samples: int, length: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Gives the rows (samples, dim) float32 that a forward and backward inside will fill."""
        self._rows = torch.zeros(samples, self.projection.dim, device=device)
        self._length = length
        try:
            yield self._rows
        finally:
            self._rows = torch.empty(0)

    def _forward(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor
    ) -> torch.Tensor:
        del module
        if self._rows.numel() == 0:
            return output  # a forward outside of `batch`
        activations = self._by_sample(layer, (args[0] if args else kwargs["input"]).detach())  # (B, T, in)
        kept: torch.Tensor | None = None
        if layer.weight is not None:
            # Under autocast the product is made in the output's dtype: the factor is what it saw.
            kept = self.projection.reduce(
                layer.weight, 0 if layer.transposed else 1, activations.to(output.dtype)
            )
        if not output.requires_grad:
            # Nothing below is tracked: the graph begins here. The copy is no leaf, so that a model may change
            # it in place, as some clip their queries.
            output = output.detach().requires_grad_(True).clone()
        output.register_hook(partial(self._backward, layer, kept))
        return output

    def _backward(self, layer: Layer, kept: torch.Tensor | None, gradient: torch.Tensor) -> None:
        errors = self._by_sample(layer, gradient)  # (B, T, out)
        rows, projection = self._rows, self.projection
        if layer.weight is not None and kept is not None:
            reduced = projection.reduce(layer.weight, 1 if layer.transposed else 0, errors)
            left, right = (kept, reduced) if layer.transposed else (reduced, kept)
            projection.add_outer(rows, layer.weight, left, right)
        if layer.bias is not None:
            projection.add_flat(rows, layer.bias, 0, errors.sum(dim=1, dtype=torch.float32))

    def _by_sample(self, layer: Layer, values: torch.Tensor) -> torch.Tensor:
        """(B, T, features) of a tensor that may be flattened to (B·T, features) or lack T."""
        samples = self._rows.shape[0]
        if values.dim() == 3 and values.shape[0] == samples:
            return values
        if values.dim() > 3 and values.shape[0] == samples:
            return values.flatten(1, -2)
        if values.dim() == 2 and values.shape[0] == samples * self._length:
            return values.view(samples, self._length, -1)
        if values.dim() == 2 and values.shape[0] == samples:
            return values.unsqueeze(1)
        raise InvalidInputError(
            f"layer {layer.name!r} sees a tensor of shape {tuple(values.shape)} in a batch of {samples} "
            f"samples of {self._length} tokens, so its gradient cannot be told apart by sample (a routed "
            "expert?); leave it out with target_modules"
        )
