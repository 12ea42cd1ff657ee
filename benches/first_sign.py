"""Seconds from the start of each command to the first thing that one sees of it, on a terminal and in a pipe.

python benches/first_sign.py [--rows N]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from datasets import Dataset

import spice_rs
from spice_rs.tables import aligned
from tiny import make_records, save_proxy

WIDTH = 64
"""Columns of the store that is selected from."""


def first_sign(command: list[str], terminal: bool) -> tuple[float, float, str]:
    """(seconds to the first output, seconds in all, the first line)."""
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(reading, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=writing, stderr=writing, stdin=subprocess.DEVNULL)
    os.close(writing)
    first, text = None, b""
    while True:
        try:
            found = os.read(reading, 1 << 16)
        except OSError:  # a terminal whose other end was closed
            found = b""
        if not found:
            break
        first = first or time.perf_counter() - begun
        text += found
    os.close(reading)
    process.wait()
    seconds = time.perf_counter() - begun
    lines = text.decode(errors="replace").replace("\r", "\n").split("\n")
    return first or seconds, seconds, next((line for line in lines if line.strip()), "")[:50]


def commands(folder: Path, rows: int) -> dict[str, list[str]]:
    """Name → arguments, on a store of so many random rows, and a tiny model."""
    proxy, pool, store = str(save_proxy(folder / "proxy")), folder / "pool.jsonl", str(folder / "store")
    pool.write_text("".join(json.dumps(record) + "\n" for record in make_records(2000)))
    cells = np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32)
    with spice_rs.GradientStore.create(store, dim=WIDTH, dtype="float32") as writer:
        writer.append(cells, index=np.arange(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spice_rs.select(store, 300, progress=False).save(folder / "sel.safetensors")
    saved, model = (
        str(folder / "sel.safetensors"),
        ["--model", proxy, "--data", str(pool), "--min-coverage", "0"],
    )
    Dataset.from_list(make_records(4)).save_to_disk(str(folder / "hub"))
    return {
        "extract": [*model, "--out", str(folder / "extracted")],
        "plan": model,
        "doctor": model,
        "run": [
            *model,
            "--out",
            str(folder / "run"),
            "--pool-size",
            "200",
            "--lora-rank",
            "2",
            "--limit",
            "400",
        ],
        "select": [store, "-k", "2000", "--out", str(folder / "picks.jsonl")],
        "extend": [saved, store, "-k", "1200", "--out", str(folder / "more.jsonl")],
        "explain": [saved, store, "7", "8", "9"],
        "certify": [saved, store],
        "curvature": [store],
        "compare": [store, "-k", "100"],
        "report": [saved, store, "--out", str(folder / "report.html")],
        "export-picks": [saved, "--out", str(folder / "again.jsonl")],
        "verify": [store],
        "repair": [store],
        "convert": [store, str(folder / "converted"), "--dtype", "float16"],
        "export": [store, str(folder / "rows.npy")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    table = [
        ("command", "terminal: first", "in all", "pipe: first", "in all", "what is seen first in the pipe")
    ]
    with tempfile.TemporaryDirectory() as name:
        for command, arguments in commands(Path(name), given.rows).items():
            if given.only and command not in given.only:
                continue
            whole = [sys.executable, "-m", "spice_rs", command, *arguments]
            on, total, _ = first_sign(
                [*whole, *(["--force"] if command in ("select", "extend") else [])], True
            )
            for place in ("extracted", "run", "converted", "report.html", "again.jsonl", "rows.npy"):
                subprocess.run(["rm", "-rf", str(Path(name) / place)], check=True)
            in_pipe, whole_time, line = first_sign(
                [*whole, *(["--force"] if command in ("select", "extend") else [])], False
            )
            table.append((command, f"{on:.2f}", f"{total:.1f}", f"{in_pipe:.2f}", f"{whole_time:.1f}", line))
    print(aligned(table))


if __name__ == "__main__":
    main()
