"""Kinds of layers whose gradients can be told apart by sample, and how each one's gradient is formed.

With activations a (B, T, in) and output gradients e (B, T, out) of a batch:

- *linear* (`nn.Linear`, transformers' `Conv1D`): Σ_t e_t a_tᵀ for the weight, Σ_t e_t for the bias;
- *norm* (y = x̂·w + b, or x̂·(1 + w)): Σ_t e_t·x̂_t and Σ_t e_t. Whether a module is one is found by trying: its class
  may have any name;
- *embedding*: e_t is added to the row of token t.

Fused experts are in `experts.py`, modules with matrices of their own (routers) in `products.py`. A module of another
kind makes no layer, and its parameters count as missed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.projection import Parameter, Projection
from spice_rs.nouns import counted


@dataclass(frozen=True)
class BatchShape:
    """Samples and padded tokens of the batch that is computed."""

    samples: int
    length: int

    def by_sample(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """(B, T, features) of a tensor that may be flattened to (B·T, features) or lack T.

        Raises:
            InvalidInputError: The rows of the tensor are not those of the samples.
        """
        if values.dim() == 3 and values.shape[0] == self.samples:
            return values
        if values.dim() > 3 and values.shape[0] == self.samples:
            return values.flatten(1, -2)
        if values.dim() == 2 and values.shape[0] == self.samples * self.length:
            return values.view(self.samples, self.length, -1)
        if values.dim() == 2 and values.shape[0] == self.samples:
            return values.unsqueeze(1)
        if values.dim() == 3 and values.shape[0] == self.samples * self.length:
            return values.reshape(self.samples, -1, values.shape[2])  # (B·T, heads, features)
        if values.dim() == 3 and values.shape[:2] == (1, self.samples * self.length):
            return values.view(self.samples, self.length, -1)
        if self.samples == 1 and values.dim() == 2:
            return values.unsqueeze(0)  # some of its tokens, as a routed expert has them
        raise InvalidInputError(
            f"layer {name!r} sees a tensor of shape {tuple(values.shape)} in a batch of {self.samples} "
            f"samples of {counted(self.length, 'token')}, so its gradient cannot be told apart by sample (a routed "
            f"expert?); compute one sample at a time, tokens_per_batch=1, or {leave_out(name)}"
        )


@dataclass(frozen=True)
class Layer(ABC):
    """A module whose gradients are taken from its input and its output's gradient.

    Attributes:
        name: In `named_modules()`.
        module: The module.
        weight: None if it is not tracked.
        bias: None if there is none, or it is not tracked.
    """

    name: str
    module: Any
    weight: Parameter | None
    bias: Parameter | None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The weight and the bias, as far as tracked."""
        return tuple(parameter for parameter in (self.weight, self.bias) if parameter is not None)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name of a whole tracked parameter → the parameter."""
        pairs = ((self.weight, "weight"), (self.bias, "bias"))
        return {each.name: getattr(self.module, where) for each, where in pairs if each is not None}

    def output(self, shape: BatchShape, output: torch.Tensor) -> torch.Tensor:
        """The output to go on with: the same values, told apart by sample."""
        del shape
        return output

    @abstractmethod
    def keep(
        self, shape: BatchShape, projection: Projection, values: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """What `add` will need of the module's input, formed on the way forward."""

    @abstractmethod
    def add(
        self, projection: Projection, rows: torch.Tensor, kept: torch.Tensor | None, errors: torch.Tensor
    ) -> None:
        """Adds the projected gradients to rows (B, dim); errors are the output's gradient (B, T, out)."""

    def _add_bias(self, projection: Projection, rows: torch.Tensor, errors: torch.Tensor) -> None:
        if self.bias is not None:
            projection.add_flat(rows, self.bias, 0, errors.sum(dim=1, dtype=torch.float32))


@dataclass(frozen=True)
class LinearLayer(Layer):
    """`nn.Linear` with a weight (out, in), or `Conv1D` with a weight (in, out): `transposed`."""

    transposed: bool = False

    def keep(
        self, shape: BatchShape, projection: Projection, values: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """The activations, reduced as far as the projection can."""
        if self.weight is None:
            return None
        # Under autocast the product is made in the output's dtype: the factor is what it saw.
        activations = shape.by_sample(self.name, values).to(output.dtype)
        return projection.reduce(self.weight, 0 if self.transposed else 1, activations)

    def add(
        self, projection: Projection, rows: torch.Tensor, kept: torch.Tensor | None, errors: torch.Tensor
    ) -> None:
        """Σ_t e_t a_tᵀ."""
        if self.weight is not None and kept is not None:
            reduced = projection.reduce(self.weight, 1 if self.transposed else 0, errors)
            left, right = (kept, reduced) if self.transposed else (reduced, kept)
            projection.add_outer(rows, self.weight, left, right)
        self._add_bias(projection, rows, errors)


@dataclass(frozen=True)
class NormLayer(Layer):
    """LayerNorm, RMSNorm and all that scale each feature of what `normalise` makes of the input."""

    normalise: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.clone

    def keep(
        self, shape: BatchShape, projection: Projection, values: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """The input."""
        return shape.by_sample(self.name, values) if self.weight is not None else None

    def add(
        self, projection: Projection, rows: torch.Tensor, kept: torch.Tensor | None, errors: torch.Tensor
    ) -> None:
        """Σ_t e_t·x̂_t."""
        if self.weight is not None and kept is not None:
            products = self.normalise(kept) * errors
            projection.add_flat(rows, self.weight, 0, products.sum(dim=1, dtype=torch.float32))
        self._add_bias(projection, rows, errors)


@dataclass(frozen=True)
class EmbeddingLayer(Layer):
    """`nn.Embedding`, its output times `scale`."""

    scale: float = 1.0

    def output(self, shape: BatchShape, output: torch.Tensor) -> torch.Tensor:
        """Positions are often looked up once for the whole batch: each sample gets its own copy here."""
        return output.expand(shape.samples, *output.shape[1:]) if output.shape[0] == 1 else output

    def keep(
        self, shape: BatchShape, projection: Projection, values: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """The token ids (B, T); -1 where the table's row gets no gradient."""
        padding = self.module.padding_idx
        ids = values if padding is None else values.masked_fill(values == padding, -1)
        if shape.samples == 1 and ids.numel() == shape.length:
            ids = ids.reshape(1, shape.length)  # also where samples are in the second place
        if ids.dim() == 1 and ids.numel() == shape.samples * shape.length:
            ids = ids.view(shape.samples, shape.length)
        if ids.dim() < 2 or ids.shape[0] not in (1, shape.samples):
            raise InvalidInputError(
                f"layer {self.name!r} looks ids of shape {tuple(ids.shape)} up for a batch of {shape.samples} samples of "
                f"{counted(shape.length, 'token')}, so its gradient cannot be told apart by sample; give it ids of shape "
                f"(1, {shape.length}), compute one sample at a time, tokens_per_batch=1, or "
                f"{leave_out(self.name)}"
            )
        return ids.expand(shape.samples, *ids.shape[1:]).reshape(shape.samples, -1)

    def add(
        self, projection: Projection, rows: torch.Tensor, kept: torch.Tensor | None, errors: torch.Tensor
    ) -> None:
        """Σ_t onehot(id_t) e_tᵀ."""
        if self.weight is not None and kept is not None:
            errors = errors.masked_fill((kept < 0).unsqueeze(-1), 0) * self.scale
            projection.add_rows(rows, self.weight, kept.clamp(min=0), errors)


def leave_out(name: str) -> str:
    """What to say where the layer of this name cannot be tracked."""
    plain = re.sub(r"^base_model\.model\.|\.(base_layer|lora_([AB]|magnitude_vector)(\..*)?)$", "", name)
    end = plain.rpartition(".")[2]
    # The others of its kind cannot be, either; a number alone says nothing.
    return f"leave such layers out: target_modules={'!' + (plain if end.isdigit() else end)!r}"


def make_layer(name: str, module: Any, wanted: set[str], names: dict[int, str]) -> Layer | None:
    """The layer of a module whose gradients can be told apart by sample, else None.

    Args:
        name: In `named_modules()`.
        module: The module.
        wanted: Names of the parameters to track.
        names: id of a parameter → its name.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or id(weight) not in names:
        return None
    bias = getattr(module, "bias", None)
    parts = tracked_part(weight, wanted, names), tracked_part(bias, wanted, names)
    if is_linear(module):
        return LinearLayer(name, module, *parts, transposed=not isinstance(module, torch.nn.Linear))
    if isinstance(module, torch.nn.Embedding):
        scale = _embedding_scale(module)
        return None if scale is None else EmbeddingLayer(name, module, parts[0], None, scale=scale)
    normalise = norm_of(module)
    return None if normalise is None else NormLayer(name, module, *parts, normalise=normalise)


def tracked_part(tensor: Any, wanted: set[str], names: dict[int, str]) -> Parameter | None:
    """The tensor as a tracked parameter, if it is one and wanted."""
    known = names.get(id(tensor))
    return Parameter(known, tuple(tensor.shape)) if known is not None and known in wanted else None


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module multiplies by a weight that has a gradient of its shape, and gives the product."""
    if isinstance(module, torch.nn.Linear):
        # Subclasses with a forward of their own are quantised layers, and routers that give more than the product; the
        # output projection of nn.MultiheadAttention never runs.
        plain = type(module).forward is torch.nn.Linear.forward or type(module).__name__ == "FalconLinear"
        return plain and not isinstance(module, NonDynamicallyQuantizableLinear)
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_quantised(module: torch.nn.Module) -> bool:
    """Whether a linear layer keeps its weight packed, as those of bitsandbytes do in 4 and 8 bits."""
    if not isinstance(module, torch.nn.Linear) or type(module).forward is torch.nn.Linear.forward:
        return False
    weight = module.weight
    return not weight.is_floating_point() or tuple(weight.shape) != (module.out_features, module.in_features)


def norm_of(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What a norm does to its input before it scales the features; None if the module is no norm.

    Decided by the outputs for a random input, so that the name of the class does not matter.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or next(module.children(), None) is not None:
        return None
    if not weight.is_floating_point() or isinstance(module, torch.nn.modules.batchnorm._NormBase):
        return None
    size = weight.shape[0]
    eps = _epsilon(module)

    def rms(values: torch.Tensor, groups: int = 1) -> torch.Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32)).unflatten(-1, (groups, -1))
        least = torch.finfo(values.dtype).eps if eps is None else eps
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + least)).flatten(-2)

    def centred(values: torch.Tensor) -> torch.Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return torch.nn.functional.layer_norm(wide, (size,), eps=1e-5 if eps is None else eps)

    # With other parameters than its own, which may be zero and hide what they scale; large and small inputs, in which ε
    # shows.
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(6, 3, size, generator=generator, dtype=torch.float32).add_(0.3)
    small[:3] *= 3
    small[3:] *= 1e-3
    tried = {"weight": torch.randn(size, generator=generator, dtype=torch.float32).add_(1)}
    if isinstance(bias, torch.Tensor):
        tried["bias"] = torch.randn(size, generator=generator, dtype=torch.float32)
    probe, *values = (each.to(weight.device) for each in (small, *tried.values()))
    tried = dict(zip(tried, values, strict=True))
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        try:
            found = torch.func.functional_call(module, tried, (probe,))
        except Exception:  # noqa: BLE001 - it takes no such input, for whatever reason
            return None
        if not isinstance(found, torch.Tensor) or found.shape != probe.shape or found.is_meta:
            return None
        known: list[Callable[[torch.Tensor], torch.Tensor]] = [rms, centred]
        known += [partial(rms, groups=count) for count in _groups(module, size)]
        for normalise in known:
            for scale in (tried["weight"], 1 + tried["weight"]):
                expected = normalise(probe) * scale + tried.get("bias", 0)
                if torch.allclose(found.float(), expected.float(), rtol=1e-4, atol=1e-4):
                    return normalise
    return None


def _epsilon(module: Any) -> float | None:
    """What a norm adds to the mean square; None where it does not say."""
    given = [each for name, each in vars(module).items() if "eps" in name]
    given += [getattr(module, name, None) for name in ("eps", "variance_epsilon")]
    numbers = (each for each in given if isinstance(each, int | float) and not isinstance(each, bool))
    return next((float(each) for each in numbers), None)


def _groups(module: Any, size: int) -> list[int]:
    """Into how many groups of features a norm may take its input apart: from what it has of such a name."""
    numbers = {each for name, each in vars(module).items() if "group" in name and isinstance(each, int)}
    counts = {count for each in numbers if 0 < each < size for count in (each, size // each)}
    return sorted(count for count in counts if count > 1 and size % count == 0)


def _embedding_scale(module: torch.nn.Embedding) -> float | None:
    """The factor of an embedding's output; None for one whose gradient is not that of a plain look-up."""
    if module.max_norm is not None or module.scale_grad_by_freq:
        return None
    if type(module).forward is torch.nn.Embedding.forward:
        return 1.0
    with torch.no_grad():
        rows = module.weight[:256].cpu().double()
        try:
            found = module(torch.arange(len(rows), device=module.weight.device))
        except Exception:  # noqa: BLE001 - it takes no token ids, as some tables of positions
            return None
        length = float(rows.norm())
        if not isinstance(found, torch.Tensor) or found.shape != rows.shape or not length > 0:
            return None
        found = found.cpu().double()
        scale = float(found.flatten() @ rows.flatten()) / length**2
        plain = torch.allclose(found, rows * scale, rtol=1e-2, atol=1e-2 * float(rows.abs().max()))
    return scale if plain else None
