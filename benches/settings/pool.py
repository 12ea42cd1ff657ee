"""A pool of real gradients with what is known of each row, its scales, and the rows that are held out of it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import spice_rs

HELD_OUT = 0.2
"""Share of the rows that no selection sees and that all are judged by."""


@dataclass(frozen=True)
class Pool:
    """Gradients of the mean loss, and what is known of each row.

    Attributes:
        name: where they are from.
        rows: (n, d) float32, gradients of the mean loss over learned tokens.
        tokens: (n,) float64 learned tokens.
        sources: (n,) texts.
        seed: of the split into candidates and held-out rows.
    """

    name: str
    rows: np.ndarray
    tokens: np.ndarray
    sources: np.ndarray
    seed: int

    @cached_property
    def held_out(self) -> np.ndarray:
        """(h,) positions, a fifth of the rows at random."""
        order = np.random.default_rng(self.seed).permutation(len(self.rows))
        return np.sort(order[: round(HELD_OUT * len(self.rows))])

    @cached_property
    def candidates(self) -> np.ndarray:
        """(n − h,) positions of all others."""
        return np.setdiff1d(np.arange(len(self.rows)), self.held_out)

    @cached_property
    def names(self) -> list[str]:
        return sorted(set(self.sources.tolist()))

    @cached_property
    def scaled(self) -> dict[str, np.ndarray]:
        """Scale → (n, d) float32: every scale that is studied. Means are those of the candidates."""
        unit = units(self.rows)
        return {
            "mean": self.rows,
            "sum": self.rows * self.tokens[:, None].astype(np.float32),
            "unit": unit,
            "mean, centred": self.rows - self.rows[self.candidates].mean(0),
            "unit, centred": unit - unit[self.candidates].mean(0),
            "unit, centred, unit": units(unit - unit[self.candidates].mean(0)),
        }


def units(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def from_archive(file: Path, records: Path, seed: int) -> Pool:
    """Read the `gradients`, `index` and `num_tokens` of an .npz file; the records' `source` names the source."""
    with np.load(file) as archive:
        rows = archive["gradients"].astype(np.float32)
        index, tokens = archive["index"], archive["num_tokens"].astype(np.float64)
    return Pool(file.name, rows, tokens, sources_of(records)[index], seed)


def from_store(folder: Path, records: Path, seed: int) -> Pool:
    """Read a store of gradients of the summed loss."""
    store = spice_rs.GradientStore(folder)
    tokens = np.asarray(store.num_tokens, np.float64)
    rows = store.read(np.arange(len(store))) / tokens[:, None].astype(np.float32)
    return Pool(f"store of {len(store)} rows", rows, tokens, sources_of(records)[store.index], seed)


def sources_of(records: Path) -> np.ndarray:
    opened = gzip.open if records.suffix == ".gz" else open
    with opened(records, "rt", encoding="utf-8") as lines:
        return np.array([json.loads(line)["source"] for line in lines])
