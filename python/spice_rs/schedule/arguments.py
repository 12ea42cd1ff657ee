"""Arguments of a run that can be judged before the model is loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from spice_rs.errors import InvalidInputError
from spice_rs.paths import local
from spice_rs.selection.foresight import check_for_json

_MADE = ("adapter", "metrics.jsonl", "picks.jsonl")
"""What a run writes beside its state."""


def check_counts(**counts: int | None) -> None:
    """Refuse what is no whole number of at least 1; all but the two sizes of a window may be None.

    Raises:
        InvalidInputError: See above.
    """
    for name, value in counts.items():
        optional = name not in ("pool_size", "select_per_window")
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(
                f"{name}: found {value!r}, expected a whole number of at least 1{' or None' * optional}. Choose one."
            )


def check_rates(*, learning_rate: float, weight_decay: float, max_grad_norm: float | None) -> None:
    """Refuse numbers that AdamW cannot use.

    Raises:
        InvalidInputError: One is not finite or too small.
    """
    for name, value, least in (
        ("learning_rate", learning_rate, "above 0"),
        ("weight_decay", weight_decay, "of at least 0"),
        ("max_grad_norm", max_grad_norm, "above 0, or None"),
    ):
        if value is None and name == "max_grad_norm":
            continue
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and name != "weight_decay")
        ):
            raise InvalidInputError(f"{name}: found {value!r}, expected a finite number {least}. Choose one.")


def run_folder(out: str | os.PathLike[str], data: Any) -> Path:
    """Return the folder of a run, made if need be, after a look at what would fail only when all is done.

    Raises:
        InvalidInputError: No folder can be there, it has files of somebody else's that a run would replace, or the records
        have the key that picks get, or hold what JSON cannot.
    """
    folder = Path(local(out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{folder}: found no place for a folder ({error.strerror}), expected one. Name another."
        ) from error
    if not any((folder / "state" / name).exists() for name in ("state.json", ".lock")):
        for name in _MADE:
            if (folder / name).exists():
                raise InvalidInputError(
                    f"{folder / name}: found what a run would replace, without the state of a run, expected a new folder."
                    " Name another, or move it away."
                )
    check_for_json(data)
    return folder
