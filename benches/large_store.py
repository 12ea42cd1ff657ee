"""A store that is large: filled, opened, looked up in and verified, against plain reads of the same files.

`python benches/large_store.py [--gigabytes 20] [--dim D] [--folder FOLDER]` prints one table and removes the store.
Cold means that the system was told to drop the files from its page cache first, which it does without special rights.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from machine import STATUS, OtherLoad, describe
from spice_rs import GradientStore

ROWS_AT_A_TIME = 4096


def timed(work: Callable[[], object]) -> tuple[float, float, str]:
    """Seconds, processor seconds of this process, and a note on who else was at work."""
    load, used, start = OtherLoad(), time.process_time(), time.perf_counter()
    work()
    seconds, share = time.perf_counter() - start, load.share()
    note = f"BUSY {share:.0%}" if share is not None and share > 0.05 else ""
    return seconds, time.process_time() - used, note


def forget(path: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def fill(path: Path, rows: int, dim: int) -> None:
    """Write `rows` float16 rows: the same block again and again, under new indices."""
    block = np.random.default_rng(0).standard_normal((ROWS_AT_A_TIME, dim), dtype=np.float32)
    with GradientStore.create(path, dim=dim) as writer:
        for start in range(0, rows, ROWS_AT_A_TIME):
            count = min(ROWS_AT_A_TIME, rows - start)
            index = np.arange(start, start + count)
            writer.append(block[:count], index, num_tokens=index % 1000, loss=index / 7)


def read_plainly(path: Path) -> None:
    """Read all bytes of the files, as a program would that does nothing with them."""
    room = memoryview(bytearray(4 << 20))
    for file in sorted(path.iterdir()):
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(room):
                pass


class Watch:
    """Progress of a verification: the longest silence in seconds, and the most resident bytes, mapped files included."""

    def __init__(self) -> None:
        self.longest, self.resident, self._last = 0.0, 0, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        self.longest, self._last = max(self.longest, now - self._last), now
        if STATUS.is_file():
            found = re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())
            self.resident = max(self.resident, int(found[1]) * 1024 if found else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="where to put the store (default: the temporary folder)")
    options = parser.parse_args()
    rows = int(options.gigabytes * 1e9 / (2 * options.dim))
    print(f"{describe()}\n- {rows:,} × {options.dim} float16, {options.gigabytes:g} GB; rows of seed 0\n")
    print("| what | seconds | processor s | GB/s | note |\n|---|---|---|---|---|")

    def line(what: str, took: tuple[float, float, str], size: float = 0.0, note: str = "") -> None:
        speed = f"{size / took[0]:.2f}" if size else ""
        notes = ", ".join(text for text in (note, took[2]) if text)
        print(f"| {what} | {took[0]:.4f} | {took[1]:.4f} | {speed} | {notes} |", flush=True)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "store"
        line("fill, synced", timed(lambda: fill(path, rows, options.dim)), options.gigabytes)
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e9
        shards = len(list(path.glob("shard-*")))
        for state in ("cold", "cold", "cold", "warm", "warm", "warm"):
            if state == "cold":
                forget(path)
            line(f"open, {state}", timed(lambda: GradientStore(path)), note=f"{shards} shards")
        store = GradientStore(path)
        line("index", timed(lambda: store.index))
        wanted = np.random.default_rng(1).integers(0, rows, 10_000)
        line("positions of 10,000 rows", timed(lambda: store.positions(wanted)))
        forget(path)
        line("read all bytes, cold", timed(lambda: read_plainly(path)), size)
        for limit in (None, 512 << 20):
            forget(path)
            bounded = GradientStore(path, memory_limit=limit)
            watch = Watch()
            took = timed(partial(bounded.verify, watch))
            note = f"progress at least every {watch.longest:.2f} s, at most {watch.resident / 1e6:,.0f} MB resident"
            line(f"verify, cold, memory_limit={limit}", took, size, note)
            del bounded  # what is mapped would stay in the page cache


if __name__ == "__main__":
    main()
