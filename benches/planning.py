"""Predicted and real time of extractions: the models of the tests, and with --real SmolLM2-135M.

python benches/planning.py [--real]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import spice_rs
from models import make_model
from reference import make_data
from spice_rs.tables import aligned


def compare(name, model, data, **options):
    """One line: rows/s and seconds as planned, and as they are."""
    found = spice_rs.plan(model, data, **options)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        store = spice_rs.extract(model, data, folder + "/store", progress=False, **options)
        seconds = time.perf_counter() - begun
        size = store.info()["bytes"]
    planned = found.seconds + found.preparation
    return [name, f"{planned:.2f}", f"{seconds:.2f}", f"{planned / seconds:.2f}", f"{found.disk / size:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--real", action="store_true", help="SmolLM2-135M, upper 15 layers, 60 generated tasks"
    )
    real = parser.parse_args().real
    warnings.simplefilter("ignore")
    rows = []
    for family in ("llama", "qwen2", "gpt2"):
        for kind in ("sparse", "two_sided"):
            options = {"projection": kind, "dim": 2048, "tokens_per_batch": 400}
            rows.append(compare(f"tiny {family}, {kind}", make_model(family), make_data(12_000), **options))
    if real:
        from spice_rs.demo import UPPER_LAYERS, model_files, write_pool

        folder, file = model_files()
        with tempfile.TemporaryDirectory() as place:
            write_pool(Path(place) / "pool.jsonl", 60)
            options = {
                "gguf_file": file,
                "target_modules": UPPER_LAYERS,
                "projection": "two_sided",
                "dim": 2048,
            }
            rows.append(compare("SmolLM2-135M, two_sided", folder, place + "/pool.jsonl", **options))
    print(aligned([["extraction", "planned s", "real s", "ratio", "disk, ratio"], *rows]))


if __name__ == "__main__":
    main()
