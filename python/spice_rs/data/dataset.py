"""Records → tokenised examples whose learned tokens are marked, with stable ids.

Conversations become text by a chat template, and are learned where the assistant speaks: see `rendering.py`. Plain
text is learned as a whole, and records that are tokenised already as their labels say.

Causal shift: the token at position t is predicted from position t - 1, so `num_tokens` counts learned labels
at positions ≥ 1. This file does not import torch; tokenizers are passed in.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.plain import PLAIN_TEMPLATE
from spice_rs.data.records import Record, Records, dataset_fingerprint, load_records
from spice_rs.data.rendering import Encoded, Renderer
from spice_rs.data.special import SpecialTokens
from spice_rs.data.templates import REMEDY
from spice_rs.data.tokens import IGNORED
from spice_rs.errors import InvalidInputError

__all__ = [
    "IGNORED",
    "PLAIN_TEMPLATE",
    "Example",
    "Examples",
    "Record",
    "Records",
    "dataset_fingerprint",
    "load_records",
    "tokenise",
    "tokenizer_fingerprint",
]

_TEXTS_AT_ONCE = 512  # fast tokenizers work on many texts in parallel; bounds the encodings held at a time


@dataclass(frozen=True)
class Example:
    """One tokenised sample.

    Attributes:
        index: Row of the data.
        input_ids: (T,) int32.
        labels: (T,) int32, equal to `input_ids` where learned, else `IGNORED`; not shifted.
        num_tokens: Learned targets after the causal shift, ≥ 1.
        cut: Whether it is longer in the data.
    """

    index: int
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    num_tokens: int
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens, learned or not."""
        return len(self.input_ids)


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """The examples of a data set, ascending in index, and what happened on the way.

    Attributes:
        items: The examples.
        truncated: Number of examples cut to `max_length`.
        skipped: Records without a learned token that were left out.
        template: "chat", "plain", "joined", "text" or "tokens" (records tokenised already; "chat+tokens" for a mixture).
        template_date: The date that the chat template was told, where a text depends on it; else None.
        notes: What was found on the way that needs a second look, in sentences.
    """

    items: tuple[Example, ...]
    truncated: int
    skipped: tuple[LeftOut, ...]
    template: str
    template_date: datetime.date | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
        return self.items[position]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)


def tokenise(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    max_length: int = 2048,
    completion_only: bool = True,
    skip_bad: bool = False,
    chat_template: str | None = None,
    today: datetime.date | None = None,
) -> Examples:
    """Tokenises records and marks what is learned.

    Args:
        records: From `load_records`, or a slice of them.
        tokenizer: A `transformers` tokenizer; None if every record is tokenised already.
        max_length: Tokens kept per sample, from the start.
        completion_only: Learn the assistant's words alone; else every token but the first, and but assistant turns that
            the data mark as context.
        skip_bad: Leave out (and count) records without a learned token or that the template refuses.
        chat_template: Text of the template to use in place of the tokenizer's own, or "none": prompt and response are
            joined as they stand; see `templates.read_template`.
        today: What templates are told that ask for the date. Default: the day on which this is called.

    Raises:
        InvalidInputError: A sample has no learned token within `max_length`, the template cannot be followed,
            or there is no tokenizer for text.
    """
    if max_length < 2:
        raise InvalidInputError(
            f"max_length is {max_length}, expected at least 2: one token to predict from, one to learn"
        )
    items: list[Example] = []
    skipped: list[LeftOut] = []
    truncated = 0
    unknown: list[str] = []
    templates: set[str] = set()
    renderer = None
    today = today or datetime.date.today()
    for start in range(0, len(records), _TEXTS_AT_ONCE):
        chunk = records[start : start + _TEXTS_AT_ONCE]
        words = [record for record in chunk if record.tokens is None]
        if words and tokenizer is None:
            raise InvalidInputError(
                f"{words[0].place}: is text, and no tokenizer was given; pass tokenizer=…"
            )
        turns = [record for record in words if record.text is None]
        if turns and renderer is None:
            renderer = Renderer(tokenizer, chat_template, today)
        encoded = dict(renderer.encode(turns)) if renderer is not None and turns else {}
        encoded.update(_encode_texts(tokenizer, [record for record in words if record.text is not None]))
        for record in chunk:
            if record.tokens is not None:
                templates.add("tokens")
                ids, labels = record.tokens.astype(np.int32)
            else:
                templates.add("text" if renderer is None or record.text is not None else renderer.kind)
                outcome = encoded[record.index]
                if isinstance(outcome, str):
                    _bad(record, "chat template", outcome, skip_bad, skipped)
                    continue
                ids = outcome.ids
                learned = outcome.learned if completion_only else ~outcome.context
                labels = np.where(learned, ids, IGNORED).astype(np.int32)
            full = int(np.count_nonzero(labels[1:] != IGNORED))
            kept_ids, kept_labels = ids[:max_length], labels[:max_length]
            num_tokens = int(np.count_nonzero(kept_labels[1:] != IGNORED))
            if num_tokens == 0:
                detail = (
                    f"none of its {full} learned tokens is among the first max_length={max_length} of "
                    f"{len(ids)}; raise max_length"
                    if full
                    else f"no learned token among {len(ids)}, expected at least one after the first"
                )
                reason = "cut before the response" if full else "no learned token"
                _bad(record, reason, detail, skip_bad, skipped)
                continue
            if record.tokens is None and _is_unknown(kept_labels, tokenizer):
                unknown.append(record.place)
            cut = len(ids) > max_length
            truncated += cut
            items.append(Example(record.index, kept_ids.copy(), kept_labels.copy(), num_tokens, cut))
    dated = renderer is not None and renderer.template is not None and renderer.template.dated
    kinds = "+".join(sorted(templates)) or "tokens"
    notes = [*_notes_of_template(renderer), *_notes_of_texts(records, tokenizer)]
    if unknown:
        notes.append(
            f"the tokenizer knows no word of what is learned in {len(unknown)} records (the first: {unknown[0]}), so that"
            " they are alike; use the tokenizer that belongs to the model and the language"
        )
    return Examples(tuple(items), truncated, tuple(skipped), kinds, today if dated else None, tuple(notes))


def tokenizer_fingerprint(tokenizer: Any, chat_template: str | None = None) -> str:
    """Hash of all that decides token ids and masks: vocabulary, merges, special tokens and chat template.

    Args:
        tokenizer: The tokenizer.
        chat_template: What is used in place of its template, as for `tokenise`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        model = json.loads(backend.to_str())
        # Padding and truncation are the state of the last call, not the tokenizer.
        model.pop("padding", None)
        model.pop("truncation", None)
    else:
        model = sorted(tokenizer.get_vocab().items())
    content = {
        "model": model,
        "special": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "template": getattr(tokenizer, "chat_template", None) if chat_template is None else chat_template,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bad(record: Record, reason: str, detail: str, skip_bad: bool, skipped: list[LeftOut]) -> None:
    left_out = LeftOut(record.index, record.place, reason, detail)
    if not skip_bad:
        raise InvalidInputError(f"{left_out}; {SKIP_REMEDY}")
    skipped.append(left_out)


def _encode_texts(tokenizer: Any, records: Sequence[Record]) -> Iterator[tuple[int, Encoded]]:
    """Yields (index, tokens): all of a text and an end token, with the tokenizer's start token.

    A text that a chat template made has its own start and end tokens: it gets no second ones.
    """
    if not records:
        return
    special = SpecialTokens(tokenizer)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    batch = tokenizer([record.text for record in records], return_attention_mask=False)
    for record, ids in zip(records, batch["input_ids"], strict=True):
        whole, text = list(ids), str(record.text).strip()
        if begin is not None and whole[:2] == [begin, begin] and special.bos and text.startswith(special.bos):
            del whole[0]
        if end is not None and whole[-2:] == [end, end] and special.eos and text.endswith(special.eos):
            del whole[-1]
        if end is not None and whole[-1:] != [end] and not special.ends(text):
            whole.append(end)
        learned = np.ones(len(whole), dtype=np.bool_)
        yield record.index, Encoded(np.asarray(whole, dtype=np.int32), learned, ~learned)


def _is_unknown(labels: NDArray[np.int32], tokenizer: Any) -> bool:
    """Whether all learned words are the unknown token, but for special tokens that end them."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    learned = labels[labels != IGNORED]
    if unknown is None or not (learned == unknown).any():
        return False
    return {*learned.tolist()} <= {unknown, *tokenizer.all_special_ids}


def _notes_of_template(renderer: Renderer | None) -> Iterator[str]:
    if renderer is None:
        return
    if unasked := renderer.ends.unasked:
        yield (
            f"the chat template writes {unasked[0]!r} behind the last turn of {len(unasked)} records though no next one is "
            f"asked for (add_generation_prompt); it is not learned as a part of the turn; correct the template, or {REMEDY}"
        )


def _notes_of_texts(records: Sequence[Record], tokenizer: Any) -> Iterator[str]:
    """Texts that a chat template made: their prompts are learned too, whatever `completion_only` says."""
    texts = [record for record in records if record.text is not None]
    template = getattr(tokenizer, "chat_template", None)
    if not texts or not template:
        return
    special = SpecialTokens(tokenizer)
    markers = special.texts.difference((special.bos, special.eos)).intersection(
        special.written_in(str(template))
    )
    found = [
        (
            record.place,
            next((token[0] for token in special.within(str(record.text)) if token[0] in markers), None),
        )
        for record in texts
    ]
    held = [(place, token) for place, token in found if token is not None]
    if held:
        place, token = held[0]
        yield (
            f"{len(held)} texts hold markers of the tokenizer's chat template, and all that stands in them is learned, "
            f"prompts too; the first: {place}: {token!r}; give their turns as 'messages' to learn the replies alone"
        )
