"""Whether what is learned is the responses: judged by the text that the tokens stand for, not by how they were found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from spice_rs.data.dataset import IGNORED, Example
from spice_rs.data.records import Record
from spice_rs.data.shown import THINKING
from spice_rs.data.special import SpecialTokens
from spice_rs.diagnosis.verdict import Check
from spice_rs.extraction.inputs import Inputs
from spice_rs.nouns import counted

_MOST = 200  # conversations looked at
_EXTRA = 32  # characters that a template may put between a turn's head and its words ("<think></think>")


def mask_checks(inputs: Inputs, completion_only: bool) -> list[Check]:
    """Prompts masked, responses learned, the end token learned also where pad tokens are the same."""
    names = ("prompts are masked", "responses are learned", "end tokens are learned", "pad token")
    pairs = list(islice(_conversations(inputs), _MOST))
    if not pairs:
        return [Check(name, None, "no conversation that is not cut", "") for name in names]
    tokenizer = inputs.tokenizer
    special = SpecialTokens(tokenizer)
    texts = [_Texts(tokenizer, special, example, record) for example, record in pairs]
    prompts = [text.index for text in texts if not text.prompt_is_masked]
    responses = [text.index for text in texts if not text.response_is_learned]
    ends = [text.index for text in texts if not text.end_is_learned]
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return [
        _all(names[0], prompts, len(pairs))
        if completion_only
        else Check(names[0], None, "all is learned", ""),
        _all(names[1], responses, len(pairs)),
        _all(names[2], ends, len(pairs)),
        # Padding goes by position, so that the id does not matter; a mask made of ids would hide the end token.
        Check(
            names[3], None if pad != end else not ends, "is the end token" if pad == end else "another", ""
        ),
    ]


def _all(name: str, wrong: Sequence[int], count: int) -> Check:
    where = f"; not in row {wrong[0]}" if wrong else ""
    return Check(name, not wrong, f"{count - len(wrong)} of {counted(count, 'sample')}{where}", "all")


def _conversations(inputs: Inputs) -> Iterator[tuple[Example, Record]]:
    for sample in inputs.samples:
        record = inputs.records.get(sample.index)
        if isinstance(sample, Example) and record is not None and record.messages and not sample.cut:
            yield sample, record


class _Texts:
    """What a sample's tokens say, learned and not, without white space."""

    def __init__(self, tokenizer: Any, special: SpecialTokens, example: Example, record: Record) -> None:
        self.tokenizer = tokenizer
        self.index = example.index
        learned = example.labels != IGNORED
        ids = example.input_ids.tolist()
        self.learned = self._text([token for token, own in zip(ids, learned, strict=True) if own])
        self.masked = self._text([token for token, own in zip(ids, learned, strict=True) if not own])
        replies = [turn for turn in record.messages if turn.role == "assistant" and turn.learned]
        # A tag that opens thoughts may be in the prompt already, so that the model writes what follows.
        parts = [part for turn in replies for part in re.split(THINKING, turn.content)]
        self.replies = [self._plain(part) for part in parts]
        # What templates show of a turn beside its words: calls of tools, thoughts.
        self.extra = sum(_EXTRA + 2 * len(json.dumps(turn.more)) * bool(turn.more) for turn in replies)
        self.extra += sum(len(tag) for turn in replies for tag in re.findall(THINKING, turn.content))
        unlearned = [turn for turn in record.messages if turn.role == "assistant" and not turn.learned]
        context = [part for turn in unlearned for part in re.split(THINKING, turn.content)[-1:]]
        users = [turn.content for turn in record.messages if turn.role == "user"]
        self.prompts = [self._plain(text) for text in (*users, *context)]
        places = learned.nonzero()[0].tolist()
        while places and not tokenizer.decode([ids[places[-1]]]).strip():
            places.pop()  # white space behind the end token, where all is learned
        self.end_is_learned = bool(places) and ids[places[-1]] in special.ids

    @property
    def prompt_is_masked(self) -> bool:
        """The user's words are among the masked tokens, and hardly more than the replies among the learned."""
        extra = len(self.learned) - sum(map(len, self.replies))
        return all(prompt in self.masked for prompt in self.prompts) and extra <= self.extra

    @property
    def response_is_learned(self) -> bool:
        """All replies are among the learned tokens, in their order."""
        place = 0
        for reply in self.replies:
            found = self.learned.find(reply, place)
            if found < 0:
                return False
            place = found + len(reply)
        return True

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(self.tokenizer.decode(ids, skip_special_tokens=True).split())

    def _plain(self, text: str) -> str:
        """The text as it comes back from tokens: some tokenizers change letters, or know only some."""
        return self._text(self.tokenizer(text, add_special_tokens=False)["input_ids"])
