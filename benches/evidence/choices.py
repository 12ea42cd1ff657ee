"""Ways to choose the training set from a scene's pool."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from gradients import Gradients
from scenes import Record, Scene
from training import Trainer


class UnknownWayError(Exception):
    """This version of spice-rs has no such way to choose."""


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
    """The choices from one scene's pool.

    Args:
        scene: the pool, and the records that targets are made of.
        seed: which of the trusted records are the target, and which rows are the random ones.
        gradients: of all records.
        settings: the configuration; `targets` has scene → source → rows of the target.
    """

    def __init__(
        self,
        scene: Scene,
        seed: int,
        gradients: Gradients,
        trainer: Trainer,
        settings: Mapping[str, Any],
        work: Path,
    ) -> None:
        self.scene, self.seed, self.gradients = scene, seed, gradients
        self.trainer, self.settings, self.work = trainer, settings, work

    def choose(self, method: Mapping[str, Any]) -> Choice:
        """Choose by a method of the configuration; see `evidence.py`.

        Raises:
            UnknownWayError: `spice_rs.select` lacks one of its arguments.
        """
        how = {**method}
        kind, proxy = how.pop("kind", "select"), how.pop("proxy", "base")
        k, store = self.settings["k"], self.gradients.scene(self.scene, self.seed, proxy)
        index = np.sort(store.index)
        started = time.perf_counter()
        if kind == "full":
            rows = index
        elif kind == "random":
            rows = np.random.default_rng(self.seed).permutation(index)[:k]
        elif kind == "longest":
            assert store.num_tokens is not None
            rows = store.index[np.argsort(-store.num_tokens, kind="stable")[:k]]
        elif kind == "k_center":
            found = spice_rs.compare(store, k, "k_center", certificate=False)
            rows = next(iter(found.selections.values())).indices
        elif kind == "own source":  # what knowing the sources would give
            wanted = self.settings["targets"][self.scene.name]
            own = [row for row, record in enumerate(self.scene.pool) if record["source"] in wanted]
            rows = self._within(store, np.random.default_rng(self.seed).permutation(own), how)
        elif kind in ("target", "relevance", "less"):
            rows = self._for_target(store, kind, proxy, how, k)
        elif kind == "run":
            rows = self._run(how, k)
        else:
            rows = self._select(store, how, k)
        seconds = time.perf_counter() - started
        return Choice(rows, seconds, spice_rs.log_det(store, rows, normalize="unit"))

    def target(self) -> list[Record]:
        """The trusted records of this scene and seed."""
        wanted: Mapping[str, int] = self.settings["targets"][self.scene.name]
        return [
            record
            for source, rows in wanted.items()
            for record in self.scene.trusted[source][self.seed * rows : (self.seed + 1) * rows]
        ]

    def _for_target(
        self, store: spice_rs.GradientStore, kind: str, proxy: str, how: dict[str, Any], k: int
    ) -> np.ndarray:
        """Picks for trusted records: by `select`, by the largest r, or by the largest mean cosine (LESS's rule)."""
        records = self.target()
        rows, _ = self.gradients.of(records, "warm target" if proxy == "warm" else proxy)
        equal = how.pop("equal_tokens", False)
        if kind == "target":
            if how.pop("groups", False):
                how["target_groups"] = [record["source"] for record in records]
            return self._selected(store, {**how, "equal_tokens": equal, "target": rows}, k)
        if kind == "relevance":
            values = spice_rs.relevance(store, rows)
            ranked = np.sort(store.index)[np.argsort(-values, kind="stable")]
        else:
            unit = np.asarray(store.read(store.positions(np.sort(store.index))), np.float64)
            unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
            wanted = np.float64(rows) / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
            ranked = np.sort(store.index)[np.argsort(-(unit @ wanted.mean(0)), kind="stable")]
        return self._within(store, ranked, {"equal_tokens": equal})

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
        tokens = self._lengths(store)
        spent = np.cumsum([tokens[row] for row in ranked.tolist()])
        return ranked[: max(1, int((spent <= self._tokens(store, k)["budget"]).sum()))]

    def _run(self, how: Mapping[str, Any], k: int) -> np.ndarray:
        """The picks of the paper's schedule, whose proxy learns from them as it goes."""
        per_window = max(1, round(how["pool_size"] * k / len(self.scene.pool)))
        settings = "-".join(f"{name}-{value}" for name, value in sorted(how.items()))
        records = [{name: record[name] for name in ("instruction", "response")} for record in self.scene.pool]
        return spice_rs.run_schedule(
            self.trainer.folder,
            records,
            self.work / f"run-{self.scene.name}-{settings}-{self.seed}",
            gguf_file=self.trainer.file,
            select_per_window=per_window,
            seed=self.seed,
            tensorboard=False,
            **how,
            **self.settings["extraction"],
        ).indices

    def _select(self, store: spice_rs.GradientStore, how: dict[str, Any], k: int) -> np.ndarray:
        sources = [record["source"] for record in self.scene.pool]
        if how.pop("shares", False):
            how.update(groups=sources, group_shares="pool")
        if "pool_size" in how:
            how["select_per_window"] = max(1, round(how["pool_size"] * k / len(store)))
            how["seed"] = self.seed
        return self._selected(store, how, k)

    def _selected(self, store: spice_rs.GradientStore, how: dict[str, Any], k: int) -> np.ndarray:
        """Picks of `select`: k rows, the largest k whose tokens fit into a random set's, or those of a budget of tokens."""
        equal, budget = how.pop("equal_tokens", False), how.pop("token_budget", False)
        unknown = [name for name in how if name not in inspect.signature(spice_rs.select).parameters]
        if unknown:
            raise UnknownWayError(f"spice_rs.select has no {unknown[0]}")
        if budget:
            return spice_rs.select(store, **self._tokens(store, k), **how).indices
        if not equal:
            return spice_rs.select(store, **({} if "pool_size" in how else {"k": k}), **how).indices
        if (
            "groups" not in how and "target_groups" not in how
        ):  # then the first k of many picks are the k picks
            many = min(len(store), 4 * k)
            try:
                picks = spice_rs.select(store, many, **how).indices
            except spice_rs.InvalidInputError:
                picks = None  # fewer than that point to the target
            if picks is not None and len(self._within(store, picks, {"equal_tokens": True})) < many:
                return self._within(store, picks, {"equal_tokens": True})
        tokens = self._lengths(store)
        most, found = self._tokens(store, k)["budget"], np.array([], np.int64)
        low, high = 1, len(store)
        while low <= high:
            middle = (low + high) // 2
            try:
                picks = spice_rs.select(store, middle, **how).indices
            except spice_rs.InvalidInputError:
                if middle == 1:
                    raise
                picks = None
            if picks is not None and sum(tokens[row] for row in picks.tolist()) <= most:
                low, found = middle + 1, picks
            else:
                high = middle - 1
        return found

    def _lengths(self, store: spice_rs.GradientStore) -> dict[int, int]:
        """Row → learned tokens."""
        assert store.num_tokens is not None
        return dict(zip(store.index.tolist(), store.num_tokens.tolist(), strict=True))
