"""What is tracked: the parameters whose gradients make the rows, and their share of those that were meant.

- A model with an adapter, or with only some of its parameters trainable: those trainable parameters and no
  others.
- A plain model: weights and biases of its linear layers and fused experts, all but the output head, or what
  `target_modules` picks.
- Norms and embeddings where they are asked for: trainable, picked, or by `norms` and `embeddings`.

Only what `layers.py`, `experts.py`, `products.py` and `dora.py` know can be told apart by sample. A parameter is tracked at
every module that holds it, so that a head tied to the embeddings gets both parts of its gradient, or not at all.

*Coverage* is the tracked share of the parameters that were meant: of the trainable ones, of the modules that
`target_modules` picks, or of the whole model but its embeddings and head. It is recorded with the store.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.catch import Replaced
from spice_rs.extraction.dora import make_dora
from spice_rs.extraction.experts import make_experts
from spice_rs.extraction.layers import Layer, NormLayer, is_linear, is_quantised, make_layer
from spice_rs.extraction.products import make_products
from spice_rs.extraction.projection import Parameter

_FUSED = re.compile(r"\[\d+\]$")

TargetModules = str | Sequence[str] | None
"""Names or ends of names ("q_proj"), one of these, a pattern for whole names, or None: the default.

With "!" in front, what is not tracked of the others, or of the default if there are no others.
"""


@dataclass(frozen=True)
class Tracked:
    """What is tracked of a model.

    Attributes:
        layers: In the order of `named_modules()`.
        parameters: Each once, in the order of `named_parameters()`; fused experts one by one.
        coverage: Tracked share of the parameters that were meant, in (0, 1].
        missed: Names of parameters that were meant and are not tracked.
        zero_lora: A is left out, since every B is zero and A's gradient with it.
        quantised: Some of those that are missed are in 4 or 8 bits.
    """

    layers: list[Layer | Replaced]
    parameters: list[Parameter]
    coverage: float
    missed: list[str]
    zero_lora: bool
    quantised: bool = False

    @property
    def names(self) -> list[str]:
        """Those of the whole parameters, each once, fused experts' without their number."""
        return list(dict.fromkeys(_FUSED.sub("", parameter.name) for parameter in self.parameters))


def track(
    model: torch.nn.Module, target_modules: TargetModules, *, norms: bool = False, embeddings: bool = False
) -> Tracked:
    """Finds the layers whose gradients are taken (see the module's text).

    Args:
        model: The model.
        target_modules: What to track instead of the default.
        norms: Track all norms besides.
        embeddings: Track all embeddings besides.

    Raises:
        InvalidInputError: Nothing can be tracked.
    """
    named = dict(model.named_parameters())  # a tied parameter once, under its first name
    names = {id(parameter): name for name, parameter in named.items()}
    modules = {name: module for name, module in model.named_modules() if _own(module, names)}
    _check_adapters(model)
    meant, asked, left_out = _meant(model, modules, named, names, target_modules)
    unasked: set[str] = set()
    for name, module in modules.items():
        own, layer = _own(module, names), make_layer(name, module, set(named), names)
        if (norms and isinstance(layer, NormLayer)) or (
            embeddings and isinstance(module, torch.nn.Embedding)
        ):
            asked |= own
        if isinstance(layer, NormLayer):
            unasked |= own
    asked -= left_out
    meant |= asked
    zero_lora = _all_zero_b(modules, meant, names)
    if zero_lora:
        meant = {name for name in meant if ".lora_A." not in name}
    wanted = meant - (unasked - asked) - _added_to_weights(model, names)
    while True:
        layers, unknown = _layers(modules, names, wanted)
        if not unknown:
            break
        # What one module holds in a way that cannot be told apart is incomplete wherever else it is held.
        wanted -= unknown
    if not wanted:
        raise InvalidInputError(no_target(model, target_modules, sorted(meant)))
    parts: dict[str, list[Parameter]] = {name: [] for name in named if name in wanted}
    for parameter in dict.fromkeys(each for layer in layers for each in layer.parameters):
        parts[_FUSED.sub("", parameter.name)].append(parameter)
    packed = _packed(modules, names)
    sizes = {name: packed.get(name, named[name].numel()) for name in meant}
    share = sum(sizes[name] for name in wanted) / sum(sizes.values())
    parameters = [parameter for part in parts.values() for parameter in part]
    quantised = bool(packed.keys() & (meant - wanted))
    return Tracked(layers, parameters, share, sorted(meant - wanted), zero_lora, quantised)


def check_coverage(tracked: Tracked, least: float, *, warn: bool = True) -> None:
    """Says what is left out, where it is more than the norms of a common model.

    Raises:
        InvalidInputError: The coverage is below `least`.
    """
    some = ", ".join(tracked.missed[:3]) + (", …" if len(tracked.missed) > 3 else "")
    found = (
        f"gradients cover {tracked.coverage:.1%} of the parameters meant: {len(tracked.missed)} belong "
        f"to no layer whose gradient is taken ({some})"
    )
    remedy = "weights in 4 or 8 bits have none: give a lora_rank, " if tracked.quantised else ""
    if tracked.coverage < least:
        raise InvalidInputError(
            f"{found}, expected at least {least:.1%}; {remedy}choose layers with target_modules, or lower min_coverage"
        )
    if warn and tracked.coverage < 0.98:
        warnings.warn(f"{found} and are left out", SpiceWarning, stacklevel=5)  # whoever called extract


def output_head(model: torch.nn.Module, tracked: Tracked) -> torch.nn.Module | None:
    """The head, if its input may be cut to the learned positions: it exists, and nothing in it is tracked."""
    head = _head(model)
    inside = set(head.modules()) if head is not None else set()
    return None if any(layer.module in inside for layer in tracked.layers) else head


def _meant(
    model: torch.nn.Module,
    modules: dict[str, torch.nn.Module],
    named: dict[str, torch.nn.Parameter],
    names: dict[int, str],
    target_modules: TargetModules,
) -> tuple[set[str], set[str], set[str]]:
    """Names of the parameters that were meant, of those asked for (all but the default's), and of those left out."""
    trainable = {name for name, parameter in named.items() if parameter.requires_grad}
    partial = is_partial(model)
    head, tables = head_names(model), _embedding_parameters(model)
    wanted, unwanted = _split(target_modules)
    check_left_out(model, target_modules)
    meant: set[str] = set()
    left_out: set[str] = set()
    for name, module in modules.items():
        own = _own(module, names)
        if unwanted is not None and _inside(name, unwanted):
            left_out |= own
        elif partial:
            meant |= own & trainable if wanted is None or _matches(name, wanted) else set()
        elif wanted is not None:
            meant |= own if _matches(name, wanted) else set()
        elif name not in head:
            meant |= own - tables
    meant -= left_out  # also what is tied to something else
    return meant, set(meant) if partial or wanted is not None else set(), left_out


def _layers(
    modules: dict[str, torch.nn.Module], names: dict[int, str], wanted: set[str]
) -> tuple[list[Layer | Replaced], set[str]]:
    """The layers of the wanted parameters, and those parameters that some module holds in an unknown way."""
    layers: list[Layer | Replaced] = []
    unknown: set[str] = set()
    for name, module in modules.items():
        own = _own(module, names) & wanted
        layer: Layer | Replaced | None = make_dora(name, module, own, names)
        if not own:
            # The factors beside it are tracked perhaps, and have to be kept apart from its own use of them.
            layers += [] if layer is None else [layer]
            continue
        fused = make_experts(name, module, own, names)
        layer = layer or (fused[0] if fused else make_layer(name, module, own, names))
        layer = layer or make_products(name, module, own, names)
        if layer is not None:
            layers.append(layer)
        covered = {parameter.name for parameter in layer.parameters} if layer is not None else set()
        unknown |= own - (fused[1] if fused else covered)
    return layers, unknown


def _added_to_weights(model: torch.nn.Module, names: dict[int, str]) -> set[str]:
    """Names of LoRA factors that make a matrix which is added to a weight, as for fused experts, and see no input."""
    factors: list[torch.nn.Module] = [
        factor
        for module in model.modules()
        if type(module).__name__ == "ParamWrapper" and type(module).__module__.startswith("peft.")
        for factor in (module.lora_A, module.lora_B)
    ]
    return {names[id(parameter)] for factor in factors for parameter in factor.parameters()}


def _check_adapters(model: torch.nn.Module) -> None:
    """Refuses adapters that take no part in the forward, or that nothing is to be learned of."""
    if not is_adapted(model):
        return
    for name, module in model.named_modules():
        if getattr(module, "merged", False) is True and hasattr(module, "merged_adapters"):
            raise InvalidInputError(
                f"layer {name!r}: found its adapter merged into the weight, expected it beside; call"
                " model.unmerge_adapter()"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidInputError(
            "found an adapter whose parameters are all frozen, expected some to train: load it with "
            "PeftModel.from_pretrained(…, is_trainable=True)"
        )


def _own(module: torch.nn.Module, names: dict[int, str]) -> set[str]:
    return {names[id(parameter)] for parameter in module.parameters(recurse=False)}


def _packed(modules: dict[str, Any], names: dict[int, str]) -> dict[str, int]:
    """Names of quantised weights, and how many numbers each stands for."""
    return {
        names[id(module.weight)]: module.in_features * module.out_features
        for module in modules.values()
        if is_quantised(module)
    }


def is_adapted(model: torch.nn.Module) -> bool:
    """Whether `peft` has wrapped the model."""
    return hasattr(model, "peft_config")


def is_partial(model: torch.nn.Module) -> bool:
    """Whether the model says what is trained: it has an adapter, or some of its parameters are frozen."""
    named = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    able = len(named) - len(_packed(dict(model.named_modules()), names))  # packed weights are never trainable
    trainable = sum(parameter.requires_grad for parameter in named.values())
    return is_adapted(model) or 0 < trainable < able


def _all_zero_b(modules: dict[str, torch.nn.Module], meant: set[str], names: dict[int, str]) -> bool:
    """Whether LoRA factors B are meant, and all of them are zero."""
    factors: list[Any] = [
        module.weight
        for name, module in modules.items()
        if ".lora_B." in f"{name}." and is_linear(module) and names[id(module.weight)] in meant
    ]
    return bool(factors) and not any(bool(torch.any(factor.detach())) for factor in factors)


def _head(model: torch.nn.Module) -> torch.nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    return head if isinstance(head, torch.nn.Module) else None


def head_names(model: torch.nn.Module) -> set[str]:
    """Names of the output head, and of what is called lm_head."""
    head = _head(model)
    return {
        name for name, module in model.named_modules() if module is head or name.split(".")[-1] == "lm_head"
    }


def _embedding_parameters(model: torch.nn.Module) -> set[str]:
    """Names of the parameters of all embeddings, tied ones under their first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    return {names[id(parameter)] for module in tables for parameter in module.parameters(recurse=False)}


def picked(name: str, target_modules: TargetModules, otherwise: bool) -> bool:
    """Whether `target_modules` picks the module of this name; `otherwise` where it does not say."""
    wanted, unwanted = _split(target_modules)
    if unwanted is not None and _inside(name, unwanted):
        return False
    return otherwise if wanted is None else _matches(name, wanted)


def check_left_out(model: torch.nn.Module, target_modules: TargetModules) -> None:
    """Refuses a "!name" that leaves nothing out: it may be misspelt.

    Raises:
        InvalidInputError: See above.
    """
    _, unwanted = _split(target_modules)
    patterns = [unwanted] if isinstance(unwanted, str) else unwanted or []
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        one = pattern if isinstance(unwanted, str) else [pattern]
        if not any(_matches(name, one) for name in names):
            ends = ", ".join(_linear_ends(model)) or "none"
            raise InvalidInputError(
                f"target_modules: '!{pattern}' leaves no module out; those of linear layers here end in: {ends}"
            )


def _inside(name: str, unwanted: str | Sequence[str]) -> bool:
    """Whether the module, or one that it is a part of, is unwanted."""
    parts = name.split(".")
    return any(_matches(".".join(parts[:count]), unwanted) for count in range(1, len(parts) + 1))


def _linear_ends(model: torch.nn.Module) -> list[str]:
    """The ends of the names of linear layers, twenty at most."""
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module)})[
        :20
    ]


def _split(target_modules: TargetModules) -> tuple[TargetModules, TargetModules]:
    """What is to be tracked and what is not, without its "!"; None where nothing is said."""
    if isinstance(target_modules, str):
        no = target_modules.startswith("!")
        return (None, target_modules[1:]) if no else (target_modules, None)
    unwanted = [each[1:] for each in target_modules or () if each.startswith("!")]
    if not unwanted:
        return target_modules, None
    return [each for each in target_modules or () if not each.startswith("!")] or None, unwanted


def _matches(name: str, target_modules: str | Sequence[str]) -> bool:
    # An adapter's factors answer to the name of the layer they belong to.
    plain = re.sub(r"\.(base_layer|lora_([AB]|magnitude_vector)(\..*)?)$", "", name)
    patterns = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    for pattern in patterns:
        if any(each == pattern or each.endswith(f".{pattern}") for each in (name, plain)):
            return True
    if isinstance(target_modules, str):
        try:
            return any(re.fullmatch(target_modules, each) is not None for each in (name, plain))
        except re.error as error:
            raise InvalidInputError(
                f"target_modules {target_modules!r} is no regular expression: {error}"
            ) from None
    return False


def no_target(model: torch.nn.Module, target_modules: TargetModules, meant: Sequence[str] = ()) -> str:
    """What to say where nothing is tracked, though parameters were meant."""
    if any(is_quantised(module) and f"{name}.weight" in meant for name, module in model.named_modules()):
        return (
            "weights in 4 or 8 bits have no gradient of their own; give a lora_rank, or a model with a LoRA"
        )
    available = ", ".join(_linear_ends(model)) or "none"
    if target_modules is None:
        return f"nothing can be tracked: no trainable parameter is in a linear layer (these are: {available})"
    return f"target_modules {target_modules!r} picks no linear layer to track; names here end in: {available}"
