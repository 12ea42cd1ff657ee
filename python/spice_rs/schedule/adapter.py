"""What is trained of the proxy: what is trainable in part, else a fresh LoRA; put in, put back, written to disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spice_rs.extraction.inputs import Inputs
from spice_rs.extraction.proxy import add_lora, move, restorer
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.tracking import is_adapted, is_partial

LORA_RANK = 16
"""Rank of the LoRA that a plain model gets, as in the paper."""


@dataclass(frozen=True)
class Trained:
    """The proxy, ready to be trained.

    Attributes:
        network: The model on its device, in its fresh LoRA if it got one.
        parameters: What is trained, by name.
        lora: What there is to record of the fresh LoRA; None if there is none.
    """

    network: torch.nn.Module
    parameters: dict[str, torch.nn.Parameter]
    lora: dict[str, Any] | None


@contextmanager
def trainable(inputs: Inputs, settings: Settings) -> Iterator[Trained]:
    """Inside, the proxy can be trained; if the block raises, it is put back as it was.

    Args:
        inputs: The model.
        settings: Of the extraction: what LoRA.

    Raises:
        InvalidInputError: No LoRA can be put in, or the model cannot be moved to its device.
    """
    network, lora = inputs.network, None
    home = next(network.parameters()).device
    parameters: dict[str, torch.nn.Parameter] = {}
    copies: dict[str, torch.Tensor] = {}
    restore = restorer(network)
    try:
        if settings.lora_rank is not None or not is_partial(network):
            rank = LORA_RANK if settings.lora_rank is None else settings.lora_rank
            network, lora = add_lora(network, rank, settings.target_modules, settings.seed)
        parameters = {
            name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad
        }
        if lora is None:
            copies = {name: each.detach().clone() for name, each in parameters.items()}
        move(network, inputs.device)
        yield Trained(network, parameters, lora)
    except BaseException:
        with torch.no_grad():
            for name, copy in copies.items():
                parameters[name].copy_(copy)
        restore()
        raise
    finally:
        move(network, home)


def save_trained(trained: Trained, folder: Path) -> None:
    """Write what was trained to `folder`, whole or not at all: an adapter as `peft` loads it, else the parameters.

    Raises:
        OSError: A file cannot be written.
    """
    scratch = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(scratch, ignore_errors=True)
    network: Any = trained.network
    if is_adapted(network):
        # Asked to find out by itself, peft looks for the base model on the hub.
        options = {"save_embedding_layers": False} if hasattr(network, "base_model") else {}
        network.save_pretrained(str(scratch), **options)
    else:
        scratch.mkdir()
        save_file(_on_cpu(trained.parameters), scratch / "trained.safetensors")
    aside = folder.with_name(f".{folder.name}-old")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)  # at every moment one of the two is on disk as a whole
    scratch.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _on_cpu(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: each.detach().cpu().contiguous() for name, each in parameters.items()}
