"""`report`: a page about a selection."""

from __future__ import annotations

import sys
from typing import Any

import spice_rs
from spice_rs.commands.explanation import ROW_FILES, add_selection, read, read_row_files
from spice_rs.commands.options import add_command, add_data, add_options
from spice_rs.commands.outputs import add_force, check_outputs
from spice_rs.commands.selection import WORDS
from spice_rs.commands.values import path
from spice_rs.printable import say, say_block


def add(commands: Any) -> None:
    """Add the command."""
    report = add_command(
        commands,
        "report",
        _report,
        "write an HTML page about a selection, with plots and tables",
        alias="write-report",
        examples=("spice-rs report sel.safetensors store --data pool.jsonl --out report.html",),
    )
    add_selection(report)
    report.add_argument(
        "--out", metavar="FILE", type=path, default="report.html", help="the HTML file (default: report.html)"
    )
    add_data(report, "the data the source was made from: the page then shows records")
    add_force(report)
    skip = ("selection", "source", "out", "data")
    add_options(report, spice_rs.write_report, skip=skip, words={**WORDS, "column": ("COLUMN", "")})


def _report(selection: str, source: str, out: str, data: str | None, force: bool, **options: Any) -> None:
    reads = {"SELECTION": selection, "SOURCE": source, "--data": data}
    reads |= {f"--{name}": options[name] for name in ROW_FILES}
    check_outputs({"--out": out}, reads, force=force)
    chosen = read(selection, source, options)
    read_row_files(options)
    found = spice_rs.write_report(chosen, source, out, data=data, **options)
    say_block(found.summary())
    say(f"{out}: written", file=sys.stderr)
