"""Everything before the first gradient: data read, model loaded, layers chosen, the loss put together.

`extract`, `plan` and `doctor` begin here, so that they mean the same rows.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from spice_rs.data.dataset import (
    Examples,
    Record,
    dataset_fingerprint,
    load_records,
    tokenise,
    tokenizer_fingerprint,
)
from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.records import record_hash
from spice_rs.data.splits import parted, with_split
from spice_rs.data.templates import read_template
from spice_rs.data.tokens import unmasked_padding
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.batching import Sample, Task, TextTask
from spice_rs.extraction.checkpoints import Checkpoint, make_views, read_checkpoints
from spice_rs.extraction.gradients import GradientRun, changed_products
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.identity import settings_of, weight_fingerprint
from spice_rs.extraction.loss import SummedLoss
from spice_rs.extraction.own_data import OwnSample, OwnTask, is_own, recognised
from spice_rs.extraction.projection import NoProjection, Projection, make_projection
from spice_rs.extraction.proxy import (
    fresh_lora,
    limits,
    load_model,
    load_tokenizer,
    prepared,
    warn_unless_checkpointed,
)
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.tracking import TargetModules, Tracked, check_coverage, output_head, track
from spice_rs.extraction.views import View, ViewedRun
from spice_rs.signs import step

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
"""Padded tokens per batch where the caller does not say."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `extract` that decide what is computed; see there."""

    tokenizer: Any
    dim: int
    projection: str
    seed: int
    dtype: str
    target_modules: TargetModules
    norms: bool
    embeddings: bool
    min_coverage: float
    lora_rank: int | None
    gguf_file: str | None
    max_length: int
    tokens_per_batch: int | None
    completion_only: bool
    gradient_checkpointing: bool
    autocast: bool | None
    device: str | torch.device | None
    loss_fn: Callable[..., torch.Tensor] | None
    skip_bad: bool
    columns: Mapping[str, str] | None
    ignore_columns: str | Sequence[str] | None
    preference: str | None
    split: str | None
    chat_template: str | os.PathLike[str] | None
    limit: int | None
    nnz: int
    side: int
    trust_remote_code: bool
    optimizer: Any
    checkpoints: Sequence[Any] | None
    checkpoint_weights: Sequence[float] | None

    @staticmethod
    def of(given: Mapping[str, Any]) -> Settings:
        """The settings given, and the defaults of `extract` for the rest.

        Raises:
            TypeError: A name that `extract` does not have.
        """
        from spice_rs.extraction.extractor import extract

        defaults = {
            name: parameter.default for name, parameter in inspect.signature(extract).parameters.items()
        }
        known = {each.name for each in fields(Settings)}
        for name in given:
            if name not in known:
                raise TypeError(f"{name} is no argument of extract; there are {', '.join(sorted(known))}")
        return Settings(**{name: given.get(name, defaults[name]) for name in known})


@dataclass(frozen=True)
class Reading:
    """The model and what it is to learn, before anything is tracked.

    Attributes:
        network: The model, without a fresh adapter.
        name: What it is recorded under.
        device: Where it is to be used.
        samples: All that can be used, by index.
        rows: Records of the data, those that cannot be used included.
        left_out: Those.
        truncated: Samples cut to max_length.
        source: The data's name for people.
        records: By index; empty for the user's own data.
        tokenizer: Of text, else None.
        provenance: What a store records of the data.
        hashed: Dataset row → hash of its record, by which a store recognises it.
        notes: What of the data needs a second look, in sentences.
        described: Columns that describe the records and are not read.
    """

    network: torch.nn.Module
    name: str
    device: torch.device
    samples: Sequence[Sample]
    rows: int
    provenance: dict[str, Any]
    hashed: Callable[[int], int]
    left_out: Sequence[LeftOut] = ()
    truncated: int = 0
    source: str = "data"
    records: Mapping[int, Record] = field(default_factory=dict)
    tokenizer: Any = None
    notes: Sequence[str] = ()
    described: Sequence[str] = ()


@dataclass(frozen=True)
class Extraction:
    """What is ready to be computed.

    Attributes:
        reading: The samples.
        network: The model, with its fresh adapter if there is one; on the device, frozen, without dropout.
        tracked: The layers whose gradients are taken.
        projection: What they are projected by.
        task: The loss.
        provenance: What the store records.
        tokens: Padded tokens per batch.
        views: The checkpoints whose gradients make a row; at least one.
        autocast: Whether products are made in bfloat16; None: on a GPU.
    """

    reading: Reading
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
            self.task, capture, self.reading.device, tokens or self.tokens, self.views, self.autocast
        )


@contextmanager
def preparing(
    model: Any,
    data: Any,
    settings: Settings,
    *,
    quiet: bool = False,
    template_date: datetime.date | None = None,
) -> Iterator[Extraction]:
    """Inside, all is ready; afterwards the model is as it was.

    Args:
        model: As for `extract`.
        data: As for `extract`.
        settings: The other arguments.
        quiet: Leave it to the caller to judge the coverage.
        template_date: As for `read_text`.

    Raises:
        InvalidInputError: An argument, a record or the model cannot be used.
    """
    _check_counts(limit=settings.limit, tokens_per_batch=settings.tokens_per_batch)
    data = with_split(data, settings.split)
    own = settings.loss_fn is not None and is_own(data, settings.columns, settings.loss_fn)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # the caller's would let no gradient be taken
        if own:
            reading = _read_own(model, data, settings)
        else:
            reading = read_text(model, data, settings, template_date=template_date)
        network = reading.network
        adapter = None
        if settings.lora_rank is not None:
            lora = fresh_lora(network, settings.lora_rank, settings.target_modules, settings.seed)
            network, adapter = stack.enter_context(lora)
        # A fresh LoRA's own trainable parameters are all that is tracked.
        targets = None if settings.lora_rank is not None else settings.target_modules
        checkpoints = read_checkpoints(
            settings.checkpoints,
            network,
            device=reading.device,
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
                "id": reading.name,
                "weights": weight_fingerprint(network),
                "settings": settings_of(network),
                "adapter": adapter,
            },
            "tracked": _describe_tracked(tracked),
            "projection": projection.settings(),
            "loss": "cross_entropy" if settings.loss_fn is None else name_of(settings.loss_fn),
            **reading.provenance,
            **seen,
        }
        products = changed_products(reading.device, settings.autocast)
        if products is not None:
            provenance["autocast"] = products
        if isinstance(projection, NoProjection):
            provenance["layout"] = projection.layout
        tokens = settings.tokens_per_batch or TOKENS_PER_BATCH.get(reading.device.type, 2048)
        stack.enter_context(prepared(network, reading.device, settings.gradient_checkpointing))
        task: Task
        if own:
            assert settings.loss_fn is not None
            task = OwnTask(network, data, settings.loss_fn)
        else:
            task = TextTask(SummedLoss(network, output_head(network, tracked), settings.loss_fn))
        yield Extraction(
            reading, network, tracked, projection, task, provenance, tokens, views, settings.autocast
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


def _read_own(model: Any, data: Any, settings: Settings) -> Reading:
    place = _device(model, settings.device)
    network, name = load_model(
        model, gguf_file=settings.gguf_file, device=place, trust_remote_code=settings.trust_remote_code
    )
    known = recognised(data)
    dataset: dict[str, Any] = {"fingerprint": known.fingerprint, "rows": len(data), "own": True}
    if known.fields is not None:
        dataset["fields"] = known.fields
    samples = [OwnSample(index) for index in range(len(data))[: settings.limit]]
    return Reading(
        network,
        name,
        place,
        samples,
        len(data),
        {"dataset": dataset},
        lambda row: int(known.hashes[row]),
    )


def read_text(
    model: Any, data: Any, settings: Settings, *, template_date: datetime.date | None = None
) -> Reading:
    """Records first, then the model: what is wrong with the data is said before the model is loaded.

    Args:
        model: As for `extract`.
        data: As for `extract`.
        settings: The other arguments.
        template_date: What chat templates are told that ask for the date: that of the rows that are there already
            (`templates.recorded_date`). Default: today.
    """
    chat_template = read_template(settings.chat_template)
    if settings.max_length is None:
        raise InvalidInputError("max_length is None, expected a positive integer")
    _check_counts(max_length=settings.max_length)
    records = load_records(
        data,
        skip_bad=settings.skip_bad,
        columns=settings.columns,
        ignore_columns=settings.ignore_columns,
        preference=settings.preference,
    )
    place = _device(model, settings.device)
    trusted = settings.trust_remote_code
    step("loading the model")
    network, name = load_model(model, gguf_file=settings.gguf_file, device=place, trust_remote_code=trusted)
    tokenizer = settings.tokenizer
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer, gguf_file=None, trust_remote_code=trusted)
    elif tokenizer is None and any(record.tokens is None for record in records):
        tokenizer = load_tokenizer(model, gguf_file=settings.gguf_file, trust_remote_code=trusted)
    limit = settings.limit
    chosen = [record for record in records if limit is None or record.index < limit]
    beside = tokenizer or _tokenizer_beside(model, chosen, settings)
    padded = list(_padded(chosen, network, beside))
    if padded and not settings.skip_bad:
        raise InvalidInputError(f"{padded[0]}; {SKIP_REMEDY}")
    rows = {each.row for each in padded}
    step(f"tokenising {len(chosen):,} records")
    chosen = [record for record in chosen if record.index not in rows]
    examples = tokenise(
        chosen,
        tokenizer,
        max_length=settings.max_length,
        completion_only=settings.completion_only,
        skip_bad=settings.skip_bad,
        chat_template=chat_template,
        today=template_date,
    )
    if chat_template is not None and Rank.current().first and all(not record.messages for record in chosen):
        warnings.warn(
            "chat_template does nothing: there are no conversations, prompts and responses among the records; leave it out",
            SpiceWarning,
            stacklevel=5,
        )
    if not examples:
        raise InvalidInputError(
            f"{records.source}: nothing to learn among the first {limit or records.rows} rows; "
            f"the first reason: {[*records.bad, *padded, *examples.skipped, 'no record'][0]}"
        )
    _check_limits(network, examples)
    provenance: dict[str, Any] = {
        "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer, chat_template),
        "template": examples.template,
        "completion_only": settings.completion_only,
        "max_length": settings.max_length,
        "dataset": {"fingerprint": dataset_fingerprint(records), "rows": records.rows},
    }
    split = settings.split or (parted(data)[1] if isinstance(data, str | os.PathLike) else None)
    if split is not None:
        provenance["dataset"]["split"] = split
    by_row = {record.index: record for record in records}
    date = template_date or examples.template_date
    if date is not None:
        provenance["template_date"] = date.isoformat()
    return Reading(
        network,
        name,
        place,
        list(examples),
        records.rows,
        provenance,
        lambda row: record_hash(by_row[row]),
        left_out=(*records.bad, *padded, *examples.skipped),
        truncated=examples.truncated,
        source=records.source,
        records=by_row,
        tokenizer=tokenizer,
        notes=examples.notes,
        described=records.described,
    )


def _tokenizer_beside(model: Any, records: Sequence[Record], settings: Settings) -> Any:
    """The tokenizer that made the tokens, most likely: it knows which token pads. None if there is none."""
    if all(record.tokens is None for record in records):
        return None
    try:
        return load_tokenizer(
            model, gguf_file=settings.gguf_file, trust_remote_code=settings.trust_remote_code
        )
    except InvalidInputError:
        return None


def _padded(records: Sequence[Record], network: torch.nn.Module, tokenizer: Any) -> Iterator[LeftOut]:
    """Records of tokens whose padding would be learned, or seen; only here is it known which token pads."""
    sources = (tokenizer, getattr(network, "config", None))
    pads, ends = (
        [value for source in sources if (value := getattr(source, name, None)) is not None]
        for name in ("pad_token_id", "eos_token_id")
    )
    tokens = {record.index: record.tokens for record in records if record.tokens is not None}
    if not pads or not tokens:
        return
    pad, end = pads[0], (ends or [None])[0]
    # One pad token at the end may be an end token of the template's; where others have more of them, it is padding.
    may_end = pad in (end if isinstance(end, list | tuple) else [end])
    padded = {row for row, given in tokens.items() if unmasked_padding(given, pad, 1)}
    for record in records:
        if record.index in padded or (padded and record.index in tokens and not may_end):
            wrong = unmasked_padding(tokens[record.index], pad, 1 if may_end else 0)
            if wrong is not None:
                yield LeftOut(record.index, record.place, "padding", wrong)


def _device(model: Any, device: str | torch.device | None) -> torch.device:
    if device is None and isinstance(model, torch.nn.Module):
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise InvalidInputError("model has no parameters, expected a model to take gradients of")
        if parameter.device.type == "meta":
            raise InvalidInputError("model is on the meta device, without weights; load them first")
        return parameter.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rank = Rank.current()
    if str(device) == "cuda" and rank.count > 1:
        device = f"cuda:{rank.local}"  # each process of a machine its own
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not on this machine
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"device is {str(device)!r}: {reason}; use one that this machine has"
        ) from None
    return torch.device(device)


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


def name_of(loss_fn: Any) -> str:
    """The name by which a store tells one loss from another; a lambda has none of its own."""
    kind = loss_fn if hasattr(loss_fn, "__qualname__") else type(loss_fn)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if "<lambda>" in name or kind is functools.partial:
        raise InvalidInputError(
            f"loss_fn is {name}, expected a function with a name; the store knows the loss by it, so use def"
        )
    return name
