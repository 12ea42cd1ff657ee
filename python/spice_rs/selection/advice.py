"""Warnings after a run: settings that did nothing, conditions that were not met, picks that need a second look."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.nouns import counted
from spice_rs.selection.conditions import Conditions
from spice_rs.selection.constraints import PER_ROW
from spice_rs.selection.presets import PRESETS
from spice_rs.selection.result import Selection
from spice_rs.selection.stopping import early_stop_finding

SHORT = 0.01
"""Share of a minimum in cost units that may be missing without a warning: rows are not divisible."""

LEFT = 0.05
"""Share of a budget of cost that may be left without a warning."""


def inert_settings(selection: Selection, *, linear_gain: float) -> list[str]:
    """Return a sentence for picked zero rows and for every setting but λ that did nothing, what matters most first.

    Args:
        selection: the picks.
        linear_gain: Σ αw‖g‖² over the picks, which U cannot exceed and equals if nothing interacts.
    """
    messages = []
    settings, picks, forced = selection.settings, len(selection), selection.forced
    zero = forced + np.flatnonzero(selection.base[forced:] == 0)
    if zero.size:
        messages.append(
            f"{zero.size} of the picks are rows of zeros (the first: row {selection.indices[zero[0]]}): they have Δ = 0 and"
            " no conflict, and so beat rows whose penalty exceeds their Δ. Try a smaller k or conflict_penalty, and see"
            " why these gradients vanish."
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
    if (finding := early_stop_finding(selection)) is not None:
        messages.append(finding)
    return messages


def without_preset(message: str, preset: str | None) -> str:
    """Return advice of other settings as somebody needs it who has given a preset, beside which they are refused."""
    if preset is None:
        return message
    if message.startswith("early_stop="):
        return f"{message} For any of this but more rows, leave preset out: it sets early_stop."
    settings = "|".join(PRESETS[preset])
    return re.sub(rf"\b([Tt])ry (?=[^.]*\b(?:{settings})\b)", _leaving, message)


def _leaving(found: re.Match[str]) -> str:
    return f"{'L' if found[1] == 'T' else 'l'}eave preset out, and try "


def inert_penalty(selection: Selection, *, asked: bool) -> list[str]:
    """Return a sentence if λ changed no pick, and the caller asked for it: of a default nobody expects anything."""
    settings, picks, forced = selection.settings, len(selection), selection.forced
    penalty = settings["conflict_penalty"]
    competes = settings["method"] == "greedy" and penalty > 0 and picks - forced > 1
    if not asked or not competes or selection.overruled[forced:].any():
        return []
    return [
        f"conflict_penalty={penalty:g} changed none of the {counted(picks, 'pick')} (mean conflict of the picks"
        f" {selection.conflict.mean():.3f}). Its size matters against Δ ({selection.gains[-1]:.3g} at the last pick):"
        " try a larger one, a smaller alpha, or normalize='unit'."
    ]


def unmet_conditions(selection: Selection, conditions: Conditions) -> list[str]:
    """Return a sentence for every condition that did nothing, or that the picks do not meet."""
    messages = []
    for each in PER_ROW:
        values = conditions.per_row.get(each.name)
        if values is not None and each.is_inert(values):
            messages.append(
                f"{each.name} is {values[0]:g} for every row and changes no pick. Give numbers that differ, or leave it"
                " out."
            )
    if conditions.prior_weight == 0:
        messages.append(
            "prior_weight=0 leaves the prior without effect. Give another, or leave the prior out."
        )
    if selection.stop_reason == "time_limit":
        return messages
    unpicked = conditions.candidates.copy()
    unpicked[conditions.source.positions(selection.indices)] = False
    near = 0 if selection.near_duplicates is None else len(selection.near_duplicates)
    skipped = f"; {near} near-duplicate{'s were' if near > 1 else ' was'} skipped" if near else ""
    return [
        *messages,
        *_quotas_unmet(selection, conditions, unpicked, skipped),
        *_groups_shut_out(selection, conditions, unpicked),
        *_budget_left(selection, conditions, unpicked, skipped),
    ]


def forgotten_rows(initial: Any) -> list[str]:
    """Return a sentence if the selection given as `initial` had initial rows itself: it does not hold them."""
    own = initial.settings["initial"] if isinstance(initial, Selection) else None
    if own is None:
        return []
    return [
        f"initial is a selection that had {own['rows']} initial rows itself. It does not hold them: they do not count here,"
        " and can be picked. Give one list of both."
    ]


def _quotas_unmet(
    selection: Selection, conditions: Conditions, unpicked: npt.NDArray[np.bool_], skipped: str
) -> list[str]:
    """Return a sentence about groups that have less than their minimum."""
    groups = conditions.groups
    if groups is None or selection.groups is None:
        return []
    spent = _by_group(selection, conditions)
    short = [
        code
        for code, minimum in enumerate(groups.minima)
        if spent[code] < float(minimum) * (1 - _slack(selection))
    ]
    if groups.pool and selection.costs is not None:
        # Nobody asked for these minima to the last token: they count only where a row of the group had room.
        cheapest = _cheapest(conditions, unpicked)
        room = [float(groups.minima[code]) - spent[code] for code in short]
        similar = conditions.max_similarity is not None
        short = [code for code, left in zip(short, room, strict=True) if similar and cheapest[code] <= left]
    if not short:
        return []
    digits, unit = (".0f", " rows") if selection.costs is None else ("g", "")
    parts = [
        f"{groups.labels[code]!r} {spent[code]:{digits}} of {float(groups.minima[code]):{digits}}{unit}"
        for code in short
    ]
    their, have = ("its", "group has") if len(short) == 1 else ("their", "groups have")
    if selection.costs is None or groups.pool:
        remedy = "give group_shares" if groups.pool else "lower the minimum"
        why = f"{their} rows are too similar to picks. Raise max_similarity, or {remedy}"
    else:
        why = f"none of {their} other rows is allowed and fits what is left. Lower the minimum, or raise the budget"
    what = "share of the pool" if groups.pool else "minimum"
    return [f"{len(short)} {have} less than {their} {what} ({_listed(parts)}){skipped}: {why}."]


def _groups_shut_out(
    selection: Selection, conditions: Conditions, unpicked: npt.NDArray[np.bool_]
) -> list[str]:
    """Return a sentence about groups whose share of the pool is less than a row, if there are more than picks."""
    groups, picks = conditions.groups, len(selection)
    if groups is None or not groups.pool or not picks:
        return []
    present = sum(count > 0 for count in groups.counts)
    if selection.costs is None:
        k = selection.settings["k"]
        shut = sum(count > 0 and not share for count, share in zip(groups.counts, groups.minima, strict=True))
        if present <= k or not shut:
            return []
        return [
            f"{shut} of {counted(present, 'group')} get no row: there are fewer picks (k={k}) than groups, and"
            " their shares of the"
            " pool are the smallest. Select more rows, or give group_shares."
        ]
    spent, cheapest = _by_group(selection, conditions), _cheapest(conditions, unpicked)
    shut = sum(
        not has and math.isfinite(cost) and cost > share
        for has, cost, share in zip(spent, cheapest, groups.minima, strict=True)
    )
    if present <= picks or not shut:
        return []
    return [
        f"{shut} of {counted(present, 'group')} get no row: each of their rows costs more than their share of the"
        " budget. Raise the"
        " budget, or give group_shares."
    ]


def _budget_left(
    selection: Selection, conditions: Conditions, unpicked: npt.NDArray[np.bool_], skipped: str
) -> list[str]:
    """Return a sentence about a budget, of rows or of cost, that is not spent."""
    picks, k, budget = len(selection), conditions.total, conditions.budget
    if selection.costs is None or conditions.costs is None or budget is None:
        if k is None or picks >= k or selection.stop_reason != "exhausted":
            return []
        return [
            f"{counted(picks, 'row was', 'rows were')} picked and not k={k}: no row is left that the conditions"
            f" allow{skipped}."
            f" {_either([*_loosened(conditions), 'select fewer'])}."
        ]
    spent = float(selection.costs.sum())
    left = budget - spent
    if left <= LEFT * budget or selection.stop_reason == "early_stop":
        return []
    if not unpicked.any():
        return [
            f"all {counted(picks, 'row')} that can be picked were picked: they cost {spent:g}, and the budget is"
            f" {budget:g}. Give a"
            " smaller budget."
        ]
    cheapest = float(conditions.costs[unpicked].min())
    if cheapest > left and not picks:
        return [
            f"no row was picked: the cheapest costs {cheapest:g}, and the budget is {budget:g}. Raise the budget."
        ]
    found = f"{left:g} of the budget of {budget:g} are left ({left / budget:.0%})"
    if cheapest > left:
        return [
            f"{found}: the cheapest row left costs {cheapest:g}. Raise the budget, or give a smaller one."
        ]
    return [
        f"{found}: no row is left that fits and that the conditions allow{skipped}."
        f" {_either([*_loosened(conditions), 'give a smaller budget'])}."
    ]


def _by_group(selection: Selection, conditions: Conditions) -> list[float]:
    """Return the rows, or the cost, that the picks have of each group."""
    assert conditions.groups is not None
    codes = conditions.groups.codes[conditions.source.positions(selection.indices)]
    spent: list[float] = np.bincount(codes, selection.costs, minlength=len(conditions.groups.labels)).tolist()
    return spent


def _cheapest(conditions: Conditions, unpicked: npt.NDArray[np.bool_]) -> list[float]:
    """Return the least cost of a row of each group that is not picked; infinity if all are."""
    assert conditions.groups is not None
    assert conditions.costs is not None
    cheapest = np.full(len(conditions.groups.labels), np.inf)
    np.minimum.at(cheapest, conditions.groups.codes[unpicked], conditions.costs[unpicked])
    costs: list[float] = cheapest.tolist()
    return costs


def _slack(selection: Selection) -> float:
    return 0.0 if selection.costs is None else SHORT


def _loosened(conditions: Conditions) -> list[str]:
    """Return what would allow more rows."""
    options = [] if conditions.max_similarity is None else ["raise max_similarity"]
    groups = conditions.groups
    if groups is not None and groups.pool:
        options.append("give group_shares")
    elif groups is not None and any(limit is not None for limit in groups.maxima):
        options.append("raise the groups' maxima")
    return options


def _either(options: list[str]) -> str:
    text = ", or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
    return text[0].upper() + text[1:]


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
