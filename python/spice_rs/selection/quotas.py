"""How many rows, or how much cost, each group may and must have.

Everything is computed in fractions: 0.1 of 30 rows is 3 rows, and equal remainders are equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import is_whole, number_of
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted
from spice_rs.printable import short
from spice_rs.selection.columns import Label

MAX_TEXT = 16 << 20
"""Bytes that labels and quotas may take as JSON; a saved selection holds them in its header."""

EXCESS = Fraction(str(_core.ROUNDING))
"""Part of a budget or a maximum by which costs may exceed it: their sums are rounded."""

ROUNDING = Fraction(1, 10**6)
"""Part of a row by which a share of k may miss a whole number and still mean it."""


@dataclass(frozen=True)
class Quotas:
    """The groups and what each may and must have, in rows, or in cost units if there is a budget of cost.

    Attributes:
        labels: the g groups, by first appearance in the order of the dataset rows.
        codes: (n,) int64 number of each row's group, by position of the source.
        minima: (g,) what a group must have; 0 for nothing.
        maxima: (g,) what it may have; None for no limit.
        sizes: (g,) what it has: rows, or their cost, that are neither excluded nor initial.
        counts: (g,) the number of these rows.
        pool: whether these are the shares of the pool, and not numbers that the caller gave.
    """

    labels: list[Label]
    codes: npt.NDArray[np.int64]
    minima: list[Fraction]
    maxima: list[Fraction | None]
    sizes: list[Fraction]
    counts: list[int]
    pool: bool


def resolve(
    labels: list[Label],
    codes: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.bool_],
    costs: npt.NDArray[np.float64] | None,
    shares: Any,
    total: Fraction | None,
) -> Quotas:
    """Return what `group_shares` means for these rows.

    Args:
        labels: the groups.
        codes: (n,) number of each row's group.
        candidates: (n,) whether a row is neither excluded nor initial.
        costs: (n,) cost of each row, or None if a budget counts rows.
        shares: "pool"; "even", as much for each group; or label → (minimum, maximum).
        total: the budget, in rows or in cost units; None if there is none.

    Raises:
        InvalidInputError: `shares` is malformed, or no selection can satisfy it.
    """
    if costs is None:
        counts = np.bincount(codes[candidates], minlength=len(labels)).tolist()
        sizes = [Fraction(count) for count in counts]
    else:
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(labels)))
        inside = [part[candidates[part]] for part in np.split(order, ends[:-1])]
        counts = [len(part) for part in inside]
        sizes = [Fraction(math.fsum(costs[part])) for part in inside]
    pool = isinstance(shares, str) and shares == "pool"
    if pool:
        minima = _pool_shares(sizes, total, whole=costs is None)
        maxima: list[Fraction | None] = list(minima)
    elif isinstance(shares, str) and shares == "even":
        minima = _even_shares(sizes, total, whole=costs is None)
        maxima = list(minima)
    elif isinstance(shares, Mapping):
        given = _given(labels, shares, total, whole=costs is None)
        minima, maxima = [pair[0] for pair in given.values()], [pair[1] for pair in given.values()]
    else:
        raise InvalidInputError(
            f"group_shares: found {short(shares)}, expected 'pool', 'even' or a mapping label → (minimum, maximum). For"
            " example {'maths': (0.2, None)}."
        )
    quotas = Quotas(labels, codes, minima, maxima, sizes, counts, pool)
    _check(quotas, total, whole=costs is None)
    text = len(json.dumps(quotas.labels)) + 50 * len(labels)
    if text > MAX_TEXT:
        raise InvalidInputError(
            f"groups: found {counted(len(labels), 'label')} of {text >> 20} MB, expected at most {MAX_TEXT >> 20}"
            " MB. Shorten them."
        )
    return quotas


def _pool_shares(sizes: Sequence[Fraction], total: Fraction | None, *, whole: bool) -> list[Fraction]:
    """Return the pool's share of the budget for each group; of rows by largest remainder."""
    if total is None:
        raise InvalidInputError(
            "group_shares: found 'pool' and no k, expected k or a budget to take shares of. Give k, or numbers of rows"
            " as maxima."
        )
    pool = sum(sizes)
    exact = [total * size / pool for size in sizes] if pool else [Fraction(0) for _ in sizes]
    if not whole:  # a budget larger than the pool asks for all of it
        return [min(share, size) for share, size in zip(exact, sizes, strict=True)]
    floors = [share // 1 for share in exact]
    missing = int(min(total, pool)) - sum(floors)
    # sorted() is stable: equal remainders go to the group that appears first.
    for code in sorted(range(len(sizes)), key=lambda code: floors[code] - exact[code])[: max(0, missing)]:
        floors[code] += 1
    return [Fraction(share) for share in floors]


def _even_shares(sizes: Sequence[Fraction], total: Fraction | None, *, whole: bool) -> list[Fraction]:
    """Return as much of the budget for each group, or all that it has; rows that cannot be divided go to the first."""
    if total is None:
        raise InvalidInputError(
            "group_shares: found 'even' and no k, expected k or a budget to share among the groups. Give k, or numbers of"
            " rows as maxima."
        )
    shares = [Fraction(0) for _ in sizes]
    left, open_ = min(total, sum(sizes, Fraction(0))), [code for code, size in enumerate(sizes) if size]
    while open_:  # what a small group cannot give, the others do
        even = left / len(open_)
        full = [code for code in open_ if sizes[code] <= even]
        for code in full:
            shares[code], left = sizes[code], left - sizes[code]
        if not full:
            floor = Fraction(even // 1) if whole else even
            extra = int(left - floor * len(open_)) if whole else 0
            for place, code in enumerate(open_):
                shares[code] = floor + (place < extra)
            break
        open_ = [code for code in open_ if code not in full]
    return shares


def _given(
    labels: list[Label], shares: Mapping[Any, Any], total: Fraction | None, *, whole: bool
) -> dict[int, tuple[Fraction, Fraction | None]]:
    """Return number of the group → (minimum, maximum), from the caller's mapping."""
    numbers: dict[Any, int] = {label: code for code, label in enumerate(labels)}
    spelled = (
        {} if isinstance(labels[0], str) else {json.dumps(label): code for label, code in numbers.items()}
    )
    pairs: dict[int, tuple[Fraction, Fraction | None]] = {}
    for label, pair in shares.items():
        code = numbers.get(label, spelled.get(label))
        if code is None or code in pairs:
            found = "the label" if code is None else "twice the label"
            raise InvalidInputError(
                f"group_shares: found {found} {short(label)}, expected labels of the {len(labels)} groups, once each:"
                f" {short(labels)}. Correct it, or leave it out."
            )
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidInputError(
                f"group_shares[{label!r}]: found {short(pair)}, expected (minimum, maximum). Write None for no limit."
            )
        minimum, maximum = (_amount(f"group_shares[{label!r}]", value, total, whole=whole) for value in pair)
        if (
            whole
        ):  # no selection has a part of a row; a share computed as m / k is m rows, whatever its rounding
            minimum = None if minimum is None else Fraction(math.ceil(minimum - ROUNDING))
            maximum = None if maximum is None else Fraction(math.floor(maximum + ROUNDING))
        if minimum is not None and maximum is not None and minimum > maximum:
            unit = "rows" if whole else "cost units"
            rounding = ", shares being rounded to whole rows inwards" if whole else ""
            raise InvalidInputError(
                f"group_shares[{label!r}]: found a minimum of {_text(minimum)} and a maximum of {_text(maximum)} {unit}"
                f" (from {short(pair)}{rounding}), expected minimum ≤ maximum. Widen it."
            )
        pairs[code] = (minimum or Fraction(0), maximum)
    return {code: pairs.get(code, (Fraction(0), None)) for code in range(len(labels))}


def _amount(field: str, value: Any, total: Fraction | None, *, whole: bool) -> Fraction | None:
    """Return rows or cost units: a whole number as it is, a float up to 1 as a share of the budget."""
    if value is None:
        return None
    exact = exact_number(value)
    if exact is None or exact < 0 or (whole and not is_whole(value) and exact > 1):
        expected = (
            "a whole number of rows, a share in [0, 1] or None" if whole else "a number of at least 0 or None"
        )
        raise InvalidInputError(
            f"{field}: found {short(value)}, expected {expected}. Correct it; None is no limit."
        )
    if is_whole(value) or exact > 1:
        return exact
    if total is None:
        raise InvalidInputError(
            f"{field}: found the share {value} and no k, expected k or a budget to take it of. Give k, or a whole number"
            " of rows."
        )
    return exact * total


def exact_number(value: Any) -> Fraction | None:
    """Return a number that float64 holds as it is written (0.1 is a tenth); None if it is something else."""
    number = number_of(value)
    try:
        finite = number is not None and math.isfinite(number)
    except OverflowError:  # a whole number beyond float64
        finite = False
    return Fraction(str(number)) if finite else None


def _check(quotas: Quotas, total: Fraction | None, *, whole: bool) -> None:
    """Refuse what no selection can satisfy."""
    unit, budget = ("rows", "k") if whole else ("cost units", "budget")
    # Sums of costs are rounded: 1.1 and 2.2 are not quite 3.3.
    allowed = 1 if whole else 1 + EXCESS / 2
    for label, minimum, size in zip(quotas.labels, quotas.minima, quotas.sizes, strict=True):
        if minimum > size * allowed:
            raise InvalidInputError(
                f"group_shares: found a minimum of {_text(minimum)} {unit} for group {label!r}, expected at most the"
                f" {_text(size)} that it has beside excluded and initial rows. Lower it, or {budget}."
            )
    if total is None:
        return
    if sum(quotas.minima) > total * allowed:
        raise InvalidInputError(
            f"group_shares: found minima of {_text(sum(quotas.minima))} {unit} in all, expected at most {budget}="
            f"{_text(total)}. Lower some of them, or raise {budget}."
        )
    most = [
        size if maximum is None else min(maximum, size)
        for maximum, size in zip(quotas.maxima, quotas.sizes, strict=True)
    ]
    if whole and sum(most) < total:
        code = max(range(len(most)), key=lambda code: quotas.sizes[code] - most[code])
        raise InvalidInputError(
            f"group_shares: found maxima that allow {_text(sum(most))} rows in all, expected at least k={_text(total)}."
            f" Raise some of them (group {quotas.labels[code]!r} has {_text(quotas.sizes[code])} rows and may give"
            f" {_text(most[code])}), or lower k."
        )


def _text(value: Fraction | int) -> str:
    return str(value) if value == int(value) else f"{float(value):.6g}"
