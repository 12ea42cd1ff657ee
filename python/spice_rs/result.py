"""What a selection returns: the picks, the numbers behind them, and a file to keep them in."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.atomic import check_place
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.saved import SERIES, SavedRun, check_same, read_run, write_run
from spice_rs.sources import open_source

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False, eq=False)
class Selection:
    """The selected rows in pick order, and the numbers that selected them.

    With S the rows picked before a row x, m picks in all, and every logarithm natural:

    Attributes:
        indices: (m,) int64 dataset rows (row numbers for arrays).
        gains: (m,) float64 Δ_x(S), the marginal gain; log(1 + α gᵀ(I + αF_S)⁻¹g) with `fisher="full"`.
        base: (m,) float64 log(1 + α‖g‖²), what x is worth alone.
        conflict: (m,) float64 max(0, −⟨g, mean⟩/(‖g‖‖mean‖ + 1e-8)), in [0, 1].
        scores: (m,) float64 Δ − λ·conflict, what x won with (with `method="top_k"`: Δ).
        overruled: (m,) bool, another row had a larger Δ: the penalty decided this pick.
        rows_read: (m,) int64 rows that were evaluated to find the pick.
        log_dets: (m,) float64 U(S) = log det(I + αF_S) of the picks up to and including each, whatever the mode; with
            windows nan but for the last.
        stop_reason: "budget", "early_stop", "exhausted" or "time_limit"; with windows "time_limit" if any was not
            done, else "early_stop" if any stopped early.
        log_det: U(S) of all picks: the last of `log_dets`.
        signal: median of α‖g‖² over all rows of the source: far below 1 nothing interacts.
        settings: all settings and what is known of the source.
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

    @cached_property
    def epsilon(self) -> Floats:
        """(m,) float64 ε_x(S) = Δ − base ≤ 0: what interaction with S costs x (the ε-decomposition)."""
        return self.gains - self.base

    @property
    def half_life(self) -> int | None:
        """Number of picks after which Δ first was at most half of the first; None if it never was."""
        below = np.flatnonzero(self.gains <= 0.5 * self.gains[0]) if len(self) else np.empty(0)
        return int(below[0]) if below.size else None

    def head(self, k: int) -> Selection:
        """Return the selection that the same run with a budget of `k` makes: its first `k` picks.

        Greedy picks are nested, so that one long run holds all shorter ones. (The rows of windows are not.)

        Args:
            k: picks to keep, 1 ≤ k ≤ len(self).

        Raises:
            InvalidInputError: `k` is out of range, or the picks come from windows or from samples.
        """
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
        whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
        if not whole or not 1 <= k <= len(self):
            raise InvalidInputError(
                f"k: found {k!r}, expected a whole number from 1 to {len(self)}, the picks there are. Select more rows"
                " for a larger one."
            )
        return Selection(
            **{name: getattr(self, name)[:k].copy() for name in SERIES},
            stop_reason="budget",
            log_det=float(self.log_dets[k - 1]),
            signal=self.signal,
            settings={**copy.deepcopy(self.settings), "k": int(k)},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to a file, whole or not at all: safetensors, with everything else as JSON in its header.

        Args:
            path: the file; replaced if it is there.

        Raises:
            InvalidInputError: no file can lie there.
            OSError: the file cannot be written.
        """
        check_place(path)
        write_run(path, self.as_run())

    def as_run(self) -> SavedRun:
        """Return what a file holds of the selection."""
        series = {name: getattr(self, name) for name in SERIES}
        return SavedRun(series, self.settings, self.stop_reason, self.log_det, self.signal)

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
            source: what was selected from, as for `select`, to make sure that it is still the same; None not to look.
            dim: columns of a headerless source.
            dtype: element type of a headerless source.

        Raises:
            InvalidInputError: there is no such file, or it is the checkpoint of a run that has not ended.
            StoreMismatchError: `source` is not what was selected from.
            CorruptStoreError: the file was cut short or altered.
            StoreError: the file is something else.
        """
        run = read_run(path)
        if run.stop_reason is None or run.log_det is None or run.signal is None:
            raise InvalidInputError(
                f"{os.fspath(path)}: found a run that was interrupted after {len(run)} picks, expected one that has ended."
                f" Finish it: select(source, …, checkpoint={os.fspath(path)!r}), with k={len(run)} for these picks alone."
            )
        if source is not None:
            opened = open_source(source, dim=dim, dtype=dtype)
            identity = {
                "rows": opened.rows,
                "dim": opened.dim,
                "dtype": opened.dtype,
                "fingerprint": opened.identify(),
            }
            check_same(
                path,
                run.settings["source"],
                identity,
                StoreMismatchError,
                f"Give the source that was selected from ({run.settings['source']['name']}), as it was.",
            )
        return cls(
            **run.series,
            stop_reason=run.stop_reason,
            log_det=run.log_det,
            signal=run.signal,
            settings=run.settings,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rows = self.settings["source"]["rows"]
        gains = f"gain {self.gains[0]:.4g} → {self.gains[-1]:.4g}, " if len(self) else ""
        return (
            f"Selection({len(self)} of {rows} rows, {gains}log det {self.log_det:.6g},"
            f" penalty decided {int(self.overruled.sum())} picks, stopped: {self.stop_reason})"
        )
