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
        elif kind == "own source":  # what knowing the sources would give
            own = [row for row, record in enumerate(self.scene.pool) if record["source"] == how["source"]]
            rows = self._within(store, np.random.default_rng(seed).permutation(own), how)
        elif kind in ("target", "relevance", "less"):
            rows = self._for_target(store, kind, how, k)
        elif kind == "run":
            rows = self._run(how, k, seed)
        else:
            rows = self._select(store, how, k, seed)
        seconds = time.perf_counter() - started
        return Choice(rows, seconds, spice_rs.log_det(store, rows, normalize="unit"))

    def _for_target(
        self, store: spice_rs.GradientStore, kind: str, how: dict[str, Any], k: int
    ) -> np.ndarray:
        """Picks for trusted records of some sources: by `select`, by the largest r, or by the largest mean cosine."""
        records = [
            record for source in how["sources"] for record in self.scene.trusted[source][: how["target_rows"]]
        ]
        folder = self.folder / f"target-{self.scene.name}-{'-'.join(how['sources'])}-{how['target_rows']}"
        kept = [{name: record[name] for name in ("instruction", "response")} for record in records]
        target = spice_rs.extract(
            self.trainer.folder, kept, folder, like=store.path, gguf_file=self.trainer.file, progress=True
        )
        if kind == "target":
            budget = self._tokens(store, k) if how.get("equal_tokens") else {"k": k}
            return spice_rs.select(store, **budget, target=target).indices
        if kind == "relevance":
            values = spice_rs.relevance(store, target)
            return self._within(store, np.sort(store.index)[np.argsort(-values, kind="stable")], how)
        found = spice_rs.compare(store, len(store) - len(records), ["less"], target=target, certificate=False)
        return self._within(store, found.selections["less"].indices, how)

    def _tokens(self, store: spice_rs.GradientStore, k: int) -> dict[str, Any]:
        """As many tokens as k random picks have on average."""
        assert store.num_tokens is not None
        return {"budget": float(round(store.num_tokens.mean() * k))}

    def _within(
        self, store: spice_rs.GradientStore, ranked: np.ndarray, how: Mapping[str, Any]
    ) -> np.ndarray:
        """The first k rows, or with "equal_tokens" as many as fit into a random set's tokens."""
        k = self.settings["k"]
        if not how.get("equal_tokens"):
            return ranked[:k]
        assert store.num_tokens is not None
        tokens = dict(zip(store.index.tolist(), store.num_tokens.tolist(), strict=True))
        spent = np.cumsum([tokens[row] for row in ranked.tolist()])
        return ranked[: max(1, int((spent <= self._tokens(store, k)["budget"]).sum()))]

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
            budget = self._tokens(store, k)
        elif "pool_size" in how:
            how["select_per_window"] = max(1, round(how["pool_size"] * k / len(store)))
            how["seed"], budget = seed, {}
        return spice_rs.select(store, **budget, **how).indices
