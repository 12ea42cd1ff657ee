"""`export-picks`: a saved selection as a file of records, or as a data set of LLaMA-Factory; what `select` writes too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import spice_rs
from spice_rs.commands.options import add_command, add_data, add_options
from spice_rs.commands.outputs import add_force, check_outputs
from spice_rs.commands.values import path
from spice_rs.nouns import counted
from spice_rs.printable import say

if TYPE_CHECKING:
    from spice_rs.data.matching import Belonging

OUT_HELP = (
    "file for the picks in order, in the format that its name says: .jsonl (or no end), .json, .csv, .parquet; - for JSON"
    " Lines on stdout"
)


def add(commands: Any) -> None:
    """Add the command."""
    export = add_command(
        commands,
        "export-picks",
        _export_picks,
        "write a saved selection as records, or for LLaMA-Factory",
        examples=(
            "spice-rs export-picks sel.safetensors --data pool.jsonl --out picks.parquet",
            "spice-rs export-picks sel.safetensors --data pool.jsonl --llama-factory LLaMA-Factory/data",
        ),
    )
    export.add_argument("selection", metavar="SELECTION", type=path, help="what `select --save` wrote")
    export.add_argument("--out", metavar="FILE", type=path, help=OUT_HELP)
    add_data(export, "the data the store was made from; without it the numbers of the picks alone")
    _add_llama_factory(export)
    add_force(export)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options for what a selection is written to, which `check_targets` and `write_targets` take."""
    parser.add_argument("--out", metavar="FILE", type=path, default="-", help=f"{OUT_HELP} (default)")
    add_data(
        parser,
        "the data the store was made from: each line is then the record with a key 'spice', and columns of it can"
        " be named",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        type=path,
        help="safetensors file for the whole selection, which explain, certify, report and extend read",
    )
    _add_llama_factory(parser)
    add_force(parser)


def _add_llama_factory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--llama-factory",
        metavar="FOLDER",
        type=path,
        help="LLaMA-Factory's dataset_dir, for a data set of the picks",
    )
    words = {"name": ("NAME", "For --llama-factory."), "columns": ("NAME=COLUMN,…", "For --llama-factory.")}
    skip = ("self", "folder", "data", "index_column")
    add_options(parser, spice_rs.Selection.to_llama_factory, skip=skip, words=words)
    parser.add_argument(
        "--index-column",
        metavar="COLUMN",
        help="column of --data with the dataset row of each record, where the n-th record is not row n: data in another"
        " order, or fewer of them, but all that are or may be picked; a dot leads into an object (spice.index)",
    )


def check_targets(
    out: str | None,
    data: str | None,
    llama_factory: str | None,
    *,
    save: str | None = None,
    reads: Mapping[str, Any],
    belonging: Belonging | None = None,
    force: bool,
    name: str = "spice",
    columns: Mapping[str, str] | None = None,
) -> None:
    """Fail now if `write_targets` would fail after a long selection.

    Args:
        out: as given on the command line, like the three that follow.
        data: see `out`.
        llama_factory: see `out`.
        save: see `out`.
        reads: argument → file that the command reads besides the data.
        belonging: what is known of how the data were extracted.
        force: whether files that are there may be overwritten.
        name: what the data set of LLaMA-Factory is called.
        columns: as for `Selection.to_llama_factory`.

    Raises:
        InvalidInputError: a file cannot lie where it should or is there, the data cannot be read or hold what a format
            cannot, or a package is missing.
    """
    from spice_rs.report.exports import check_picks, check_pyarrow, file_format
    from spice_rs.report.llama_factory import check_first, check_folder, data_file, has_entry
    from spice_rs.selection.foresight import check_for_json

    if belonging is not None:
        data = belonging.part_of(data)
    kind = None if out is None else file_format(out)
    if kind == ".parquet":
        check_pyarrow(str(out))
    outputs = {"--save": save, "--out": out}
    if llama_factory is None:
        for option, given in (("--name", name != "spice"), ("--columns", columns is not None)):
            if given:
                raise spice_rs.InvalidInputError(
                    f"{option}: found it without --llama-factory, expected both: it is about that data set. Leave it out."
                )
    else:
        if data is None:
            raise spice_rs.InvalidInputError(
                "--llama-factory: found it without --data, expected both: LLaMA-Factory needs the records. Give --data."
            )
        check_folder(llama_factory, name)
        file = data_file(llama_factory, name)
        if file.parent.is_dir():
            outputs["--llama-factory"] = str(file)
        if has_entry(llama_factory, name) and not force:
            raise spice_rs.InvalidInputError(
                f"--llama-factory: found a data set {name!r} in {llama_factory} already, expected none. Name another"
                " folder, another data set (--name), or pass --force to overwrite it."
            )
    check_outputs(outputs, {"--data": data, **reads}, force=force)
    if data is not None and kind is not None:
        check_picks(data, kind)
    if llama_factory is not None:
        check_first(data, columns, belonging)
        if kind not in (".jsonl", ".json"):
            check_for_json(data, key=False)


def write_targets(
    selection: spice_rs.Selection,
    out: str | None,
    data: str | None,
    llama_factory: str | None,
    *,
    name: str = "spice",
    columns: Mapping[str, str] | None = None,
    index_column: str | None = None,
) -> None:
    """Write the picks where the command line says, and say so on stderr."""
    from spice_rs.report.exports import write_file

    if out is not None:
        write_file(selection, out, data, index_column=index_column)
    if out not in (None, "-"):
        say(f"{out}: {counted(len(selection), 'pick')}", file=sys.stderr)
    if llama_factory is not None:
        stage = selection.to_llama_factory(
            llama_factory, data, name=name, columns=columns, index_column=index_column
        )
        say(
            f"{llama_factory}: {counted(len(selection), 'sample')} as {name!r} in dataset_info.json, for stage {stage}",
            file=sys.stderr,
        )


def _export_picks(
    selection: str,
    out: str | None,
    data: str | None,
    llama_factory: str | None,
    name: str,
    columns: Mapping[str, str] | None,
    index_column: str | None,
    force: bool,
) -> None:
    loaded = spice_rs.Selection.load(selection)
    if out is None and llama_factory is None:
        out = "-"
    given: dict[str, Any] = {"name": name, "columns": columns}
    reads = {"SELECTION": selection}
    check_targets(out, data, llama_factory, reads=reads, belonging=loaded.belonging, force=force, **given)
    write_targets(loaded, out, data, llama_factory, index_column=index_column, **given)
