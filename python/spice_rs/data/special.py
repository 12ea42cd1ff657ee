"""The special tokens of a tokenizer: what ends a turn, and what no text of a record should hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class SpecialTokens:
    """Special tokens by id and by text.

    A tokenizer's `all_special_ids` are those with a name of their own (`eos_token`, …); the ends of turns
    (`<|im_end|>`, `<end_of_turn>`) are often added tokens that are special without one.

    Attributes:
        ids: Ids of all of them.
        texts: Their texts.
        bos: Text of the start token, or None.
        eos: Text of the end token, or None.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        special = {number: str(token) for number, token in added.items() if getattr(token, "special", False)}
        self.bos: str | None = getattr(tokenizer, "bos_token", None)
        self.eos: str | None = getattr(tokenizer, "eos_token", None)
        named = {*getattr(tokenizer, "all_special_ids", ()), getattr(tokenizer, "eos_token_id", None)} - {
            None
        }
        self.ids = frozenset(named | special.keys())
        self.texts = frozenset(
            {*getattr(tokenizer, "all_special_tokens", ()), *special.values(), self.bos, self.eos}
            - {None, ""}
        )
        longest_first = sorted(self.texts, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def within(self, text: str) -> list[re.Match[str]]:
        """The special tokens that a text writes out, in order."""
        return list(self._pattern.finditer(text))

    def written_in(self, template: str) -> set[str]:
        """The special tokens that the source of a template spells out."""
        return {token[0] for token in self.within(template)}

    def ends(self, text: str) -> bool:
        """Whether a text ends with a special token."""
        return any(text.endswith(each) for each in self.texts)

    def shared(self, left: str, right: str) -> int:
        """Length of the longest common prefix that ends inside no special token of either."""
        length = shared_prefix(left, right)
        for text in (left, right):
            for token in self._pattern.finditer(text):
                if token.start() >= length:
                    break
                if length < token.end():
                    length = token.start()
        return length


def shared_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(i for i in range(shorter) if left[i] != right[i])
