"""Whether a text shows all that the turns of a record say, and where.

A word may stand in a text by chance: that a turn is shown is known only by a rendering in which letters of no
meaning (from the planes for private use) stand around all that the turn says. Without these letters, that
rendering must be the text itself, letter by letter; then they tell the place of each piece exactly, and a piece whose
letters are gone is one that the template drops.

What is looked for: the content of every turn, thoughts, names and arguments of calls, tools by their names. White
space around a piece may go, and its letters may be escaped.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from spice_rs.data.calls import check_calls_and_tools
from spice_rs.data.letters import LETTERS, MOST, Letters, begin, end
from spice_rs.data.records import Message
from spice_rs.data.templates import REMEDY, Rendering, TemplateFault
from spice_rs.printable import short

ONE_PER_TURN = "one sample per assistant turn"
THINKING = r"</?(?:think|thinking|thought)>"
"""Tags around thoughts in a content. Templates cut contents there."""

_TAGS = re.compile(r"</?[A-Za-z][\w-]*>|/(?:no_)?think\b")
_NOT_SHOWN = ("tool_call_id", "tool_calls")
"""Of what a turn has besides its content: what only says which call is meant, and what is looked at by its parts."""


@dataclass(frozen=True)
class Piece:
    """Something that a turn says.

    Attributes:
        turn: Its number.
        message: The turn.
        what: For people: "content", "thoughts", "calls", or the field.
        words: As the data have it, without white space around it.
        needed: Whether it must be shown.
    """

    turn: int
    message: Message
    what: str
    words: str
    needed: bool = True


@dataclass(frozen=True)
class Place:
    """A piece, and where it stands in the text.

    Attributes:
        number: Of the piece in `Shown.marked`.
        piece: What is said.
        start: Its first character.
        end: Behind its last one.
        inset: How far inside its letters stand.
    """

    number: int
    piece: Piece
    start: int
    end: int
    inset: int = 0


@dataclass(frozen=True)
class Shown:
    """The text of a record and what is where in it.

    Attributes:
        text: As the model reads it.
        turns: The turns, as the template takes them.
        marked: The same with letters around the pieces; None where letters would change the text.
        places: Of all pieces that were found, by start.
        generation: What the template marks as the assistant's, [start, end); None where it does not.
    """

    text: str
    turns: list[dict[str, Any]]
    marked: list[dict[str, Any]] | None
    places: list[Place]
    generation: list[tuple[int, int]] | None = None


class _Marker:
    """Puts letters around pieces."""

    def __init__(self, tags: re.Pattern[str], *, calls: bool, inside: bool) -> None:
        self.tags, self.calls, self.inside = tags, calls, inside
        self.pieces: list[Piece] = []

    def turn(self, number: int, message: Message) -> dict[str, Any]:
        """The turn as templates take it, marked."""
        turn = message.turn()
        said: set[str] = set()  # thoughts under two names need to be shown once
        for name, value in message.more.items():
            if name not in _NOT_SHOWN:
                turn[name] = self._leaves(value, number, message, name, again=str(value) in said)
                said.add(str(value))
        turn["content"] = self._content(number, message)
        if self.calls and isinstance(message.more.get("tool_calls"), list):
            turn["tool_calls"] = [self._call(call, number, message) for call in message.more["tool_calls"]]
        return turn

    def _call(self, call: Any, number: int, message: Message) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(call["function"], number, message)}
        changed = dict(call)
        for name in ("name", "arguments"):
            if name in call:
                changed[name] = self._leaves(call[name], number, message, "calls")
        return changed

    def _leaves(self, value: Any, number: int, message: Message, what: str, *, again: bool = False) -> Any:
        """All words in a value."""
        if isinstance(value, str):
            return self._piece(value, number, message, what, again=again)
        if isinstance(value, Mapping):
            return {
                name: self._leaves(each, number, message, what, again=again) for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._leaves(each, number, message, what, again=again) for each in value]
        return value

    def _content(self, number: int, message: Message) -> str:
        """Piece by piece between the tags that the template may cut at."""
        parts = self.tags.split(message.content)
        if not any(part.strip() for part in parts[::2]):
            return self._piece(message.content, number, message, "content")
        thoughts = _thoughts(parts) if message.role == "assistant" else [False] * len(parts)
        return "".join(
            part
            if place % 2
            else self._piece(part, number, message, "thoughts" if thoughts[place] else "content")
            for place, part in enumerate(parts)
        )

    def _piece(self, text: str, number: int, message: Message, what: str, *, again: bool = False) -> str:
        words = text.strip()
        if not words:
            return text
        if len(self.pieces) == MOST:
            raise TemplateFault(f"found more than {MOST} turns, calls and thoughts, expected fewer")
        letters = begin(len(self.pieces)), end(len(self.pieces))
        needed = not again and _is_needed(message, what, words)
        self.pieces.append(Piece(number, message, what, words, needed))
        start = text.index(words)
        inset = self.inset(words)
        first, last = start + inset, start + len(words) - inset
        return text[:first] + letters[0] + text[first:last] + letters[1] + text[last:]

    def inset(self, words: str) -> int:
        """How far inside the words their letters stand."""
        return 1 if self.inside and len(words) > 1 else 0


def _thoughts(parts: Sequence[str]) -> list[bool]:
    """Whether each part lies before the end of thoughts; their start may have been in the prompt."""
    last = max(
        (i for i, part in enumerate(parts) if re.fullmatch(THINKING, part) and "/" in part), default=-1
    )
    return [place < last for place in range(len(parts))]


def _is_needed(message: Message, what: str, words: str) -> bool:
    if what == "name":  # of a tool: that of the call before
        return message.role != "tool" and words != message.role
    # What the model thought before it said something that is only context is not learned: a template may leave it out,
    # as it will when the model is used.
    return what in ("content", "calls") or not (message.role == "assistant" and not message.learned)


def show(rendering: Rendering, messages: Sequence[Message]) -> Shown:
    """Renders the turns, and finds all that they say in the text.

    Raises:
        TemplateFault: Something is left out or altered; the message names the turn, its role and what it is.
    """
    turns = [message.turn() for message in messages]
    text = rendering.text(turns)
    rendering.note_date(turns, text)
    tags = _tags_of(rendering.source.text)
    calls = any(message.calls for message in messages)
    shown = None
    generation = rendering.source.is_marked
    # A template may look at how a content begins, or for names that it knows: letters elsewhere do not disturb it.
    for marks, inside, of_generation in dict.fromkeys(
        [(calls, False, generation), (calls, False, False), (False, False, False), (calls, True, False)]
    ):
        marker = _Marker(tags, calls=marks, inside=inside)
        marked = [marker.turn(number, message) for number, message in enumerate(messages)]
        shown = _by_letters(rendering, turns, marked, marker, text, generation=of_generation)
        if shown is not None:
            break
    if shown is None:
        shown = Shown(text, turns, None, list(_searched(text, marker.pieces)))
    _check_order(shown.places)
    if calls or rendering.tools:
        check_calls_and_tools(rendering, messages, text)
    return shown


def _by_letters(
    rendering: Rendering,
    turns: list[dict[str, Any]],
    marked: list[dict[str, Any]],
    marker: _Marker,
    text: str,
    *,
    generation: bool,
) -> Shown | None:
    """What is shown; None if the letters change the text."""
    if LETTERS.search(text):
        return None
    try:
        letters = Letters.of(rendering.with_marks(marked) if generation else rendering.text(marked))
    except TemplateFault:
        return None
    if letters.text != text:
        return None
    found = letters.found
    places = []
    for number, piece in enumerate(marker.pieces):
        inset = marker.inset(piece.words)
        start, end = found.get(number, (0, 0))
        start, end = start - inset, end + inset
        if number in found and _are_the_words(text[start:end], piece.words):
            # A call may be named again by the answer to it.
            if number in letters.repeated and piece.message.role == "assistant" and piece.what != "calls":
                raise TemplateFault(
                    f"the chat template writes the {piece.what} of turn {piece.turn} (assistant) twice, so what is to be "
                    f"learned cannot be told; {REMEDY}"
                )
            places.append(Place(number, piece, start, end, inset))
        elif piece.needed:
            raise TemplateFault(_left_out(piece, altered=number in found))
    places.sort(key=lambda place: place.start)
    return Shown(text, turns, marked, places, letters.generation if generation else None)


def _are_the_words(found: str, words: str) -> bool:
    """Whether the text shows the words, maybe escaped, or with other white space."""
    if found == words:
        return True
    escaped = [words, *(json.dumps(words, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))]
    escaped += [json.dumps(each)[1:-1] for each in escaped[1:]]
    shown = "".join(found.split())
    return any("".join(each.split()) == shown for each in escaped) or html.unescape(found) == words


def _left_out(piece: Piece, *, altered: bool = False) -> str:
    whose = f"turn {piece.turn} ({piece.message.role})"
    does = "alters" if altered else "leaves out"
    if piece.what == "calls":
        return (
            f"{whose}: the chat template leaves tool calls out, or a part of them ({short(piece.words, 40)}); use one that "
            "shows them (chat_template=FILE)"
        )
    if piece.what not in ("content", "name"):  # thoughts, wherever the data have them
        where = "between <think> and </think>" if piece.what == "thoughts" else f"in {piece.what!r}"
        return (
            f"{whose}: the chat template {does} the thoughts {where} ({short(piece.words, 40)}), which would not be "
            f"learned; make {ONE_PER_TURN}, since many templates show the thoughts of the last one alone, or {REMEDY}"
        )
    if piece.what == "content" and piece.message.role == "assistant":
        return (
            f"the chat template rewrites turn {piece.turn} (assistant): it {does} its content ({short(piece.words, 40)}); "
            f"use a template that shows it, best one with {{% generation %}} marks (chat_template=FILE), "
            f"or {ONE_PER_TURN}"
        )
    return f"{whose}: the chat template {does} its {piece.what} ({short(piece.words, 40)}); {REMEDY}"


def _searched(text: str, pieces: Sequence[Piece]) -> Iterator[Place]:
    """Pieces by their words: each must stand in the text once, or nobody knows which of them is the turn."""
    for number, piece in enumerate(pieces):
        forms = dict.fromkeys([piece.words, json.dumps(piece.words, ensure_ascii=False)[1:-1]])
        form = next((form for form in forms if form in text), None)
        if form is None:
            if piece.needed:
                raise TemplateFault(_left_out(piece))
        elif text.count(form) > 1:
            raise TemplateFault(
                f"the chat template writes other text for other words, and the {piece.what} of turn {piece.turn} "
                f"({piece.message.role}; {short(piece.words, 40)}) stands in it several times; {REMEDY}"
            )
        else:
            yield Place(number, piece, text.index(form), text.index(form) + len(form))


def _check_order(places: Sequence[Place]) -> None:
    """Instructions may be shown elsewhere, as some templates put them into the last user turn; turns follow each other."""
    latest: Piece | None = None
    for place in places:
        piece = place.piece
        if piece.what != "content" or piece.message.role in ("system", "developer"):
            continue
        if latest is not None and piece.turn < latest.turn:
            raise TemplateFault(
                f"the chat template shows turn {latest.turn} ({latest.message.role}) before turn {piece.turn} "
                f"({piece.message.role}); {REMEDY}"
            )
        latest = piece


@lru_cache
def _tags_of(source: str | None) -> re.Pattern[str]:
    """Where templates cut contents: at tags that they name, and around thoughts."""
    named = sorted(set(_TAGS.findall(source or "")), key=lambda tag: (-len(tag), tag))
    return re.compile("(" + "|".join([THINKING, *map(re.escape, named)]) + ")")
