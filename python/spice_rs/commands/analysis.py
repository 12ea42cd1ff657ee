"""`curvature`, `certify`: what can be proven of picks."""

from __future__ import annotations

from typing import Any

import numpy as np

import spice_rs
from spice_rs.analysis.curvature import percent
from spice_rs.commands.options import add_command, add_data, add_options
from spice_rs.commands.outputs import add_force, check_outputs
from spice_rs.commands.selection import WORDS
from spice_rs.commands.values import path
from spice_rs.nouns import counted
from spice_rs.printable import say, say_block, say_json

ABOUT_U = "This is about U = log det(I + αF) alone: "


def add(commands: Any) -> None:
    """Add the commands."""
    curvature = add_command(
        commands, "curvature", _curvature, "bound how far greedy picks from a pool can be from the best"
    )
    curvature.add_argument("source", metavar="SOURCE", type=path, help="as for select")
    add_data(curvature, "the data the source was made from, where --weights names a column of it")
    curvature.add_argument(
        "--out",
        metavar="FILE",
        type=path,
        help=".npz file for rows, leverages and ratios of all rows of the pool",
    )
    curvature.add_argument("--json", action="store_true", dest="as_json", help="print JSON for scripts")
    add_force(curvature)
    add_options(curvature, spice_rs.curvature, skip=("source", "data"), words=WORDS)

    certify = add_command(commands, "certify", _certify, "bound how far a selection is from the best")
    certify.add_argument("selection", metavar="SELECTION", type=path, help="what `select --save` wrote")
    certify.add_argument("source", metavar="SOURCE", type=path, help="what was selected from")
    add_data(certify, "the data the source was made from, where --weights names a column of it")
    certify.add_argument("--json", action="store_true", dest="as_json", help="print JSON for scripts")
    add_options(certify, spice_rs.certify, skip=("selection", "source", "data"), words=WORDS)


def _curvature(
    source: str, data: str | None, out: str | None, as_json: bool, force: bool, **options: Any
) -> None:
    from spice_rs.atomic import replacing

    check_outputs({"--out": out}, {"SOURCE": source, "--data": data}, force=force)
    found = spice_rs.curvature(source, data=data, **options)
    if out is not None:
        with replacing(out) as file:
            np.savez(file, rows=found.rows, leverages=found.leverages, ratios=found.ratios)
    if as_json:
        names = ("total", "error", "guarantee", "row")
        say_json({name: getattr(found, name) for name in names} | {"rows": len(found)})
        return
    say(f"{source}: {counted(len(found), 'row')}, total curvature c = {found.total:.9g}")
    say(f"greedy picks of any k rows have at least {percent(found.guarantee)} of the best U")
    say(f"{ABOUT_U}it holds for --conflict-penalty 0 without conditions, and for no other score.")
    if found.row is not None and found.total > 0.5:
        say(f"row {found.row} decides: beside all others it adds {1 - found.total:.3g} of what it is alone")


def _certify(selection: str, source: str, data: str | None, as_json: bool, **options: Any) -> None:
    from spice_rs.selection.picks import read_rows
    from spice_rs.tables import aligned

    if options["initial"] is not None:
        options["initial"] = read_rows(options["initial"])
    found = spice_rs.certify(spice_rs.Selection.load(selection), source, data=data, **options)
    if as_json:
        names = ("picks", "log_det", "upper_bound", "ratio", "prefix")
        series = ("prefixes", "log_dets", "submodular", "concave", "relaxed")
        about = {name: getattr(found, name) for name in names}
        say_json(about | {name: getattr(found, name).tolist() for name in series})
        return
    columns = (found.prefixes, found.log_dets, found.submodular, found.concave)
    cells = [[f"{value:.6g}" for value in row] for row in zip(*columns, strict=True)]
    say_block(aligned([["prefix", "U", "submodular bound", "concave bound"], *cells]))
    for number, bound in enumerate(found.relaxed, 1):
        say(f"after {counted(number, 'step')} to better weights: concave bound {bound:.6g}")
    say("")
    say(
        f"U of the {counted(found.picks, 'pick')}: {found.log_det:.6g}; of any"
        f" {counted(found.picks, 'row')} at most {found.upper_bound:.6g}"
    )
    say(f"the picks have at least {percent(found.ratio)} of the best U")
    say(f"{ABOUT_U}what the penalty avoids and what conditions ask for does not count in the bound.")
