"""Runs of the schedule killed at random until they are through: `python schedule_killer.py FOLDER KILLS SEED`.

Forked, so that a process costs no import of torch. `FOLDER/whole` is a run that nothing disturbed, `FOLDER/killed` the one
that was killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path


def one(out: Path) -> None:
    """A run with dropout, several steps and checkpoints."""
    import spice_rs
    from models import make_lora, make_model
    from reference import make_data

    warnings.simplefilter("ignore")
    spice_rs.run_schedule(
        make_lora(make_model(), trained=False),
        make_data(60, seed=2),
        out,
        pool_size=8,
        select_per_window=3,
        interval=3,
        learning_rate=0.02,
        dim=64,
        threads=1,
        progress=False,
        tensorboard=False,
    )


def start(out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        one(out)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - it must not reach the parent's code
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def windows_done(out: Path) -> int:
    try:
        return int(json.loads((out / "state/state.json").read_text())["window"])
    except FileNotFoundError:
        return 0


def wait(pid: int, out: Path, window: int | None, pause: float) -> int | None:
    """Exit status, or None if it was killed, so many seconds after so many windows were done."""
    end = float("inf")
    while True:
        done, status = os.waitpid(pid, 0 if window is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if window is not None and windows_done(out) >= window:
            end = min(end, time.monotonic() + pause)
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.001)


def main(folder: Path, kills: int, seed: int) -> None:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - so that a fork need not

    import models  # noqa: F401
    import reference  # noqa: F401
    import spice_rs.schedule.schedule  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    rng = random.Random(seed)
    whole, out = folder / "whole", folder / "killed"
    assert wait(start(whole), whole, None, 0) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    windows = windows_done(whole)
    pause = 2 * sum(line["seconds"] for line in lines) / windows
    killed = 0
    for window in sorted(rng.choices(range(windows - 1), k=kills)):
        status = wait(start(out), out, window, rng.uniform(0, pause))
        if status is not None:
            assert status == 0
            break
        killed += 1
    else:
        assert wait(start(out), out, None, 0) == 0
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
