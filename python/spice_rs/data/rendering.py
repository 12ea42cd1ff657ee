"""Conversations → tokens, by the chat template: what is learned, and what never is.

A conversation becomes text by the tokenizer's chat template, by one from a file, or by `PLAIN_TEMPLATE` where there is
none. Which tokens are learned is decided by the *position* of the assistant's words in that text (`spans.py`), never by
token ids: so the end token is learned also where the pad token is the same, and a prompt that quotes the response stays
masked. A record of which the text does not show all (`shown.py`) is refused.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.plain import joined, plain
from spice_rs.data.records import Record
from spice_rs.data.shown import THINKING, Place, show
from spice_rs.data.spans import Ends, Span, find_spans
from spice_rs.data.special import SpecialTokens, shared_prefix
from spice_rs.data.templates import JOINED, ChatTemplate, TemplateFault
from spice_rs.errors import InvalidInputError

_NO_MARKERS = re.compile(THINKING + r"|</?tool_(?:call|response)>")
"""Special tokens of some tokenizers that contents hold by right."""
_MARKERS = re.compile(r"<\|[^<>|\s]+\|>|\[/?[A-Z_]{2,}\]|<</?[A-Z_]{2,}>>")
"""What templates write around turns, special token or not."""
_PLAIN_HEAD = "### Response:"


@dataclass(frozen=True)
class Encoded:
    """The tokens of one record.

    Attributes:
        ids: (T,) int32.
        learned: (T,) bool, the assistant's words with their end tokens.
        context: (T,) bool, what is not to be learned even where all the rest is: assistant turns marked so.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    context: NDArray[np.bool_]


class Renderer:
    """Text and learned spans of conversations, by one template.

    Attributes:
        kind: "chat", "plain" or "joined".
        template: The chat template; None for the others.
        ends: What it writes behind last turns.
    """

    def __init__(self, tokenizer: Any, given: str | None, today: datetime.date) -> None:
        self.tokenizer = tokenizer
        self.special = SpecialTokens(tokenizer)
        self.template: ChatTemplate | None = None
        self.ends = Ends()
        if given == JOINED:
            self.kind = "joined"
        elif given is not None or getattr(tokenizer, "chat_template", None):
            self.kind = "chat"
            self.template = ChatTemplate(tokenizer, given, today)
        else:
            self.kind = "plain"
        self.prefix: list[int] = []
        if self.template is None:
            if self.special.eos is None:
                raise InvalidInputError(
                    "the tokenizer: found no end token (eos_token), expected one to end a response; set it"
                )
            bos = tokenizer.bos_token_id
            whole = tokenizer("a")["input_ids"]
            bare = tokenizer("a", add_special_tokens=False)["input_ids"]
            if bos is not None and whole[:1] == [bos] and bare[:1] != [bos]:
                self.prefix = [bos]

    def encode(self, records: Sequence[Record]) -> Iterator[tuple[int, str | Encoded]]:
        """Yields (index, tokens) or (index, what is wrong) for each record."""
        rendered: list[tuple[Record, str, list[Span]]] = []
        for record in records:
            try:
                rendered.append((record, *self._rendered(record)))
            except TemplateFault as fault:
                yield record.index, str(fault)
        if not rendered:
            return
        offsets = bool(getattr(self.tokenizer, "is_fast", False))
        batch = self.tokenizer(
            [text for _, text, _ in rendered],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=offsets,
        )
        for row, (record, text, spans) in enumerate(rendered):
            ids = batch["input_ids"][row]
            places = np.asarray(batch["offset_mapping"][row]).reshape(-1, 2) if offsets else None
            learned, context = (
                self._covered(
                    text, ids, places, [span for span in spans if record.messages[span.turn].learned == own]
                )
                for own in (True, False)
            )
            yield record.index, self._finish(ids, learned, context & ~learned)

    def _rendered(self, record: Record) -> tuple[str, list[Span]]:
        if self.template is None:
            if self.kind == "joined":
                return joined(record, str(self.special.eos))
            for number, message in enumerate(record.messages):
                if message.role == "user" and message.content.rstrip().endswith(_PLAIN_HEAD):
                    raise TemplateFault(_rendered_before(number, message.role, _PLAIN_HEAD))
            text, spans = plain(record, str(self.special.eos))
            self._check_markers(record, "", ())
            return text, spans
        rendering = self.template.of(record.tools, record.template_options)
        try:
            shown = show(rendering, record.messages)
        except TemplateFault as fault:
            other = rendering.in_parts()
            if other is None:
                raise
            try:
                rendering, shown = other, show(other, record.messages)
            except TemplateFault:
                raise fault from None
        self._check_markers(record, shown.text, shown.places)
        return shown.text, find_spans(rendering, record.messages, shown, self.special, self.ends)

    def _check_markers(self, record: Record, text: str, places: Sequence[Place]) -> None:
        """Refuses turns that hold the markers around them: they were rendered before, and would be again."""
        held = [
            (number, message.role, marker)
            for number, message in enumerate(record.messages)
            for words in (message.content, *message.more.values())
            if isinstance(words, str)
            for marker in self._markers_in(words)
        ]
        if not held:
            return
        written = {self.special.bos, self.special.eos}
        ends, starts = [place.end for place in places], [place.start for place in places]
        for start, end in zip([0, *ends], [*starts, len(text)], strict=True):
            written.update(self._markers_in(text[start:end]))
        for number, role, marker in held:
            if marker in written:
                raise TemplateFault(_rendered_before(number, role, marker))

    def _markers_in(self, text: str) -> list[str]:
        found = [token[0] for token in self.special.within(text)] + _MARKERS.findall(text)
        return [marker for marker in dict.fromkeys(found) if not _NO_MARKERS.fullmatch(marker)]

    def _covered(
        self,
        text: str,
        ids: Sequence[int],
        places: NDArray[np.int64] | None,
        spans: Sequence[Span],
    ) -> NDArray[np.bool_]:
        """(T,) bool: whether a token's characters [start, end) overlap one of the spans."""
        covered = np.zeros(len(ids), dtype=np.bool_)
        for span in spans:
            if places is None:  # no offsets: those behind the tokens of the text before
                first, last = (self._shared(text[:position], ids) for position in (span.start, span.end))
                covered[first:last] = True
            else:
                covered |= (
                    (places[:, 1] > span.start) & (places[:, 0] < span.end) & (places[:, 1] > places[:, 0])
                )
        return covered

    def _shared(self, text: str, ids: Sequence[int]) -> int:
        prefix = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return shared_prefix(prefix, ids)

    def _finish(self, ids: list[int], learned: NDArray[np.bool_], context: NDArray[np.bool_]) -> Encoded:
        """Unlearns the white space that templates put behind an end token, and adds the start token."""
        for position in np.flatnonzero(learned & ~np.append(learned[1:], False)):
            tail = position  # the last token of a learned span
            while tail > 0 and learned[tail] and not self.tokenizer.decode([ids[tail]]).strip():
                tail -= 1
            if tail < position and learned[tail] and ids[tail] in self.special.ids:
                learned[tail + 1 : position + 1] = False
        prefix = [] if ids[:1] == self.prefix else self.prefix
        outside = np.zeros(len(prefix), dtype=np.bool_)
        return Encoded(
            np.asarray([*prefix, *ids], dtype=np.int32),
            np.concatenate([outside, learned]),
            np.concatenate([outside, context]),
        )


def _rendered_before(number: int, role: str, marker: str) -> str:
    return (
        f"turn {number} ({role}): holds {marker!r}, which is written around turns, as in text that was rendered before; "
        "take such markers out, or pass chat_template='none' to join prompt and response as they "
        "stand"
    )
