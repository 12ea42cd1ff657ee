"""The gradients of every scene's records: extracted once for all of them, or read from a file; a store for each scene.

A file of gradients is an .npz with `gradients` (n, d) of the mean loss, `index`, the rows of the file of records, and
`num_tokens`, the learned tokens of each. Pools and targets are then cut from these records alone.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from scenes import Catalogue, Record, Scene


class Gradients:
    """Rows of the catalogue's records.

    Args:
        catalogue: all records.
        trainer: what has the model.
        settings: the configuration; `extraction` has arguments of `spice_rs.extract`.
        work: folder for stores.
        file: the .npz, or None to extract.
    """

    def __init__(
        self, catalogue: Catalogue, trainer: Any, settings: Mapping[str, Any], work: Path, file: Path | None
    ) -> None:
        self.catalogue, self.trainer, self.settings, self.work = catalogue, trainer, settings, work
        self.file = file

    def scene(self, scene: Scene, seed: int, proxy: str = "base") -> spice_rs.GradientStore:
        """The store of a scene's pool, by row of the pool."""
        drawn = f"-{seed}" if scene.name == "noisy" else ""
        folder = self.work / f"store-{scene.name}{drawn}-{proxy.replace(' ', '-')}"
        with _alone(folder.with_suffix(".lock")):
            if not (folder / "whole").is_file():
                rows, tokens = self.of(scene.pool, proxy)
                with spice_rs.GradientStore.create(
                    folder, dim=rows.shape[1], dtype="float32", reduction="sum"
                ) as writer:
                    left = np.flatnonzero(~np.asarray(writer.contains(range(len(rows)))))
                    if left.size:
                        writer.append(rows[left], left, tokens[left])
                (folder / "whole").touch()
        return spice_rs.GradientStore(folder)

    def of(self, records: list[Record], proxy: str = "base") -> tuple[np.ndarray, np.ndarray]:
        """Gradients of the summed loss, (n, d) float32, and learned tokens, (n,) int32, of some of the records."""
        if self.file is not None and proxy == "base":
            with np.load(self.file) as found:
                place = {int(row): at for at, row in enumerate(found["index"])}
                at = [place[record["row"]] for record in records]
                tokens = found["num_tokens"][at].astype(np.int32)
                return found["gradients"][at].astype(np.float32) * tokens[:, None], tokens
        store = self._extracted(proxy, int(self.catalogue.rows(records).max()) + 1)
        at = store.positions(self.catalogue.rows(records))
        assert store.num_tokens is not None
        return np.asarray(store.read(at), np.float32), store.num_tokens[at]

    def _extracted(self, proxy: str, count: int) -> spice_rs.GradientStore:
        """The rows of the first records of the catalogue, as many as are wanted or there already."""
        folder = self.work / f"store-all-{proxy.replace(' ', '-')}"
        with _alone(folder.with_suffix(".lock")):
            there = len(spice_rs.GradientStore(folder)) if (folder / "store.json").is_file() else 0
            records = self.catalogue.records[: max(count, there)]
            kept = [{name: record[name] for name in ("instruction", "response")} for record in records]
            model, options = self.trainer.proxy(proxy, self.catalogue.first)
            return spice_rs.extract(model, kept, folder, progress=True, **options)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """While no other process that works on the same matrix is here."""
    with open(file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
