"""The gradient store against numpy.memmap, plain safetensors, and what memory and disk can do. Prints one table.

    python benches/store.py [--rows 50000] [--dim 1024] [--shards 300] [--folder DIR] [--dtypes int8 float16 …]

Normal random rows (seed 0). Each line is the best of `--repeat` runs; peers and limits are measured in the same run. GB/s
count the bytes of the file that is written or read; a warm `scan` ends in float32 whatever the file has, and counts that.
`ratio` is against the limit or the peer of the line. Files are synced when they are written; `cold` ones have been
dropped from the page cache, warm ones are in it. DIR should lie on the disk that matters.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import machine
from spice_rs import GradientStore

CHUNK = 8 << 20
DTYPES = ("float32", "float16", "bfloat16", "int8")
CONVERSIONS = (("float32", "int8"), ("float32", "float16"), ("float16", "int8"), ("int8", "float32"))
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


class Bench:
    """Times calls and prints a line for each."""

    def __init__(self, repeat: int) -> None:
        self._repeat = repeat
        print(
            "| what | run | GB | seconds | GB/s | against | ratio | others' load |\n|---|---|--:|--:|--:|---|--:|--:|"
        )

    def best(self, work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        seconds = []
        for _ in range(self._repeat):
            before()
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def line(
        self,
        what: str,
        run: str,
        size: float,
        work: Callable[[], object],
        before: Callable[[], object] = lambda: None,
        against: tuple[str, float] | None = None,
    ) -> float:
        """Prints a line; returns bytes per second (calls, for a size of 1)."""
        load = machine.OtherLoad()
        seconds = self.best(work, before)
        self.show(what, run, size, seconds, against, load.share())
        return size / seconds

    def show(
        self,
        what: str,
        run: str,
        size: float,
        seconds: float,
        against: tuple[str, float] | None = None,
        load: float | None = None,
    ) -> None:
        cells = [
            what,
            run,
            f"{size / 1e9:.3f}" if size > 1 else "",
            f"{seconds:.4f}",
            f"{size / seconds / 1e9:.2f}" if size > 1 else "",
            against[0] if against else "",
            f"{size / seconds / against[1]:.2f}" if against else "",
            "" if load is None else f"{load:.0%}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def files(path: Path) -> Iterator[Path]:
    return (file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in files(path))


def drop(path: Path) -> None:
    """Takes the files out of the page cache, where the system can be asked to."""
    for file in files(path):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def synced(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write(path: Path, data: memoryview) -> None:
    """The limit of appending: bytes that are there already, written and synced."""
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(data), CHUNK):
            file.write(data[start : start + CHUNK])
        os.fsync(file.fileno())


def read(path: Path, buffer: memoryview) -> None:
    """The limit of reading a file: its bytes into memory that is there already."""
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--folder", help="where the files go; the default for temporary files else")
    options = parser.parse_args()
    rows = np.random.default_rng(0).standard_normal((options.rows, options.dim), dtype=np.float32)
    print(f"{machine.describe()}\n- rows: {options.rows} × {options.dim}, best of {options.repeat}\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder)
        stores = {dtype: path / dtype for dtype in options.dtypes}
        made = Files(rows, path / "bytes", path / "rows.bin", path / "rows.safetensors", stores)
        bench = Bench(options.repeat)
        found = limits(bench, made)
        append(bench, made, found.disk)
        scan(bench, made, found)
        verify_and_convert(bench, made, path, found)
        many(bench, path, rows, options.shards)


@dataclass
class Files:
    """What is written and read, and where; a store for each dtype."""

    rows: np.ndarray
    plain: Path
    mapped: Path
    tensors: Path
    stores: dict[str, Path]


@dataclass
class Limits:
    """What the machine can do, with its name: bytes per second."""

    copy: tuple[str, float]
    disk: tuple[str, float]
    cold: tuple[str, float]
    warm: tuple[str, float]


def limits(bench: Bench, made: Files) -> Limits:
    """A copy's rate is that of the bytes copied: as many are written as are read."""
    rows, cores = made.rows, machine.cores()
    out, buffer = np.zeros_like(rows), memoryview(bytearray(CHUNK))
    bench.line("limit", "a copy, 1 thread", rows.nbytes, lambda: np.copyto(out, rows))
    copied = machine.bandwidth(rows.nbytes, cores)["copy"] / 2
    bench.show("limit", f"a copy, {cores} threads", rows.nbytes, rows.nbytes / copied)
    data = memoryview(rows).cast("B")
    disk = bench.line("limit", "write and fsync", rows.nbytes, lambda: write(made.plain, data))
    cold = bench.line(
        "limit", "read, cold", rows.nbytes, lambda: read(made.plain, buffer), lambda: drop(made.plain)
    )
    warm = bench.line("limit", "read, warm", rows.nbytes, lambda: read(made.plain, buffer))
    return Limits(
        (f"a copy, {cores} threads", copied),
        ("write and fsync", disk),
        ("read, cold", cold),
        ("read, warm", warm),
    )


def append(bench: Bench, made: Files, limit: tuple[str, float]) -> None:
    rows = made.rows

    def map_rows() -> None:
        target = np.memmap(made.mapped, np.float32, "w+", shape=rows.shape)
        target[:] = rows
        target.flush()

    def save() -> None:
        save_file({"rows": rows}, made.tensors)
        synced(made.tensors)

    def fill(path: Path, dtype: str) -> None:
        with GradientStore.create(path, dim=rows.shape[1], dtype=dtype) as writer:
            writer.append(rows, np.arange(len(rows)))

    bench.line("append", "numpy.memmap", rows.nbytes, map_rows, lambda: made.mapped.unlink(True), limit)
    bench.line("append", "safetensors", rows.nbytes, save, lambda: made.tensors.unlink(True), limit)
    for dtype, path in made.stores.items():
        stored = rows.size * SIZES[dtype] + 16 * len(rows)
        work, before = partial(fill, path, dtype), partial(shutil.rmtree, path, ignore_errors=True)
        bench.line("append", f"store, {dtype}", stored, work, before, limit)


def scan(bench: Bench, made: Files, limits: Limits) -> None:
    """All rows, in order, as float32 in memory. Files are opened anew each time: mapped pages stay in the cache."""
    every, out = np.arange(len(made.rows)), np.zeros_like(made.rows)

    def copy() -> None:
        np.copyto(out, np.memmap(made.mapped, np.float32, "r", shape=out.shape))

    def load(path: Path, target: np.ndarray | None) -> None:
        GradientStore(path).read(every, target)

    runs: list[tuple[str, Path, Callable[[], object]]] = [
        ("numpy.memmap, into an array", made.mapped, copy),
        ("safetensors, a new array", made.tensors, partial(load_file, made.tensors)),
    ]
    for dtype, path in made.stores.items():
        runs += [
            (f"store, {dtype}, into an array", path, partial(load, path, out)),
            (f"store, {dtype}, a new array", path, partial(load, path, None)),
        ]
    for name, _path, work in runs:
        bench.line("scan, warm", name, out.nbytes, work, against=limits.copy)
    for name, path, work in runs:
        # From a cold disk come the bytes of the file, not those of float32.
        bench.line("scan, cold", name, size(path), work, partial(drop, path), limits.cold)


def verify_and_convert(bench: Bench, made: Files, folder: Path, limits: Limits) -> None:
    for dtype, path in made.stores.items():
        bench.line("verify", dtype, size(path), GradientStore(path).verify, against=limits.warm)
    target = folder / "converted"
    for source, dtype in CONVERSIONS:
        if source in made.stores and dtype in made.stores:
            bench.line(
                "convert",
                f"{source} to {dtype}",
                size(made.stores[dtype]),
                partial(GradientStore(made.stores[source]).convert, target, dtype),
                partial(shutil.rmtree, target, ignore_errors=True),
                limits.disk,
            )


def many(bench: Bench, folder: Path, rows: np.ndarray, shards: int) -> None:
    """Opening many shards: a store of them, and as many safetensors files with the same columns."""
    path, peers = folder / "many", folder / "peers"
    peers.mkdir()
    per_shard = max(1, min(len(rows) // shards, 16))
    with GradientStore.create(path, dim=rows.shape[1], rows_per_shard=per_shard) as writer:
        writer.append(rows[: shards * per_shard], np.arange(shards * per_shard))
    for number in range(shards):
        part = rows[number * per_shard : (number + 1) * per_shard].astype(np.float16)
        save_file({"gradients": part, "index": np.arange(per_shard)}, peers / f"{number}.safetensors")

    def peer() -> None:
        index = []
        for file in sorted(peers.iterdir()):
            with safe_open(file, framework="np") as opened:
                index.append(opened.get_tensor("index"))
        np.concatenate(index)

    rate = bench.line("open", f"{shards} safetensors files, with their index", 1, peer)
    bench.line(
        "open", f"store of {shards} shards", 1, lambda: GradientStore(path), against=("safetensors", rate)
    )


if __name__ == "__main__":
    main()
