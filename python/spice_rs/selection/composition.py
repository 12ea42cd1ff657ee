"""What picks are made of, beside the pool that they are from: how long, of which labels, and how many are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spice_rs.arguments import whole
from spice_rs.nouns import counted
from spice_rs.selection.options import Floats, Positions, Rows
from spice_rs.store.rows import RowReader
from spice_rs.store.source import Label, RowLabels, Source

ALIKE = 0.95
"""|cosine| above which two picks are alike: they say nearly the same."""

MOST_LABELS = 50
"""More labels than these are no composition that anybody reads: nothing is kept of them."""

MOST_CELLS = 1 << 24
"""Cells of the picks' rows up to which they are compared: 128 MiB in float64."""

MOST_PRODUCTS = 5e9
"""Multiplications up to which picks are compared with one another: a tenth of a second or two, beside a search that has
taken far more."""

_BLOCK = 512


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Composition:
    """What the m picks of a selection are made of, beside their pool.

    The pool is all rows of the source that are neither excluded nor initial.

    Attributes:
        rows: rows of the pool.
        pool_tokens: median and sum of their learned tokens; None where the source records none.
        tokens: (m,) int64 learned tokens of each pick; None likewise.
        column: column of the data that has the labels; None where `groups` gave them, or there are none.
        labels: what rows are labelled with, 50 different ones at most; None where no label is known.
        pool_counts: (g,) int64 rows of the pool with each label; None likewise.
        codes: (m,) int64 place in `labels` of each pick's; None likewise.
        alike: (m,) int64 rank of the first other pick whose |cosine| with this one is above 0.95, −1 where there is none;
            None where the picks are too many to be compared.
    """

    rows: int
    pool_tokens: tuple[float, int] | None
    tokens: Rows | None
    column: str | None
    labels: list[Label] | None
    pool_counts: Rows | None
    codes: Rows | None
    alike: Rows | None

    @property
    def median_tokens(self) -> float | None:
        """Median of the picks' learned tokens; None where they are not known, or there are no picks."""
        return float(np.median(self.tokens)) if self.tokens is not None and len(self.tokens) else None

    @property
    def total_tokens(self) -> int | None:
        """Sum of the picks' learned tokens; None where they are not known."""
        return None if self.tokens is None else int(self.tokens.sum())

    @property
    def counts(self) -> Rows | None:
        """(g,) int64 picks with each label; None where no label is known."""
        if self.codes is None or self.labels is None:
            return None
        return np.bincount(self.codes, minlength=len(self.labels))

    @property
    def shares(self) -> dict[Label, float]:
        """Share of the picks that each label has; empty where no label is known, or there are no picks."""
        return _shares(self.labels, self.counts)

    @property
    def pool_shares(self) -> dict[Label, float]:
        """The same of the pool."""
        return _shares(self.labels, self.pool_counts)

    @property
    def num_alike(self) -> int | None:
        """Number of picks that are like another one; None where that is not known."""
        return None if self.alike is None else int((self.alike >= 0).sum())

    def head(self, k: int) -> Composition:
        """Return the composition of the first k picks."""
        k = whole("k", k, least=0)

        def cut(values: Rows | None) -> Rows | None:
            return None if values is None else values[:k].copy()

        alike = cut(self.alike)
        if alike is not None:
            alike[alike >= k] = -1  # its first partner is not among them, and so none is
        return replace(self, tokens=cut(self.tokens), codes=cut(self.codes), alike=alike)

    def about_pool(self) -> dict[str, Any]:
        """Return what is no number of a pick, as a file keeps it."""
        labels = None
        if self.labels is not None and self.pool_counts is not None:
            labels = [list(pair) for pair in zip(self.labels, self.pool_counts.tolist(), strict=True)]
        return {
            "rows": self.rows,
            "tokens": None if self.pool_tokens is None else list(self.pool_tokens),
            "column": self.column,
            "labels": labels,
            "alike": self.alike is not None,
        }

    @staticmethod
    def of(about: dict[str, Any], tokens: Rows | None, codes: Rows | None, alike: Rows | None) -> Composition:
        """Return the composition of a file: the inverse of `about_pool`."""
        labels, known = about["labels"], about["tokens"]
        return Composition(
            rows=about["rows"],
            pool_tokens=None if known is None else (float(known[0]), known[1]),
            tokens=tokens,
            column=about["column"],
            labels=None if labels is None else [label for label, _ in labels],
            pool_counts=None if labels is None else np.array([count for _, count in labels], np.int64),
            codes=codes,
            alike=alike,
        )

    def __repr__(self) -> str:
        parts = []
        if self.pool_tokens is not None and self.median_tokens is not None:
            parts.append(f"median {self.median_tokens:g} tokens beside {self.pool_tokens[0]:g}")
        if self.labels is not None:
            parts.append(counted(len(self.labels), "label"))
        known = self.num_alike
        parts.append("not compared" if known is None else f"{known} alike")
        return f"Composition({', '.join(parts)}; pool of {counted(self.rows, 'row')})"


def composed(
    source: Source, picks: Positions, apart: Sequence[Positions | None] = (), labels: RowLabels | None = None
) -> Composition:
    """Return what picks are made of.

    Args:
        source: the rows.
        picks: (m,) their positions, in pick order.
        apart: positions of rows that do not count as the pool.
        labels: of all rows, by position; None for those that the source knows, if any.
    """
    pool = np.ones(source.rows, bool)
    for positions in apart:
        if positions is not None:
            pool[positions] = False
    tokens = source.num_tokens
    pool_tokens = own = None
    if tokens is not None and pool.any() and (tokens >= 0).all():
        among = tokens[pool]
        pool_tokens, own = (
            (float(np.median(among)), int(among.sum(dtype=np.int64))),
            tokens[picks].astype(np.int64),
        )
    labels = source.labels if labels is None else labels
    if labels is not None and len(labels.labels) > MOST_LABELS:
        labels = None
    return Composition(
        rows=int(pool.sum()),
        pool_tokens=pool_tokens,
        tokens=own,
        column=None if labels is None else labels.column,
        labels=None if labels is None else list(labels.labels),
        pool_counts=None if labels is None else np.bincount(labels.codes[pool], minlength=len(labels.labels)),
        codes=None if labels is None else labels.codes[picks],
        alike=_alike(source, picks),
    )


def _alike(source: Source, picks: Positions) -> Rows | None:
    """Return the rank of the first other pick that each is nearly parallel to; None where that takes too long."""
    m = len(picks)
    if m * source.dim > MOST_CELLS or m * m / 2 * source.dim > MOST_PRODUCTS:
        return None
    first = np.full(m, -1, np.int64)
    rows: Floats = RowReader(source, "unit", dtype=np.float32).read(picks)
    for start in range(0, m, _BLOCK):
        stop = min(start + _BLOCK, m)
        near = np.abs(rows[start:stop] @ rows[:stop].T) > ALIKE
        near[np.arange(stop - start), np.arange(start, stop)] = False  # with itself
        first[start:stop] = np.where(near.any(axis=1), near.argmax(axis=1), -1)
        earlier = near[:, :start]
        later = (first[:start] < 0) & earlier.any(axis=0)
        first[:start][later] = start + earlier.argmax(axis=0)[later]
    return first


def _shares(labels: list[Label] | None, counts: Rows | None) -> dict[Label, float]:
    whole_count = 0 if counts is None else int(counts.sum())
    if labels is None or counts is None or not whole_count:
        return {}
    return {label: count / whole_count for label, count in zip(labels, counts.tolist(), strict=True)}
