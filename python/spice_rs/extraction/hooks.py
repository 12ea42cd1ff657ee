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

What a model does with a layer's parameter outside of that layer's forward (`x @ self.head.weight.T`) no hook sees. Such
a use is found before the run, and is an error: `watched`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.catch import Catch, Replaced
from spice_rs.extraction.gated import gated_call
from spice_rs.extraction.layers import BatchShape, Layer, NormLayer, leave_out
from spice_rs.extraction.projection import Projection


class GradientCapture:
    """Adds the projected per-sample gradients of `layers` to the current batch's rows.

    Attributes:
        layers: Those that are tracked.
        projection: What gradients go through; may be changed between batches.
        moved: Called whenever the batch has gone through a layer, forward or back.
        calls: Name of each layer that ran while watched → the number and the names of what it was last called with.
    """

    def __init__(self, layers: Sequence[Layer | Replaced], projection: Projection) -> None:
        self.layers = layers
        self.projection = projection
        self._catch: Catch | None = None
        self._blind: set[str] = set()  # ran where autograd was off
        self._seen: set[str] = set()  # ran where it was on
        # While watched: id of a parameter → forwards that run and may use it.
        self._inside: dict[int, int] = {}
        self.calls: dict[str, Any] = {}
        self.moved: Callable[[], object] = lambda: None
        self._gated: set[str] = set()  # norms that were tried with all that they are called with

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are in place inside, and gone afterwards."""
        handles: list[Any] = []
        replaced: list[tuple[Any, Any]] = []
        try:
            for layer in self.layers:
                if isinstance(layer, Layer):
                    hook = partial(self._forward, layer)
                    # Before the hooks of others, which may make something else of the layer's output.
                    handles.append(layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
                else:
                    replaced.append((layer.module, vars(layer.module).get("forward")))
                    layer.module.forward = partial(self._replaced, layer, layer.module.forward)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, forward in replaced:
                if forward is None:
                    vars(module).pop("forward", None)  # the instance's: the class's is there again
                else:
                    module.forward = forward  # as others put it there

    @contextmanager
    def batch(self, samples: int, length: int, device: torch.device) -> Iterator[torch.Tensor]:
        """Gives the rows (samples, dim) float32 that a forward and backward inside will fill.

        Raises:
            InvalidInputError: A layer ran without gradients alone.
        """
        rows = torch.zeros(samples, self.projection.dim, dtype=torch.float32, device=device)
        self._catch = Catch(BatchShape(samples, length), self.projection, rows, self.moved)
        self._blind.clear()
        self._seen.clear()
        try:
            yield rows
            blind = self._blind - self._seen
            if blind:
                name = min(blind)
                raise InvalidInputError(
                    f"layer {name!r} runs without gradients (inside no_grad, or re-entrant checkpointing whose input needs "
                    "none), so its own cannot be taken; use_reentrant=False, or "
                    f"{leave_out(self._widest(name, blind))}"
                )
        finally:
            self._catch = None

    def _widest(self, name: str, blind: set[str]) -> str:
        """The module around a layer without any layer that is not blind, too, or the layer itself."""
        while parent := name.rpartition(".")[0]:
            inside = {layer.name for layer in self.layers if layer.name.startswith(f"{parent}.")}
            if not inside <= blind:
                break
            name = parent
        return name

    @contextmanager
    def watched(self, length: int, device: torch.device) -> Iterator[Callable[[torch.Tensor], list[str]]]:
        """Inside, a tracked parameter takes part in autograd wherever it is used outside of its own layers' forwards.

        So the graph of a forward made here says what the hooks would miss: reading a weight's dtype or using its values as
        constants leaves no trace in it. The hooks must be attached.

        Args:
            length: Tokens of the single sample that is computed.
            device: Where.

        Yields:
            Loss → names of the parameters that are used in this way, sorted.
        """
        tensors = {name: tensor for layer in self.layers for name, tensor in layer.tensors.items()}
        names = {id(tensor): name for name, tensor in tensors.items()}
        before = [(tensor, tensor.requires_grad) for tensor in tensors.values()]
        handles: list[Any] = []
        self._inside = dict.fromkeys(names, 0)
        self.calls.clear()
        rows = torch.zeros(1, self.projection.dim, dtype=torch.float32, device=device)
        # So that all runs as it will in the run.
        self._catch = Catch(BatchShape(1, length), self.projection, rows)
        try:
            for layer in self.layers:
                # The others say so by themselves, also where forward is called directly.
                if isinstance(layer, Layer):
                    enter, leave = partial(self._enter, layer), partial(self._leave, layer)
                    handles.append(layer.module.register_forward_pre_hook(enter))
                    handles.append(layer.module.register_forward_hook(leave, always_call=True, prepend=True))
            for tensor in tensors.values():
                tensor.requires_grad_(True)
            yield lambda loss: sorted({names[each] for each in _leaves(loss) if each in names})
        finally:
            self._inside, self._catch = {}, None
            for handle in handles:
                handle.remove()
            for tensor, flag in before:
                tensor.requires_grad_(flag)

    def _enter(self, layer: Layer | Replaced, *_: Any) -> None:
        for tensor in layer.tensors.values() if self._inside else ():
            self._inside[id(tensor)] += 1
            tensor.requires_grad_(False)

    def _leave(self, layer: Layer | Replaced, *_: Any) -> None:
        for tensor in layer.tensors.values() if self._inside else ():
            self._inside[id(tensor)] -= 1
            tensor.requires_grad_(self._inside[id(tensor)] == 0)  # a tied one may be in use by another

    def _forward(
        self, layer: Layer, module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor
    ) -> torch.Tensor:
        catch = self._active(layer.name)
        if catch is None:
            return output
        self._note(layer.name, args, kwargs)
        values, more = _input(module, args, kwargs)
        for what, found in (("input", values), ("output", output)):
            if not isinstance(found, torch.Tensor):
                raise InvalidInputError(
                    f"layer {layer.name!r}: found {type(found).__name__} as its {what}, expected a tensor, so its gradient"
                    f" cannot be taken; {leave_out(layer.name)}"
                )
        if more and isinstance(layer, NormLayer):
            trying = layer.name not in self._gated
            layer = gated_call(layer, catch.shape, args, kwargs, trying=trying)
            self._gated.add(layer.name)
        return catch.output(layer, values, output)

    def _replaced(self, layer: Replaced, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        catch = self._active(layer.name)
        if catch is not None:
            self._note(layer.name, args, kwargs)
        self._enter(layer)
        try:
            return (
                forward(*args, **kwargs) if catch is None else layer.forward(catch, forward, *args, **kwargs)
            )
        finally:
            self._leave(layer)

    def _note(self, name: str, args: Any, kwargs: Any) -> None:
        """While watched: how a layer is called."""
        if self._inside:
            self.calls[name] = len(args), tuple(sorted(kwargs))

    def _active(self, name: str) -> Catch | None:
        """Where gradients go, if they are taken: inside `batch`, and where autograd is on."""
        if self._catch is None:
            return None
        enabled = bool(torch.is_grad_enabled())
        (self._seen if enabled else self._blind).add(name)
        self.moved()
        return self._catch if enabled else None


def _input(module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, bool]:
    """What a module is called with: its input, and whether there is more."""
    if args:
        return args[0], any(each is not None for each in (*args[1:], *kwargs.values()))
    name = next(iter(inspect.signature(module.forward).parameters), "")
    name = name if name in kwargs else next(iter(kwargs), "")
    return kwargs.get(name), any(each is not None for key, each in kwargs.items() if key != name)


def _leaves(loss: torch.Tensor) -> set[int]:
    """The ids of the tensors that a graph begins with."""
    found: set[int] = set()
    nodes: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [each for each, _ in node.next_functions]
    return found
