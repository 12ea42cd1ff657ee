"""`coverage`: what held-out rows would still gain beside picks."""

from __future__ import annotations

from typing import Any

import spice_rs
from spice_rs.commands.explanation import add_selection, read
from spice_rs.commands.options import add_command, add_data, add_options
from spice_rs.commands.selection import WORDS
from spice_rs.commands.values import path
from spice_rs.errors import InvalidInputError
from spice_rs.printable import say_block, say_json


def add(commands: Any) -> None:
    """Add the command."""
    coverage = add_command(
        commands,
        "coverage",
        _coverage,
        "measure how well picks cover rows that they were not picked from",
        examples=("spice-rs coverage sel.safetensors store --held-out held-out-store",),
    )
    add_selection(coverage)
    coverage.add_argument(
        "--held-out",
        metavar="SOURCE",
        type=path,
        required=True,
        help="rows that were not selected from: a store that was extracted --like the first, or another file of gradients",
    )
    add_data(coverage, "the data the held-out rows were made from, where --groups names a column of it")
    coverage.add_argument("--json", action="store_true", dest="as_json", help="print JSON for scripts")
    skipped = ("selection", "source", "held_out", "data", "weights")
    add_options(coverage, spice_rs.coverage, skip=skipped, words=WORDS)


def _coverage(
    selection: str, source: str, held_out: str, data: str | None, as_json: bool, **options: Any
) -> None:
    from spice_rs.selection.picks import read_rows

    chosen = read(selection, source, options)
    if chosen.settings["weights"] is not None:
        raise InvalidInputError(
            "selection: found one with weights, expected one without. Call spice_rs.coverage from Python, which takes them."
        )
    if options["initial"] is not None:
        options["initial"] = read_rows(options["initial"])
    found = spice_rs.coverage(chosen, source, held_out, data=data, **options)
    if as_json:
        say_json(found.as_dict())
    else:
        say_block(found.summary())
