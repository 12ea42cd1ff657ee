"""Examples → per-sample gradients → store: one forward and one backward per batch.

`extract` reads the data, prepares the proxy model, and asks the store which rows it lacks; those are computed
longest first, so that a run that fits in memory at its start fits to its end. A row is the projected gradient
of the *summed* loss of a sample's learned tokens, and is stored with that loss and the number of those
tokens: whether the selection sees sums, means or unit rows is decided when the rows are read. It does not
depend on the batch in which it was computed.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from typing import Any, Literal

import numpy as np
import torch

from spice_rs.batching import collate, longest_first, take_batch
from spice_rs.dataset import (
    Example,
    Examples,
    Records,
    dataset_fingerprint,
    load_records,
    tokenise,
    tokenizer_fingerprint,
)
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.hooks import GradientCapture
from spice_rs.left_out import reasons, write_left_out
from spice_rs.loss import LossFunction, SummedLoss
from spice_rs.progress import bar
from spice_rs.projection import DEFAULT_NNZ, DEFAULT_SIDE, Kind, NoProjection, make_projection
from spice_rs.proxy import (
    TargetModules,
    Tracked,
    fresh_lora,
    limits,
    load_model,
    load_tokenizer,
    output_head,
    prepared,
    track,
    warn_of_coverage,
    weight_fingerprint,
)
from spice_rs.store import GradientStore, GradientWriter

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
"""Padded tokens per batch where the caller does not say."""

_SAMPLES_PER_BATCH = 256  # what is formed per sample besides activations is at most 4 MB
_ROW_CELLS = 1 << 28  # cells of one batch's rows: 1 GB in float32, met with projection="none" alone


def extract(
    model: Any,
    data: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    dim: int = 4096,
    projection: Kind = "sparse",
    seed: int = 0,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    target_modules: TargetModules = None,
    lora_rank: int | None = None,
    gguf_file: str | None = None,
    max_length: int = 2048,
    tokens_per_batch: int | None = None,
    completion_only: bool = True,
    device: str | torch.device | None = None,
    loss_fn: LossFunction | None = None,
    progress: bool | None = None,
    skip_bad: bool = False,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    nnz: int = DEFAULT_NNZ,
    side: int = DEFAULT_SIDE,
    trust_remote_code: bool = False,
) -> GradientStore:
    """Computes the gradient row of every sample that the store lacks.

    Args:
        model: Folder, hub id, or a causal language model as a torch module (a PeftModel included). A module comes
            back as it was: training flags, requires_grad, device.
        data: A .jsonl, .json or .parquet file, a hub id or folder for `datasets`, a Dataset, or a list of records;
            see `spice_rs.records.load_records`.
        out: The store's folder. Rows already there are kept, missing ones computed.
        tokenizer: A tokenizer, its folder or its hub id. Default: the one beside the model; needed if `model` is a
            module and the data are text.
        dim: Columns of a row; without meaning for projection="none".
        projection: "sparse" (a count sketch of every weight), "two_sided" (both sides of each layer's outer
            product first), "rademacher" (dense signs) or "none"; see `spice_rs.projection`.
        seed: Of the projection, and of the fresh LoRA's A.
        dtype: How the store keeps cells.
        target_modules: Names of modules or ends of them, or a pattern for whole names. Default: what is trainable
            if that is a part of the model, else all linear layers but the output head.
        lora_rank: Take gradients at a fresh LoRA of this rank (B = 0, so of B alone) instead of the weights.
        gguf_file: Name of the GGUF file in the model's folder.
        max_length: Tokens kept per sample.
        tokens_per_batch: Padded tokens per batch; halved where memory runs out. Default: `TOKENS_PER_BATCH`.
        completion_only: Learn the assistant's turns alone, else all tokens.
        device: Default: the module's own; for a path the GPU if there is one.
        loss_fn: (logits (B, T, V), labels (B, T) unshifted, -100 where not learned) → (B,), one loss per sample.
            Known to the store by its name.
        progress: Show a progress bar; None: if stderr is a terminal.
        skip_bad: Leave out records that cannot be used, instead of stopping; they are counted by reason and listed
            in `OUT.left-out.jsonl`, one line with row and reason each.
        columns: Field → column, for data with other names of columns: {"prompt": "frage", "response": "antwort"};
            see `spice_rs.records.FIELDS`.
        limit: Only the rows below this index.
        nnz: Buckets per coordinate of sparse projections.
        side: p of the two-sided projection.
        trust_remote_code: Let `transformers` run code that comes with the model.

    Returns:
        The open store; `index` of a row is the row of the data.

    Raises:
        InvalidInputError: An argument, a record or the model cannot be used.
        StoreMismatchError: `out` was made with other settings, weights or data.
    """
    _check_counts(limit=limit, tokens_per_batch=tokens_per_batch)
    records = load_records(data, skip_bad=skip_bad, columns=columns)
    place = _device(model, device)
    network, model_name = load_model(
        model, gguf_file=gguf_file, device=place, trust_remote_code=trust_remote_code
    )
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer, gguf_file=None, trust_remote_code=trust_remote_code)
    elif tokenizer is None and any(record.tokens is None for record in records):
        tokenizer = load_tokenizer(model, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    chosen = [record for record in records if limit is None or record.index < limit]
    examples = tokenise(
        chosen, tokenizer, max_length=max_length, completion_only=completion_only, skip_bad=skip_bad
    )
    if not examples:
        raise InvalidInputError(
            f"{records.source}: nothing to learn among the first {limit or records.rows} rows; "
            f"the first reason: {[*records.bad, *examples.skipped, 'no record'][0]}"
        )
    _check_limits(network, examples)

    with ExitStack() as stack:
        adapter = None
        if lora_rank is not None:
            network, adapter = stack.enter_context(fresh_lora(network, lora_rank, target_modules, seed))
        # A fresh LoRA's own trainable parameters are all that is tracked.
        tracked = track(network, None if lora_rank is not None else target_modules)
        warn_of_coverage(tracked)
        projector = make_projection(projection, tracked.parameters, dim=dim, seed=seed, nnz=nnz, side=side)
        provenance: dict[str, Any] = {
            "model": {"id": model_name, "weights": weight_fingerprint(network), "adapter": adapter},
            "tracked": _describe_tracked(tracked),
            "projection": projector.settings(),
            "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
            "template": examples.template,
            "loss": "cross_entropy" if loss_fn is None else _name_of(loss_fn),
            "completion_only": completion_only,
            "max_length": max_length,
            "dataset": {"fingerprint": dataset_fingerprint(records), "rows": records.rows},
        }
        if isinstance(projector, NoProjection):
            provenance["layout"] = projector.layout
        stack.enter_context(prepared(network, place))
        writer = stack.enter_context(
            GradientStore.create(out, dim=projector.dim, dtype=dtype, reduction="sum", provenance=provenance)
        )
        _report(records, examples, max_length, out)
        present = writer.contains(np.array([example.index for example in examples], dtype=np.int64))
        missing = [example for example, there in zip(examples, present, strict=True) if not there]
        loss = SummedLoss(network, output_head(network, tracked), loss_fn)
        run = _Run(loss, GradientCapture(tracked.layers, projector), place)
        run.fill(writer, missing, tokens_per_batch or TOKENS_PER_BATCH.get(place.type, 2048), progress)
    return GradientStore(out)


class _Run:
    """Computes batches and writes them while the next one is computed."""

    def __init__(self, loss: SummedLoss, capture: GradientCapture, device: torch.device) -> None:
        self.loss = loss
        self.capture = capture
        self.device = device

    def fill(
        self, writer: GradientWriter, examples: Sequence[Example], tokens: int, progress: bool | None
    ) -> None:
        """Appends the rows of `examples`. An interrupt leaves the rows written so far committed."""
        total = sum(len(example.input_ids) for example in examples)
        shown = bar(progress, total=total, what="extract", unit="tokens")
        done, started = 0, time.perf_counter()
        with self.capture.attached(), closing(shown), ThreadPoolExecutor(1, "spice-write") as pool:
            pending: Future[None] | None = None
            for batch, rows, losses in self._batches(longest_first(examples), tokens):
                if pending is not None:
                    pending.result()  # one batch is written at a time, and its errors are raised here
                pending = pool.submit(_append, writer, batch, rows, losses)
                done += len(batch)
                shown.update(sum(len(example.input_ids) for example in batch))
                rate = done / (time.perf_counter() - started)
                shown.set_postfix_str(f"{done}/{len(examples)} rows, {rate:.3g} rows/s", refresh=False)
            if pending is not None:
                pending.result()

    def _batches(
        self, examples: Sequence[Example], tokens: int
    ) -> Iterator[tuple[Sequence[Example], torch.Tensor, torch.Tensor]]:
        """Batches with their rows (B, dim) and losses (B,) on the device, smaller when memory runs out."""
        samples = max(1, min(_SAMPLES_PER_BATCH, _ROW_CELLS // self.capture.projection.dim))
        start = 0
        while start < len(examples):
            batch = take_batch(examples, start, tokens, samples)
            result = self._compute_or_none(batch)
            if result is None:
                # Only here, where the failed batch's tensors are no longer referenced.
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if len(batch) == 1:
                    raise InvalidInputError(
                        f"row {batch[0].index}: its {len(batch[0].input_ids)} tokens alone need more memory "
                        "than there is; lower max_length, or track fewer layers with target_modules"
                    )
                tokens = len(batch[0].input_ids) * (len(batch) // 2)
                continue
            yield batch, *result
            start += len(batch)

    def _compute_or_none(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None if memory ran out."""
        try:
            return self._compute(examples)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            text = str(error).lower()
            if "out of memory" not in text and "can't allocate memory" not in text:
                raise
            return None

    def _compute(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = collate(examples, self.device)
        samples, length = batch.input_ids.shape
        on_gpu = self.device.type == "cuda"
        with self.capture.batch(samples, length, self.device) as rows, torch.enable_grad():
            with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
                losses = self.loss(batch.input_ids, batch.attention_mask, batch.labels)
            if losses.shape != (samples,):
                raise InvalidInputError(
                    f"loss_fn gave shape {tuple(losses.shape)}, expected ({samples},): one loss per sample"
                )
            if not losses.requires_grad:
                raise InvalidInputError(
                    "no tracked layer takes part in the loss; check target_modules and loss_fn"
                )
            losses.sum().backward()  # samples do not mix, so each row gets its own loss's gradient
        return rows, losses.detach()


def _append(
    writer: GradientWriter, batch: Sequence[Example], rows: torch.Tensor, losses: torch.Tensor
) -> None:
    """Waits for the device and writes; runs beside the next batch."""
    writer.append(
        rows.cpu().numpy(),
        index=np.array([example.index for example in batch], dtype=np.int64),
        num_tokens=np.array([example.num_tokens for example in batch], dtype=np.int32),
        loss=losses.to(device="cpu", dtype=torch.float32).numpy(),
    )


def _device(model: Any, device: str | torch.device | None) -> torch.device:
    if device is not None:
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # unknown, or not on this machine
            reason = str(error).splitlines()[0]
            raise InvalidInputError(
                f"device is {str(device)!r}: {reason}; use one that this machine has"
            ) from None
        return torch.device(device)
    if isinstance(model, torch.nn.Module):
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise InvalidInputError("model has no parameters, expected a causal language model")
        return parameter.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidInputError(f"{name} is {value!r}, expected a positive integer")


def _check_limits(network: torch.nn.Module, examples: Examples) -> None:
    """Says in words what would be an index out of range in the middle of the run (on a GPU, a crash)."""
    vocabulary, positions = limits(network)
    for example in examples:
        largest = int(max(example.input_ids.max(), example.labels.max()))
        if vocabulary is not None and largest >= vocabulary:
            raise InvalidInputError(
                f"row {example.index}: token id {largest}, expected ids below the model's {vocabulary}; "
                "use the tokenizer that belongs to the model"
            )
        if positions is not None and len(example.input_ids) > positions:
            raise InvalidInputError(
                f"row {example.index}: {len(example.input_ids)} tokens, expected at most the model's "
                f"{positions} positions; set max_length={positions} or lower"
            )


def _describe_tracked(tracked: Tracked) -> dict[str, Any]:
    shapes = [[parameter.name, list(parameter.shape)] for parameter in tracked.parameters]
    return {
        "layers": len(tracked.layers),
        "coordinates": sum(parameter.numel for parameter in tracked.parameters),
        "coverage": round(tracked.coverage, 6),
        "zero_lora": tracked.zero_lora,
        "names": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


def _name_of(loss_fn: Any) -> str:
    """The name by which a store tells one loss from another; a lambda has none of its own."""
    kind = loss_fn if hasattr(loss_fn, "__qualname__") else type(loss_fn)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if "<lambda>" in name or kind is functools.partial:
        raise InvalidInputError(
            f"loss_fn is {name}, expected a function with a name; the store knows the loss by it, so use def"
        )
    return name


def _report(records: Records, examples: Examples, max_length: int, out: str | os.PathLike[str]) -> None:
    """Lists samples that were left out beside the store, and warns of them and of cut ones."""
    left_out = [*records.bad, *examples.skipped]
    listed = write_left_out(left_out, out)
    if left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons(left_out).items())
        warnings.warn(
            f"{len(left_out)} of {records.rows} records were left out ({counts}; all in {listed}); "
            f"the first: {left_out[0]}",
            SpiceWarning,
            stacklevel=3,
        )
    if examples.truncated:
        warnings.warn(
            f"{examples.truncated} of {len(examples)} samples were cut to max_length={max_length} tokens",
            SpiceWarning,
            stacklevel=3,
        )
