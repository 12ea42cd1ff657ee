"""Before there are rows: whether those of this very model are right, at the cost of a few passes of short samples.

Hooks form gradients from what layers commonly do. A layer that does something else, a model that does not heed its
attention mask, a loss that takes a mean over the batch: all of them would give rows that are wrong without a word. So one
sample is computed as the run will compute it, and held against plain autograd, for one module of each kind (its class, its
place in the model without numbers, how it is called, what others have hooked to it); and one sample alone is held against
itself in a batch, padded.

What rounding may do to one sample (a token goes to another expert) is no fault: where there is more than one sample to try,
only what is off for two of them is.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.batching import Sample, Task, chosen, learned_of, lengths_of, together
from spice_rs.extraction.catch import Replaced
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.layers import Layer, is_quantised, leave_out
from spice_rs.extraction.memory import free_memory, out_of_memory
from spice_rs.extraction.own_data import OwnSample
from spice_rs.extraction.projection import NoProjection, Parameter
from spice_rs.extraction.reference import part_of, plain_gradients, whole_name
from spice_rs.nouns import counted

_TRIES = 3
_TOKENS, _LEARNED = 16, 4  # of a sample that is worth trying
_FLOOR = 1e-3  # gradients that are this small among all are judged as if they were not
_Thing = TypeVar("_Thing")
_Fault = TypeVar("_Fault")
MOST = (
    1 << 26
)  # coordinates that are compared at a time, but for a layer that has more: 256 MB for each sample

Compute = Callable[[Task, Sequence[Sample]], tuple[torch.Tensor, torch.Tensor]]
Losses = Callable[[Task, Sequence[Sample]], torch.Tensor]


@dataclass(frozen=True)
class Preflight:
    """The checks of one run.

    Attributes:
        capture: The hooks, attached.
        calls: Name of each layer that runs → how it is called.
        compute: Samples → rows and losses of them as one batch, with the projection that the capture has.
        losses: Samples → their losses, without the hooks.
        tolerance: Largest relative error.
        untried: Why gradients could not be held against autograd's, where they could not.
    """

    capture: GradientCapture
    calls: Mapping[str, Any]
    compute: Compute
    losses: Losses
    tolerance: float
    untried: list[str] = field(default_factory=list)
    _latest: list[tuple[Any, torch.Tensor]] = field(default_factory=list)

    def check_gradients(self, task: Task, samples: Sequence[Sample]) -> None:
        """Holds the gradients of one module of each kind against autograd's.

        Args:
            task: The loss.
            samples: Those to try, in this order, each alone.

        Raises:
            InvalidInputError: They disagree.
        """
        layers = self._kinds()
        if not layers:
            return
        fault = _twice(samples, lambda sample: self._disagreement(task, layers, sample))
        if fault is None:
            return
        sample, (layer, error) = fault
        raise InvalidInputError(
            f"layer {layer.name!r} ({type(layer.module).__name__}): found a gradient that is off by {error:.1e} of its "
            f"length in row {sample.index}, expected that of plain autograd, within {self.tolerance:.0e}. "
            f"`spice-rs doctor` checks more; {leave_out(layer.name)}"
        )

    def check_batches(self, task: Task, pairs: Sequence[tuple[Sample, Sample]]) -> None:
        """Holds the row of a sample alone against its row in a batch.

        Args:
            task: The loss.
            pairs: The sample, and one that is no shorter to go with it; those to try, in this order.

        Raises:
            InvalidInputError: The row depends on the batch.
        """
        layers = _least(self._kinds())
        if not layers:
            return

        def mixing(task: Task, pair: tuple[Sample, Sample]) -> float | None:
            error = self._mixing(task, layers, *pair)
            return None if error <= self.tolerance else error

        fault = _twice(pairs, partial(mixing, task))
        if fault is None:
            return
        (sample, other), error = fault
        padded = (
            f", padded from {sample.length} to {counted(other.length, 'token')}"
            if other.length > sample.length
            else ""
        )
        found = (
            f"row {sample.index}: found a gradient that is off by {error:.1e} of its length in one batch with row "
            f"{other.index}{padded}, expected the same as alone, within {self.tolerance:.0e}"
        )
        remedy = "compute one sample at a time: tokens_per_batch=1"
        known = task.of_model()
        if (
            known is not None
            and padded
            and mixing(task, (sample, sample)) is None
            and _twice(pairs, partial(mixing, known)) is None
        ):
            # Without padding all is well, and so it is with a loss that heeds it.
            warnings.warn(
                f"{found}: loss_fn counts padded positions, whose labels are -100. Leave them out, or {remedy}",
                SpiceWarning,
                stacklevel=2,
            )
            return
        own = isinstance(sample, OwnSample)
        what = (
            "the model or loss_fn mixes samples"
            if own or known is not None
            else "the model mixes samples, or does not heed attention_mask"
        )
        raise InvalidInputError(f"{found}: {what}. To go on, {remedy}.")

    def _kinds(self) -> list[Layer | Replaced]:
        """The first layer of each kind, of those that run."""
        first: dict[Any, Layer | Replaced] = {}
        for layer in self.capture.layers:
            if layer.name in self.calls and layer.parameters:
                module = layer.module
                # What others have put around one module alone makes it another kind.
                around = len(module._forward_pre_hooks), len(module._forward_hooks), "forward" in vars(module)
                numbers = tuple(tensor.dtype for tensor in layer.tensors.values())
                place = re.sub(r"\d+", "", layer.name)
                kind = (type(module), type(layer), place, self.calls[layer.name], around, numbers)
                first.setdefault(kind, layer)
        return list(first.values())

    def _disagreement(
        self, task: Task, layers: Sequence[Layer | Replaced], sample: Sample
    ) -> tuple[Layer | Replaced, float] | None:
        """The layer whose gradient is off by most, and by how much, if it is too much."""
        errors: dict[str, torch.Tensor] = {}
        lengths: dict[str, torch.Tensor] = {}
        for group in _groups(layers):
            try:
                some = self._errors(task, group, sample)
            except _NoPlainGradientError as error:
                self.untried.append(str(error))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.untried.append(reason_of(error))
            else:
                errors.update({name: off for name, (off, _) in some.items()})
                lengths.update({name: length for name, (_, length) in some.items()})
                continue
            free_memory()
        if not errors:
            return None
        total = float(_length(list(lengths.values())))
        if not total < float("inf"):
            return None  # rows that are not finite are not this check's matter
        least = max(_FLOOR * total, torch.finfo(torch.float32).tiny)
        off = {name: float(error) / max(float(lengths[name]), least) for name, error in errors.items()}
        worst = max(off, key=lambda name: off[name] if off[name] == off[name] else float("inf"))
        layer = next(each for each in layers if each.name == worst)
        return None if off[worst] <= self.tolerance else (layer, off[worst])

    def _errors(
        self, task: Task, layers: Sequence[Layer | Replaced], sample: Sample
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """How far the gradient of each layer is off, and how long autograd's is.

        Raises:
            _NoPlainGradientError: There is nothing to hold against.
        """
        tensors = {name: tensor for layer in layers for name, tensor in layer.tensors.items()}
        parameters = {
            layer.name: [each for each in layer.parameters if whole_name(each.name, tensors) in tensors]
            for layer in layers
        }
        rows, some = self._rows(task, layers, [sample])
        try:
            _, found = plain_gradients(
                lambda: self.losses(task.plain(), [sample]).sum(), list(tensors.values())
            )
        except Exception as error:  # noqa: BLE001 - some kernels give no gradient by weights
            raise _NoPlainGradientError(reason_of(error)) from None
        gradients = dict(zip(tensors, found, strict=True))
        errors = {}
        for name, own in parameters.items():
            parts = [(some.of(rows, each)[0], part_of(each.name, gradients)) for each in own]
            off = _length(
                [ours if plain is None else ours - plain.reshape(-1).to(ours.dtype) for ours, plain in parts]
            )
            errors[name] = off, _length([plain for _, plain in parts if plain is not None])
        return errors

    def _mixing(self, task: Task, layers: Sequence[Layer | Replaced], sample: Sample, other: Sample) -> float:
        """By how much the row of a sample is off in a batch with another one."""
        alone = self._rows(task, layers, [sample])[0][0]
        together = self._rows(task, layers, [other, sample])[0][1]
        length = float(alone.norm())
        if not length < float("inf"):
            return 0.0
        error = float((together - alone).norm()) / max(length, torch.finfo(torch.float32).tiny)
        return error if error == error else float("inf")

    def _rows(
        self, task: Task, layers: Sequence[Layer | Replaced], samples: Sequence[Sample]
    ) -> tuple[torch.Tensor, _Some]:
        """The whole gradients of these layers (B, coordinates) float32, and where each parameter's are.

        Those of the latest sample alone are kept for the next who asks.
        """
        some = _Some(list(dict.fromkeys(each for layer in layers for each in layer.parameters)))
        this = (id(task), [each.index for each in samples], [layer.name for layer in layers])
        if self._latest and self._latest[0][0] == this:
            return self._latest[0][1], some
        before = self.capture.projection
        self.capture.projection = some
        try:
            rows, _ = self.compute(task, samples)
        finally:
            self.capture.projection = before
        if len(samples) == 1 and some.dim <= MOST:
            self._latest[:] = [(this, rows)]
        return rows, some


class _NoPlainGradientError(Exception):
    """Autograd gives no gradient to hold one against."""


class _Some(NoProjection):
    """Every coordinate of some parameters; the others leave nothing."""

    def of(self, rows: torch.Tensor, parameter: Parameter) -> torch.Tensor:
        """The columns of a parameter, (B, numel)."""
        start = self._offsets[parameter.name]
        return rows[:, start : start + parameter.numel]

    def add_outer(
        self, rows: torch.Tensor, parameter: Parameter, left: torch.Tensor, right: torch.Tensor
    ) -> None:
        """Adds in place."""
        if parameter.name in self._offsets:
            super().add_outer(rows, parameter, left, right)

    def add_rows(
        self, rows: torch.Tensor, parameter: Parameter, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Adds in place."""
        if parameter.name in self._offsets:
            super().add_rows(rows, parameter, ids, values)

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """Adds in place."""
        if parameter.name in self._offsets:
            super().add_flat(rows, parameter, start, values)


def reason_of(error: BaseException) -> str:
    """What an error says, in one line."""
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _groups(layers: Sequence[Layer | Replaced]) -> list[list[Layer | Replaced]]:
    """The layers, as many together as may be compared at once, in their order."""
    groups: list[list[Layer | Replaced]] = []
    total = 0
    for layer in layers:
        total += _size(layer)
        if not groups or total > MOST:
            groups.append([])
            total = _size(layer)
        groups[-1].append(layer)
    return groups


def _least(layers: Sequence[Layer | Replaced]) -> list[Layer | Replaced]:
    """The smallest of the layers, as many as may be compared at once, in their order."""
    found: set[str] = set()
    total = 0
    for layer in sorted(layers, key=_size):
        total += _size(layer)
        if found and total > MOST:
            break
        found.add(layer.name)
    return [layer for layer in layers if layer.name in found]


def _twice(things: Sequence[_Thing], look: Callable[[_Thing], _Fault | None]) -> tuple[_Thing, _Fault] | None:
    """The first thing with a fault and its fault, if the first one has a fault and so has another, if there is one."""
    first: tuple[_Thing, _Fault] | None = None
    for thing in things:
        fault = look(thing)
        if first is None and fault is None:
            return None
        if first is not None and fault is not None:
            return first
        if first is None and fault is not None:
            first = thing, fault
    return first if len(things) == 1 else None


def worth_trying(samples: Sequence[Sample]) -> list[Sample]:
    """A few samples, the one to try first in front: short, but with some tokens to learn.

    Args:
        samples: By falling length.
    """
    if isinstance(samples[0], OwnSample):
        return list(samples[:_TRIES])
    some = np.flatnonzero((lengths_of(samples) >= _TOKENS) & (learned_of(samples) >= _LEARNED))
    falling = some if some.size else np.arange(len(samples) - len(samples) // 2)
    return list(chosen(samples, falling[::-1][:_TRIES]))


def worth_pairing(batches: Sequence[Sequence[Sample]]) -> list[tuple[Sample, Sample]]:
    """A few samples, each with one that is longer to share a batch with, no larger than those of the run.

    Args:
        batches: The run's, by falling length.

    Returns:
        None where each sample has a batch of its own; samples of one length where none is ever padded.
    """
    shared = [batch for batch in batches if len(batch) > 1]
    ends = [lengths_of(batch)[[0, -1]] for batch in shared]
    if not any(longest > shortest for longest, shortest in ends):
        return [(batch[1], batch[0]) for batch in shared[::-1][:_TRIES]]
    falling = together(shared)
    lengths = lengths_of(falling)
    pairs = []
    for sample in worth_trying(falling):
        longer = int(np.count_nonzero(lengths > sample.length))  # they come first
        if longer == 0:  # then there are shorter ones
            shorter = falling[int(np.flatnonzero(lengths < sample.length)[0])]
            pairs.append((shorter, sample))
            continue
        far = int(np.count_nonzero(lengths[:longer] >= 1.5 * sample.length))
        pairs.append((sample, falling[max(far, 1) - 1]))
    return pairs


def tolerance_of(network: torch.nn.Module, device: torch.device, autocast: bool | None) -> float:
    """What two ways to the same gradient may be apart by, relative to its length: by the coarsest numbers in the model."""
    kinds = {each.dtype for each in network.parameters() if each.is_floating_point()}
    coarse = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    wanted = device.type == "cuda" if autocast is None else autocast
    if (
        wanted
        or coarse > 1e-6
        or torch.get_float32_matmul_precision() != "highest"
        or (autocast is None and torch.is_autocast_enabled(device.type))
        or any(is_quantised(module) for module in network.modules())
    ):
        # Half precision sends some tokens to other experts.
        return 0.3 if any("expert" in name for name, _ in network.named_modules()) else 0.1
    if coarse < 1e-12:
        return 1e-5
    return 1e-2 if device.type == "cuda" else 1e-3  # convolutions of a GPU round to ten bits


def _size(layer: Layer | Replaced) -> int:
    return sum(each.numel for each in layer.parameters)


def _length(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The Euclidean length of all together, float64."""
    lengths = [
        torch.linalg.vector_norm(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in parts
    ]
    return torch.stack(
        [each.double().cpu() for each in lengths] or [torch.zeros((), dtype=torch.float64)]
    ).norm()
