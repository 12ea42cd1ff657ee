"""Pools to select from and records to be judged by, cut from one file of records or generated.

A scene keeps some records of every source apart: they judge what a model learned from the picks. What differs is the
pool: the sources as they come ("mixture", and "common", where the target is something that the pool has much of), without
one of them ("unseen"), with some of them made rare ("rare", and "two", for two targets), with what is rare tripled
("duplicates"), or with a fifth of the records damaged ("noisy", of which each seed is a draw of its own).
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]

POOLS = {
    "mixture": "mixture",
    "common": "mixture",
    "unseen": "unseen",
    "rare": "rare",
    "two": "rare",
    "duplicates": "duplicates",
    "noisy": "noisy",
}
"""Scene → how its pool is cut."""

COPIES = 3
DAMAGED_SHARE = 0.2
SPARE = 1.5
"""Damaged records that there are, over those in one noisy pool."""


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
            return [{**json.loads(line), "row": row} for row, line in enumerate(lines)]
    import tempfile

    from spice_rs.demo import write_pool

    with tempfile.TemporaryDirectory() as folder:
        records = write_pool(Path(folder) / "pool.jsonl", 12_000)
    return [
        {**records[row], "row": int(row)} for row in np.random.default_rng(seed).permutation(len(records))
    ]


def make_scene(
    name: str,
    records: list[Record],
    settings: Mapping[str, Any],
    seed: int = 0,
    among: Collection[int] | None = None,
) -> Scene:
    """Cut a scene out of the records.

    Args:
        name: one of `POOLS`.
        records: all there are.
        settings: `pool_rows`, `held_out_rows` (of each source), `most_characters`, `seed`; `unseen` (a source), `rare`
            (source → share of the pool); `trusted_rows` (source → rows) where there are targets. A pool has fewer rows
            than `pool_rows` where a source has too few for its share.
        seed: which noisy pool; the others are the same for all seeds.
        among: rows of the file that pools and targets are cut from; None for all that do not judge.
    """
    if name not in POOLS:
        raise ValueError(f"scene: found {name!r}, expected one of {', '.join(POOLS)}")
    short = [
        record
        for record in records
        if len(record["instruction"]) + len(record["response"]) <= settings["most_characters"]
    ]
    order = np.random.default_rng(settings["seed"]).permutation(len(short))
    by_source: dict[str, list[Record]] = {}
    apart: dict[str, list[Record]] = {}
    for row in order:
        usable = among is None or short[row]["row"] in among
        (by_source if usable else apart).setdefault(short[row]["source"], []).append(short[row])
    held_out, trusted, rest = {}, {}, {}
    for source in sorted(by_source):
        found = by_source[source]
        judges = found if among is None else apart[source]
        held_out[source] = judges[: settings["held_out_rows"]]
        found = found[len(held_out[source]) :] if among is None else found
        few = settings.get("trusted_rows", {}).get(source, 0)
        trusted[source], rest[source] = found[:few], found[few:]
    shares = {source: len(found) / sum(map(len, rest.values())) for source, found in rest.items()}
    kind, outside = POOLS[name], ()
    if kind == "unseen":
        outside = (settings["unseen"],)
        shares.pop(settings["unseen"])
    elif kind in ("rare", "duplicates"):
        outside = tuple(settings["rare"])
        shares.update(settings["rare"])
        common = {source: share for source, share in shares.items() if source not in outside}
        left = (1 - sum(settings["rare"].values())) / sum(common.values())
        shares.update({source: share * left for source, share in common.items()})
    total = sum(shares.values())
    rows = min(
        settings["pool_rows"], *(int(len(rest[name]) * total / share) for name, share in shares.items())
    )
    pool = [
        record for source, share in shares.items() for record in rest[source][: round(rows * share / total)]
    ]
    shuffled = np.random.default_rng(settings["seed"] + 1).permutation(len(pool))
    pool = [pool[row] for row in shuffled]
    if kind == "duplicates":
        rare = [record for record in pool if record["source"] in outside]
        pool = pool + rare * (COPIES - 1)
    elif kind == "noisy":
        pool = _noisy(pool, rest, settings, seed)
    return Scene(name, pool, held_out, outside, trusted)


def _noisy(
    clean: list[Record], rest: Mapping[str, list[Record]], settings: Mapping[str, Any], seed: int
) -> list[Record]:
    """A draw of the clean pool's records and of those that are damaged, as many of each source."""
    from damage import KINDS, can_be_damaged, damaged

    bad = round(len(clean) * DAMAGED_SHARE)
    of_source = round(bad * SPARE / len(rest))
    chance = random.Random(settings["seed"])
    broken = []
    for source in sorted(rest):
        spare = [record for record in rest[source] if can_be_damaged(record)][-of_source:]
        broken += [
            damaged(record, KINDS[place % len(KINDS)], spare[place - 1], chance)
            for place, record in enumerate(spare)
        ]
    draw = np.random.default_rng([settings["seed"], seed, 2])
    pool = [clean[row] for row in draw.permutation(len(clean))[: len(clean) - bad]]
    pool += [broken[row] for row in draw.permutation(len(broken))[:bad]]
    return [pool[row] for row in draw.permutation(len(pool))]


class Catalogue:
    """Every record that any scene's pool or target has, once, so that each gradient is computed once.

    Args:
        scenes: in the order in which their records come.
    """

    def __init__(self, scenes: list[Scene]) -> None:
        self.records: list[Record] = []
        self.first = scenes[0].pool
        self._rows: dict[tuple[str, str], int] = {}
        for scene in scenes:
            for record in [each for found in scene.trusted.values() for each in found] + scene.pool:
                key = (record["instruction"], record["response"])
                if key not in self._rows:
                    self._rows[key] = len(self.records)
                    self.records.append(record)

    def rows(self, records: list[Record]) -> np.ndarray:
        """The records' rows, (n,) int64."""
        return np.array(
            [self._rows[record["instruction"], record["response"]] for record in records], np.int64
        )
