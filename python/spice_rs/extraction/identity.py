"""What a store knows the model by: its weights, and what else decides the gradients at them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_NO_SETTINGS = re.compile(
    "_name_or_path|(transformers|unsloth)_version|architectures|model_type|(torch_)?dtype|quantization_config|use_cache|return_dict|torchscript"
    "|_attn_implementation|_experts_implementation|gradient_checkpointing|.*_token_id|id2label|label2id|.*dropout.*"
    "|output_(attentions|hidden_states|router_logits)|router_aux_loss_coef|initializer.*|tokenizer_class|auto_map|task_specific_params|finetuning_task|problem_type"
)
"""Names of entries of a configuration that change no gradient by more than rounding."""


def weight_fingerprint(model: torch.nn.Module) -> str:
    """Hash of all parameters' names, shapes and values as float32, whatever their dtype and device.

    What else the model saves (the scales of quantised weights, running means) is hashed with them.
    """

    def one(item: tuple[str, torch.Tensor]) -> bytes:
        name, parameter = item
        digest = hashlib.sha256(f"{name}:{tuple(parameter.shape)}\n".encode())
        # In parts, so that a large embedding is not held twice; bfloat16 to float32 is exact.
        for part in parameter.detach().reshape(-1).split(1 << 24):
            digest.update(part.to(device="cpu", dtype=torch.float32).numpy().data)
        return digest.digest()

    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    others = [
        (name, value)
        for name, value in model.state_dict().items()
        if name not in named and isinstance(value, torch.Tensor)
    ]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(pool.map(one, [*model.named_parameters(), *others]))).hexdigest()


def settings_of(model: torch.nn.Module) -> dict[str, Any]:
    """What decides the gradients besides the weights, as far as the model says.

    That is its configuration, and what each active adapter counts. Of a configuration what differs from its class's
    defaults, so that new defaults of a later version do not matter.
    """
    config: Any = getattr(model, "config", None)
    differences = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
    scalings: dict[str, dict[str, float]] = {}
    for name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "active_adapters"):
            off = getattr(module, "disable_adapters", False)
            for adapter in () if off else module.active_adapters:
                if adapter in scaling:
                    scalings.setdefault(adapter, {})[name] = float(scaling[adapter])
    adapters = {adapter: _one_or_hash(each) for adapter, each in scalings.items()}
    return {"config": _plain(differences), "adapters": adapters}


def _one_or_hash(values: dict[str, float]) -> float | str:
    """The value that all have, or a hash of them."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value as JSON has it, the same in every process."""
    if isinstance(value, dict):
        return {
            str(name): _plain(each) for name, each in value.items() if not _NO_SETTINGS.fullmatch(str(name))
        }
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    finite = isinstance(value, float) and math.isfinite(value)
    return value if value is None or finite or isinstance(value, bool | int | str) else type(value).__name__
