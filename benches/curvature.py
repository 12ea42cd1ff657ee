"""What curvature and certificates take and say. Prints one table for each.

    python benches/curvature.py [--n 100000] [--dim 1024] [--gradients FILE.npz::MEMBER] [--seed 1]

The limit of the curvature is the time of its 2·n·d² floating-point operations at the rate of numpy's float64 product of
square matrices (d × d, of 2048 at most), measured in the same run. Shares are of processor time, which other load on the
machine disturbs less; seconds are the fastest of three.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import machine
import spice_rs
from laws import write_law

REAL = Path(__file__).parents[1] / "../shared/data/gradients_smollm2.npz"


def fastest(work: Callable[[], Any], repeat: int = 3) -> tuple[float, float, Any]:
    """Return the smallest seconds, the smallest processor seconds, and the result."""
    seconds, spent, result = [], [], None
    for _ in range(repeat):
        started, busy = time.perf_counter(), time.process_time()
        result = work()
        seconds.append(time.perf_counter() - started)
        spent.append(time.process_time() - busy)
    return min(seconds), min(spent), result


def product_cost(size: int) -> float:
    """Processor seconds of one floating-point operation in a float64 product."""
    r = np.random.default_rng(0)
    a, b = r.standard_normal((size, size)), r.standard_normal((size, size))
    return fastest(lambda: a @ b)[1] / (2 * size**3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--gradients", default=str(REAL), help="real gradients, if they are there")
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args()
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)
    others = machine.OtherLoad()
    print(machine.describe())
    print(f"- seed {settings.seed}; alpha = 1; pools in float16, read through the map, λ = 0.1\n")
    with tempfile.TemporaryDirectory(prefix="spice-bench-") as folder:
        pools: list[tuple[str, Any, str, int, int]] = []
        for name in ("clustered", "unit", "opposed"):
            path = Path(folder) / f"{name}.npy"
            write_law(path, name, settings.n, settings.dim, settings.seed, "float16")
            pools.append((name, str(path), "none", settings.n, settings.dim))
        if Path(settings.gradients.partition("::")[0]).is_file():
            archive = np.load(settings.gradients)
            rows = archive["gradients"] if hasattr(archive, "files") else archive
            pools += [(f"real, {scale}", rows, scale, *rows.shape) for scale in ("none", "unit")]
        curvatures(pools)
        certificates(pools)
    share = others.share()
    if share is not None:
        print(f"\nOther processes took {share:.0%} of the machine meanwhile.")


def curvatures(pools: list[tuple[str, Any, str, int, int]]) -> None:
    print("| pool | n | d | curvature | greedy has at least | seconds | share of the product's rate |")
    print("|---|---|---|---|---|---|---|")
    for name, source, scale, n, dim in pools:
        seconds, spent, found = fastest(
            lambda source=source, scale=scale: spice_rs.curvature(source, normalize=scale, progress=False)
        )
        share = ""
        if n > dim:
            share = f"{2 * n * dim**2 * product_cost(min(dim, 2048)) / spent:.0%}"
        print(
            f"| {name} | {n:,} | {dim} | {found.total:.4f} | {found.guarantee:.1%} | {seconds:.2f} | {share} |",
            flush=True,
        )


def certificates(pools: list[tuple[str, Any, str, int, int]]) -> None:
    print(
        "\n| pool | n | d | k | at least of the best U | by submodularity alone | seconds | of the selection |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, source, scale, n, dim in pools:
        sizes = (200, 2000) if n > 10_000 else (n // 10, n // 2)
        for k in sizes:
            picking, _, selection = fastest(
                lambda source=source, scale=scale, k=k: spice_rs.select(
                    source, k, normalize=scale, progress=False
                ),
                1,
            )
            seconds, _, found = fastest(
                lambda source=source, selection=selection: spice_rs.certify(
                    selection, source, progress=False
                ),
                2,
            )
            alone = found.log_det / found.submodular.min()
            print(
                f"| {name} | {n:,} | {dim} | {k:,} | {found.ratio:.3f} | {alone:.3f} | {seconds:.2f} | {picking:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
