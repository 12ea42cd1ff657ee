"""`extract`, `plan`, `doctor`: gradients of a model over data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import spice_rs
from spice_rs.commands.exits import EXIT_CHECK_FAILED
from spice_rs.commands.options import add_command, add_options


def add(commands: Any, called: Sequence[str]) -> None:
    """Add the commands; the options of those in `called` alone, since these take torch, and seconds."""
    extract = add_command(
        commands, "extract", _extract, "compute projected per-sample gradients into a store"
    )
    if "extract" in called:
        add_options(extract, spice_rs.extract, required=("model", "data", "out"))

    plan = add_command(commands, "plan", _plan, "predict time, disk and memory of an extraction")
    if "plan" in called:
        add_options(plan, spice_rs.plan, required=("model", "data"), skip=("extraction",))
        add_options(plan, spice_rs.extract, skip=("model", "data", "out", "progress"))

    doctor = add_command(commands, "doctor", _doctor, "check on a few samples that the gradients are right")
    if "doctor" in called:
        add_options(doctor, spice_rs.doctor, required=("model", "data"), skip=("extraction",))
        skip = ("model", "data", "out", "dim", "projection", "nnz", "side", "dtype", "progress", "skip_bad")
        add_options(doctor, spice_rs.extract, skip=skip)


def _extract(model: str, data: str, out: str, **options: Any) -> None:
    from spice_rs.extraction.ranks import Rank

    store = spice_rs.extract(model, data, out, **options)
    rank = Rank.current()
    tracked = store.provenance["tracked"]
    if rank.count > 1:
        print(f"{store.path}: rank {rank.number} of {rank.count} is done, {len(store)} rows are there so far")
        if not rank.first:
            return
    else:
        print(f"{store.path}: {len(store)} rows × {store.dim} columns, {store.dtype}")
    print(
        f"gradients of {tracked['coordinates']:,} parameters in {tracked['layers']} layers: "
        f"{tracked['coverage']:.1%} of those meant"
    )


def _plan(model: str, data: str, **options: Any) -> None:
    print(spice_rs.plan(model, data, **options))


def _doctor(model: str, data: str, **options: Any) -> int:
    diagnosis = spice_rs.doctor(model, data, **options)
    print(diagnosis)
    return 0 if diagnosis.passed else EXIT_CHECK_FAILED
