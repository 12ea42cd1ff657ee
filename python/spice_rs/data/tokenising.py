"""Records → examples, one after the other: by the chat template, as plain text, or as they are tokenised already.

Conversations become text by a chat template, and are learned where the assistant speaks: see `rendering.py`. Plain
text is learned as a whole, and records that are tokenised already as their labels say. This file does not import torch;
tokenizers are passed in.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.arguments import whole
from spice_rs.data.examples import Example
from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.records import Record
from spice_rs.data.rendering import Encoded, Renderer
from spice_rs.data.special import SpecialTokens
from spice_rs.data.templates import REMEDY
from spice_rs.data.tokens import IGNORED
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted

_TEXTS_AT_ONCE = 512  # fast tokenizers work on many texts in parallel; bounds the encodings held at a time
_LETTERS_AT_ONCE = 1 << 18  # and the seconds in which nobody can stop them


class Tokeniser:
    """Tokenises records one after the other: what `tokenise` does, for those who keep the examples elsewhere.

    Args:
        tokenizer: As for `tokenise`, as all the others.
        max_length: See there.
        completion_only: See there.
        skip_bad: See there.
        chat_template: See there.
        today: See there.

    Attributes:
        truncated: Number of examples cut to `max_length` so far.
        skipped: Records without a learned token so far that were left out.

    Raises:
        InvalidInputError: `max_length` is too small.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int = 2048,
        completion_only: bool = True,
        skip_bad: bool = False,
        chat_template: str | None = None,
        today: datetime.date | None = None,
    ) -> None:
        remedy = "One token to predict from, one to learn."
        max_length = whole("max_length", max_length, least=2, remedy=remedy)
        self.truncated = 0
        self.skipped: list[LeftOut] = []
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._completion_only = completion_only
        self._skip_bad = skip_bad
        self._chat_template = chat_template
        self._today = today or datetime.date.today()
        self._kinds: set[str] = set()
        self._unknown = _Counted()
        self._texts = _Rendered(tokenizer)
        self._renderer: Renderer | None = None

    def examples(self, records: Iterable[Record]) -> Iterator[Example]:
        """Yield the example of each record that has one.

        Raises:
            InvalidInputError: See `tokenise`.
        """
        for chunk in _chunks(records):
            encoded = self._encoded([record for record in chunk if record.tokens is None])
            for record in chunk:
                example = self._example(record, encoded)
                if example is not None:
                    yield example

    @property
    def template(self) -> str:
        """As in `Examples`."""
        return "+".join(sorted(self._kinds)) or "tokens"

    @property
    def template_date(self) -> datetime.date | None:
        """As in `Examples`."""
        template = None if self._renderer is None else self._renderer.template
        return self._today if template is not None and template.dated else None

    @property
    def notes(self) -> list[str]:
        """As in `Examples`."""
        notes = [*_notes_of_template(self._renderer), *self._texts.notes()]
        if self._unknown.count:
            notes.append(
                f"the tokenizer knows no word of what is learned in {counted(self._unknown.count, 'record')} (the first:"
                f" {self._unknown.first}), so that they are alike; use the tokenizer that belongs to the model and the"
                " language"
            )
        return notes

    def _encoded(self, words: Sequence[Record]) -> dict[int, Encoded | str]:
        """Tokens by index, or what is wrong."""
        if words and self._tokenizer is None:
            raise InvalidInputError(
                f"{words[0].place}: is text, and no tokenizer was given; pass tokenizer=…"
            )
        turns = [record for record in words if record.text is None]
        if turns and self._renderer is None:
            self._renderer = Renderer(self._tokenizer, self._chat_template, self._today)
        encoded: dict[int, Encoded | str] = (
            dict(self._renderer.encode(turns)) if self._renderer and turns else {}
        )
        texts = [record for record in words if record.text is not None]
        encoded.update(_encode_texts(self._tokenizer, texts))
        self._texts.look(texts)
        return encoded

    def _example(self, record: Record, encoded: Mapping[int, Encoded | str]) -> Example | None:
        """The example; None where the record is left out."""
        if record.tokens is not None:
            self._kinds.add("tokens")
            ids, labels = record.tokens.astype(np.int32)
        else:
            chat = self._renderer is not None and record.text is None
            self._kinds.add(self._renderer.kind if self._renderer is not None and chat else "text")
            outcome = encoded[record.index]
            if isinstance(outcome, str):
                self._leave_out(record, "chat template", outcome)
                return None
            ids = outcome.ids
            learned = outcome.learned if self._completion_only else ~outcome.context
            labels = np.where(learned, ids, IGNORED).astype(np.int32)
        kept_ids, kept_labels = ids[: self._max_length], labels[: self._max_length]
        num_tokens = int(np.count_nonzero(kept_labels[1:] != IGNORED))
        if num_tokens == 0:
            self._leave_out(record, *self._nothing_learned(labels))
            return None
        if record.tokens is None and _is_unknown(kept_labels, self._tokenizer):
            self._unknown.add(record.place)
        cut = len(ids) > self._max_length
        self.truncated += cut
        return Example(record.index, kept_ids.copy(), kept_labels.copy(), num_tokens, cut)

    def _nothing_learned(self, labels: NDArray[np.int32]) -> tuple[str, str]:
        """Why there is no learned token among the first: in a few words, and in full."""
        full = int(np.count_nonzero(labels[1:] != IGNORED))
        if full:
            return "cut before the response", (
                f"none of its {full} learned tokens is among the first max_length={self._max_length} of "
                f"{len(labels)}; raise max_length"
            )
        return (
            "no learned token",
            f"no learned token among {len(labels)}, expected at least one after the first",
        )

    def _leave_out(self, record: Record, reason: str, detail: str) -> None:
        left_out = LeftOut(record.index, record.place, reason, detail)
        if not self._skip_bad:
            raise InvalidInputError(f"{left_out}; {SKIP_REMEDY}")
        self.skipped.append(left_out)


class _Counted:
    """How often something was found, and where first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, what: str) -> None:
        self.first = self.first or what
        self.count += 1


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records that are tokenised at once: so few that a user who stops the run does not wait."""
    chunk: list[Record] = []
    letters = 0
    for record in records:
        chunk.append(record)
        letters += len(record.text or "") + sum(len(turn.content) for turn in record.messages)
        if len(chunk) >= _TEXTS_AT_ONCE or letters >= _LETTERS_AT_ONCE:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


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
            f"the chat template writes {unasked[0]!r} behind the last turn of {counted(len(unasked), 'record')}"
            " though no next one is "
            f"asked for (add_generation_prompt); it is not learned as a part of the turn; correct the template, or {REMEDY}"
        )


class _Rendered:
    """Texts that a chat template made: their prompts are learned too, whatever `completion_only` says."""

    def __init__(self, tokenizer: Any) -> None:
        self._found = _Counted()
        self._markers: set[str] | None = None
        self._tokenizer = tokenizer

    def look(self, texts: Sequence[Record]) -> None:
        """Look for markers of the template in more texts."""
        template = getattr(self._tokenizer, "chat_template", None)
        if not texts or not template:
            return
        if self._markers is None:
            self._special = SpecialTokens(self._tokenizer)
            written = self._special.written_in(str(template))
            self._markers = written & (self._special.texts - {self._special.bos, self._special.eos})
        for record in texts:
            tokens = (token[0] for token in self._special.within(str(record.text)))
            held = next((token for token in tokens if token in self._markers), None)
            if held is not None:
                self._found.add(f"{record.place}: {held!r}")

    def notes(self) -> Iterator[str]:
        """What was found, in a sentence."""
        if self._found.count:
            yield (
                f"{counted(self._found.count, 'text holds', 'texts hold')} markers of the tokenizer's chat"
                " template, and all that stands in them is"
                f" learned, prompts too; the first: {self._found.first}; give their turns as 'messages' to learn the"
                " replies alone"
            )
