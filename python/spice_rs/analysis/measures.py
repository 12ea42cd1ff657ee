"""What a comparison knows of each set of picks beside the numbers of a selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.certificate import certify
from spice_rs.analysis.methods import Contender, Setting
from spice_rs.arguments import choice, names_or_none
from spice_rs.progress import Progress
from spice_rs.selection.columns import Columns, Label
from spice_rs.selection.result import Selection
from spice_rs.store.sources import Normalize, Source


class Facts:
    """Groups and lengths of rows.

    Args:
        source: the rows.
        data: where column names are looked up.
        groups: name of a column or a label per dataset row; None for none.
        lengths: name of a column or a number per dataset row; None for the token counts of a store, if it has them.

    Attributes:
        unit: what lengths are counted in, for headings.

    Raises:
        InvalidInputError: the data lacks a column or a row, or a value cannot be used.
    """

    def __init__(
        self, source: Source, data: Any, groups: Any, lengths: Any, index_column: str | None = None
    ) -> None:
        self._labels: list[Label] = []
        self._codes = self._lengths = None
        self.unit = lengths if isinstance(lengths, str) else "length"
        given = {"groups": groups, "lengths": lengths}
        if data is not None or index_column is not None or any(value is not None for value in given.values()):
            columns = Columns(source, data, given, index_column)
            if groups is not None:
                self._labels, codes = columns.labels("groups", groups)
                self._codes = columns.by_position(codes)
            if lengths is not None:
                self._lengths = columns.by_position(columns.numbers("lengths", lengths, positive=False))
        if lengths is None and source.num_tokens is not None:
            self._lengths, self.unit = source.num_tokens.astype(np.float64), "tokens"

    def of(self, positions: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return {"shares", "median_length", "total_length"} of rows."""
        shares: dict[Label, float] = {}
        if self._codes is not None:
            counts = np.bincount(self._codes[positions], minlength=len(self._labels))
            shares = {
                label: count / len(positions)
                for label, count in zip(self._labels, counts.tolist(), strict=True)
            }
        lengths = None if self._lengths is None else self._lengths[positions]
        return {
            "shares": shares,
            "median_length": None if lengths is None else float(np.median(lengths)),
            "total_length": None if lengths is None else float(lengths.sum()),
        }


def other_scales(source: Source, resolved: str, asked: str | Sequence[str] | None) -> list[Normalize]:
    """Return the scales other than `resolved` to measure U under.

    Args:
        source: the rows.
        resolved: the scale that the rows are picked on.
        asked: scales by name; None for all that the source knows and that differ.

    Raises:
        InvalidInputError: a scale is not known, or the source does not record what it needs.
    """
    if asked is not None:
        asked = names_or_none("scales", asked)
        names = [asked] if isinstance(asked, str) else list(asked or ())
        known = [each for each in get_args(Normalize) if each != "auto"]
        for name in names:
            choice("scales", name, known, remedy="Choose some of these.")
            source.pool(name)  # type: ignore[arg-type]
    elif source.reduction is not None and source.num_tokens is not None and (source.num_tokens > 0).all():
        names = ["sum", "mean", "unit"]
    else:
        names = ["none", "unit"]
    same = {resolved} | ({"none", source.reduction} if resolved in ("none", source.reduction) else set())
    return [name for name in dict.fromkeys(names) if name not in same]  # type: ignore[misc]


def overlap(picks: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """Return (r, r) float64, the Jaccard index |A∩B|/|A∪B| of each two of r sets of different rows."""
    shares = np.ones((len(picks), len(picks)))
    for i, a in enumerate(picks):
        for j, b in enumerate(picks[:i]):
            both = len(np.intersect1d(a, b, assume_unique=True))
            shares[i, j] = shares[j, i] = both / (len(a) + len(b) - both)
    return shares


def upper_bound(
    setting: Setting, lines: Sequence[Contender], selections: Mapping[str, Selection], progress: Progress
) -> float | None:
    """Return what U of no k rows exceeds, by the certificate of the best run of k picks; None where there is none.

    A bound holds for every method, whichever run it is proven from, and it is tightest from a good greedy one.

    Raises:
        InvalidInputError: the matrices that it takes do not fit into memory.
    """
    whole = [selection for selection in selections.values() if len(selection) == setting.k]
    if not whole:
        return None
    exact = [
        selections[contender.label]
        for contender in lines
        if contender.exact and contender.label in selections
    ]
    best = min(exact or whole, key=lambda s: (s.settings["conflict_penalty"], -s.log_det))
    shown = False if callable(progress) else progress
    return float(certify(best, setting.source, threads=setting.threads, progress=shown).upper_bound)
