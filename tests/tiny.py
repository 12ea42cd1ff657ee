"""A language model of a few thousand weights, its tokenizer of single letters, and records in its words."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {word: number for number, word in enumerate(["<unk>", "</s>", *"abcdefgh"])}


def make_tokenizer(**options) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", **options)


def save_proxy(folder: Path) -> Path:
    """Save a random Llama and its tokenizer."""
    make_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
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
