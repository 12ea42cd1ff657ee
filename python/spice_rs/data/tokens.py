"""Records that are tokenised already: ids and labels, and what else says which of them are the sample.

A row is one sample. Positions that the attention mask leaves out at the ends are padding and dropped; a row that holds
several samples (positions that start again, numbered masks, lengths) is refused: its gradient would be a sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.layouts import LOSS_MASK_FIELDS
from spice_rs.data.reading import BadRecord, found, ignoring
from spice_rs.nouns import counted

IGNORED = -100
"""Label of a token that is not learned (the convention of torch and transformers)."""

NUMBERED = ("seq_idx", "sequence_ids", "segment_ids", "document_ids", "doc_ids", "sample_ids")
"""One number for all tokens of a sample."""

LENGTHS = (
    "seq_lengths",
    "seq_lens",
    "sequence_lengths",
    "sequence_lens",
    "position_lengths",
    "packed_seq_lengths",
)
"""One number for each sample of a row."""

BOUNDS = ("cu_seqlens", "cu_seq_lens", "cu_seqlens_q", "cu_seqlens_k", "cu_seq_lens_q", "cu_seq_lens_k")
"""Where the samples of a row begin, and where the last one ends."""

HARMLESS = (
    "token_type_ids",
    "special_tokens_mask",
    "length",
    "lengths",
    "num_tokens",
    "offset_mapping",
    "overflow_to_sample_mapping",
)
"""What tokenizers leave beside ids, and what says nothing that the ids do not."""

READ = frozenset(
    (
        "input_ids",
        "labels",
        "attention_mask",
        "position_ids",
        *LOSS_MASK_FIELDS,
        *NUMBERED,
        *LENGTHS,
        *BOUNDS,
        *HARMLESS,
    )
)
"""Fields that `read_tokens` knows."""

_SEVERAL = "several samples"


def read_tokens(fields: Mapping[str, Any]) -> NDArray[np.int64]:
    """Ids and labels of one sample, (2, T).

    Args:
        fields: The record without its nulls.

    Raises:
        BadRecord: They are no tokens of one sample, or contradict each other.
    """
    ids = _integers(fields, "input_ids")
    if ids.min() < 0:
        raise BadRecord(
            "bad tokens", f"field 'input_ids': found {ids.min()}, expected token ids of 0 and above"
        )
    kept = _kept(fields, ids)
    labels = _labels(fields, ids, kept)
    if max(ids.max(), labels.max()) >= 1 << 31:
        raise BadRecord("bad tokens", "found a token id of 2³¹ or more, expected ids of a vocabulary")
    _check_one_sample(fields, ids.size, kept)
    _check_harmless(fields, ids.size)
    tokens = np.stack([ids, labels])[:, kept]
    _check_not_shifted(tokens)
    return tokens


def unmasked_padding(tokens: NDArray[np.int64], pad: int, allowed: int) -> str | None:
    """What is wrong with a row that ends in pad tokens that are learned, or begins with pad tokens; None if nothing is.

    Args:
        tokens: (2, T) ids and labels.
        pad: Id of the pad token.
        allowed: So many of them at the end are learned rightly: one, where it ends texts too.
    """
    ids, labels = tokens
    others = np.flatnonzero(ids != pad)
    remedy = "Give attention_mask, with 0 for padding, or leave padding out of the records"
    if others.size == 0:
        return f"found pad tokens ({pad}) alone, expected a sample. {remedy}"
    first, last = int(others[0]), int(others[-1])
    behind = ids.size - 1 - last
    learned = int(np.count_nonzero(labels[last + 1 :] != IGNORED))
    if learned > allowed:
        there = f"found {behind} pad tokens ({pad}) at the end, {learned} of them learned"
        return f"{there}, expected -100 in their labels. {remedy}"
    if first > 1:
        return f"found {first} pad tokens ({pad}) at the start and no attention_mask that leaves them out. {remedy}"
    return None


def _integers(fields: Mapping[str, Any], name: str) -> NDArray[np.int64]:
    """A field of whole numbers, (T,); what is beyond int64 is its largest."""
    if name not in fields:
        raise BadRecord("missing field", f"field {name!r} is missing beside {', '.join(map(repr, fields))}")
    value = fields[name]
    column = _array(value, name)
    whole = column.dtype.kind in "iu"
    if whole and isinstance(value, list | tuple) and np.any(column >> 1 == 0):
        whole = bool not in set(map(type, value))  # true among numbers became 1
    if not whole:
        raise BadRecord(
            "wrong type", f"field {name!r}: found {found(value)}, expected a non-empty list of integers"
        )
    if column.dtype == np.int64:  # as nearly all are
        return column
    numbers: NDArray[np.int64] = np.minimum(column, np.iinfo(np.int64).max).astype(np.int64)
    return numbers


def _array(value: Any, name: str) -> NDArray[Any]:
    try:
        column = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        column = np.asarray(None)
    if column.ndim != 1 or column.size == 0 or column.dtype.kind not in "biuf":
        raise BadRecord(
            "wrong type", f"field {name!r}: found {found(value)}, expected a non-empty list of integers"
        )
    return column


def _kept(fields: Mapping[str, Any], ids: NDArray[np.int64]) -> slice:
    """The positions of the sample: those that the attention mask does not leave out at the ends."""
    if "attention_mask" not in fields:
        return slice(0, ids.size)
    mask = _along(fields, "attention_mask", ids.size)
    least = mask.min()
    if mask.dtype.kind in "iu" and 0 < least == mask.max():  # no padding
        return slice(0, ids.size)
    if not np.all(mask == np.floor(mask)) or least < 0:
        raise BadRecord(
            "bad tokens", "field 'attention_mask': found other values than 0 and 1, expected these alone"
        )
    seen = np.flatnonzero(mask)
    if seen.size == 0:
        raise BadRecord(
            "bad tokens", "field 'attention_mask': found 0 everywhere, expected a token that is seen"
        )
    kept = slice(int(seen[0]), int(seen[-1]) + 1)
    inside = mask[kept]
    if np.any((inside != 0) & (inside != inside[0])):
        raise BadRecord(_SEVERAL, _packed("attention_mask", "numbers several samples"))
    if not inside.all():
        raise BadRecord(
            "bad tokens",
            f"field 'attention_mask' is 0 at position {kept.start + int(np.flatnonzero(inside == 0)[0])}, inside the"
            " sample, expected zeros at its ends alone. Leave those tokens out, or give each part a row of its own",
        )
    return kept


def _labels(fields: Mapping[str, Any], ids: NDArray[np.int64], kept: slice) -> NDArray[np.int64]:
    masks = {}
    for name in LOSS_MASK_FIELDS:
        if name in fields:
            mask = _along(fields, name, ids.size)
            if not np.all((mask == 0) | (mask == 1)):
                raise BadRecord(
                    "fractional weight",
                    f"field {name!r}: found other values than 0 and 1, expected these alone: a token is learned or not",
                )
            masks[name] = mask != 0
    if "labels" in fields or not masks:
        labels = _integers(fields, "labels")
        if labels.size != ids.size:
            raise BadRecord(
                "bad tokens",
                f"found {ids.size} input_ids and {counted(labels.size, 'label')}, expected equal lengths",
            )
        if labels.min() < 0 and np.any((labels < 0) & (labels != IGNORED)):
            raise BadRecord(
                "bad tokens",
                "field 'labels': found a negative id that is not -100, expected token ids or -100",
            )
        masks = {"labels": labels != IGNORED, **masks}
    else:
        labels = np.where(next(iter(masks.values())), ids, IGNORED)
    (first, learned), *others = masks.items()
    for name, mask in others:
        differs = np.flatnonzero(mask[kept][1:] != learned[kept][1:])  # nothing predicts the first
        if differs.size:
            raise BadRecord(
                "marks contradict",
                f"fields {first!r} and {name!r} differ at position {kept.start + 1 + int(differs[0])} in what is learned,"
                " expected the same. Keep one of them",
            )
    return labels


def _along(fields: Mapping[str, Any], name: str, count: int) -> NDArray[Any]:
    """Numbers or bools, one for each token."""
    column = _array(fields[name], name)
    column = column.astype(np.int64) if column.dtype.kind == "b" else column
    if column.size != count:
        raise BadRecord(
            "bad tokens",
            f"found {count} input_ids and {counted(column.size, 'value')} of {name!r}, expected equal lengths",
        )
    return column


def _check_one_sample(fields: Mapping[str, Any], count: int, kept: slice) -> None:
    """Refuses rows that hold several samples, as their makers say."""
    for name in NUMBERED:
        if name in fields and _differs(_along(fields, name, count)[kept]):
            raise BadRecord(_SEVERAL, _packed(name, "numbers several samples"))
    totals = (count, kept.stop - kept.start)
    for name in LENGTHS:
        if name in fields and _tuple(fields[name]) not in [(total,) for total in totals]:
            raise BadRecord(_SEVERAL, _packed(name, f"is {found(fields[name])}"))
    for name in BOUNDS:
        if name in fields and _tuple(fields[name]) not in [(0, total) for total in totals]:
            raise BadRecord(_SEVERAL, _packed(name, f"is {found(fields[name])}"))
    if "position_ids" in fields:
        positions = _along(fields, "position_ids", count)[kept]
        if np.any(np.diff(positions) != 1):
            raise BadRecord(_SEVERAL, _packed("position_ids", "does not count the tokens one by one"))
        if positions[0] not in (0, kept.start):
            raise BadRecord(
                "bad tokens",
                f"field 'position_ids' starts at {positions[0]}, expected 0: a sample starts at its start",
            )


def _differs(column: NDArray[Any]) -> bool:
    return bool(np.any(column != column[0]))


def _tuple(value: Any) -> tuple[Any, ...]:
    try:
        return tuple(np.atleast_1d(np.asarray(value)).tolist())
    except (ValueError, TypeError, RuntimeError):
        return ()


def _packed(name: str, what: str) -> str:
    return (
        f"field {name!r} {what}, expected one sample in a row: a packed row has one gradient for all of its samples."
        " Extract from the data before they are packed (packing=False)"
    )


def _check_harmless(fields: Mapping[str, Any], count: int) -> None:
    """Refuses what is known and says something after all."""
    if "token_type_ids" in fields and _differs(_along(fields, "token_type_ids", count)):
        raise BadRecord(
            "bad tokens",
            "field 'token_type_ids': found different values, expected one: the kinds of tokens are not given to the"
            f" model. Pass {ignoring('token_type_ids')} if it takes none",
        )


def _check_not_shifted(tokens: NDArray[np.int64]) -> None:
    """Refuses labels that are moved by one already: the model's own shift would move them again."""
    ids, labels = tokens
    learned = labels != IGNORED
    shifted = learned[:-1] & (labels[:-1] != ids[:-1])
    if np.count_nonzero(shifted) > 1 and np.array_equal(labels[:-1][learned[:-1]], ids[1:][learned[:-1]]):
        raise BadRecord(
            "bad tokens",
            "field 'labels': found the next tokens, expected each token at its own position: models move the labels by one"
            " themselves",
        )
