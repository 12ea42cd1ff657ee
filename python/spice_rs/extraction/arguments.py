"""Arguments of an extraction that can be judged before data are read and a model is loaded."""

from __future__ import annotations

from typing import Any

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.loading import device_of
from spice_rs.extraction.projection import check_projection
from spice_rs.extraction.proxy import check_seed
from spice_rs.extraction.settings import Settings, check_counts
from spice_rs.extraction.tracking import check_share
from spice_rs.nearness import meant

DTYPES = ("int8", "float16", "bfloat16", "float32")
"""How a store keeps cells."""


def check_settings(settings: Settings) -> None:
    """Refuse values that no data and no model can make right.

    Raises:
        InvalidInputError: There is one.
    """
    check_projection(settings.projection, dim=settings.dim, nnz=settings.nnz, side=settings.side)
    check_seed(settings.seed)
    _check_word("dtype", settings.dtype, DTYPES)
    if settings.preference is not None:
        _check_word("preference", settings.preference, ("chosen",))
    check_counts(
        limit=settings.limit,
        tokens_per_batch=settings.tokens_per_batch,
        lora_rank=settings.lora_rank,
        max_length=settings.max_length,
    )
    if settings.max_length is None or settings.max_length < 2:
        raise InvalidInputError(
            f"max_length is {settings.max_length}, expected at least 2: one token to predict from, one to learn"
        )
    check_share(settings.min_coverage)
    if settings.checkpoint_weights is not None and not settings.checkpoints:
        raise InvalidInputError(
            "checkpoint_weights was given without checkpoints; leave it out, or give both"
        )
    if settings.device is not None:
        device_of(None, settings.device)


def _check_word(name: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        known = f"{'one of ' * (len(words) > 1)}{', '.join(map(repr, words))}"
        raise InvalidInputError(f"{name} is {value!r}, expected {known}{meant(value, words)}")
