"""A language model of a few thousand weights, its tokenizer of single letters, and records in its words."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models import make_model

WORDS = {word: number for number, word in enumerate(["<unk>", "</s>", *"abcdefgh"])}


def make_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", **options)


def save_proxy(folder: Path) -> Path:
    """Save a random Llama and its tokenizer."""
    make_tokenizer().save_pretrained(folder)
    make_model(vocab_size=len(WORDS), attention_dropout=0.0).save_pretrained(folder)
    return folder


def make_records(count: int) -> list[dict]:
    draw = random.Random(0)
    return [
        {
            "id": f"ré{row}",
            "instruction": " ".join(draw.choices("abcdefgh", k=draw.randint(1, 8))),
            "response": " ".join(draw.choices("abcdefgh", k=draw.randint(1, 12))),
        }
        for row in range(count)
    ]
