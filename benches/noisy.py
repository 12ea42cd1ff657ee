"""A pool of which a fifth is damaged: how many damaged records each way of selecting picks.

    python benches/noisy.py --pool pool.jsonl.gz --seeds 3

400 records of four sources, and 100 more that are damaged, 20 in each of five ways: the answer of another record, its words
shuffled, random characters, its first word repeated, cut after a third. Gradients are those of the upper eight layers of
SmolLM2-135M-Instruct, d = 1024; 50 of the 500 are picked. The target is 32 records that are not in the pool and were looked
at: eight of each source; or as many of one source.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

import spice_rs
from damage import KINDS, can_be_damaged, damaged
from spice_rs.demo import model_files

Record = dict[str, Any]

PICKS = 50
EACH = {"clean": 100, "damaged": 25, "trusted": 32}
"""Records of each source."""


def scene(records: list[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """The pool, and records that are trusted."""
    draw = random.Random(seed)
    pool, trusted = [], []
    for source in sorted({record["source"] for record in records}):
        own = [record for record in records if record["source"] == source and can_be_damaged(record)]
        chosen = draw.sample(own, sum(EACH.values()))
        pool += [{**record, "damage": ""} for record in chosen[: EACH["clean"]]]
        rest = chosen[EACH["clean"] :]
        others = draw.sample(rest, len(rest))
        pool += [
            damaged(record, KINDS[i % len(KINDS)], others[i], draw)
            for i, record in enumerate(rest[: EACH["damaged"]])
        ]
        trusted += rest[EACH["damaged"] :]
    draw.shuffle(pool)
    return pool, trusted


def ways(pool: Any, target: Any, records: list[Record], trusted: list[Record], seed: int) -> dict[str, Any]:
    """Way → dataset rows."""
    sources = [record["source"] for record in records]
    names = sorted(set(sources))
    of = np.array([names.index(record["source"]) for record in trusted])
    each = np.concatenate([np.flatnonzero(of == code)[:8] for code in range(len(names))])
    rows = np.asarray(target.read(range(len(trusted))), np.float32)
    unit: dict[str, Any] = {"normalize": "unit", "alpha": "auto"}
    found = {
        "random": np.random.default_rng(seed).permutation(len(records))[:PICKS],
        "mean-loss rows (default)": spice_rs.select(pool, PICKS).indices,
        "the same, λ = 1": spice_rs.select(pool, PICKS, conflict_penalty=1).indices,
        "summed-loss rows": spice_rs.select(pool, PICKS, normalize="sum").indices,
        "unit rows": spice_rs.select(pool, PICKS, **unit).indices,
        "unit rows, pool's shares": spice_rs.select(pool, PICKS, **unit, groups=sources).indices,
        "target: 8 of each source": spice_rs.select(pool, PICKS, target=rows[each]).indices,
    }
    cosines = spice_rs.compare(pool, PICKS, ["less"], target=rows[each], certificate=False)
    found["the same target, cosine top-k"] = cosines.selections["less"].indices
    found["the same target, r top-k"] = np.argsort(-spice_rs.relevance(pool, rows[each]), kind="stable")[
        :PICKS
    ]
    for code, name in enumerate(names):
        found[f"target: 32 of {name}"] = spice_rs.select(pool, PICKS, target=rows[of == code]).indices
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with gzip.open(arguments.pool, "rt", encoding="utf-8") as file:
        everything = [json.loads(line) for line in file]
    place, name = model_files()
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name)
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "target_modules": r"model\.layers\.2[2-9]\..*_proj",
        "projection": "two_sided",
        "dim": 1024,
        "max_length": 512,
        "dtype": "float32",
        "progress": False,
        "ignore_columns": ["id", "source", "damage"],
    }
    shares: dict[str, list[float]] = {}
    kinds: dict[str, Counter[str]] = {}
    for seed in range(arguments.seeds):
        records, trusted = scene(everything, seed)
        with tempfile.TemporaryDirectory() as folder:
            pool = spice_rs.extract(model, records, Path(folder) / "pool", **options)
            target = spice_rs.extract(model, trusted, Path(folder) / "target", **options)
            for way, rows in ways(pool, target, records, trusted, seed).items():
                found = [records[row]["damage"] for row in rows.tolist() if records[row]["damage"]]
                shares.setdefault(way, []).append(100 * len(found) / PICKS)
                kinds.setdefault(way, Counter()).update(found)
    print("| selected by | damaged, % of the picks | " + " | ".join(KINDS) + " |")
    print("|---" * (2 + len(KINDS)) + "|")
    for way, values in shares.items():
        total = PICKS * arguments.seeds
        counts = " | ".join(f"{100 * kinds[way][kind] / total:.0f}" for kind in KINDS)
        print(f"| {way} | {np.mean(values):.0f} ± {np.std(values):.0f} | {counts} |")


if __name__ == "__main__":
    main()
