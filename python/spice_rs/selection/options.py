"""What `_core.select` is asked for, one class for each question; the binding has a struct of the same fields for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
"""Dataset rows, or numbers that rows have."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How rows are valued, how many are wanted, and how the best one is found; see `spice_rs.select`.

    None is the core's own default, of what the method does not use, or no limit.
    """

    k: int | None
    alpha: float
    conflict_penalty: float
    early_stop: float | None
    fisher: str
    method: str
    search: str
    hot_rows: int | None
    epsilon: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Windows:
    """Many short runs: `per_window` rows of each `size` that follow each other in `order`, (n,) positions."""

    order: Positions
    size: int
    per_window: int


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What may be picked and what it is worth, by position of the pool; None where there is no such constraint.

    Attributes:
        per_row: (n,) numbers by name: "multiplier", m > 0, and "bonus", b, with which a row's score is
            m·Δ − λ·conflict + b, and those of `constraints.PER_ROW` that the core knows.
        initial: positions that count as picked.
        include: positions to pick first, in order.
        exclude: positions that are never picked.
        groups: (n,) number of the group of each row.
        minima: (g,) least cost of the picks of each group.
        maxima: (g,) largest cost of the picks of each group.
        costs: (n,) cost of each row.
        budget: largest cost of all picks.
        scalars: the value of each of `constraints.SCALARS`, or None.
    """

    per_row: Mapping[str, Floats] = field(default_factory=dict)
    initial: Positions | None = None
    include: Positions | None = None
    exclude: Positions | None = None
    groups: npt.NDArray[np.int64] | None = None
    minima: Floats | None = None
    maxima: Floats | None = None
    costs: Floats | None = None
    budget: float | None = None
    scalars: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What an earlier run leaves to this one.

    Attributes:
        made: its picks, column by column: positions, then `checkpoint.COLUMNS`.
        near_duplicates: the near-duplicates that it skipped: positions, the dataset rows they are too similar to, cosines,
            and how many picks there were.
        old: (n,) bool, the rows that it chose from, if the pool has grown since: then its picks compete again.
    """

    made: tuple[npt.NDArray[Any], ...] | None = None
    near_duplicates: tuple[npt.NDArray[Any], ...] | None = None
    old: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Control:
    """Who watches a run, and when it ends.

    Attributes:
        threads: to use, or None for all cores.
        time_limit: seconds, or None.
        progress: gets (rows surveyed, picks, gain of the latest, rows read since) some twenty times a second.
        checkpoint: gets all picks so far, as `_core.select` returns them.
        checkpoint_interval: seconds between two calls of it.
    """

    threads: int | None
    time_limit: float | None
    progress: Callable[[int, int, float, int], object] | None
    checkpoint: Callable[[dict[str, Any]], object] | None
    checkpoint_interval: float
