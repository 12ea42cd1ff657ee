"""What figures depend on besides the code: the machine, who else uses it, its memory, and what a process holds of it."""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np

STATUS = Path("/proc/self/status")
INTERVAL = 0.005


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> str:
    """Return the machine and the versions, one Markdown item each."""
    model, ram = platform.processor() or "unknown processor", ""
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
        model = found[1] if found else model
        ram = f", {int(total[1]) / 1e6:.0f} GB of memory" if total else ""
    packages = []
    for package in ("spice-rs", "numpy", "torch"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"no {package}")
    return (
        f"- machine: {platform.machine()}, {model}, {cores()} cores{ram}\n"
        f"- versions: Python {platform.python_version()}, {', '.join(packages)}"
    )


class OtherLoad:
    """Share of the machine's processor time that went to anything but this process and the children it ran.

    None where Linux does not tell. On a shared machine a ratio of two runs means little while this is large.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def share(self) -> float | None:
        """Return the share from 0 to 1 since the start."""
        busy, elapsed = _busy_seconds(), time.perf_counter() - self._started
        if busy is None or self._busy is None:
            return None
        others = (busy - self._busy) - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / (elapsed * (os.cpu_count() or 1))))


def _busy_seconds() -> float | None:
    """Processor seconds that were not idle, of all processes since the machine started, stolen time included."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, stat.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])


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
        found = anonymous()
        if found is not None:
            self.bytes = max(self.bytes or 0, found)


def anonymous() -> int | None:
    """Return the bytes of this process's anonymous memory; None where Linux does not tell."""
    found = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text()) if STATUS.is_file() else None
    return int(found[1]) * 1024 if found else None


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
