"""`extract`, `plan`, `doctor`: gradients of a model over data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import spice_rs
from spice_rs.commands.exits import EXIT_CHECK_FAILED, EXIT_INTERRUPTED
from spice_rs.commands.groups import EXTRACTION
from spice_rs.commands.options import add_command, add_options
from spice_rs.nouns import counted
from spice_rs.printable import say, say_block
from spice_rs.store.store import STORE_FILE


def add(commands: Any, called: Sequence[str], *, alike: bool) -> None:
    """Add the commands; the options of those in `called` alone, since these take torch, and seconds.

    Args:
        commands: Of the parser.
        called: The command that is called.
        alike: Whether an earlier store has the model.
    """
    extract = add_command(
        commands,
        "extract",
        _extract,
        "compute projected per-sample gradients into a store",
        groups=EXTRACTION,
        examples=(
            "spice-rs extract --model MODEL --data pool.jsonl --out store",
            "spice-rs extract --model ~/models/small --data pool --split train --out store --max-length 4096",
            "spice-rs extract --like store --data target.jsonl --out target-store",
            "spice-rs extract --model MODEL --data pool.csv --out store --columns prompt=frage,response=antwort",
        ),
    )
    if "extract" in called:
        required = ("data", "out") if alike else ("model", "data", "out")
        add_options(extract, spice_rs.extract, required=required, typed_alone=True)

    plan = add_command(
        commands,
        "plan",
        _plan,
        "predict time, disk and memory of an extraction",
        groups=EXTRACTION,
        examples=("spice-rs plan --model MODEL --data pool.jsonl --processes 8",),
    )
    if "plan" in called:
        add_options(plan, spice_rs.plan, required=("model", "data"), skip=("extraction",))
        add_options(plan, spice_rs.extract, skip=("model", "like", "data", "out", "progress"))

    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        "check on a few samples that the gradients are right",
        groups=EXTRACTION,
        examples=("spice-rs doctor --model MODEL --data pool.jsonl --samples 16",),
    )
    if "doctor" in called:
        add_options(doctor, spice_rs.doctor, required=("model", "data"), skip=("extraction",))
        skip = (
            "model",
            "like",
            "data",
            "out",
            "dim",
            "projection",
            "nnz",
            "side",
            "dtype",
            "progress",
            "skip_bad",
        )
        add_options(doctor, spice_rs.extract, skip=skip)


def _extract(data: str, out: str, model: str | None = None, **options: Any) -> int | None:
    from spice_rs.extraction.ranks import Rank

    rank = Rank.current()
    try:
        store = spice_rs.extract(model, data, out, **options)
    except KeyboardInterrupt:
        kept = _kept(out)
        if kept is None:
            raise
        if rank.first:
            say(f"spice-rs: stopped: {kept}; the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    tracked = store.provenance["tracked"]
    if rank.count > 1:
        say(
            f"{store.path}: rank {rank.number} of {rank.count} is done,"
            f" {counted(len(store), 'row is', 'rows are')} there so far"
        )
        if not rank.first:
            return None
    else:
        say(f"{store.path}: {counted(len(store), 'row')} × {counted(store.dim, 'column')}, {store.dtype}")
    say(
        f"gradients of {tracked['coordinates']:,} parameters in {counted(tracked['layers'], 'layer')}: "
        f"{tracked['coverage']:.1%} of those meant"
    )
    return None


def _kept(out: str) -> str | None:
    """How many rows an extraction that was stopped has left; None if it had not begun."""
    if not (Path(out) / STORE_FILE).exists():
        return None
    store = spice_rs.GradientStore(out)
    of = "" if store.expected_rows is None else f" of {store.expected_rows}"
    return f"{len(store)}{of} rows are kept in {out}"


def _plan(model: str, data: str, **options: Any) -> None:
    say_block(spice_rs.plan(model, data, **options))


def _doctor(model: str, data: str, **options: Any) -> int:
    diagnosis = spice_rs.doctor(model, data, **options)
    say_block(diagnosis)
    return 0 if diagnosis.passed else EXIT_CHECK_FAILED
