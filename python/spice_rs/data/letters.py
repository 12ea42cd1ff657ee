"""Letters for private use that stand around words in a rendering, so that their place in the text is known.

They are taken from the two planes of Unicode that no text uses: one letter begins a piece, another one ends it, and each
piece has its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MOST = 0xFF00
"""Pieces that can be told from each other."""
MARK_START, MARK_END = "\U000ffff0", "\U0010fff0"
"""What stands where a {% generation %} block starts and ends."""
LETTERS = re.compile("[\U000f0000-\U0010ffff]")

_BEGIN, _END = 0xF0000, 0x100000
_JSON = re.compile(r"\\+u(db[89a-f][0-9a-f])\\+u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_REPR = re.compile(r"\\+U(00(?:0f|10)[0-9a-f]{4})", re.IGNORECASE)


def begin(number: int) -> str:
    """The letter that begins a piece."""
    return chr(_BEGIN + number)


def end(number: int) -> str:
    """The letter that ends it."""
    return chr(_END + number)


def unescaped(rendered: str) -> str:
    """With the letters themselves where a template writes JSON in ASCII, or lists and mappings as Python does."""
    if "\\" not in rendered:
        return rendered
    rendered = _REPR.sub(lambda letter: chr(int(letter[1], 16)), rendered)
    return _JSON.sub(lambda pair: str(json.loads(f'"\\u{pair[1]}\\u{pair[2]}"')), rendered)


@dataclass(frozen=True)
class Letters:
    """What the letters in a rendering say.

    Attributes:
        text: Without them.
        found: [start, end) of each piece where it stands in it first, by number.
        repeated: Pieces that stand in it again.
        generation: [start, end) of each part that the template marks; a part within a part counts as one with it.
    """

    text: str
    found: dict[int, tuple[int, int]]
    repeated: set[int]
    generation: list[tuple[int, int]]

    @staticmethod
    def of(rendered: str) -> Letters:
        """Reads and removes them."""
        rendered = unescaped(rendered)
        begun: dict[int, int] = {}
        letters = Letters(LETTERS.sub("", rendered), {}, set(), [])
        open_marks: list[int] = []
        for removed, letter in enumerate(LETTERS.finditer(rendered)):
            place = letter.start() - removed
            if letter[0] == MARK_START:
                open_marks.append(place)
            elif letter[0] == MARK_END:
                start = open_marks.pop() if open_marks else place
                if not open_marks and start < place:
                    letters.generation.append((start, place))
            elif ord(letter[0]) < _END:
                begun[ord(letter[0]) - _BEGIN] = place
            elif (number := ord(letter[0]) - _END) in begun:
                if number in letters.found:
                    letters.repeated.add(number)
                letters.found.setdefault(number, (begun.pop(number), place))
        return letters
