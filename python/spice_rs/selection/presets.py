"""Named settings, and the α that does not depend on the unit of the gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import choice
from spice_rs.errors import InvalidInputError
from spice_rs.selection.arguments import alpha_given
from spice_rs.store.pool import Pool

Alpha = float | Literal["auto"]
"""α as a caller gives it: a number, or "auto" for `resolve_alpha`."""

Preset = Literal["paper", "paper+"]
"""Settings of the SPICE paper (arXiv 2601.23155): without its early stop, and with it."""

PENALTY = 0.1
"""λ of the paper, and of a selection for nothing in particular."""

_PAPER: dict[str, Any] = {
    "alpha": 1.0,
    "conflict_penalty": PENALTY,
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
    settings = PRESETS[choice("preset", preset, PRESETS, remedy="Choose one, or leave it out.")]
    parameters = inspect.signature(function).parameters
    for name, value in settings.items():
        if given[name] != parameters[name].default and given[name] != value:
            raise InvalidInputError(
                f"{name}: found {given[name]!r} beside preset={preset!r}, which sets {value!r}. Leave one of the two out."
            )
    return {**given, **settings}


def resolve_alpha(
    alpha: Alpha,
    pool: Pool,
    *,
    threads: int | None = None,
    among: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return α as a number.

    "auto" is 1 / median of w‖g‖² over the rows that are not zero (1 if all are): a typical row then gains log 2.
    Multiplying all gradients by a number changes no pick with this α, as long as the 1e-8 in the conflict stays small
    against ‖g‖‖mean‖. It reads all rows once.

    Args:
        alpha: a number, or "auto".
        pool: the rows at their scale.
        threads: to use.
        among: (n,) the rows that count for "auto"; None for all.

    Raises:
        InvalidInputError: it is a word other than "auto".
    """
    given = alpha_given(alpha)
    if given != "auto":
        return given
    if among is not None and pool.unit and pool.weights is not None:
        # Of unit rows nothing need be read: candidates for a target are not zero.
        norms_sq = pool.weights[among]
    else:
        norms_sq = _core.norms_sq(pool, threads=threads)
        norms_sq = norms_sq if among is None else norms_sq[among]
    norms_sq = norms_sq[norms_sq > 0]
    return 1.0 / float(np.median(norms_sq)) if norms_sq.size else 1.0
