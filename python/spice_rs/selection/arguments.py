"""What `select` and what is about its picks take alike: the ranges of their numbers, each stated once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from spice_rs.arguments import (
    choice,
    number_of,
    real,
    real_or_none,
    refused,
    whole,
    whole_or_none,
)
from spice_rs.errors import InvalidInputError
from spice_rs.nearness import nearest
from spice_rs.selection.form import MOST_GAMMA

MOST_ROWS = (1 << 31) - 1
"""The largest number of rows, steps or sets that the core counts, and the largest seed."""

_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", re.ASCII)
_NUMERAL = re.compile(r"(\d+)(\.\d*)?", re.ASCII)

MOST_THREADS = 4096
"""More than this many threads are a slip, and starting them can fail or take all memory."""


Rows = int | float | str
"""How many rows a caller wants: a number of them, or a share of the pool (0.1, 1.0 for all, "10%")."""


@dataclass(frozen=True)
class Share:
    """A share of the rows of a pool: `part` in (0, 1], written as `text`."""

    part: Fraction
    text: str

    def of(self, rows: int) -> int:
        """Return the nearest number of rows, half of one upwards, and at least one."""
        return max(1, math.floor(self.part * rows + Fraction(1, 2)))

    def __str__(self) -> str:
        return self.text


def rows_wanted(k: Any) -> int | Share:
    """Return how many rows are wanted, or what share of them.

    Raises:
        InvalidInputError: it is neither, or may be either.
    """
    percent = _PERCENT.fullmatch(k) if isinstance(k, str) else None
    if percent is not None and 0 < Fraction(percent[1]) <= 100:
        return Share(Fraction(percent[1]) / 100, k.strip())
    number = number_of(k)
    if isinstance(number, float | np.floating) and 0 < number <= 1:
        return Share(Fraction(str(number)), str(number))
    remedy = "Give a number of rows, or a share: 0.1 and '10%' are a tenth of them, 1.0 and '100%' all."
    if isinstance(number, int | np.integer):
        return whole("k", k, most=MOST_ROWS, remedy=remedy)
    text = k.strip() if isinstance(k, str) else str(number)
    expected = "a whole number of at least 1, or a share above 0 and up to 1"
    if (numeral := _NUMERAL.fullmatch(text)) and float(text) > 1:
        rows = f"k={numeral[1]} is that many rows, " if not (numeral[2] or "").strip(".0") else ""
        remedy = f"It may be rows or per cent: {rows}k='{text}%' that share of them."
    raise refused("k", k, expected, remedy)


def rows_of(k: int | Share | None, rows: int) -> int | None:
    """Return how many of the rows of a pool are wanted; None where nothing was said."""
    return k.of(rows) if isinstance(k, Share) else k


def count(name: str, value: Any, *, least: int = 1) -> int:
    """Return a number of rows, steps or sets.

    Raises:
        InvalidInputError: it is something else.
    """
    return whole(name, value, least=least, most=MOST_ROWS)


def count_or_none(name: str, value: Any) -> int | None:
    """Return `count` of a number that may be left out."""
    return whole_or_none(name, value, most=MOST_ROWS)


def seeded(seed: Any) -> int:
    """Return a seed.

    Raises:
        InvalidInputError: it is something else.
    """
    return count("seed", seed, least=0)


def threads_wanted(threads: Any) -> int | None:
    """Return a number of threads; None for all cores.

    Raises:
        InvalidInputError: it is something else.
    """
    return whole_or_none("threads", threads, most=MOST_THREADS)


def alpha_given(alpha: Any) -> float | Literal["auto"]:
    """Return α, or "auto".

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(alpha, str) and alpha == "auto":
        return "auto"
    expected = "a finite number above 0 or 'auto'"
    near = isinstance(alpha, str) and nearest(alpha.lower(), ["auto"]) is not None
    remedy = "Did you mean 'auto'?" if near else "The paper uses alpha=1."
    return real("alpha", alpha, above=0, expected=expected, remedy=remedy)


def gamma_given(represent: Any) -> float:
    """Return γ of representative picks; 0 for others.

    Raises:
        InvalidInputError: it is no number, or out of range.
    """
    remedy = "1 takes the pool's own second moment as prior covariance, 0 switches it off."
    return real("represent", represent, least=0, most=MOST_GAMMA, remedy=remedy)


def alpha_number(alpha: Any) -> float:
    """Return α where there are no rows yet of which "auto" could be taken.

    Raises:
        InvalidInputError: it is no number.
    """
    return real("alpha", alpha, above=0, remedy="The paper uses alpha=1.")


def fisher_given(fisher: Any) -> Any:
    """Return which Fisher information counts.

    Raises:
        InvalidInputError: it is no word for one.
    """
    return choice("fisher", fisher, ("full", "diagonal", "scalar"))


def search_given(search: Any) -> Any:
    """Return how the best row is to be found.

    Raises:
        InvalidInputError: it is no word for a way.
    """
    return choice("search", search, ("lazy", "lazy_gain", "eager"))


def penalty(conflict_penalty: Any) -> float:
    """Return λ.

    Raises:
        InvalidInputError: it is something else.
    """
    remedy = "The paper uses 0.1; 0 switches the penalty off."
    return real("conflict_penalty", conflict_penalty, least=0, remedy=remedy)


def stops_at(early_stop: Any) -> float | None:
    """Return ω; None for no early stop.

    Raises:
        InvalidInputError: it is something else.
    """
    remedy = "The paper uses 0.5; None switches early stop off."
    return real_or_none("early_stop", early_stop, above=0, below=1, remedy=remedy)


def seconds_allowed(time_limit: Any) -> float | None:
    """Return a time limit in seconds; None for none.

    Raises:
        InvalidInputError: it is something else.
    """
    remedy = "None lets the run take as long as it needs."
    return real_or_none("time_limit", time_limit, above=0, remedy=remedy)


def check_budget(
    k: int | Share | None,
    early_stop: float | None,
    budget: object,
    pool_size: int | None,
    per_window: int | None,
) -> None:
    """Refuse a run without an end, and budgets that exclude each other.

    Raises:
        InvalidInputError: the message names the argument to give or to leave out.
    """
    if pool_size is None:
        if per_window is not None:
            raise InvalidInputError(
                "select_per_window: found it without pool_size, expected both or neither. Give pool_size=128 as well."
            )
        if k is None and early_stop is None and budget is None:
            raise InvalidInputError(
                "k: found None, expected a number of rows. Give k=…, budget=… (of cost), or early_stop=… to end by itself."
            )
    elif per_window is None or k is not None:
        raise InvalidInputError(
            f"pool_size: found k={k} and select_per_window={per_window} beside it, expected select_per_window and no k=."
            " Each window has a budget of its own."
        )
    elif per_window > pool_size:
        raise InvalidInputError(
            f"select_per_window: found {per_window}, expected at most pool_size={pool_size}. Select fewer, or widen it."
        )
