"""Sensitivity: a selection's own settings turned up and down."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.prefixes import Floats
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.progress import Progress, bar
from spice_rs.selection.constraints import KEYS
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import log_det, select


@dataclass(frozen=True, eq=False)
class Sweep:
    """The same selection with one setting changed, v values of it.

    Attributes:
        setting: "conflict_penalty" or "alpha".
        values: (v,) what it was set to.
        at: what the selection itself had.
        log_det: (v,) U of the picks, at the selection's own α.
        conflict: (v,) mean conflict of the picks.
        shared: (v,) share of the picks that the selection has too.
        overruled: (v,) share of the picks that the penalty decided.
    """

    setting: str
    values: Floats
    at: float
    log_det: Floats
    conflict: Floats
    shared: Floats
    overruled: Floats


PENALTIES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""λ that are tried."""

FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Factors on α that are tried."""


def sweep(
    selection: Selection,
    source: Any,
    setting: str,
    *,
    values: Sequence[float] | None = None,
    progress: Progress = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> Sweep:
    """Select again with other values of one setting, everything else being as it was.

    Args:
        selection: the picks.
        source: what they were picked from, as for `spice_rs.select`.
        setting: "conflict_penalty" or "alpha".
        values: what to set it to; by default λ of `PENALTIES`, or α times `FACTORS`.
        progress: show a bar, or do not; by default where a person can see it.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: the setting is another one, or the selection was made with conditions.
    """
    settings = selection.settings
    if setting not in ("conflict_penalty", "alpha"):
        raise InvalidInputError(
            f"setting: found {setting!r}, expected 'conflict_penalty' or 'alpha'. Choose one of these."
        )
    conditions = [key for key in KEYS if settings.get(key) is not None]
    if conditions:
        raise InvalidInputError(
            f"selection: found picks made with {', '.join(conditions)}, expected none of these: a saved selection does not"
            " hold them. Call select with each value yourself."
        )
    asked = values is not None
    if values is None:
        values = (
            PENALTIES if setting == "conflict_penalty" else [settings["alpha"] * each for each in FACTORS]
        )
    kept = ("k", "fisher", "method", "early_stop", "normalize", "pool_size", "select_per_window", "seed")
    options: dict[str, Any] = {name: settings[name] for name in kept}
    if selection.stop_reason == "time_limit":  # all k rows would take longer than there was
        options["k"] = len(selection)
    if settings["epsilon"] is not None:
        options["epsilon"] = settings["epsilon"]
    chosen = set(selection.indices.tolist())
    found: dict[str, list[float]] = {name: [] for name in ("log_det", "conflict", "shared", "overruled")}
    used: list[float] = []
    drawn = bar(progress, total=len(values), what=f"sweep {setting}", unit="runs")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpiceWarning)  # of values that do nothing, among others
            for value in values:
                each = {"alpha": settings["alpha"], "conflict_penalty": settings["conflict_penalty"]}
                drawn.update()
                try:
                    again = select(
                        source,
                        **options,
                        **{**each, setting: value},
                        progress=False,
                        partial=True,
                        dim=dim,
                        dtype=dtype,
                    )
                except InvalidInputError:  # an α that is out of range for rows this long
                    if asked:
                        raise
                    continue
                used.append(value)
                known = again.log_det
                if setting == "alpha":
                    known = log_det(
                        source,
                        again.indices,
                        alpha=settings["alpha"],
                        normalize=settings["normalize"],
                        dim=dim,
                        dtype=dtype,
                    )
                found["log_det"].append(known)
                found["conflict"].append(float(again.conflict.mean()))
                found["shared"].append(len(chosen & set(again.indices.tolist())) / len(again))
                found["overruled"].append(float(again.overruled.mean()))
    finally:
        drawn.close()
    series: dict[str, npt.NDArray[np.float64]] = {name: np.array(each) for name, each in found.items()}
    return Sweep(setting, np.array(used, float), float(settings[setting]), **series)
