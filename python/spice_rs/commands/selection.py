"""`select`, `extend`: picks from a source, as JSON Lines."""

from __future__ import annotations

import json
import sys
from typing import Any

import spice_rs
from spice_rs.commands.exports import OUT_HELP, check_targets, write_targets
from spice_rs.commands.options import add_command, add_options

COLUMNS = ("groups", "costs", "weights", "prior")
"""Arguments of `select` that are the name of a column here."""

ROW_FILES = ("initial", "include", "exclude")
"""Arguments of `select` that are a file of rows here."""

WORDS = {
    **dict.fromkeys(COLUMNS, ("COLUMN", "Here: a column of --data.")),
    **dict.fromkeys(
        (*ROW_FILES, "old_rows"),
        (
            "FILE",
            "Here: a file with one row number per line, picks as --out writes them, or what --save wrote.",
        ),
    ),
    "group_shares": (
        "pool|JSON|FILE",
        'Here: pool, or JSON such as {"maths": [0.2, null]}, or a .json file of it.',
    ),
}
"""What these arguments are on the command line: placeholder and explanation."""


def add(commands: Any) -> None:
    """Add the commands."""
    select = add_command(commands, "select", _select, "pick the rows that carry the most Fisher information")
    select.add_argument(
        "source", metavar="SOURCE", help="store folder, .npy, .npz, file.npz::member or headerless file"
    )
    select.add_argument("--out", metavar="FILE", default="-", help=f"{OUT_HELP} (default)")
    select.add_argument(
        "--data",
        help="the data the store was made from: each line is then the record with a key 'spice', and columns of it can"
        " be named",
    )
    select.add_argument(
        "--save", metavar="FILE", help="safetensors file for the whole selection; Selection.load reads it"
    )
    select.add_argument(
        "--llama-factory",
        metavar="FOLDER",
        help="LLaMA-Factory's dataset_dir: write the picks there too, as the data set 'spice'",
    )
    add_options(select, spice_rs.select, skip=("source", "data"), words=WORDS)

    extend = add_command(commands, "extend", _extend, "select again from a pool that has grown")
    extend.add_argument("earlier", metavar="SELECTION", help="what `select --save` wrote of the smaller pool")
    extend.add_argument("source", metavar="SOURCE", help="the pool as it is now")
    extend.add_argument("--out", default="-", help="as for select")
    extend.add_argument("--data", help="as for select: the data that the grown pool was made from")
    extend.add_argument("--save", metavar="FILE", help="as for select")
    add_options(extend, spice_rs.extend, skip=("selection", "source"), words=WORDS)


def _select(
    source: str, out: str, data: str | None, save: str | None, llama_factory: str | None, **options: Any
) -> None:
    from spice_rs.atomic import check_place
    from spice_rs.report.summary import SHOWN_GROUPS
    from spice_rs.report.tables import group_table
    from spice_rs.selection.picks import read_rows

    check_targets(out, data, llama_factory)
    if save is not None:
        check_place(save)
    if any(options[name] is not None for name in COLUMNS):
        options["data"] = data
    for name in ROW_FILES:
        if options[name] is not None:
            options[name] = read_rows(options[name])
    options["group_shares"] = _shares(options["group_shares"])
    selection = spice_rs.select(source, **options)
    if save is not None:
        selection.save(save)
    write_targets(selection, out, data, llama_factory)
    print(f"{selection!r}\nmedian alpha·‖g‖² {selection.signal:.3g}", file=sys.stderr)
    if selection.compared is not None:
        runs = [
            f"{name} log det {run['log_det']:.6g} ({run['picks']} picks, cost {run['cost']:g})"
            for name, run in selection.compared.items()
            if name != "kept"
        ]
        print(f"{'; '.join(runs)}: kept {selection.compared['kept']}", file=sys.stderr)
    if selection.groups is not None and len(selection.quotas) <= SHOWN_GROUPS:
        print(group_table(selection), file=sys.stderr)


def _extend(earlier: str, source: str, out: str, data: str | None, save: str | None, **options: Any) -> None:
    from spice_rs.atomic import check_place
    from spice_rs.selection.picks import read_rows

    check_targets(out, data, None)
    if save is not None:
        check_place(save)
    if options["old_rows"] is not None:
        rows = read_rows(options["old_rows"])
        options["old_rows"] = rows.indices if isinstance(rows, spice_rs.Selection) else rows
    selection = spice_rs.extend(spice_rs.Selection.load(earlier), source, **options)
    if save is not None:
        selection.save(save)
    write_targets(selection, out, data, None)
    print(repr(selection), file=sys.stderr)


def _shares(text: str | None) -> Any:
    """Return what `--group-shares` says: a word, or JSON in the argument or in a file."""
    if text is None or not (text.lstrip().startswith("{") or text.endswith(".json")):
        return text
    try:
        if text.endswith(".json"):
            with open(text, encoding="utf-8") as file:
                return json.load(file)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise spice_rs.InvalidInputError(
            f"--group-shares: found no JSON ({error}), expected 'pool' or an object: label → [minimum, maximum]. For"
            ' example {"maths": [0.2, null]}.'
        ) from error
