"""Modules that are no `nn.Linear` but multiply by a matrix of their own: the routers of mixtures of experts, mostly.

While such a module runs, each `torch.nn.functional.linear` by one of its parameters is a linear layer of its own, and the
rest is as in `layers.py`. Whether a module is one is found by trying a copy of it on random values: a parameter counts
if `linear`, and casts to another dtype on the way there, are all that ever sees it. All others count as missed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.catch import Catch
from spice_rs.extraction.layers import LinearLayer, leave_out, tracked_part
from spice_rs.extraction.projection import Parameter

_CASTS = {
    torch.Tensor.to,
    torch.Tensor.type,
    torch.Tensor.type_as,
    torch.Tensor.float,
    torch.Tensor.double,
    torch.Tensor.half,
    torch.Tensor.bfloat16,
}


@dataclass(frozen=True)
class ProductsLayer:
    """A module with matrices of its own.

    Attributes:
        name: In `named_modules()`.
        module: The module.
        products: id of a matrix → the linear layer that it makes.
        tracked: ids of the parameters that are tracked → their names in the module.
    """

    name: str
    module: Any
    products: dict[int, LinearLayer]
    tracked: dict[int, str]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of all products."""
        return tuple(each for product in self.products.values() for each in product.parameters)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name of a whole tracked parameter → the parameter."""
        return {
            f"{self.name}.{each}".lstrip("."): getattr(self.module, each) for each in self.tracked.values()
        }

    def forward(self, catch: Catch, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the module gives, its gradients tapped.

        Args:
            catch: The batch.
            forward: The module's own.
            args: For the module.
            kwargs: For the module.

        Raises:
            InvalidInputError: A tracked parameter is used in another way than when it was tried.
        """

        def product(
            values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, source: int
        ) -> torch.Tensor:
            output = torch.nn.functional.linear(values, weight, bias)
            return catch.output(self.products[source], values, output)

        with _Products(self.module, self.products.keys(), product) as seen:
            result = forward(*args, **kwargs)
        strange = sorted(self.tracked[each] for each in seen.strange & self.tracked.keys())
        if strange:
            raise InvalidInputError(
                f"layer {self.name!r} uses its {strange[0]} outside of linear layers on this data, so its gradient cannot "
                f"be taken; {leave_out(self.name)}"
            )
        return result


def make_products(name: str, module: Any, wanted: set[str], names: dict[int, str]) -> ProductsLayer | None:
    """The layer of a module that multiplies by matrices of its own; None for other modules.

    Args:
        name: In `named_modules()`.
        module: The module.
        wanted: Names of the parameters to track.
        names: id of a parameter → its name.
    """
    own = dict(module.named_parameters(recurse=False))
    inner = sum(each.numel() for each in module.parameters()) - sum(each.numel() for each in own.values())
    if inner > sum(each.numel() for each in own.values()):
        return None  # mostly made of other layers: too much to try
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None  # nn.MultiheadAttention uses its matrix without running it
    wanted_here = {each for each, tensor in own.items() if names.get(id(tensor)) in wanted}
    sizes = {each.shape[1] for each in own.values() if each.dim() == 2 and each.is_floating_point()}
    for matrices in (_try(module, size) for size in sorted(sizes) if wanted_here):
        products: dict[int, LinearLayer] = {}
        tracked: dict[int, str] = {}
        for matrix, offset in matrices.items():
            weight = tracked_part(own[matrix], wanted, names)
            bias = None if offset is None else tracked_part(own[offset], wanted, names)
            if weight is not None or bias is not None:
                products[id(own[matrix])] = LinearLayer(name, module, weight, bias)
                tracked |= {
                    id(own[each]): each
                    for each in (matrix, offset)
                    if each is not None and each in wanted_here
                }
        if products:
            return ProductsLayer(name, module, products, tracked)
    return None


def _try(module: Any, size: int) -> dict[str, str | None]:
    """Matrices that `linear` alone has seen → their biases, by name; none if the module takes no such input."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, size), (6, size)):
        try:
            # On a copy, so that nothing that the module counts or keeps takes part.
            tried = copy.deepcopy(module).cpu().eval()
            own = {id(tensor): each for each, tensor in tried.named_parameters(recurse=False)}
            pairs: dict[int, set[int | None]] = {}
            with torch.random.fork_rng(devices=[]), torch.no_grad(), _noting(tried, pairs) as seen:
                tried(torch.randn(shape, generator=generator).to(next(tried.parameters()).dtype))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError, KeyError):
            continue
        return {
            own[matrix]: None if offset is None or offset in seen.strange else own[offset]
            for matrix, offsets in pairs.items()
            for offset in offsets
            if matrix not in seen.strange and len(offsets) == 1
        }
    return {}


def _noting(module: Any, pairs: dict[int, set[int | None]]) -> _Products:
    """Notes the biases of each matrix, by id."""

    def product(
        values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, source: int
    ) -> torch.Tensor:
        pairs.setdefault(source, set()).add(seen.origin(bias))
        return torch.nn.functional.linear(values, weight, bias)

    matrices = {id(each) for each in module.parameters(recurse=False) if each.dim() == 2}
    seen = _Products(module, matrices, product)
    return seen


class _Products(TorchFunctionMode):  # type: ignore[misc]
    """Inside, products by the module's parameters go through `product`, and other uses of them are noted.

    Args:
        module: Whose parameters.
        matrices: ids of those that are weights; biases are known by their place.
        product: (values, weight, bias, id of the weight's parameter) → the product.
    """

    def __init__(self, module: Any, matrices: Any, product: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.matrices = set(matrices)
        self.product = product
        self.strange: set[int] = set()
        # id → (the tensor, id of the parameter that it is or was cast from); held, so that no id is used twice.
        self._from = {id(each): (each, id(each)) for each in module.parameters(recurse=False)}

    def origin(self, tensor: Any) -> int | None:
        """The id of the parameter that this is, or that it was cast from."""
        found = self._from.get(id(tensor))
        return None if found is None else found[1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            values, weight, bias = given["input"], given["weight"], given.get("bias")
            source = self.origin(weight)
            if source is not None and source in self.matrices and self.origin(values) is None:
                return self.product(values, weight, bias, source)
        result = func(*args, **kwargs)
        used = [origin for each in _tensors((args, kwargs)) if (origin := self.origin(each)) is not None]
        if used and next(iter(_tensors(result)), None) is not None:
            if func in _CASTS and isinstance(result, torch.Tensor) and self.origin(args[0]) is not None:
                self._from[id(result)] = (result, used[0])
            else:
                self.strange.update(used)
        return result


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [each for part in value for each in _tensors(part)]
    return []
