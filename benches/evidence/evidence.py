"""Does selection pay? Fine-tune on what each method chooses, and judge on held-out records. Resumable.

    python benches/evidence/evidence.py CONFIG.json [--work FOLDER] [--pool FILE.jsonl.gz] [--only METHOD …] [--table-only]

CONFIG.json is cpu.json, gpu.json or targets.json beside this file, or one of your own with the same keys. `methods`
names each way to choose: {"kind": "random" | "longest" | "full" | "k_center"}; "kind": "run" with arguments of
`spice_rs.run_schedule` (`pool_size`, `interval`), for a proxy that learns; {"kind": "target" | "relevance" | "less",
"sources", "target_rows"} for picks for records that neither the pool nor the judges have; {"kind": "own source",
"source"} for random rows of one source; or the arguments of `spice_rs.select`, with "shares": true for the pool's
shares of the sources, "equal_tokens": true for as many tokens as random picks have instead of as many rows, and
"proxy" for other gradients than those of a fresh LoRA on the model itself; "seeds", "lengths" and "scenes" for fewer.

Every run becomes a JSON file in FOLDER/runs; the same command goes on where it was stopped. The Markdown tables of what is
there are printed and written to FOLDER/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from scenes import Scene, make_scene, read_records
from tables import report

POOL = Path(__file__).parents[2] / "../shared/data/pool.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, default=Path("evidence-out"))
    parser.add_argument("--pool", type=Path, default=POOL)
    parser.add_argument("--only", nargs="*", help="methods to run")
    parser.add_argument("--table-only", action="store_true", help="print the tables of what is there")
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))
    from machine import describe

    settings = json.loads(arguments.config.read_text(encoding="utf-8"))
    runs = arguments.work / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)
    if not arguments.table_only:
        everything(settings, arguments.work, runs, arguments.pool, arguments.only)
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(runs.glob("*.json"))]
    order = {name: place for place, name in enumerate(["untrained", *settings["methods"]])}
    results.sort(key=lambda each: (order.get(each["method"], len(order)), each["seed"]))
    text = f"{describe()}\n- settings: {arguments.config.name}\n\n{report(results, settings)}"
    (arguments.work / "evidence.md").write_text(text, encoding="utf-8")
    print(text)


def everything(settings: dict[str, Any], work: Path, runs: Path, pool: Path, only: list[str] | None) -> None:
    """Make every run that is not there yet: seed by seed, so that a run cut short has a bit of everything."""
    from choices import Choice, Chooser
    from training import Trainer

    trainer = Trainer(settings)
    records = read_records(pool, settings["seed"])
    scenes = {name: make_scene(name, records, settings) for name in settings["scenes"]}
    for seed in range(max(settings["seeds"], 1)):
        for scene in scenes.values():
            chooser = Chooser(scene, trainer, settings, work)
            if seed == 0:
                nothing = Choice(np.array([], np.int64), 0.0, float("nan"))
                _run(runs, scene, trainer, "untrained", nothing, 0, "none", {"steps": 0})
            for name, method in settings["methods"].items():
                how = {**method}
                lengths = how.pop("lengths", list(settings["lengths"]))
                if (only and name not in only) or seed >= how.pop("seeds", settings["seeds"]):
                    continue
                if scene.name not in how.pop("scenes", settings["scenes"]):
                    continue
                missing = [each for each in lengths if not _file(runs, scene, name, seed, each).is_file()]
                if not missing:
                    continue
                choice = chooser.choose(how, seed)
                for length in missing:
                    _run(runs, scene, trainer, name, choice, seed, length, settings["lengths"][length])


def _run(
    runs: Path,
    scene: Scene,
    trainer: Any,
    method: str,
    choice: Any,
    seed: int,
    length: str,
    amount: dict[str, int],
) -> None:
    file = _file(runs, scene, method, seed, length)
    if file.is_file():
        return
    chosen = [scene.pool[row] for row in choice.rows]
    outcome = trainer.train(chosen or scene.pool[:1], scene.held_out, seed=seed, length=amount)
    counts: dict[str, int] = {}
    for record in scene.pool:
        counts[record["source"]] = counts.get(record["source"], 0) + 1
    result = {
        "scene": scene.name,
        "outside": list(scene.outside),
        "shares": {source: count / len(scene.pool) for source, count in counts.items()},
        "method": method,
        "seed": seed,
        "length": length,
        "rows": len(chosen),
        "picks": choice.rows.tolist(),
        "tokens": outcome.tokens if chosen else 0,
        "steps": outcome.steps,
        "choosing": choice.seconds,
        "training": outcome.seconds,
        "log_det": choice.log_det,
        "nll": outcome.nll,
        "exact": outcome.exact,
    }
    file.with_suffix(".part").write_text(json.dumps(result, indent=1), encoding="utf-8")
    file.with_suffix(".part").rename(file)
    print(f"{file.stem}: NLL {outcome.nll['all']:.4f}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)


def _file(runs: Path, scene: Scene, method: str, seed: int, length: str) -> Path:
    plain = "".join(letter if letter.isalnum() else "-" for letter in method)
    return runs / f"{scene.name}_{plain}_{length}_{seed}.json"


if __name__ == "__main__":
    main()
