"""What a run of the schedule returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spice_rs.frames import Framed
from spice_rs.nouns import counted


@dataclass(frozen=True, repr=False, eq=False)
class Schedule(Framed):
    """The m picks of all windows, in order, and the proxy that has learned from them.

    Attributes:
        indices: (m,) int64 dataset rows.
        windows: (m,) int64 window of each pick, from 0.
        steps: (m,) int64 optimiser steps that the proxy had made when the row was picked.
        gains: (m,) float64 Δ_x(S), S being the picks before it in its window.
        conflict: (m,) float64, in [0, 1].
        scores: (m,) float64 Δ − λ·conflict.
        step_losses: (s,) float64 nats per learned token of what each of the s steps learned from, before the step.
        model: the proxy, trained: the model that was given, in a fresh LoRA if it was a plain one.
        settings: all settings, and what is known of model and data.
        folder: where the picks, the metrics, the adapter and the state are.
    """

    indices: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    gains: npt.NDArray[np.float64]
    conflict: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    step_losses: npt.NDArray[np.float64]
    model: torch.nn.Module
    settings: dict[str, Any]
    folder: str

    @classmethod
    def of(
        cls,
        picks: Sequence[Mapping[str, Any]],
        *,
        losses: Sequence[float],
        model: torch.nn.Module,
        settings: dict[str, Any],
        folder: str,
    ) -> Schedule:
        """Return the run that made these picks, with the keys of a line of `picks.jsonl`."""

        def column(key: str, kind: type[np.generic]) -> npt.NDArray[Any]:
            return np.array([pick[key] for pick in picks], kind)

        return cls(
            column("index", np.int64),
            column("window", np.int64),
            column("step", np.int64),
            column("gain", np.float64),
            column("conflict", np.float64),
            column("score", np.float64),
            np.array(losses, np.float64),
            model,
            settings,
            folder,
        )

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns index, window and step (int64), gain, conflict and score (float64), each (m,)."""
        return {
            "index": self.indices,
            "window": self.windows,
            "step": self.steps,
            "gain": self.gains,
            "conflict": self.conflict,
            "score": self.scores,
        }

    def __len__(self) -> int:
        return len(self.indices)

    def summary(self) -> str:
        """Return in a sentence what was picked, and what was learned from it."""
        text = f"{len(self)} of {counted(self.settings['samples'], 'row')} picked in"
        text += f" {counted(self.settings['windows'], 'window')}; the proxy made"
        text += f" {counted(len(self.step_losses), 'step')}"
        if len(losses := self.step_losses):
            text += f", with a loss of {losses[0]:.3g} before the first and {losses[-1]:.3g} before the last"
        return text

    def __repr__(self) -> str:
        losses = self.step_losses
        trained = counted(len(losses), "step")
        if len(losses):
            trained += f", loss {losses[0]:.3g} → {losses[-1]:.3g}"
        windows = counted(self.settings["windows"], "window")
        return f"Schedule({len(self)} of {counted(self.settings['samples'], 'row')}, {windows}, {trained})"
