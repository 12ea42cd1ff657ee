"""Records of a few words, and what becomes of them: shared by the tests of reading."""

from __future__ import annotations

import pytest

from spice_rs.data.records import dataset_fingerprint, load_records
from spice_rs.errors import InvalidInputError

USER = {"role": "user", "content": "Which river?"}
BLUE = {"role": "assistant", "content": "the blue one"}
CHAT = [USER, BLUE]
HUMAN, GPT = {"from": "human", "value": "Which river?"}, {"from": "gpt", "value": "the blue one"}
ALPACA = {"instruction": "And how long?", "output": "nine"}
PAIR = {"prompt": "Which river?", "completion": "the blue one"}
QA = {"question": "Which river?", "answer": "the blue one"}
TOKENS = {"input_ids": [30, 31, 32, 33], "labels": [-100, 31, 32, 33]}


def read(record, **options):
    return load_records([record], **options)[0]


def turns(record, **options):
    return [(turn.role, turn.content) for turn in read(record, **options).messages]


def learned(record, **options):
    return [
        turn.content for turn in read(record, **options).messages if turn.role == "assistant" and turn.learned
    ]


def fingerprint(record, **options):
    return dataset_fingerprint(load_records([record], **options))


def refusal(record, **options):
    with pytest.raises(InvalidInputError) as caught:
        load_records([record], **options)
    assert str(caught.value).startswith("data[0]: ")
    assert "skip_bad=True" in str(caught.value)
    return str(caught.value)


def two_replies(first=None, second=None, user=None):
    return {
        "messages": [
            {**USER, **(user or {})},
            {"role": "assistant", "content": "the red one", **(first or {})},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "No, the blue one.", **(second or {})},
        ]
    }


class Picture:
    """As `datasets` decodes an image."""
