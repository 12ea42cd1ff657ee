"""Time `extract` against the floor and against one backward per sample; prints one table.

    python benches/extraction.py [--samples 64] [--dim 2048]

Model: SmolLM2-135M-Instruct, its upper 15 layers, all linear modules (full weights) or a fresh LoRA of rank 16 on them;
samples: generated tasks. The floor is a plain forward and backward of the same batches that leaves the summed gradients
of the same parameters in `.grad`, with logits at learned positions alone, as ours; `all logits` is the same with logits
everywhere, as a model's own forward makes them; `one by one` is a forward and backward of every sample alone, what the
paper's code does. `extract` is timed whole: tokenising, hashing the weights, projecting, writing.
"""

from __future__ import annotations

import argparse
import platform
import re
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import spice_rs
from spice_rs.data.dataset import load_records, tokenise
from spice_rs.demo import UPPER_LAYERS, model_files, write_pool
from spice_rs.extraction.batching import collate, longest_first, take_batch
from spice_rs.extraction.extractor import TOKENS_PER_BATCH


def plain_seconds(model: torch.nn.Module, examples: list, tokens: int, *, lean: bool = False) -> float:
    """Forward and backward of all examples in batches of at most `tokens` padded tokens (0: one by one)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    ordered, start = longest_first(examples), 0
    started = time.perf_counter()
    while start < len(ordered):
        chosen = take_batch(ordered, start, tokens, 256) if tokens else ordered[start : start + 1]
        batch = collate(chosen, torch.device("cpu"))
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        targets = batch.labels[:, 1:]
        if lean:
            hidden = inner.get_decoder()(**inputs).last_hidden_state[:, :-1]
            learned = targets != -100
            logits, targets = inner.get_output_embeddings()(hidden[learned]), targets[learned]
        else:
            logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(
            logits.float(), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        model.zero_grad(set_to_none=True)
        start += len(chosen)
    return time.perf_counter() - started


def track_only(model: torch.nn.Module, names: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--dim", type=int, default=2048)
    a = parser.parse_args()
    warnings.simplefilter("ignore")

    folder, file = model_files()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        records = write_pool(Path(scratch) / "pool.jsonl", a.samples)
        examples = list(tokenise(load_records(records), tokenizer))
        tokens = sum(len(example.input_ids) for example in examples)
        print(
            f"machine: {platform.machine()}, {torch.get_num_threads()} threads, CPU, float32; torch {torch.__version__}"
        )
        print(
            f"{len(examples)} samples, {tokens} tokens; d = {a.dim}; batches of {TOKENS_PER_BATCH['cpu']} tokens\n"
        )
        print("parameters    run          seconds  rows/s  tokens/s  against the floor")

        def show(kind: str, run: str, seconds: float, floor: float) -> None:
            rates = f"{len(examples) / seconds:6.2f}  {tokens / seconds:8.0f}"
            print(f"{kind:12}  {run:11}  {seconds:7.1f}  {rates}  {seconds / floor:10.2f} ×", flush=True)

        def compare(
            kind: str, network: torch.nn.Module, tracked: set[str], projections: list[str], target
        ) -> None:
            network.eval()
            track_only(network, tracked)
            plain_seconds(network, examples[:4], TOKENS_PER_BATCH["cpu"])  # warm up
            floor = plain_seconds(network, examples, TOKENS_PER_BATCH["cpu"], lean=True)
            show(kind, "floor", floor, floor)
            show(kind, "all logits", plain_seconds(network, examples, TOKENS_PER_BATCH["cpu"]), floor)
            for projection in projections:
                started = time.perf_counter()
                spice_rs.extract(
                    network,
                    records,
                    f"{scratch}/{kind}-{projection}",
                    tokenizer=tokenizer,
                    dim=a.dim,
                    projection=projection,
                    target_modules=target,
                    progress=False,
                )
                show(kind, projection, time.perf_counter() - started, floor)
            show(kind, "one by one", plain_seconds(network, examples, 0), floor)

        modules = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters()}
        chosen = {name for name in modules if re.fullmatch(UPPER_LAYERS, name)}
        weights = {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[0] in chosen}
        compare("full weights", model, weights, ["two_sided", "sparse"], UPPER_LAYERS)
        config = LoraConfig(r=16, lora_alpha=32, target_modules=UPPER_LAYERS)
        adapted = get_peft_model(model, config)
        lora = {name for name, _ in adapted.named_parameters() if "lora_" in name}
        compare("LoRA r = 16", adapted, lora, ["sparse"], None)


if __name__ == "__main__":
    main()
