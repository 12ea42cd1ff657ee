"""Rows at a scale: what every computation of the core is over."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pool:
    """The rows of a source at one scale, as `_core` takes them.

    Attributes:
        blocks: as of `Source`.
        dim: number of columns d.
        index: (n,) int64 dataset rows in the order of the blocks, or None for 0 … n − 1.
        normalize: the scale, "auto" resolved.
        scale: (n,) float64 factor of each row, or None for 1.
        unit: whether rows are divided by their norms.
        weights: (n,) float64 weight w of each row in F = Σ w ggᵀ, or None for 1.
    """

    blocks: list[Any]
    dim: int
    index: npt.NDArray[np.int64] | None
    normalize: str = "none"
    scale: npt.NDArray[np.float64] | None = None
    unit: bool = False
    weights: npt.NDArray[np.float64] | None = None

    def weighted(self, weights: npt.NDArray[np.float64] | None) -> Pool:
        """Return the same rows with (n,) weights, or without if None."""
        return dataclasses.replace(self, weights=weights)
