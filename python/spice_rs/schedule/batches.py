"""Batches of somebody else's training loop → samples: one a row, or refused by name.

A row is a sample only if nothing in the batch says otherwise. Packing and training without padding put many samples into
one row and tell them apart by something beside the tokens: positions that begin again, sequence lengths, numbered attention
masks. Gradients of such rows would be those of one long text. Other columns may change the loss (masks, weights) or what
the model sees (images); what would be left out is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spice_rs.data.dataset import IGNORED, Example
from spice_rs.data.layouts import kind_of_mark, parts
from spice_rs.data.tokens import BOUNDS, HARMLESS, LENGTHS, NUMBERED, unmasked_padding
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted

_KNOWN = {
    "input_ids", "attention_mask", "labels", "position_ids", "shift_labels", "token_type_ids", "num_items_in_batch",
    "cache_position", "logits_to_keep", *BOUNDS, *LENGTHS, *NUMBERED,
}  # fmt: skip

APART = (
    "one sample a row. Turn packing off (TRL: packing=False and padding_free=False; LLaMA-Factory: packing and"
    " neat_packing; Axolotl: sample_packing) and use a collator that pads"
)
"""What is expected of a batch, and how to get it."""

_REMOVE = "Remove the column."

_FLAGS = ("packing", "padding_free", "neat_packing", "sample_packing")


def check_trainer(trainer: Any) -> None:
    """Refuses a trainer whose settings say that it puts many samples into one row.

    Raises:
        InvalidInputError: It does.
    """
    collator = getattr(trainer, "data_collator", None)
    places = (("trainer.args", trainer.args), ("trainer", trainer), ("trainer.data_collator", collator))
    for place, holder in places:
        for flag in _FLAGS:
            if getattr(holder, flag, None) is True:
                raise InvalidInputError(f"{place}.{flag}: found True, expected {APART}.")
    columns = getattr(getattr(trainer, "train_dataset", None), "column_names", None) or ()
    for name in (*BOUNDS, *LENGTHS, *NUMBERED):
        if name in columns:
            raise InvalidInputError(
                f"trainer.train_dataset: found a column {name!r}, as packed data have it, expected {APART}."
            )
    if any(base.__name__ == "DataCollatorWithFlattening" for base in type(collator).__mro__):
        raise InvalidInputError(f"trainer.data_collator: found {type(collator).__name__}, expected {APART}.")


def check_loss(trainer: Any) -> None:
    """Refuses a trainer whose settings say that its loss is another than the model's cross-entropy.

    Raises:
        InvalidInputError: It is.
    """
    smoothing = getattr(trainer.args, "label_smoothing_factor", None) or 0
    own = getattr(trainer, "compute_loss_func", None)
    called = None if own is None else getattr(own, "__name__", type(own).__name__)
    for name, found, none in (
        ("args.label_smoothing_factor", smoothing, 0),
        ("compute_loss_func", called, None),
    ):
        if found:
            raise InvalidInputError(
                f"trainer.{name}: found {found}, expected {none}: picks go by gradients of the model's cross-entropy, and "
                "the training would learn by another loss. Leave it out, or give select_online that loss, not reduced: "
                "loss_fn=…"
            )


def samples_of(batch: Mapping[str, Any], model: torch.nn.Module) -> list[Example]:
    """The samples of a padded batch that have something to learn, by their places.

    Args:
        batch: `input_ids` and `labels` (B, T), `attention_mask` (B, T) if there is padding.
        model: Whose forward says which other columns it would use.

    Raises:
        InvalidInputError: The batch is something else, has many samples in one row, or something that would be left out.
    """
    ids, labels = (_table(batch, name) for name in ("input_ids", "labels"))
    if ids.shape != labels.shape:
        raise InvalidInputError(
            f"batch['labels']: found shape {labels.shape}, expected {ids.shape} as of input_ids. Do not shift them."
        )
    kept = _kept(batch.get("attention_mask"), ids.shape)
    _check_padding(kept, labels)
    if batch.get("attention_mask") is None:
        _check_pads(ids, labels, getattr(getattr(model, "config", None), "pad_token_id", None))
    _check_positions(batch.get("position_ids"), kept, labels)
    _check_rows(batch, kept)
    _check_loss(batch, labels)
    _check_rest(batch, model)
    samples = []
    for place in range(len(ids)):
        tokens = ids[place][kept[place]].astype(np.int32)
        targets = labels[place][kept[place]].astype(np.int32)
        learned = int(np.count_nonzero(targets[1:] != IGNORED))
        if learned:
            samples.append(Example(place, tokens, targets, learned))
    if not samples:
        raise InvalidInputError(
            f"batch: found {counted(len(ids), 'sample')} without a learned token, expected at least one. Check the labels."
        )
    return samples


def _check_pads(ids: npt.NDArray[Any], labels: npt.NDArray[Any], pad: int | None) -> None:
    """Refuses pad tokens that are learned, or stand before a sample, where no mask leaves them out."""
    if pad is None:
        return
    for place, row in enumerate(np.stack([ids, labels], axis=1)):
        wrong = unmasked_padding(row, pad, 1) if (row[1] != IGNORED).any() else None
        if wrong is not None:
            raise InvalidInputError(f"batch, sample {place}: {wrong}.")


def _table(batch: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    value = batch.get(name)
    if not isinstance(value, torch.Tensor) or value.ndim != 2:
        found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InvalidInputError(
            f"batch[{name!r}]: found {found}, expected a tensor (samples, tokens). Use a collator that pads."
        )
    table: npt.NDArray[Any] = value.detach().cpu().numpy()
    return table


def _kept(mask: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Which tokens are no padding."""
    if mask is None:
        return np.ones(shape, bool)
    if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != shape:
        found = f"shape {tuple(mask.shape)}" if hasattr(mask, "shape") else type(mask).__name__
        raise InvalidInputError(f"batch['attention_mask']: found {found}, expected {shape}: {APART}.")
    values = mask.detach().cpu().float().numpy()
    for place, row in enumerate(values):
        numbers = np.unique(row[row != 0])
        if len(numbers) > 1 and np.all(numbers == np.round(numbers)) and numbers[0] > 0:
            some = ", ".join(f"{number:g}" for number in numbers[:3])
            raise InvalidInputError(
                f"batch['attention_mask']: found the numbers {some} in row {place}, one for each of many samples, expected "
                f"{APART}."
            )
        if len(numbers) and not (numbers[0] > 0 and numbers[0] == np.round(numbers[0])):
            raise InvalidInputError(
                f"batch['attention_mask']: found {numbers[0]:g} in row {place}, expected 1 where there is a token and 0 "
                "where there is padding. Give it as the collator of a language model does."
            )
    kept: npt.NDArray[np.bool_] = values != 0
    return kept


def _check_padding(kept: npt.NDArray[np.bool_], labels: npt.NDArray[Any]) -> None:
    """Refuses masks with holes, and labels of padding, which would count in the loss of the training."""
    for place, row in enumerate(kept):
        places = np.flatnonzero(row)
        if len(places) and places[-1] - places[0] + 1 != len(places):
            hole = int(places[0] + np.flatnonzero(~row[places[0] :])[0])
            raise InvalidInputError(
                f"batch['attention_mask']: found 0 between tokens in row {place} (at {hole}), expected padding at one end. "
                "Drop such tokens before the batch is made."
            )
    stray = np.argwhere((labels[:, 1:] != IGNORED) & ~kept[:, 1:])
    if len(stray):
        row, column = (int(each) for each in stray[0])
        raise InvalidInputError(
            f"batch['labels']: found {int(labels[row, column + 1])} in row {row} at {column + 1}, where attention_mask is "
            f"0, expected {IGNORED} for padding. Use a collator that pads labels with {IGNORED}."
        )


def _check_positions(position_ids: Any, kept: npt.NDArray[np.bool_], labels: npt.NDArray[Any]) -> None:
    """Refuses positions that begin again within a row, or that do not count the row's tokens."""
    if position_ids is None:
        return
    rows, columns = kept.shape
    shape = (1, *tuple(getattr(position_ids, "shape", ())))
    if shape[-1] != columns or shape[-2] not in (1, rows):
        found = f"shape {shape[1:]}" if len(shape) > 1 else type(position_ids).__name__
        raise InvalidInputError(
            f"batch['position_ids']: found {found}, expected {kept.shape}. Leave them out."
        )
    # Some models have several for each token, in front: (3, B, T).
    tables = position_ids.detach().cpu().numpy().reshape(-1, shape[-2], columns)
    for table in np.broadcast_to(tables, (len(tables), rows, columns)):
        for place, here in enumerate(kept):
            _check_count(table[place][here], labels[place][here] != IGNORED, place, here)


def _check_count(
    numbers: npt.NDArray[Any], learned: npt.NDArray[np.bool_], place: int, here: npt.NDArray[np.bool_]
) -> None:
    """Refuses positions of the tokens of one row that do not go up by 1."""
    # Without a mask, padding is what has position 0 and nothing to learn.
    used = np.flatnonzero(learned | (numbers != 0))
    numbers = numbers[: used[-1] + 1] if len(used) else numbers[:1]
    steps = np.flatnonzero(np.diff(numbers) != 1)
    if len(steps):
        before, after = numbers[steps[0]], numbers[steps[0] + 1]
        raise InvalidInputError(
            f"batch['position_ids']: found {after} after {before} in row {place}, expected {APART}."
        )
    if len(numbers) and numbers[0] not in (0, 1, 2, np.flatnonzero(here)[0]):  # 2: as RoBERTa counts
        raise InvalidInputError(
            f"batch['position_ids']: found {numbers[0]} for the first token of row {place}, expected 0: gradients are taken"
            " without position_ids. Leave them out."
        )


def _check_rows(batch: Mapping[str, Any], kept: npt.NDArray[np.bool_]) -> None:
    """Refuses what else says that there is more than one sample in a row."""
    rows = len(kept)
    for name in BOUNDS:
        if batch.get(name) is not None:
            bounds = {int(each) for each in torch.as_tensor(batch[name]).flatten().tolist() if each >= 0}
            if len(bounds) - 1 != 1 or rows != 1:
                raise InvalidInputError(
                    f"batch[{name!r}]: found bounds of {counted(len(bounds) - 1, 'sample')} in"
                    f" {counted(rows, 'row')}, expected {APART}."
                )
    for name in LENGTHS:
        value = batch.get(name)
        if value is None:
            continue
        lists = [each.tolist() if hasattr(each, "tolist") else each for each in value]
        counts = [
            len([part for part in each if part]) if isinstance(each, list | tuple) else 1 for each in lists
        ]
        if len(counts) != rows or max(counts, default=1) > 1:
            raise InvalidInputError(
                f"batch[{name!r}]: found lengths of {counted(sum(counts), 'sample')} in {counted(rows, 'row')},"
                f" expected {APART}."
            )
    for name in NUMBERED:
        numbers = _numbers(batch.get(name))
        if numbers is not None and numbers.shape == kept.shape:
            for place, (row, here) in enumerate(zip(numbers, kept, strict=True)):
                if len(np.unique(row[here])) > 1:
                    raise InvalidInputError(
                        f"batch[{name!r}]: found {counted(len(np.unique(row[here])), 'sample')} in row {place},"
                        f" expected {APART}."
                    )


def _check_loss(batch: Mapping[str, Any], labels: npt.NDArray[Any]) -> None:
    """Refuses masks and weights that would make another loss than the labels do."""
    learned = labels != IGNORED
    learned[:, 0] = False
    for name, value in batch.items():
        kind = None if name in (*_KNOWN, *HARMLESS) else kind_of_mark(name)
        if kind is not None and value is not None:
            _check_mark(name, kind, value, learned)
    shifted = batch.get("shift_labels")
    if isinstance(shifted, torch.Tensor):
        expected = np.concatenate([labels[:, 1:], np.full((len(labels), 1), IGNORED)], axis=1)
        if tuple(shifted.shape) != labels.shape or not np.array_equal(
            shifted.detach().cpu().numpy(), expected
        ):
            raise InvalidInputError(
                "batch['shift_labels']: found something else than the labels, one place on, expected these: gradients go by"
                " the labels alone. Leave shift_labels out."
            )
    types = batch.get("token_type_ids")
    if isinstance(types, torch.Tensor) and bool(types.any()):
        raise InvalidInputError(
            "batch['token_type_ids']: found types other than 0, expected 0 alone: gradients are taken without them."
            " Leave them out."
        )


def _check_mark(name: str, kind: str, value: Any, learned: npt.NDArray[np.bool_]) -> None:
    """Refuses a mark or weight of tokens or of samples that says something else than the labels.

    Args:
        name: Of the column.
        kind: What it marks, as `kind_of_mark` has it.
        value: (B, T), or one for each sample, or one for all.
        learned: (B, T), which tokens are learned by their labels.
    """
    numbers = _numbers(value)
    along = numbers is not None and numbers.shape == learned.shape
    if kind == "alike" and not along:
        # A name that only sounds like a mark is one where it holds marks.
        if numbers is None or numbers.dtype != bool or numbers.shape != learned.shape[:1]:
            return
    if kind == "wanted" and numbers is None:
        return  # labels of classes, in words
    rows = len(learned)
    if numbers is None or numbers.shape not in (learned.shape, (rows,), (rows, 1), (1,), ()):
        found = type(value).__name__ if numbers is None else f"shape {numbers.shape}"
        raise InvalidInputError(
            f"batch[{name!r}]: found {found}, expected numbers {learned.shape}: gradients go by the labels alone. {_REMOVE}"
        )
    if not along:
        numbers = np.broadcast_to(numbers.reshape(-1, 1), (rows, 1))
        learned = np.any(learned, axis=1, keepdims=True)
    values = numbers[learned]
    first = 0.0 if len(values) and values[0] == 0 else 1.0
    if kind == "alike" and not along:
        kind = "masked" if any(part.startswith("mask") for part in parts(name)) else "learned"
    expected = {"masked": 0.0, "either": first, "alike": first}.get(kind, 1.0)
    wrong = (values == 0) if kind == "wanted" else (values != expected) | ~np.isin(values, (0, 1))
    if not wrong.any():
        return
    number = values[wrong][0]
    if along:
        raise InvalidInputError(
            f"batch[{name!r}]: found {number:g} for a token that is learned by its label, expected {expected:g}: gradients "
            f"go by the labels alone. Set labels to {IGNORED} where nothing is to be learned, and {_REMOVE.lower()}"
        )
    place = int(np.argwhere(learned)[np.flatnonzero(wrong)[0]][0])
    raise InvalidInputError(
        f"batch[{name!r}]: found {number:g} for the sample in row {place}, expected {expected:g}: weights and marks of "
        f"samples cannot be followed here. {_REMOVE} Or select beforehand, with weights={name!r} given to spice_rs.select."
    )


def _numbers(value: Any) -> npt.NDArray[Any] | None:
    """A tensor, array or list as an array of numbers; None where it is none."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    numbers: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return numbers if numbers.dtype.kind in "biuf" else None


def _check_rest(batch: Mapping[str, Any], model: torch.nn.Module) -> None:
    """Refuses columns that the model's forward takes and the gradients would not see."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        taken = inspect.signature(base.forward).parameters.keys() - _KNOWN
    except (TypeError, ValueError):
        return
    for name in batch:
        marks = kind_of_mark(name) not in (None, "alike")
        if name in taken and not marks and isinstance(batch[name], torch.Tensor):
            raise InvalidInputError(
                f"batch[{name!r}]: found a tensor that {type(base).__name__} takes, expected text alone: gradients are "
                "taken of input_ids, attention_mask and labels. Leave it out, or select beforehand: spice_rs.extract with "
                "a loss_fn of your own."
            )
