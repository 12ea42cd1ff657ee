"""What it costs to hold a store's rows against their checksums: its first pass against that over the same bytes as arrays.

    python benches/checked.py [--rows 400000] [--dims 32 256 1024] [--shards 1 40] [--repeat 40]

One thread, CPU seconds, rows in float16 and in the page cache; rows fall with the width, so that each pool has as many
bytes. Both passes alternate; the cost is that of the fastest of each, and the median over pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import machine
from spice_rs import GradientStore, _core
from spice_rs.store.pool import Pool
from spice_rs.store.sources import open_source

Blocks = list[Any]


def write(path: Path, rows: int, dim: int, shards: int) -> None:
    draws, each = np.random.default_rng(0), -(-rows // shards)
    with GradientStore.create(path, dim=dim, rows_per_shard=each) as writer:
        for start in range(0, rows, each):
            size = min(each, rows - start)
            writer.append(
                draws.standard_normal((size, dim), dtype=np.float32),
                np.arange(start, start + size),
                num_tokens=np.ones(size, int),
                loss=np.ones(size, np.float32),
                record=np.arange(size),
            )


def arrays(path: Path) -> Blocks:
    """The shards' cells as arrays, of which nothing is known."""
    found: Blocks = []
    for file in sorted(path.glob("*.safetensors")):
        content = np.memmap(file, np.uint8, "r")
        length = int(content[:8].view("<u8")[0])
        tensor = json.loads(bytes(content[8 : 8 + length]))["gradients"]
        start, end = tensor["data_offsets"]
        found.append((content[8 + length + start : 8 + length + end], "float16", tensor["shape"][0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=400_000, help="rows of 32 columns")
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 40])
    parser.add_argument("--repeat", type=int, default=40)
    options = parser.parse_args()
    print(f"{machine.describe()}\n")
    print(
        "| d | rows | shards | checked, ns/row | not, ns/row | cost | of pairs |\n|--:|--:|--:|--:|--:|--:|--:|"
    )
    for dim in options.dims:
        for shards in options.shards:
            rows = options.rows * 32 // dim
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "store"
                write(path, rows, dim, shards)
                source = open_source(path)

                def seconds(pool: Pool) -> float:
                    start = time.process_time()
                    _core.norms_sq(pool, threads=1)
                    return time.process_time() - start

                stored = source.pool("none")
                plain = dataclasses.replace(stored, blocks=arrays(path))
                pairs = np.array([[seconds(stored), seconds(plain)] for _ in range(options.repeat)])
            best, pair = pairs.min(0), float(np.median(pairs[:, 0] / pairs[:, 1]))
            cells = [
                f"{dim}",
                f"{rows:,}",
                f"{shards}",
                *(f"{each / rows * 1e9:.1f}" for each in best),
                f"{best[0] / best[1] - 1:.1%}",
                f"{pair - 1:.1%}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
