"""Modules that are no `nn.Linear` but multiply by a matrix of their own: the routers of mixtures of experts, mostly.

While such a module runs, each `torch.nn.functional.linear` by one of its parameters is a linear layer of its own, and the
rest is as in `layers.py`. Whether a module is one is found by trying it on random values: a parameter counts if `linear`,
and casts to another dtype on the way there, are all that ever sees it. All others count as missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.catch import Catch
from spice_rs.extraction.layers import LinearLayer, tracked_part
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
                "be taken; leave the layer out with target_modules"
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
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None  # nn.MultiheadAttention uses its matrices without running it
    own = {id(tensor): tensor for tensor in module.parameters(recurse=False)}
    short = {id(tensor): each for each, tensor in module.named_parameters(recurse=False)}
    sizes = {
        tensor.shape[1]: tensor for tensor in own.values() if tensor.dim() == 2 and tensor.is_floating_point()
    }
    for size, tensor in sizes.items():
        found = _try(module, size, tensor, own)
        if found is None:
            continue
        products: dict[int, LinearLayer] = {}
        tracked: dict[int, str] = {}
        for matrix, offset in found.items():
            weight = tracked_part(own[matrix], wanted, names)
            bias = None if offset is None else tracked_part(own[offset], wanted, names)
            if weight is not None or bias is not None:
                products[matrix] = LinearLayer(name, module, weight, bias)
            tracked |= {} if weight is None else {matrix: short[matrix]}
            tracked |= {} if bias is None or offset is None else {offset: short[offset]}
        if products:
            return ProductsLayer(name, module, products, tracked)
    return None


def _try(
    module: Any, size: int, like: torch.Tensor, own: dict[int, torch.Tensor]
) -> dict[int, int | None] | None:
    """Matrices that `linear` alone has seen → their biases, by id; None if the module takes no such input."""
    pairs: dict[int, set[int | None]] = {}

    def product(
        values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, source: int
    ) -> torch.Tensor:
        pairs.setdefault(source, set()).add(seen.origin(bias))
        return torch.nn.functional.linear(values, weight, bias)

    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, 3, size, generator=generator).to(like.device, like.dtype)
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            _Products(module, own.keys(), product) as seen,
        ):
            module(probe)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError, KeyError):
        return None
    finally:
        for each in training:
            each.training = True
    good: dict[int, int | None] = {}
    for matrix, offsets in pairs.items():
        offset = next(iter(offsets))
        if matrix not in seen.strange and len(offsets) == 1 and own[matrix].dim() == 2:
            good[matrix] = None if offset is None or offset in seen.strange else offset
    return good


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
