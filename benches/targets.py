"""Picks for a target on real gradients: of which source they are, how long, and what they say of held-out records.

    python benches/targets.py --gradients gradients_smollm2.npz --pool pool.jsonl.gz
    python benches/targets.py --cost 100000      time beside the selection without a target, n × 1024

The gradients of 2,000 records of four sources are cut into a target (24 records of each source that is wanted), 60 held-out
records of each source, and the pool. k rows are picked for one target, and for two at once, in several ways:

one          the rows of both targets as one
best         weights by the group that a row serves best, without quotas
groups       the same with as many picks of each group: `target_groups`
V-optimal    greedily the least Σ_t tᵀM⁻¹t over the centred rows of both targets, among rows that point to one of them

The step is what a small step of training on the picks, each at unit length, does to the loss of held-out records in first
order, over that of a step on as many rows of the same source: 1 is as good as knowing the sources. (Picks by the cosine to
the target's mean are the best by this measure by construction, and not when trained on.) Intervals are standard deviations
over --seeds draws of target and held-out records.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from laws import write_law

Rows = Any


def unit(rows: Rows) -> Rows:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def v_optimal(pool: Rows, target: Rows, codes: Rows, k: int, alpha: float) -> Rows:
    """Centred rows that leave the least of the centred target unexplained, of those that point to a target."""
    centre = pool.mean(0)
    rows, wanted = unit(pool - centre), target - centre
    away = np.max([rows @ wanted[codes == code].mean(0) for code in np.unique(codes)], axis=0) <= 0
    inverse_rows, variance, left = rows.copy(), np.ones(len(rows)), wanted.copy()
    picks: list[int] = []
    for _ in range(k):
        toward = np.maximum(inverse_rows @ wanted.T, 0.0)
        score = alpha * (toward**2).sum(1) / (1 + alpha * variance)
        score[away] = -1
        score[picks] = -1
        best = int(score.argmax())
        picks.append(best)
        own, scale = inverse_rows[best].copy(), alpha / (1 + alpha * variance[best])
        inner = rows @ own
        inverse_rows -= scale * np.outer(inner, own)
        variance = np.maximum(variance - scale * inner**2, 0.0)
        left -= scale * np.outer(left @ rows[best], own)
    return np.array(picks)


def picked(way: str, pool: Rows, target: Rows, codes: Rows, k: int) -> Rows:
    match way:
        case "random":
            return np.random.default_rng(len(pool)).permutation(len(pool))[:k]
        case "cosine":
            return np.argsort(-(unit(pool) @ unit(target).mean(0)), kind="stable")[:k]
        case "relevance":
            return np.argsort(-spice_rs.relevance(pool, target), kind="stable")[:k]
        case "unit rows":
            return spice_rs.select(pool, k, normalize="unit", alpha="auto", conflict_penalty=0).indices
        case "one" | "target":
            return spice_rs.select(pool, k, target=target).indices
        case "groups":
            return spice_rs.select(pool, k, target=target, target_groups=codes).indices
        case "best":
            free = {int(code): (0, None) for code in np.unique(codes)}
            return spice_rs.select(pool, k, target=target, target_groups=codes, group_shares=free).indices
    return v_optimal(unit(pool), unit(target), codes, k, alpha=10.0)


def draw(sources: list[str], wanted: list[str], seed: int) -> tuple[Rows, dict[str, Rows], Rows]:
    """Rows of the target, held-out rows by source, and the rest."""
    random = np.random.default_rng(seed)
    target, held, rest = [], {}, []
    for source in sorted(set(sources)):
        own = random.permutation([row for row, each in enumerate(sources) if each == source])
        size = 24 if source in wanted else 0
        target += own[:size].tolist()
        held[source] = own[size : size + 60]
        rest += own[size + 60 :].tolist()
    return np.array(target), held, np.sort(rest)


def compare(
    rows: Rows, sources: list[str], tokens: Rows, wanted: list[str], ways: list[str], arguments: Any
) -> None:
    steps: dict[str, dict[str, list[float]]] = {way: {source: [] for source in wanted} for way in ways}
    mixtures: dict[str, Counter[str]] = {way: Counter() for way in ways}
    lengths: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(arguments.seeds):
        target, held, rest = draw(sources, wanted, seed)
        codes = np.array([wanted.index(sources[row]) for row in target])
        pool = rows[rest]
        for way in ways:
            chosen = rest[picked(way, pool, rows[target], codes, arguments.k)]
            mixtures[way].update(sources[row] for row in chosen)
            lengths[way].append(float(np.median(tokens[chosen])))
            for source in wanted:
                own = unit(rows[[row for row in rest if sources[row] == source]]).mean(0)
                test = unit(rows[held[source]]).mean(0)
                steps[way][source].append(float(unit(rows[chosen]).mean(0) @ test) / float(own @ test))
    names = sorted(set(sources))
    print("| way | " + " | ".join(f"{name} % of picks" for name in names) + " | median tokens |", end="")
    print(" | ".join(f" step for {source}" for source in wanted) + " |")
    print("|---" * (2 + len(names) + len(wanted)) + "|")
    for way in ways:
        total = sum(mixtures[way].values())
        shares = " | ".join(f"{100 * mixtures[way][name] / total:.0f}" for name in names)
        found = " | ".join(f"{np.mean(steps[way][s]):.3f} ± {np.std(steps[way][s]):.3f}" for s in wanted)
        print(f"| {way} | {shares} | {np.mean(lengths[way]):.0f} | {found} |")
    print()


def cost(rows: int, k: int, repeats: int) -> None:
    """CPU seconds of a selection for a target over those of the same one without, least of some runs each, by turns."""
    unit_rows: dict[str, Any] = {"normalize": "unit", "alpha": "auto"}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("clustered", "isotropic"):
            path = Path(folder) / f"{name}.npy"
            write_law(path, name, rows, 1024, 0, "float16")
            few = np.float32(np.load(path, mmap_mode="r")[:32])
            target = few + np.random.default_rng(0).standard_normal(few.shape, np.float32) * few.std()
            runs = {
                "without": partial(spice_rs.select, path, k, **unit_rows, conflict_penalty=0),
                "target": partial(spice_rs.select, path, k, **unit_rows, target=target),
                "relevance": partial(spice_rs.relevance, path, target),
            }
            seconds: dict[str, list[float]] = {each: [] for each in runs}
            for _ in range(repeats):
                for each, run in runs.items():
                    started = time.process_time()
                    run()
                    seconds[each].append(time.process_time() - started)
            least = {each: min(values) for each, values in seconds.items()}
            listed = ", ".join(f"{each} {value:.2f} s" for each, value in least.items())
            print(
                f"{name}, {rows} × 1024, k = {k}: {listed}: {least['target'] / least['without']:.2f} ×",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradients", help="gradients_smollm2.npz")
    parser.add_argument("--pool", help="pool.jsonl.gz, the records that they are of")
    parser.add_argument("-k", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cost", type=int, metavar="ROWS")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.cost:
        cost(arguments.cost, 1000, 3)
        return
    with np.load(arguments.gradients) as file:
        rows, index, tokens = np.float64(file["gradients"]), file["index"], file["num_tokens"]
    with gzip.open(arguments.pool, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    sources = [records[row]["source"] for row in index]
    several = ["random", "unit rows", "cosine", "one", "best", "groups", "V-optimal"]
    alone = ["random", "unit rows", "cosine", "relevance", "target"]
    for source in sorted(set(sources)):
        print(f"\ntarget: {source}\n")
        compare(rows, sources, tokens, [source], alone, arguments)
    names = sorted(set(sources))
    for pair in ([names[0], names[2]], [names[0], names[1]], [names[1], names[3]]):
        print(f"\ntargets: {pair[0]} and {pair[1]}\n")
        compare(rows, sources, tokens, pair, several, arguments)


if __name__ == "__main__":
    main()
