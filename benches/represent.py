"""Representative picks: what they cost beside plain ones, and how well they cover rows that were held out.

    python benches/represent.py --rows 100000 --dim 1024 -k 1000      time, synthetic rows
    python benches/represent.py --source gradients_smollm2.npz        cover, real rows

Cost is wall time of `select` with γ = 1 over that of the same selection from unit rows, α = "auto" and λ = 0 both, least of
some runs each, by turns; and of γ = 1 with leading directions alone, beside what that changes: the share of Σ‖u‖² that
they have, picks in common with all directions (|A ∩ B|/|A ∪ B|), and U of the picks by all directions over U of theirs. The
passes are what a selection of one row takes.

Cover is `spice_rs.coverage`: mean over held-out rows of what they would still gain beside the picks, over the same for
random picks, by unit rows. A fifth of the rows is held out, a tenth of the others picked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from laws import write_law
from spice_rs.selection.represent import represent
from spice_rs.store.sources import open_source

PLAIN: dict[str, Any] = {"normalize": "unit", "alpha": "auto", "conflict_penalty": 0.0}


def least(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of each, least of some by turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, own = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - wall, time.process_time() - own))
    return {
        name: (min(wall for wall, _ in each), min(own for _, own in each)) for name, each in found.items()
    }


def information(rows: Any, alpha: float) -> float:
    return float(np.linalg.slogdet(np.eye(len(rows)) + alpha * rows @ rows.T)[1])


def cost(rows: int, dim: int, k: int, repeats: int, laws: list[str]) -> None:
    print("| pool | selection | wall, s | CPU, s | wall over plain | energy | shared picks | U |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in laws:
            path = Path(folder) / f"{name}.npy"
            write_law(path, name, rows, dim, 0, "float16")
            runs: dict[str, Callable[[], Any]] = {
                "unit rows": partial(spice_rs.select, path, k, **PLAIN),
                "γ = 1": partial(spice_rs.select, path, k, represent=1),
                "γ = 1, one row": partial(spice_rs.select, path, 1, represent=1),
            }
            ranks = [dim // 2, dim // 4, dim // 8]
            for rank in ranks:
                runs[f"γ = 1, r = {rank}"] = partial(
                    spice_rs.select, path, k, represent=1, represent_rank=rank
                )
            seconds = least(runs, repeats)
            source = open_source(path)
            whole, reader = (
                spice_rs.select(path, k, represent=1),
                represent(source, "unit", 1.0).reader(source),
            )
            alpha = whole.settings["alpha"]
            best = information(reader.read(whole.indices), alpha)
            for label, (wall, own) in seconds.items():
                line = f"| {name} | {label} | {wall:.2f} | {own:.2f} | {wall / seconds['unit rows'][0]:.2f} |"
                if "r =" in label:
                    found = spice_rs.select(path, k, represent=1, represent_rank=int(label.rsplit(" ", 1)[1]))
                    both = len(np.intersect1d(whole.indices, found.indices))
                    share = information(reader.read(found.indices), alpha) / best
                    energy = found.settings["represent"]["energy"]
                    line += f" {energy:.1%} | {both / (2 * k - both):.2f} | {share:.4f} |"
                else:
                    line += " | | |"
                print(line, flush=True)


def cover(source: str, seed: int) -> None:
    with np.load(source) if source.endswith(".npz") else open(source, "rb") as file:
        rows = np.float32(file["gradients"] if source.endswith(".npz") else np.load(file))
    order = np.random.default_rng(seed).permutation(len(rows))
    held, pool = rows[order[: len(rows) // 5]], rows[order[len(rows) // 5 :]]
    k = len(pool) // 10
    ways: dict[str, dict[str, Any]] = {"unit rows (γ = 0)": PLAIN, "mean-loss rows, as stored": {}}
    ways |= {f"γ = {gamma:g}": {"represent": gamma} for gamma in (0.25, 0.5, 1, 1.5, 2, 4)}
    ways |= {f"γ = 1, r = {rank}": {"represent": 1, "represent_rank": rank} for rank in (512, 128, 32)}
    whole = set(spice_rs.select(pool, k, represent=1).indices.tolist())
    print(f"\n{len(pool):,} rows, k = {k}, {len(held)} held out\n")
    print("| selection | cover | energy | picks shared with γ = 1 |")
    print("|---|---|---|---|")
    for name, options in ways.items():
        found = spice_rs.select(pool, k, **options)
        # All by unit rows: the order of the picks does not matter here.
        measured = spice_rs.select(pool, k, include=found.indices, **PLAIN)
        ratio = spice_rs.coverage(measured, pool, held).ratio
        energy = (found.settings["represent"] or {"energy": 1.0})["energy"]
        both = len(whole & set(found.indices.tolist()))
        print(f"| {name} | {ratio:.3f} | {energy:.1%} | {both / (2 * k - both):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("-k", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--laws", nargs="+", default=["clustered", "isotropic"])
    parser.add_argument("--source", help="a .npz with `gradients`, or a .npy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.rows:
        cost(arguments.rows, arguments.dim, arguments.k, arguments.repeats, arguments.laws)
    if arguments.source:
        cover(arguments.source, arguments.seed)


if __name__ == "__main__":
    main()
