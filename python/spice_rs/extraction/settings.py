"""The arguments of `extract` as `plan`, `doctor` and `run_schedule` take them too: by name, with its defaults."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from spice_rs.extraction.arguments import checked
from spice_rs.extraction.tracking import TargetModules

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
"""Padded tokens per batch where the caller does not say."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `extract` that decide what is computed; see there."""

    tokenizer: Any
    dim: int
    projection: str
    seed: int
    dtype: str
    target_modules: TargetModules
    norms: bool
    embeddings: bool
    min_coverage: float
    lora_rank: int | None
    gguf_file: str | None
    max_length: int
    tokens_per_batch: int | None
    completion_only: bool
    gradient_checkpointing: bool
    autocast: bool | None
    device: str | torch.device | None
    loss_fn: Callable[..., torch.Tensor] | None
    skip_bad: bool
    columns: Mapping[str, str] | None
    ignore_columns: str | Sequence[str] | None
    preference: str | None
    split: str | None
    chat_template: str | os.PathLike[str] | None
    limit: int | None
    nnz: int
    side: int
    trust_remote_code: bool
    optimizer: Any
    checkpoints: Sequence[Any] | None
    checkpoint_weights: Sequence[float] | None
    cache_dir: str | os.PathLike[str] | None

    @staticmethod
    def of(given: Mapping[str, Any], extract: Callable[..., Any]) -> Settings:
        """The settings given, and the defaults of `extract` for the rest.

        Args:
            given: Name → value.
            extract: The function itself, whose signature has the defaults.

        Raises:
            TypeError: A name that `extract` does not have.
            InvalidInputError: A value that cannot be used.
        """
        defaults = {
            name: parameter.default for name, parameter in inspect.signature(extract).parameters.items()
        }
        known = {each.name for each in fields(Settings)}
        for name in given:
            if name not in known:
                raise TypeError(f"{name} is no argument of extract; there are {', '.join(sorted(known))}")
        return Settings(**checked({name: given.get(name, defaults[name]) for name in known}))
