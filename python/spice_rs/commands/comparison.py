"""`compare`: several methods on one source, side by side."""

from __future__ import annotations

from typing import Any

import spice_rs
from spice_rs.commands.options import add_command, add_options, add_split
from spice_rs.commands.values import path
from spice_rs.printable import say_block, say_json

WORDS = {
    "groups": ("COLUMN", "Here: a column of --data."),
    "target": ("TARGET", "Here: a store, or another file of gradients."),
    "lengths": ("COLUMN", "Here: a column of --data."),
}
"""What these arguments are on the command line: placeholder and explanation."""


def add(commands: Any) -> None:
    """Add the command."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        "select with several methods and measure all of them alike",
        examples=(
            "spice-rs compare store -k 1000 --methods spice,top_k,random --data pool.jsonl --groups source",
        ),
    )
    compare.add_argument("source", metavar="SOURCE", type=path, help="as for select")
    compare.add_argument("--json", action="store_true", dest="as_json", help="print JSON for scripts")
    compare.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    add_split(compare)
    add_options(compare, spice_rs.compare, skip=("source",), required=("k",), words=WORDS)


def _compare(source: str, as_json: bool, markdown: bool, **options: Any) -> None:
    comparison = spice_rs.compare(source, **options)
    if as_json:
        say_json(comparison.to_dict())
    else:
        say_block(comparison.to_markdown() if markdown else comparison.summary())
