"""Memory and processor seconds of reading: records → tokens → batches, for each kind of record.

python benches/reading.py [--records N] [--package FOLDER]

Each kind is read twice, N records and a quarter of them, each in a process of its own: what memory grows by for each
record more is counted, so that what a tokenizer keeps once does not. "held" is when all are tokenised, "peak" the most
on the way; of both counts what belongs to the process (anonymous memory), not the pages of mapped files, which the
system may drop. Processor seconds are those of the larger run, divided by N. `--package` names the `python` folder of
another version.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine

KINDS = ("pairs", "chat", "tokenised")
WORDS_PER_TURN = (20, 120)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n"
    "{% endfor %}"
)


def record(kind: str, row: int, draw: random.Random, words: list[str]) -> dict[str, Any]:
    """Return a record of a kind: some 300 tokens."""

    def said() -> str:
        return " ".join(draw.choices(words, k=draw.randint(*WORDS_PER_TURN)))

    if kind == "pairs":
        return {"id": row, "source": "made", "instruction": said(), "output": said() + " " + said()}
    if kind == "chat":
        turns = [{"role": role, "content": said()} for _ in range(2) for role in ("user", "assistant")]
        return {"id": f"c-{row}", "messages": turns}
    ids = [draw.randint(3, 3999) for _ in range(draw.randint(100, 500))]
    labels = [-100 if place < len(ids) // 3 else each for place, each in enumerate(ids)]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def vocabulary() -> list[str]:
    """Return words of a few letters."""
    draw = random.Random(1)
    return ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(4000)]


def tokenizer_of(words: list[str]) -> Any:
    """Return a byte-level BPE tokenizer with a chat template, trained on the words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([" ".join(words)] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )


def trim() -> None:
    """Give back to the system what is no longer used."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def measure(kind: str, data: str, count: int) -> dict[str, float]:
    """Return bytes and processor seconds for each record of a file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from spice_rs.extraction.batching import collate, longest_first, take_batch
    from spice_rs.extraction.extractor import extract
    from spice_rs.extraction.preparation import Settings, preparing

    words = vocabulary()
    tokenizer = tokenizer_of(words)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4000, **sizes))
    settings = Settings.of({"tokenizer": tokenizer, "dim": 16, "device": "cpu"}, extract)
    few = [record(kind, row, random.Random(0), words) for row in range(2000)]
    with preparing(model, few, settings):  # imports, caches, what allocators keep
        pass
    trim()
    before, device = machine.anonymous(), torch.device("cpu")
    with machine.PeakMemory() as peak:
        started = sum(os.times()[:2])
        with preparing(model, data, settings) as ready:
            read = sum(os.times()[:2])
            trim()
            held = machine.anonymous() - before
            ordered = longest_first(ready.reading.samples)
            start = tokens = 0
            while start < len(ordered):
                batch = take_batch(ordered, start, 16384, 256)
                tokens += int(collate(batch, device).attention_mask.sum())
                start += len(batch)
            batched = sum(os.times()[:2])
    return {
        "tokens": tokens / count,
        "held": held,
        "peak": peak.bytes - before,
        "read": (read - started) / count,
        "batches": (batched - read) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--package", default=str(Path(__file__).parents[1] / "python"))
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file:
        print(json.dumps(measure(given.kinds[0], given.file, given.records)))
        return
    print(
        "| records | tokens each | held, B | peak, B | read, CPU µs | batches, CPU µs |\n|---|---|---|---|---|---|"
    )
    for kind in given.kinds:
        few, found = (run(kind, count, given.package) for count in (given.records // 4, given.records))
        more = given.records - given.records // 4
        sizes = [found["tokens"], *((found[name] - few[name]) / more for name in ("held", "peak"))]
        times = [f"{1e6 * found[name]:.1f}" for name in ("read", "batches")]
        print(f"| {kind} | {' | '.join([*(f'{each:,.0f}' for each in sizes), *times])} |", flush=True)


def run(kind: str, count: int, package: str) -> dict[str, float]:
    """Return what `measure` finds of so many records, in a process of its own."""
    words, draw = vocabulary(), random.Random(0)
    environment = {"PYTHONPATH": package, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{kind}.jsonl"
        with file.open("w") as lines:
            lines.writelines(json.dumps(record(kind, row, draw, words)) + "\n" for row in range(count))
        done = subprocess.run(
            [sys.executable, __file__, "--records", str(count), "--kinds", kind, "--file", str(file)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
