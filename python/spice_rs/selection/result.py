"""What a selection returns: the picks, the numbers behind them, and a file to keep them in."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.arguments import instance, is_whole, whole
from spice_rs.atomic import check_place
from spice_rs.data.matching import Belonging
from spice_rs.errors import InvalidInputError
from spice_rs.frames import Framed
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.printable import one_line
from spice_rs.selection.composition import Composition
from spice_rs.selection.exported import Exports
from spice_rs.selection.recounted import check_numbers, check_source
from spice_rs.selection.saved import (
    COMPOSITION,
    NEAR_DUPLICATES,
    SERIES,
    TARGET,
    SavedRun,
    read_run,
    write_run,
)
from spice_rs.selection.target import Target
from spice_rs.store.sources import open_source

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NearDuplicates(Framed):
    """The s rows that would have been picked, had they not been too similar to a row picked before.

    Attributes:
        rows: (s,) int64 dataset rows, in the order in which they were skipped.
        of: (s,) int64 dataset row of the first pick (initial rows come first) that each is too similar to.
        cosine: (s,) float64 ⟨g, g_of⟩/(‖g‖‖g_of‖), with its sign.
        rank: (s,) int64 number of picks that had been made: the rank of the pick made instead.
    """

    rows: npt.NDArray[np.int64]
    of: npt.NDArray[np.int64]
    cosine: Floats
    rank: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns row, of, rank (int64) and cosine (float64), each (s,)."""
        return {"row": self.rows, "of": self.of, "rank": self.rank, "cosine": self.cosine}

    def head(self, k: int) -> NearDuplicates:
        """Return those that were skipped on the way to the first k picks."""
        kept = self.rank < whole("k", k, least=0)
        return NearDuplicates(self.rows[kept], self.of[kept], self.cosine[kept], self.rank[kept])


@dataclass(frozen=True, repr=False, eq=False)
class Selection(Exports):
    """The selected rows in pick order, and the numbers that selected them.

    With S the rows picked before a row x, m picks in all, and every logarithm natural:

    Attributes:
        indices: (m,) int64 dataset rows (row numbers for arrays).
        gains: (m,) float64 Δ_x(S), the marginal gain; log(1 + α gᵀ(I + αF_S)⁻¹g) with `fisher="full"`.
        base: (m,) float64 log(1 + α‖g‖²), what x is worth alone; with weights log(1 + αw‖g‖²).
        conflict: (m,) float64 max(0, −⟨g, mean⟩/(‖g‖‖mean‖ + 1e-8)), in [0, 1].
        scores: (m,) float64 Δ − λ·conflict, what x won with (with `method="top_k"`: Δ); in the costed run of a budget
            with Δ·(mean cost)/(own cost) for Δ; with a prior plus `prior_weight` times it.
        overruled: (m,) bool, another row that could have been picked had a larger Δ (a larger score but for the
            penalty): the penalty decided this pick. False for rows to include.
        rows_read: (m,) int64 rows that were read again to find the pick, after a first pass over all of them: 0 for a first
            pick, and for others whose rivals were still at hand.
        log_dets: (m,) float64 U(S) = log det(I + αF_S) of the picks up to and including each, and of initial rows,
            whatever the mode; with windows nan but for the last.
        stop_reason: "budget" (k rows, or no row that is left fits the budget), "early_stop", "exhausted" (no row is
            left that the conditions allow) or "time_limit"; with windows, and with the two runs of a budget,
            "time_limit" if any was not done; with windows else "early_stop" if any stopped early.
        log_det: U(S) of all picks: the last of `log_dets`.
        signal: median of αw‖g‖² over all rows of the source: far below 1 nothing interacts. (w is 1 without weights.)
        settings: all settings and what is known of the source.
        costs: (m,) float64 cost of each pick; None without a budget.
        groups: (m,) label of each pick's group: int64, bool, or text as objects; None without groups.
        near_duplicates: the rows that were skipped; None without `max_similarity`.
        compared: the two runs of a budget, {"kept": "costed" or "uncosted", "costed": {"log_det", "picks", "cost"},
            "uncosted": {…}}; None without a budget.
        record_hashes: (m,) int64 hash of what each pick was extracted from, by which data are recognised that are to be
            joined with the picks; None where the source keeps none.
        relevance: (m,) float64 r of each pick to the target, in (0, 1] but for rows to include; None without a target.
        target: what the picks are for; None without a target.
        composition: what the picks are made of beside the pool: tokens, labels, and how many are alike; None in files
            of before.
        file: the file that it was loaded from, by which messages call it; None of others.
    """

    indices: npt.NDArray[np.int64]
    gains: Floats
    base: Floats
    conflict: Floats
    scores: Floats
    overruled: npt.NDArray[np.bool_]
    rows_read: npt.NDArray[np.int64]
    log_dets: Floats
    stop_reason: str
    log_det: float
    signal: float
    settings: dict[str, Any]
    costs: Floats | None = None
    groups: npt.NDArray[Any] | None = None
    near_duplicates: NearDuplicates | None = None
    compared: dict[str, Any] | None = None
    record_hashes: npt.NDArray[np.int64] | None = None
    relevance: Floats | None = None
    target: Target | None = None
    composition: Composition | None = None
    file: str | None = None

    @cached_property
    def epsilon(self) -> Floats:
        """(m,) float64 ε_x(S) = Δ − base ≤ 0: what interaction with S costs x (the ε-decomposition)."""
        return self.gains - self.base

    @property
    def forced(self) -> int:
        """Number of picks that `include` asked for: the first ones."""
        included = self.settings["include"]
        return 0 if included is None else min(len(self), included["rows"])

    @property
    def kept(self) -> int | None:
        """Number of picks that the selection had that `extend` was given, at whatever rank; None for other selections."""
        grown = self.settings.get("extended")
        return None if grown is None else len(self) - len(grown["new"])

    @property
    def unchanged(self) -> int | None:
        """Number of first picks that `extend` found as they were, rank by rank; None for other selections."""
        grown = self.settings.get("extended")
        return None if grown is None else int(grown["unchanged"])

    @property
    def half_life(self) -> int | None:
        """Number of picks after which Δ first was at most half of the first; None if it never was."""
        below = np.flatnonzero(self.gains <= 0.5 * self.gains[0]) if len(self) else np.empty(0)
        return int(below[0]) if below.size else None

    def head(self, k: int) -> Selection:
        """Return the selection that the same run with this `k` makes: its first `k` picks.

        Greedy picks are nested, so that one long run holds all shorter ones (`log_dets` agree to rounding). The rows of
        windows are not, nor those under a budget of cost or with minima for groups: what these force depends on the
        budget.

        Args:
            k: picks to keep, 1 ≤ k ≤ len(self), and no fewer than were to be included.

        Raises:
            InvalidInputError: `k` is out of range, or the picks are not nested.
        """
        self._check_nested()
        remedy = f"This is a selection of {counted(len(self), 'pick')}: select more rows for a larger one."
        k = whole("k", k, least=max(1, self.forced), most=len(self), remedy=remedy)
        near_duplicates = self.near_duplicates
        if near_duplicates is not None:
            near_duplicates = near_duplicates.head(k)
        settings = {**copy.deepcopy(self.settings), "k": k}
        if (grown := settings.get("extended")) is not None:
            grown["unchanged"] = min(grown["unchanged"], k)
            grown["new"] = [rank for rank in grown["new"] if rank < k]
        return Selection(
            **{name: getattr(self, name)[:k].copy() for name in SERIES},
            stop_reason="budget",
            log_det=float(self.log_dets[k - 1]),
            signal=self.signal,
            settings=settings,
            groups=None if self.groups is None else self.groups[:k].copy(),
            near_duplicates=near_duplicates,
            record_hashes=None if self.record_hashes is None else self.record_hashes[:k].copy(),
            relevance=None if self.relevance is None else self.relevance[:k].copy(),
            target=self.target,
            composition=None if self.composition is None else self.composition.head(k),
        )

    def _check_nested(self) -> None:
        """Refuse to cut picks that a run with a smaller k would not have made."""
        if self.settings["pool_size"] is not None:
            raise InvalidInputError(
                "head: found picks of windows, expected those of one run: windows have budgets of their own and are not"
                " nested. Select again with a smaller select_per_window."
            )
        if self.settings["method"] == "stochastic":
            raise InvalidInputError(
                "head: found picks of method='stochastic', expected those of another one: its samples depend on k."
                " Select again with the smaller k."
            )
        if self.settings["budget"] is not None:
            raise InvalidInputError(
                "head: found picks under a budget of cost, expected those of a run with k: what still fits depends on the"
                " budget. Select again with the smaller budget."
            )
        label = next((label for label, minimum, _ in self.quotas if minimum > 0), None)
        if label is not None:
            raise InvalidInputError(
                f"head: found picks with a minimum for group {label!r}, expected a run without minima: which rows they"
                " force depends on k. Select again with the smaller k."
            )

    @property
    def belonging(self) -> Belonging | None:
        """What is known of the data that the picks were extracted from; None if nothing is."""
        source = self.settings["source"]
        about = source.get("data", {})  # files of earlier versions have none: something was not kept
        if about is None:
            return None
        return Belonging.of(source["name"], about, self.indices, self.record_hashes)

    @property
    def quotas(self) -> list[Any]:
        """[label, minimum, maximum] of each group, in rows or cost units; maximum None for no limit."""
        groups = self.settings["groups"]
        return [] if groups is None else list(groups["quotas"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a file, whole or not at all: safetensors, with everything else as JSON in its header.

        Args:
            path: the file; replaced if it is there.

        Raises:
            InvalidInputError: no file can lie there.
            OSError: the file cannot be written.
        """
        path = local(path)
        check_place(path)
        write_run(path, self.as_run())

    def summary(self) -> str:
        """Return what there is to say of the selection, a fact on each line, with a table of its groups."""
        from spice_rs.report import summary

        return summary.as_text(self)

    def as_run(self) -> SavedRun:
        """Return what a file holds of the selection."""
        series: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in SERIES}
        if self.costs is not None:
            series["costs"] = self.costs
        if self.groups is not None:
            codes = {quota[0]: code for code, quota in enumerate(self.quotas)}
            series["groups"] = np.array([codes[label] for label in self.groups.tolist()], np.int64)
        if self.record_hashes is not None:
            series["record_hashes"] = self.record_hashes
        if self.target is not None and self.relevance is not None:
            series["relevance"] = self.relevance
            arrays = (self.target.mean, self.target.directions.ravel(), self.target.overlap)
            series.update(zip(TARGET, arrays, strict=True))
        if (near := self.near_duplicates) is not None:
            series.update(zip(NEAR_DUPLICATES, (near.rows, near.of, near.cosine, near.rank), strict=True))
        settings = self.settings
        if (made := self.composition) is not None:
            settings = {**settings, "composition": made.about_pool()}
            own = zip(COMPOSITION, (made.tokens, made.codes, made.alike), strict=True)
            series.update({name: values for name, values in own if values is not None})
        return SavedRun(series, settings, self.stop_reason, self.log_det, self.signal, self.compared)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        source: Any = None,
        *,
        dim: int | None = None,
        dtype: str | None = None,
    ) -> Selection:
        """Return the selection that `save` wrote.

        Args:
            path: the file; the checkpoint of a run that has ended is one too.
            source: what was selected from, as for `select`, to make sure that it is still the same and that the numbers of
                the picks are those of its rows; None not to look.
            dim: columns of a headerless source.
            dtype: element type of a headerless source.

        Raises:
            InvalidInputError: there is no such file, or it is the checkpoint of a run that has not ended.
            StoreMismatchError: `source` is not what was selected from.
            CorruptStoreError: the file was cut short or altered, also by somebody who has corrected its checksum, as far
                as `source` tells: what follows from a prior, from costs or groups that were given, is not looked at.
            StoreError: the file is something else.
        """
        path = local(path)
        run = read_run(path)
        if run.stop_reason is None or run.log_det is None or run.signal is None:
            raise InvalidInputError(
                f"{os.fspath(path)}: found a run that was interrupted after {counted(len(run), 'pick')}, expected"
                " one that has ended."
                f" Finish it by the same selection with checkpoint={os.fspath(path)!r}, and with k={len(run)} for"
                " these picks alone."
            )
        if source is not None:
            opened = open_source(source, dim=dim, dtype=dtype)
            check_source(os.fspath(path), run.settings, opened)
            check_numbers(os.fspath(path), run, opened)
        series = run.series
        near = [series.pop(name) for name in NEAR_DUPLICATES if name in series]
        aims = [series.pop(name) for name in TARGET if name in series]
        target = Target.of(run.settings["target"], *aims) if aims else None
        own = [series.pop(name, None) for name in COMPOSITION]
        about = run.settings.pop("composition", None)
        groups = series.pop("groups", None)
        if groups is not None:
            labels = [quota[0] for quota in run.settings["groups"]["quotas"]]
            series["groups"] = as_labels(labels)[groups]
        return cls(
            **series,
            stop_reason=run.stop_reason,
            log_det=run.log_det,
            signal=run.signal,
            settings=run.settings,
            near_duplicates=NearDuplicates(*near) if near else None,
            target=target,
            composition=None if about is None else Composition.of(about, *own),
            compared=run.compared,
            file=os.fspath(path),
        )

    def explain(self, rows: Any, source: Any, **given: Any) -> Any:
        """Return why dataset rows were not picked, or that they were: one `Explanation` for one row, else a list.

        Args:
            rows: a dataset row, or a list of them.
            source: what was selected from.
            **given: as for `spice_rs.explain`: what the selection was made with besides numbers.

        Raises:
            InvalidInputError: see `spice_rs.explain`.
            StoreMismatchError: see `spice_rs.explain`.
        """
        from spice_rs.analysis.explanation import explain  # which needs this module

        found = explain(self, source, rows, **given)
        return found[0] if is_whole(rows) else found

    def __len__(self) -> int:
        return len(self.indices)

    def _repr_html_(self) -> str:
        from spice_rs.report import summary

        return summary.as_html(self)

    def __repr__(self) -> str:
        rows = self.settings["source"]["rows"]
        budget = self.settings["budget"]
        spent = "" if self.costs is None else f"cost {self.costs.sum():g} of {budget:g}, "
        kept = ""
        if self.kept is not None:
            kept = f"{counted(self.kept, 'pick')} kept, the first {self.unchanged} in order, "
            kept += f"{counted(int(self.rows_read.sum()), 'row')} read again, "
        gains = f"gain {self.gains[0]:.4g} → {self.gains[-1]:.4g}, " if len(self) else ""
        near = 0 if self.near_duplicates is None else len(self.near_duplicates)
        skipped = f"{near} near-duplicate{'s' * (near > 1)} skipped, " if near else ""
        return one_line(
            f"Selection({len(self)} of {counted(rows, 'row')}, {kept}{spent}{gains}log det {self.log_det:.6g},"
            f" penalty decided {counted(int(self.overruled.sum()), 'pick')}, {skipped}stopped: {self.stop_reason})"
        )


def as_selection(given: Any) -> Selection:
    """Return the selection that was given.

    Raises:
        InvalidInputError: it is none.
    """
    remedy = "Give what select returned, or load it."
    return instance("selection", given, Selection, expected="a Selection", remedy=remedy)


def as_labels(labels: list[Any]) -> npt.NDArray[Any]:
    """Return labels of groups as an array: text as objects, of any length and to the last letter."""
    return np.array(labels, dtype=object if isinstance(labels[0], str) else None)
