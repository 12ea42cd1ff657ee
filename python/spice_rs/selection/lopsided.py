"""Whether picks are far from what their pool is made of without anybody having asked for it: why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from spice_rs.printable import short
from spice_rs.selection.composition import Composition
from spice_rs.selection.constraints import PER_ROW
from spice_rs.selection.result import Selection

TIMES = 2.0
"""A median of tokens below half of the pool's, or above twice it, is lopsided: training sees another kind of answer."""

SHIFT = 0.3
"""Total variation distance of the labels' shares from the pool's that is lopsided: three of ten picks would have to have
another label. Unit rows of a real pool of four sources come to 0.29, mean-loss rows to 0.65."""

SPREAD = 1.5
"""Three standard deviations of a share of m random picks are at most this over √m: what chance does is not lopsided."""

OPENING = "the picks are not like the pool"
"""What the sentence begins with."""

_ASKED = ("groups", "target", "initial", "include", *(each.name for each in PER_ROW))
"""Settings of which another composition is the purpose."""


def lopsided(selection: Selection, reduction: str | None) -> list[str]:
    """Return a sentence about picks that are not like their pool; none where the caller asked for others.

    Args:
        selection: the picks.
        reduction: of the loss that the rows as stored are gradients of, "sum" or "mean"; None if it is not known.
    """
    composition, settings = selection.composition, selection.settings
    if composition is None or not len(selection) or any(settings.get(name) is not None for name in _ASKED):
        return []
    # Under a budget rows are valued by cost: that they are short was asked for.
    ratio = 1.0 if settings["budget"] is not None else _ratio(composition)
    label = _favoured(composition)
    if ratio == 1.0 and label is None:
        return []
    found = []
    if ratio != 1.0 and composition.pool_tokens is not None:
        found.append(
            f"their median answer has {composition.median_tokens:g} tokens, the pool's {composition.pool_tokens[0]:g}"
        )
    if label is not None:
        found.append(_of_label(composition, label))
    cause, remedies = _why(settings, reduction, ratio, composition, labelled=label is not None)
    return [f"{OPENING}: {', and '.join(found)}. {cause}: try {', or '.join(remedies)}.{_aimed(settings)}"]


def _ratio(composition: Composition) -> float:
    """Return the median of the picks' tokens over the pool's; 1 where it is not lopsided, or may be chance."""
    tokens, pool, median = composition.tokens, composition.pool_tokens, composition.median_tokens
    if tokens is None or pool is None or median is None or not pool[0]:
        return 1.0
    ratio = median / pool[0]
    beyond = tokens < pool[0] if ratio < 1 else tokens > pool[0]
    chance = float(beyond.mean()) <= 0.5 + SPREAD / math.sqrt(len(tokens))
    return 1.0 if chance or 1 / TIMES <= ratio <= TIMES else ratio


def _favoured(composition: Composition) -> int | None:
    """Return the label that gains the largest share, by its place; None where shares are not lopsided."""
    counts, pool = composition.counts, composition.pool_counts
    if counts is None or pool is None or not pool.sum():
        return None
    picks = int(counts.sum())
    here, there = counts / picks, pool / pool.sum()
    shift = float(np.abs(here - there).sum()) / 2
    by_chance = float(np.sqrt(2 * there * (1 - there) / (np.pi * picks)).sum()) / 2  # on average
    if shift <= max(SHIFT, by_chance + SPREAD / math.sqrt(picks)):
        return None
    return int((here - there).argmax())


def _of_label(composition: Composition, code: int) -> str:
    labels = composition.labels
    assert labels is not None
    column = "the label" if composition.column is None else short(composition.column, 40)
    label = labels[code]
    here, there = composition.shares[label], composition.pool_shares[label]
    return f"{column} is {short(label, 40)} in {here:.0%} of them and in {there:.0%} of the pool"


def _aimed(settings: Mapping[str, Any]) -> str:
    """Return what else to do; windows and approximate methods, which have an epsilon, take no target."""
    fits = settings["pool_size"] is None and settings["epsilon"] is None
    return " Or select for a few records that you trust: target=…." if fits else ""


def _why(
    settings: Mapping[str, Any],
    reduction: str | None,
    ratio: float,
    composition: Composition,
    *,
    labelled: bool,
) -> tuple[str, list[str]]:
    """Return what at this scale of the rows makes such picks, and what makes others."""
    scale = settings["normalize"]
    scale = reduction if scale == "none" else scale
    column = composition.column
    shares = f"groups={'…' if column is None else short(column, 40)} for the pool's shares"
    if settings.get("represent") is not None:
        return "What most gradients of the pool share wins", [shares]
    alike = [] if settings["fisher"] == "diagonal" else ["represent=1 for rows that say much about the pool"]
    if scale == "unit":
        return "Unit rows win by being unlike the others", [*alike, shares]
    if scale == "mean" and ratio <= 1:
        cause = "Gradients of the mean loss are largest for short answers, and the largest win"
    elif scale == "sum" and ratio >= 1:
        cause = "Gradients of the summed loss are largest for long answers, and the largest win"
    else:
        cause = "The largest gradients win, whatever they are of"
    named = labelled or column is not None or settings["source"].get("data") is not None
    # Directions alone favour what is rare; where nothing else goes, they are less lopsided all the same.
    return cause, [*(alike or ["normalize='unit' for directions alone"]), *([shares] if named else [])]
