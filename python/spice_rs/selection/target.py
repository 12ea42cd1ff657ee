"""What a selection is for: the relevance of rows to a target, and what follows from it for who is picked.

With unit rows u of the pool, their mean μ and the mean t̄ of the unit rows of a target, q = t̄ − μ is the *contrast*: what
the target asks for beyond what any record teaches. The *relevance* of a row is r = cos(u − μ, q). Rows with r ≤ 0 are no
candidates; the others weigh w = r^τ in the Fisher information. (Inner products with t̄ alone rank short answers first: all
rows share a direction, and these lie closest to it. Centring the rows changes no such ranking; centring the target does.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import real
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted
from spice_rs.printable import one_line
from spice_rs.progress import Progress, counting
from spice_rs.selection.columns import Columns, Label
from spice_rs.selection.form import MOST_WEIGHT
from spice_rs.selection.options import Floats, Rows
from spice_rs.store.alike import check_alike
from spice_rs.store.sources import Source, opened_beside

CHANCE = 1.5
"""A contrast below this many times its standard error may be that of any rows of the pool."""


TOGETHER = "Put the records into one file, extract it once, and tell them apart with target_groups."
"""What to do with several targets."""

NOTHING = 1e-200
"""Weight of a row that points away from a target, in place of 0: it adds to no sum, and its angles are what they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What a selection was made for.

    Attributes:
        name: what the target's source is called.
        rows: its rows T.
        zero_rows: those that are zero: they have no direction and do not count.
        fingerprint: hash of its rows.
        weight: τ; a row weighs r^τ.
        labels: the g groups of `target_groups`; None without: then g is 1.
        contrast: (g,) float64 ‖q‖ of each group.
        noise: (g,) float64 standard error of each t̄: what ‖q‖ of as many random rows would be; nan of a single row.
        away: rows of the pool with r ≤ 0, beside those that are excluded, initial or in the target.
        candidates: rows that were left to pick from.
        overlap: (o,) int64 dataset rows of the pool that were left out since the target has them: the same record, or a
            cosine above 0.999.
        mean: (d,) float64 μ.
        directions: (g, d) float64 q of each group.
    """

    name: str
    rows: int
    zero_rows: int
    fingerprint: str
    weight: float
    labels: list[Label] | None
    contrast: Floats
    noise: Floats
    away: int
    candidates: int
    overlap: npt.NDArray[np.int64]
    mean: Floats
    directions: Floats

    @property
    def is_chance(self) -> list[bool]:
        """Whether the contrast of each group is too short to tell it from the pool; of a single row, whether it is 0."""
        return [_is_chance(q, noise) for q, noise in zip(self.contrast, self.noise, strict=True)]

    def settings(self) -> dict[str, Any]:
        """Return all but the arrays of d numbers and the list of rows, as `Selection.settings` holds it."""
        return {
            "name": self.name,
            "rows": self.rows,
            "zero_rows": self.zero_rows,
            "fingerprint": self.fingerprint,
            "weight": self.weight,
            "labels": self.labels,
            "contrast": self.contrast.tolist(),
            "noise": [None if math.isnan(each) else each for each in self.noise.tolist()],
            "away": self.away,
            "candidates": self.candidates,
            "overlap": len(self.overlap),
        }

    @staticmethod
    def of(settings: dict[str, Any], mean: Floats, directions: Floats, overlap: Rows) -> Target:
        """Return the target of a file: the inverse of `settings`."""
        numbers = {name: settings[name] for name in settings if name not in ("contrast", "noise", "overlap")}
        noise = np.array([math.nan if each is None else each for each in settings["noise"]])
        return Target(
            **numbers,
            contrast=np.array(settings["contrast"], np.float64),
            noise=noise,
            overlap=overlap,
            mean=mean,
            directions=directions.reshape(-1, len(mean)),
        )

    def __repr__(self) -> str:
        return (
            f"Target({self.rows} rows of {one_line(self.name)}, ‖q‖ {_numbers(self.contrast)} beside"
            f" {_numbers(self.noise)} of chance, {self.away} rows point away, {len(self.overlap)} left out as its own,"
            f" {self.candidates} candidates)"
        )


@dataclass(frozen=True)
class Aimed:
    """What a target means for each row of a source, by position.

    Attributes:
        relevance: (n, g) float64 r to each group.
        weight: τ.
        overlap: positions of rows that the target has too.
    """

    relevance: Floats
    weight: float
    overlap: Rows

    @cached_property
    def best(self) -> Floats:
        """(n,) r to the group that a row serves best."""
        best: Floats = self.relevance.max(axis=1)
        return best

    @property
    def serves(self) -> Rows:
        """(n,) number of that group, of equals the first."""
        best: Rows = self.relevance.argmax(axis=1).astype(np.int64)
        return best

    @property
    def points_away(self) -> npt.NDArray[np.bool_]:
        """(n,) whether a row has nothing to give: r ≤ 0, or a weight that is no number above 0."""
        return self._powers <= 0

    @property
    def barred(self) -> npt.NDArray[np.bool_]:
        """(n,) whether a row cannot be picked."""
        barred = self.points_away
        barred[self.overlap] = True
        return barred

    @property
    def weights(self) -> Floats:
        """(n,) w of each row that points to the target, and next to nothing of the others."""
        powers = self._powers
        return np.where(powers > 0, powers, NOTHING)

    @cached_property
    def _powers(self) -> Floats:
        """Return r^τ, the same on every machine, and 0 for r ≤ 0."""
        positive = np.maximum(self.best, 0.0)
        if self.weight == 1:
            return positive
        powers = np.zeros_like(positive)
        above = np.flatnonzero(positive)
        powers[above] = [math.pow(each, self.weight) for each in positive[above].tolist()]
        return powers


@dataclass(frozen=True)
class Measured:
    """A target beside a source: what `_core.relevance` found, in the source's words."""

    target: Source
    labels: list[Label] | None
    relevance: Floats
    overlap: Rows
    found: dict[str, Any]


def measure(
    source: Source,
    target: Any,
    groups: Any,
    data: Any,
    *,
    partial: bool,
    threads: int | None,
    progress: Progress,
    dim: int | None = None,
    dtype: str | None = None,
) -> Measured:
    """Return the relevance of all rows of a source to a target.

    Args:
        source: the pool.
        target: as for `spice_rs.select`.
        groups: (T,) label of each target row, or a column of `data`; None for one group.
        data: what the target was extracted from.
        partial: whether a target whose extraction has not ended will do.
        threads: to use.
        progress: show a bar, or do not; functions are for picks, and hear nothing of it.
        dim: columns of a headerless target, as of the source.
        dtype: element type of a headerless target.

    Raises:
        InvalidInputError: the target is no source, is the pool itself, or has no direction.
        StoreMismatchError: it was extracted otherwise than the pool.
    """
    if target is None:
        raise InvalidInputError("target: found None, expected a gradient store or another source. Give one.")
    aim = _opened(target, dim, dtype)
    aim.check_finished(partial)
    check_alike("target", aim, source)
    labels, codes = None, np.zeros(aim.rows, np.int64)
    if groups is not None:
        columns = Columns(aim, data, {"target_groups": groups}, data_field="target_data", joins=False)
        labels, ordered = columns.labels("target_groups", groups)
        codes = columns.by_position(ordered)
    elif data is not None:
        raise InvalidInputError(
            "target_data: found it without target_groups, expected both. Name a column in target_groups, or leave the data"
            " out."
        )
    shown = None if callable(progress) else progress
    _check_rows(aim, threads)
    with counting(shown, "relevance") as count:
        found = _core.relevance(
            source.pool("unit"),
            aim.pool("unit"),
            codes,
            1 if labels is None else len(labels),
            threads=threads,
            progress=count,
        )
    if found["fingerprint"] == found["target_fingerprint"]:
        raise InvalidInputError(
            f"target: found the rows of {source.description} itself, expected others: a pool asks for nothing beyond"
            " itself. Give the store of some tens of records of what the model is to become good at."
        )
    relevance = found["values"].reshape(source.rows, -1)
    overlap = set(found["overlap_rows"].tolist())
    if source.records is not None and aim.records is not None:
        overlap.update(np.flatnonzero(np.isin(source.records, aim.records)).tolist())
    order = np.array(sorted(overlap), np.int64)
    return Measured(aim, labels, relevance, order, found)


def _opened(target: Any, dim: int | None, dtype: str | None) -> Source:
    """Open a target; of what can be mistaken for one it is said how to make one of it."""
    if isinstance(target, Mapping):
        raise InvalidInputError(f"target: found {type(target).__name__}, expected one source. {TOGETHER}")
    several = isinstance(target, list | tuple) and len(target) > 0
    if several and all(isinstance(each, Mapping) for each in target):
        raise InvalidInputError(
            "target: found a list of records, expected their gradients. Extract them first"
            " (`spice_rs.extract(data=…, out=…, like=…)`), and give that store."
        )
    try:
        return opened_beside(target, "target", dim, dtype)
    except InvalidInputError as error:
        message, twice, _ = str(error).partition(" If they are the same rows, ")
        if several and twice:
            raise InvalidInputError(f"{message} {TOGETHER}") from error
        raise


def _check_rows(aim: Source, threads: int | None) -> None:
    """Refuse rows of a target that cannot be used, by the name of the target: one would look for them in the pool."""
    try:
        _core.norms_sq(aim.pool("unit"), threads=threads)
    except InvalidInputError as error:
        raise InvalidInputError(f"target: {aim.description}: {error}") from error


def aim(
    measured: Measured,
    source: Source,
    weight: float,
    free: npt.NDArray[np.bool_],
    include: Rows | None = None,
) -> tuple[Target, Aimed]:
    """Return what a selection remembers of a target, and what it means for each row.

    Args:
        measured: the target beside the source.
        source: the pool.
        weight: τ.
        free: (n,) rows that are neither excluded nor initial.
        include: positions that are picked whatever they are to the target.

    Raises:
        InvalidInputError: nothing points to the target.
    """
    found, target = measured.found, measured.target
    aimed = Aimed(measured.relevance, weight, measured.overlap)
    away = aimed.points_away
    overlaps = np.zeros(source.rows, bool)
    overlaps[measured.overlap] = True
    left = free & ~away & ~overlaps
    remembered = Target(
        name=target.description,
        rows=target.rows,
        zero_rows=found["zero_rows"],
        fingerprint=target.fingerprint or found["target_fingerprint"],
        weight=weight,
        labels=measured.labels,
        contrast=found["norms"],
        noise=found["noise"],
        away=int((free & away & ~overlaps).sum()),
        candidates=int(left.sum()),
        overlap=np.sort(np.array([source.dataset_row(each) for each in measured.overlap.tolist()], np.int64)),
        mean=found["mean"],
        directions=found["directions"].reshape(len(found["norms"]), -1),
    )
    if not left.any() and include is None:
        raise InvalidInputError(
            f"target: found no row of {source.description} that points to it and can be picked"
            f" ({_without(remembered, int((~free).sum()))}), expected some. {_remedy(remembered, free, away)}"
        )
    return remembered, aimed


def aimed_again(target: Target, source: Source, threads: int | None = None) -> Aimed:
    """Return what a target that a selection remembers means for each row of its source: the same bits as then."""
    values = _core.relevance_to(
        source.pool("unit"),
        target.mean,
        np.ascontiguousarray(target.directions).ravel(),
        threads=threads,
        progress=None,
    )
    overlap = source.positions(target.overlap).astype(np.int64)
    return Aimed(values.reshape(source.rows, -1), target.weight, overlap)


def check_weight(value: Any) -> float:
    """Return τ as a number.

    Raises:
        InvalidInputError: it is none, or out of range.
    """
    remedy = "1 weighs rows by their relevance, 0 all alike that point to the target."
    return real("target_weight", value, least=0, most=MOST_WEIGHT, remedy=remedy)


def too_few(k: int, target: Target, rows: int, taken: int) -> InvalidInputError:
    """Return the error of more rows wanted than there are for a target.

    Args:
        k: rows wanted.
        target: what they are for.
        rows: that can be picked, those to include among them.
        taken: rows that are excluded or initial.
    """
    return InvalidInputError(
        f"k: found {k}, expected at most {rows}, the rows that point to the target ({_without(target, taken)}). Select"
        " fewer, or give a target that more of the pool serves."
    )


def findings(target: Target, groups: npt.NDArray[Any] | None) -> list[str]:
    """Return a sentence for all that a target is not good for.

    Args:
        target: of a selection.
        groups: labels of the picks; None where there are no groups.
    """
    return [
        *chance_findings(target),
        *zero_findings(target.rows, target.zero_rows),
        *_unserved(target, groups),
    ]


def zero_findings(rows: int, zero_rows: int) -> list[str]:
    """Return a sentence about rows of a target that say nothing, if there are any."""
    if not zero_rows:
        return []
    return [
        f"target: {zero_rows} of its {counted(rows, 'row')} {'is' if zero_rows == 1 else 'are'} all zero and"
        f" {'does' if zero_rows == 1 else 'do'} not count. Leave such records out, or look why they have no gradient."
    ]


def _unserved(target: Target, groups: npt.NDArray[Any] | None) -> list[str]:
    """Return a sentence about groups of a target that no pick is for, if there are any."""
    if target.labels is None or groups is None or not len(groups):
        return []
    picked = set(groups.tolist())
    missing = [label for label in target.labels if label not in picked]
    if not missing:
        return []
    shown = ", ".join(repr(label) for label in missing[:5]) + (", …" if len(missing) > 5 else "")
    return [
        f"target_groups: no pick is for {len(missing)} of {counted(len(target.labels), 'group')} ({shown}): there are fewer"
        " picks than groups, or no row that serves them best is left. Select more, or give fewer groups."
    ]


def chance_findings(target: Target) -> list[str]:
    """Return a sentence for every group whose contrast may be chance."""
    return chance_of(target.labels, target.contrast, target.noise)


def chance_of(labels: list[Label] | None, contrast: Floats, noises: Floats) -> list[str]:
    """The same of a target that no selection remembers: its labels, (g,) ‖q‖, and (g,) its standard error."""
    names = [""] if labels is None else [f" of group {label!r}" for label in labels]
    return [
        f"target{name}: its contrast to the pool, ‖q‖ = {q:.3f}, is less than {CHANCE:g} times what chance makes of as many"
        f" rows ({noise:.3f}): the target looks like the pool itself, and picks for it are hardly better than any. Select"
        " without target, or give more records, or others, of what is wanted."
        for name, q, noise in zip(names, contrast, noises, strict=True)
        if _is_chance(q, noise)
    ]


def _is_chance(contrast: float, noise: float) -> bool:
    return bool(contrast < CHANCE * noise or contrast < 1e-9)


def _without(target: Target, taken: int) -> str:
    others = f", {counted(taken, 'row')} excluded or initial" if taken else ""
    return f"{counted(target.away, 'row')} with r ≤ 0, {len(target.overlap)} its own{others}"


def _remedy(target: Target, free: npt.NDArray[np.bool_], away: npt.NDArray[np.bool_]) -> str:
    """Return what to do where nothing is left for a target."""
    if (~free & ~away).any():
        return "Exclude fewer."
    found = chance_findings(target)
    return f"({found[0]})" if found else "Give another target, or a pool that has something of it."


def _numbers(values: Floats) -> str:
    return ", ".join(f"{each:.3f}" for each in values.tolist())
