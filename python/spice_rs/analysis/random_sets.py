"""The random baseline: U of random sets as large as a selection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spice_rs.analysis.prefixes import Floats, Integers, log_dets
from spice_rs.analysis.replay import Replay, log_spaced
from spice_rs.memory import check_memory
from spice_rs.nouns import counted


@dataclass(frozen=True, eq=False)
class Chance:
    """U of random sets.

    Attributes:
        sizes: (s,) rows of each set.
        log_dets: (r, s) U of each of r random orders, up to each size; initial rows count, as for the selection.
    """

    sizes: Integers
    log_dets: Floats


def random_sets(replay: Replay, *, sets: int = 5, points: int = 24, seed: int = 0) -> Chance:
    """Return U of random sets of the rows that could be picked, of up to as many rows as were picked.

    Args:
        replay: the selection and its source.
        sets: random orders.
        points: sizes at which U is taken, close together at first.
        seed: seed of the orders.
    """
    free = np.ones(replay.source.rows, bool)
    free[replay.initial] = False
    free[replay.excluded] = False
    if replay.aimed is not None:
        free[replay.aimed.barred] = False
    candidates = replay.order[free[replay.order]]
    sizes = log_spaced(len(replay.picks), points) + 1
    drawn_rows, dim = len(replay.initial) + len(replay.picks), replay.dim
    check_memory(
        f"random sets of {counted(drawn_rows, 'row')} of {counted(dim, 'column')}",
        24.0 * drawn_rows * dim + 32.0 * min(drawn_rows, dim) ** 2,
        "Look at a selection of fewer rows, or of gradients of fewer columns.",
        field="selection",
    )
    draws = np.random.default_rng(seed)
    found = np.empty((sets, len(sizes)))
    for number in range(sets):
        drawn = draws.choice(candidates, len(replay.picks), replace=False)
        positions = np.concatenate([replay.initial, drawn])
        weights = None if replay.weights is None else replay.weights[positions]
        series = log_dets(replay.reader.read(positions), replay.alpha, weights)
        found[number] = series[len(replay.initial) + sizes - 1]
    return Chance(sizes, found)
