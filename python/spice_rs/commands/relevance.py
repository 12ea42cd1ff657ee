"""`relevance`: what each row of a pool is worth to a target, as scores."""

from __future__ import annotations

from typing import Any

import numpy as np

import spice_rs
from spice_rs.commands.options import add_command, add_options
from spice_rs.commands.outputs import add_force, check_outputs
from spice_rs.commands.selection import WORDS
from spice_rs.commands.values import path


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
        help="a line of JSON with row and relevance for each row, or with the end .npy the array; - for stdout (default)",
    )
    add_force(relevance)
    add_options(relevance, spice_rs.relevance, skip=("source", "target"), words=WORDS)


def _relevance(source: str, target: str, out: str, force: bool, **options: Any) -> None:
    from spice_rs.atomic import replacing
    from spice_rs.selection.picks import write_lines
    from spice_rs.store.sources import open_source

    reads = {"SOURCE": source, "TARGET": target, "--target-data": options["target_data"]}
    check_outputs({"--out": out}, reads, force=force)
    opened = open_source(source, dim=options.pop("dim"), dtype=options.pop("dtype"))
    found = spice_rs.relevance(opened, target, **options)
    if out.endswith(".npy"):
        with replacing(out) as file:
            np.save(file, found)
        return
    order = opened.dataset_order()
    rows = order if opened.index is None else opened.index[order]
    lines = zip(rows.tolist(), found.tolist(), strict=True)
    write_lines(({"row": row, "relevance": value} for row, value in lines), out)
