"""Why a row was not picked: what it was worth at every step, and what would have had to be otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spice_rs import _core
from spice_rs.analysis.explained import Bools, Explanation
from spice_rs.analysis.inputs import SelectionInputs, takes_inputs
from spice_rs.analysis.prefixes import MOST_RECURSIVE, Floats, Integers, Positions, Prefixes
from spice_rs.analysis.replay import Replay, Run, log_spaced
from spice_rs.analysis.waiting import waited
from spice_rs.arguments import is_whole, mapping_or_none
from spice_rs.data.excerpt import excerpt
from spice_rs.errors import InvalidInputError
from spice_rs.selection.columns import row_list
from spice_rs.selection.constraints import PER_ROW
from spice_rs.selection.picks import records_of
from spice_rs.selection.result import Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack

TIED = _core.SLACK
"""Scores that are closer than this part of themselves may be equal: the core tells them apart in its own order."""

MOST_STEPS = 512
"""Steps at which a row is scored, where there are too many picks for all."""

AFFORDABLE = 5e10
"""Multiplications above which a row is scored at fewer steps, though at no fewer than `FEWER_STEPS`: some seconds."""

FEWER_STEPS = 24

MOST_CELLS = 1 << 24
"""Rows that are explained at once, times the picks."""


@takes_inputs
def explain(
    selection: Selection,
    source: Any,
    rows: Any,
    *,
    columns: Mapping[str, str] | None = None,
    dim: int | None = None,
    dtype: str | None = None,
    **given: Unpack[SelectionInputs],
) -> list[Explanation]:
    """Return why each of these rows was not picked, or that it was.

    A row that conditions had not shut out lost at every step to the pick. The step at which it came closest decides the
    reason: without its own conflict it would have won there or elsewhere ("conflict"); alone it is worth more than the
    last pick was, but what was selected has it already ("redundant"); or it is worth too little even alone
    ("small_gain"). Where only conditions kept it from winning, the one that did is the reason. Beside thousands of picks
    the row is scored at some of the steps alone, close together at first.

    Args:
        selection: the picks.
        source: what they were picked from, as for `spice_rs.select`.
        rows: (r,) dataset rows, or one of them.
        data: what the source was extracted from: the records of the rows, and of the picks that are nearest to them, are
            shown, and columns can be named.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        columns: field → column of the data, as for `spice_rs.extract`, by which the prompt and the answer of a record are
            found; by default as the rows were extracted.
        groups: as `select` had it. What is given of this and the next is checked to be the same as then; what is not
            given cannot be the reason. `initial` and `weights` have to be given, and so has `prior`.
        **given: as `select` had them: see `SelectionInputs`.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: a row is not in the source, something given is not what the selection was made with, or the data
            are not those that the rows were extracted from.
        StoreMismatchError: the source is not what was selected from.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.float32([[3, 0], [2.9, 0.1], [0, 1], [-3, 0], [-2, 1]])
        >>> [why] = spice_rs.explain(spice_rs.select(rows, 3, conflict_penalty=0.5), rows, 4)
        >>> why.reason, why.redundant_with
        ('conflict', 2)
    """
    if is_whole(rows):
        rows = [rows]
    wanted, columns = row_list("rows", rows), mapping_or_none("columns", columns)
    replay = Replay(selection, source, given, dim=dim, dtype=dtype)
    replay.source.warn_unfinished()
    for each in PER_ROW:
        if each.scored and each.name in replay.missing:
            raise InvalidInputError(
                f"{each.name}: found None, expected what the selection was made with. Give it again."
            )
    if replay.multiplied and "costs" in replay.missing:
        raise InvalidInputError(
            "costs: found None, expected what the selection was made with. Give it again."
        )
    positions = replay.source.positions(wanted)
    explained: dict[int, Explanation] = {}
    for run in replay.runs():
        windowed = replay.settings["pool_size"] is not None
        here = positions[np.isin(positions, run.candidates)] if windowed else positions
        at_once = max(1, MOST_CELLS // (1 + len(replay.initial) + len(run.picks)))
        for start in range(0, len(here), at_once):
            some = here[start : start + at_once]
            explained.update(zip(some.tolist(), _Explainer(replay, run, some).all(), strict=True))
    for position in positions.tolist():
        if position not in explained:
            explained[position] = _unpicked_window(replay, position)
    return _with_records([explained[position] for position in positions.tolist()], replay, given, columns)


def _with_records(
    found: list[Explanation], replay: Replay, given: SelectionInputs, columns: Mapping[str, str] | None
) -> list[Explanation]:
    """Return explanations with the records of their rows and of the picks that they name, where there are data."""
    if (data := given.get("data")) is None:
        if columns is not None:
            raise InvalidInputError(
                "columns: found them without data, expected both. Give the data whose columns they are, or leave them out."
            )
        return found
    belonging = replay.source.belonging
    layout = {} if belonging is None or belonging.own else dict(belonging.layout)
    if columns is not None:
        layout["columns"] = dict(columns)
    named = {
        row for each in found for row in (each.row, each.nearest, each.redundant_with) if row is not None
    }
    rows = sorted(named)
    records = records_of(rows, data, belonging, index_column=given.get("index_column"))
    texts: dict[int | None, str] = {
        row: excerpt(record, layout) for row, record in zip(rows, records, strict=True)
    }
    return [
        replace(
            each,
            record=texts[each.row],
            nearest_record=texts.get(each.nearest),
            redundant_record=texts.get(each.redundant_with),
        )
        for each in found
    ]


class _Explainer:
    """Explains rows of one run."""

    def __init__(self, replay: Replay, run: Run, positions: Positions) -> None:
        self.replay, self.run, self.positions = replay, run, positions
        self.before, self.selection = len(replay.initial), replay.selection
        self.selected, weights = replay.rows_of(run)
        self.places = np.concatenate([replay.initial, run.picks])
        own = replay.reader.read(positions)
        own_weights = None if replay.weights is None else replay.weights[positions]
        self.norms = np.sqrt((own**2).sum(1))
        squares = self.norms**2 * (1.0 if own_weights is None else own_weights)
        signal = replay.alpha * float(squares.max())
        count = len(run.picks)
        most = count if count <= MOST_RECURSIVE else MOST_STEPS
        while True:
            self.ranks = log_spaced(count, most)
            # Of the row itself after it was picked nothing is asked.
            sizes = np.concatenate([self.before + self.ranks, [len(self.selected)]])
            recursive = replay.is_recursive(sizes, len(positions), signal)
            if most <= FEWER_STEPS or replay.price(sizes, len(positions), recursive=recursive) <= AFFORDABLE:
                break
            most = max(FEWER_STEPS, most // 2)
        shape = (len(positions), len(sizes))
        self.gain, self.conflict = np.empty(shape), np.empty(shape)
        for part, prefixes in replay.batches(self.selected, weights, sizes, signal=signal):
            measured = prefixes.measure(own, own_weights)
            self.gain[:, part], self.conflict[:, part] = measured.gain, measured.conflict
            self.base = measured.base
        self.near = replay.first_near(own, self.selected)
        self.scores = replay.score(self.gain, self.conflict, positions)
        # Beside nothing, the score is that of Δ(∅) alone.
        self.alone = replay.score(self.base[:, None], np.zeros((len(positions), 1)), positions)[:, 0]
        self.needed = self.selection.scores[run.first + self.ranks]
        roots = np.ones(len(self.selected)) if weights is None else np.sqrt(weights)
        self._overlaps(own, own_weights, roots)

    def _overlaps(self, own: Floats, own_weights: Floats | None, roots: Floats) -> None:
        """Find what each row is nearest to, and which selected row takes most of its gain."""
        count = len(self.positions)
        self.nearest, self.cosine = np.full(count, -1), np.zeros(count)
        self.thief, self.taken = np.full(count, -1), np.zeros(count)
        if not len(self.selected):
            return
        products = own @ self.selected.T
        lengths = np.outer(self.norms, np.sqrt((self.selected**2).sum(1)))
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        # A pick is not near itself.
        itself = self.positions[:, None] == self.places
        self.nearest = np.argmax(np.where(itself, -1.0, np.abs(cosines)), axis=1)
        self.cosine = cosines[np.arange(count), self.nearest]
        if self.replay.reading != "full" or len(self.selected) > MOST_RECURSIVE:
            return
        # Without y alone gᵀM⁻¹g is larger by z_y²/H_yy, with H = (I + AAᵀ)⁻¹ and z = H·A·g.
        scaled = self.selected * (np.sqrt(self.replay.alpha) * roots)[:, None]
        inverse = waited(np.linalg.inv, np.eye(len(scaled)) + waited(np.matmul, scaled, scaled.T))
        own_roots = np.ones(count) if own_weights is None else np.sqrt(own_weights)
        solved = (own * (np.sqrt(self.replay.alpha) * own_roots)[:, None]) @ scaled.T @ inverse
        more = solved**2 / np.diagonal(inverse)
        self.thief = np.argmax(np.where(itself, -1.0, more), axis=1)
        left = np.exp(self.gain[:, -1])
        self.taken = np.log1p(more[np.arange(count), self.thief] / left)

    def all(self) -> list[Explanation]:
        return [self._one(at, position) for at, position in enumerate(self.positions.tolist())]

    def _one(self, at: int, position: int) -> Explanation:
        replay, run = self.replay, self.run
        row = replay.source.dataset_row(position)
        ranked = np.flatnonzero(run.picks == position)
        allowed, near = self._allowed(at, position)
        gaps = self.needed - self.scores[at, :-1]
        open_ = np.flatnonzero(allowed)
        rank = gap = last_gap = None
        if len(ranked):
            rank, gap = run.first + int(ranked[0]), 0.0
            reason, text = "picked", f"Row {row} was picked: rank {rank}, Δ {self.selection.gains[rank]:.4g}."
        elif position in replay.initial:
            reason, text = (
                "initial",
                f"Row {row} counted as picked before the first pick: it was given in initial.",
            )
        elif position in replay.excluded:
            reason, text = "excluded", f"Row {row} was never to be picked: it was given in exclude."
        elif replay.aimed is not None and replay.aimed.points_away[position]:
            reason, text = (
                "points_away",
                f"Row {row} points away from the target, and so was no candidate: {self._relevance(position)}.",
            )
        elif replay.aimed is not None and position in replay.aimed.overlap:
            reason, text = (
                "in_target",
                f"Row {row} was never to be picked: the target has it too ({self._relevance(position)}).",
            )
        else:
            barred = self._barred(at, position, row, gaps, allowed, near)
            if len(open_):
                # With rows of one length, all have the score of the first pick: a tie says nothing unless it lasts.
                apart = open_[np.abs(gaps[open_]) > TIED * (1.0 + np.abs(self.needed[open_]))]
                closest = int(apart[int(np.argmin(gaps[apart]))]) if len(apart) else int(open_[-1])
                rank, gap = int(run.first + self.ranks[closest]), float(gaps[closest])
                last_gap = float(gaps[open_[-1]])
                reason, text = barred or self._lost(at, row, open_, closest, gaps)
            else:
                cause = "rows to include took all picks" if len(run.picks) else "the run ended before a pick"
                reason, text = barred or ("unknown", f"Row {row} was never scored: {cause}.")
        if replay.aimed is not None and reason not in ("points_away", "in_target"):
            text = f"{text} {self._relevance(position).capitalize()}."
        return Explanation(
            row=row,
            reason=reason,
            text=text,
            rank=rank,
            gap=gap,
            last_gap=last_gap,
            base=float(self.base[at]),
            norm=float(self.norms[at]),
            nearest=self._row_at(self.nearest[at]),
            nearest_cosine=float(self.cosine[at]),
            redundant_with=self._row_at(self.thief[at]),
            taken=float(self.taken[at]),
            ranks=run.first + self.ranks,
            gain=self.gain[at, :-1].copy(),
            conflict=self.conflict[at, :-1].copy(),
            scores=self.scores[at, :-1].copy(),
            needed=self.needed.copy(),
            allowed=allowed,
            relevance=None if replay.aimed is None else float(replay.aimed.best[position]),
        )

    def _relevance(self, position: int) -> str:
        """Return how relevant a row is to the target, and how many are more."""
        assert self.replay.aimed is not None
        best = self.replay.aimed.best
        rank = 1 + int((best > best[position]).sum())
        return f"relevance {best[position]:.3f}, {_ordinal(rank)} of {len(best):,}"

    def _row_at(self, place: int) -> int | None:
        return None if place < 0 else self.replay.source.dataset_row(int(self.places[place]))

    def _allowed(self, at: int, position: int) -> tuple[Bools, Bools]:
        """Return at which steps the row could have been picked, and at which it was too similar to a pick."""
        replay = self.replay
        allowed: Bools = self.ranks >= replay.selection.forced - self.run.first
        near: Bools = np.zeros(len(self.ranks), bool)
        if not {"groups", "costs"} & set(replay.missing) and (limits := replay.allowances()) is not None:
            place = np.array([position])
            most = limits[self.run.first + self.ranks][:, replay.codes_of(place)[0]]
            allowed &= replay.costs_of(place)[0] <= most
        if self.near is not None:
            near = self.near[0][at] < self.before + self.ranks
            allowed &= ~near
        return allowed, near

    def _barred(
        self, at: int, position: int, row: int, gaps: Floats, allowed: Bools, near: Bools
    ) -> tuple[str, str] | None:
        """Return the condition that kept the row from a pick, if one did, and a sentence."""
        replay = self.replay
        contested = self.ranks >= replay.selection.forced - self.run.first
        barred = np.flatnonzero(contested & ~allowed & ((gaps < -TIED) | ~allowed.any()))
        if not len(barred):
            return None
        step = int(barred[0])
        won = f" At rank {int(self.run.first + self.ranks[step])} it would have been picked." * bool(
            gaps[step] < 0
        )
        if near[step]:
            assert self.near is not None
            place, cosine = int(self.near[0][at]), float(self.near[1][at])
            return "near_duplicate", (
                f"Row {row} is a near-duplicate of row {self._row_at(place)}: cosine {cosine:.4f}, with max_similarity"
                f" {replay.settings['max_similarity']:g}.{won}"
            )
        if replay.groups is not None:
            label = replay.selection.quotas[int(replay.groups[position])][0]
            return "group_full", (
                f"Row {row} was shut out by quotas: its group {label!r} had its maximum, or what was left was owed to other"
                f" groups.{won}"
            )
        cost = float(replay.costs_of(np.array([position]))[0])
        return "budget", f"Row {row} was too dear: it costs {cost:g}, more than was left of the budget.{won}"

    def _ties(self, gaps: Floats, step: int) -> bool:
        return bool(abs(gaps[step]) <= TIED * (1.0 + abs(self.needed[step])))

    def _lost(self, at: int, row: int, open_: Integers, closest: int, gaps: Floats) -> tuple[str, str]:
        """Return the reason why a row that could have been picked was not, and a sentence or two."""
        rank, gap, last = int(self.run.first + self.ranks[closest]), float(gaps[closest]), int(open_[-1])
        rival = int(self.selection.indices[rank])
        how_far = f"It came closest at rank {rank}, {gap:.4g} below the score of row {rival}"
        if last != closest:
            how_far += f"; at rank {self.run.first + self.ranks[last]} it was {gaps[last]:.4g} below the pick"
        if gap < 0 and not self._ties(gaps, closest):
            return "unknown", (
                f"Row {row} scored higher than row {rival} at rank {rank}: something that is not given here, or the method"
                f" ({self.replay.settings['method']}), passed it over."
            )
        if self._ties(gaps, last):
            return "tie", (
                f"Row {row} had the score of the last pick it could have been, row"
                f" {int(self.selection.indices[self.run.first + self.ranks[last]])}, but for rounding: equal scores go to"
                " the lowest row."
            )
        penalties = self.replay.penalty * self.conflict[at, :-1]
        without = open_[gaps[open_] - penalties[open_] < -TIED * (1.0 + np.abs(self.needed[open_]))]
        if len(without):
            step = int(without[0])
            where = int(self.run.first + self.ranks[step])
            return "conflict", (
                f"Row {row} lost by its conflict: at rank {where} it pointed against the mean of the picks (conflict"
                f" {self.conflict[at, step]:.3f}, penalty {penalties[step]:.4g}); without that it would have beaten row"
                f" {int(self.selection.indices[where])}. {how_far}."
            )
        if self.alone[at] > self.needed[last]:
            thief, near = self._row_at(self.thief[at]), self._row_at(self.nearest[at])
            most = "" if thief is None else f", most of all row {thief} ({self.taken[at]:.4g} of Δ by itself)"
            like = "" if near is None else f" Nearest pick: row {near}, cosine {self.cosine[at]:.3f}."
            return "redundant", (
                f"Row {row} is redundant: Δ alone is {self.base[at]:.4g}, beside the picks"
                f" {self.gain[at, -1]:.4g}; they have what it would add{most}. {how_far}.{like}"
            )
        return "small_gain", (
            f"Row {row} is worth too little: even alone, its Δ is {self.base[at]:.4g}, and the last pick's score was"
            f" {self.needed[last]:.4g}. {how_far}."
        )


def _ordinal(rank: int) -> str:
    """Return 1st, 2nd, 4,310th."""
    last = {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th") if rank % 100 // 10 != 1 else "th"
    return f"{rank:,}{last}"


def _unpicked_window(replay: Replay, position: int) -> Explanation:
    """Return the explanation of a row whose window has no pick at all."""
    row, nothing = replay.source.dataset_row(position), np.empty(0)
    own = replay.reader.read([position])
    weights = None if replay.weights is None else replay.weights[[position]]
    return Explanation(
        row=row,
        reason="unknown",
        text=f"Row {row} is in a window that was not reached.",
        rank=None,
        gap=None,
        last_gap=None,
        base=float(Prefixes(own[:0], replay.alpha, np.array([0])).measure(own, weights).base[0]),
        norm=float(np.sqrt((own**2).sum())),
        nearest=None,
        nearest_cosine=0.0,
        redundant_with=None,
        taken=0.0,
        ranks=np.empty(0, np.int64),
        gain=nothing,
        conflict=nothing,
        scores=nothing,
        needed=nothing,
        allowed=np.empty(0, bool),
    )
