"""Records → tokenised examples whose learned tokens are marked, with stable ids.

A conversation becomes text by the tokenizer's chat template, or by `PLAIN_TEMPLATE` where it has none. Which
tokens are learned is decided by the *position* of the assistant's words in that text, never by token ids: so
the end token is learned also where the pad token is the same, and a prompt that quotes the response stays
masked.

Where the template marks the assistant's words ({% generation %}), its marks are used. Else by difference of
prefixes: an assistant turn's words are what the template adds when the turn is appended to the conversation
before it, and both renderings must be a prefix of the whole; a template that rewrites earlier turns fails
this check by name.

Causal shift: the token at position t is predicted from position t - 1, so `num_tokens` counts learned labels
at positions ≥ 1. This file does not import torch; tokenizers are passed in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.records import Message, Record, Records, dataset_fingerprint, load_records
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

IGNORED = -100
"""Label of a token that is not learned (the convention of torch and transformers)."""

PLAIN_TEMPLATE = {
    "system": "{content}\n\n",
    "user": "### Instruction:\n{content}\n\n### Response:\n",
    "tool": "### Result:\n{content}\n\n### Response:\n",
    "assistant": "{content}{eos}",
}
"""Text of each turn for tokenizers without a chat template; two line ends follow an assistant's turn."""

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
        template: "chat", "plain", "text" or "tokens" (records tokenised already; "chat+tokens" for a mixture).
    """

    items: tuple[Example, ...]
    truncated: int
    skipped: tuple[LeftOut, ...]
    template: str

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
) -> Examples:
    """Tokenises records and marks what is learned.

    Args:
        records: From `load_records`, or a slice of them.
        tokenizer: A `transformers` tokenizer; None if every record is tokenised already.
        max_length: Tokens kept per sample, from the start.
        completion_only: Learn the assistant's words alone; else every token but the first.
        skip_bad: Leave out (and count) records without a learned token or that the template refuses.

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
    templates: set[str] = set()
    renderer = None
    for start in range(0, len(records), _TEXTS_AT_ONCE):
        chunk = records[start : start + _TEXTS_AT_ONCE]
        words = [record for record in chunk if record.tokens is None]
        if words and tokenizer is None:
            raise InvalidInputError(
                f"{words[0].place}: is text, and no tokenizer was given; pass tokenizer=…"
            )
        turns = [record for record in words if record.text is None]
        if turns and renderer is None:
            renderer = _Renderer(tokenizer)
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
                ids, learned = outcome
                labels = np.where(learned, ids, IGNORED).astype(np.int32) if completion_only else ids
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
            cut = len(ids) > max_length
            truncated += cut
            items.append(Example(record.index, kept_ids.copy(), kept_labels.copy(), num_tokens, cut))
    return Examples(tuple(items), truncated, tuple(skipped), "+".join(sorted(templates)) or "tokens")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of all that decides token ids and masks: vocabulary, merges, special tokens and chat template."""
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
        "template": getattr(tokenizer, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bad(record: Record, reason: str, detail: str, skip_bad: bool, skipped: list[LeftOut]) -> None:
    left_out = LeftOut(record.index, record.place, reason, detail)
    if not skip_bad:
        raise InvalidInputError(f"{left_out}; {SKIP_REMEDY}")
    skipped.append(left_out)


def _encode_texts(
    tokenizer: Any, records: Sequence[Record]
) -> Iterator[tuple[int, tuple[NDArray[np.int32], NDArray[np.bool_]]]]:
    """Yields (index, (ids (T,), learned (T,))): all of a text and an end token, with the tokenizer's start token."""
    if not records:
        return
    end = tokenizer.eos_token_id
    batch = tokenizer([record.text for record in records], return_attention_mask=False)
    for record, ids in zip(records, batch["input_ids"], strict=True):
        whole = list(ids) if end is None or ids[-1:] == [end] else [*ids, end]
        yield record.index, (np.asarray(whole, dtype=np.int32), np.ones(len(whole), dtype=np.bool_))


class _TemplateError(Exception):
    """The chat template cannot be followed for one record."""


class _Renderer:
    """Text and learned spans of a conversation, by one tokenizer's template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self.kind = "chat" if template else "plain"
        templates = template.values() if isinstance(template, dict) else [template or ""]
        self.marked = any(re.search(r"\{%-?\s*generation\s*-?%\}", text) for text in templates)
        self.special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self.prefix: list[int] = []
        if self.kind == "plain":
            bos = tokenizer.bos_token_id
            whole = tokenizer("a")["input_ids"]
            bare = tokenizer("a", add_special_tokens=False)["input_ids"]
            if bos is not None and whole[:1] == [bos] and bare[:1] != [bos]:
                self.prefix = [bos]
            if tokenizer.eos_token is None:
                raise InvalidInputError(
                    "the tokenizer has no end token (eos_token), expected one to end a response; set it"
                )

    def encode(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[int, str | tuple[NDArray[np.int32], NDArray[np.bool_]]]]:
        """Yields (index, (ids (T,), learned (T,))) or (index, what is wrong) for each record."""
        rendered: list[tuple[int, str, list[tuple[int, int]]]] = []
        for record in records:
            try:
                self._check_calls(record)
                if self.marked:
                    yield record.index, self._by_marks(record.messages, record.tools)
                else:
                    text, spans = self._spans(record.messages, record.tools)
                    rendered.append((record.index, text, spans))
            except _TemplateError as error:
                yield record.index, str(error)
        if rendered:
            offsets = bool(getattr(self.tokenizer, "is_fast", False))
            batch = self.tokenizer(
                [text for _, text, _ in rendered],
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=offsets,
            )
            for row, (index, text, spans) in enumerate(rendered):
                ids = batch["input_ids"][row]
                if offsets:
                    learned = _covered(np.asarray(batch["offset_mapping"][row]).reshape(-1, 2), spans)
                else:
                    learned = self._covered_by_prefixes(text, ids, spans)
                yield index, self._finish(ids, learned)

    def _finish(
        self, ids: list[int], learned: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Adds the start token, and unlearns the white space that templates put behind an end token."""
        for position in range(1, len(ids)):
            if not learned[position] or (position + 1 < len(ids) and learned[position + 1]):
                continue
            tail = position  # the last token of a learned span
            while tail > 0 and learned[tail] and not self.tokenizer.decode([ids[tail]]).strip():
                tail -= 1
            if tail < position and learned[tail] and ids[tail] in self.special:
                learned[tail + 1 : position + 1] = False
        prefix = len(self.prefix)
        return (
            np.asarray(self.prefix + ids, dtype=np.int32),
            np.concatenate([np.zeros(prefix, dtype=np.bool_), learned]),
        )

    def _check_calls(self, record: Record) -> None:
        """Refuses tool calls that the text would not show: they are to be learned."""
        if not any(message.calls for message in record.messages):
            return
        if self.kind == "plain":
            raise _TemplateError("found calls of tools, and the tokenizer has no chat template")
        turns = [message.turn() for message in record.messages]
        text = self._render(turns, record.tools, generation=False)
        silent = [{name: each for name, each in turn.items() if name != "tool_calls"} for turn in turns]
        try:
            without = self._render(silent, record.tools, generation=False)
        except _TemplateError:
            return  # it misses the calls
        if text == without:
            raise _TemplateError("the chat template leaves tool calls out; use one that shows them")

    def _spans(
        self, messages: tuple[Message, ...], tools: Sequence[Any] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and the character span [start, end) of each assistant turn in it."""
        if self.kind == "plain":
            return self._plain(messages)
        turns = [message.turn() for message in messages]
        text = self._render(turns, tools, generation=False)
        spans = []
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(turns[:number], tools, generation=False) if number else ""
            if number:
                opened = self._render(turns[:number], tools, generation=True)
            else:
                # There is no prompt whose end could be asked for: the head is what does not depend on the words.
                other = "x" if message.content.strip()[:1] != "x" else "y"
                opened = self._render([{"role": message.role, "content": other}], tools, generation=False)
            after = self._render(turns[: number + 1], tools, generation=False)
            # The prompt's end may differ a little from the turn's start ("<think>" opened for the
            # model): what both share is the turn's head.
            start = _shared_prefix(opened, text)
            if not (text.startswith(before) and text.startswith(after) and start >= len(before)):
                raise _TemplateError(
                    f"the chat template rewrites turn {number} when later turns follow, so the learned "
                    "tokens cannot be told from the rest; use a template with {% generation %} marks, or one "
                    "sample per assistant turn"
                )
            spans.append((start, len(after)))
        return text, spans

    def _plain(self, messages: tuple[Message, ...]) -> tuple[str, list[tuple[int, int]]]:
        eos = self.tokenizer.eos_token
        text, spans, previous = "", [], ""
        for message in messages:
            if message.role not in PLAIN_TEMPLATE:
                raise _TemplateError(f"role {message.role!r}, expected one of {', '.join(PLAIN_TEMPLATE)}")
            if previous == "assistant":
                text += "\n\n"
            start = len(text)
            text += PLAIN_TEMPLATE[message.role].format(content=message.content, eos=eos)
            if message.role == "assistant":
                spans.append((start, len(text)))
            previous = message.role
        return text, spans

    def _render(self, turns: list[dict[str, Any]], tools: Sequence[Any] | None, *, generation: bool) -> str:
        return str(self._apply(turns, tools, tokenize=False, add_generation_prompt=generation))

    def _by_marks(
        self, messages: tuple[Message, ...], tools: Sequence[Any] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        turns = [message.turn() for message in messages]
        encoded = self._apply(
            turns, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        return ids, np.asarray(encoded["assistant_masks"]).astype(np.bool_)

    def _apply(self, turns: list[dict[str, Any]], tools: Sequence[Any] | None, **options: Any) -> Any:
        from jinja2 import TemplateError

        try:
            if tools is not None:  # some tokenizers do not know of any
                options["tools"] = tools
            return self.tokenizer.apply_chat_template(turns, **options)
        # raise_exception(…) in a template (roles must alternate, no system role, …), and what its expressions raise.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise _TemplateError(f"the chat template refuses the conversation: {error}") from None

    def _covered_by_prefixes(
        self, text: str, ids: list[int], spans: list[tuple[int, int]]
    ) -> NDArray[np.bool_]:
        """Learned tokens where the tokenizer gives no offsets: those behind the tokens of the text before."""
        learned = np.zeros(len(ids), dtype=np.bool_)
        for start, end in spans:
            first, last = (self._shared(text[:position], ids) for position in (start, end))
            learned[first:last] = True
        return learned

    def _shared(self, text: str, ids: list[int]) -> int:
        prefix = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return _shared_prefix(prefix, ids)


def _covered(offsets: NDArray[np.int64], spans: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """(T,) bool: whether a token's characters [start, end) overlap a learned span."""
    learned = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        learned |= (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
    return learned


def _shared_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)
