"""What each stored dtype does to a selection from real gradients: shared picks, log det, and the error of a cell.

    python benches/dtypes.py [--gradients FILE.npz] [-k 200]

FILE.npz has one two-dimensional array. The picks of each dtype are compared with those of float32: how many are the same
rows, and log det(I + αF) of the float32 rows of either. α = 1, λ = 0.1. The error is the largest of a cell, in parts of
the largest cell of its row. Prints one table; the numbers depend on the data alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import spice_rs
from spice_rs import GradientStore

SHARED = Path(__file__).parents[1] / "../shared/data"
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradients", type=Path, default=SHARED / "gradients_smollm2.npz")
    parser.add_argument("-k", type=int, default=200)
    options = parser.parse_args()
    with np.load(options.gradients) as archive:
        name = next(name for name in archive.files if archive[name].ndim == 2)
        rows = archive[name].astype(np.float32)
    print(f"{options.gradients.name}: {rows.shape[0]} × {rows.shape[1]}, k = {options.k}, α = 1, λ = 0.1\n")
    print(
        "| dtype | bytes per cell | largest error | normalize | shared picks | log det |\n|---|---|---|---|---|---|"
    )
    largest = np.abs(rows).max(axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        stores = {}
        for dtype in DTYPES:
            with GradientStore.create(f"{folder}/{dtype}", dim=rows.shape[1], dtype=dtype) as writer:
                writer.append(rows, np.arange(len(rows)))
            stores[dtype] = GradientStore(f"{folder}/{dtype}")
        for normalize in ("none", "unit"):
            settings = {"k": options.k, "conflict_penalty": 0.1, "normalize": normalize, "progress": False}
            exact = spice_rs.select(rows, **settings).indices
            reference = spice_rs.log_det(rows, exact, normalize=normalize)
            for dtype, store in stores.items():
                error = np.abs(store.read(np.arange(len(rows))) - rows) / np.where(largest == 0, 1, largest)
                picks = spice_rs.select(store, **settings).indices
                shared = len(np.intersect1d(picks, exact)) / options.k
                ratio = spice_rs.log_det(rows, picks, normalize=normalize) / reference
                print(
                    f"| {dtype} | {DTYPES[dtype]} | {error.max():.1e} | {normalize} | {shared:.1%} | {ratio:.6f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
