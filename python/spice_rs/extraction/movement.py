"""How far a batch has come: its tokens are counted while it goes through the layers, forward and back."""

from __future__ import annotations

from spice_rs.progress import Bar


class Movement:
    """Moves a bar of tokens within batches, so that one of long records is seen to go on.

    Args:
        bar: Of tokens.
        events: How often a batch is caught on its way, about.
    """

    def __init__(self, bar: Bar, events: int) -> None:
        self._bar, self._events = bar, max(1, events)
        self._tokens = self._happened = self._shown = 0

    def begin(self, tokens: int) -> None:
        """Take a batch of so many tokens; after one that did not fit in memory, a smaller one."""
        self._tokens, self._happened = tokens, 0

    def __call__(self) -> None:
        """Count one layer."""
        self._happened += 1
        self._move(self._tokens * min(self._happened, self._events) // (self._events + 1))

    def end(self, tokens: int) -> None:
        """Leave a batch behind."""
        self._move(tokens)
        self._shown = 0

    def _move(self, tokens: int) -> None:
        if tokens != self._shown:
            self._bar.update(tokens - self._shown)
            self._shown = tokens
