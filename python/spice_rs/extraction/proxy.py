"""The proxy: the model whose gradients stand for the samples; its loading, fresh adapter, state while it is used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.arguments import checked
from spice_rs.extraction.layers import is_linear, is_quantised
from spice_rs.extraction.memory import check_parts, check_weights
from spice_rs.extraction.tracking import (
    TargetModules,
    check_left_out,
    head_names,
    is_adapted,
    no_target,
    picked,
)
from spice_rs.files import check_file, check_folder, unreadable
from spice_rs.hub import reached
from spice_rs.paths import is_meant_local, local, near

INFERENCE_UNITS = "support_avx512bf16_for_cpu"
"""The attribute by which a layer of bitsandbytes says that it may be repacked."""

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the most positions."""

_PASSED_BY = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Types of models whose fast kernels take the weight of `out_proj` by themselves: a LoRA there would take no part."""

_INPUT_HOOKS = ("_require_grads_hooks", "_require_grads_hook")
"""Where a model of transformers keeps the handles of its hooks on the embeddings."""


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
            f"model: found {type(model).__name__}, expected a folder, a hub id or a torch module. Give one."
        )
    model, gguf_file = _located(model, gguf_file)
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    check_parts(Path(model))
    if not gguf_file:
        with reached(model, "model"):
            quantised = _is_quantised(model, trust_remote_code)
        if quantised:
            options["device_map"] = {"": device}  # packed weights cannot all be moved later
        elif device.type == "cpu":
            check_weights(Path(model))
    with _explained(f"{model}: no causal language model that can be loaded", model), reached(model, "model"):
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            trust_remote_code=trust_remote_code,
            **options,
        )
    for parameter_name, parameter in loaded.named_parameters():
        if ".lora_" in parameter_name:  # the folder was an adapter's, which comes frozen as its base is
            parameter.requires_grad_(True)
    with _explained(f"device={device}: cannot hold the model"):
        return loaded if loaded.device == device else loaded.to(device), _short_name(str(model))


def _located(model: str | os.PathLike[str], gguf_file: str | None) -> tuple[str, str | None]:
    """The folder or hub id, and the GGUF file in it: people name the file itself, and their home by a tilde.

    Raises:
        InvalidInputError: It is a file of another kind, or two GGUF files are named.
    """
    name = local(model)
    place = Path(name)
    if not place.exists() and (is_meant_local(name) or place.suffix.lower() == ".gguf"):
        raise InvalidInputError(
            f"{name}: found no such folder, expected one with a model, or a .gguf file; check the path{near(name)}"
        )
    if place.is_dir():
        check_folder(place, "a model's files")
    if not place.is_file():
        if place.exists() and not place.is_dir():
            check_file(place, "a model's folder or a .gguf file")
        return name, gguf_file
    if place.suffix.lower() != ".gguf":
        raise InvalidInputError(
            f"{place}: found a file, expected a model's folder or a .gguf file; name the folder that it lies in"
        )
    if gguf_file not in (None, place.name):
        raise InvalidInputError(
            f"{place}: found a GGUF file beside gguf_file={gguf_file!r}, expected one of the two; leave"
            " one out"
        )
    return str(place.parent), place.name


def _is_quantised(model: Any, trust_remote_code: bool) -> bool:
    """Whether the folder's or hub id's configuration says that its weights are packed."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False  # an adapter's folder, or an error that loading will explain
    return getattr(config, "quantization_config", None) is not None


def load_tokenizer(model: Any, *, gguf_file: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer that lies beside a model; None for a module, which has none.

    Raises:
        InvalidInputError: The folder or hub id has no tokenizer.
    """
    if isinstance(model, torch.nn.Module):
        return None
    from transformers import AutoTokenizer

    model, gguf_file = _located(model, gguf_file)
    options = {"gguf_file": gguf_file} if gguf_file else {}
    missing = _explained(f"{model}: no tokenizer that can be loaded (pass tokenizer=…)", model)
    with missing, reached(model, "model"):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code, **options)


def add_lora(
    model: torch.nn.Module, rank: int, target_modules: TargetModules, seed: int
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Puts a LoRA (alpha = 2·rank, as in the paper) whose A is drawn from `seed` around the model's linear layers.

    Returns:
        The wrapped model, whose layers are the given model's, and what a store records of the adapter.

    Raises:
        InvalidInputError: The rank is no positive integer, the seed none that a generator takes, there is an adapter
        already, or no module is picked.
    """
    rank, seed = checked({"lora_rank": rank, "seed": seed}).values()
    if is_adapted(model):
        raise InvalidInputError("lora_rank was given for a model that has an adapter; leave lora_rank out")
    from peft import LoraConfig, get_peft_model

    head = head_names(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    check_left_out(model, target_modules)
    modules = [
        name
        for name, module in model.named_modules()
        if (is_linear(module) or is_quantised(module))
        and picked(name, target_modules or None, name not in head)
        and not (kind in _PASSED_BY and name.endswith("out_proj"))
    ]
    if not modules:
        raise InvalidInputError(no_target(model, target_modules))
    settings = {"kind": "lora", "rank": rank, "alpha": 2 * rank, "seed": seed}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)  # peft draws A on the CPU, then moves it
        warnings.simplefilter("ignore")  # peft notes that Conv1D is stored transposed, and acts on it
        with _targets_as_given(model):
            return get_peft_model(model, config), settings


@contextmanager
def _targets_as_given(model: Any) -> Iterator[None]:
    """Inside, peft puts a LoRA around the modules that it is told, and nothing else.

    Else it takes names such as "gate_proj" in some mixtures of experts for those that the experts had in transformers 4,
    and wraps the fused experts besides. It goes by the type in the model's configuration.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(type(config), "model_type"):
        yield
        return
    before = vars(config).get("model_type")
    config.model_type = ""
    try:
        yield
    finally:
        if before is None:
            del config.model_type
        else:
            config.model_type = before


@contextmanager
def fresh_lora(
    model: torch.nn.Module, rank: int, target_modules: TargetModules, seed: int
) -> Iterator[tuple[torch.nn.Module, dict[str, Any]]]:
    """Inside, the model wears the LoRA of `add_lora`; afterwards it is as it was.

    Yields:
        What `add_lora` returns.

    Raises:
        InvalidInputError: See `add_lora`.
    """
    restore = restorer(model)
    try:
        yield add_lora(model, rank, target_modules, seed)
    finally:
        restore()


def restorer(model: torch.nn.Module) -> Callable[[], None]:
    """What gives the model back the modules and the trainable parameters that it has now, whatever is put in meanwhile."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapted = is_adapted(model)
    children = [
        (module._modules, name, child)
        for module in model.modules()
        for name, child in module._modules.items()
    ]
    # peft makes the embeddings' output trainable in a model that forms activations again, as transformers has done.
    hooks = [(module._forward_hooks, set(module._forward_hooks)) for module in model.modules()]
    handles = {name: vars(model)[name] for name in _INPUT_HOOKS if name in vars(model)}

    def restore() -> None:
        for place, name, child in children:
            place[name] = child
        for hooked, before in hooks:
            for key in set(hooked) - before:
                del hooked[key]
        for name in _INPUT_HOOKS:
            vars(model).pop(name, None)
        vars(model).update(handles)
        if not adapted:
            vars(model).pop("peft_config", None)
        for parameter in trainable:
            parameter.requires_grad_(True)

    return restore


def move(model: torch.nn.Module, device: torch.device) -> None:
    """Put the model on a device, unless it is there: packed weights cannot all be moved.

    Raises:
        InvalidInputError: It does not fit, or cannot be moved.
    """
    if next(model.parameters()).device == device:
        return
    with _explained(f"device={device}: cannot hold the model"):
        model.to(device)


@contextmanager
def prepared(
    model: torch.nn.Module, device: torch.device | None, checkpointing: bool = False
) -> Iterator[None]:
    """Inside, the model is frozen, without dropout, on `device`; afterwards as it was.

    Args:
        model: The model.
        device: Where it is used; None for where it is.
        checkpointing: Form the activations of each of its blocks a second time instead of keeping them, as it does
            already where the model asks for it.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    home = next(model.parameters()).device
    some = [module for module in blocks(model) if checkpointing or module.gradient_checkpointing]
    try:
        model.eval()  # which also turns transformers' own checkpointing off: it goes by the mode
        for parameter in trainable:
            parameter.requires_grad_(False)
        if device is not None and device != home:
            model.to(device)
        with checkpointed(some, dropout=False), differentiable(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
        if device is not None and device != home:
            model.to(home)


@contextmanager
def differentiable(model: torch.nn.Module) -> Iterator[None]:
    """Inside, 4-bit layers on a CPU multiply as they do in training.

    Outside of it bitsandbytes repacks their weights for the bfloat16 units of some CPUs, and that product has no gradient:
    what lies below such a layer would silently get none.
    """
    layers: list[Any] = [each for each in model.modules() if getattr(each, INFERENCE_UNITS, False)]
    try:
        for layer in layers:
            setattr(layer, INFERENCE_UNITS, False)
            if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
                layer.state_dict()  # saving a layer puts the order of its weights back
        yield
    finally:
        for layer in layers:
            setattr(layer, INFERENCE_UNITS, True)


@contextmanager
def checkpointed(some: Sequence[Any], *, dropout: bool) -> Iterator[None]:
    """Inside, these blocks form their activations a second time on the way back instead of keeping them.

    Args:
        some: Blocks, none of which does it by itself.
        dropout: Whether they draw random numbers, which must be the same both times.
    """
    before: list[tuple[Any, Any]] = []
    try:
        for block in some:
            before.append((block, vars(block).get("forward")))
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=dropout
            )
        yield
    finally:
        for block, forward in before:
            if forward is None:
                vars(block).pop("forward", None)  # the instance's: the class's is there again
            else:
                block.forward = forward  # as others put it there


def blocks(model: torch.nn.Module) -> list[Any]:
    """The layers that `transformers` can checkpoint."""
    return [
        module
        for module in model.modules()
        if any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__)
    ]


def warn_unless_checkpointed(model: torch.nn.Module, asked: bool, *, stacklevel: int) -> None:
    """Say that gradient_checkpointing does nothing, where it is asked for and no block can do it."""
    if asked and not blocks(model):
        warnings.warn(
            f"gradient_checkpointing: found no block of transformers in {type(model).__name__}, expected some; activations "
            "are kept as without it. Lower tokens_per_batch if memory runs out",
            SpiceWarning,
            stacklevel=stacklevel + 1,
        )


def limits(model: torch.nn.Module) -> tuple[int | None, int | None]:
    """The size of the vocabulary and the most positions the model was made for, as far as it says.

    A configuration without a limit says so in many ways: None, 0, -1 (XLNet), or nothing.
    """
    getter = getattr(model, "get_input_embeddings", None)
    rows = getattr(getter(), "num_embeddings", None) if getter is not None else None
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):  # of a model of images and text, that of the text
        config = config.get_text_config(decoder=True)
    if getattr(config, "alibi", False) is True:
        return rows, None  # distances count, and any will do
    found = (getattr(config, name, None) for name in _POSITIONS)
    numbers = (each for each in found if isinstance(each, int) and not isinstance(each, bool) and each > 0)
    positions = next(numbers, None)
    for name, table in model.named_modules():
        # Tables in the manner of RoBERTa begin to count behind the row for padding.
        if isinstance(table, torch.nn.Embedding) and "position" in name.rpartition(".")[2]:
            if table.padding_idx is not None and table.num_embeddings == positions:
                return rows, positions - table.padding_idx - 1
    return rows, positions


def check_thresholds(model: torch.nn.Module) -> None:
    """Refuses layers in 8 bits that take outliers apart: those of one sample decide how the others are computed.

    Raises:
        InvalidInputError: There is one.
    """
    found = threshold_of(model)
    if found is not None:
        raise InvalidInputError(
            f"layer {found[0]!r}: found llm_int8_threshold={found[1]:g}, expected 0: with it, outliers of one sample decide"
            " how the others of its batch are computed. Load the model with BitsAndBytesConfig(load_in_8bit=True,"
            " llm_int8_threshold=0.0), or compute one sample at a time: tokens_per_batch=1."
        )


def threshold_of(model: torch.nn.Module) -> tuple[str, float] | None:
    """The first layer of bitsandbytes in 8 bits that takes outliers apart, and from which size on; None without one."""
    for name, module in model.named_modules():
        if any(base.__name__ == "Linear8bitLt" for base in type(module).__mro__):
            threshold = getattr(getattr(module, "state", None), "threshold", 0.0)
            if threshold and threshold > 0:
                return name, float(threshold)
    return None


def _short_name(model: str) -> str:
    return Path(model).name if Path(model).is_absolute() or Path(model).exists() else model


@contextmanager
def _explained(what: str, place: str | None = None) -> Iterator[None]:
    """Inside, whatever a library raises says `what`; or which file in the folder `place` this user may not read."""
    try:
        yield
    except InvalidInputError:
        raise  # which says it already
    except (
        Exception
    ) as error:  # libraries meet anything in files that are made up: KeyError, TypeError, AttributeError
        if place is not None and (locked := unreadable(place, "a model's files")) is not None:
            raise locked from error
        name = (
            ""
            if isinstance(error, OSError | ValueError | ImportError | RuntimeError)
            else f"{type(error).__name__}: "
        )
        raise InvalidInputError(f"{what}: {name}{' '.join(str(error).split())}") from error
