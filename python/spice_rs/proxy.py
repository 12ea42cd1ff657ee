"""The proxy: the model whose gradients stand for the samples; its loading, adapters, tracked parameters.

What is tracked:

- A model with an adapter, or with only some of its parameters trainable: those trainable parameters and no
others.
- A plain model: weights and biases of its linear layers, all but the output head, or those that
`target_modules`
  picks.

Only linear layers (`nn.Linear`, `Conv1D`) can be told apart by sample. *Coverage* is the tracked share of the
parameters that were meant: of the trainable ones, of the modules that `target_modules` picks, or of the whole
model but its embeddings and head. It is recorded with the store, since mixture-of-experts models keep most of
their parameters in fused experts that are no linear layers.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.hooks import Layer
from spice_rs.projection import Parameter

TargetModules = str | Sequence[str] | None
"""Names or ends of names ("q_proj"), one of these, a pattern for whole names, or None: the default."""


@dataclass(frozen=True)
class Tracked:
    """What is tracked of a model.

    Attributes:
        layers: In the order of `named_modules()`.
        parameters: Each once, in the order of `named_parameters()`.
        coverage: Tracked share of the parameters that were meant, in (0, 1].
        missed: Names of parameters that were meant and are not tracked.
        zero_lora: A is left out, since every B is zero and A's gradient with it.
    """

    layers: list[Layer]
    parameters: list[Parameter]
    coverage: float
    missed: list[str]
    zero_lora: bool


def load_model(
    model: Any, *, gguf_file: str | None, device: torch.device, trust_remote_code: bool
) -> tuple[torch.nn.Module, str]:
    """The model and the name it is recorded under: a hub id, or the last part of a path.

    Weights are read as safetensors or GGUF, never unpickled; float32 on a CPU, as stored on a GPU.

    Raises:
        InvalidInputError: Not a module, and nothing that `transformers` can load.
    """
    if isinstance(model, torch.nn.Module):
        config = getattr(model, "config", None)
        return model, _short_name(getattr(config, "_name_or_path", "") or type(model).__name__)
    if not isinstance(model, (str, os.PathLike)):
        raise InvalidInputError(
            f"model is {type(model).__name__}, expected a folder, a hub id or a torch module"
        )
    if not Path(model).is_dir() and (Path(model).is_absolute() or os.fspath(model).startswith(".")):
        raise InvalidInputError(f"{model}: no such folder, expected one with a model; check the path")
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    with _explained(f"{model}: no causal language model that can be loaded"):
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            trust_remote_code=trust_remote_code,
            **options,
        )
    with _explained(f"device={device}: cannot hold the model"):
        return loaded.to(device), _short_name(str(model))


def load_tokenizer(model: Any, *, gguf_file: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer that lies beside a model; None for a module, which has none.

    Raises:
        InvalidInputError: The folder or hub id has no tokenizer.
    """
    if isinstance(model, torch.nn.Module):
        return None
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    with _explained(f"{model}: no tokenizer that can be loaded (pass tokenizer=…)"):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code, **options)


@contextmanager
def fresh_lora(
    model: torch.nn.Module, rank: int, target_modules: TargetModules, seed: int
) -> Iterator[tuple[torch.nn.Module, dict[str, Any]]]:
    """Inside, the model wears a LoRA (alpha = 2·rank, as in the paper) whose A is drawn from `seed`.

    Yields:
        The wrapped model, and what a store records of the adapter.

    Raises:
        InvalidInputError: The rank is no positive integer, there is an adapter already, or no module is
        picked.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InvalidInputError(f"lora_rank is {rank!r}, expected a positive integer")
    if _is_adapted(model):
        raise InvalidInputError("lora_rank was given for a model that has an adapter; leave lora_rank out")
    from peft import LoraConfig, get_peft_model

    head = _head_names(model)
    modules = [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and (_picked(name, target_modules) if target_modules else name not in head)
    ]
    if not modules:
        raise InvalidInputError(_no_target(model, target_modules))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = {"kind": "lora", "rank": rank, "alpha": 2 * rank, "seed": seed}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)  # peft draws A on the CPU, then moves it
        warnings.simplefilter("ignore")  # peft notes that Conv1D is stored transposed, and acts on it
        wrapped = get_peft_model(model, config)
    try:
        yield wrapped, settings
    finally:
        wrapped.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)


def track(model: torch.nn.Module, target_modules: TargetModules) -> Tracked:
    """Finds the layers whose gradients are taken (see the module's text).

    Raises:
        InvalidInputError: Nothing can be tracked, or a gradient would be incomplete: DoRA, or a head tied to
            the embeddings.
    """
    named = dict(model.named_parameters())  # a tied parameter once, under its first name
    names = {id(parameter): name for name, parameter in named.items()}
    trainable = {name for name, parameter in named.items() if parameter.requires_grad}
    partial = _is_adapted(model) or 0 < len(trainable) < len(named)
    head = _head_names(model)
    embeddings = _embedding_parameters(model)
    if any(getattr(config, "use_dora", False) for config in getattr(model, "peft_config", {}).values()):
        raise InvalidInputError("DoRA uses its factors outside of linear layers; merge it, or use plain LoRA")

    layers: list[Layer] = []
    meant: set[str] = set()
    for name, module in model.named_modules():
        own = {names[id(parameter)] for parameter in module.parameters(recurse=False)}
        if partial:
            wanted = own & trainable if target_modules is None or _picked(name, target_modules) else set()
        elif target_modules is not None:
            wanted = own if _picked(name, target_modules) else set()
        else:
            wanted = own - {parameter for parameter in own if parameter in embeddings or name in head}
        meant |= wanted
        if wanted and _is_linear(module):
            layers.append(_layer(name, module, wanted, names))
    zero_lora = _all_zero_b(layers)
    if zero_lora:
        layers = [layer for layer in layers if ".lora_A." not in f"{layer.name}."]
        meant = {name for name in meant if ".lora_A." not in name}
    kept = {parameter.name: parameter for layer in layers for parameter in layer.parameters}
    if not kept:
        raise InvalidInputError(_no_target(model, target_modules))
    shared = embeddings & kept.keys()
    if shared:
        raise InvalidInputError(
            f"{sorted(shared)[0]} is shared with the input embeddings, whose part of the gradient hooks "
            "cannot see; leave the output head out of target_modules"
        )
    tracked = sum(named[name].numel() for name in kept)
    coverage = tracked / max(1, sum(named[name].numel() for name in meant))
    parameters = [kept[name] for name in named if name in kept]
    return Tracked(layers, parameters, coverage, sorted(meant - kept.keys()), zero_lora)


def warn_of_coverage(tracked: Tracked) -> None:
    """Says what is left out, where it is more than the norms of a common model."""
    if tracked.coverage < 0.98:
        some = ", ".join(tracked.missed[:3]) + (", …" if len(tracked.missed) > 3 else "")
        warnings.warn(
            f"gradients cover {tracked.coverage:.1%} of the parameters meant: {len(tracked.missed)} belong "
            f"to no linear layer ({some}) and are left out",
            SpiceWarning,
            stacklevel=3,
        )


@contextmanager
def prepared(model: torch.nn.Module, device: torch.device | None) -> Iterator[None]:
    """Inside, the model is frozen, without dropout and checkpointing, on `device`; afterwards as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    home = next(model.parameters()).device
    try:
        model.eval()  # transformers checkpoints activations in training mode alone
        for parameter in trainable:
            parameter.requires_grad_(False)
        if device is not None and device != home:
            model.to(device)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
        if device is not None and device != home:
            model.to(home)


def weight_fingerprint(model: torch.nn.Module) -> str:
    """Hash of all parameters' names, shapes and values as float32, whatever their dtype and device."""

    def one(item: tuple[str, torch.nn.Parameter]) -> bytes:
        name, parameter = item
        digest = hashlib.sha256(f"{name}:{tuple(parameter.shape)}\n".encode())
        # In parts, so that a large embedding is not held twice; bfloat16 to float32 is exact.
        for part in parameter.detach().reshape(-1).split(1 << 24):
            digest.update(part.to(device="cpu", dtype=torch.float32).numpy().data)
        return digest.digest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(pool.map(one, model.named_parameters()))).hexdigest()


def output_head(model: torch.nn.Module, tracked: Tracked) -> torch.nn.Module | None:
    """The head, if its input may be cut to the learned positions: it exists, and nothing in it is tracked."""
    head = _head(model)
    inside = set(head.modules()) if head is not None else set()
    return None if any(layer.module in inside for layer in tracked.layers) else head


def limits(model: torch.nn.Module) -> tuple[int | None, int | None]:
    """The size of the vocabulary and the most positions the model was made for, as far as it says."""
    getter = getattr(model, "get_input_embeddings", None)
    rows = getattr(getter(), "num_embeddings", None) if getter is not None else None
    return rows, getattr(getattr(model, "config", None), "max_position_embeddings", None)


def _layer(name: str, module: Any, wanted: set[str], names: dict[int, str]) -> Layer:
    transposed = not isinstance(module, torch.nn.Linear)
    weight_name, bias = names[id(module.weight)], module.bias
    weight = Parameter(weight_name, tuple(module.weight.shape)) if weight_name in wanted else None
    bias_name = names[id(bias)] if bias is not None else None
    return Layer(
        name,
        module,
        weight,
        Parameter(bias_name, tuple(bias.shape)) if bias_name is not None and bias_name in wanted else None,
        transposed,
    )


def _is_linear(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.nn.Linear):
        # Quantised layers are subclasses that pack their weights: there is no gradient of such a shape.
        return tuple(module.weight.shape) == (module.out_features, module.in_features)
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _is_adapted(model: torch.nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _all_zero_b(layers: list[Layer]) -> bool:
    factors = [layer.module.weight for layer in layers if ".lora_B." in f"{layer.name}."]
    return bool(factors) and not any(bool(torch.any(torch.as_tensor(factor).detach())) for factor in factors)


def _head(model: torch.nn.Module) -> torch.nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    return head if isinstance(head, torch.nn.Module) else None


def _head_names(model: torch.nn.Module) -> set[str]:
    head = _head(model)
    return {
        name for name, module in model.named_modules() if module is head or name.split(".")[-1] == "lm_head"
    }


def _embedding_parameters(model: torch.nn.Module) -> set[str]:
    """Names of the parameters of all embeddings, tied ones under their first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    return {names[id(parameter)] for module in tables for parameter in module.parameters(recurse=False)}


def _picked(name: str, target_modules: TargetModules) -> bool:
    if target_modules is None:
        return True
    # An adapter's factors answer to the name of the layer they belong to.
    plain = re.sub(r"\.(base_layer|lora_[AB](\..*)?)$", "", name)
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


def _no_target(model: torch.nn.Module, target_modules: TargetModules) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})
    available = ", ".join(ends[:20]) or "none"
    if target_modules is None:
        return f"nothing can be tracked: no trainable parameter is in a linear layer (these are: {available})"
    return f"target_modules {target_modules!r} picks no linear layer to track; names here end in: {available}"


def _short_name(model: str) -> str:
    return Path(model).name if Path(model).is_absolute() or Path(model).exists() else model


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise InvalidInputError(f"{what}: {' '.join(str(error).split())}") from error
