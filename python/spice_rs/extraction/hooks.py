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
from spice_rs.extraction.catch import Catch, Replaced
from spice_rs.extraction.layers import BatchShape, Layer
from spice_rs.extraction.projection import Projection


class GradientCapture:
    """Adds the projected per-sample gradients of `layers` to the current batch's rows."""

    def __init__(self, layers: Sequence[Layer | Replaced], projection: Projection) -> None:
        self.layers = layers
        self.projection = projection
        self._catch: Catch | None = None
        self._blind: set[str] = set()  # ran where autograd was off
        self._seen: set[str] = set()  # ran where it was on

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are in place inside, and gone afterwards."""
        handles: list[Any] = []
        replaced: list[tuple[Any, Any]] = []
        try:
            for layer in self.layers:
                if isinstance(layer, Layer):
                    hook = partial(self._forward, layer)
                    handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
                else:
                    replaced.append((layer.module, vars(layer.module).get("forward")))
                    layer.module.forward = partial(self._replaced, layer, layer.module.forward)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, forward in replaced:
                if forward is None:
                    del module.forward  # the instance's: the class's is there again
                else:
                    module.forward = forward  # as others put it there

    @contextmanager
    def batch(self, samples: int, length: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Gives the rows (samples, dim) float32 that a forward and backward inside will fill.

        Raises:
            InvalidInputError: A layer ran without gradients alone.
        """
        rows = torch.zeros(samples, self.projection.dim, device=device)
        self._catch = Catch(BatchShape(samples, length), self.projection, rows)
        self._blind.clear()
        self._seen.clear()
        try:
            yield rows
            if self._blind - self._seen:
                raise InvalidInputError(
                    f"layer {min(self._blind - self._seen)!r} runs without gradients (inside no_grad, or re-entrant "
                    "checkpointing whose input needs none), so its own cannot be taken; use_reentrant=False, or leave "
                    "it out with target_modules"
                )
        finally:
            self._catch = None

    def _forward(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor
    ) -> torch.Tensor:
        del module
        catch = self._active(layer.name)
        values = args[0] if args else next(iter(kwargs.values()))
        return output if catch is None else catch.output(layer, values, output)

    def _replaced(self, layer: Replaced, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        catch = self._active(layer.name)
        return forward(*args, **kwargs) if catch is None else layer.forward(catch, forward, *args, **kwargs)

    def _active(self, name: str) -> Catch | None:
        """Where gradients go, if they are taken: inside `batch`, and where autograd is on."""
        if self._catch is None:
            return None
        enabled = bool(torch.is_grad_enabled())
        (self._seen if enabled else self._blind).add(name)
        return self._catch if enabled else None
