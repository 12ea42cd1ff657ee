"""Samples → rows: batches, halved where memory runs out, and written while the next one is computed.

On a GPU nothing waits within a batch: the host queues the kernels of one, then appends the rows of the one before, whose
copy has run beside them. The writer puts shards on disk in the background.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
import torch

from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.batching import (
    Sample,
    Task,
    learned_of,
    lengths_of,
    longest_first,
    one_by_one,
    rows_of,
    take_batch,
)
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.layers import leave_out
from spice_rs.extraction.memory import free_memory, out_of_memory
from spice_rs.extraction.movement import Movement
from spice_rs.extraction.own_data import OwnSample, UnlikeSamplesError
from spice_rs.extraction.preflight import Preflight, reason_of, tolerance_of, worth_pairing, worth_trying
from spice_rs.extraction.proxy import check_thresholds
from spice_rs.extraction.transfer import HostCopy
from spice_rs.nouns import counted
from spice_rs.progress import bar
from spice_rs.signs import step
from spice_rs.store.store import GradientWriter

_SAMPLES_PER_BATCH = 256  # what is formed per sample besides activations is at most 4 MB
_ROW_CELLS = 1 << 28  # cells of one batch's rows: 1 GB in float32, met with projection="none" alone


class GradientRun:
    """Computes batches and hands them to the store's writer, which has a thread of its own.

    Args:
        task: The loss.
        capture: The hooks.
        device: Where the model is.
        tokens: Padded tokens per batch, to begin with.
        autocast: Multiply in bfloat16; None: on a GPU.
    """

    def __init__(
        self,
        task: Task,
        capture: GradientCapture,
        device: torch.device,
        tokens: int,
        autocast: bool | None = None,
    ) -> None:
        self.autocast = autocast
        self.task = task
        self.capture = capture
        self.device = device
        self.tokens = tokens
        self.tried = False
        self.begun: Callable[[int], object] = lambda tokens: None

    @property
    def passes(self) -> int:
        """How often the model runs for a batch."""
        return 1

    def fill(
        self,
        writer: GradientWriter,
        samples: Sequence[Sample],
        progress: bool | None,
        *,
        hashed: Callable[[int], int] | None = None,
        there: Sequence[Sample] = (),
    ) -> None:
        """Appends the rows of the samples. An interrupt leaves the rows written so far committed.

        Args:
            writer: Of the store.
            samples: What is to be computed.
            progress: Whether to show a bar.
            hashed: What tells the hash of a dataset row's record; None to write none.
            there: Samples whose rows the store has already: the bar goes on from these.
        """
        before, total = (int(lengths_of(part).sum()) for part in (there, samples))
        shown = bar(progress, total=before + total, what="extract", unit="tokens", initial=before)
        done, started = 0, time.perf_counter()
        ahead = 1 if self.device.type == "cuda" else 0  # batches queued before the oldest is written
        computed: deque[tuple[Sequence[Sample], HostCopy]] = deque()
        moving = Movement(shown, 2 * len(self.capture.layers) * self.passes)
        self.begun, self.capture.moved = moving.begin, moving
        with self.capture.attached(), closing(shown):
            try:
                for batch, rows, losses in self.batches(longest_first(samples)):
                    computed.append((batch, HostCopy(rows, losses)))
                    while len(computed) > ahead:
                        write_rows(writer, *computed.popleft(), hashed)
                    done += len(batch)
                    moving.end(int(lengths_of(batch).sum()))
                    rate = done / (time.perf_counter() - started)
                    of = f"{len(there) + done}/{counted(len(there) + len(samples), 'row')}"
                    shown.set_postfix_str(f"{of}, {rate:.3g} rows/s", refresh=False)
            finally:
                while computed:  # also what was complete when the run was stopped
                    write_rows(writer, *computed.popleft(), hashed)

    def batches(
        self, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sequence[Sample], torch.Tensor, torch.Tensor]]:
        """Batches with their rows (B, dim) and losses (B,) on the device, smaller when memory runs out.

        Raises:
            InvalidInputError: A single sample does not fit, or a gradient cannot be taken; see `try_out`.
        """
        if samples and not self.tried:
            self.try_out(samples)
            self.tried = True
            step(f"computing gradients of {counted(len(samples), 'sample', form=',')}")
        start = 0
        while start < len(samples):
            batch = self.take(samples, start)
            self.begun(sum(sample.length for sample in batch))
            result = self.compute_or_none(batch)
            if result is None:
                self.shrink(batch)  # only here, where the failed batch's tensors are no longer referenced
                continue
            yield batch, *result
            start += len(batch)

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Tries the samples out now, and not before the first batch: where nothing was written yet.

        Args:
            samples: All of the run.

        Raises:
            InvalidInputError: See `try_out`.
        """
        if samples:
            with self.capture.attached():
                self.try_out(longest_first(samples))
            self.tried = True

    def try_out(self, samples: Sequence[Sample]) -> None:
        """Runs the model on a few short samples, before there are rows that would be wrong without a word.

        Of text one that is short, to find parameters that are used outside of their layers. Of the user's own data the
        first: alone, a tensor that has its samples elsewhere than in front cannot be taken for one that has. Then gradients
        are held against autograd's, and a row alone against the same row in a batch; see `preflight.py`.

        Args:
            samples: All of the run, by falling length.

        Where that cannot be done, a warning says why.

        Raises:
            InvalidInputError: There is such a parameter, or such a tensor, or a gradient is wrong.
        """
        if not one_by_one(samples, self.tokens):
            check_thresholds(self.task.network)
        own = isinstance(samples[0], OwnSample)
        step("holding a few gradients against plain autograd")
        try:
            with self.model_tried():
                untried = self._tried(samples, worth_trying(samples))
        except InvalidInputError:
            raise
        except Exception as error:
            # What is wrong with the model or the loss will be said in the run; some of them take no single sample.
            if not own and not out_of_memory(error):
                raise
            untried = reason_of(error)
        if untried is not None:
            free_memory()
            warnings.warn(
                f"the gradients could not be held against plain autograd: {untried}; run `spice-rs doctor` on a few "
                "samples",
                SpiceWarning,
                stacklevel=2,
            )

    def model_tried(self) -> AbstractContextManager[Any]:
        """Inside, the model is as it is to be tried."""
        return nullcontext()

    def _tried(self, samples: Sequence[Sample], few: Sequence[Sample]) -> str | None:
        """Tries; why something could not be tried, or None."""
        losses = self._look_for_strays(few[0])
        if isinstance(losses, torch.Tensor) and losses.shape == (1,):
            return self._check(samples, few)
        if isinstance(losses, torch.Tensor) and not losses.ndim:
            return "loss_fn: found shape () for one sample alone, expected (1,)"
        return None  # which the run will refuse

    def _look_for_strays(self, sample: Sample) -> Any:
        """The loss of a single sample, as it comes; refuses uses of parameters that the hooks would miss."""
        with self.capture.watched(sample.length, self.device) as strays, torch.enable_grad():
            losses = self._losses(self.task, [sample])
            found = strays(losses) if isinstance(losses, torch.Tensor) else []
        if found:
            more = f" (the first of {len(found)} such parameters)" if len(found) > 1 else ""
            raise InvalidInputError(
                f"{found[0]}: found a use outside of its layer's forward, expected none{more}: that part of its gradient"
                f" cannot be taken. To go on without it, {leave_out(found[0].rpartition('.')[0])}."
            )
        return losses.detach() if isinstance(losses, torch.Tensor) else losses

    def _check(self, samples: Sequence[Sample], few: Sequence[Sample]) -> str | None:
        """Holds rows against others; why that could not be done with all of them, or None."""
        preflight = Preflight(
            self.capture,
            dict(self.capture.calls),
            lambda task, some: self._computed(task, some, _longest(some)),
            self._losses,
            tolerance_of(self.task.network, self.device, self.autocast),
        )
        preflight.check_gradients(self.task, few)
        shared: list[Sequence[Sample]] = []
        start = 0
        while start < len(samples):
            batch = self.take(samples, start)
            start += len(batch)
            if len(batch) > 1:
                shared.append(batch)
        try:
            preflight.check_batches(self.task, worth_pairing(shared))
        except UnlikeSamplesError:
            pass  # which the run will say
        return preflight.untried[0] if preflight.untried else None

    def _losses(self, task: Task, samples: Sequence[Sample]) -> torch.Tensor:
        with multiplied(self.device, self.autocast):
            return task.losses(samples, _longest(samples), self.device)

    def take(self, samples: Sequence[Sample], start: int) -> Sequence[Sample]:
        """The batch that begins at `start`."""
        most = max(1, min(_SAMPLES_PER_BATCH, _ROW_CELLS // self.capture.projection.dim))
        return take_batch(samples, start, self.tokens, most)

    def shrink(self, batch: Sequence[Sample]) -> None:
        """Halves the batches after one that did not fit.

        Raises:
            InvalidInputError: It was a single sample.
        """
        free_memory()
        if len(batch) == 1:
            raise InvalidInputError(
                f"row {batch[0].index}: its {counted(batch[0].length, 'token')} alone need more memory "
                "than there is; lower max_length, or track fewer layers with target_modules"
            )
        self.tokens = _longest(batch) * (len(batch) // 2)

    def compute(self, samples: Sequence[Sample], length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B, dim) and losses (B,) float32 of one batch; the hooks must be attached.

        Args:
            samples: The batch.
            length: Pad to this length, if the longest sample is shorter.
        """
        return self._computed(self.task, samples, max(length, _longest(samples)))

    def _computed(
        self, task: Task, samples: Sequence[Sample], length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self.capture.batch(len(samples), length, self.device) as rows, torch.enable_grad():
            with multiplied(self.device, self.autocast):
                losses = task.losses(samples, length, self.device)
            if not isinstance(losses, torch.Tensor) or losses.shape != (len(samples),):
                found = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
                raise InvalidInputError(
                    f"loss_fn gave shape {found}, expected ({len(samples)},): one loss per sample, not reduced"
                )
            if not losses.requires_grad:
                raise InvalidInputError(
                    "no tracked layer takes part in the loss; check target_modules and loss_fn"
                )
            with multiplied(self.device, False):  # products of gradients are made as the forward left them
                losses.sum().backward()  # samples do not mix, so each row gets its own loss's gradient
        return rows, losses.detach()

    def compute_or_none(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None if memory ran out."""
        try:
            return self.compute(samples)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error):
                raise
            return None


def multiplied(device: torch.device, autocast: bool | None) -> AbstractContextManager[Any]:
    """Inside, products of float32 are made in bfloat16, or not, also where the caller has autocast on.

    Args:
        device: Where they are made.
        autocast: Whether; None: on a GPU, and where the caller has it on.
    """
    wanted = device.type == "cuda" if autocast is None else autocast
    if not wanted and (autocast is None or not torch.is_autocast_enabled(device.type)):
        return nullcontext()
    inside: AbstractContextManager[Any] = torch.autocast(device.type, torch.bfloat16, enabled=wanted)
    return inside


def changed_products(device: torch.device, autocast: bool | None) -> bool | None:
    """Whether products are made in bfloat16, where that is something else than what is done by default there; else None."""
    wanted = autocast
    if wanted is None:
        wanted = device.type == "cuda" or torch.is_autocast_enabled(device.type)
    return None if bool(wanted) == (device.type == "cuda") else bool(wanted)


def write_rows(
    writer: GradientWriter,
    batch: Sequence[Sample],
    copy: HostCopy,
    hashed: Callable[[int], int] | None = None,
) -> None:
    """Appends the rows of a batch, given with its losses, when they have arrived."""
    rows, losses = copy.wait()
    index = rows_of(batch)
    writer.append(
        rows.numpy(),
        index=index,
        num_tokens=learned_of(batch),
        loss=losses.to(torch.float32).numpy(),
        record=None if hashed is None else np.array([hashed(row) for row in index.tolist()], np.int64),
    )


def _longest(samples: Sequence[Sample]) -> int:
    return int(lengths_of(samples).max())
