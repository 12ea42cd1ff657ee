"""A selection laid over its source again: who could be picked at each step, beside which rows, and at what worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.analysis.inputs import BESIDE_DATA, check_names
from spice_rs.analysis.prefixes import (
    MOST_RECURSIVE,
    MOST_SIGNAL,
    Floats,
    Integers,
    Positions,
    Prefixes,
    cost,
    first_near_duplicates,
)
from spice_rs.data.matching import check_index_column
from spice_rs.errors import InvalidInputError
from spice_rs.memory import check_memory
from spice_rs.nouns import counted
from spice_rs.selection.columns import Columns, digest, row_list
from spice_rs.selection.conditions import told, weighted
from spice_rs.selection.constraints import COLUMNS, PER_ROW, PerRow
from spice_rs.selection.form import penalty_of
from spice_rs.selection.options import Constraints
from spice_rs.selection.recounted import Known, check_numbers, check_source, places_of, window_places
from spice_rs.selection.represent import represented_again
from spice_rs.selection.result import Selection, as_selection
from spice_rs.selection.target import aimed_again
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import open_source

BASIS_CELLS = 1 << 27
"""Cells that the matrices of several prefixes may take together: 1 GiB."""


@dataclass(frozen=True)
class Run:
    """One greedy run: the whole selection, or one window of it.

    Attributes:
        first: rank of its first pick.
        picks: (m,) positions of its picks.
        candidates: (n,) positions that it picked from, by ascending dataset row.
    """

    first: int
    picks: Positions
    candidates: Positions


class Replay:
    """A selection and its source, checked to belong together.

    Args:
        selection: the picks.
        source: what they were picked from, as for `spice_rs.select`.
        given: what the selection was made with besides numbers.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Attributes:
        source: the open source.
        initial: (i,) positions that counted as picked.
        per_row: the (n,) numbers of each of `PER_ROW` that is known.
        weights: (n,) weight of each row, or None; those of the caller times those of a target.
        reading: how Δ is to be read, as for `Prefixes`.
        missing: arguments that the selection was made with and that were not given. What needs them is not known.

    Raises:
        InvalidInputError: something given is not what the selection was made with, or `weights` or `initial` lack.
        StoreMismatchError: the source is not what was selected from.
        CorruptStoreError: the selection was altered since: its numbers are not those of its rows.
    """

    def __init__(
        self,
        selection: Selection,
        source: Any,
        given: Mapping[str, Any] | None = None,
        *,
        dim: int | None = None,
        dtype: str | None = None,
    ) -> None:
        check_names(given or {})
        given = {name: value for name, value in (given or {}).items() if value is not None}
        check_index_column(given.get("index_column"), given.get("data"))
        selection = as_selection(selection)
        self.selection, self.settings = selection, selection.settings
        self.source = open_source(source, dim=dim, dtype=dtype)
        check_source(selection.file or "the selection", self.settings, self.source)
        self.alpha = float(self.settings["alpha"])
        self.order = self.source.dataset_order().astype(np.int64)
        self._name = selection.file or "selection"
        self.picks = places_of(self._name, selection.as_run(), self.source)
        columns = self._columns(given)
        self._check_asked(given)
        self.missing = self._missing(given)
        for name in ("weights", "initial"):
            if name in self.missing:
                raise InvalidInputError(
                    f"{name}: found None, expected what the selection was made with: every Δ depends on it. Give it again."
                )
        self.initial = self._rows("initial", given.get("initial"), ordered=True)
        self.excluded = self._rows("exclude", given.get("exclude"), ordered=False)
        self.target = selection.target
        self.aimed = None if self.target is None else aimed_again(self.target, self.source)
        self.per_row = {
            each.name: self._numbers(columns, each, given[each.name])
            for each in PER_ROW
            if each.name in given and self.settings[each.name] is not None
        }
        self.weights = weighted(self.per_row.get("weights"), self.aimed)
        self.costs = None
        if self.settings["budget"] is not None and "costs" not in self.missing:
            self.costs = self._costs(columns, given.get("costs"))
        self.groups = self._groups(columns, given.get("groups"))
        self.reading = {"diagonal": "diagonal", "scalar": "scalar"}.get(self.settings["fisher"], "full")
        if self.settings["method"] == "top_k" and self.reading != "scalar":
            self.reading = "alone"
        self.penalty = penalty_of(self.settings)
        self._check_numbers()

    @cached_property
    def reader(self) -> RowReader:
        """The rows as the selection saw them: scaled, and for representative picks in their geometry."""
        represented = represented_again(self.settings, self.source)
        return self.plain if represented is None else represented.reader(self.source)

    @cached_property
    def plain(self) -> RowReader:
        """The rows scaled as the selection scaled them."""
        return RowReader(self.source, self.settings["normalize"])

    @property
    def dim(self) -> int:
        """Columns of the rows as the selection saw them."""
        represented = self.settings.get("represent")
        return self.source.dim if represented is None else int(represented["directions"])

    @property
    def contested(self) -> bool:
        """Whether all is known that decides who could be picked and at what score."""
        return not self.missing

    def runs(self) -> list[Run]:
        """Return the runs, in the order of their picks."""
        size = self.settings["pool_size"]
        if size is None:
            free = np.ones(self.source.rows, bool)
            free[self.initial] = False
            free[self.excluded] = False
            if self.aimed is not None:
                free[self.aimed.barred] = False
                free[self.picks] = True  # rows to include
            return [Run(0, self.picks, self.order[free[self.order]])]
        shuffled, windows = window_places(self.source, self.picks, size, self.settings["seed"])
        ranked = np.empty(self.source.rows, np.int64)
        ranked[self.order] = np.arange(self.source.rows)
        starts = np.flatnonzero(np.diff(windows, prepend=-1))
        found = []
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(windows)], strict=True):
            window = shuffled[windows[start] * size : (windows[start] + 1) * size]
            found.append(Run(start, self.picks[start:end], window[np.argsort(ranked[window])]))
        return found

    def rows_of(self, run: Run) -> tuple[Floats, Floats | None]:
        """Return the initial rows and the picks of a run, (i + m, d), and their weights."""
        positions = np.concatenate([self.initial, run.picks])
        check_memory(
            f"{counted(len(positions), 'pick')} and initial rows of {counted(self.dim, 'column')} to look at",
            # The rows, the same as the core keeps them, with their means, and products of them.
            72.0 * len(positions) * self.dim + 32.0 * min(len(positions), MOST_RECURSIVE) ** 2,
            "Look at a selection of fewer rows, or of gradients of fewer columns.",
            field="selection",
        )
        weights = None if self.weights is None else self.weights[positions]
        return self.reader.read(positions), weights

    def batches(
        self, selected: Floats, weights: Floats | None, sizes: Integers, *, signal: float
    ) -> Iterator[tuple[slice, Prefixes]]:
        """Yield prefixes of these sizes for rows of αw‖g‖² ≤ `signal`, as many at a time as fit in memory."""
        dim, start = self.dim, 0
        cells = np.where(2 * sizes < dim, sizes * (dim + sizes), dim * dim) + dim
        while start < len(sizes):
            end = len(sizes)
            if self.reading == "full" and signal * len(selected) > _core.MOST_GROWTH:
                within = np.cumsum(cells[start:]) <= BASIS_CELLS
                end = start + max(1, int(within.sum()))
            part = slice(start, end)
            yield (
                part,
                Prefixes(
                    selected,
                    self.alpha,
                    sizes[part],
                    weights=weights,
                    reading=self.reading,
                    signal=signal,
                ),
            )
            start = end

    def is_recursive(self, sizes: Integers, rows: int, largest: float) -> bool:
        """Whether measuring rows of α‖g‖² ≤ `largest` at these prefixes by recursion is cheaper, and exact enough."""
        if not len(sizes) or largest > MOST_SIGNAL or sizes[-1] > MOST_RECURSIVE:
            return False
        return self.price(sizes, rows, recursive=True) <= self.price(sizes, rows, recursive=False)

    def price(self, sizes: Integers, rows: int, *, recursive: bool) -> float:
        """Return about how many multiplications it takes to measure so many rows at these prefixes."""
        if self.reading != "full":
            return float(rows) * self.dim * len(sizes)
        return cost(sizes, rows, self.dim, recursive=recursive)

    @cached_property
    def constraints(self) -> Constraints:
        """What decided who could be picked and what a row was worth, as far as it is known."""
        settings, quotas = self.settings, self.selection.quotas
        minima = maxima = None
        if quotas:
            minima = np.array([float(quota[1]) for quota in quotas])
            maxima = np.array([math.inf if quota[2] is None else float(quota[2]) for quota in quotas])
        # Of groups that were not given the quotas say nothing of any row.
        groups = np.zeros(self.source.rows, np.int64) if quotas and self.groups is None else self.groups
        return Constraints(
            per_row=told(self.per_row, settings["prior_weight"], self.costs if self.multiplied else None),
            groups=groups,
            minima=minima,
            maxima=maxima,
            costs=self.costs,
            budget=settings["budget"],
        )

    def score(self, gain: Floats, conflict: Floats, positions: Positions) -> Floats:
        """Return the (b, s) scores of rows with (b, s) gains and conflicts."""
        per_row = {name: values[positions] for name, values in self.constraints.per_row.items()}
        scores = _core.scores(
            Constraints(per_row=per_row),
            positions=np.repeat(np.arange(len(positions)), gain.shape[1]),
            gains=np.ascontiguousarray(gain, np.float64).ravel(),
            conflicts=np.ascontiguousarray(conflict, np.float64).ravel(),
            conflict_penalty=self.penalty,
        )
        return scores.reshape(gain.shape)

    def first_near(self, rows: Floats, selected: Floats) -> tuple[Integers, Floats] | None:
        """Return for each of (b, d) rows the place of the first selected row that it is too similar to, and their cosine.

        Of a row that is too similar to none the number of selected rows; None if nothing was asked about similarity.
        """
        limit = self.settings["max_similarity"]
        return None if limit is None else first_near_duplicates(rows, selected, limit)

    @property
    def multiplied(self) -> bool:
        """Whether gains counted per cost."""
        compared = self.selection.compared
        return compared is not None and compared["kept"] == "costed"

    def allowances(self) -> Floats | None:
        """Return (m + 1, g) the largest cost of a row of each group that limits admit before each pick, and after all.

        Costs are 1 without a budget of cost; None where there are no limits.
        """
        k = self.source.rows if self.settings["k"] is None else self.settings["k"]
        found = _core.allowances(self.constraints, positions=self.picks, k=k)
        return None if found is None else found.reshape(len(self.picks) + 1, -1)

    def costs_of(self, positions: Positions) -> Floats:
        """Return what rows cost; 1 without a budget of cost."""
        return np.ones(len(positions)) if self.costs is None else self.costs[positions]

    def codes_of(self, positions: Positions) -> Integers:
        """Return the numbers of the rows' groups; 0 without groups."""
        return np.zeros(len(positions), np.int64) if self.groups is None else self.groups[positions]

    def _check_numbers(self) -> None:
        """Refuse numbers of the selection that are not those of its rows, as far as what was given tells them."""
        series: dict[str, npt.NDArray[Any]] = {}
        if self.costs is not None:
            series["costs"] = self.costs[self.picks]
        if self.groups is not None:
            series["groups"] = self.groups[self.picks]
        if self.aimed is not None:
            series["relevance"] = self.aimed.best[self.picks]
        if not set(self.missing) & {"prior", "costs"}:
            gains, conflict = self.selection.gains[:, None], self.selection.conflict[:, None]
            series["scores"] = self.score(gains, conflict, self.picks)[:, 0]
        initial = None if self.settings["initial"] is None else self.initial
        told = Known(self.weights, initial, series, self.reader)
        check_numbers(self._name, self.selection.as_run(), self.source, told)

    # --- what was given, against what the selection remembers of it ------------------------------------------------

    def _check_asked(self, given: Mapping[str, Any]) -> None:
        """Refuse what the selection was made without: its numbers know nothing of it."""
        for name in BESIDE_DATA:
            value = given.get(name)
            if value is None or (hasattr(value, "__len__") and len(value) == 0):
                continue
            if self.settings["budget" if name == "costs" else name] is None:
                remedy = (
                    " To compare the values of a column in a report, name it as its column."
                    if name == "groups"
                    else ""
                )
                raise InvalidInputError(
                    f"{name}: found it for a selection that was made without, expected none. Leave it out, or select again"
                    f" with it.{remedy}"
                )

    def _missing(self, given: Mapping[str, Any]) -> list[str]:
        names = [
            name
            for name in BESIDE_DATA
            if name != "costs" and self.settings[name] is not None and name not in given
        ]
        if self.selection.target is not None and self.selection.target.labels is not None:
            names = [name for name in names if name != "groups"]  # they follow from the target
        by_tokens = self.source.num_tokens is not None
        if self.settings["budget"] is not None and "costs" not in given and not by_tokens:
            names.append("costs")
        return names

    def _columns(self, given: Mapping[str, Any]) -> Columns:
        values = {name: given.get(name) for name in COLUMNS if self.settings[name] is not None}
        named = any(isinstance(value, str) for value in values.values())
        data, index_column = (given.get("data"), given.get("index_column")) if named else (None, None)
        return Columns(self.source, data, values, index_column)

    def _same(self, name: str, found: str, expected: str) -> None:
        if found != expected:
            raise InvalidInputError(
                f"{name}: found values of hash {found}, expected {expected}: those the selection was made with. Give the"
                " same again, or leave it out."
            )

    def _numbers(self, columns: Columns, of: PerRow, value: Any) -> Floats:
        numbers = columns.numbers(of.name, value, positive=of.positive)
        self._same(of.name, digest(numbers), self.settings[of.name]["sha256"])
        return columns.by_position(numbers)

    def _costs(self, columns: Columns, value: Any) -> Floats:
        if value is None:
            assert self.source.num_tokens is not None  # or costs would be missing
            numbers = self.source.num_tokens.astype(np.float64)[self.order]
        else:
            numbers = columns.numbers("costs", value, positive=True)
        self._same("costs", digest(numbers), self.settings["costs"]["sha256"])
        return columns.by_position(numbers)

    def _groups(self, columns: Columns, value: Any) -> Integers | None:
        if self.settings["groups"] is None:
            return None
        if value is None:
            aims = self.target is not None and self.target.labels is not None
            return self.aimed.serves if self.aimed is not None and aims else None
        labels, codes = columns.labels("groups", value)
        self._same("groups", digest(labels, codes), self.settings["groups"]["sha256"])
        return columns.by_position(codes)

    def _rows(self, name: str, value: Any, *, ordered: bool) -> Positions:
        if self.settings[name] is None or value is None:
            return np.empty(0, np.int64)
        rows = row_list(name, value.indices if isinstance(value, Selection) else value)
        listed = rows if ordered else np.sort(rows)
        self._same(name, digest(listed), self.settings[name]["sha256"])
        return self.source.positions(rows, name).astype(np.int64)


def sampled(candidates: Positions, most: int, seed: int) -> Positions:
    """Return at most so many of the candidates, drawn with a seed, in their order."""
    if len(candidates) <= most:
        return candidates
    drawn = np.random.default_rng(seed).choice(len(candidates), most, replace=False)
    return candidates[np.sort(drawn)]


def log_spaced(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most so many of the ranks 0 … count − 1, close together at first; the first and the last are there."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, most)).astype(np.int64)) - 1
