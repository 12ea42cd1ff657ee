"""How the gradient of one product is caught: its input on the way forward, its output's gradient on the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.layers import BatchShape, Layer, leave_out
from spice_rs.extraction.projection import Parameter, Projection


@dataclass(frozen=True)
class Catch:
    """Where the gradients of the batch that is computed go.

    Attributes:
        shape: Of the batch.
        projection: What they are projected by.
        rows: (B, dim) float32, what they are added to.
        moved: Called for each gradient that was caught.
    """

    shape: BatchShape
    projection: Projection
    rows: torch.Tensor
    moved: Callable[[], object] = lambda: None

    def output(self, layer: Layer, values: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The output of a layer to go on with: its gradient will be added to the rows.

        Args:
            layer: The layer.
            values: Its input.
            output: Its output.
        """
        values = values.detach()
        kept = layer.keep(self.shape, self.projection, values, output)
        shared = kept is not None and kept.data_ptr() == values.data_ptr()
        version = values._version

        def add(gradient: torch.Tensor) -> None:
            if (
                shared and values._version != version
            ):  # autograd checks this for what it saves; frozen weights save nothing
                raise InvalidInputError(
                    f"the input of layer {layer.name!r} is changed in place after the layer has seen it; "
                    f"{leave_out(layer.name)}"
                )
            errors = self.shape.by_sample(layer.name, gradient)
            layer.add(self.projection, self.rows, kept, errors)

        return self.tap(layer.output(self.shape, output), add)

    def tap(self, output: torch.Tensor, add: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """The output to go on with: `add` is called with its gradient."""
        if not output.requires_grad:
            # Nothing below is tracked: the graph begins here. The copy is no leaf, so that a model may change
            # it in place, as some clip their queries.
            output = output.detach().requires_grad_(True).clone()

        def caught(gradient: torch.Tensor) -> None:
            add(gradient)
            self.moved()

        output.register_hook(caught)
        return output


class Replaced(Protocol):
    """A layer whose module runs in another way while gradients are taken, to the same values."""

    @property
    def name(self) -> str:
        """In `named_modules()`."""

    @property
    def module(self) -> Any:
        """The module."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What is tracked."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name of a whole tracked parameter → the parameter."""

    def forward(self, catch: Catch, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the module gives, its gradients caught.

        Args:
            catch: The batch.
            forward: The module's own.
            args: For the module.
            kwargs: For the module.
        """
