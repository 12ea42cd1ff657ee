"""Time the extractor against a plain forward and backward, and against other ways to gradients by sample; one table.

    python benches/extraction.py [--samples 64] [--data pool.jsonl.gz] [--device cuda] [--cpu-time]

Model: SmolLM2-135M-Instruct, its upper 15 layers, all linear modules (full weights) or a LoRA of rank 16 on them (A and a
random B). Samples: drawn from `--data`, else generated tasks. All runs but `one by one` see the same batches, in float32 on
a CPU and in bfloat16 autocast on a GPU:

- floor: a plain forward and backward that leaves the summed gradients of the same parameters in `.grad`, with logits at
  learned positions alone, as ours; `all logits` has them everywhere, as a model's own forward;
- sparse, two_sided: ours, from batches to rows in a store; `whole call` is `extract`, with tokenising, hashing the weights
  and so on;
- one by one: a forward and backward of every sample alone, what the paper's code does;
- vmap: `torch.func.vmap`, without a projection;
- bergson: its in-memory collector, 16 × 16 per module, if the package is there (it needs transformers ≥ 5).

On a busy machine `--cpu-time` compares processor time instead of seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import machine
import per_sample
import spice_rs
from projection import read
from spice_rs.demo import UPPER_LAYERS, model_files
from spice_rs.extraction.batching import longest_first, take_batch
from spice_rs.extraction.extractor import TOKENS_PER_BATCH, extract
from spice_rs.extraction.preparation import Settings, preparing
from spice_rs.store.store import GradientStore

HEADING = [
    "parameters",
    "run",
    "seconds",
    "rows/s",
    "tokens/s",
    "against the floor",
    "one by one, against it",
]
HEADING += ["peak GB", "over the floor's"]


@dataclass
class Measured:
    """Seconds, and the peak of a GPU's memory in bytes."""

    seconds: float
    peak: int


@dataclass
class Bench:
    """What all runs share."""

    settings: argparse.Namespace
    device: torch.device
    scratch: str
    tokenizer: Any
    records: list[dict[str, Any]]
    stores: int = 0

    def measure(self, run: Callable[[], object]) -> Measured:
        """The fastest of the repeats, after the device is done."""
        clock = time.process_time if self.settings.cpu_time else time.perf_counter
        seconds, peak = [], 0
        for _ in range(self.settings.repeats):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            begun = clock()
            run()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated()
            seconds.append(clock() - begun)
        return Measured(min(seconds), peak)

    def store(self) -> str:
        """A folder that is not there yet."""
        self.stores += 1
        return f"{self.scratch}/store-{self.stores}"

    def options(self, projection: str, target: str | None) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "dim": self.settings.dim,
            "projection": projection,
            "target_modules": target,
            "skip_bad": True,
            "max_length": self.settings.max_length,
        }

    def compare(self, kind: str, model: Any, projections: list[str], target: str | None) -> None:
        """One row for each run of one choice of parameters."""
        with preparing(model, self.records, Settings.of(self.options("sparse", target), extract)) as ready:
            samples: Any = longest_first(ready.reading.samples)
            tracked = {parameter.name for parameter in ready.tracked.parameters}
        tokens = sum(sample.length for sample in samples)
        batches, start = [], 0
        while start < len(samples):
            batches.append(take_batch(samples, start, TOKENS_PER_BATCH[self.device.type], 256))
            start += len(batches[-1])
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in tracked)

        per_sample.summed(model, batches[-1:], self.device, lean=True)  # warm up
        floor = self.measure(partial(per_sample.summed, model, batches, self.device, lean=True))
        alone = self.measure(partial(per_sample.one_by_one, model, batches, self.device))

        def show(run: str, found: Measured) -> None:
            cells = [
                f"{found.seconds:.1f}",
                f"{len(samples) / found.seconds:.2f}",
                f"{tokens / found.seconds:.0f}",
            ]
            cells += [f"{found.seconds / floor.seconds:.2f} ×", f"{alone.seconds / found.seconds:.2f} ×"]
            cells += (
                [f"{found.peak / 1e9:.2f}", f"{found.peak / floor.peak:.2f} ×"] if floor.peak else ["", ""]
            )
            print("| " + " | ".join([kind, run, *cells]) + " |", flush=True)

        show("floor", floor)
        show("all logits", self.measure(partial(per_sample.summed, model, batches, self.device, lean=False)))
        for projection in projections:
            with preparing(
                model, self.records, Settings.of(self.options(projection, target), extract)
            ) as ready:

                def fill(ready: Any = ready) -> None:
                    with GradientStore.create(self.store(), dim=ready.projection.dim) as writer:
                        ready.run().fill(writer, samples, progress=False)

                show(projection, self.measure(fill))

            def whole(projection: str = projection) -> None:
                options = self.options(projection, target)
                spice_rs.extract(model, self.records, self.store(), progress=False, **options)

            show(f"{projection}, whole call", self.measure(whole))
        show("one by one", alone)
        others = {"vmap": per_sample.vmap, "bergson": partial(per_sample.bergson, side=16)}
        for name, run in others.items():
            if name in self.settings.without:
                continue
            try:
                show(name, self.measure(partial(run, model, batches, self.device)))
            except (ImportError, RuntimeError, TypeError, ValueError) as error:  # others' limits are a result
                print(
                    f"| {kind} | {name}: {type(error).__name__}: {str(error).splitlines()[0][:90]} |"
                    + " |" * 7
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--data")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--target-modules", default=UPPER_LAYERS)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], choices=["vmap", "bergson"])
    parser.add_argument("--cpu-time", action="store_true")
    settings = parser.parse_args()
    warnings.simplefilter("ignore")

    device = torch.device(settings.device)
    folder, file = model_files()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).to(device)
    records = read(settings.data, settings.samples)
    print(machine.describe())
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"- {gpu}; {torch.get_num_threads()} threads; {'processor time' if settings.cpu_time else 'wall clock'}"
    )
    print(
        f"- {len(records)} samples, d = {settings.dim}, batches of {TOKENS_PER_BATCH[device.type]} tokens\n"
    )
    print("| " + " | ".join(HEADING) + " |\n|" + "---|" * len(HEADING))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(settings, device, scratch, tokenizer, records)
        bench.compare("full weights", model, ["two_sided", "sparse"], settings.target_modules)
        adapted = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules=settings.target_modules)
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.01)
        bench.compare("LoRA r = 16", adapted, ["sparse"], None)


if __name__ == "__main__":
    main()
