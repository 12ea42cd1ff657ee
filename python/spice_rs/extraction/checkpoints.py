"""Checkpoints of a training run: their weights by name, put beside those of the model that was given."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from spice_rs.arguments import reals, refused
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.moments import load_tensors, read_moments
from spice_rs.extraction.naming import matching
from spice_rs.extraction.proxy import load_model
from spice_rs.extraction.views import View
from spice_rs.nouns import counted
from spice_rs.paths import local

CheckpointSource: TypeAlias = str | os.PathLike[str] | Mapping[str, torch.Tensor]
"""A folder or hub id of a model or an adapter, a file of tensors by name, or these tensors."""

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one checkpoint.

    Attributes:
        name: For people.
        given: Names of the model's tensors that it has.
        values: (tensor of the model, its values at the checkpoint), where they differ.
        fingerprint: Hash of all that it has.
    """

    name: str
    given: frozenset[str]
    values: Sequence[tuple[torch.Tensor, torch.Tensor]]
    fingerprint: str


def read_checkpoint(
    source: Any, number: int, network: torch.nn.Module, *, device: torch.device, trust_remote_code: bool
) -> Checkpoint:
    """The weights of a checkpoint, for tensors of the model.

    Args:
        source: Where it is.
        number: Its place among the checkpoints.
        network: The model, with its adapter if it has one.
        device: Where the model is to be used.
        trust_remote_code: For a folder with code of its own.

    Raises:
        InvalidInputError: It cannot be read, or is one of another model.
    """
    place, given = _load(source, number, device, trust_remote_code)
    tensors: dict[str, torch.Tensor] = dict(network.named_parameters(remove_duplicate=False))
    saved = network.state_dict().keys()
    tensors |= {name: buffer for name, buffer in network.named_buffers() if name in saved}
    found = matching(given, tensors)
    strange = sorted(given.keys() - found.keys())
    if strange or not found:
        what = (
            f"{counted(len(strange), 'tensor')} that the model has not ({strange[0]})"
            if strange
            else "no tensors"
        )
        raise InvalidInputError(
            f"{place}: found {what}, expected a checkpoint of the model; give one of the run's checkpoints as the model"
        )
    digest = hashlib.sha256()
    values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for key, name in sorted(found.items(), key=lambda item: item[1]):
        tensor, value = tensors[name], given[key]
        if value.shape != tensor.shape:
            raise InvalidInputError(
                f"{place}: found {key} of shape {tuple(value.shape)}, expected the model's {tuple(tensor.shape)}"
            )
        value = value.detach().to("cpu", tensor.dtype)
        wide = value.to(torch.float32) if value.is_floating_point() else value
        digest.update(f"{name}:{tuple(value.shape)}\n".encode() + wide.contiguous().numpy().tobytes())
        if not torch.equal(value, tensor.detach().cpu()):
            values[id(tensor)] = (tensor, value)
    packed = [name for name, tensor in tensors.items() if id(tensor) in values and not _plain(tensor)]
    if packed:
        raise InvalidInputError(
            f"{place}: found {packed[0]} packed in 4 or 8 bits and other than the model's, expected the same base for all "
            "checkpoints"
        )
    pairs = _near(list(values.values()), network, device)
    first = {id(parameter): name for name, parameter in network.named_parameters()}  # of those that are tied
    names = frozenset(first.get(id(tensors[name]), name) for name in found.values())
    return Checkpoint(place, names, pairs, digest.hexdigest())


def read_checkpoints(
    sources: Sequence[Any] | None, network: torch.nn.Module, *, device: torch.device, trust_remote_code: bool
) -> list[Checkpoint]:
    """All checkpoints, none if no source is given; see `read_checkpoint`.

    Raises:
        InvalidInputError: As there, or there is a list without any.
    """
    if sources is None:
        return []
    sources = _listed(sources)
    if not sources:
        raise InvalidInputError(
            "checkpoints: found none, expected at least one. Leave it out for the model's own weights."
        )
    return [
        read_checkpoint(source, number, network, device=device, trust_remote_code=trust_remote_code)
        for number, source in enumerate(sources)
    ]


def make_views(
    network: torch.nn.Module,
    tracked: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    *,
    weights: Sequence[float] | None,
    optimizer: Any,
    fresh: bool,
) -> tuple[list[View], dict[str, Any]]:
    """What each checkpoint makes of a gradient, and what a store records of it.

    Args:
        network: The model, trainable where it was in training.
        tracked: Names of the parameters whose gradients are taken.
        checkpoints: None for the model as it is.
        weights: Of the checkpoints.
        optimizer: One optimiser's state, or one for each checkpoint.
        fresh: The adapter was never trained.

    Raises:
        InvalidInputError: The numbers of checkpoints, weights and states differ, or one cannot be used.
    """
    count = max(1, len(checkpoints))
    if weights is not None and not checkpoints:
        raise InvalidInputError(
            "checkpoint_weights was given without checkpoints; leave it out, or give both"
        )
    numbers = [1.0] * count
    if weights is not None:
        numbers = reals("checkpoint_weights", weights)
        if len(numbers) != count:
            expected = f"{count} positive numbers, one for each checkpoint"
            raise refused("checkpoint_weights", weights, expected, "Give as many.")
    states = [None] * count if optimizer is None else _listed(optimizer)
    if len(states) != count:
        raise InvalidInputError(
            f"optimizer: found {counted(len(states), 'state')}, expected {count}: one for each checkpoint. Give as many."
        )
    if optimizer is not None and fresh:
        raise InvalidInputError(
            "optimizer was given with lora_rank, but no optimiser has seen a fresh LoRA; give a trained adapter instead"
        )
    check_tracked(checkpoints, tracked)
    views, entries = [], []
    for number in range(count):
        moments = None if states[number] is None else read_moments(states[number], network, tracked)
        if moments is not None and moments.untrained:
            warnings.warn(
                f"{moments.untrained:.2%} of the coordinates have second moments of zero: they were never trained, and are "
                "left out",
                SpiceWarning,
                stacklevel=5,
            )
        views.append(
            View(
                prefix=f"{number}:" if count > 1 else "",
                weight=numbers[number],
                values=checkpoints[number].values if checkpoints else (),
                scales=None if moments is None else moments.scales,
            )
        )
        seen = None if moments is None else {"kind": "adam", "moments": moments.fingerprint}
        entries.append({} if seen is None else {"optimizer": seen})
    if not checkpoints:
        return views, entries[0]
    described = [
        {
            "id": Path(checkpoint.name).name,
            "weights": checkpoint.fingerprint,
            "weight": number,
            **entry,
        }
        for checkpoint, number, entry in zip(checkpoints, numbers, entries, strict=True)
    ]
    return views, {"checkpoints": described}


def _listed(value: Any) -> list[Any]:
    """What was given, or each of what was given in a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def check_tracked(checkpoints: Sequence[Checkpoint], tracked: Sequence[str]) -> None:
    """Says which tracked parameter a checkpoint lacks, where it has others.

    Raises:
        InvalidInputError: There is one.
    """
    for checkpoint in checkpoints:
        missing = [name for name in tracked if name not in checkpoint.given]
        if 0 < len(missing) < len(tracked):  # those of a fresh adapter are in none
            raise InvalidInputError(
                f"{checkpoint.name}: found no {missing[0]}, expected it since its gradient is taken; track only what all "
                "checkpoints have (target_modules)"
            )


def _load(
    source: Any, number: int, device: torch.device, trust_remote_code: bool
) -> tuple[str, Mapping[str, torch.Tensor]]:
    """The checkpoint's name for people, and its tensors by name."""
    if isinstance(source, Mapping):
        place, given = f"checkpoints[{number}]", dict(source)
    elif not isinstance(source, str | os.PathLike):
        raise InvalidInputError(
            f"checkpoints[{number}]: found {type(source).__name__}, expected a folder, a file or a state dict. Give one."
        )
    else:
        source = local(source)
        path, place = Path(source), source
        adapter = next((path / name for name in _ADAPTERS if (path / name).is_file()), None)
        if path.is_file() or adapter is not None:
            given = dict(load_tensors(adapter or path))
        else:
            network, _ = load_model(
                source,
                gguf_file=None,
                device=torch.device("cpu"),
                trust_remote_code=trust_remote_code,
            )
            given = network.state_dict()
    wrong = [name for name, value in given.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise InvalidInputError(
            f"{place}: {wrong[0]}: found {type(given[wrong[0]]).__name__}, expected tensors by name"
        )
    return place, given


def _plain(tensor: torch.Tensor) -> bool:
    """Whether the values alone say what a weight is."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _near(
    values: list[tuple[torch.Tensor, torch.Tensor]], network: torch.nn.Module, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """An adapter's values are kept where the model is used; a whole model's are fetched for each batch."""
    size = sum(value.numel() for _, value in values)
    if size > sum(parameter.numel() for parameter in network.parameters()) // 8:
        return values
    return [(tensor, value.to(device)) for tensor, value in values]
