"""DoRA (Liu et al. 2024, arXiv 2402.09353): a LoRA whose product has a trained length for each output feature.

With the base's weight W, m the magnitudes and n the lengths of the rows of W + s·BA, which count as constants:

    y = W x + (m/n)·(W x + s·B A x) - W x

`peft` computes n by running A and B on an identity matrix, which has no samples. Here it is formed without them, so that
A and B run on the samples alone and are linear layers like any others. The gradient of m is Σ_t e_t·(W x_t + s·B A x_t)/n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.extraction.catch import Catch
from spice_rs.extraction.layers import NormLayer, tracked_part
from spice_rs.extraction.projection import Parameter


@dataclass(frozen=True)
class DoraLayer:
    """The magnitudes of one adapted linear layer.

    Attributes:
        name: In `named_modules()`.
        module: The module.
        weight: m; None if it is not tracked.
    """

    name: str
    module: Any
    weight: Parameter | None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """m, if it is tracked."""
        return () if self.weight is None else (self.weight,)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name of a whole tracked parameter → the parameter."""
        return {} if self.weight is None else {self.weight.name: self.module.weight}

    def forward(
        self,
        catch: Catch,
        forward: Callable[..., Any],
        x: torch.Tensor,
        *,
        lora_A: Any,
        lora_B: Any,
        scaling: float,
        base_layer: Any,
        base_result: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """What is added to W x, its gradients caught.

        Args:
            catch: The batch.
            forward: The module's own, which is not called.
            x: (B, T, in).
            lora_A: The factor of shape (r, in).
            lora_B: The factor of shape (out, r).
            scaling: s.
            base_layer: The layer of W.
            base_result: W x and the bias, or None for what has yet to be formed.
            kwargs: Names of adapters, which do not matter.
        """
        del forward, kwargs
        from peft.utils.integrations import dequantize_module_weight
        from peft.utils.other import transpose

        with torch.no_grad():
            base = dequantize_module_weight(base_layer).to(x.dtype)
            product = (lora_B.weight @ lora_A.weight).to(x.dtype)
            lengths = self.module.get_weight_norm(base, product, scaling)
        if base_result is None:
            base_result = torch.nn.functional.linear(x, transpose(base, self.module.fan_in_fan_out))
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        directions = base_result + lora_B(lora_A(x)) * scaling
        scaled = directions * (self.module.weight / lengths)
        if self.weight is not None:
            layer = NormLayer(self.name, self.module, self.weight, None)
            scaled = catch.output(layer, directions.detach() / lengths, scaled)
        return scaled - base_result


def make_dora(name: str, module: Any, wanted: set[str], names: dict[int, str]) -> DoraLayer | None:
    """The layer of the magnitudes of an adapted linear layer, tracked or not; None for other modules."""
    kind = type(module)
    if kind.__name__ != "DoraLinearLayer" or not kind.__module__.startswith("peft."):
        return None
    return DoraLayer(name, module, tracked_part(module.weight, wanted, names))
