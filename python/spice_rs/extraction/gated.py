"""Norms that are called with more than their input: with a gate, as in the Mamba-2 family, or whatever else decides.

Such a layer is y = w ⊙ h + b ⊙ c + d, where h, c and d depend on all that it is called with, in a way that need not be
known: it is run again with these very arguments and other parameters, and

    d = y(w = 0, b = 0),    h = y(w = 1, b = 0) - d,    c = y(w = 0, b = 1) - d

so that the gradients are Σ_t e_t·h_t and Σ_t e_t·c_t. That y has this form is tried on the layer's first call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.layers import BatchShape, Layer, NormLayer, leave_out
from spice_rs.extraction.projection import Projection


@dataclass(frozen=True)
class GatedNorm(Layer):
    """One call of a norm.

    Attributes:
        scaled: h (B, T, features), what the weight scales; None if the weight is not tracked.
        shifted: c (B, T, features), what the bias scales; None if it is not tracked.
    """

    scaled: torch.Tensor | None = None
    shifted: torch.Tensor | None = None

    def keep(
        self, shape: BatchShape, projection: Projection, values: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """Nothing more."""
        return None

    def add(
        self, projection: Projection, rows: torch.Tensor, kept: torch.Tensor | None, errors: torch.Tensor
    ) -> None:
        """Σ_t e_t·h_t, and Σ_t e_t·c_t."""
        for parameter, factor in ((self.weight, self.scaled), (self.bias, self.shifted)):
            if parameter is not None and factor is not None:
                products = (factor * errors).sum(dim=1, dtype=torch.float32)
                projection.add_flat(rows, parameter, 0, products)


def gated_call(
    layer: NormLayer, shape: BatchShape, args: Sequence[Any], kwargs: Mapping[str, Any], *, trying: bool
) -> GatedNorm:
    """The layer as it is for one call.

    Args:
        layer: The norm.
        shape: Of the batch.
        args: Of the call.
        kwargs: Of the call.
        trying: Whether to make sure of the form that the module's text says, at the cost of one more run.

    Raises:
        InvalidInputError: It has another form, so that its gradient cannot be taken.
    """
    module = layer.module
    own = {name: each for name, each in module._parameters.items() if each is not None}

    def run(**parameters: torch.Tensor) -> torch.Tensor:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
        versions = [each._version for each in tensors]
        # Without the hooks of the module, which saw this call already.
        with torch.no_grad(), _wearing(module, parameters):
            output = module.forward(*args, **kwargs)
        if not isinstance(output, torch.Tensor) or output.shape[-1:] != layer.module.weight.shape:
            raise _Unlike
        if versions != [each._version for each in tensors]:
            raise _Unlike  # it changes what it is given, and so must not run twice
        return output.to(torch.promote_types(output.dtype, torch.float32))

    zeros = {name: torch.zeros_like(each) for name, each in own.items() if name in ("weight", "bias")}
    try:
        plain = run(**zeros)
        factors = {
            name: run(**{**zeros, name: torch.ones_like(zero)}) - plain for name, zero in zeros.items()
        }
        if trying:
            _try(run, plain, factors, zeros)
    except _Unlike:
        raise InvalidInputError(
            f"layer {layer.name!r} ({type(module).__name__}): found a call with more than its input, expected that its "
            f"weight scales each feature of the output and nothing else; found that it does more, so its gradient cannot "
            f"be taken; {leave_out(layer.name)}"
        ) from None
    by_name = {name: shape.by_sample(layer.name, each) for name, each in factors.items()}
    return GatedNorm(
        layer.name,
        module,
        layer.weight,
        layer.bias,
        scaled=None if layer.weight is None else by_name["weight"],
        shifted=None if layer.bias is None else by_name["bias"],
    )


class _Unlike(Exception):
    """The module is not of the form."""


def _try(
    run: Any, plain: torch.Tensor, factors: dict[str, torch.Tensor], zeros: dict[str, torch.Tensor]
) -> None:
    """Runs the module with parameters that are different in each feature."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(zero.shape, generator=generator, dtype=torch.float32).to(zero)
        for name, zero in zeros.items()
    }
    found = run(**drawn)
    expected = plain + sum(drawn[name] * factor for name, factor in factors.items())
    exact = min(torch.finfo(each.dtype).eps for each in zeros.values()) < 1e-6
    off = (found - expected).norm()
    if not bool(off <= (1e-3 if exact else 5e-2) * expected.norm()):  # also where something is not finite
        raise _Unlike


@contextmanager
def _wearing(module: Any, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the module has other parameters."""
    before = {name: module._parameters[name] for name in parameters}
    try:
        module._parameters.update(parameters)
        yield
    finally:
        module._parameters.update(before)
