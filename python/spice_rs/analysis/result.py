"""What `analyze` returns: columns of numbers, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.prefixes import Floats, Integers
from spice_rs.analysis.stepwise import NAMES, NO_STEPS, Stepwise, Tightness
from spice_rs.frames import Framed
from spice_rs.nouns import counted
from spice_rs.selection.result import Selection
from spice_rs.tables import UNKNOWN, aligned, cell, html_view

_BESIDE_OTHERS = {"epsilon", "conflict", "cosine", "nearest_cosine", "bound", "tightness"}
"""Columns that say nothing of a pick that has none before it."""


@dataclass(frozen=True, repr=False, eq=False)
class Analysis(Framed):
    """What can be said of each pick, with S the rows selected before it; see `spice_rs.analyze`.

    Attributes:
        selection: the picks.
        norm: (m,) ‖g‖ of the rows as they competed.
        cosine: (m,) cosine of the pick with the mean of S, with its sign; 0 while S is empty.
        nearest: (m,) int64 dataset row of S with the largest |cosine|; −1 while S is empty.
        nearest_cosine: (m,) that cosine, with its sign; 0 while S is empty.
        bound: (m,) α²Σ_{y∈S}(g_xᵀg_y)²/(1 + α‖g_x‖²), weights included: the bound of Theorem 4 on |ε|, with C = 1.
        tightness: (m,) |ε|/bound; nan where the bound is 0, and under another reading than the full one.
        margin: (m,) score of the pick minus the best score of another row that could have been picked; nan at steps
            that were not looked at, inf where there was no other. Of equal rows it is 0, give or take rounding.
        runner_up: (m,) int64 that row; −1 where there is none or the step was not looked at.
        num_tokens: (m,) learned tokens of each pick; None where the source does not record them.
        stepwise: rank correlations of conflict with gain.
        theorem4: tightness over candidates; None under another reading than the full one.
        candidates: numbers of a sample of the candidates after the last pick: "index", "norm", "gain", "conflict",
            "cosine", "overlap", (c,) each; under "picked" whether it is a pick. None of windows.
        looked_at: number of steps at which the runner-up was sought.
        notes: what was left out, and why.
    """

    selection: Selection
    norm: Floats
    cosine: Floats
    nearest: Integers
    nearest_cosine: Floats
    bound: Floats
    tightness: Floats
    margin: Floats
    runner_up: Integers
    num_tokens: npt.NDArray[np.int32] | None
    stepwise: Stepwise
    theorem4: Tightness | None
    candidates: dict[str, npt.NDArray[Any]] | None
    looked_at: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.selection)

    @cached_property
    def half_life(self) -> int | None:
        """Number of picks after which Δ first was at most half of the first; None if it never was."""
        return self.selection.half_life

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the numbers of the picks as columns, name → (m,): those of the attributes, and of the selection."""
        of = self.selection
        found: dict[str, npt.NDArray[Any]] = {
            "index": of.indices,
            "rank": np.arange(len(of)),
            "base": of.base,
            "gain": of.gains,
            "epsilon": of.epsilon,
            "conflict": of.conflict,
            "score": of.scores,
            "log_det": of.log_dets,
            "norm": self.norm,
            "cosine": self.cosine,
            "margin": self.margin,
            "runner_up": self.runner_up,
            "nearest": self.nearest,
            "nearest_cosine": self.nearest_cosine,
            "bound": self.bound,
            "tightness": self.tightness,
            "overruled": of.overruled,
        }
        more = {"group": of.groups, "cost": of.costs, "num_tokens": self.num_tokens}
        return {**found, **{name: values for name, values in more.items() if values is not None}}

    def medians(self) -> dict[str, float]:
        """Return the median of each column of numbers over the picks for which it is known."""
        found = {}
        for name, values in self.to_dict().items():
            if values.dtype.kind == "f":
                known = values[np.isfinite(values)]
                found[name] = float(np.median(known)) if len(known) else float("nan")
        return found

    def _cells(self) -> list[tuple[str, ...]]:
        """Return the table of the first, the median and the last pick."""
        shown = {name: values for name, values in self.to_dict().items() if values.dtype.kind == "f"}
        medians = self.medians()
        rows: list[tuple[str, ...]] = [("per pick", "first", "median", "last")]
        rows += [
            (name, self._shown(name, 0), cell(medians[name], ".4g"), self._shown(name, -1))
            for name, values in shown.items()
            if len(values)
        ]
        return rows

    def _repr_html_(self) -> str:
        return html_view(self._cells(), repr(self), *self.notes)

    def summary(self) -> str:
        """Return a table of the first, the median and the last pick, and what goes with what."""
        half = "beyond the last pick" if self.half_life is None else counted(self.half_life, "pick")
        lines = [aligned(self._cells()), "", f"half-life of the gain: {half}"]
        lines.append(f"runner-up sought at {self.looked_at} of {counted(len(self), 'step')}")
        steps, most = len(self.stepwise.ranks), int(self.stepwise.rows.max(initial=0))
        pairs = [("Spearman over candidates, per step", "mean", "median", "steps")]
        pairs += [
            (NAMES[name], cell(mean, ".3f"), cell(median, ".3f"), str(count))
            for name, (mean, median, count) in self.stepwise.averages().items()
        ]
        lines += (
            ["", f"{counted(steps, 'step')}, up to {most} candidates each:", aligned(pairs)]
            if steps
            else ["", NO_STEPS]
        )
        if self.theorem4 is not None and self.theorem4.checked:
            found = self.theorem4
            defined = found.median[np.isfinite(found.median)]
            middle = f"{np.median(defined):.3g}" if len(defined) else "not defined"
            lines.append(
                f"|ε| over the bound of Theorem 4 (C = 1): median {middle}, largest"
                f" {np.nanmax(found.largest, initial=0.0):.3g};"
                f" {counted(found.violations, 'violation')} in {counted(found.checked, 'pair')}"
            )
        return "\n".join([*lines, *self.notes])

    def _shown(self, name: str, at: int) -> str:
        """The number of one pick, if there is one."""
        alone = name in _BESIDE_OTHERS and self.nearest[at] < 0
        return UNKNOWN if alone else cell(self.to_dict()[name][at], ".4g")

    def __repr__(self) -> str:
        half = "beyond the last" if self.half_life is None else f"{self.half_life}"
        return (
            f"Analysis({counted(len(self), 'pick')}, half-life of the gain {half}, runner-up at"
            f" {counted(self.looked_at, 'step')}, Spearman over {counted(len(self.stepwise.ranks), 'step')})"
        )
