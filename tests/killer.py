"""Processes that fill, compact and repair one store, killed at random: `python killer.py FOLDER KILLS SEED`.

Forked, so that a process costs a millisecond and not the import of numpy. `FOLDER/log` has one line for each row whose
commit has returned; `FOLDER/store` is the store.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from spice_rs import GradientStore

DIM = 40
ROWS = 1_000_000  # of one writer
JOBS = ("write", "write", "write", "write", "compact", "read")


def rows_of(index: np.ndarray) -> np.ndarray:
    """What is stored of these rows: whole numbers below 127, the largest of which is 126."""
    cells = (index[:, None] * np.arange(1, DIM + 1)) % 127
    cells[:, 0] = 126
    return cells.astype(np.float32)


def write(folder: Path, number: int) -> None:
    rng = random.Random(number)
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    start = number * ROWS
    # Some commit each append, others leave that to the thread, which is killed wherever it is; what it has done by then
    # need not be there, but must be whole.
    most = rng.choice((1, 1, 5, 40))
    writer = GradientStore.create(
        folder / "store",
        dim=DIM,
        dtype="float16",
        writer=f"w{number % 7}",
        rows_per_shard=rng.choice((None, 2, 7, 30)),
        seconds_per_shard=rng.choice((None, 0, 0.01)),
    )
    while True:
        new: list[int] = []
        for _ in range(rng.randint(1, most)):
            index = np.arange(start, start + rng.randint(1, 5))
            writer.append(rows_of(index), index, num_tokens=index % 5)
            new += index.tolist()
            start += len(index)
        writer.commit()
        os.write(log, "".join(f"{row}\n" for row in new).encode())
        time.sleep(rng.uniform(0, 0.004))


def compact(folder: Path, number: int) -> None:
    while True:
        GradientStore(folder / "store").compact(20_000 if number % 3 else 2_000)
        GradientStore.repair(folder / "store")


def read(folder: Path, _: int) -> None:
    check(folder)


def check(folder: Path) -> int:
    """Compares the store with the log as it was before; returns the number of rows."""
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    committed = {int(line) for line in log.split()}
    store = GradientStore(folder / "store")
    store.verify()
    index = store.index
    assert len(set(index.tolist())) == len(index)
    assert committed <= set(index.tolist()), sorted(committed - set(index.tolist()))[:10]
    np.testing.assert_array_equal(store.read(np.arange(len(index))), rows_of(index))
    assert len(index) == 0 or store.num_tokens.tolist() == (index % 5).tolist()
    return len(index)


def start(job: str, folder: Path, number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        globals()[job](folder, number)
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - it must not reach the parent's code
        print(f"{job} {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def main(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    GradientStore.create(folder / "store", dim=DIM, dtype="float16").close()
    killed: Counter[str] = Counter()
    running: dict[int, tuple[str, float]] = {}
    number = 0
    try:
        while sum(killed.values()) < kills:
            for job in (Counter(JOBS) - Counter(job for job, _ in running.values())).elements():
                number += 1
                running[start(job, folder, number)] = (job, time.monotonic() + rng.uniform(0.0, 0.2))
            for pid, (job, end) in list(running.items()):
                # A reader ends by itself; the others are killed, or end for a reason that is an error.
                late = job != "read" and time.monotonic() >= end
                if late:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                if not done:
                    continue
                del running[pid]
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                    killed[job] += 1
                elif status != 0 or job != "read":
                    raise SystemExit(f"{job}: status {status}")
            time.sleep(0.002)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print(*(f"{job}={killed[job]}" for job in ("write", "compact")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
