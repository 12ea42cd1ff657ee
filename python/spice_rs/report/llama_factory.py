"""A selection as a data set of LLaMA-Factory: a file of records as they were, and its entry in `dataset_info.json`."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spice_rs.arguments import mapping_or_none, text
from spice_rs.atomic import check_folder_place, replacing
from spice_rs.data.survey import all_records
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.files import read_whole
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.report.llama_layout import Layout, check_dates, layout_of, samples_of
from spice_rs.selection.encoding import encoded, place_in
from spice_rs.selection.picks import records_of, write_text

if TYPE_CHECKING:
    from spice_rs.data.matching import Belonging
    from spice_rs.selection.result import Selection

INFO = "dataset_info.json"


def write_llama_factory(
    selection: Selection,
    folder: str | os.PathLike[str],
    data: Any,
    *,
    name: str = "spice",
    columns: Mapping[str, str] | None = None,
    index_column: str | None = None,
) -> Layout:
    """Write `NAME.jsonl` and the entry NAME in `dataset_info.json`; see `Selection.to_llama_factory`."""
    check_folder(folder, name)
    rows = selection.indices.tolist()
    if not rows:
        raise InvalidInputError("selection: found no picks, expected some. Select more rows.")
    belonging = selection.belonging
    records = records_of(rows, data, belonging, index_column=index_column)
    places = [place_in(data, row) for row in rows]
    layout = layout_of(records, places, *_as_extracted(columns, belonging))
    check_dates(records, layout)
    lines = [
        encoded(sample, place) + "\n"
        for sample, place in zip(samples_of(records, places, layout), places, strict=True)
    ]
    if layout.skipped:
        message = (
            f"{len(layout.skipped)} of {counted(len(rows), 'pick')} (the first: {layout.skipped[0]}) will be"
            " skipped by LLaMA-Factory:"
            " after a system turn it wants user or tool and assistant in turn, the assistant last. Correct the records."
        )
        warnings.warn(message, SpiceWarning, stacklevel=3)
    file_path = data_file(folder, name)
    file_path.parent.mkdir(parents=True, exist_ok=True)
    info = file_path.with_name(INFO)
    entries = _entries(info)
    write_text(lines, file_path)
    entries[name] = {"file_name": file_path.name, **layout.entry}
    with replacing(info) as file:
        file.write(json.dumps(entries, ensure_ascii=False, indent=2).encode() + b"\n")
    return layout


def check_folder(folder: str | os.PathLike[str], name: str) -> None:
    """Fail now if no data set can be written there.

    Raises:
        InvalidInputError: no data set can be called so, the folder is a file, or has a data set of this name by others.
    """
    if not re.fullmatch(r"\w[\w.-]*", text("name", name)):
        raise InvalidInputError(
            f"name: found {name!r}, expected letters, digits, '_', '-' and '.'. LLaMA-Factory parts names by commas."
        )
    place = Path(local(folder, "folder"))
    if place.exists() and not place.is_dir():
        raise InvalidInputError(
            f"{place}: found a file, expected a folder, LLaMA-Factory's dataset_dir. Name one."
        )
    check_folder_place(place, "a data set")
    entry = _entries(place / INFO).get(name)
    if entry is not None and (not isinstance(entry, dict) or entry.get("file_name") != f"{name}.jsonl"):
        raise InvalidInputError(
            f"{place / INFO}: found another data set called {name!r}, expected none or {name}.jsonl. Give another name."
        )


def data_file(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the file of a data set's records."""
    return Path(local(folder)) / f"{name}.jsonl"


def has_entry(folder: str | os.PathLike[str], name: str) -> bool:
    """Whether there is a data set of this name."""
    return name in _entries(Path(local(folder)) / INFO)


def check_first(
    data: Any, columns: Mapping[str, str] | None = None, belonging: Belonging | None = None
) -> None:
    """Fail now if LLaMA-Factory could not read the first record of data: most often it could then read none.

    Args:
        data: as for `Selection.to_llama_factory`.
        columns: as for `Selection.to_llama_factory`.
        belonging: what is known of how the data were extracted.

    Raises:
        InvalidInputError: see `layout_of`.
    """
    for place, record in all_records(data):
        if record is not None:  # others were left out
            layout_of([record], [place], *_as_extracted(columns, belonging))
            return


def _as_extracted(
    columns: Mapping[str, str] | None, belonging: Belonging | None
) -> tuple[Mapping[str, str] | None, frozenset[str]]:
    """Return the names of columns, and those that say nothing, as extraction had them; what is named now is read."""
    layout = {} if belonging is None else belonging.layout
    ignored = layout.get("ignore_columns") or ()
    ignored = [ignored] if isinstance(ignored, str) else ignored
    columns = mapping_or_none("columns", layout.get("columns") if columns is None else columns)
    return columns, frozenset(ignored) - {*(columns or {}).values()}


def _entries(path: Path) -> dict[str, Any]:
    """Return the data sets that are there already."""
    try:
        entries = json.loads(read_whole(path, "JSON of data sets")) if os.path.lexists(path) else {}
    except InvalidInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{path}: found no JSON ({error}), expected an object. Correct it, or name another folder."
        ) from error
    if not isinstance(entries, dict):
        raise InvalidInputError(
            f"{path}: found {type(entries).__name__}, expected an object. Correct it, or name another folder."
        )
    return entries
