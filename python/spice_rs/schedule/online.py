"""Selection inside somebody else's training loop: of each batch, the samples that the paper's criterion picks.

A `Trainer`'s batch is the window and its optimiser step the interval: with `per_device_train_batch_size=128` and
`gradient_accumulation_steps=10`, each step learns from 10 × 13 samples out of 10 × 128, which is the paper's schedule.
The batches are thinned out where the Trainer fetches them, before it counts the tokens by which it divides the loss. Any
Trainer that fetches them by `Trainer.get_batch_samples` will do, TRL's SFTTrainer among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from spice_rs.arguments import whole
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.settings import TOKENS_PER_BATCH, Settings
from spice_rs.schedule.batches import APART, check_loss, check_trainer, samples_of
from spice_rs.schedule.window import Criterion, WindowGradients, tracking_of
from spice_rs.store.sources import Normalize

_USED = ("target_modules", "norms", "embeddings", "min_coverage", "projection", "dim", "seed", "nnz", "side",
         "tokens_per_batch", "gradient_checkpointing", "autocast", "loss_fn")  # fmt: skip
"""Arguments of `extract` that mean something where model and samples are given."""


class OnlineSelector:
    """Picks samples of a batch with a causal language model as it is at that moment, for a training loop of your own.

    Nothing of the model, of its gradients or of the random generators is changed.

    Args:
        model: The module that is trained, not wrapped for data parallelism, on its device.
        select_per_window: Samples to pick from each batch.
        early_stop: ω in (0, 1): end before a sample whose Δ is at most ω times that of the first pick.
        alpha: Weight α of the Fisher information.
        conflict_penalty: λ.
        fisher: As for `select`.
        normalize: Scale of the rows, as for `select`; "auto" is "mean", the paper's loss.
        threads: Threads that select; all cores by default.
        extraction: Further arguments of `extract`: what is tracked (by default what is trainable), how it is projected
            (dim, projection, seed), tokens_per_batch, gradient_checkpointing, autocast, loss_fn.

    Attributes:
        history: For each batch a dict: samples, picks, loss and loss_of_picks (nats per learned token), log_det,
            first_gain, last_gain, mean_conflict.

    Raises:
        InvalidInputError: An argument or the model cannot be used.

    Example:
        Inside a loop in which `batch` has input_ids, attention_mask and labels of 128 samples::

            selector = OnlineSelector(model, select_per_window=13)
            for batch in loader:
                batch = selector.thin(batch)
                model(**batch).loss.backward()
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        select_per_window: int = 13,
        early_stop: float | None = None,
        alpha: float = 1.0,
        conflict_penalty: float = 0.1,
        fisher: Literal["full", "diagonal", "scalar"] = "full",
        normalize: Normalize = "auto",
        threads: int | None = None,
        **extraction: Any,
    ) -> None:
        for name in extraction:
            if name not in _USED:
                raise TypeError(f"{name} is no argument here; there are {', '.join(_USED)}")
        self._per_window = whole("select_per_window", select_per_window)
        self._settings = Settings.of(extraction, extract)
        self._criterion = Criterion.of(alpha, conflict_penalty, fisher, early_stop, normalize, threads)
        self._criterion.check()
        self._model = model
        self._gradients: WindowGradients | None = None
        self.history: list[dict[str, Any]] = []

    def choose(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the places (m,) int64 in the batch of the picks, in the order of picking.

        Args:
            batch: `input_ids` and `labels` (B, T), labels not shifted, -100 where not learned; `attention_mask` (B, T)
                if there is padding, on either side. Samples without a learned token are never picked. A row is one sample:
                packed ones are refused, as is what would be left out (weights, images).

        Raises:
            InvalidInputError: The batch is something else, or has nothing to learn.
        """
        samples = samples_of(batch, self._model)
        if not self.history and len(batch["input_ids"]) == 1:
            raise InvalidInputError(
                f"batch: found one row, expected a window to pick from: {APART}; and give it more rows "
                "(per_device_train_batch_size)."
            )
        if self._gradients is None:
            device = next(self._model.parameters()).device
            tokens = self._settings.tokens_per_batch or TOKENS_PER_BATCH.get(device.type, 2048)
            self._gradients = WindowGradients(
                self._model,
                tracking_of(self._settings, fresh=False),
                device,
                tokens,
                loss_fn=self._settings.loss_fn,
                gradient_checkpointing=self._settings.gradient_checkpointing,
                autocast=self._settings.autocast,
            )
        else:
            self._gradients.refresh()  # the loop may have made steps, frozen layers, or put an adapter in
        window = self._gradients.of(samples)
        k = min(self._per_window, len(samples))
        selection, _ = self._criterion.choose(window.rows, window.index, window.tokens, k, "batch")
        self.history.append(window.summary(selection))
        return torch.from_numpy(selection.indices)

    def thin(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch of the picks alone, in the order of picking, without columns that are padding for all of them.

        Args:
            batch: As for `choose`; other tensors with a row for each sample are thinned out with it.
        """
        places = self.choose(batch)
        rows, columns = batch["input_ids"].shape
        mask = batch.get("attention_mask")
        width = columns
        if mask is not None:
            used = torch.nonzero(mask[places.to(mask.device)].bool().any(dim=0))
            width = (
                int(used.max()) + 1 if used.numel() else columns
            )  # padding on the left decides positions: it stays
        thinned = {}
        for name, value in batch.items():
            if name == "position_ids" and value is not None:
                if value.ndim > 1 and value.shape[-2] == rows:
                    value = value[..., places.to(value.device), :]
                value = value[..., :width]
            elif isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == rows:
                value = value[places.to(value.device)]
                if value.ndim > 1 and value.shape[1] == columns:
                    value = value[:, :width]
            elif isinstance(value, list | tuple) and len(value) == rows:
                value = [value[place] for place in places.tolist()]
            thinned[name] = value
        return thinned


def select_online(trainer: Any, **options: Any) -> OnlineSelector:
    """Let a Trainer learn from the picks of each of its batches alone.

    Set `per_device_train_batch_size` to the size of a window (the paper: 128), and `gradient_accumulation_steps` to the
    windows between two steps (10). Then call this, then `trainer.train()`. Metrics of the selection go where the
    Trainer's own go, every `logging_steps`. One process, one sample a row: without packing. A Trainer that smooths labels
    or has a `compute_loss_func` learns by another loss than the model's: give it as `loss_fn` too.

    Args:
        trainer: A `transformers.Trainer` or one derived from it, with a causal language model and batches of
            `input_ids` and `labels`.
        options: Arguments of `OnlineSelector`, for example select_per_window.

    Returns:
        The selector, whose `history` grows; `trainer.get_batch_samples` is set to what fetches and selects.

    Raises:
        InvalidInputError: The trainer, an argument or the model cannot be used.
    """
    fetch = getattr(trainer, "get_batch_samples", None)
    if fetch is None:
        raise InvalidInputError(
            f"trainer: found {type(trainer).__name__}, expected a transformers.Trainer with get_batch_samples (4.46 or"
            " later). In a loop of your own use OnlineSelector."
        )
    if trainer.args.world_size > 1 or getattr(trainer.args, "n_gpu", 1) > 1:
        raise InvalidInputError(
            f"trainer: found {max(trainer.args.world_size, trainer.args.n_gpu)} devices, expected one process with one."
            " Start it on one, or select beforehand with spice_rs.run_schedule."
        )
    check_trainer(trainer)
    if options.get("loss_fn") is None:
        check_loss(trainer)
    selector = OnlineSelector(trainer.accelerator.unwrap_model(trainer.model), **options)
    step = -1

    def get_batch_samples(batches: Iterator[Any], *rest: Any) -> Any:
        nonlocal step
        result = fetch(map(selector.thin, batches), *rest)  # map fetches nothing before it is asked for
        state, every = trainer.state, max(1, int(trainer.args.logging_steps))
        if state.global_step != step and state.global_step % every == 0 and result[0]:
            latest = selector.history[-len(result[0]) :]
            trainer.log(
                {f"spice_{name}": float(np.mean([each[name] for each in latest])) for name in latest[0]}
            )
        step = state.global_step
        return result

    trainer.get_batch_samples = get_batch_samples
    return selector
