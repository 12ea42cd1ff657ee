"""What a process holds for itself, and how fast this machine's memory is."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np

STATUS = Path("/proc/self/status")
INTERVAL = 0.005


class PeakMemory:
    """Peak of this process's anonymous memory while the block runs, in bytes; None where Linux does not tell.

    A thread reads RssAnon every 5 ms: pages of a mapped file do not count, whatever the process held before does, and
    a peak that lasts less than that may be missed.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sample()
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        found = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
        if found:
            self.bytes = max(self.bytes or 0, int(found[1]) * 1024)


def bandwidth(size: int, threads: int) -> dict[str, float]:
    """Bytes a second of reading an array of `size` bytes and of copying it, best of 5, on `threads` threads.

    Reading is the faster of numpy's max and sum. Copying counts the bytes read and the bytes written.
    """
    source = np.ones(size // 4, np.float32)
    target = np.zeros_like(source)
    cuts = np.linspace(0, source.size, threads + 1).astype(int)
    slices = [slice(low, high) for low, high in pairwise(cuts)]
    runs = {
        "max": lambda part: source[part].max(),
        "sum": lambda part: source[part].sum(),
        "copy": lambda part: np.copyto(target[part], source[part]),
    }
    best = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, run in runs.items():
            seconds = []
            for _ in range(5):
                started = time.perf_counter()
                list(pool.map(run, slices))
                seconds.append(time.perf_counter() - started)
            best[name] = source.nbytes / min(seconds)
    return {"read": max(best["max"], best["sum"]), "copy": 2 * best["copy"]}
