"""The picks of a run, kept in a file while it goes on, so that it can be resumed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.atomic import check_place
from spice_rs.errors import StoreMismatchError
from spice_rs.paths import local
from spice_rs.selection.constraints import KEYS
from spice_rs.selection.result import Selection
from spice_rs.selection.saved import NEAR_DUPLICATES, SavedRun, check_same, read_run, write_run
from spice_rs.store.sources import Source

INTERVAL = 2.0
"""Seconds between two savings of a run that goes on."""

COMPARED = (
    "alpha",
    "conflict_penalty",
    "fisher",
    "early_stop",
    "normalize",
    "method",
    *(key for key in KEYS if key not in ("groups", "target", "represent")),
)
"""The settings that have to be the same. k may grow or shrink: greedy picks are nested, but for groups' minima."""

_ARGUMENTS = {("target", "weight"): "target_weight", ("target", "labels"): "target_groups"}
"""Entries that an argument decides of."""

COLUMNS = ("gains", "base", "conflict", "scores", "overruled", "rows_read")
"""What the core wants to know of each pick, after its position."""


class Checkpoint:
    """The file of one run.

    Args:
        path: the file; if it is there, the run goes on from it.
        settings: `Selection.settings` of the run, with the fingerprint of the source.

    Raises:
        InvalidInputError: no file can lie there.
        StoreMismatchError: the file is of other settings or of another source.
        StoreError: the file is something else, or damaged; it is never overwritten.
    """

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        path = local(path)
        check_place(path)
        self._path = path
        self._settings = settings
        self._run: SavedRun | None = None
        if os.path.lexists(path):
            run = self._run = read_run(path)
            _check_target(path, run.settings.get("target"), settings["target"])
            remedy = "Resume with the settings and the source of the first run, or name another file to start anew."
            source = {f"source.{key}": value for key, value in run.settings["source"].items()}
            source.update({**_by_group(run.settings), **_by_entry(run.settings)})
            wanted = {
                f"source.{key}": settings["source"][key] for key in ("rows", "dim", "dtype", "fingerprint")
            }
            wanted.update(_by_entry(settings))
            wanted.update({key: settings[key] for key in COMPARED})
            groups = _by_group(settings)
            wanted.update(groups)
            if any(pair[0] > 0 for pair in groups.values() if isinstance(pair, list)):
                wanted["k"] = settings["k"]
            check_same(path, {**run.settings, **source}, wanted, StoreMismatchError, remedy)

    def made(self, source: Source) -> tuple[npt.NDArray[Any], ...] | None:
        """Return the picks to go on from, as `_core.select` takes them: at most the run's k."""
        if self._run is None:
            return None
        k, series = self._settings["k"], self._run.series
        positions = source.positions(series["indices"][:k]).astype(np.int64)
        return (positions, *(series[name][:k] for name in COLUMNS))

    def near_duplicates(self, source: Source) -> tuple[npt.NDArray[Any], ...] | None:
        """Return the near-duplicates skipped on the way to those picks, as `_core.select` takes them."""
        if self._run is None or NEAR_DUPLICATES[0] not in self._run.series:
            return None
        rows, of, cosines, ranks = (self._run.series[name] for name in NEAR_DUPLICATES)
        k = self._settings["k"]
        kept = slice(None) if k is None else ranks < k
        return (source.positions(rows[kept]).astype(np.int64), of[kept], cosines[kept], ranks[kept])

    def save(self, picks: dict[str, npt.NDArray[Any]]) -> None:
        """Put all picks of a run that has not ended into the file."""
        self._write(SavedRun(picks, self._settings, None, None, None))

    def finish(self, selection: Selection) -> None:
        """Put the selection of a run that has ended into the file: what `Selection.save` writes."""
        self._write(selection.as_run())

    def _write(self, run: SavedRun) -> None:
        """Write, unless the file has more: a smaller k takes nothing from a longer run."""
        if self._run is None or len(run) >= len(self._run):
            write_run(self._path, run)


def _check_target(path: str, found: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    """Refuse the file of a run for another target, by its name: hashes tell nobody anything."""
    first, own = (None if each is None else each["fingerprint"] for each in (found, expected))
    if first == own:
        return
    names = [None if each is None else f"target {each['name']}" for each in (found, expected)]
    if names[0] == names[1]:
        names = [names[0], "that target as it is now, with other rows"]
    was, this = ("no target" if name is None else name for name in names)
    raise StoreMismatchError(
        f"checkpoint: {path} is of a run with {was}, this one is with {this}. Give the target of that run, or name"
        " another file to start anew."
    )


def _by_entry(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what decides of a target, and of representative picks, an entry each."""
    decides = {"target": ("fingerprint", "weight", "labels"), "represent": ("gamma", "rank")}
    return {
        _ARGUMENTS.get((key, name), f"{key}.{name}"): (settings.get(key) or {}).get(name)
        for key, names in decides.items()
        for name in names
    }


def _by_group(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what settings say of groups, one entry each, so that a message names the one that differs."""
    groups = settings["groups"]
    if groups is None:
        return {"groups.sha256": None}
    pairs = {f"groups[{label!r}]": pair for label, *pair in groups["quotas"]}
    return {"groups.sha256": groups["sha256"], **pairs}
