"""A selection from a pool that has grown since."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import rows_given, shown
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.nouns import counted
from spice_rs.progress import Progress
from spice_rs.selection.advice import inert_penalty, inert_settings
from spice_rs.selection.arguments import (
    Rows,
    count_or_none,
    rows_of,
    rows_wanted,
    search_given,
    seconds_allowed,
    threads_wanted,
)
from spice_rs.selection.checkpoint import COLUMNS
from spice_rs.selection.composition import composed
from spice_rs.selection.conditions import Conditions
from spice_rs.selection.constraints import KEYS
from spice_rs.selection.lopsided import lopsided
from spice_rs.selection.options import Objective, Past
from spice_rs.selection.presets import PENALTY
from spice_rs.selection.recounted import check_numbers
from spice_rs.selection.result import Selection, as_selection
from spice_rs.selection.run import run
from spice_rs.selection.saved import NEAR_DUPLICATES
from spice_rs.store.sources import Source, open_source


def extend(
    selection: Selection,
    source: Any,
    *,
    k: Rows | None = None,
    old_rows: Any = None,
    threads: int | None = None,
    progress: Progress = None,
    time_limit: float | None = None,
    search: Literal["lazy", "lazy_gain", "eager"] = "lazy",
    hot_rows: int | None = None,
    partial: bool = False,
    dim: int | None = None,
    dtype: str | None = None,
) -> Selection:
    """Select again from a pool that has grown, reading the new rows alone as long as the picks stay the same.

    The result is that of `select` on the whole pool with the settings of the earlier selection, bit for bit. The earlier
    picks are made again, each against the new rows: every old row is known to lose to them. From the first pick that
    a new row beats, all rows compete. `Selection.kept` tells how many of the earlier picks are picks still, wherever they
    stand, `Selection.unchanged` how many came first as before, and the sum of `Selection.rows_read` how many rows were
    read again after the first pass.

    Args:
        selection: the earlier selection, made without conditions and in one run (not in windows) by an exact method.
        source: the pool as it is now, as for `select`: all rows of the earlier one, unchanged, and new ones.
        k: rows to select, or a share of the grown pool, as for `select`; by default as many as then.
        old_rows: (m,) dataset rows that were there; by default as many as then, the lowest.
        threads: as for `select`.
        progress: as for `select`.
        time_limit: as for `select`.
        search: as for `select`.
        hot_rows: as for `select`.
        partial: take the rows of a store whose extraction has not ended, which is refused otherwise.
        dim: as for `select`.
        dtype: as for `select`.

    Raises:
        InvalidInputError: the selection is of another kind, or an argument is out of range.
        UnfinishedStoreError: the extraction of a store has not ended, and `partial` is false.
        StoreMismatchError: the rows that the selection was made from are not there, or not as they were.
        CorruptStoreError: the selection was altered since: its numbers are not those of its rows.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
        >>> before = spice_rs.select(rows[:290], 20)
        >>> after = spice_rs.extend(before, rows)
        >>> after.kept, after.unchanged, after.indices.tolist() == spice_rs.select(rows, 20).indices.tolist()
        (17, 17, True)
    """
    wanted = None if k is None else rows_wanted(k)
    threads, hot_rows = threads_wanted(threads), count_or_none("hot_rows", hot_rows)
    search, time_limit, progress = search_given(search), seconds_allowed(time_limit), shown(progress)
    selection = as_selection(selection)
    settings = copy.deepcopy(selection.settings)
    _check_kind(settings, selection.file or "extend")
    opened = open_source(source, dim=dim, dtype=dtype)
    opened.check_finished(partial)
    old = _old_positions(settings["source"], opened, old_rows, threads)
    check_numbers(selection.file or "selection", selection.as_run(), opened, is_known=True)
    if wanted is not None:
        settings["k"] = rows_of(wanted, opened.rows)
    mask = np.zeros(opened.rows, bool)
    mask[old] = True
    made = (
        opened.positions(selection.indices).astype(np.int64),
        *(getattr(selection, name) for name in COLUMNS),
    )
    names = ("k", "alpha", "conflict_penalty", "early_stop", "fisher", "method")
    result, _ = run(
        opened.pool(settings["normalize"]),
        Objective(**{name: settings[name] for name in names}, search=search, hot_rows=hot_rows),
        Conditions(opened, np.ones(opened.rows, bool)),
        past=Past(made, old=mask),
        threads=threads,
        progress=progress,
        time_limit=time_limit,
    )
    signal = settings["alpha"] * result.pop("norm_sq")
    content = result.pop("fingerprint")
    for name in NEAR_DUPLICATES:
        del result[name]
    settings.pop("kept", None)  # as earlier versions had it: the unchanged ones
    settings["extended"] = _extended(selection.indices, result["indices"])
    settings["source"] = opened.identity(content)
    settings["partial"] = bool(opened.unfinished)
    records = opened.records
    hashes = None if records is None else records[opened.positions(result["indices"])]
    positions = opened.positions(result["indices"])
    extended = Selection(
        **result,
        signal=float(np.median(signal)),
        settings=settings,
        record_hashes=hashes,
        composition=composed(opened, positions),
    )
    linear_gain = float(signal[positions].sum())
    asked = settings["conflict_penalty"] != PENALTY  # a selection does not say who chose the default
    for message in [
        *lopsided(extended, opened.reduction),
        *inert_settings(extended, linear_gain=linear_gain),
        *inert_penalty(extended, asked=asked),
    ]:
        warnings.warn(message, SpiceWarning, stacklevel=2)
    return extended


def _extended(before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return what a selection remembers of the one that it grew from; see `Selection.extended`."""
    count = min(len(before), len(after))
    same = before[:count] == after[:count]
    return {
        "picks": len(before),
        "unchanged": count if same.all() else int(np.argmin(same)),
        "new": np.flatnonzero(~np.isin(after, before)).tolist(),
    }


def _check_kind(settings: dict[str, Any], name: str) -> None:
    conditions = [key for key in KEYS if settings.get(key) is not None]
    found = None
    if settings.get("remade"):
        raise InvalidInputError(
            f"{name}: found picks that were scored again from a list, expected what select returned: whether each was the"
            " best of all rows is not known. Select again, or load what Selection.save wrote."
        )
    if settings["pool_size"] is not None:
        found = f"picks of windows (pool_size={settings['pool_size']})"
    elif settings["method"] not in ("greedy", "top_k"):
        found = f"picks of method={settings['method']!r}"
    elif settings.get("represent") is not None:
        raise InvalidInputError(
            f"{name}: found representative picks, expected others: the second moment moves with the pool, and every row"
            " with it. Use select on the grown pool, with the same represent."
        )
    elif conditions:
        found = f"picks made with {', '.join(conditions)}"
    if found is not None:
        raise InvalidInputError(
            f"{name}: found {found}, expected those of one exact run without conditions. Use select on the grown pool:"
            " its rows may mean something else to such a run."
        )


def _old_positions(
    earlier: dict[str, Any], opened: Source, old_rows: Any, threads: int | None
) -> npt.NDArray[np.int64]:
    """Return the positions of the rows that were there, after a look at their content."""
    for field in ("dim", "dtype"):
        if earlier[field] != getattr(opened, field):
            raise StoreMismatchError(
                f"{opened.description}: {field}: found {getattr(opened, field)}, expected {earlier[field]} as in"
                f" {earlier['name']}. Give the same pool with more rows."
            )
    if old_rows is not None:
        old = opened.positions(rows_given("old_rows", old_rows)).astype(np.int64)
        remedy = "Give the dataset rows that were there then in old_rows."
    else:
        old = opened.dataset_order()[: earlier["rows"]].astype(np.int64)
        remedy = "If new rows came in between, name the old ones in old_rows."
    if len(old) != earlier["rows"] or len(np.unique(old)) != len(old):
        raise StoreMismatchError(
            f"{opened.description}: found {counted(len(np.unique(old)), 'old row')}, expected {earlier['rows']},"
            " as many as in"
            f" {earlier['name']}. {remedy}"
        )
    content = _core.fingerprint(opened.stored, threads=threads, positions=old)
    if content != earlier.get("content"):
        raise StoreMismatchError(
            f"{opened.description}: content of the {counted(len(old), 'old row')}: found {content}, expected"
            f" {earlier.get('content')}. They are not as they were, or not those: rows computed anew differ in the last"
            " digits, so extract the grown data into the store that has the old rows, which keeps them, and extend from"
            f" that. {remedy}"
        )
    return old
