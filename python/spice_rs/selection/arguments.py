"""Checks of the numbers that `select` takes, before anything is opened."""

from __future__ import annotations

import numpy as np

from spice_rs.errors import InvalidInputError

MOST_THREADS = 4096
"""More than this many threads are a slip, and starting them can fail or take all memory."""


def check_numbers(**numbers: object) -> dict[str, int | None]:
    """Return whole numbers as Python has them, by name.

    Raises:
        InvalidInputError: one is something else, or out of range.
    """
    checked: dict[str, int | None] = {}
    for name, value in numbers.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
        if value is not None and not whole:
            raise InvalidInputError(
                f"{name}: found {value!r}, expected a whole number. Convert it with int()."
            )
        lowest = 0 if name == "seed" else 1
        highest = MOST_THREADS if name == "threads" else (1 << 31) - 1
        if value is not None and not lowest <= value <= highest:  # type: ignore[operator]
            raise InvalidInputError(
                f"{name}: found {value}, expected {lowest} to {highest}. Give a number in between."
            )
        checked[name] = None if value is None else int(value)  # type: ignore[call-overload]
    return checked


def check_reals(**numbers: object) -> dict[str, float]:
    """Return real numbers as Python has them, by name. Their ranges are the core's to judge.

    Raises:
        InvalidInputError: one is something else.
    """
    checked: dict[str, float] = {}
    for name, value in numbers.items():
        if isinstance(value, bool | np.bool_) or not isinstance(
            value, int | float | np.integer | np.floating
        ):
            raise InvalidInputError(f"{name}: found {value!r}, expected a number. Convert it with float().")
        checked[name] = float(value)
    return checked


def check_words(**words: object) -> None:
    """Refuse what is no word where one is expected. Which words there are is the core's to judge.

    Raises:
        InvalidInputError: the message names the argument.
    """
    for name, value in words.items():
        if not isinstance(value, str):
            raise InvalidInputError(f"{name}: found {value!r}, expected a word in quotes. See the docstring.")


def check_budget(
    k: int | None, early_stop: float | None, budget: object, pool_size: int | None, per_window: int | None
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
