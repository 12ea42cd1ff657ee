"""Inner products of whole gradients, and their projections, of samples whose gradients together fit no memory.

`spill` computes the factors of every gradient once, Σ_t left_t right_tᵀ for each module and sample, rounded to bfloat16 (as
on a GPU), and keeps them on disk. `accumulate` forms the gradients from them, one module at a time and in slices, and adds
up all samples' inner products and projected rows. Both go on where they were stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spice_rs.extraction.batching import longest_first
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.preparation import Settings, preparing
from spice_rs.extraction.projection import Parameter, Projection, make_projection
from spice_rs.extraction.proxy import fresh_lora
from spice_rs.progress import bar

LORA_RANK = 16
SLICE = 1 << 17  # coordinates of a gradient formed at a time: 260 MB for 500 samples
DIM = 8192
SEEDS = (0, 1, 2)
SIDES = (16, 32, 64)
DENSE = {"LoRA": DIM, "full": 256}  # columns: dense signs cost so many operations for each coordinate
TRACKS = tuple(DENSE)


@dataclass(frozen=True)
class Kind:
    """A projection that is compared."""

    name: str
    options: tuple[tuple[str, int], ...]

    def make(self, track: str) -> Projection:
        options = dict(self.options)
        dim = DENSE[track] if self.name == "rademacher" else DIM
        return make_projection(self.name, [], dim=dim, **options)

    @property
    def label(self) -> str:
        options = dict(self.options)
        return f"two_sided, p = {options['side']}" if "side" in options else self.name


KINDS = [
    *(Kind("sparse", (("seed", seed),)) for seed in SEEDS),
    *(Kind("two_sided", (("side", side), ("seed", seed))) for side in SIDES for seed in SEEDS),
    Kind("rademacher", (("seed", 0),)),
]


class _Spill(Projection):
    """Keeps factors instead of projecting them."""

    kind = "spill"

    def __init__(self) -> None:
        super().__init__(1, 0)
        self.factors: dict[str, torch.Tensor] = {}

    def add_outer(
        self, rows: torch.Tensor, parameter: Parameter, left: torch.Tensor, right: torch.Tensor
    ) -> None:
        self.factors[f"{parameter.name}/left"] = left.to(torch.bfloat16).contiguous()
        self.factors[f"{parameter.name}/right"] = right.to(torch.bfloat16).contiguous()

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        raise NotImplementedError(f"{parameter.name}: this bench is for models without biases")


def spill(folder: Path, model: str, records: list[Any], **extraction: Any) -> None:
    """Write the factors of all samples, a file for each batch, and the A of a fresh LoRA."""
    if (folder / "spilled.json").exists():
        return
    settings = Settings.of({"min_coverage": 0.0, **extraction}, extract)
    with preparing(model, records, settings) as ready:
        save_file(_fresh_a(ready.network, settings), folder / "lora.safetensors")
        projection = _Spill()
        run = ready.run(projection=projection)
        samples = longest_first(ready.reading.samples)
        shapes = {each.name: each.shape for each in ready.tracked.parameters}
        shown = bar(None, total=sum(each.length for each in samples), what="gradients", unit="tokens")
        start, files = 0, []
        with run.capture.attached():
            while start < len(samples):
                batch = run.take(samples, start)
                file = folder / f"batch-{start:05}.safetensors"
                if not file.exists():
                    run.compute(batch)
                    save_file(projection.factors, f"{file}.tmp")
                    os.replace(f"{file}.tmp", file)
                    projection.factors = {}
                files.append(file.name)
                start += len(batch)
                shown.update(sum(each.length for each in batch))
        shown.close()
        about = {
            "files": files,
            "index": [each.index for each in samples],
            "num_tokens": [each.num_tokens for each in samples],
            "tokens": sum(each.length for each in samples),
            "shapes": shapes,
        }
        (folder / "spilled.json").write_text(json.dumps(about))


def _fresh_a(network: torch.nn.Module, settings: Settings) -> dict[str, torch.Tensor]:
    """The A of `lora_rank=16` by module, times the adapter's scale."""
    with fresh_lora(network, LORA_RANK, settings.target_modules, settings.seed) as (wrapped, about):
        return {
            name.removeprefix("base_model.model.").split(".lora_A")[0]: parameter.detach().clone()
            * (about["alpha"] / about["rank"])
            for name, parameter in wrapped.named_parameters()
            if ".lora_A." in name
        }


@dataclass
class Sums:
    """What is added up over modules: inner products (n, n) float64 and rows (n, dim) of each kind, by track."""

    done: list[str] = field(default_factory=list)
    grams: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[tuple[str, Kind], torch.Tensor] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        torch.save({"done": self.done, "grams": self.grams, "rows": list(self.rows.values())}, f"{file}.tmp")
        os.replace(f"{file}.tmp", file)

    @staticmethod
    def load(file: Path, count: int) -> Sums:
        rows = {(track, kind): torch.zeros(count, kind.make(track).dim) for track in TRACKS for kind in KINDS}
        sums = Sums([], {track: np.zeros((count, count)) for track in TRACKS}, rows)
        if file.exists():
            # Written by `save` into the caller's own folder.
            kept = torch.load(file, weights_only=False)
            sums.done, sums.grams = kept["done"], kept["grams"]
            sums.rows = dict(zip(rows, kept["rows"], strict=True))
        return sums


def accumulate(folder: Path) -> tuple[dict[str, Any], Sums]:
    """What `spill` wrote down, and the sums over all its modules."""
    about = json.loads((folder / "spilled.json").read_text())
    count = len(about["index"])
    sums = Sums.load(folder / "sums.pt", count)
    with safe_open(folder / "lora.safetensors", "pt") as file:
        lora = {name: file.get_tensor(name) for name in file.keys()}
    left_over = [name for name in about["shapes"] if name not in sums.done]
    shown = bar(None, total=len(about["shapes"]), what="projections", unit="modules")
    shown.update(len(sums.done))
    for number, name in enumerate(left_over):
        factors = [_read(folder / file, name) for file in about["files"]]
        module = name.removesuffix(".weight")
        adapted = f"base_model.model.{module}.lora_B.default.weight"
        inner = [(left, right @ lora[module].T) for left, right in factors]
        _add(sums, "LoRA", Parameter(adapted, (about["shapes"][name][0], LORA_RANK)), inner)
        _add(sums, "full", Parameter(name, tuple(about["shapes"][name])), factors)
        sums.done.append(name)
        shown.update(1)
        if number % 7 == 6 or number == len(left_over) - 1:
            sums.save(folder / "sums.pt")
    shown.close()
    return about, sums


Factors = Sequence[tuple[torch.Tensor, torch.Tensor]]


def _read(file: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    with safe_open(file, "pt") as tensors:
        left, right = (tensors.get_tensor(f"{name}/{side}").float() for side in ("left", "right"))
    return left, right


def _add(sums: Sums, track: str, parameter: Parameter, factors: Factors) -> None:
    """Add one parameter's part."""
    projections = {kind: kind.make(track) for kind in KINDS}
    for kind, projection in projections.items():
        if kind.name == "two_sided":
            start = 0
            for left, right in factors:
                rows = sums.rows[track, kind][start : start + len(left)]
                reduced = (
                    projection.reduce(parameter, side, each) for side, each in enumerate((left, right))
                )
                projection.add_outer(rows, parameter, *reduced)
                start += len(left)
    for start, values in _slices(parameter, factors):
        whole = values.numpy()
        sums.grams[track] += whole @ whole.T
        for kind, projection in projections.items():
            if kind.name != "two_sided":
                projection.add_flat(sums.rows[track, kind], parameter, start, values.clone())


def _slices(parameter: Parameter, factors: Factors) -> Iterator[tuple[int, torch.Tensor]]:
    """First coordinate and values (n, c) float32 of all samples' gradients, slice by slice."""
    m, n = parameter.shape
    step = max(1, SLICE // n)
    for start in range(0, m, step):
        blocks = [
            torch.bmm(left[:, :, start : start + step].transpose(1, 2), right).flatten(1)
            for left, right in factors
        ]
        yield start * n, torch.cat(blocks)
