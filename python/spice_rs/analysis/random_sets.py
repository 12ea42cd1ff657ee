"""The random baseline: U of random sets as large as a selection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spice_rs.analysis.prefixes import MOST_RECURSIVE, Floats, Rows, log_dets
from spice_rs.analysis.replay import Replay, log_spaced
from spice_rs.analysis.waiting import waited
from spice_rs.memory import check_memory
from spice_rs.nouns import counted


@dataclass(frozen=True, eq=False)
class Chance:
    """U of random sets.

    Attributes:
        sizes: (s,) rows of each set.
        log_dets: (r, s) U of each of r random orders, up to each size; initial rows count, as for the selection.
    """

    sizes: Rows
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
    drawn_rows, dim = len(replay.initial) + len(replay.picks), replay.source.dim
    check_memory(
        f"random sets of {counted(drawn_rows, 'row')} of {counted(dim, 'column')}",
        16.0 * drawn_rows * dim + 32.0 * (drawn_rows if drawn_rows <= MOST_RECURSIVE else dim) ** 2,
        "Look at a selection of fewer rows, or of gradients of fewer columns.",
        field="selection",
    )
    draws = np.random.default_rng(seed)
    found = np.empty((sets, len(sizes)))
    for number in range(sets):
        drawn = draws.choice(candidates, len(replay.picks), replace=False)
        positions = np.concatenate([replay.initial, drawn])
        rows = replay.reader.read(positions) * np.sqrt(replay.alpha)
        if replay.weights is not None:
            rows *= np.sqrt(replay.weights[positions])[:, None]
        found[number] = _log_dets(rows, len(replay.initial) + sizes)
    return Chance(sizes, found)


def _log_dets(scaled: Floats, sizes: Rows) -> Floats:
    """Return log det(I + AᵀA) of the first rows, for each number of them."""
    if len(scaled) <= MOST_RECURSIVE:
        return log_dets(waited(np.matmul, scaled, scaled.T))[sizes - 1]
    matrix, done, found = np.zeros((scaled.shape[1], scaled.shape[1])), 0, []
    for size in sizes.tolist():
        part = scaled[done:size]
        matrix += waited(np.matmul, part.T, part)
        done = size
        found.append(float(log_dets(matrix.copy())[-1]))
    return np.array(found)
