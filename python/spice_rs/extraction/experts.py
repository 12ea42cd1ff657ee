"""Fused experts: mixture-of-experts layers that keep the weights of all experts in one tensor (E, out, in).

While gradients are taken, such a module runs expert by expert, and each product of routed tokens (n, in) with one
expert's weight is a linear layer of its own: its tokens are put back beside the others of their sample, and the rest is as
in `layers.py`. The parameter of expert 3 is called "…experts.down_proj[3]".

Understood are the modules of `transformers` that its experts interface can replace: those that say whether they are
gated, transposed and have biases. All others count as missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.extraction.catch import Catch
from spice_rs.extraction.projection import Parameter


@dataclass(frozen=True)
class ExpertsLayer:
    """A module of fused experts.

    Attributes:
        name: In `named_modules()`.
        module: The module.
        tracked: (attribute, expert) → its part of that parameter.
    """

    name: str
    module: Any
    tracked: dict[tuple[str, int], Parameter]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One for each expert and each of its weights and biases."""
        return tuple(self.tracked.values())

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name of a whole tracked parameter → the parameter."""
        pairs = ((each.name.rpartition("[")[0], attribute) for (attribute, _), each in self.tracked.items())
        return {name: getattr(self.module, attribute) for name, attribute in pairs}

    def forward(
        self,
        catch: Catch,
        forward: Callable[..., Any],
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """What the module gives, its gradients tapped.

        Args:
            catch: The batch.
            forward: The module's own, which is not called.
            hidden_states: (B·T, hidden).
            top_k_index: (B·T, k) int64, the experts of each token.
            top_k_weights: (B·T, k), their shares.
        """
        del forward
        hidden, experts, weights = hidden_states, top_k_index, top_k_weights
        module = self.module
        by_sample = catch.shape.by_sample(self.name, hidden)
        place = torch.arange(by_sample.shape[0], device=hidden.device)
        samples = place.repeat_interleave(by_sample.shape[1])  # (B·T,) the sample of each token
        up = "gate_up_proj" if module.has_gate else "up_proj"
        tokens = hidden.reshape(-1, hidden.shape[-1])
        result = torch.zeros_like(tokens)
        for expert in experts.unique().tolist():
            if expert >= module.num_experts:
                continue
            chosen, slot = torch.where(experts == expert)
            routed = _Routed.of(samples[chosen])

            def product(
                name: str, values: torch.Tensor, expert: int = expert, routed: _Routed = routed
            ) -> torch.Tensor:
                return self._product(catch, name, expert, values, routed)

            inner = product(up, tokens[chosen])
            inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
            outer = product("down_proj", inner) * weights[chosen, slot, None]
            result.index_add_(0, chosen, outer.to(result.dtype))
        return result.view(hidden.shape)

    def _product(
        self, catch: Catch, name: str, expert: int, values: torch.Tensor, routed: _Routed
    ) -> torch.Tensor:
        module, projection, rows = self.module, catch.projection, catch.rows
        matrix = getattr(module, name)[expert]
        offset = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
        output = torch.nn.functional.linear(values, matrix.T if module.is_transposed else matrix, offset)
        weight = self.tracked.get((name, expert))
        bias = self.tracked.get((f"{name}_bias", expert))
        if weight is None and bias is None:
            return output
        kept = None
        if weight is not None:
            activations = routed.spread(values.detach().to(output.dtype))
            kept = projection.reduce(weight, 0 if module.is_transposed else 1, activations)

        def add(gradient: torch.Tensor) -> None:
            errors = routed.spread(gradient)
            part = rows.new_zeros(len(routed.samples), rows.shape[1])
            if weight is not None and kept is not None:
                reduced = projection.reduce(weight, 1 if module.is_transposed else 0, errors)
                left, right = (kept, reduced) if module.is_transposed else (reduced, kept)
                projection.add_outer(part, weight, left, right)
            if bias is not None:
                projection.add_flat(part, bias, 0, errors.sum(dim=1, dtype=torch.float32))
            rows.index_add_(0, routed.samples, part)

        return catch.tap(output, add)


@dataclass(frozen=True)
class _Routed:
    """Which samples the n tokens of one expert come from.

    Attributes:
        samples: (S,) those that have one.
        row: (n,) the token's place in `samples`.
        column: (n,) its number among the tokens of its sample.
        width: The most tokens that one sample has.
    """

    samples: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    width: int

    @staticmethod
    def of(samples: torch.Tensor) -> _Routed:
        """Of the tokens' samples (n,), ascending."""
        unique, row, counts = torch.unique_consecutive(samples, return_inverse=True, return_counts=True)
        starts = counts.cumsum(0) - counts
        column = torch.arange(len(samples), device=samples.device) - starts[row]
        return _Routed(unique, row, column, int(counts.max()))

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(n, features) → (S, width, features), zero where a sample has fewer tokens."""
        wide = values.new_zeros(len(self.samples), self.width, values.shape[1])
        wide[self.row, self.column] = values
        return wide


def make_experts(
    name: str, module: Any, wanted: set[str], names: dict[int, str]
) -> tuple[ExpertsLayer, set[str]] | None:
    """The layer of fused experts and the names of the whole parameters that it tracks; None for other modules."""
    says = ("has_gate", "has_bias", "is_transposed", "num_experts", "down_proj")
    if not all(hasattr(module, each) for each in says) or getattr(module, "has_post_expert_norm", False):
        return None
    attributes = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    attributes += [f"{each}_bias" for each in attributes] if module.has_bias else []
    tracked: dict[tuple[str, int], Parameter] = {}
    whole: set[str] = set()
    for attribute in attributes:
        tensor = getattr(module, attribute, None)
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != (2 if attribute.endswith("_bias") else 3):
            return None  # quantised, or something else
        full = names.get(id(tensor))
        if full is None or full not in wanted:
            continue
        whole.add(full)
        for expert in range(tensor.shape[0]):
            tracked[attribute, expert] = Parameter(f"{full}[{expert}]", tuple(tensor.shape[1:]))
    return (ExpertsLayer(name, module, tracked), whole) if tracked else None
