"""Notes in a store's folder: small JSON files that are no part of its format, and that a reader may do without."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spice_rs.atomic import replacing
from spice_rs.own_json import parsed
from spice_rs.paths import local


def write_note(store: str | os.PathLike[str], name: str, note: Mapping[str, Any]) -> None:
    """Write a note into the folder of a store, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(Path(local(store)) / name) as file:
        file.write(json.dumps(note).encode() + b"\n")


def read_note(store: str | os.PathLike[str], name: str, most: int) -> Any:
    """Return what a note of at most so many bytes says; None if there is none, or none that can be read."""
    path = Path(local(store)) / name
    try:
        if path.is_symlink() or not path.is_file():  # as nothing of a store is read through links
            return None
        with open(path, "rb") as file:
            return parsed(file.read(most))
    except (OSError, ValueError):
        return None
