"""`agreement`: whether two proxies choose the same."""

from __future__ import annotations

from typing import Any

import spice_rs
from spice_rs.commands.options import add_command, add_options
from spice_rs.commands.values import path
from spice_rs.printable import say_block, say_json


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands, "agreement", _agreement, "compare what two proxies' gradients of the same data choose"
    )
    command.add_argument("a", metavar="A", type=path, help="a store or other source, as for select")
    command.add_argument("b", metavar="B", type=path, help="another one of the same data")
    command.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    add_options(command, spice_rs.agreement, skip=("a", "b"))


def _agreement(a: str, b: str, as_json: bool, **options: Any) -> None:
    found = spice_rs.agreement(a, b, **options)
    if as_json:
        say_json(found.as_dict())
    else:
        say_block(found)
