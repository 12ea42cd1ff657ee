"""The folder of a run, judged before the model is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spice_rs.atomic import check_folder_place
from spice_rs.errors import InvalidInputError
from spice_rs.paths import local
from spice_rs.selection.foresight import check_for_json

_MADE = ("adapter", "metrics.jsonl", "picks.jsonl")
"""What a run writes beside its state."""


def run_folder(out: str | os.PathLike[str], data: Any) -> Path:
    """Return the folder of a run, made if need be, after a look at what would fail only when all is done.

    Raises:
        InvalidInputError: No folder can be there, it has files of somebody else's that a run would replace, or the records
        have the key that picks get, or hold what JSON cannot.
    """
    folder = Path(local(out, "out"))
    check_folder_place(folder, "a run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{folder}: found no place for a folder ({error.strerror}), expected one. Name another."
        ) from error
    if not any((folder / "state" / name).exists() for name in ("state.json", ".lock")):
        for name in _MADE:
            if (folder / name).exists():
                raise InvalidInputError(
                    f"{folder / name}: found what a run would replace, without the state of a run, expected a new folder."
                    " Name another, or move it away."
                )
    check_for_json(data)
    return folder
