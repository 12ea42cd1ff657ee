"""One measurement, one process: `run` starts it, `main` is what it does. Its peak memory is its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import machine
import peers


class Failed(Exception):
    """A measurement that gave no figure; the message says why."""


class Unavailable(Failed):
    """A setting that this version of spice_rs does not have, or does not accept."""


def select(
    source: str, options: dict[str, Any], repeat: int = 1, asked: list[Any] | None = None
) -> dict[str, Any]:
    """Time `spice_rs.select`, opening the source included; the fastest of `repeat` runs.

    `asked`: arguments of `constraints.asked`, for options that are too long for a command line.
    """
    import spice_rs

    if asked is not None:
        import constraints

        options = {**options, **constraints.asked(*asked)}
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)
    seconds = []
    with machine.PeakMemory() as peak:
        for _ in range(repeat):
            started = time.perf_counter()
            try:
                selection = spice_rs.select(source, progress=False, **options)
            except (spice_rs.InvalidInputError, TypeError) as error:
                if isinstance(error, TypeError) and "unexpected keyword" not in str(error):
                    raise
                return {"unavailable": str(error)}
            seconds.append(time.perf_counter() - started)
    after_first = selection.rows_read[1:]
    return {
        "seconds": min(seconds),
        "picks": len(selection),
        "rows_read": float(after_first.mean()) if after_first.size else None,
        "peak": peak.bytes,
        "log_det": selection.log_det,
        "indices": selection.indices[:1000].tolist(),
        "compared": getattr(selection, "compared", None),
    }


JOBS = {
    "select": select,
    "torch": peers.torch_loop,
    "submodlib": peers.submodlib,
    "bandwidth": machine.bandwidth,
}


def run(
    job: str,
    *,
    python: str = sys.executable,
    give_up: float | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Run a job in a process of its own and return what it measured, and the share of the machine that others took.

    Raises:
        Unavailable: this spice_rs does not know a setting.
        Failed: the process died, or took longer than `give_up` seconds.
    """
    script = Path(__file__).with_name("selection.py")
    command = [python, str(script), "--worker", json.dumps({"job": job, **arguments})]
    others = machine.OtherLoad()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=give_up,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"given up after {give_up:g} s") from None
    except OSError as error:
        raise Failed(f"failed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(f"failed with status {done.returncode}: {last}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if "unavailable" in result:
        raise Unavailable(result["unavailable"])
    return {**result, "others": others.share()}


def main(text: str) -> None:
    """Run the job that `text` describes; its result is the last line of the output, as JSON."""
    arguments = json.loads(text)
    result = JOBS[arguments.pop("job")](**arguments)
    print(json.dumps(result), flush=True)
