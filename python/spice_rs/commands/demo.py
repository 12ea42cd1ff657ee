"""`demo`: everything on a small real model and generated tasks."""

from __future__ import annotations

from typing import Any

from spice_rs.commands.options import add_command
from spice_rs.commands.values import number, path, whole


def add(commands: Any) -> None:
    """Add the command."""
    demo = add_command(
        commands,
        "demo",
        _demo,
        "run everything on a small real model and generated tasks",
        kept="the rows that were computed are kept, and the same command goes on from there",
    )
    demo.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        type=path,
        default="demo-out",
        help="where data, store and picks go (default: demo-out)",
    )
    demo.add_argument(
        "--samples", type=whole, metavar="INT", default=240, help="size of the pool (default: 240)"
    )
    demo.add_argument(
        "--share",
        type=number,
        metavar="FLOAT",
        default=0.1,
        help="share of the pool to select (default: 0.1)",
    )


def _demo(folder: str, samples: int, share: float) -> None:
    from spice_rs.demo import run_demo

    run_demo(folder, samples=samples, share=share)
