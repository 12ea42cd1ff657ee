"""What projections do to inner products, to first gains and to picks, against whole gradients; prints one table.

    python benches/projection.py --folder /tmp/projection [--samples 500] [--data pool.jsonl.gz]

Model: SmolLM2-135M-Instruct, all linear modules of its upper 6 layers (`--target-modules` for others): the weights
themselves (`full`), and the B of a fresh LoRA of rank 16 on them (`LoRA`, what `lora_rank=16` tracks). Samples: drawn from
`--data` (records as `extract` reads them, gzipped or not), else generated tasks. The folder takes some 10 GB for 500
samples, and a run that was stopped goes on there.

Sparse rows of d/2 columns are those of d, columns 2j and 2j + 1 added: one projection gives every d. Dense signs are
drawn at the largest d, of which the first columns, scaled, are a projection to fewer.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import machine
import spice_rs
from spice_rs.demo import model_files, write_pool
from unprojected import KINDS, TRACKS, accumulate, spill

DIMS = (256, 512, 1024, 2048, 4096, 8192)
UPPER = r"model\.layers\.2[4-9]\..*_proj"

READING = """\
- error: of inner products, √(Σ(⟨Px, Py⟩ - ⟨x, y⟩)² / Σ⟨x, y⟩²) over all pairs of unit rows; `law`: the same by theory for
  independent signs, √((1 + cos²)/d) on average.
- norms: median of |‖Px‖²/‖x‖² - 1|.
- Spearman: of first gains Δ_x(∅) = log(1 + ‖g‖²), rows of the mean loss.
- shared: picks of 10 % in common with those of whole gradients (λ = 0.1); `U`: log det(I + F) of the picks, of whole
  gradients, over that of their own picks. For rows of the mean loss and for unit rows.
- two_sided and sparse: means over seeds 0, 1, 2; rademacher: seed 0.
"""


def read(path: str | None, count: int) -> list[dict[str, Any]]:
    """Draw the records, the same for the same number."""
    if path is None:
        with tempfile.TemporaryDirectory() as scratch:
            return list(write_pool(Path(scratch) / "pool.jsonl", count))
    opened: Callable[..., Any] = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return random.Random(0).sample(records, min(count, len(records)))


def folded(rows: np.ndarray, dim: int) -> np.ndarray:
    """Sparse rows of fewer columns: those that share a bucket there are added."""
    return rows.reshape(len(rows), dim, -1).sum(axis=2)


def first(rows: np.ndarray, dim: int) -> np.ndarray:
    """Dense rows of fewer columns."""
    return rows[:, :dim] * np.sqrt(rows.shape[1] / dim)


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(np.float64)


def as_rows(gram: np.ndarray) -> np.ndarray:
    """Rows (n, n) that have these inner products, on which alone picks depend."""
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0))


def log_det(gram: np.ndarray, picks: np.ndarray) -> float:
    return float(np.linalg.slogdet(np.eye(len(picks)) + gram[np.ix_(picks, picks)])[1])


class Whole:
    """The whole gradients' inner products, and what follows from them."""

    def __init__(self, gram: np.ndarray, tokens: np.ndarray, share: float) -> None:
        self.tokens = tokens
        self.k = max(1, round(share * len(gram)))
        self.mean = gram / np.outer(tokens, tokens)
        self.norms = np.sqrt(np.diag(gram))
        self.unit = gram / np.outer(self.norms, self.norms)
        self.pairs = np.triu_indices(len(gram), 1)
        self.picks = {name: self.pick(as_rows(each)) for name, each in self._scaled()}

    def _scaled(self) -> list[tuple[str, np.ndarray]]:
        return [("mean", self.mean), ("unit", self.unit)]

    def pick(self, rows: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", spice_rs.SpiceWarning)
            return spice_rs.select(rows, self.k, conflict_penalty=0.1).indices

    def law(self, dim: int) -> float:
        cosines = self.unit[self.pairs]
        return float(np.sqrt(np.mean(1 + cosines**2) / dim / np.mean(cosines**2)))

    def compare(self, rows: np.ndarray) -> list[float]:
        """Error of inner products, of norms, Spearman, and shared picks and U of both scales."""
        rows = rows.astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        wrong = (rows / self.norms[:, None]) @ (rows / self.norms[:, None]).T - self.unit
        error = np.linalg.norm(wrong[self.pairs]) / np.linalg.norm(self.unit[self.pairs])
        off = np.median(np.abs((norms / self.norms) ** 2 - 1))
        gains = np.corrcoef(ranks(norms / self.tokens), ranks(np.sqrt(np.diag(self.mean))))[0, 1]
        found = [error, off, gains]
        for (name, gram), scale in zip(self._scaled(), (self.tokens, norms), strict=True):
            picks = self.pick(rows / scale[:, None])
            found += [len(np.intersect1d(picks, self.picks[name])) / self.k]
            found += [log_det(gram, picks) / log_det(gram, self.picks[name])]
        return [float(each) for each in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--data")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--target-modules", default=UPPER)
    settings = parser.parse_args()
    records = read(settings.data, settings.samples)
    model, file = model_files()
    key = hashlib.sha256(
        json.dumps([records, settings.target_modules, settings.max_length]).encode()
    ).hexdigest()
    folder = settings.folder / key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    spill(
        folder,
        model,
        records,
        gguf_file=file,
        target_modules=settings.target_modules,
        max_length=settings.max_length,
        skip_bad=True,
        device="cpu",
    )
    about, sums = accumulate(folder)

    coordinates = sum(int(np.prod(shape)) for shape in about["shapes"].values())
    print(machine.describe())
    print(
        f"- {len(about['index'])} samples, {about['tokens']:,} tokens; {len(about['shapes'])} modules "
        f"({settings.target_modules}), {coordinates:,} weights\n\n{READING}"
    )
    heading = ["gradients", "projection", "d", "error", "law", "norms", "Spearman"]
    heading += ["shared, mean", "U, mean", "shared, unit", "U, unit"]
    print("| " + " | ".join(heading) + " |\n|" + "---|" * len(heading))
    for track in TRACKS:
        whole = Whole(sums.grams[track], np.array(about["num_tokens"], dtype=np.float64), settings.share)
        for label in dict.fromkeys(kind.label for kind in KINDS):
            kinds = [kind for kind in KINDS if kind.label == label]
            for dim in DIMS:
                found = []
                for kind in kinds:
                    rows = sums.rows[track, kind].numpy()
                    if rows.shape[1] >= dim:
                        narrow = first if kind.name == "rademacher" else folded
                        found.append(whole.compare(narrow(rows, dim)))
                if found:
                    error, off, gains, *picked = np.mean(found, axis=0)
                    cells = [f"{error:.3f}", f"{whole.law(dim):.3f}", f"{off:.3f}", f"{gains:.4f}"]
                    cells += [
                        f"{value:.0%}" if i % 2 == 0 else f"{value:.4f}" for i, value in enumerate(picked)
                    ]
                    print("| " + " | ".join([track, label, str(dim), *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
