"""A selection from the file that a command wrote: the saved one, or one made again of the rows in a list of picks."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import numpy as np

from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.selection.arguments import count_or_none, gamma_given, penalty
from spice_rs.selection.picks import is_saved, numbers_of, read_items, read_rows
from spice_rs.selection.presets import Alpha, resolve_alpha
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import select
from spice_rs.store.sources import Normalize, Source, open_source

TOLERANCE = 1e-9
"""Part of a number by which one made again may differ from the one in the file."""


def read_selection(
    path: str | os.PathLike[str],
    source: Any,
    *,
    alpha: Alpha | None = None,
    conflict_penalty: float | None = None,
    normalize: Normalize | None = None,
    represent: float | None = None,
    represent_rank: int | None = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> Selection:
    """Return the selection in a file, whichever kind of file it is.

    Args:
        path: what `Selection.save` wrote; or picks as `spice-rs select --out` writes them, or any list of rows. Such a
            list says nothing of its settings, so its rows are scored again in their order with those given here, and
            compared with the gains in the list where it has them.
        source: what was selected from, as for `spice_rs.select`.
        alpha: as `select` had it, for a list of picks (by default its own default). A saved selection knows its
            settings, and another one is refused.
        conflict_penalty: as `select` had it, like alpha.
        normalize: as `select` had it (by default auto), like alpha.
        represent: γ as `select` had it (by default 0), like alpha.
        represent_rank: as `select` had it, like alpha.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: there is no such file, it holds something else, or it is a saved selection with other settings.
        StoreMismatchError: the gains or scores in the list are others: it was made with other settings, or from other rows.
        StoreError: the saved selection is damaged.
    """
    rows = read_rows(path, None if is_saved(path) else open_source(source, dim=dim, dtype=dtype).belonging)
    if isinstance(rows, Selection):
        given = {
            "alpha": alpha,
            "conflict_penalty": conflict_penalty,
            "normalize": normalize,
            "represent": represent,
            "represent_rank": represent_rank,
        }
        if any(value is not None for value in given.values()):
            _check_settings(path, rows, open_source(source, dim=dim, dtype=dtype), given)
        return rows
    if not rows:
        raise InvalidInputError(
            f"{os.fspath(path)}: found no picks, expected at least one. Select rows first."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)  # these are picks already, good or not
        again = select(
            source,
            len(rows),
            include=rows,
            alpha=alpha,
            conflict_penalty=conflict_penalty,
            normalize="auto" if normalize is None else normalize,
            represent=0.0 if represent is None else represent,
            represent_rank=represent_rank,
            progress=False,
            partial=True,  # somebody has picked from it already
            dim=dim,
            dtype=dtype,
        )
    again.settings["include"] = None  # they were chosen, as far as anybody knows
    again.settings["remade"] = True  # nobody knows which of them the penalty decided
    remedy = (
        "Give the settings of the selection (alpha=…, conflict_penalty=…, normalize=…, represent=…), or the file that"
        " Selection.save wrote, which has them. Of rows that were picked with target=…, weights=… or initial=…, only that"
        " file can be explained: no settings lead to these numbers."
    )
    alpha_is, scale, penalty_is = (
        again.settings[each] for each in ("alpha", "normalize", "conflict_penalty")
    )
    for name, series, cause in (
        ("gain", again.gains, f"alpha={alpha_is:g} and normalize={scale!r}"),
        ("score", again.scores, f"conflict_penalty={penalty_is:g} and without costs and prior"),
    ):
        stated = _stated(path, name)
        if len(stated) != len(again):
            continue
        wrong = np.flatnonzero(np.abs(stated - series) > TOLERANCE * (1.0 + np.abs(stated)))
        if wrong.size:
            rank = int(wrong[0])
            raise StoreMismatchError(
                f"{os.fspath(path)}: {name} of rank {rank}: found {stated[rank]:.6g}, expected {series[rank]:.6g} with"
                f" {cause}. {remedy}"
            )
    return again


def _check_settings(
    path: str | os.PathLike[str], selection: Selection, source: Source, given: dict[str, Any]
) -> None:
    """Refuse settings that are not those of a saved selection."""
    saved = selection.settings
    pool = source.pool(saved["normalize"])
    same = dict.fromkeys(given, True)
    if given["conflict_penalty"] is not None:
        same["conflict_penalty"] = penalty(given["conflict_penalty"]) == saved["conflict_penalty"]
    if given["normalize"] is not None:
        other = source.pool(given["normalize"])
        same["normalize"] = pool.unit == other.unit and (
            other.scale is pool.scale or np.array_equal(np.asarray(other.scale), np.asarray(pool.scale))
        )
    represented = saved.get("represent") or {"gamma": 0.0, "rank": None}
    if given["represent"] is not None:
        same["represent"] = gamma_given(given["represent"]) == represented["gamma"]
    if given["represent_rank"] is not None:
        rank = count_or_none("represent_rank", given["represent_rank"])
        same["represent_rank"] = rank == represented["rank"]
    saved = {**saved, "represent": represented["gamma"], "represent_rank": represented["rank"]}
    if given["alpha"] is not None:
        if given["alpha"] == "auto" and (saved["weights"] is not None or saved["represent"]):
            same["alpha"] = False  # which depends on them
        else:
            alpha = resolve_alpha(given["alpha"], pool)
            same["alpha"] = math.isclose(alpha, saved["alpha"], rel_tol=TOLERANCE)
    for name, agrees in same.items():
        if not agrees:
            raise InvalidInputError(
                f"{name}: found {given[name]!r} for {os.fspath(path)}, expected {saved[name]!r}, as it was"
                " selected: it keeps its settings. Leave it out, or select again."
            )


def _stated(path: str | os.PathLike[str], name: str) -> Any:
    """Return the numbers of one name that a list of picks states; empty if any line has none."""
    found = []
    for _, item in read_items(path):
        value = (numbers_of(item) or {}).get(name)
        if type(value) is not float:
            return np.empty(0)
        found.append(value)
    return np.array(found)
