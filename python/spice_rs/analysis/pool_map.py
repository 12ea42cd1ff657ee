"""Where the picks lie in their pool: its first two principal components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spice_rs.analysis.prefixes import Floats
from spice_rs.analysis.replay import Replay, sampled
from spice_rs.analysis.waiting import waited


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
