"""Words of whoever is spoken to: messages name arguments of Python, and the command line has options for them.

Errors and warnings end at the command line, which puts them in its words. What is kept of a message instead, in a table or
a file, goes through `spoken` when it is put there. In Python that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_words: Callable[[str], str] = str


def spoken(message: str) -> str:
    """Return a message in the words of the interface that is used."""
    return _words(message)


@contextmanager
def speaking(words: Callable[[str], str]) -> Iterator[None]:
    """Inside, messages that are kept are in these words.

    Args:
        words: Returns a message, which names arguments of Python, in them.
    """
    global _words
    before, _words = _words, words
    try:
        yield
    finally:
        _words = before
