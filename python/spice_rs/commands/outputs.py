"""Files that commands write: none is overwritten without `--force`, and what a command reads never is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spice_rs.atomic import check_place
from spice_rs.errors import InvalidInputError
from spice_rs.store.tensors import split_member


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the option without which files that are there stay."""
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")


def check_outputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any], *, force: bool) -> None:
    """Fail now, before any work, if a file cannot be written or must not be.

    Args:
        outputs: option → the file it names; None and "-" are none.
        inputs: option → what it reads: a path, perhaps with the name of a member behind "::", or something else. Of a
            folder all files count as read.
        force: whether files that are there may be overwritten.

    Raises:
        InvalidInputError: no file can lie there; one is there, and `force` was not given; or it is read, or written by
            another option too.
    """
    taken = {
        os.path.realpath(split_member(path)[0]): option
        for option, path in inputs.items()
        if isinstance(path, str)
    }
    for option, path in outputs.items():
        if path is None or path == "-":
            continue
        check_place(path)
        if os.path.exists(path) and not os.path.isfile(path):
            continue  # a pipe or a device, of which nothing is lost
        real = os.path.realpath(path)
        if real in taken:
            raise InvalidInputError(
                f"{option}: found {path}, which {taken[real]} names too, expected a file of its own. Name another."
            )
        folder = next(
            (each for each in taken if os.path.isdir(each) and real.startswith(each + os.sep)), None
        )
        if folder is not None and os.path.exists(real):
            raise InvalidInputError(
                f"{option}: found {path}, a file of the folder that {taken[folder]} names, expected a file of its own. Name"
                " another."
            )
        taken[real] = option
        check_absent(path, option, force=force)


def check_absent(path: str | Path, option: str, *, force: bool) -> None:
    """Refuse to overwrite a file.

    Raises:
        InvalidInputError: it is there, and `force` was not given.
    """
    if not force and os.path.lexists(path):
        raise InvalidInputError(
            f"{option}: found {path}, a file that is there already, expected a new one. Name another, or pass --force to"
            " overwrite it."
        )
