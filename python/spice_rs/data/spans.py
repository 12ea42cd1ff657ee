"""Where in the text of a conversation each assistant turn stands: what the model is asked to write there.

Where the template marks it ({% generation %}), the marks say so, if they agree with the words: an assistant's words lie
inside or outside as a whole, and nobody else's inside. Else by differences of renderings:

- A turn *starts* where the prompt ends that the model is given for it: the turns before it with the head of the
  assistant's next turn.
- It *ends* where the rendering of the turns up to it ends, its end token included.

Templates write earlier turns otherwise than later ones (thoughts go, tools move, an end token becomes another). So the
renderings are compared from the end of the words before on, which is known in each of them: what a template does to
turns further up does not matter. A few templates end the whole text in a way in which they end no turn that another
follows: with a second end token, with another one, or with the head of a turn that nobody asked for. What such an end
has in common with the text where the next turn follows is the end of the turn.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from spice_rs.data.letters import Letters
from spice_rs.data.records import Message
from spice_rs.data.shown import ONE_PER_TURN, Place, Shown
from spice_rs.data.special import SpecialTokens, shared_prefix
from spice_rs.data.templates import REMEDY, Rendering, TemplateFault

_TAG = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of the text that belong to an assistant turn."""

    turn: int
    start: int
    end: int


@dataclass
class Ends:
    """What a template writes behind the last turn of a text, as far as it has been seen.

    Attributes:
        plain: Kinds of conversations behind which it writes nothing.
        unasked: Heads of turns that it writes though nobody asks for one, once for each text.
    """

    plain: set[Hashable] = field(default_factory=set)
    unasked: list[str] = field(default_factory=list)


def find_spans(
    rendering: Rendering, messages: Sequence[Message], shown: Shown, special: SpecialTokens, ends: Ends
) -> list[Span]:
    """The assistant turns of a conversation, in order; several spans of one where it is marked in parts.

    Args:
        rendering: The template.
        messages: The turns.
        shown: Their text.
        special: The tokenizer's special tokens.
        ends: What is known of the ends of texts; added to.

    Raises:
        TemplateFault: They cannot be told from the rest.
    """
    if shown.generation is not None:
        marked = _by_marks(messages, shown)
        if marked is not None:
            return marked
    differences = _Differences(rendering, messages, shown, special, ends)
    return [
        differences.span(number) for number, message in enumerate(messages) if message.role == "assistant"
    ]


# --------------------------------------------------------------------------------------------------- by marks


def _by_marks(messages: Sequence[Message], shown: Shown) -> list[Span] | None:
    """The marked spans, each with the turn that it belongs to; None where the marks contradict the words."""
    spans: list[Span] = []
    for start, end in shown.generation or ():
        inside = [place for place in shown.places if place.start < end and place.end > start]
        if any(place.piece.message.role != "assistant" for place in inside):
            return None
        if any(place.start < start or place.end > end for place in inside):
            return None
        turns = {place.piece.turn for place in inside}
        if len({messages[turn].learned for turn in turns}) > 1:
            return None
        turn = max(turns) if turns else _turn_at(start, end, messages, shown)
        if turn is None:
            return None
        spans.append(Span(turn, start, end))
    said = {place.piece.turn for place in shown.places if place.piece.message.role == "assistant"}
    if said and not said & {span.turn for span in spans}:
        return None  # all that the assistant says lies outside
    return spans


def _turn_at(start: int, end: int, messages: Sequence[Message], shown: Shown) -> int | None:
    """The assistant turn that a marked part without words belongs to: an end token, or a turn of calls alone."""
    before = max((place for place in shown.places if place.end <= start), key=_end, default=None)
    after = min((place for place in shown.places if place.start >= end), key=_end, default=None)
    first = before.piece.turn if before is not None else 0
    last = after.piece.turn if after is not None else len(messages) - 1
    assistants = [turn for turn in range(first, last + 1) if messages[turn].role == "assistant"]
    if len({messages[turn].learned for turn in assistants}) > 1:
        return None
    return assistants[0] if assistants else None


def _end(place: Place | None) -> int:
    return place.end if place is not None else 0


# --------------------------------------------------------------------------------------------- by differences


class _Differences:
    """Spans of one conversation by what the template writes for parts of it."""

    def __init__(
        self,
        rendering: Rendering,
        messages: Sequence[Message],
        shown: Shown,
        special: SpecialTokens,
        ends: Ends,
    ) -> None:
        self.rendering, self.messages, self.shown, self.special = rendering, messages, shown, special
        self.ends = ends

    def span(self, number: int) -> Span:
        """The span of an assistant turn."""
        start, end = self._start(number), self._end(number)
        if end < start:
            raise self._rewritten(number)
        return Span(number, start, end)

    def _start(self, number: int) -> int:
        if number == 0:
            # There is no prompt whose end could be asked for: the head is what does not depend on the words.
            message = self.messages[0]
            other = "x" if message.content.strip()[:1] != "x" else "y"
            alone = self.rendering.text([{"role": message.role, "content": other}])
            return shared_prefix(alone, self.shown.text)
        base = self._before(number)
        prompt, rest = self._after(base, number, generation=True), self._rest(base)
        if rest.startswith(prompt):
            return _end(base) + len(prompt)
        # The prompt's end may differ a little from the turn's start ("<think>" opened for the model): what both share
        # is the turn's head.
        shared = self.special.shared(prompt, rest)
        for tag in _TAG.finditer(prompt):
            if tag.start() < shared < tag.end():
                shared = tag.start()  # the words begin with a tag, another one
        head = self.special.shared(self._after(base, number), prompt)
        if shared < head or shared == head < len(prompt) or not _only_opens(prompt[shared:]):
            raise self._rewritten(number)
        return _end(base) + shared

    def _end(self, number: int) -> int:
        own = [place for place in self.shown.places if place.piece.turn == number]
        base = max(own, key=_end) if own else self._before(number)
        rest = self._rest(base)
        if number + 1 == len(self.messages):
            return _end(base) + self._length_of_last(base, rest)
        closed = self._after(base, number + 1)
        if closed and rest.startswith(closed):
            return _end(base) + len(closed)
        asked = self._after(base, number + 1, generation=True)
        tail = asked.removesuffix(self._head)
        if tail != asked and rest.startswith(tail) and (tail or not closed):
            return _end(base) + len(tail)
        if not closed:
            return _end(base)
        shared = max(self.special.shared(each, rest) for each in (asked, closed))
        length = self._first_end(number, rest[:shared])
        if length is None:
            raise self._rewritten(number)
        return _end(base) + length

    def _length_of_last(self, base: Place | None, rest: str) -> int:
        """Length of what belongs to the last turn in the rest of the text: all but a head that nobody asked for."""
        rendering, number = self.rendering, len(self.messages) - 1
        roles = tuple(message.role for message in self.messages)
        key = (roles, rendering.tools is None, repr(rendering.options))
        if key in self.ends.plain:
            return len(rest)
        length: int | None = len(rest)
        after = rest
        try:
            if self._after(base, number + 1, generation=True) == rest:
                after = self._after(base, number + 1, then=({"role": "user", "content": "x"},))
        except TemplateFault:
            pass  # nothing may follow
        if not after.startswith(rest):
            length = self._first_end(number, rest[: self.special.shared(after, rest)])
        if length is None:
            raise TemplateFault(
                f"the chat template ends the text with {rest[-40:]!r} whether the assistant's next turn is asked for "
                f"(add_generation_prompt) or not, so the end of turn {number} (assistant) cannot be told; {REMEDY}"
            )
        if length == len(rest):
            self.ends.plain.add(key)
        elif rest[length:].strip():
            self.ends.unasked.append(rest[length:].strip())
        return length

    def _first_end(self, number: int, shared: str) -> int | None:
        """Length up to the first special token, its own included; behind calls without words it may be another."""
        tokens = self.special.within(shared)
        return tokens[0].end() if tokens and not self.messages[number].calls else None

    @cached_property
    def _head(self) -> str:
        """The head of an assistant's turn as it is written where one is asked for; empty if no turn tells.

        It is what asking adds behind a turn of somebody else: the assistant's own may end otherwise at the end.
        """
        for number, (earlier, message) in enumerate(pairwise(self.messages), start=1):
            if message.role == "assistant" and earlier.role != "assistant":
                base = self._before(number)
                prompt = self._after(base, number, generation=True)
                return prompt[self.special.shared(self._after(base, number), prompt) :]
        return ""

    def _before(self, number: int) -> Place | None:
        """The last piece of the turns before a turn that stands before it in the text."""
        places = self.shown.places
        own = [place for place in places if place.piece.turn == number]
        following = own or [place for place in places if place.piece.turn > number]
        limit = min((place.start for place in following), default=len(self.shown.text))
        earlier = [place for place in places if place.piece.turn < number and place.end <= limit]
        return max(earlier, key=_end, default=None)

    def _rest(self, base: Place | None) -> str:
        return self.shown.text[_end(base) :]

    def _after(
        self,
        base: Place | None,
        count: int,
        *,
        generation: bool = False,
        then: tuple[dict[str, Any], ...] = (),
    ) -> str:
        """What follows a piece in the rendering of the first `count` turns."""
        text = self.rendering.text([*self.shown.turns[:count], *then], generation=generation)
        if base is None:
            return text
        if text.startswith(self.shown.text[: base.end]):
            return text[base.end :]
        if self.shown.marked is not None:
            marked = [*self.shown.marked[:count], *then]
            letters = Letters.of(self.rendering.text(marked, generation=generation))
            if letters.text == text and base.number in letters.found:
                return text[letters.found[base.number][1] + base.inset :]
        raise self._rewritten(base.piece.turn)

    def _rewritten(self, number: int) -> TemplateFault:
        return TemplateFault(
            f"the chat template rewrites turn {number} ({self.messages[number].role}) when later turns follow, so the "
            "learned tokens cannot be told from the rest; use a template with {% generation %} marks "
            f"(chat_template=FILE), or {ONE_PER_TURN}"
        )


def _only_opens(text: str) -> bool:
    """Whether it is nothing but tags and white space: what a prompt may write for the model before its words."""
    return not re.search(r"\w", _TAG.sub("", text))
