"""Ways to choose the training set from a scene's pool."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from scenes import Scene
from training import Trainer

PROXY_SEED = 100
"""Of the random rows that a further-trained proxy has seen."""


@dataclass(frozen=True)
class Choice:
    """A training set.

    Attributes:
        rows: of the pool, in the order in which they were chosen.
        seconds: of choosing, without the extraction.
        log_det: U(S) of the rows of unit length, α = 1: one measure for all methods.
    """

    rows: np.ndarray
    seconds: float
    log_det: float


class Chooser:
    """The gradients of one scene's pool, extracted once per proxy, and the choices from them."""

    def __init__(self, scene: Scene, trainer: Trainer, settings: Mapping[str, Any], folder: Path) -> None:
        self.scene, self.trainer, self.settings, self.folder = scene, trainer, settings, folder

    def store(self, proxy: str = "base") -> spice_rs.GradientStore:
        """Return the gradients at a proxy: "base" (fresh LoRA), "seed 1" (another), "trained" (on random rows first)."""
        model: Any = self.trainer.folder
        options = {"gguf_file": self.trainer.file}
        if proxy == "trained":
            rows = np.random.default_rng(PROXY_SEED).choice(
                len(self.scene.pool), self.settings["k"], replace=False
            )
            model = self.trainer.trained(
                [self.scene.pool[row] for row in rows], seed=PROXY_SEED, length={"epochs": 2}
            )
            options = {"tokenizer": self.trainer.tokenizer}
        return spice_rs.extract(
            model,
            self._records(),
            self.folder / f"store-{self.scene.name}-{proxy.replace(' ', '-')}",
            seed=1 if proxy == "seed 1" else 0,
            progress=True,
            **options,
            **self.settings["extraction"],
        )

    def _records(self) -> list[dict[str, str]]:
        return [{name: record[name] for name in ("instruction", "response")} for record in self.scene.pool]

    def choose(self, method: Mapping[str, Any], seed: int) -> Choice:
        """Choose by a method of the configuration; see `evidence.py`."""
        how = {**method}
        kind, proxy = how.pop("kind", "select"), how.pop("proxy", "base")
        k, store = self.settings["k"], self.store(proxy)
        index = store.index
        started = time.perf_counter()
        if kind == "full":
            rows = index
        elif kind == "random":
            rows = np.random.default_rng(seed).choice(index, k, replace=False)
        elif kind == "longest":
            assert store.num_tokens is not None
            rows = index[np.argsort(-store.num_tokens, kind="stable")[:k]]
        elif kind == "k_center":
            found = spice_rs.compare(store, k, "k_center", certificate=False)
            rows = next(iter(found.selections.values())).indices
        elif kind == "run":
            rows = self._run(how, k, seed)
        else:
            rows = self._select(store, how, k, seed)
        seconds = time.perf_counter() - started
        return Choice(rows, seconds, spice_rs.log_det(store, rows, normalize="unit"))

    def _run(self, how: Mapping[str, Any], k: int, seed: int) -> np.ndarray:
        """The picks of the paper's schedule, whose proxy learns from them as it goes."""
        per_window = max(1, round(how["pool_size"] * k / len(self.scene.pool)))
        settings = "-".join(f"{name}-{value}" for name, value in sorted(how.items()))
        return spice_rs.run_schedule(
            self.trainer.folder,
            self._records(),
            self.folder / f"run-{self.scene.name}-{settings}-{seed}",
            gguf_file=self.trainer.file,
            select_per_window=per_window,
            seed=seed,
            tensorboard=False,
            **how,
            **self.settings["extraction"],
        ).indices

    def _select(self, store: spice_rs.GradientStore, how: dict[str, Any], k: int, seed: int) -> np.ndarray:
        sources = [record["source"] for record in self.scene.pool]
        if how.pop("shares", False):
            how.update(groups=sources, group_shares="pool")
        budget: dict[str, Any] = {"k": k}
        if how.pop("equal_tokens", False):  # as many as random picks have on average
            assert store.num_tokens is not None
            budget = {"budget": float(round(store.num_tokens.mean() * k))}
        elif "pool_size" in how:
            how["select_per_window"] = max(1, round(how["pool_size"] * k / len(store)))
            how["seed"], budget = seed, {}
        return spice_rs.select(store, **budget, **how).indices
