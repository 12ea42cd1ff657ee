"""Named settings, and the α that does not depend on the unit of the gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from spice_rs import _core
from spice_rs.errors import InvalidInputError
from spice_rs.nearness import meant
from spice_rs.selection.arguments import check_reals
from spice_rs.store.pool import Pool

Alpha = float | Literal["auto"]
"""α as a caller gives it: a number, or "auto" for `resolve_alpha`."""

Preset = Literal["paper", "paper+"]
"""Settings of the SPICE paper (arXiv 2601.23155): without its early stop, and with it."""

_PAPER: dict[str, Any] = {
    "alpha": 1.0,
    "conflict_penalty": 0.1,
    "fisher": "full",
    "normalize": "auto",
    "method": "greedy",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**_PAPER, "early_stop": None},
    "paper+": {**_PAPER, "early_stop": 0.5},
}
"""Name → arguments of `select`."""


def with_preset(
    preset: Preset | None, given: Mapping[str, Any], function: Callable[..., Any]
) -> dict[str, Any]:
    """Return the arguments with those of the preset.

    Args:
        preset: its name, or None for the arguments as they are.
        given: the arguments that a preset can name.
        function: whose arguments they are; its defaults count as not given.

    Raises:
        InvalidInputError: there is no such preset, or an argument says something else.
    """
    if preset is None:
        return dict(given)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise InvalidInputError(
            f"preset: found {preset!r}, expected one of {', '.join(map(repr, PRESETS))}{meant(preset, PRESETS) or '.'}"
            " Choose one, or leave it out."
        )
    settings = PRESETS[preset]
    parameters = inspect.signature(function).parameters
    for name, value in settings.items():
        if given[name] != parameters[name].default and given[name] != value:
            raise InvalidInputError(
                f"{name}: found {given[name]!r} beside preset={preset!r}, which sets {value!r}. Leave one of the two out."
            )
    return {**given, **settings}


def resolve_alpha(alpha: Alpha, pool: Pool, *, threads: int | None = None) -> float:
    """Return α as a number.

    "auto" is 1 / median of w‖g‖² over the rows that are not zero (1 if all are): a typical row then gains log 2.
    Multiplying all gradients by a number changes no pick with this α, as long as the 1e-8 in the conflict stays small
    against ‖g‖‖mean‖. It reads all rows once.

    Args:
        alpha: a number, or "auto".
        pool: the rows at their scale.
        threads: to use.

    Raises:
        InvalidInputError: it is a word other than "auto".
    """
    if not isinstance(alpha, str):
        return check_reals(alpha=alpha)["alpha"]
    if alpha != "auto":
        raise InvalidInputError(f"alpha: found {alpha!r}, expected a number or 'auto'. Give one of these.")
    norms_sq = _core.norms_sq(pool, threads=threads)
    norms_sq = norms_sq[norms_sq > 0]
    return 1.0 / float(np.median(norms_sq)) if norms_sq.size else 1.0
