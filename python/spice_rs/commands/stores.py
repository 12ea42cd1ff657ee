"""`info`, `verify`, `merge`, `compact`, `delete`, `repair`, `convert`, `export`: whole stores."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import spice_rs
from spice_rs.commands.options import add_command, add_options
from spice_rs.commands.outputs import add_force, check_outputs
from spice_rs.commands.shell import TEXTS
from spice_rs.commands.values import one_of, path, whole
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted
from spice_rs.printable import say, say_json
from spice_rs.progress import counting

DTYPES = ("int8", "float16", "bfloat16", "float32")
"""Element types that a store can have."""


_KEPT = {
    "compact": "every row is there once, and the same command goes on",
    "delete": "rows that were not reached are still there, and the same command deletes them",
    "repair": "no row was lost, and the next repair does the rest",
}
"""What an interruption of a command that changes a store leaves."""


def add(commands: Any) -> None:
    """Add the commands."""
    merge = add_command(commands, "merge", _merge, "make one new store of several, with identical rows once")
    merge.add_argument("out", metavar="OUT", type=path, help="the new store: a new folder")
    merge.add_argument("stores", metavar="STORE", nargs="+", type=path, help="store folder")
    add_options(merge, spice_rs.GradientStore.merge, skip=("sources", "path", "progress"))
    _store_options(merge)

    for name, run, summary in (
        ("info", _info, "show what a store holds, without reading gradients"),
        ("verify", _verify, "read a whole store and check every checksum and number"),
        ("compact", _compact, "replace small shards by few large ones; the store can be used meanwhile"),
        ("delete", _delete, "delete rows from a store; an extraction that is resumed computes them again"),
        (
            "repair",
            _repair,
            "remove forgotten files and copies of rows from a store, and set damaged shards aside",
        ),
        ("convert", _convert, "make a new store of the same rows in another dtype"),
        ("export", _export, "write the rows of a store to a .npy file, as float32, sorted by dataset row"),
    ):
        command = add_command(commands, name, run, summary, kept=_KEPT.get(name, ""))
        command.add_argument("store", metavar="STORE", type=path, help="store folder")
        if name == "compact":
            add_options(command, spice_rs.GradientStore.compact, skip=("self", "progress"))
        if name == "delete":
            command.add_argument("index", metavar="ROW", nargs="*", type=whole, help="dataset row")
            command.add_argument(
                "--rows", metavar="FILE", type=path, help=".npy file of dataset rows, for example picks"
            )
        if name == "convert":
            command.add_argument("out", metavar="OUT", type=path, help="the new store: a new folder")
            command.add_argument(
                "--dtype",
                required=True,
                type=one_of(DTYPES),
                metavar="DTYPE",
                help=f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}",
            )
        if name == "export":
            command.add_argument("out", metavar="FILE", type=path, help=".npy file for the rows")
            command.add_argument("--index", metavar="FILE", type=path, help=".npy file for the dataset rows")
            add_force(command)
        if name in ("verify", "export"):
            command.add_argument(
                "--memory-limit",
                type=whole,
                metavar="BYTES",
                help="bytes that the open store may take (default: any)",
            )
        _store_options(command, progress=name != "info")


def _store_options(parser: argparse.ArgumentParser, progress: bool = True) -> None:
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON for scripts")
    if progress:
        parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help=TEXTS["progress"].text)


def _info(store: str, as_json: bool) -> None:
    opened = spice_rs.GradientStore(store)
    info = opened.info()
    if as_json:
        say_json(info, indent=2)
        return
    if opened.unfinished is not None:
        say(f"{'unfinished':20} {opened.unfinished}")
    for key, value in info.items():
        text = value if isinstance(value, str) else json.dumps(value)
        say(f"{key:20} {text if len(text) <= 100 else text[:97] + '...'}")


def _verify(store: str, memory_limit: int | None, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store, memory_limit=memory_limit)
    with counting(progress, "verify") as watch:
        counts = opened.verify(watch)
    if as_json:
        say_json(counts)
        return
    say(
        f"{store}: sound, {counted(counts['shards'], 'shard')}, {counted(counts['rows'], 'row')},"
        f" {counted(counts['bytes'], 'byte')}"
    )
    if opened.unfinished is not None:
        say(
            f"{store}: unfinished, {opened.unfinished}; run the same `extract` again, which computes the others"
        )
    for kind in ("superseded", "leftovers"):
        for name in counts[kind]:
            say(f"{kind}: {name}")
    if counts["superseded"] or counts["leftovers"]:
        say(
            f"{store}: `spice-rs repair` removes these files, unless a writer still works on them",
            file=sys.stderr,
        )


def _merge(out: str, stores: list[str], differing: Any, as_json: bool, progress: bool | None) -> None:
    with counting(progress, "merge") as watch:
        merged = spice_rs.GradientStore.merge(stores, out, watch, differing)
    _report(
        as_json,
        f"{out}: {merged.unfinished or counted(len(merged), 'row')}",
        {"path": out, "rows": len(merged)},
    )


def _compact(store: str, bytes_per_shard: int | None, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store)
    with counting(progress, "compact") as watch:
        done = opened.compact(bytes_per_shard, watch)
    _report(
        as_json,
        f"{store}: {counted(done['shards_before'], 'shard is', 'shards are')} {done['shards']} now",
        done,
    )


def _delete(store: str, index: list[int], rows: str | None, as_json: bool, progress: bool | None) -> None:
    if bool(index) == (rows is not None):
        found = "none" if rows is None else "both"
        raise InvalidInputError(
            f"delete: found {found}, expected ROW … or --rows FILE. Name the rows to delete."
        )
    wanted: Any = index if rows is None else _rows_of(rows)
    opened = spice_rs.GradientStore(store)
    absent = np.setdiff1d(wanted, opened.index)
    with counting(progress, "delete") as watch:
        done = opened.delete(wanted, watch)
    missing = ""
    if absent.size:
        missing = f", {counted(len(absent), 'row was', 'rows were')} not there ({_runs(absent)})"
    _report(as_json, f"{store}: {counted(done['deleted'], 'row')} deleted{missing}, {len(opened)} left", done)


def _repair(store: str, as_json: bool, progress: bool | None) -> None:
    with counting(progress, "repair", "shards") as watch:
        done = spice_rs.GradientStore.repair(store, watch)
    lines = [f"removed: {name}" for name in done["removed"]]
    lines += [f"kept, a writer may still work on it: {name}" for name in done["kept"]]
    lines += [f"set aside: {shard['name']} ({shard['reason']})" for shard in done["damaged"]]
    lines += [
        f"dropped from {copies['name']}, as {', '.join(copies['kept_in'])} keeps them: {_runs(copies['rows'])}"
        f" ({counted(len(copies['rows']), 'row')}, {counted(copies['bytes'], 'byte')})"
        for copies in done["duplicates"]
    ]
    if done["damaged"]:
        unfinished = spice_rs.GradientStore(store).unfinished
        lines.append(f"{store}: {unfinished}; run the same `extract` again, which computes them")
    _report(as_json, lines or f"{store}: nothing to repair", done)


def _convert(store: str, out: str, dtype: str, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store)
    with counting(progress, "convert") as watch:
        new = opened.convert(out, dtype, watch)
    about = {"path": out, "rows": len(new), "dtype": new.dtype, "bytes": new.info()["bytes"]}
    _report(
        as_json, f"{out}: {counted(len(new), 'row')}, {new.dtype}, {counted(about['bytes'], 'byte')}", about
    )


def _export(
    store: str,
    out: str,
    index: str | None,
    force: bool,
    memory_limit: int | None,
    as_json: bool,
    progress: bool | None,
) -> None:
    check_outputs({"FILE": out, "--index": index}, {"STORE": store}, force=force)
    opened = spice_rs.GradientStore(store, memory_limit=memory_limit)
    with counting(progress, "export") as watch:
        opened.export(out, index, watch)
    about = {"path": out, "index": index, "rows": len(opened), "dim": opened.dim}
    _report(
        as_json, f"{out}: {counted(len(opened), 'row')} × {counted(opened.dim, 'column')}, float32", about
    )


def _rows_of(file: str) -> Any:
    """Read dataset rows from a .npy file."""
    from spice_rs.store.arrays import map_npy

    return np.array(map_npy(Path(file)))


def _runs(rows: ArrayLike, most: int = 8) -> str:
    """Return rows for people: 0-99, 120."""
    ordered = np.unique(rows)
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:most]]
    return ", ".join(texts) + ", …" * (len(runs) > most)


def _report(as_json: bool, text: str | Sequence[str], result: Mapping[str, Any]) -> None:
    if as_json:
        say_json(result)
        return
    for line in [text] if isinstance(text, str) else text:
        say(line)
