"""Examples → per-sample gradients → store: one forward and one backward per batch.

`extract` reads the data, prepares the proxy model, and asks the store which rows it lacks; those are computed
longest first, so that a run that fits in memory at its start fits to its end. A row is the projected gradient
of the *summed* loss of a sample's learned tokens, and is stored with that loss and the number of those
tokens: whether the selection sees sums, means or unit rows is decided when the rows are read. It does not
depend on the batch in which it was computed.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from spice_rs.arguments import flag_or_none
from spice_rs.atomic import check_folder_place
from spice_rs.data.left_out import reasons, write_left_out
from spice_rs.data.templates import recorded_date
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.extraction.arguments import Kind
from spice_rs.extraction.batching import chosen, rows_of
from spice_rs.extraction.checkpoints import CheckpointSource
from spice_rs.extraction.inputs import Inputs
from spice_rs.extraction.joining import Dataset, check_settings, dataset_of
from spice_rs.extraction.like import check_alike, earlier_store, knows_what_is_given, remember, repeated
from spice_rs.extraction.loss import LossFunction, OwnLossFunction
from spice_rs.extraction.moments import OptimizerState
from spice_rs.extraction.own_data import OwnSample
from spice_rs.extraction.preparation import preparing
from spice_rs.extraction.projection import DEFAULT_NNZ, DEFAULT_SIDE
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import TOKENS_PER_BATCH, Settings
from spice_rs.extraction.token_cache import TokenCache
from spice_rs.extraction.tracking import TargetModules
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.progress import libraries_silent
from spice_rs.store.lease import check_lease, lease
from spice_rs.store.store import STORE_FILE, GradientStore
from spice_rs.store.unfinished import Unfinished, mark, read_mark, unmark

__all__ = ["TOKENS_PER_BATCH", "extract"]


@knows_what_is_given
def extract(
    model: Any = None,
    data: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    dim: int = 4096,
    projection: Kind = "sparse",
    seed: int = 0,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    target_modules: TargetModules = None,
    norms: bool = False,
    embeddings: bool = False,
    min_coverage: float = 0.9,
    lora_rank: int | None = None,
    gguf_file: str | None = None,
    max_length: int = 2048,
    tokens_per_batch: int | None = None,
    completion_only: bool = True,
    gradient_checkpointing: bool = False,
    autocast: bool | None = None,
    device: str | torch.device | None = None,
    loss_fn: LossFunction | OwnLossFunction | None = None,
    progress: bool | None = None,
    skip_bad: bool = False,
    columns: Mapping[str, str] | None = None,
    ignore_columns: str | Sequence[str] | None = None,
    preference: Literal["chosen"] | None = None,
    split: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    nnz: int = DEFAULT_NNZ,
    side: int = DEFAULT_SIDE,
    trust_remote_code: bool = False,
    optimizer: OptimizerState | Sequence[OptimizerState] | None = None,
    checkpoints: Sequence[CheckpointSource] | None = None,
    checkpoint_weights: Sequence[float] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> GradientStore:
    """Computes the gradient row of every sample that the store lacks.

    Args:
        model: Folder, hub id, or a torch module: a causal language model (a PeftModel included), or any module with
            data and a loss of your own. A module comes back as it was: training flags, requires_grad, device. Left out
            with `like` it is that of the earlier store.
        data: A .jsonl, .json, .csv, .tsv or .parquet file, a hub id or folder for `datasets`, a Dataset, a data frame, or a
            list of records; see `spice_rs.data.records.load_records`. With loss_fn also your own data, where data[i] is a
            sample: a tensor, or a tuple or dict of tensors and numbers.
        out: The store's folder. Rows already there are kept, missing ones computed; also where more records have come
            since, as long as those of the rows that are there have stayed as they were, where they were.
        like: An earlier store: the new one gets the gradients of the same model, modules, projection, seeds and settings,
            as a target of `select` must have, or is refused with what differs. What else is given has to be the same,
            also where it is the default.
        tokenizer: A tokenizer, its folder or its hub id. Default: the one beside the model; needed if `model` is a
            module and the data are text.
        dim: Columns of a row; without meaning for projection="none".
        projection: "sparse" (a count sketch of every weight), "two_sided" (both sides of each layer's outer
            product first), "rademacher" (dense signs) or "none"; see `spice_rs.extraction.projection`.
        seed: Of the projection, and of the fresh LoRA's A.
        dtype: How the store keeps cells.
        target_modules: Names of modules or ends of them, or a pattern for whole names. Default: what is trainable
            if that is a part of the model, else all linear layers (fused experts too) but the output head. "!name"
            leaves modules out of what would be tracked without it.
        norms: Track norms as well (trainable ones and those that target_modules names are tracked anyway).
        embeddings: Track embeddings as well, and a head that is tied to them.
        min_coverage: Least share of the parameters meant that must be tracked; less is an error that names what is
            missed.
        lora_rank: Take gradients at a fresh LoRA of this rank (B = 0, so of B alone) instead of the weights.
        gguf_file: Name of the GGUF file in the model's folder.
        max_length: Tokens kept per sample.
        tokens_per_batch: Padded tokens (of your own data: samples) per batch; halved where memory runs out. Default:
            2048 on a CPU and 16384 on a GPU, and never more than 256 samples.
        completion_only: Learn the assistant's turns alone, else all tokens.
        gradient_checkpointing: Form the activations of each block again on the way back, for memory. A module that
            has it on keeps it.
        autocast: Multiply in bfloat16 what the model keeps in float32. Default: on a GPU, and where the caller has
            torch.autocast on; False turns that off. CPUs with bfloat16 units are two to three times as fast with it; a row
            is then off by a per cent or so.
        device: Default: the module's own; for a path the GPU if there is one.
        loss_fn: (logits (B, T, V), labels (B, T) unshifted, -100 where not learned) → (B,), one loss per sample; for
            your own data (model, batch) → (B,), the batch made by torch's default_collate. Known to the store by its
            name.
        progress: Show a progress bar; None: if stderr is a terminal. False: nor those of transformers.
        skip_bad: Leave out records that cannot be used, instead of stopping; they are counted by reason and listed
            in `OUT.left-out.jsonl`, one line with row and reason each.
        columns: Field → column, for data with other names of columns: {"prompt": "frage", "response": "antwort"};
            see `spice_rs.data.records.FIELDS`.
        ignore_columns: Columns that say nothing to learn from, beside those known as such: one name, or several; a key
            of a turn is "messages.key".
        preference: "chosen": of preference data learn the wanted replies; they are refused otherwise.
        split: Which split of the data, where they have several: a DatasetDict, a folder or a hub id. The store remembers
            it. Elsewhere "folder::split" is the same.
        chat_template: File with the chat template to use in place of the tokenizer's own, or "none": prompt and response
            are joined as they stand, and an end token behind them.
        limit: Only the rows below this index.
        nnz: Buckets per coordinate of sparse projections.
        side: p of the two-sided projection.
        trust_remote_code: Let `transformers` run code that comes with the model.
        optimizer: Adam's state from training: gradients are divided by √v̂ + ε, as Adam's steps are. A file or folder
            (optimizer.pt of a checkpoint), a state dict by index or by name, or an optimiser; one for each checkpoint.
            See `spice_rs.extraction.moments`.
        checkpoints: Checkpoints of the model's training, folders of models or adapters or files of tensors by name: a
            row has the gradients at all of them (LESS, arXiv 2402.04333), and inner products are sums over them. The
            model's own weights are used where they have none. See `spice_rs.extraction.views`.
        checkpoint_weights: What each checkpoint counts in these sums: its learning rate, say. Default: 1 each.
        cache_dir: Folder for the tokens of the data, some 4 bytes each, which are read from there while the extraction goes
            on, by all processes of a machine. Default: that of the store. They are removed when the store is whole.

    Returns:
        The open store; `index` of a row is the row of the data. Under `torchrun`, each process computes its share, and
        its store holds what was there when it was done.

    Raises:
        InvalidInputError: An argument, a record or the model cannot be used; gradients are not those of plain autograd,
            or depend on the batch: a few short samples are tried out before the first row.
        StoreMismatchError: `out` was made with other settings, weights or data.
    """
    given = dict(
        tokenizer=tokenizer,
        dim=dim,
        projection=projection,
        seed=seed,
        dtype=dtype,
        target_modules=target_modules,
        norms=norms,
        embeddings=embeddings,
        min_coverage=min_coverage,
        lora_rank=lora_rank,
        gguf_file=gguf_file,
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
        completion_only=completion_only,
        gradient_checkpointing=gradient_checkpointing,
        autocast=autocast,
        device=device,
        loss_fn=loss_fn,
        skip_bad=skip_bad,
        columns=columns,
        ignore_columns=ignore_columns,
        preference=preference,
        split=split,
        chat_template=chat_template,
        limit=limit,
        nnz=nnz,
        side=side,
        trust_remote_code=trust_remote_code,
        optimizer=optimizer,
        checkpoints=checkpoints,
        checkpoint_weights=checkpoint_weights,
        cache_dir=cache_dir,
    )
    settings = Settings.of(given, extract)
    if model is None and like is None:
        raise InvalidInputError(
            "model: found none, expected a folder, a hub id or a torch module. Give one, or like=…."
        )
    if data is None:
        raise InvalidInputError("data: found none, expected the records. Give them.")
    if out is None:
        raise InvalidInputError("out: found none, expected the folder of the store. Give one.")
    progress, out, alike = flag_or_none("progress", progress), local(out, "out"), None
    if like is not None:
        alike = earlier_store(like)
        model, settings = repeated(alike, model, settings)
    check_settings(out, settings)
    check_folder_place(out, "a store")
    if settings.cache_dir is not None:
        check_folder_place(settings.cache_dir, "the tokens of the data")
    rank = Rank.current()
    shown = progress if rank.first else False
    cache = TokenCache.of(out, settings.cache_dir, shown)
    earliest = out if alike is None or (Path(out) / STORE_FILE).exists() else alike.path
    template_date = recorded_date(Path(earliest) / STORE_FILE, "provenance")
    with ExitStack() as stack:
        stack.enter_context(libraries_silent(progress))
        stack.push(functools.partial(_tidy, out, cache))
        ready = stack.enter_context(
            preparing(
                model,
                data,
                settings,
                template_date=template_date,
                out=out,
                cache=cache,
                progress=shown,
            )
        )
        inputs, run = ready.inputs, ready.run()
        if alike is not None:
            check_alike(alike, "sum", ready.provenance)
        share = rank.slice(inputs.samples)
        if not os.path.exists(out) or (os.path.isdir(out) and not os.listdir(out)):
            run.prepare(share)  # what is refused leaves no store behind
        earlier = GradientStore(out) if (Path(out) / STORE_FILE).exists() else None
        dataset = dataset_of(inputs, settings, earlier)
        provenance = {**ready.provenance, "dataset": dataset.recorded}
        create = functools.partial(
            GradientStore.create,
            out,
            dim=ready.projection.dim,
            dtype=settings.dtype,
            reduction="sum",
            provenance=provenance,
        )
        if rank.first:
            create().close()  # the folder, if it is not there
            stack.enter_context(lease(out, rank.run))
            remember(out, model, settings)
        elif rank.run is not None:
            check_lease(out, rank.run)  # the first of this run has it
        writer = stack.enter_context(create())  # which knows of all rows that anybody before has written
        if rank.first:
            _report(inputs, dataset, settings.max_length, out)
        _mark(out, inputs)
        dataset.note(out)  # before the first row of a new record is there
        present = np.asarray(writer.contains(rows_of(share)), np.bool_)
        there, missing = chosen(share, present), chosen(share, ~present)
        # A store of an earlier version goes on as it began.
        without = earlier is not None and len(earlier) > 0 and earlier.record is None
        hashed = None if without else inputs.hashed
        run.fill(writer, missing, shown, hashed=hashed, there=there)
    store = GradientStore(out)
    if store.expected_rows is None:  # whichever process is the last sees that
        unmark(out)
        if cache is not None:
            cache.remove()
            if (beside := TokenCache.of(out, None)) is not None:
                beside.remove()  # of a run that had another folder for them
    return store


def _tidy(
    out: str | os.PathLike[str], cache: TokenCache | None, _: object, error: object, __: object
) -> None:
    """Leaves tokens for the next run alone, or for processes that have not begun: not where this one is refused."""
    refused = isinstance(error, InvalidInputError | StoreMismatchError)
    if cache is not None and (refused or read_mark(out) is None):
        cache.remove()


def _mark(out: str | os.PathLike[str], inputs: Inputs) -> None:
    """Marks the store as unfinished, if rows of any process are missing."""
    store = GradientStore(out)
    expected = len(np.union1d(store.index, rows_of(inputs.samples)))
    if len(store) < expected and (store.expected_rows or 0) < expected:  # one of a larger limit stays
        text = not isinstance(inputs.samples[0], OwnSample)
        mark(out, Unfinished(expected, longest_first=text))


def _report(inputs: Inputs, dataset: Dataset, max_length: int, out: str | os.PathLike[str]) -> None:
    """Lists samples that were left out beside the store, and warns of them, of cut ones and of data that have grown."""
    if dataset.grown is not None:
        warnings.warn(
            f"{os.fspath(out)}: {inputs.source} has {counted(inputs.rows, 'record')}, and there were"
            f" {dataset.before}; the rows that"
            " are there stay, those of the new records are added, and the store belongs to the grown data from now on",
            SpiceWarning,
            stacklevel=3,
        )
    listed = write_left_out(inputs.left_out, out)
    if inputs.left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons(inputs.left_out).items())
        warnings.warn(
            f"{len(inputs.left_out)} of {counted(inputs.rows, 'record')} were left out ({counts}; all in {listed}); "
            f"the first: {inputs.left_out[0]}",
            SpiceWarning,
            stacklevel=3,
        )
    for note in inputs.notes:
        warnings.warn(note, SpiceWarning, stacklevel=3)
    if inputs.truncated:
        warnings.warn(
            f"{inputs.truncated} of {counted(len(inputs.samples), 'sample')} were cut to max_length={max_length} tokens",
            SpiceWarning,
            stacklevel=3,
        )
