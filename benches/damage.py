"""Records that are broken in ways that pools are broken in."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]

KINDS = ("another's answer", "shuffled words", "random characters", "one word repeated", "cut after a third")


def damaged(record: Record, kind: str, other: Record, draw: random.Random) -> Record:
    """Return the record with its response damaged, and `kind` as its "damage".

    Args:
        record: {"response": …, …}, of more than three words.
        kind: one of `KINDS`.
        other: whose answer may take its place.
        draw: where chance comes from.
    """
    words = record["response"].split()
    answers: dict[str, Callable[[], str]] = {
        "another's answer": lambda: other["response"],
        "shuffled words": lambda: " ".join(draw.sample(words, len(words))),
        "random characters": lambda: "".join(
            draw.choices(string.ascii_letters + " ", k=len(record["response"]))
        ),
        "one word repeated": lambda: " ".join(words[:1] * max(2, len(words))),
        "cut after a third": lambda: record["response"][: max(1, len(record["response"]) // 3)],
    }
    return {**record, "response": answers[kind](), "damage": kind}


def can_be_damaged(record: Record) -> bool:
    """Whether its response has more than three words."""
    return len(record["response"].split()) > 3
