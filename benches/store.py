"""The gradient store against numpy.memmap, plain safetensors and memory, and what each dtype does to picks.

`python benches/store.py [--rows N] [--dim D] [--gradients FILE]` prints the tables. Times are the best of three in one run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import spice_rs
from spice_rs import GradientStore

DTYPES = ("int8", "float16", "bfloat16", "float32")


def best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def speeds(folder: Path, rows: np.ndarray) -> None:
    """Append with fsync, and scan to float32 from the page cache, in GB of float32 per second."""
    n, dim = rows.shape
    size = rows.nbytes / 1e9
    out = np.empty_like(rows)
    copied = best(lambda: np.copyto(out, rows))
    print(f"{n} × {dim} float32, {size:.2f} GB; GB/s of float32; a copy in memory: {size / copied:.1f}\n")
    print("| what | append, fsync | scan to float32 | scan against a copy |\n|---|---|---|---|")

    def line(name: str, append: float, scan: float) -> None:
        print(f"| {name} | {size / append:.2f} | {size / scan:.2f} | {copied / scan:.2f} |")

    def memmap() -> None:
        mapped = np.memmap(folder / "rows.bin", np.float32, "w+", shape=rows.shape)
        mapped[:] = rows
        mapped.flush()

    append = best(memmap)
    line(
        "numpy.memmap",
        append,
        best(lambda: np.copyto(out, np.memmap(folder / "rows.bin", np.float32, "r", shape=rows.shape))),
    )

    def plain() -> None:
        save_file({"rows": rows}, folder / "rows.safetensors")
        with open(folder / "rows.safetensors", "rb") as file:
            os.fsync(file.fileno())

    append = best(plain)
    line("safetensors", append, best(lambda: load_file(folder / "rows.safetensors")))
    every = np.arange(n)
    for dtype in DTYPES:
        number = 0

        def fill(dtype: str = dtype) -> None:
            nonlocal number
            number += 1
            with GradientStore.create(folder / f"{dtype}{number}", dim=dim, dtype=dtype) as writer:
                writer.append(rows, every)

        append = best(fill)
        store = GradientStore(folder / f"{dtype}1")
        line(f"store, {dtype}", append, best(lambda store=store: store.read(every)))
    print()


def effects(folder: Path, file: Path, k: int) -> None:
    """Picks of each dtype against those of float32: shared picks, and log det of the float32 rows of the picks."""
    with np.load(file) as archive:
        name = next(name for name in archive.files if archive[name].ndim == 2)
        rows = archive[name].astype(np.float32)
    print(f"{file.name}: {rows.shape[0]} × {rows.shape[1]}, k = {k}, λ = 0.1\n")
    print("| dtype | normalize | picks of float32 | log det against float32's |\n|---|---|---|---|")
    for normalize in ("none", "unit"):
        exact = spice_rs.select(rows, k, normalize=normalize, progress=False)
        reference = spice_rs.log_det(rows, exact.indices, normalize=normalize)
        for dtype in DTYPES:
            path = folder / f"{dtype}-{normalize}"
            with GradientStore.create(path, dim=rows.shape[1], dtype=dtype) as writer:
                writer.append(rows, np.arange(len(rows)))
            picks = spice_rs.select(path, k, normalize=normalize, progress=False).indices
            shared = len(set(picks.tolist()) & set(exact.indices.tolist())) / k
            ratio = spice_rs.log_det(rows, picks, normalize=normalize) / reference
            print(f"| {dtype} | {normalize} | {shared:.1%} | {ratio:.6f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--gradients", type=Path, help=".npz of real gradients, for the effect of dtypes")
    parser.add_argument("-k", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = np.random.default_rng(0).standard_normal((options.rows, options.dim), dtype=np.float32)
        speeds(Path(folder), rows)
        if options.gradients is not None:
            effects(Path(folder), options.gradients, options.k)


if __name__ == "__main__":
    main()
