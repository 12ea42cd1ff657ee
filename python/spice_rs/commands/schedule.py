"""`run`: select window by window with a proxy that learns from what was selected."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

import spice_rs
from spice_rs.commands.groups import EXTRACTION
from spice_rs.commands.options import add_command, add_options
from spice_rs.nouns import counted
from spice_rs.printable import say

ALIAS = "run-schedule"


def add(commands: Any, called: Sequence[str]) -> None:
    """Add the command; its options only where it is in `called`, since they take torch, and seconds."""
    run = add_command(
        commands,
        "run",
        _run,
        "select window by window with a proxy that learns from what was selected",
        alias=ALIAS,
        groups=EXTRACTION,
        kept=lambda options: (
            f"what is in {options['out']} is kept, and the same command goes on from there"
            * os.path.isdir(options["out"])
        ),
        examples=("spice-rs run --model MODEL --data pool.jsonl --out run --lora-rank 16 --interval 10",),
    )
    if {"run", ALIAS} & {*called}:
        add_options(run, spice_rs.run_schedule, required=("model", "data", "out"), skip=("extraction",))
        own = tuple(inspect.signature(spice_rs.run_schedule).parameters)
        add_options(
            run,
            spice_rs.extract,
            skip=(*own, "like", "dtype", "optimizer", "checkpoints", "checkpoint_weights"),
        )


def _run(model: str, data: str, out: str, **options: Any) -> None:
    done = spice_rs.run_schedule(model, data, out, **options)
    say(done.summary(), file=sys.stderr)
    say(
        f"{out}: picks.jsonl has {counted(len(done), 'line')}; the trained weights are in adapter, the metrics in"
        " metrics.jsonl"
    )
