"""Everything before the first gradient: data read, model loaded, layers chosen, the loss put together.

`extract`, `plan` and `doctor` begin here, so that they mean the same rows.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.data.splits import with_split
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.batching import Task, TextTask
from spice_rs.extraction.checkpoints import Checkpoint, make_views, read_checkpoints
from spice_rs.extraction.gradients import GradientRun, changed_products
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.identity import settings_of, weight_fingerprint
from spice_rs.extraction.inputs import Inputs, read_own, read_text
from spice_rs.extraction.loading import device_of
from spice_rs.extraction.loss import SummedLoss
from spice_rs.extraction.own_data import OwnTask, is_own
from spice_rs.extraction.projection import NoProjection, Projection, make_projection
from spice_rs.extraction.proxy import fresh_lora, prepared, warn_unless_checkpointed
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import TOKENS_PER_BATCH, Settings
from spice_rs.extraction.token_cache import TokenCache
from spice_rs.extraction.tracking import TargetModules, Tracked, check_coverage, output_head, track
from spice_rs.extraction.views import View, ViewedRun
from spice_rs.progress import Progress
from spice_rs.signs import step

__all__ = ["TOKENS_PER_BATCH", "Extraction", "Inputs", "Settings", "name_of", "preparing", "read_text"]


@dataclass(frozen=True)
class Extraction:
    """What is ready to be computed.

    Attributes:
        inputs: The samples.
        network: The model, with its fresh adapter if there is one; on the device, frozen, without dropout.
        tracked: The layers whose gradients are taken.
        projection: What they are projected by.
        task: The loss.
        provenance: What the store records.
        tokens: Padded tokens per batch.
        views: The checkpoints whose gradients make a row; at least one.
        autocast: Whether products are made in bfloat16; None: on a GPU.
    """

    inputs: Inputs
    network: torch.nn.Module
    tracked: Tracked
    projection: Projection
    task: Task
    provenance: dict[str, Any]
    tokens: int
    views: Sequence[View]
    autocast: bool | None

    def run(self, tokens: int | None = None, projection: Projection | None = None) -> GradientRun:
        """Computes batches of so many tokens."""
        capture = GradientCapture(self.tracked.layers, projection or self.projection)
        return ViewedRun(
            self.task, capture, self.inputs.device, tokens or self.tokens, self.views, self.autocast
        )


@contextmanager
def preparing(
    model: Any,
    data: Any,
    settings: Settings,
    *,
    quiet: bool = False,
    template_date: datetime.date | None = None,
    out: str | os.PathLike[str] | None = None,
    cache: TokenCache | None = None,
    keep_records: bool = False,
    progress: Progress = False,
) -> Iterator[Extraction]:
    """Inside, all is ready; afterwards the model is as it was.

    Args:
        model: As for `extract`.
        data: As for `extract`.
        settings: The other arguments.
        quiet: Leave it to the caller to judge the coverage.
        template_date: As for `read_text`, as all that follow.
        out: See there.
        cache: See there.
        keep_records: See there.
        progress: See there.

    Raises:
        InvalidInputError: An argument, a record or the model cannot be used.
    """
    if settings.device is not None:
        device_of(None, settings.device)
    data = with_split(data, settings.split)
    own = settings.loss_fn is not None and is_own(data, settings.columns, settings.loss_fn)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # the caller's would let no gradient be taken
        if own:
            inputs = read_own(model, data, settings)
        else:
            inputs = read_text(
                model,
                data,
                settings,
                template_date=template_date,
                out=out,
                cache=cache,
                keep_records=keep_records,
                progress=progress,
            )
        network = inputs.network
        adapter = None
        if settings.lora_rank is not None:
            lora = fresh_lora(network, settings.lora_rank, settings.target_modules, settings.seed)
            network, adapter = stack.enter_context(lora)
        # A fresh LoRA's own trainable parameters are all that is tracked.
        targets = None if settings.lora_rank is not None else settings.target_modules
        checkpoints = read_checkpoints(
            settings.checkpoints,
            network,
            device=inputs.device,
            trust_remote_code=settings.trust_remote_code,
        )
        step("looking through the model")
        tracked = _track(network, targets, settings, checkpoints)
        if not quiet:
            check_coverage(tracked, settings.min_coverage, warn=Rank.current().first)
            asked = settings.gradient_checkpointing and Rank.current().first
            warn_unless_checkpointed(network, asked, stacklevel=4)
        views, seen = make_views(
            network,
            tracked.names,
            checkpoints,
            weights=settings.checkpoint_weights,
            optimizer=settings.optimizer,
            fresh=adapter is not None,
        )
        projection = make_projection(
            settings.projection,
            [view.renamed(parameter) for view in views for parameter in tracked.parameters],
            dim=settings.dim,
            seed=settings.seed,
            nnz=settings.nnz,
            side=settings.side,
        )
        provenance: dict[str, Any] = {
            "model": {
                "id": inputs.name,
                "weights": weight_fingerprint(network),
                "settings": settings_of(network),
                "adapter": adapter,
            },
            "tracked": _describe_tracked(tracked),
            "projection": projection.settings(),
            "loss": "cross_entropy" if settings.loss_fn is None else name_of(settings.loss_fn),
            **inputs.provenance,
            **seen,
        }
        products = changed_products(inputs.device, settings.autocast)
        if products is not None:
            provenance["autocast"] = products
        if isinstance(projection, NoProjection):
            provenance["layout"] = projection.layout
        tokens = settings.tokens_per_batch or TOKENS_PER_BATCH.get(inputs.device.type, 2048)
        stack.enter_context(prepared(network, inputs.device, settings.gradient_checkpointing))
        task: Task
        if own:
            assert settings.loss_fn is not None
            task = OwnTask(network, data, settings.loss_fn)
        else:
            task = TextTask(SummedLoss(network, output_head(network, tracked), settings.loss_fn))
        yield Extraction(
            inputs, network, tracked, projection, task, provenance, tokens, views, settings.autocast
        )


def _track(
    network: torch.nn.Module, targets: TargetModules, settings: Settings, checkpoints: Sequence[Checkpoint]
) -> Tracked:
    """What is tracked at all checkpoints: a LoRA's A too, if its B is not zero at all of them."""
    found = []
    for view in [View(values=checkpoint.values) for checkpoint in checkpoints] or [View()]:
        with view.installed():
            found.append(track(network, targets, norms=settings.norms, embeddings=settings.embeddings))
    return next((each for each in found if not each.zero_lora), found[0])


def _describe_tracked(tracked: Tracked) -> dict[str, Any]:
    shapes = [[parameter.name, list(parameter.shape)] for parameter in tracked.parameters]
    return {
        "layers": len(tracked.layers),
        "coordinates": sum(parameter.numel for parameter in tracked.parameters),
        "coverage": round(tracked.coverage, 6),
        "zero_lora": tracked.zero_lora,
        "names": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


def name_of(loss_fn: Any) -> str:
    """The name by which a store tells one loss from another; a lambda has none of its own."""
    kind = loss_fn if hasattr(loss_fn, "__qualname__") else type(loss_fn)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if "<lambda>" in name or kind is functools.partial:
        raise InvalidInputError(
            f"loss_fn: found {name}, expected a function with a name; the store knows the loss by it, so use def"
        )
    return name
