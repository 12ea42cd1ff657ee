"""What is measured of a selection, all of it from the pool's Gram matrix in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pool import Pool
from spice_rs.analysis.spearman import spearman

RANDOM_SETS = 5


@dataclass(frozen=True)
class Geometry:
    """Inner products of all rows at one scale.

    Attributes:
        gram: (n, n) float64.
        alpha: α that goes with it.
    """

    gram: np.ndarray
    alpha: float

    def log_det(self, picks: np.ndarray) -> float:
        """Return U(S) = log det(I + αF_S), by Sylvester's identity from a |S| × |S| matrix."""
        return float(np.linalg.slogdet(self._inner(picks))[1])

    def gains(self, picks: np.ndarray) -> np.ndarray:
        """Return (n,) Δ_x(S) of every row x given the picks S."""
        norms = self.alpha * np.diag(self.gram)
        if not len(picks):
            return np.log1p(norms)
        cross = self.alpha * self.gram[picks]
        covered = np.einsum("ij,ij->j", cross, np.linalg.solve(self._inner(picks), cross))
        return np.log1p(np.maximum(norms - covered, 0))

    def conflicts(self, picks: np.ndarray) -> np.ndarray:
        """Return (n,) cosine of every row with the mean of the picks; minus its negative part is the conflict."""
        dots = self.gram[:, picks].mean(1)
        mean_norm = np.sqrt(self.gram[np.ix_(picks, picks)].mean())
        return dots / (np.sqrt(np.diag(self.gram)) * mean_norm + 1e-8)

    def interaction(self, picks: np.ndarray) -> np.ndarray:
        """Return (n,) Σ (g_xᵀg_y)² over the picks y: the theory's conflict."""
        return np.square(self.gram[:, picks]).sum(1)

    def _inner(self, picks: np.ndarray) -> np.ndarray:
        return np.eye(len(picks)) + self.alpha * self.gram[np.ix_(picks, picks)]


def geometry(rows: np.ndarray, alpha: float | None = None) -> Geometry:
    """Return the geometry of (n, d) rows; α is 1 over the median of ‖g‖² unless given."""
    wide = rows.astype(np.float64)
    gram = wide @ wide.T
    return Geometry(gram, 1 / float(np.median(np.diag(gram))) if alpha is None else alpha)


class Judge:
    """What every selection is judged by, whatever scale and settings it was made with.

    Both judges are the mean Δ that held-out rows still have given the picks, as a share of what random picks of the same
    number leave: below 1 the picks cover unseen rows better than random ones do. One goes by directions (unit rows),
    one by mean-loss rows, each with α = 1 / median ‖g‖².
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.grounds = {name: geometry(pool.scaled[name]) for name in ("unit", "mean")}
        self._random: dict[int, dict[str, float]] = {}

    def left(self, ground: str, picks: np.ndarray) -> np.ndarray:
        """Return the mean Δ left in each source's held-out rows, by source name."""
        held = self.pool.held_out
        gains = self.grounds[ground].gains(picks)[held]
        return np.array([gains[self.pool.sources[held] == name].mean() for name in self.pool.names])

    def random(self, k: int) -> dict[str, np.ndarray]:
        """Return what random picks leave, the mean over five sets."""
        if k not in self._random:
            sets = [
                np.random.default_rng(seed).choice(self.pool.candidates, k, replace=False)
                for seed in range(RANDOM_SETS)
            ]
            self._random[k] = {
                ground: np.mean([self.left(ground, picks) for picks in sets], 0) for ground in self.grounds
            }
        return self._random[k]

    def verdict(self, picks: np.ndarray) -> dict[str, float]:
        """Return "unit" and "mean": left by the picks over left by random ones, on the pool's mixture; and by source."""
        held = self.pool.sources[self.pool.held_out]
        shares = np.array([(held == name).mean() for name in self.pool.names])
        found = {}
        for ground in self.grounds:
            ours, random = self.left(ground, picks), self.random(len(picks))[ground]
            found[ground] = float(shares @ ours / (shares @ random))
            found[f"{ground}, worst"] = float((ours / random).max())
            found[f"{ground}, best"] = float((ours / random).min())
        return found


def shift(pool: Pool, picks: np.ndarray) -> float:
    """Return the total variation distance of the picks' shares of the sources from the candidates'."""
    shares = [
        np.array([(pool.sources[rows] == name).mean() for name in pool.names])
        for rows in (picks, pool.candidates)
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a ∩ b| / |a ∪ b|."""
    common = len(np.intersect1d(a, b))
    return common / (len(a) + len(b) - common)


def stepwise_spearman(space: Geometry, picks: np.ndarray, candidates: np.ndarray) -> dict[str, float]:
    """Return the median over a dozen steps of rank correlations over the rows that are still candidates.

    Keys: the penalty's conflict, |cos| with the mean and the theory's Σ(g_xᵀg_y)², each against Δ and |ε|.
    """
    steps = np.unique(np.geomspace(2, len(picks) - 1, 12).astype(int))
    found: dict[str, list[float]] = {}
    base = space.gains(picks[:0])
    for step in steps:
        chosen = picks[:step]
        rest = np.setdiff1d(candidates, chosen)
        gains, cosine = space.gains(chosen)[rest], space.conflicts(chosen)[rest]
        measures = {
            "conflict": np.maximum(0, -cosine),
            "|cos|": np.abs(cosine),
            "Σ(gᵀg)²": space.interaction(chosen)[rest],
        }
        for name, values in measures.items():
            for against, target in (("Δ", gains), ("|ε|", base[rest] - gains)):
                found.setdefault(f"{name} / {against}", []).append(spearman(values, target))
    return {
        name: float(np.nanmedian(values)) if not np.all(np.isnan(values)) else np.nan
        for name, values in found.items()
    }
