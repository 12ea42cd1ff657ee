"""What a selection is seen against: random sets of its size, a map of its pool, and its own settings turned up and down."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.prefixes import MOST_RECURSIVE, Floats, Rows, log_dets
from spice_rs.analysis.replay import Replay, log_spaced, sampled
from spice_rs.analysis.waiting import waited
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.memory import check_memory
from spice_rs.progress import Progress, bar
from spice_rs.selection.conditions import KEYS
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import log_det, select


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
    candidates = replay.order[free[replay.order]]
    sizes = log_spaced(len(replay.picks), points) + 1
    drawn_rows, dim = len(replay.initial) + len(replay.picks), replay.source.dim
    check_memory(
        f"random sets of {drawn_rows} rows of {dim} columns",
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


@dataclass(frozen=True, eq=False)
class PoolMap:
    """Rows in the plane of the two directions in which the pool varies most (PCA of a sample, centred).

    Attributes:
        pool: (p, 2) a sample of the pool.
        picks: (m, 2) the picks, or the first of them.
        shares: (2,) share of the sample's variance in each direction.
    """

    pool: Floats
    picks: Floats
    shares: Floats


def pool_map(replay: Replay, *, sample: int = 1500, most_picks: int = 2000, seed: int = 0) -> PoolMap:
    """Return where the picks lie in their pool.

    Args:
        replay: the selection and its source.
        sample: rows of the pool, at most.
        most_picks: picks, at most.
        seed: seed of the sample.
    """
    rows = replay.reader.read(sampled(replay.order, sample, seed))
    centre = rows.mean(0)
    rows -= centre
    wide = rows.shape[1] > len(rows)
    values, vectors = waited(np.linalg.eigh, rows @ rows.T if wide else rows.T @ rows)
    two = np.argsort(values)[::-1][:2]
    axes = rows.T @ vectors[:, two] if wide else vectors[:, two]
    lengths = np.sqrt((axes**2).sum(0))
    axes = np.divide(axes, lengths, out=np.zeros_like(axes), where=lengths > 0)
    axes *= np.where((axes**3).sum(0) < 0, -1.0, 1.0)  # of v and −v always the same one
    if axes.shape[1] < 2:
        axes = np.concatenate([axes, np.zeros((len(axes), 2 - axes.shape[1]))], axis=1)
    whole = max(float((rows**2).sum()), np.finfo(float).tiny)
    pool = rows @ axes
    picks = (replay.reader.read(replay.picks[:most_picks]) - centre) @ axes
    return PoolMap(pool, picks, (pool**2).sum(0) / whole)


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
    conditions = [key for key in KEYS if settings[key] is not None]
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
    if selection.stop_reason == "time_limit":  # the whole budget would take longer than there was
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
