"""Gradients as one checkpoint of a training run sees them, and those of several checkpoints in one row.

The rows of checkpoints c with weights η_c are those of one long gradient, (√η_0·g_0, √η_1·g_1, …): its inner products
are Σ_c η_c ⟨g_c, g_c'⟩, the influence of TracIn (Pruthi et al. 2020, arXiv 2002.08484) and LESS (arXiv 2402.04333), where η
is the learning rate. It is projected as any other: the parameters of checkpoint 2 are called "2:…", so that each
checkpoint has signs of its own and rows need no more columns.

Each batch is computed at every checkpoint before the next. The weights that differ from the model's are put in place for
it, and the model's own come back afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch

from spice_rs.extraction.batching import Sample, Task
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.projection import Parameter, Projection

CHUNK = 1 << 20  # coordinates of a scaled gradient formed at a time, per sample


@dataclass(frozen=True)
class View:
    """What one checkpoint makes of a gradient. The default changes nothing.

    Attributes:
        prefix: Put before the parameters' names.
        weight: η.
        values: (tensor of the model, its values at the checkpoint), where they differ.
        scales: Name of a parameter → what its gradient is multiplied by, on the CPU.
    """

    prefix: str = ""
    weight: float = 1.0
    values: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    scales: Mapping[str, torch.Tensor] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the model has the checkpoint's weights."""
        own = [tensor.data for tensor, _ in self.values]
        try:
            for tensor, value in self.values:
                tensor.data = value.to(tensor.device)
            yield
        finally:
            for (tensor, _), data in zip(self.values, own, strict=True):
                tensor.data = data

    def renamed(self, parameter: Parameter) -> Parameter:
        """The parameter as the projection knows it."""
        return replace(parameter, name=self.prefix + parameter.name) if self.prefix else parameter

    def seen(self, projection: Projection) -> Projection:
        """The projection of gradients at this checkpoint."""
        plain = not self.prefix and self.scales is None
        return projection if plain else ViewedProjection(projection, self)


class ViewedProjection(Projection):
    """A projection of gradients whose parameters have other names, and are scaled coordinate by coordinate.

    Args:
        inner: The projection.
        view: The names and scales.
    """

    def __init__(self, inner: Projection, view: View) -> None:
        super().__init__(inner.dim, inner.seed)
        self.kind = inner.kind
        self.inner = inner
        self.view = view
        self._on_device: dict[str, torch.Tensor] = {}

    def settings(self) -> dict[str, object]:
        """Those of the projection."""
        return self.inner.settings()

    def reduce(self, parameter: Parameter, side: int, factor: torch.Tensor) -> torch.Tensor:
        """Less of the factor, unless its product has to be formed to be scaled."""
        if self.view.scales is not None:
            return factor
        return self.inner.reduce(self.view.renamed(parameter), side, factor)

    def add_outer(
        self, rows: torch.Tensor, parameter: Parameter, left: torch.Tensor, right: torch.Tensor
    ) -> None:
        """Adds the projection of the scaled Σ_t left_t right_tᵀ, formed in blocks of rows."""
        renamed, scale = self.view.renamed(parameter), self._scale(parameter, rows.device)
        if scale is None:
            self.inner.add_outer(rows, renamed, left, right)
            return
        samples, _, m = left.shape
        n = right.shape[2]
        step = max(1, min(m, CHUNK // n))
        transposed, right = left.transpose(1, 2), right.to(left.dtype)
        for start in range(0, m, step):
            block = torch.bmm(transposed[:, start : start + step], right).to(torch.float32)
            block *= scale.view(m, n)[start : start + step]
            if self.kind == "two_sided":  # it projects both sides of what it is given
                ids = torch.arange(start, start + block.shape[1], device=rows.device).expand(samples, -1)
                self.inner.add_rows(rows, renamed, ids, block)
            else:
                self.inner.add_flat(rows, renamed, start * n, block.view(samples, -1))

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """Adds the projection of scaled coordinates."""
        scale = self._scale(parameter, rows.device)
        if scale is not None:
            values = values * scale.view(-1)[start : start + values.shape[1]]
        self.inner.add_flat(rows, self.view.renamed(parameter), start, values)

    def add_rows(
        self, rows: torch.Tensor, parameter: Parameter, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Adds the projection of scaled rows of a table."""
        scale = self._scale(parameter, rows.device)
        if scale is not None:
            values = values.to(torch.float32) * scale[ids]
        self.inner.add_rows(rows, self.view.renamed(parameter), ids, values)

    def _scale(self, parameter: Parameter, device: torch.device) -> torch.Tensor | None:
        """What the gradient of the parameter is multiplied by; an expert's part is one of its whole tensor's."""
        if self.view.scales is None:
            return None
        scale = self._on_device.get(parameter.name)
        if scale is None or scale.device != device:
            scale = self.view.scales.get(parameter.name)
            if scale is None:
                whole, _, expert = parameter.name.rpartition("[")
                scale = self.view.scales[whole][int(expert[:-1])]
            scale = self._on_device[parameter.name] = scale.to(device)
        return scale


class ViewedRun(GradientRun):
    """Computes each batch once for every checkpoint.

    Args:
        task: The loss.
        capture: The hooks, with the projection of the whole rows.
        device: Where the model is.
        tokens: Padded tokens per batch, to begin with.
        views: At least one.
        autocast: Multiply in bfloat16; None: on a GPU.
    """

    def __init__(
        self,
        task: Task,
        capture: GradientCapture,
        device: torch.device,
        tokens: int,
        views: Sequence[View],
        autocast: bool | None = None,
    ) -> None:
        super().__init__(task, capture, device, tokens, autocast)
        self.views = [(view, view.seen(capture.projection)) for view in views]

    @property
    def passes(self) -> int:
        """How often the model runs for a batch."""
        return len(self.views)

    def model_tried(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights of the first checkpoint."""
        return self.views[0][0].installed()

    def compute(self, samples: Sequence[Sample], length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B, dim) and losses (B,) float32 of one batch: the mean of the checkpoints' losses, by weight."""
        parts = []
        for view, projection in self.views:
            self.capture.projection = projection
            with view.installed():
                parts.append(super().compute(samples, length))
        return combined(parts, [view for view, _ in self.views])


def combined(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], views: Sequence[View]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B, dim) and losses (B,) of all checkpoints together.

    Args:
        parts: Those of each; the rows may be overwritten.
        views: The checkpoints.
    """
    rows, losses = parts[0]
    if len(views) == 1 and views[0].weight == 1:
        return rows, losses
    total = sum(view.weight for view in views)
    rows, losses = rows.mul_(math.sqrt(views[0].weight)), losses * (views[0].weight / total)
    for (more, loss), view in zip(parts[1:], views[1:], strict=True):
        rows.add_(more, alpha=math.sqrt(view.weight))
        losses = losses + loss * (view.weight / total)
    return rows, losses
