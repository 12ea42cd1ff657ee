"""One window: gradients of its samples with the proxy as it is now, in memory, and the picks among them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from spice_rs.errors import SpiceWarning
from spice_rs.extraction.batching import Sample, TextTask, longest_first
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.loss import SummedLoss
from spice_rs.extraction.projection import make_projection
from spice_rs.extraction.proxy import prepared
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.tracking import TargetModules, check_coverage, output_head, track
from spice_rs.selection.arguments import (
    alpha_given,
    fisher_given,
    penalty,
    stops_at,
    threads_wanted,
)
from spice_rs.selection.presets import PENALTY, Alpha
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import select
from spice_rs.store.sources import Normalize, Source


@dataclass(frozen=True)
class Criterion:
    """How the picks of a window are chosen; see `spice_rs.select`.

    Attributes:
        alpha: Weight α of the Fisher information.
        conflict_penalty: λ.
        fisher: "full", "diagonal" or "scalar".
        early_stop: ω, or None.
        normalize: Scale of the rows.
        threads: Threads to use, or None for all.
    """

    alpha: Alpha = 1.0
    conflict_penalty: float = 0.1
    fisher: Literal["full", "diagonal", "scalar"] = "full"
    early_stop: float | None = None
    normalize: Normalize = "auto"
    threads: int | None = None

    @staticmethod
    def of(
        alpha: Any, conflict_penalty: Any, fisher: Any, early_stop: Any, normalize: Normalize, threads: Any
    ) -> Criterion:
        """Return the criterion of arguments as a caller gives them.

        Raises:
            InvalidInputError: One is something else, or out of range.
        """
        return Criterion(
            alpha_given(alpha),
            penalty(conflict_penalty),
            fisher_given(fisher),
            stops_at(early_stop),
            normalize,
            threads_wanted(threads),
        )

    def check(self) -> str:
        """Select one row from one, so that a setting out of range is found before hours of gradients.

        Returns:
            What "auto" normalisation means here.

        Raises:
            InvalidInputError: A setting is out of range.
        """
        picked, _ = self.choose(np.ones((1, 1), np.float32), np.zeros(1, np.int64), np.ones(1, np.int32), 1)
        return str(picked.settings["normalize"])

    def choose(
        self,
        rows: npt.NDArray[np.float32],
        index: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int32],
        k: int,
        name: str = "window",
    ) -> tuple[Selection, list[str]]:
        """Pick k rows, or fewer with `early_stop`.

        Args:
            rows: (n, d) gradients of summed losses.
            index: (n,) dataset rows; of equal scores the lowest is picked.
            tokens: (n,) learned tokens.
            k: Rows to pick, 1 ≤ k ≤ n.
            name: What to call the window in messages.

        Returns:
            The picks, and what there was to warn of.
        """
        cells = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        source = Source(
            [(cells, "float32", len(rows))],
            len(rows),
            rows.shape[1],
            "float32",
            name,
            index=index,
            num_tokens=tokens,
            reduction="sum",
            keep_alive=rows,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SpiceWarning)
            selection = select(
                source,
                k,
                alpha=self.alpha,
                conflict_penalty=None if self.conflict_penalty == PENALTY else self.conflict_penalty,
                fisher=self.fisher,
                early_stop=self.early_stop,
                normalize=self.normalize,
                threads=self.threads,
                progress=False,
            )
        return selection, [str(each.message) for each in caught if each.category is SpiceWarning]


@dataclass(frozen=True)
class Tracking:
    """What gradients are taken of and how they are projected; the arguments of `spice_rs.extract`."""

    target_modules: TargetModules
    norms: bool
    embeddings: bool
    min_coverage: float
    projection: str
    dim: int
    seed: int
    nnz: int
    side: int


@dataclass(frozen=True)
class Window:
    """The rows of one window, ascending in the dataset row.

    Attributes:
        rows: (n, d) float32, gradients of summed losses.
        index: (n,) int64 dataset rows.
        tokens: (n,) int32 learned tokens.
        losses: (n,) float64 summed losses in nats.
    """

    rows: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    losses: npt.NDArray[np.float64]

    def summary(self, selection: Selection) -> dict[str, int | float]:
        """Return what there is to say of the picks; losses in nats per learned token."""
        picked = np.isin(self.index, selection.indices)
        return {
            "samples": len(self.index),
            "picks": len(selection),
            "tokens": int(self.tokens.sum()),
            "tokens_of_picks": int(self.tokens[picked].sum()),
            "loss": float(self.losses.sum() / self.tokens.sum()),
            "loss_of_picks": float(self.losses[picked].sum() / self.tokens[picked].sum()),
            "log_det": selection.log_det,
            "first_gain": float(selection.gains[0]),
            "last_gain": float(selection.gains[-1]),
            "mean_conflict": float(selection.conflict.mean()),
            "overruled": int(selection.overruled.sum()),
            "signal": selection.signal,
        }


class WindowGradients:
    """Computes the rows of windows with a language model as it is at that moment, and leaves it as it is.

    Args:
        network: The model, on its device.
        tracking: What is tracked.
        device: Where it is.
        tokens: Padded tokens per batch, to begin with; halved where memory runs out.
        loss_fn: Replaces the cross-entropy; see `spice_rs.extract`.
        gradient_checkpointing: Form activations again on the way back, for memory.
        autocast: Multiply in bfloat16; None: on a GPU.

    Raises:
        InvalidInputError: Nothing can be tracked, or too little of what was meant.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        tracking: Tracking,
        device: torch.device,
        tokens: int,
        *,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        gradient_checkpointing: bool = False,
        autocast: bool | None = None,
    ) -> None:
        self.network = network
        self.device = device
        self._tracking = tracking
        self._tokens = tokens
        self._loss_fn = loss_fn
        self._checkpointing = gradient_checkpointing
        self._autocast = autocast
        self._tried: list[str] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Decide anew what is tracked, after a step: a fresh LoRA's A has no gradient before the first one."""
        how = self._tracking
        self._tracked = track(self.network, how.target_modules, norms=how.norms, embeddings=how.embeddings)
        check_coverage(self._tracked, how.min_coverage, warn=False)
        self.task = TextTask(
            SummedLoss(self.network, output_head(self.network, self._tracked), self._loss_fn)
        )
        self.projection = make_projection(
            how.projection, self._tracked.parameters, dim=how.dim, seed=how.seed, nnz=how.nnz, side=how.side
        )
        capture = GradientCapture(self._tracked.layers, self.projection)
        self._run = GradientRun(self.task, capture, self.device, self._tokens, self._autocast)
        self._run.tried = self._tried == self._tracked.names  # a step does not change how a parameter is used

    @property
    def coverage(self) -> float:
        """Tracked share of the parameters meant."""
        return self._tracked.coverage

    def of(self, samples: Sequence[Sample]) -> Window:
        """Return the rows of the samples.

        Raises:
            InvalidInputError: A single sample does not fit in memory, or a layer's gradient cannot be taken.
        """
        ordered = sorted(samples, key=lambda sample: sample.index)
        places = {sample.index: place for place, sample in enumerate(ordered)}
        rows = np.empty((len(ordered), self.projection.dim), np.float32)
        losses = np.empty(len(ordered))
        with prepared(self.network, self.device, self._checkpointing), self._run.capture.attached():
            for batch, computed, loss in self._run.batches(longest_first(ordered)):
                at = [places[sample.index] for sample in batch]
                rows[at] = computed.cpu().numpy()
                losses[at] = loss.double().cpu().numpy()
        self._tried = self._tracked.names
        self._tokens = self._run.tokens  # what did not fit once does not fit the next time
        return Window(
            rows,
            np.array([sample.index for sample in ordered], np.int64),
            np.array([sample.num_tokens for sample in ordered], np.int32),
            losses,
        )


def tracking_of(settings: Settings, *, fresh: bool) -> Tracking:
    """Return what the settings of an extraction say of tracking; a fresh LoRA's own factors are all that is tracked."""
    return Tracking(
        target_modules=None if fresh else settings.target_modules,
        norms=settings.norms,
        embeddings=settings.embeddings,
        min_coverage=settings.min_coverage,
        projection=settings.projection,
        dim=settings.dim,
        seed=settings.seed,
        nnz=settings.nnz,
        side=settings.side,
    )
