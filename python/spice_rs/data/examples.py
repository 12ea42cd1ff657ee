"""Tokenised examples whose learned tokens are marked.

Causal shift: the token at position t is predicted from position t - 1, so `num_tokens` counts learned labels
at positions ≥ 1.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.left_out import LeftOut


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
