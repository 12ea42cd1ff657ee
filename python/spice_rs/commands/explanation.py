"""`explain`: why rows were not picked."""

from __future__ import annotations

import sys
from typing import Any

import spice_rs
from spice_rs.commands.options import add_command, add_data, add_options
from spice_rs.commands.selection import WORDS
from spice_rs.commands.values import path, whole
from spice_rs.printable import say, say_block, say_json

SETTINGS = ("alpha", "conflict_penalty", "normalize", "represent", "represent_rank")
"""What a list of picks does not state."""

ROW_FILES = ("initial", "exclude")
"""Arguments of `explain` that are a file of rows here."""


def add(commands: Any) -> None:
    """Add the command."""
    explain = add_command(
        commands,
        "explain",
        _explain,
        "say why rows were not picked",
        examples=("spice-rs explain sel.safetensors store 7 8 9",),
    )
    add_selection(explain)
    explain.add_argument("rows", metavar="ROW", nargs="+", type=whole, help="dataset row")
    add_data(explain, "the data the source was made from, to look columns up in")
    explain.add_argument("--json", action="store_true", dest="as_json", help="print a JSON object per row")
    add_options(
        explain,
        spice_rs.explain,
        skip=("selection", "source", "rows", "data"),
        words=WORDS,
    )


def add_selection(parser: Any) -> None:
    """Add a selection, what it was made from, and the settings that a list of picks does not state."""
    from spice_rs.selection.from_file import read_selection

    parser.add_argument(
        "selection",
        metavar="SELECTION",
        type=path,
        help="what `select --save` wrote, or its picks (--out), scored again with the settings given here",
    )
    parser.add_argument("source", metavar="SOURCE", type=path, help="what was selected from, as for select")
    add_options(parser, read_selection, skip=("path", "source", "dim", "dtype"))


def read(selection: str, source: str, options: dict[str, Any]) -> spice_rs.Selection:
    """Return the selection that the options name, and leave in `options` what is not about it."""
    from spice_rs.selection.from_file import read_selection

    settings = {name: options.pop(name) for name in SETTINGS}
    shape = {name: options[name] for name in ("dim", "dtype")}
    return read_selection(selection, source, **settings, **shape)


def read_row_files(options: dict[str, Any]) -> None:
    """Read the files of rows in `options`."""
    from spice_rs.selection.picks import read_rows

    for name in ROW_FILES:
        if options[name] is not None:
            options[name] = read_rows(options[name])


def _explain(
    selection: str, source: str, rows: list[int], data: str | None, as_json: bool, **options: Any
) -> None:
    chosen = read(selection, source, options)
    read_row_files(options)
    for found in spice_rs.explain(chosen, source, rows, data=data, **options):
        if as_json:
            say_json(found.to_json())
        else:
            say_block(found)
    if data is None and not as_json:
        say(
            "Name the data with --data to see the records of these rows and of the nearest picks.", sys.stderr
        )
