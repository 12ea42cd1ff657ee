"""Columns as a data frame of whichever library there is; neither is needed for anything else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, get_args

import numpy.typing as npt

from spice_rs.arguments import choice
from spice_rs.errors import InvalidInputError

Library = Literal["pandas", "polars"]
"""What makes frames."""


class Framed:
    """What has columns: names → arrays of one length."""

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns by name."""
        raise NotImplementedError

    def to_frame(self, library: Library | None = None) -> Any:
        """Return the columns of `to_dict` as a data frame.

        Args:
            library: "pandas" or "polars"; by default pandas if it is installed, else polars.

        Raises:
            InvalidInputError: the library is not installed, or there is none of that name.
        """
        return as_frame(self.to_dict(), library)


def as_frame(columns: Mapping[str, npt.NDArray[Any]], library: Library | None = None) -> Any:
    """Return columns as a `pandas.DataFrame` or a `polars.DataFrame`; numbers and bools keep their types.

    Args:
        columns: name → (n,) array; text as objects.
        library: which of the two; by default pandas if it is installed, else polars.

    Raises:
        InvalidInputError: the library is not installed, or there is none of that name.
    """
    known = get_args(Library)
    library = choice("library", library, (*known, None), remedy="Choose one, or leave it out.")
    for name in known if library is None else (library,):
        try:
            module = import_module(name)
        except ImportError:
            continue
        return _pandas(module, columns) if name == "pandas" else _polars(module, columns)
    found, install = (
        ("neither pandas nor polars", known[0]) if library is None else (f"no {library}", library)
    )
    raise InvalidInputError(
        f"to_frame: found {found} installed, expected one that makes frames. Install it (pip install {install}), or go on"
        " without: to_dict() has the same numbers."
    )


def _pandas(module: Any, columns: Mapping[str, npt.NDArray[Any]]) -> Any:
    try:
        return module.DataFrame(dict(columns))
    except UnicodeEncodeError:  # half of a surrogate pair, which the library's own type for text cannot hold
        series = {
            name: module.Series(values, dtype=object if values.dtype == object else None)
            for name, values in columns.items()
        }
        return module.DataFrame(series)


def _polars(module: Any, columns: Mapping[str, npt.NDArray[Any]]) -> Any:
    try:
        series = {
            name: module.Series(values.tolist(), dtype=module.String) if values.dtype == object else values
            for name, values in columns.items()
        }
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            "to_frame: found half of a surrogate pair in a text, expected Unicode, as polars has it. Use library='pandas',"
            " or to_dict()."
        ) from error
    return module.DataFrame(series)
