"""A selection from the file that a command wrote: the saved one, or one made again of the rows in a list of picks."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import numpy as np

from spice_rs.errors import SpiceWarning, StoreMismatchError
from spice_rs.selection.picks import KEY, read_rows
from spice_rs.selection.presets import Alpha
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import select
from spice_rs.store.sources import Normalize

TOLERANCE = 1e-9
"""Part of a gain by which one made again may differ from the one in the file."""


def read_selection(
    path: str | os.PathLike[str],
    source: Any,
    *,
    alpha: Alpha = 1.0,
    conflict_penalty: float = 0.1,
    normalize: Normalize = "auto",
    dim: int | None = None,
    dtype: str | None = None,
) -> Selection:
    """Return the selection in a file, whichever kind of file it is.

    Args:
        path: what `Selection.save` wrote; or picks as `spice-rs select --out` writes them, or any list of rows. Such a
            list says nothing of its settings, so its rows are scored again in their order with those given here, and
            compared with the gains in the list where it has them.
        source: what was selected from, as for `spice_rs.select`.
        alpha: as `select` had it; of no account for a saved selection.
        conflict_penalty: as `select` had it; of no account for a saved selection.
        normalize: as `select` had it; of no account for a saved selection.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: there is no such file, or it holds something else.
        StoreMismatchError: the gains in the list are others: it was made with other settings, or from other rows.
        StoreError: the saved selection is damaged.
    """
    rows = read_rows(path)
    if isinstance(rows, Selection):
        return rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)  # these are picks already, good or not
        again = select(
            source,
            max(1, len(rows)),
            include=rows or None,
            alpha=alpha,
            conflict_penalty=conflict_penalty,
            normalize=normalize,
            progress=False,
            dim=dim,
            dtype=dtype,
        )
    again.settings["include"] = None  # they were chosen, as far as anybody knows
    gains = _gains(path)
    if len(gains) == len(again):
        wrong = np.flatnonzero(np.abs(gains - again.gains) > TOLERANCE * (1.0 + np.abs(gains)))
        if wrong.size:
            rank = int(wrong[0])
            raise StoreMismatchError(
                f"{os.fspath(path)}: gain of rank {rank}: found {gains[rank]:.6g}, expected {again.gains[rank]:.6g} with"
                f" alpha={again.settings['alpha']:g} and normalize={again.settings['normalize']!r}. Give the settings of"
                " the selection, or the file that --save wrote, which has them."
            )
    return again


def _gains(path: str | os.PathLike[str]) -> Any:
    """Return the gains that a list of picks states; empty if any line has none."""
    found = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                item = json.loads(line)
                inner = item.get(KEY, item) if isinstance(item, dict) else {}
                if type(inner.get("gain")) is not float:
                    return np.empty(0)
                found.append(inner["gain"])
    return np.array(found)
