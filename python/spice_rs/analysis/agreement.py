"""Whether one proxy's gradients choose what another's would: two geometries of the same rows, compared.

A small model serves as a proxy for a large one if what is picked by the small one's gradients carries nearly as much
Fisher information in the large one's. Shared picks alone are too strict a measure: near-duplicates may stand for one
another.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.analysis.spearman import spearman
from spice_rs.arguments import flag_or_none
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.frames import Framed
from spice_rs.nouns import counted
from spice_rs.progress import bar
from spice_rs.selection.arguments import (
    Rows,
    alpha_given,
    count,
    fisher_given,
    penalty,
    rows_of,
    rows_wanted,
    seeded,
    threads_wanted,
)
from spice_rs.selection.presets import Alpha, resolve_alpha
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import log_det, select
from spice_rs.store.sources import Normalize, Source, open_source
from spice_rs.tables import aligned, html_view

Floats = npt.NDArray[np.float64]

ALIKE = _core.SLACK
"""Δ(∅) that differ by less than this share of the largest are rounding (unit rows): they have no order."""


SERIES = ("own_a", "own_b", "b_in_a", "a_in_b", "random_in_a", "random_in_b")
"""U of picks in one's own geometry and the other's."""


@dataclass(frozen=True, repr=False, eq=False)
class Agreement(Framed):
    """How far two sources agree about the rows that both have.

    Attributes:
        rows: n, the number of rows that both have.
        overlap: (k,) float64, entry j − 1: share of A's first j picks that are among B's first j.
        spearman: rank correlation of Δ_x(∅) over the n rows; nan where they are all alike in A or in B.
        sizes: (s,) int64 numbers of picks for which the following are given, up to k.
        own_a: (s,) float64 U of A's picks in A's geometry, in nats.
        own_b: (s,) float64 U of B's picks in B's.
        b_in_a: (s,) float64 U of B's picks in A's.
        a_in_b: (s,) float64 U of A's picks in B's.
        random_in_a: (s,) float64 U of random rows in A's, the mean of several sets.
        random_in_b: (s,) float64 U of the same sets in B's.
        a: A's selection.
        b: B's selection.
    """

    rows: int
    overlap: Floats
    spearman: float
    sizes: npt.NDArray[np.int64]
    own_a: Floats
    own_b: Floats
    b_in_a: Floats
    a_in_b: Floats
    random_in_a: Floats
    random_in_b: Floats
    a: Selection
    b: Selection

    @property
    def chance(self) -> Floats:
        """(k,) float64: `overlap` of two random sets, on average."""
        return np.arange(1, len(self.overlap) + 1) / self.rows

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns k (int64), overlap, chance, and the six series of U (float64), each (s,)."""
        places = self.sizes - 1
        series = {name: getattr(self, name) for name in SERIES}
        return {"k": self.sizes, "overlap": self.overlap[places], "chance": self.chance[places], **series}

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON knows them; those of all sizes as lists."""
        places = self.sizes - 1
        return {
            "rows": self.rows,
            "k": len(self.overlap),
            "spearman": None if math.isnan(self.spearman) else self.spearman,
            "overlap": self.overlap[places].tolist(),
            "chance": self.chance[places].tolist(),
            **{name: getattr(self, name).tolist() for name in ("sizes", *SERIES)},
        }

    def _cells(self) -> list[tuple[str, ...]]:
        header = ("k", "shared", "by chance", "U in B: A's picks", "random", "U in A: B's picks", "random")
        lines: list[tuple[str, ...]] = [header]
        for place, k in enumerate(self.sizes.tolist()):
            shares = (
                self.overlap[k - 1],
                self.chance[k - 1],
                _share(self.a_in_b[place], self.own_b[place]),
                _share(self.random_in_b[place], self.own_b[place]),
                _share(self.b_in_a[place], self.own_a[place]),
                _share(self.random_in_a[place], self.own_a[place]),
            )
            lines.append((f"{k:,}", *("-" if math.isnan(share) else f"{share:.1%}" for share in shares)))
        return lines

    def _notes(self) -> tuple[str, str]:
        correlation = "none, all rows are alike" if math.isnan(self.spearman) else f"{self.spearman:.3f}"
        return (
            f"{counted(self.rows, 'row', form=',')}; rank correlation of Δ(∅): {correlation}",
            "U: as a share of what the other's own picks have",
        )

    def _repr_html_(self) -> str:
        return html_view(self._cells(), *self._notes())

    def __str__(self) -> str:
        return "\n".join([aligned(self._cells()), "", *self._notes()])

    __repr__ = __str__


def agreement(
    a: Any,
    b: Any,
    k: Rows | None = None,
    *,
    alpha: Alpha = 1.0,
    conflict_penalty: float = 0.1,
    fisher: Literal["full", "diagonal", "scalar"] = "full",
    normalize: Normalize = "auto",
    random_sets: int = 5,
    seed: int = 0,
    threads: int | None = None,
    partial: bool = False,
    progress: bool | None = None,
) -> Agreement:
    """Compare what two proxies' gradients choose from the same data.

    Both select k of the rows that they have in common, and the picks of each are judged in the geometry of the other:
    U(S) = log det(I + αF_S) with the other's rows.

    Args:
        a: a source as for `select`, for example a store made with the small proxy.
        b: a source of the same data, for example a store of a sample made with the target model. Its rows may have
            another width.
        k: rows to pick, or a share of the common ones, as for `select`; by default a tenth.
        alpha: weight α of the Fisher information; "auto" as for `select`, in each source by its own rows.
        conflict_penalty: λ.
        fisher: as for `select`; U is always that of the full Fisher information.
        normalize: scale of the rows, as for `select`.
        random_sets: number of random sets of rows to compare with.
        seed: seed of these sets.
        threads: threads to use; all cores by default.
        partial: take the rows of a store whose extraction has not ended, which is refused otherwise.
        progress: show a bar, or do not; by default where a person can see it.

    Returns:
        Shared picks at each k, rank correlation of single gains, U of each one's picks with the other's rows.

    Raises:
        UnfinishedStoreError: the extraction of a store has not ended, and `partial` is false.
        InvalidInputError: an argument is out of range, or the sources have too few rows in common.
        StoreError: a source is no gradient store, or a damaged one.

    Warns:
        SpiceWarning: one source has rows that the other lacks: these are left out.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.random.default_rng(0).standard_normal((200, 16))
        >>> noise = np.random.default_rng(1).standard_normal((200, 16))
        >>> found = spice_rs.agreement(rows, rows + 0.1 * noise, 20)
        >>> bool(found.spearman > 0.9), bool(found.a_in_b[-1] > 0.9 * found.own_b[-1])
        (True, True)
    """
    asked = None if k is None else rows_wanted(k)
    seed, threads = seeded(seed), threads_wanted(threads)
    alpha, conflict_penalty, fisher = alpha_given(alpha), penalty(conflict_penalty), fisher_given(fisher)
    random_sets, progress = count("random_sets", random_sets), flag_or_none("progress", progress)
    sources = open_source(a), open_source(b)
    for source in sources:
        source.check_finished(partial)
        source.warn_unfinished()
    common, excluded = _common(*sources)
    k = rows_of(asked, len(common)) or max(1, round(0.1 * len(common)))
    if k > len(common):
        raise InvalidInputError(
            f"k: found {k}, expected at most {len(common)}, the rows that both sources have. Give a smaller one."
        )
    sizes = np.unique(np.geomspace(1, k, 6).round().astype(np.int64))
    rng = np.random.default_rng(seed)
    draws = [rng.choice(common, k, replace=False) for _ in range(random_sets)]
    drawn = bar(progress, total=2 * (2 + len(sizes) * (1 + random_sets)), what="agreement", unit="sets")
    options: list[dict[str, Any]] = []
    for source in sources:
        number = resolve_alpha(alpha, source.pool(normalize), threads=threads)
        options.append({"alpha": number, "normalize": normalize, "threads": threads})
    try:
        picked, gains = [], []
        for source, out, own in zip(sources, excluded, options, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SpiceWarning)  # of single runs; here it is about two
                picked.append(
                    select(
                        source,
                        k,
                        conflict_penalty=conflict_penalty,
                        fisher=fisher,
                        exclude=out if len(out) else None,
                        progress=False,
                        partial=partial,
                        **own,
                    )
                )
            drawn.update()
            gains.append(_single_gains(source, common, **own))
            drawn.update()

        def of(at: int, rows: npt.NDArray[np.int64]) -> Floats:
            values = np.empty(len(sizes))
            for place, size in enumerate(sizes):
                values[place] = log_det(sources[at], rows[:size], **options[at])
                drawn.update()
            return values

        b_in_a, a_in_b = of(0, picked[1].indices), of(1, picked[0].indices)
        random_in = [np.mean([of(at, rows) for rows in draws], axis=0) for at in (0, 1)]
    finally:
        drawn.close()
    return Agreement(
        rows=len(common),
        overlap=_overlap(picked[0].indices, picked[1].indices),
        spearman=spearman(gains[0], gains[1], ALIKE),
        sizes=sizes,
        own_a=picked[0].log_dets[sizes - 1],
        own_b=picked[1].log_dets[sizes - 1],
        b_in_a=b_in_a,
        a_in_b=a_in_b,
        random_in_a=random_in[0],
        random_in_b=random_in[1],
        a=picked[0],
        b=picked[1],
    )


def _common(a: Source, b: Source) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """Return the dataset rows that both have, ascending, and those of each that the other lacks."""
    rows = [np.arange(each.rows) if each.index is None else each.index for each in (a, b)]
    common = np.intersect1d(rows[0], rows[1])
    excluded = [np.setdiff1d(each, common) for each in rows]
    if len(common) < 2:
        raise InvalidInputError(
            f"found {counted(len(common), 'row')} in both, in {a.description} and in {b.description},"
            " expected at least 2."
            " Extract gradients of the same data with both models."
        )
    if any(map(len, excluded)):
        lost = ", ".join(
            f"{len(out)} of {each.rows} of {each.description}"
            for each, out in zip((a, b), excluded, strict=True)
            if len(out)
        )
        warnings.warn(
            f"{counted(len(common), 'row is', 'rows are')} in both sources and are compared; left out: {lost}",
            SpiceWarning,
            stacklevel=3,
        )
    return common, excluded


def _single_gains(
    source: Source, rows: npt.NDArray[np.int64], alpha: float, normalize: Normalize, threads: int | None
) -> Floats:
    """Return Δ_x(∅) = log(1 + α‖g‖²) of dataset rows."""
    gains = _core.single_gains(source.pool(normalize), alpha=alpha, threads=threads)
    found: Floats = gains[source.positions(rows)]
    return found


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _overlap(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Floats:
    """Return the share of the first j of `a` that is among the first j of `b`, for every j."""
    rank = {row: place for place, row in enumerate(b.tolist())}
    # A row is shared from the later of its two ranks on.
    shared = [max(place, rank[row]) for place, row in enumerate(a.tolist()) if row in rank]
    return np.cumsum(np.bincount(shared, minlength=len(a))) / np.arange(1, len(a) + 1)
