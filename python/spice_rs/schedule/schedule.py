"""The paper's loop: select in a window, collect, and after every few windows let the proxy learn what was collected.

The order of the pool is a seeded permutation, cut into windows. For each window: gradients with the proxy as it is now,
`select_per_window` picks by the greedy criterion (F and the mean begin anew), and one line of metrics. After `interval`
windows, one optimiser step on what they gave. Then the window is on disk, and the next one begins.

`window.py` has the gradients and the picks, `training.py` the step, `state.py` what survives a kill.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spice_rs.arguments import flag_or_none, real, real_or_none, whole, whole_or_none
from spice_rs.data.left_out import reasons
from spice_rs.data.matching import LAYOUT, Belonging
from spice_rs.data.splits import with_split
from spice_rs.data.templates import recorded_date
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.batching import Samples
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.gradients import changed_products
from spice_rs.extraction.identity import settings_of, weight_fingerprint
from spice_rs.extraction.inputs import Inputs, read_text
from spice_rs.extraction.loading import device_of
from spice_rs.extraction.own_data import is_own
from spice_rs.extraction.preparation import name_of
from spice_rs.extraction.proxy import (
    warn_unless_checkpointed,
)
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import TOKENS_PER_BATCH, Settings
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.progress import Bar, bar, libraries_silent
from spice_rs.schedule.adapter import save_trained, trainable
from spice_rs.schedule.arguments import run_folder
from spice_rs.schedule.metrics import Metrics
from spice_rs.schedule.result import Schedule
from spice_rs.schedule.state import RunState
from spice_rs.schedule.training import Optimisation, ProxyTraining
from spice_rs.schedule.window import Criterion, WindowGradients, tracking_of
from spice_rs.selection.arguments import alpha_number
from spice_rs.selection.picks import joined, write_lines
from spice_rs.selection.result import Selection
from spice_rs.store.sources import Normalize

WARM_UP = 0.1
"""Share of the steps over which the learning rate grows, where the caller does not say."""

_NO_ARGUMENT = ("dtype", "optimizer", "checkpoints", "checkpoint_weights")
"""Arguments of `extract` that mean nothing where no store is written, of the proxy as it is at each window."""


def run_schedule(
    model: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    pool_size: int = 128,
    select_per_window: int = 13,
    interval: int | None = 10,
    early_stop: float | None = None,
    alpha: float = 1.0,
    conflict_penalty: float = 0.1,
    fisher: Literal["full", "diagonal", "scalar"] = "full",
    normalize: Normalize = "auto",
    seed: int = 0,
    learning_rate: float = 2e-4,
    warmup_steps: int | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    threads: int | None = None,
    progress: bool | None = None,
    tensorboard: bool | None = None,
    **extraction: Any,
) -> Schedule:
    """Select window by window with a proxy that learns from what was selected (SPICE's interleaved schedule).

    The samples are shuffled by `numpy.random.default_rng(seed).permutation(n)` and cut into windows. Each window's
    gradients are taken with the proxy as it is then; after every `interval` windows, and after the last one, AdamW makes
    one step on all that was picked since the step before, its loss being the cross-entropy per learned token. Trained is
    what is trainable in the model if that is a part of it (a LoRA), else a fresh LoRA (rank 16, alpha 32) on its linear
    layers.

    A run that was killed goes on from its last window when it is called again, with the same picks and, on a CPU with as
    many threads, the same weights bit for bit.

    Args:
        model: As for `extract`. A module is trained in place, and comes back untouched if the run does not finish.
        data: Text, as for `extract`.
        out: Folder for `picks.jsonl` (the chosen records with a key "spice", at the end), `metrics.jsonl` (one line for
            each window and step, while it goes on), `adapter` (the trained weights, at the end) and `state`.
        pool_size: Samples of a window; the last one may have fewer.
        select_per_window: Samples to pick from each window.
        interval: Windows between two optimiser steps; the paper has 1, 10 and 50. With more than there are, the only step
            is the one after the last window, so that no pick depends on it. None: the proxy never learns, and the picks
            are those of `select` with `pool_size`.
        early_stop: ω in (0, 1): a window ends before a row whose Δ is at most ω times that of its first pick.
        alpha: Weight α of the Fisher information.
        conflict_penalty: λ, what conflict with the mean of the window's picks costs.
        fisher: As for `select`.
        normalize: Scale of the rows, as for `select`; "auto" is "mean", the paper's loss.
        seed: Of the order of the samples, the fresh LoRA, the projection, and dropout in training.
        learning_rate: Of AdamW, after the warm-up.
        warmup_steps: Steps over which the learning rate grows linearly; then it stays. Default: a tenth of all steps.
        weight_decay: Of AdamW.
        max_grad_norm: Longer gradients are scaled down to this norm; None for never.
        threads: Threads that select; all cores by default.
        progress: Show a progress bar; None: if stderr is a terminal. False: nor those of transformers.
        tensorboard: Write the metrics to `OUT/tensorboard` too; None: if the package is installed.
        extraction: Further arguments of `extract`, for example max_length, dim, lora_rank, target_modules.

    Returns:
        The picks of all windows in order, and the trained proxy.

    Raises:
        InvalidInputError: An argument, a record or the model cannot be used, or training diverges.
        StoreMismatchError: `out` has a run with other settings, weights or data.
        StoreError: The state in `out` is damaged, or something else.
        KeyboardInterrupt: Ctrl-C; what was done before the last window is kept.

    Warns:
        SpiceWarning: Samples were left out or cut, or a setting did nothing in most windows.
    """
    for name in _NO_ARGUMENT:
        if name in extraction:
            reason = "no store is written" if name == "dtype" else "gradients are those of the proxy as it is"
            raise TypeError(f"{name} is no argument of run_schedule: {reason}")
    settings = Settings.of({**extraction, "seed": whole("seed", seed, least=0)}, extract)
    if settings.device is not None:
        device_of(None, settings.device)
    seed, out = settings.seed, local(out, "out")
    pool_size = whole("pool_size", pool_size)
    select_per_window = whole("select_per_window", select_per_window)
    interval, warmup_steps = whole_or_none("interval", interval), whole_or_none("warmup_steps", warmup_steps)
    learning_rate = real("learning_rate", learning_rate, above=0)
    weight_decay = real("weight_decay", weight_decay, least=0)
    max_grad_norm = real_or_none("max_grad_norm", max_grad_norm, above=0)
    progress, tensorboard = flag_or_none("progress", progress), flag_or_none("tensorboard", tensorboard)
    criterion = Criterion.of(alpha_number(alpha), conflict_penalty, fisher, early_stop, normalize, threads)
    if Rank.current().count > 1:
        raise InvalidInputError(
            f"found {counted(Rank.current().count, 'process')}, expected one: each window needs the proxy that"
            " the one before has"
            " trained. Start it without torchrun."
        )
    data = with_split(data, settings.split)
    if settings.loss_fn is not None and is_own(data, settings.columns, settings.loss_fn):
        raise InvalidInputError(
            "data: found samples of your own, expected text: records, chats or tokens with labels. Write the loop with"
            " spice_rs.extract and spice_rs.select."
        )
    normalized = criterion.check()
    told = recorded_date(Path(out) / "state" / "state.json", "run")
    with libraries_silent(progress):
        inputs = read_text(model, data, settings, template_date=told, out=out, progress=progress)
    order = np.random.default_rng(seed).permutation(len(inputs.samples))
    samples = inputs.samples[order]
    windows = [samples[start : start + pool_size] for start in range(0, len(samples), pool_size)]
    if select_per_window > len(windows[0]):
        raise InvalidInputError(
            f"select_per_window: found {select_per_window}, expected a number from 1 to {len(windows[0])}, the samples of a"
            " window. Ask for fewer, or use wider windows."
        )
    plan = _Plan(samples, windows, select_per_window, interval)
    if warmup_steps is None:
        warmup_steps = max(1, round(WARM_UP * plan.steps))
    folder = run_folder(out, data)

    with trainable(inputs, settings) as trained:
        tokens = settings.tokens_per_batch or TOKENS_PER_BATCH.get(inputs.device.type, 2048)
        gradients = WindowGradients(
            trained.network,
            tracking_of(settings, fresh=trained.lora is not None),
            inputs.device,
            tokens,
            loss_fn=settings.loss_fn,
            gradient_checkpointing=settings.gradient_checkpointing,
            autocast=settings.autocast,
        )
        training = ProxyTraining(
            trained.network,
            trained.parameters,
            inputs.device,
            tokens,
            Optimisation(learning_rate, warmup_steps, weight_decay, max_grad_norm, seed),
            gradient_checkpointing=settings.gradient_checkpointing,
            autocast=settings.autocast,
        )
        run = {
            "pool_size": pool_size,
            "select_per_window": select_per_window,
            "interval": interval,
            "alpha": criterion.alpha,
            "conflict_penalty": criterion.conflict_penalty,
            "fisher": criterion.fisher,
            "early_stop": criterion.early_stop,
            "normalize": normalized,
            "seed": seed,
            "learning_rate": learning_rate,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "target_modules": settings.target_modules,
            "norms": settings.norms,
            "embeddings": settings.embeddings,
            "projection": gradients.projection.settings(),
            "loss": "cross_entropy" if settings.loss_fn is None else name_of(settings.loss_fn),
            "lora": trained.lora,
            "model": inputs.name,
            "weights": weight_fingerprint(trained.network),
            "settings": settings_of(trained.network),
            "samples": len(samples),
            "windows": len(windows),
            **inputs.provenance,
        }
        products = changed_products(inputs.device, settings.autocast)
        if products is not None:
            run["autocast"] = products
        _warn_of_inputs(inputs, settings)
        warn_unless_checkpointed(trained.network, settings.gradient_checkpointing, stacklevel=2)
        with closing(RunState(folder / "state", run)) as state:
            saved = state.tensors()
            if saved is not None:
                training.restore(saved)
                gradients.refresh()
            with (
                Metrics(folder, kept=state.metrics, window=state.window, tensorboard=tensorboard) as metrics,
                closing(bar(progress, total=len(windows), what="run", unit="windows")) as shown,
            ):
                shown.update(state.window)
                advice = _go_on(state, plan, gradients, training, criterion, metrics, shown)
            save_trained(trained, folder / "adapter")
            write_lines(joined(state.picks, data, _belonging(inputs, settings)), folder / "picks.jsonl")
    _warn_of_windows(advice)
    return Schedule.of(
        state.picks, losses=state.losses, model=trained.network, settings=run, folder=str(folder)
    )


def _belonging(inputs: Inputs, settings: Settings) -> Belonging:
    """What the run has read, against what is there when its picks are joined with the data."""
    layout = {name: value for name in LAYOUT if (value := getattr(settings, name)) is not None}
    hashed = inputs.hashed
    return Belonging("this run", inputs.rows, layout=layout, rows=hashed.rows, hashes=hashed.hashes)


class _Plan:
    """Windows, and after which of them the proxy learns."""

    def __init__(
        self, samples: Samples, windows: Sequence[Samples], per_window: int, interval: int | None
    ) -> None:
        self.samples = samples
        self.windows = windows
        self.per_window = per_window
        self.interval = interval
        self.steps = 0 if interval is None else -(-len(windows) // interval)

    def step_due(self, window: int) -> bool:
        """Whether the proxy learns after a window, counted from 0."""
        last = window + 1 == len(self.windows)
        return self.interval is not None and (last or (window + 1) % self.interval == 0)


def _go_on(
    state: RunState,
    plan: _Plan,
    gradients: WindowGradients,
    training: ProxyTraining,
    criterion: Criterion,
    metrics: Metrics,
    shown: Bar,
) -> list[list[str]]:
    """Do the windows that are left; return what each had to warn of."""
    advice = []
    for number in range(state.window, len(plan.windows)):
        begun = time.perf_counter()
        window = gradients.of(plan.windows[number])
        per_window = min(plan.per_window, len(window.index))
        selection, messages = criterion.choose(
            window.rows, window.index, window.tokens, per_window, f"window {number}"
        )
        advice.append(messages)
        made = len(state.losses)
        picks = _picks(selection, first=len(state.picks), window=number, step=made)
        seconds = time.perf_counter() - begun
        metrics.write(
            "window",
            number + 1,
            {**window.summary(selection), "stop_reason": selection.stop_reason, "seconds": seconds},
        )
        step = None
        if plan.step_due(number):
            since = [pick["index"] for pick in (*state.picks, *picks) if pick["step"] == made]
            begun = time.perf_counter()
            step = training.step(gradients.task, list(plan.samples.of_rows(since)), made)
            seconds = time.perf_counter() - begun
            metrics.write("step", number + 1, {**asdict(step), "seconds": seconds})
            gradients.refresh()
        state.advance(
            picks,
            loss=None if step is None else step.loss,
            tensors=None if step is None else training.tensors(),
            metrics=metrics.length,
        )
        shown.update(1)
        loss = f", loss {state.losses[-1]:.3g}" if state.losses else ""
        shown.set_postfix_str(
            f"{counted(len(state.picks), 'pick')}, {counted(len(state.losses), 'step')}{loss}", refresh=False
        )
    return advice


def _picks(selection: Selection, *, first: int, window: int, step: int) -> list[dict[str, Any]]:
    return [
        {
            "index": int(row),
            "rank": first + place,
            "gain": float(selection.gains[place]),
            "conflict": float(selection.conflict[place]),
            "score": float(selection.scores[place]),
            "window": window,
            "step": step,
        }
        for place, row in enumerate(selection.indices)
    ]


def _warn_of_inputs(inputs: Inputs, settings: Settings) -> None:
    """Warn of samples that were left out or cut."""
    if inputs.left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons(inputs.left_out).items())
        _warn(
            f"{len(inputs.left_out)} of {counted(inputs.rows, 'record')} were left out ({counts}); the first:"
            f" {inputs.left_out[0]}"
        )
    for note in inputs.notes:
        _warn(note)
    if inputs.truncated:
        _warn(
            f"{inputs.truncated} of {counted(len(inputs.samples), 'sample')} were cut to"
            f" max_length={settings.max_length} tokens"
        )


def _warn_of_windows(advice: Sequence[Sequence[str]]) -> None:
    """Warn once of what was said of at least half of the windows."""
    kinds: dict[str, list[str]] = {}
    for message in (message for messages in advice for message in messages):
        kinds.setdefault(re.sub(r"[-+.\de]+", "#", message), []).append(message)
    for messages in kinds.values():
        if 2 * len(messages) >= len(advice):
            _warn(
                f"in {len(messages)} of {counted(len(advice), 'window')}, as in the first of them: {messages[0]}"
            )


def _warn(message: str) -> None:
    warnings.warn(message, SpiceWarning, stacklevel=4)  # whoever called run_schedule
