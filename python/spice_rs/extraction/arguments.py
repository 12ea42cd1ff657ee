"""The numbers, switches and words of `extract`, checked before torch, a model or data are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

from spice_rs.arguments import (
    callable_or_none,
    choice,
    flag,
    flag_or_none,
    mapping_or_none,
    names_or_none,
    real,
    reals,
    refused,
    text_or_none,
    whole,
    whole_or_none,
)
from spice_rs.paths import local_or_none
from spice_rs.store.store import DTYPES

Kind = Literal["sparse", "two_sided", "rademacher", "none"]
"""How gradients are projected; see `projection.py`."""

KINDS: tuple[Kind, ...] = get_args(Kind)


def _path_or_none(name: str, value: Any) -> Any:
    local_or_none(value, name)
    return value


def _reals_or_none(name: str, value: Any) -> list[float] | None:
    return None if value is None else reals(name, value)


def _checks(check: Callable[[str, Any], Any], *names: str) -> dict[str, Callable[[str, Any], Any]]:
    return dict.fromkeys(names, check)


_CHECKS = {
    **_checks(partial(whole, most=1 << 31), "dim", "nnz"),
    **_checks(partial(whole, most=4096), "side"),
    **_checks(partial(whole, least=None), "seed"),
    **_checks(partial(whole, least=2, remedy="One token to predict from, one to learn."), "max_length"),
    **_checks(whole_or_none, "lora_rank", "tokens_per_batch", "limit"),
    **_checks(partial(real, least=0, most=1), "min_coverage"),
    **_checks(flag, "norms", "embeddings", "completion_only", "gradient_checkpointing", "skip_bad"),
    **_checks(flag, "trust_remote_code"),
    **_checks(flag_or_none, "autocast"),
    **_checks(partial(choice, options=KINDS), "projection"),
    **_checks(partial(choice, options=DTYPES), "dtype"),
    **_checks(partial(choice, options=("chosen", None)), "preference"),
    **_checks(text_or_none, "gguf_file", "split"),
    **_checks(mapping_or_none, "columns"),
    **_checks(names_or_none, "ignore_columns", "target_modules"),
    **_checks(callable_or_none, "loss_fn"),
    **_checks(_path_or_none, "chat_template", "cache_dir"),
    **_checks(_reals_or_none, "checkpoint_weights"),
}
"""Argument → what returns it as plain Python has it; what is not here is judged by whoever uses it."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `extract`, all or some of them, as plain Python has them.

    Raises:
        InvalidInputError: one is something else, or out of range.
    """
    found = {name: _CHECKS[name](name, value) if name in _CHECKS else value for name, value in given.items()}
    if "nnz" in found and "dim" in found and found["nnz"] > found["dim"]:
        expected = f"a whole number from 1 to {found['dim']}, the columns of a row"
        raise refused("nnz", found["nnz"], expected, "Use fewer buckets, or more columns.")
    if found.get("checkpoint_weights") is not None and found.get("checkpoints", ()) is None:
        raise refused(
            "checkpoint_weights",
            found["checkpoint_weights"],
            "checkpoints beside them",
            "Give both, or neither.",
        )
    if "seed" in found and found.get("lora_rank") is not None:
        whole("seed", found["seed"], least=0, remedy="torch draws a fresh LoRA from it.")
    return found
