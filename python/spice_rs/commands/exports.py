"""`export-picks`: a saved selection as a file of records, or as a data set of LLaMA-Factory; what `select` writes too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import spice_rs
from spice_rs.commands.options import add_command, add_options

OUT_HELP = "file for the picks in order: JSON Lines, or Parquet if its name ends so; - for stdout"


def add(commands: Any) -> None:
    """Add the command."""
    export = add_command(
        commands, "export-picks", _export_picks, "write a saved selection as records, or for LLaMA-Factory"
    )
    export.add_argument("selection", metavar="SELECTION", help="what `select --save` wrote")
    export.add_argument("--out", metavar="FILE", help=OUT_HELP)
    export.add_argument(
        "--data", help="the data the store was made from; without it the numbers of the picks alone"
    )
    export.add_argument(
        "--llama-factory", metavar="FOLDER", help="LLaMA-Factory's dataset_dir, for a data set of the picks"
    )
    add_options(export, spice_rs.Selection.to_llama_factory, skip=("self", "folder", "data"))


def check_targets(out: str, data: str | None, llama_factory: str | None, name: str = "spice") -> None:
    """Fail now if `write_targets` would fail after a long selection.

    Raises:
        InvalidInputError: a file cannot lie where it should, the data cannot be read, or a package is missing.
    """
    from spice_rs.report.llama_factory import check_folder
    from spice_rs.selection.picks import check_output

    check_output(out, data)
    if out.endswith(".parquet") and find_spec("pyarrow") is None:
        raise spice_rs.InvalidInputError(
            f"{out}: writing Parquet needs pyarrow; pip install pyarrow, or write .jsonl"
        )
    if llama_factory is not None:
        if data is None:
            raise spice_rs.InvalidInputError(
                "--llama-factory: found it without --data, expected both: LLaMA-Factory needs the records. Give --data."
            )
        check_folder(llama_factory, name)


def write_targets(
    selection: spice_rs.Selection,
    out: str,
    data: str | None,
    llama_factory: str | None,
    *,
    name: str = "spice",
    columns: Mapping[str, str] | None = None,
) -> None:
    """Write the picks where the command line says, and say so on stderr."""
    from spice_rs.selection.picks import write_picks

    parquet = out.endswith(".parquet")
    if parquet:
        selection.to_parquet(out, data)
    elif out:
        write_picks(selection, out, data)
    if out not in ("", "-"):
        print(f"{out}: {len(selection)} {'rows' if parquet else 'lines'}", file=sys.stderr)
    if llama_factory is not None:
        selection.to_llama_factory(llama_factory, data, name=name, columns=columns)
        print(f"{llama_factory}: {len(selection)} samples as {name!r} in dataset_info.json", file=sys.stderr)


def _export_picks(
    selection: str,
    out: str | None,
    data: str | None,
    llama_factory: str | None,
    name: str,
    columns: Mapping[str, str] | None,
) -> None:
    loaded = spice_rs.Selection.load(selection)
    if out is None and llama_factory is None:
        out = "-"
    check_targets(out or "-", data, llama_factory, name)
    write_targets(loaded, out or "", data, llama_factory, name=name, columns=columns)
