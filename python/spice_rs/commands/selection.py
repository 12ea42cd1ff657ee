"""`select`, `extend`: picks from a source, as JSON Lines."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import spice_rs
from spice_rs.commands.exports import add_outputs, check_targets, write_targets
from spice_rs.commands.options import add_command, add_options
from spice_rs.commands.outputs import check_outputs
from spice_rs.commands.values import path, share
from spice_rs.files import read_whole
from spice_rs.nouns import counted
from spice_rs.printable import say, say_block
from spice_rs.selection.constraints import COLUMNS

if TYPE_CHECKING:
    from spice_rs.store.sources import Source

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
    "target": ("TARGET", "Here: a store, or another file of gradients."),
    "target_groups": ("COLUMN", "Here: a column of --target-data."),
    "group_shares": (
        "pool|even|JSON|FILE",
        'Here: pool, even, or JSON such as {"maths": [0.2, null]}, or a .json file of it.',
    ),
}
"""What these arguments are on the command line: placeholder and explanation."""


def add(commands: Any) -> None:
    """Add the commands."""
    select = add_command(
        commands,
        "select",
        _select,
        "pick the rows that carry the most Fisher information",
        examples=(
            "spice-rs select store -k 1000 --data pool.jsonl --out picks.jsonl --save sel.safetensors",
            "spice-rs select store -k 1000 --target target-store --data pool.jsonl --out picks.jsonl",
            "spice-rs select store --preset paper+ --data pool.jsonl --out picks.parquet",
            "spice-rs select store -k 1000 --data pool.jsonl --groups source --out picks.jsonl",
            "spice-rs select store --budget 200000 --costs tokens --data pool.jsonl --out picks.jsonl",
        ),
        kept=_kept,
    )
    select.add_argument(
        "source",
        metavar="SOURCE",
        type=path,
        help="store folder, .npy, .npz, file.npz::member or headerless file",
    )
    select.add_argument(
        "--share",
        type=share,
        metavar="SHARE",
        help="in place of -k: a share of the rows, such as 0.1 or 10%%, to the nearest row",
    )
    add_outputs(select)
    add_options(select, spice_rs.select, skip=("source", "data", "index_column"), words=WORDS)

    extend = add_command(commands, "extend", _extend, "select again from a pool that has grown")
    extend.add_argument(
        "earlier", metavar="SELECTION", type=path, help="what `select --save` wrote of the smaller pool"
    )
    extend.add_argument("source", metavar="SOURCE", type=path, help="the pool as it is now")
    add_outputs(extend)
    add_options(extend, spice_rs.extend, skip=("selection", "source"), words=WORDS)


def _kept(options: Mapping[str, Any]) -> str:
    """What an interrupted selection leaves: what its checkpoint has, if it has begun."""
    checkpoint = options["checkpoint"]
    if checkpoint is None or not os.path.exists(checkpoint):
        return ""
    return f"the picks so far are in {checkpoint}, and the same command goes on from there"


def _select(
    source: str,
    out: str,
    data: str | None,
    save: str | None,
    llama_factory: str | None,
    name: str,
    columns: Mapping[str, str] | None,
    index_column: str | None,
    force: bool,
    share: float | str | None,
    **options: Any,
) -> None:
    from spice_rs.commands.labels import labelled
    from spice_rs.report.shares import group_table
    from spice_rs.report.summary import SHOWN_GROUPS, represented_facts, target_facts
    from spice_rs.selection.arguments import rows_wanted
    from spice_rs.selection.picks import read_rows

    if share is not None:
        if options["k"] is not None:
            raise spice_rs.InvalidInputError(
                f"--share: found it beside -k {options['k']}, expected one of the two. Leave one out."
            )
        options["k"] = share
    if options["k"] is not None:
        with _spoken_of(share, None):
            rows_wanted(options["k"])  # before anything is opened
    given: dict[str, Any] = {"name": name, "columns": columns}
    files = {f"--{field}": options[field] for field in ROW_FILES}
    shares = options["group_shares"]
    files["--group-shares"] = shares if _names_file(shares) else None
    checkpoint = {"--checkpoint": options["checkpoint"]}
    check_outputs(checkpoint, {"SOURCE": source, "--data": data, **files}, force=True)  # its own goes on
    opened = _opened(source, data, index_column, options)
    check_targets(
        out,
        data,
        llama_factory,
        save=save,
        reads={
            "SOURCE": source,
            "--target": options["target"],
            "--target-data": options["target_data"],
            **checkpoint,
            **files,
        },
        belonging=opened.belonging,
        force=force,
        **given,
    )
    if any(options[field] is not None for field in COLUMNS):
        options.update(data=data, index_column=index_column)
    for field in ROW_FILES:
        if options[field] is not None:
            options[field] = read_rows(options[field], opened.belonging)
    options["group_shares"] = _shares(options["group_shares"])
    column = _look_at_data(opened, data, index_column, [options[field] for field in ("initial", "exclude")])
    if data is not None and options["groups"] is None:
        opened = labelled(opened, data, column, index_column)
    with _spoken_of(share, opened):
        selection = spice_rs.select(opened, **options)
    _write(selection, out, data, save, llama_factory, index_column=index_column, **given)
    _say_what_was_picked(selection)
    for fact, value in [*target_facts(selection), *represented_facts(selection)]:
        say(f"{fact}: {value}", file=sys.stderr)
    if selection.compared is not None:
        runs = [
            f"{name} log det {run['log_det']:.6g} ({counted(run['picks'], 'pick')}, cost {run['cost']:g})"
            for name, run in selection.compared.items()
            if name != "kept"
        ]
        say(f"{'; '.join(runs)}: kept {selection.compared['kept']}", file=sys.stderr)
    if selection.groups is not None and len(selection.quotas) <= SHOWN_GROUPS:
        say_block(group_table(selection), file=sys.stderr)


@contextmanager
def _spoken_of(share: float | str | None, source: Source | None) -> Iterator[None]:
    """Inside, what is said of k is said of the share that was typed."""
    from spice_rs.selection.arguments import rows_of, rows_wanted

    try:
        yield
    except spice_rs.InvalidInputError as error:
        if share is None or not str(error).startswith("k: found "):
            raise
        told = str(error).removeprefix("k: found ")
        if source is None:
            message = f"found {share}, expected a share above 0 and up to 1. 0.1 and 10% are a tenth, 1 and 100% all."
        else:
            count, rest = rows_of(rows_wanted(share), source.rows), told.partition(", ")[2]
            message = f"found {share}, {count} of the {counted(source.rows, 'row')}, {rest}"
        raise spice_rs.InvalidInputError(f"--share: {message}") from error


def _extend(
    earlier: str,
    source: str,
    out: str,
    data: str | None,
    save: str | None,
    llama_factory: str | None,
    name: str,
    columns: Mapping[str, str] | None,
    index_column: str | None,
    force: bool,
    **options: Any,
) -> None:
    from spice_rs.commands.labels import labelled
    from spice_rs.selection.picks import read_rows

    given: dict[str, Any] = {"name": name, "columns": columns}
    opened = _opened(source, data, index_column, options)
    reads = {"SELECTION": earlier, "SOURCE": source, "--old-rows": options["old_rows"]}
    check_targets(
        out, data, llama_factory, save=save, reads=reads, belonging=opened.belonging, force=force, **given
    )
    if options["old_rows"] is not None:
        rows = read_rows(options["old_rows"])
        options["old_rows"] = rows.indices if isinstance(rows, spice_rs.Selection) else rows
    column = _look_at_data(opened, data, index_column)
    if data is not None:
        opened = labelled(opened, data, column, index_column)
    selection = spice_rs.extend(spice_rs.Selection.load(earlier), opened, **options)
    _write(selection, out, data, save, llama_factory, index_column=index_column, **given)
    _say_what_was_picked(selection)


def _say_what_was_picked(selection: spice_rs.Selection) -> None:
    """Print a sentence about the picks, and what they are made of beside their pool."""
    from spice_rs.report.shares import beside_pool
    from spice_rs.report.summary import as_sentence
    from spice_rs.tables import aligned

    say(as_sentence(selection), file=sys.stderr)
    if table := beside_pool(selection):
        say_block(aligned(table), file=sys.stderr)


def _write(
    selection: spice_rs.Selection,
    out: str,
    data: str | None,
    save: str | None,
    llama_factory: str | None,
    **given: Any,
) -> None:
    """Write a selection where the command line says; if that fails, keep it where `export-picks` finds it."""
    if save is not None:
        selection.save(save)
    try:
        write_targets(selection, out, data, llama_factory, **given)
    except BrokenPipeError:
        raise
    except (spice_rs.SpiceError, OSError) as error:
        if save is None:
            save = _free_name(out)
            try:
                selection.save(save)
            except (spice_rs.SpiceError, OSError):
                raise error from None
        raise spice_rs.SpiceError(
            f"{error} (The selection is kept in {save}; `spice-rs export-picks {save}` writes it.)"
        ) from error


def _free_name(out: str) -> str:
    """Return the name of a file that is not there, beside the one that a selection was to be written to.

    Where that was no file but a device, for example, it is in the working folder.
    """
    if out == "-" or (os.path.exists(out) and not os.path.isfile(out)):
        out = "picks"
    names = (f"{out}.selection{number or ''}.safetensors" for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _opened(source: str, data: str | None, index_column: str | None, options: Mapping[str, Any]) -> Source:
    """Open the source."""
    from spice_rs.data.matching import check_index_column
    from spice_rs.store.sources import open_source

    check_index_column(index_column, data)
    opened = open_source(source, dim=options["dim"], dtype=options["dtype"])
    opened.check_finished(options["partial"])
    return opened


def _look_at_data(
    opened: Source, data: str | None, index_column: str | None, unpicked: Sequence[Any] = ()
) -> str | None:
    """Look now whether the data are the source's own: else that is found out after a long selection.

    Args:
        opened: the source.
        data: what was given for --data.
        index_column: see `raw_records`; the data must then have every row that may be picked.
        unpicked: rows or selections that are not picked; None is none.

    Returns:
        The column that says what records are of; None if there is none.

    Raises:
        InvalidInputError: see `raw_records`.
    """
    from spice_rs.commands.labels import label_column
    from spice_rs.data.matching import raw_records, spread
    from spice_rs.data.row_set import RowSet

    if data is None:
        return None
    belonging = opened.belonging
    rows = np.sort(opened.dataset_order() if opened.index is None else opened.index)
    if index_column is not None:
        for each in unpicked:
            if each is not None:
                given = each.indices if isinstance(each, spice_rs.Selection) else np.asarray(each, np.int64)
                rows = np.setdiff1d(rows, given)
        checked = set(spread(rows))
        joined = raw_records(data, RowSet(rows), belonging, index_column=index_column, checked=checked)
        return label_column(joined)
    looked_at = set(spread(rows if belonging is None else belonging.rows))
    try:
        return label_column(raw_records(data, looked_at, belonging))
    except spice_rs.SpiceError:
        if belonging is None:  # of such rows all that is known of the data is what the picks' records say
            return None
        raise


def _names_file(shares: str | None) -> bool:
    """Whether `--group-shares` names a file."""
    return shares is not None and shares.endswith(".json")


def _shares(text: str | None) -> Any:
    """Return what `--group-shares` says: a word, or JSON in the argument or in a file."""
    if text in (None, "pool", "even"):
        return text
    contents = read_whole(text, "a JSON file") if _names_file(text) else text
    try:
        return json.loads(contents.decode("utf-8") if isinstance(contents, bytes) else contents)
    except (ValueError, RecursionError) as error:
        raise spice_rs.InvalidInputError(
            f"--group-shares: found no JSON ({error}), expected 'pool', 'even' or an object: label → [minimum, maximum]."
            ' For example {"maths": [0.2, null]}.'
        ) from error
