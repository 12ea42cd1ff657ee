"""Warnings after a run: settings that did nothing, conditions that were not met, picks that need a second look."""

from __future__ import annotations

import numpy as np

from spice_rs.conditions import Conditions
from spice_rs.result import Selection

SHORT = 0.01
"""Share of a minimum in cost units that may be missing without a warning: rows are not divisible."""

LEFT = 0.05
"""Share of a budget of cost that may be left without a warning."""


def inert_settings(selection: Selection, *, linear_gain: float) -> list[str]:
    """Return a sentence for every setting that did nothing, and for picked zero rows.

    Args:
        selection: the picks.
        linear_gain: Σ αw‖g‖² over the picks, which U cannot exceed and equals if nothing interacts.
    """
    messages = []
    settings, picks, forced = selection.settings, len(selection), selection.forced
    penalty, free = settings["conflict_penalty"], len(selection) - selection.forced > 1
    if settings["method"] == "greedy" and penalty > 0 and free and not selection.overruled[forced:].any():
        messages.append(
            f"conflict_penalty={penalty:g} changed none of the {picks} picks (mean conflict of the picks"
            f" {selection.conflict.mean():.3f}). Its size matters against Δ ({selection.gains[-1]:.3g} at the last pick):"
            " try a larger one, a smaller alpha, or normalize='unit'."
        )
    alone = settings["initial"] is None
    if alone and picks > 1 and 0 < linear_gain and selection.log_det > 0.99 * linear_gain:
        messages.append(
            f"alpha·‖g‖² is so small (median {selection.signal:.2g}) that U is linear: the picks do not interact and"
            " the result is close to the largest norms. Try a larger alpha, or normalize='unit'."
        )
    first, last = (selection.gains.max(), selection.gains.min()) if picks else (0.0, 0.0)
    if picks > 1 and last > 0.99 * first and selection.signal > 100:
        messages.append(
            f"alpha·‖g‖² is so large (median {selection.signal:.2g}) that every Δ is the same to 1 %: the order of the"
            " picks says little. Try a smaller alpha, or normalize='unit'."
        )
    zero = forced + np.flatnonzero(selection.base[forced:] == 0)
    if zero.size:
        messages.append(
            f"{zero.size} of the picks are rows of zeros (the first: row {selection.indices[zero[0]]}): they have Δ = 0 and"
            " no conflict, and so beat rows whose penalty exceeds their Δ. Try a smaller k or conflict_penalty, and see"
            " why these gradients vanish."
        )
    return messages


def unmet_conditions(selection: Selection, conditions: Conditions) -> list[str]:
    """Return a sentence for every condition that did nothing, or that the picks do not meet."""
    messages = []
    for name, values in (("weights", conditions.weights), ("prior", conditions.prior)):
        if values is not None and (values == values[0]).all() and (name == "prior" or values[0] == 1):
            messages.append(
                f"{name} is {values[0]:g} for every row and changes no pick. Give numbers that differ, or leave it out."
            )
    if conditions.prior_weight == 0:
        messages.append(
            "prior_weight=0 leaves the prior without effect. Give another, or leave the prior out."
        )
    if selection.stop_reason == "time_limit":
        return messages
    skipped = (
        ""
        if not selection.near_duplicates
        else f"; {len(selection.near_duplicates)} near-duplicates were skipped"
    )
    if selection.costs is None:
        short = [f"{label!r} {spent} of {minimum} rows" for label, minimum, spent in _shortfalls(selection)]
        why = "its rows are too similar to picks. Raise max_similarity, or lower the minimum"
    else:
        short = [f"{label!r} {spent:g} of {minimum:g}" for label, minimum, spent in _shortfalls(selection)]
        why = "no row of theirs fits what is left. Lower the minimum, or raise the budget"
    if short:
        messages.append(
            f"{len(short)} groups have less than their minimum ({_listed(short)}){skipped}: {why}."
        )
    k, budget = selection.settings["k"], selection.settings["budget"]
    if k is not None and len(selection) < k and selection.stop_reason == "exhausted":
        messages.append(
            f"{len(selection)} rows were picked and not k={k}: no row is left that the conditions allow{skipped}. Raise"
            " max_similarity or the groups' maxima, or select fewer."
        )
    left = 0.0 if selection.costs is None else budget - selection.costs.sum()
    if budget is not None and left > LEFT * budget and selection.stop_reason != "early_stop":
        messages.append(
            f"{left:g} of the budget of {budget:g} are left ({left / budget:.0%}): no row is left that fits and that the"
            f" conditions allow{skipped}. Raise the groups' maxima, or give a smaller budget."
        )
    return messages


def _shortfalls(selection: Selection) -> list[tuple[object, float, float]]:
    """Return (label, minimum, what the picks have) of the groups that have too little."""
    if selection.groups is None:
        return []
    spent: dict[object, float] = {}
    costs = [1] * len(selection) if selection.costs is None else selection.costs.tolist()
    for label, cost in zip(selection.groups.tolist(), costs, strict=True):
        spent[label] = spent.get(label, 0) + cost
    allowed = 0 if selection.costs is None else SHORT
    return [
        (label, minimum, spent.get(label, 0))
        for label, minimum, _ in selection.quotas
        if spent.get(label, 0) < minimum * (1 - allowed)
    ]


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
