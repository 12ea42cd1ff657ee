"""`relevance`: what each row of a pool is worth to a target, as scores."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import spice_rs
from spice_rs.commands.options import add_command, add_options
from spice_rs.commands.outputs import add_force, check_outputs
from spice_rs.commands.selection import WORDS
from spice_rs.commands.values import path
from spice_rs.nouns import counted
from spice_rs.printable import say


def add(commands: Any) -> None:
    """Add the command."""
    relevance = add_command(
        commands,
        "relevance",
        _relevance,
        "score every row of a pool by what it is worth to a target",
        examples=("spice-rs relevance store target-store --out relevance.jsonl",),
    )
    relevance.add_argument("source", metavar="SOURCE", type=path, help="the pool, as for select")
    relevance.add_argument(
        "target", metavar="TARGET", type=path, help="rows of what is wanted, as for select"
    )
    relevance.add_argument(
        "--out",
        metavar="FILE",
        type=path,
        default="-",
        help="row and relevance of each row, with groups that to each as well, in the format that the name says:"
        " .jsonl (or no end), .json, .csv, .parquet, or .npy for the array; - for JSON Lines on stdout (default)",
    )
    add_force(relevance)
    add_options(relevance, spice_rs.relevance, skip=("source", "target"), words=WORDS)


def _relevance(source: str, target: str, out: str, force: bool, **options: Any) -> None:
    from spice_rs.atomic import replacing
    from spice_rs.report.exports import file_format, write_columns
    from spice_rs.selection.relevance import scored
    from spice_rs.store.sources import open_source

    if not out.endswith(".npy"):
        file_format(out)

    reads = {"SOURCE": source, "TARGET": target, "--target-data": options["target_data"]}
    check_outputs({"--out": out}, reads, force=force)
    opened = open_source(source, dim=options.pop("dim"), dtype=options.pop("dtype"))
    measured = scored(opened, target, **options)
    order = opened.dataset_order()
    rows = order if opened.index is None else opened.index[order]
    found = measured.relevance[order]
    if out.endswith(".npy"):
        with replacing(out) as file:
            np.save(file, found[:, 0] if measured.labels is None else found)
    else:
        names = ["relevance", *(f"relevance.{label}" for label in measured.labels or [])]
        values = [found.max(axis=1), *(found.T if measured.labels is not None else [])]
        write_columns({"row": rows, **dict(zip(names, values, strict=True))}, out)
    away = int((found.max(axis=1) <= 0).sum())
    pool = f"{counted(len(rows), 'row')}, {len(rows) - away:,} of them point to the target"
    say(f"{'' if out == '-' else f'{out}: '}{pool}", file=sys.stderr)
