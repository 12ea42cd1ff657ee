"""Adam's second moments, by which rows are seen as the optimiser sees them.

Adam divides each coordinate of a step by the root of its second moment, so that the gradient that matters in training is

    g / (√v̂ + ε),    v̂ = v / (1 - β₂ᵗ)

with v (`exp_avg_sq`) and t of a training run. LESS (Xia et al. 2024, arXiv 2402.04333, section 3.1) compares samples by
Adam's whole step, in which the momentum is one and the same vector for all samples and v takes in the sample's own g².
Both are left out here, so that a row stays linear in g: sums, means and unit rows keep their meaning.

A coordinate with v = 0 has never had a gradient in training. There is no scale for it, 1/ε would drown all others, and it
is left out.

Read are states of torch's Adam and AdamW: `optimizer.pt` of a `transformers` checkpoint, a state dict keyed by index or
by name, or a safetensors file with "NAME.exp_avg_sq" and "NAME.step". Files are never unpickled to more than tensors and
plain values. Indices go by the order of the parameters that are trainable, and with two groups by the rule of
`transformers.Trainer`: those with weight decay first. Every shape is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.naming import matching
from spice_rs.files import check_file
from spice_rs.nouns import counted
from spice_rs.paths import local

OptimizerState: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | torch.optim.Optimizer
"""A file, a folder with one (`optimizer.pt`), a state dict, or an optimiser."""

_SAFE_TORCH = (2, 10)
_FILES = ("optimizer.pt", "optimizer.bin", "optimizer.safetensors")
_DEFAULTS = {"betas": (0.9, 0.999), "eps": 1e-8}  # torch's own, for files that do not say
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


@dataclass(frozen=True)
class Moments:
    """What gradients are multiplied by.

    Attributes:
        scales: Name of a parameter → 1 / (√v̂ + ε), float32 of its shape; 0 where v is.
        untrained: Share of the coordinates where v is 0.
        fingerprint: Hash of the scales.
    """

    scales: dict[str, torch.Tensor]
    untrained: float
    fingerprint: str


def read_moments(optimizer: OptimizerState, network: torch.nn.Module, wanted: Sequence[str]) -> Moments:
    """The scales of the parameters called `wanted`.

    Args:
        optimizer: Where the moments are.
        network: The model, trainable where it was in training.
        wanted: Names in `named_parameters()`.

    Raises:
        InvalidInputError: There is no such file, it is no state of Adam, or it belongs to another model.
    """
    named = dict(network.named_parameters())
    place, states = _by_name(optimizer, named, network)
    scales: dict[str, torch.Tensor] = {}
    zero = 0
    digest = hashlib.sha256()
    for name in wanted:
        if name not in states:
            raise InvalidInputError(
                f"{place}: found no moments of {name}, expected them for every tracked parameter; track only what"
                " was trained "
                "(target_modules), or give the optimiser's state of this model"
            )
        scales[name] = _scale(f"{place}: {name}", *states[name], named[name])
        zero += int((scales[name] == 0).sum())
        digest.update(f"{name}:{tuple(scales[name].shape)}\n".encode())
        digest.update(scales[name].contiguous().numpy().data)
    untrained = zero / sum(scale.numel() for scale in scales.values())
    if untrained == 1:
        raise InvalidInputError(
            f"{place}: found second moments that are all zero, expected those of a run that has begun"
        )
    return Moments(scales, untrained, digest.hexdigest())


def _scale(
    place: str, state: Mapping[str, Any], group: Mapping[str, Any], parameter: torch.Tensor
) -> torch.Tensor:
    moment = state.get("max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")
    if not isinstance(moment, torch.Tensor):
        there = ", ".join(map(str, state)) or "nothing"
        raise InvalidInputError(
            f"{place}: found {there}, expected exp_avg_sq; give the state of torch's Adam or AdamW"
        )
    if moment.shape != parameter.shape:
        raise InvalidInputError(
            f"{place}: found moments of shape {tuple(moment.shape)}, expected {tuple(parameter.shape)}; give the"
            " optimiser's "
            "state of this model"
        )
    moment = moment.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(moment).all()) or bool((moment < 0).any()):
        raise InvalidInputError(f"{place} has second moments that are negative or no numbers")
    step = state.get("step")
    if step is not None:
        if float(step) < 1:
            raise InvalidInputError(
                f"{place}: found step {float(step):g}, expected 1 or more. Give the state of a run that has begun."
            )
        moment = moment / (1 - float(group["betas"][1]) ** float(step))
    scale = (moment.sqrt() + float(group["eps"])).reciprocal_()
    # What would overflow is kept in range: it is 1/ε of an ε that is next to nothing.
    scale = scale.clamp_(max=1e30).to(torch.float32)
    return torch.where(moment > 0, scale, torch.zeros_like(scale))


_Entry = tuple[Mapping[str, Any], Mapping[str, Any]]


def _by_name(
    optimizer: OptimizerState, named: dict[str, torch.nn.Parameter], network: torch.nn.Module
) -> tuple[str, dict[str, _Entry]]:
    """What to call the source, and name in the model → (state, settings of its group)."""
    if isinstance(optimizer, torch.optim.Optimizer):
        names = {id(parameter): name for name, parameter in named.items()}
        found: dict[str, _Entry] = {
            names[id(parameter)]: (optimizer.state[parameter], {**_DEFAULTS, **group})
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in names and parameter in optimizer.state
        }
        return "optimizer", found
    place, content = _load(optimizer)
    state = content.get("state")
    if not isinstance(state, Mapping) or not all(isinstance(each, Mapping) for each in state.values()):
        raise InvalidInputError(
            f"{place}: found no state by parameter, expected an optimiser's state_dict with 'state' and 'param_groups'"
        )
    groups = _groups(place, content.get("param_groups", [])) or [{**_DEFAULTS}]
    keys: list[tuple[Any, Mapping[str, Any]]] = [
        (key, group) for group in groups for key in group.get("params", ())
    ]
    if all(isinstance(key, str) for key in state):
        settings: dict[Any, Mapping[str, Any]] = dict(keys)
        names_of = matching(state, named)
        return place, {name: (state[key], settings.get(key, groups[0])) for key, name in names_of.items()}
    if not all(isinstance(key, int) for key in state) or not keys:
        raise InvalidInputError(
            f"{place}: found {_some(state)} as keys of 'state', expected indices or names. Give the optimiser's state_dict."
        )
    order = _order(place, groups, named, network)
    return place, {
        name: (state[key], group) for (key, group), name in zip(keys, order, strict=True) if key in state
    }


def _groups(place: str, given: Any) -> list[dict[str, Any]]:
    """The groups with what they do not say.

    Raises:
        InvalidInputError: They are no groups of Adam.
    """
    try:
        groups = [{**_DEFAULTS, **group} for group in given]
        for group in groups:
            float(group["eps"]), float(group["betas"][1]), list(group.get("params", ()))
            names = group.get("param_names")
            if names is not None and len(names) != len(group["params"]):
                raise ValueError(
                    f"{counted(len(names), 'name')} of {counted(len(group['params']), 'parameter')}"
                )
            if any(
                isinstance(key, bool) or not isinstance(key, int | str) for key in group.get("params", ())
            ):
                raise ValueError("params that are neither indices nor names")
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InvalidInputError(
            f"{place}: found param_groups that cannot be read ({type(error).__name__}: {error}), expected those of"
            " torch's Adam or "
            "AdamW"
        ) from error
    return groups


def _order(
    place: str, groups: list[dict[str, Any]], named: dict[str, torch.nn.Parameter], network: torch.nn.Module
) -> list[str]:
    """Names of the parameters, in the order of the groups."""
    if all("param_names" in group for group in groups):
        given = [name for group in groups for name in group["param_names"]]
        found = matching(given, named)
        return [found.get(name, name) for name in given]
    trainable = [name for name, parameter in named.items() if parameter.requires_grad]
    filled = [len(group.get("params", ())) for group in groups if group.get("params")]
    if len(filled) == 2:
        plain = _without_decay(network)
        parts = [[name for name in trainable if (name in plain) is decayed] for decayed in (False, True)]
        if [len(part) for part in parts] == filled:
            return [name for part in parts for name in part]
    if sum(filled) != len(trainable) or len(filled) > 1:
        raise InvalidInputError(
            f"{place}: found {counted(len(filled), 'group')} of {', '.join(map(str, filled))} parameters by index, expected"
            " one of the "
            f"model's {len(trainable)} trainable ones, or two as transformers.Trainer makes them; give the moments by name"
        )
    return trainable


def _without_decay(network: torch.nn.Module) -> set[str]:
    """Names of the parameters that `transformers.Trainer` puts into its second group."""
    norms = {
        f"{name}.{each}" if name else each
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
        for each, _ in module.named_parameters(recurse=False)
    }
    return norms | {name for name, _ in network.named_parameters() if _NO_DECAY.search(name.lower())}


def _load(optimizer: Any) -> tuple[str, Mapping[str, Any]]:
    """The source's name for people, and its state dict."""
    if isinstance(optimizer, Mapping):
        return "optimizer", optimizer
    if not isinstance(optimizer, str | os.PathLike):
        raise InvalidInputError(
            f"optimizer: found {type(optimizer).__name__}, expected a file, a state dict or an optimiser of torch."
            " Give one."
        )
    path = Path(local(optimizer))
    if path.is_dir():
        inside = [path / name for name in _FILES if (path / name).is_file()]
        if not inside:
            raise InvalidInputError(
                f"{path}: found no optimiser's state, expected one of {', '.join(_FILES)}. Name a checkpoint that has it."
            )
        path = inside[0]
    content = load_tensors(path)
    if path.suffix == ".safetensors":
        state: dict[str, dict[str, Any]] = {}
        for key, value in content.items():
            name, _, what = key.rpartition(".")
            state.setdefault(name, {})[what] = value
        content = {"state": state}
    return str(path), content


def load_tensors(path: Path) -> Mapping[str, Any]:
    """What a file of tensors holds, in CPU memory: safetensors, or torch's format with nothing else in it.

    Raises:
        InvalidInputError: There is no such file, or it holds something else.
    """
    from safetensors.torch import load_file

    check_file(path, "a file of tensors")
    if path.suffix != ".safetensors":
        _check_torch(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # what unpickles a crafted file meets anything: KeyError, AttributeError, MemoryError
        reason = " ".join(str(error).split())[:200]
        raise InvalidInputError(
            f"{path}: cannot be read as tensors ({reason}); expected safetensors, or torch.save of a state dict"
        ) from error
    if not isinstance(content, Mapping):
        raise InvalidInputError(f"{path}: found {type(content).__name__}, expected a state dict")
    return content


def _check_torch(path: Path) -> None:
    """Refuses torch's own format where its reader, even of tensors alone, runs code of a crafted file.

    Below 2.6 that is CVE-2025-32434, below 2.10 CVE-2026-24747.
    """
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < _SAFE_TORCH:
        raise InvalidInputError(
            f"{path}: found torch {torch.__version__}, expected {'.'.join(map(str, _SAFE_TORCH))} or later to read a file"
            " in torch's format: earlier ones run code that a file brings with it. Update torch, or save the tensors as"
            " safetensors"
        )


def _some(keys: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key) for key in list(keys)[:3]) or "missing"
