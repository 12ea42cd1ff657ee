"""Pools to select from and records to be judged by, cut from one file of records or generated.

A scene keeps some records of every source apart: they judge what a model learned from the picks. What differs is the
pool: the sources as they come ("mixture"), without one of them ("unseen"), or with some of them made rare ("rare").
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A pool and what judges the models trained on parts of it.

    Attributes:
        name: of the scene.
        pool: records to select from.
        held_out: source → records that no pool has.
        outside: sources that are rare in the pool or not in it at all.
        trusted: source → records that are neither, of which targets are made.
    """

    name: str
    pool: list[Record]
    held_out: dict[str, list[Record]]
    outside: tuple[str, ...]
    trusted: dict[str, list[Record]]


def read_records(file: Path | None, seed: int) -> list[Record]:
    """Read records {"source", "instruction", "response"}; generate them with reasoning-gym where there is no file."""
    if file is not None and file.is_file():
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    import tempfile

    from spice_rs.demo import write_pool

    with tempfile.TemporaryDirectory() as folder:
        records = write_pool(Path(folder) / "pool.jsonl", 12_000)
    return [records[row] for row in np.random.default_rng(seed).permutation(len(records))]


def make_scene(name: str, records: list[Record], settings: Mapping[str, Any]) -> Scene:
    """Cut a scene out of the records.

    Args:
        name: "mixture", "unseen" or "rare".
        records: all there are.
        settings: `pool_rows`, `held_out_rows` (of each source), `most_characters`, `seed`; `unseen` (a source), `rare`
            (source → share of the pool); `trusted_rows` (of each source) where there are targets.
    """
    short = [
        record
        for record in records
        if len(record["instruction"]) + len(record["response"]) <= settings["most_characters"]
    ]
    order = np.random.default_rng(settings["seed"]).permutation(len(short))
    by_source: dict[str, list[Record]] = {}
    for row in order:
        by_source.setdefault(short[row]["source"], []).append(short[row])
    each = settings["held_out_rows"]
    held_out = {source: found[:each] for source, found in sorted(by_source.items())}
    apart = each + settings.get("trusted_rows", 0)
    trusted = {source: found[each:apart] for source, found in sorted(by_source.items())}
    rest = {source: found[apart:] for source, found in by_source.items()}
    rows = settings["pool_rows"]
    shares = {source: len(found) / sum(map(len, rest.values())) for source, found in rest.items()}
    outside: tuple[str, ...] = ()
    if name == "unseen":
        outside = (settings["unseen"],)
        shares.pop(settings["unseen"])
    elif name == "rare":
        outside = tuple(settings["rare"])
        shares.update(settings["rare"])
        common = {source: share for source, share in shares.items() if source not in outside}
        left = (1 - sum(settings["rare"].values())) / sum(common.values())
        shares.update({source: share * left for source, share in common.items()})
    elif name != "mixture":
        raise ValueError(f"scene: found {name!r}, expected mixture, unseen or rare")
    total = sum(shares.values())
    pool = [
        record for source, share in shares.items() for record in rest[source][: round(rows * share / total)]
    ]
    shuffled = np.random.default_rng(settings["seed"] + 1).permutation(len(pool))
    return Scene(name, [pool[row] for row in shuffled], held_out, outside, trusted)
