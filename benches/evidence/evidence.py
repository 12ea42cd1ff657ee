"""Does selection pay? Fine-tune on what each method chooses, and judge on held-out records. Resumable.

    python benches/evidence/evidence.py CONFIG.json [--work FOLDER] [--pool FILE.jsonl.gz] [--gradients FILE.npz]
        [--only METHOD …] [--scenes SCENE …] [--seeds SEED …] [--picks-only | --table-only]

CONFIG.json is cpu.json, gpu.json or targets.json beside this file, or one of your own with the same keys. `methods` names
each way to choose:

- {"kind": "random" | "longest" | "full" | "k_center"};
- {"kind": "run"} with arguments of `spice_rs.run_schedule` (`pool_size`, `interval`), for a proxy that learns;
- {"kind": "target" | "relevance" | "less"}: picks for records that neither the pool nor the judges have, by `select` (its
  arguments may follow; "groups": true makes a group of each source), by the largest r, or by the largest mean cosine;
- {"kind": "own source"}: random rows of the target's sources;
- or the arguments of `spice_rs.select`, with "shares": true for the pool's shares of the sources.

"equal_tokens": true takes as many rows as have the tokens of random picks, "token_budget": true a `budget` of these tokens;
"proxy" other gradients than those of a fresh LoRA on the model itself ("warm": LESS's, with warm-up and Adam's scaling);
"seeds", "lengths" and "scenes" fewer of them. `targets` says of which sources a scene's target has how many records, and
`trained` which methods are trained on in a scene, where not all are: of the others what they pick is counted. A way that
this version of spice-rs does not know is reported as missing.

With "upper_layers", only so many layers are trained and have gradients, and what those below put out is computed once for
each record (`device.py`). With --gradients, pools and targets are cut from the records that the file has gradients of.

Every choice becomes a JSON file in FOLDER/picks, and every training one in FOLDER/runs; the same command goes on where it
was stopped, and several at once share the work. The Markdown tables of what is there are printed and written to
FOLDER/evidence.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import spice_rs
from scenes import Catalogue, Scene, make_scene, read_records
from tables import report

POOL = Path(__file__).parents[2] / "../shared/data/pool.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, default=Path("evidence-out"))
    parser.add_argument("--pool", type=Path, default=POOL)
    parser.add_argument(
        "--gradients", type=Path, help="an .npz with the rows' gradients, in place of extracting them"
    )
    parser.add_argument("--only", nargs="*", help="methods to run")
    parser.add_argument("--scenes", nargs="*", help="scenes to run")
    parser.add_argument("--seeds", nargs="*", type=int, help="seeds to run")
    parser.add_argument("--picks-only", action="store_true", help="choose, and train nothing")
    parser.add_argument("--table-only", action="store_true", help="print the tables of what is there")
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))
    from machine import describe

    settings = json.loads(arguments.config.read_text(encoding="utf-8"))
    for name in ("picks", "runs"):
        (arguments.work / name).mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)
    missing: set[str] = set()
    if not arguments.table_only:
        missing = everything(settings, arguments)
    picks, runs = (
        [
            json.loads(file.read_text(encoding="utf-8"))
            for file in sorted((arguments.work / name).glob("*.json"))
        ]
        for name in ("picks", "runs")
    )
    order = {name: place for place, name in enumerate(["untrained", *settings["methods"]])}
    for results in (picks, runs):
        results.sort(key=lambda each: (order.get(each["method"], len(order)), each["seed"]))
    text = f"{describe()}\n- settings: {arguments.config.name}\n\n{report(runs, picks, settings)}"
    text += "".join(f"\nmissing: {each}\n" for each in sorted(missing))
    (arguments.work / "evidence.md").write_text(text, encoding="utf-8")
    print(text)


def everything(settings: dict[str, Any], arguments: argparse.Namespace) -> set[str]:
    """Make every choice and run that is not there yet: seed by seed, so that a run cut short has a bit of everything.

    Returns:
        What could not be chosen, and why.
    """
    from choices import Chooser, UnknownWayError
    from gradients import Gradients
    from training import Trainer

    trainer = Trainer(settings)
    records = read_records(arguments.pool, settings["seed"])
    among = None
    if arguments.gradients:
        with np.load(arguments.gradients) as found:
            among = set(found["index"].tolist())
    seeds = range(max(settings["seeds"], 1))
    scenes = {
        (name, seed): make_scene(name, records, settings, seed, among)
        for name in settings["scenes"]
        for seed in seeds
    }
    catalogue = Catalogue(list(scenes.values()))
    judges = [record for found in next(iter(scenes.values())).held_out.values() for record in found]
    if not (arguments.picks_only and arguments.gradients):
        trainer.keep_states(catalogue.records + judges, arguments.work)
    gradients = Gradients(catalogue, trainer, settings, arguments.work, arguments.gradients)
    missing = set()
    plan = [
        (seed, scene, name)
        for seed in seeds
        for scene in settings["scenes"]
        for name, method in settings["methods"].items()
        if seed < method.get("seeds", settings["seeds"])
        and scene in method.get("scenes", settings["scenes"])
        and name in (arguments.only or [name])
        and scene in (arguments.scenes or [scene])
        and seed in (arguments.seeds or [seed])
    ]
    for seed, scene, name in plan:
        how = {**settings["methods"][name]}
        for each in ("seeds", "scenes", "lengths"):
            how.pop(each, None)
        chooser = Chooser(scenes[scene, seed], seed, gradients, trainer, settings, arguments.work)
        with _claimed(_file(arguments.work / "picks", scene, name, seed)) as file:
            if file is not None:
                try:
                    choice = chooser.choose(how)
                except UnknownWayError as error:
                    missing.add(f"{name}: {error}")
                    continue
                _write(file, _chosen(scenes[scene, seed], name, seed, choice))
    if arguments.picks_only:
        return missing
    for seed, scene, name in plan:
        if seed == 0:
            _run(arguments.work, scenes[scene, 0], trainer, "untrained", 0, "none", {"steps": 0})
        if name not in settings.get("trained", {}).get(scene, settings["methods"]):
            continue
        for length in settings["methods"][name].get("lengths", settings["lengths"]):
            _run(
                arguments.work, scenes[scene, seed], trainer, name, seed, length, settings["lengths"][length]
            )
    return missing


def _chosen(scene: Scene, method: str, seed: int, choice: Any) -> dict[str, Any]:
    """What is kept of a choice: its rows, of which sources and how damaged they are."""
    picked = [scene.pool[row] for row in choice.rows.tolist()]
    texts = Counter((record["instruction"], record["response"]) for record in picked)
    return {
        "scene": scene.name,
        "method": method,
        "seed": seed,
        "picks": choice.rows.tolist(),
        "records": [record["row"] for record in picked],
        "choosing": choice.seconds,
        "log_det": choice.log_det,
        "sources": Counter(record["source"] for record in picked),
        "damaged": Counter(record["damage"] for record in picked if record.get("damage")),
        "pool_damaged": sum(1 for record in scene.pool if record.get("damage")) / len(scene.pool),
        "unique": len(texts),
    }


def _run(
    work: Path, scene: Scene, trainer: Any, method: str, seed: int, length: str, amount: dict[str, int]
) -> None:
    """Train and judge, unless that was done, another process is at it, or there is no choice."""
    chosen: dict[str, Any] = {"picks": [], "records": [], "choosing": 0.0, "log_det": float("nan")}
    picks = _file(work / "picks", scene.name, method, seed)
    if method != "untrained":
        if not picks.is_file():
            return
        chosen = json.loads(picks.read_text(encoding="utf-8"))
    with _claimed(_file(work / "runs", scene.name, method, seed, length)) as file:
        if file is None:
            return
        records = [scene.pool[row] for row in chosen["picks"]]
        if [record["row"] for record in records] != chosen["records"]:
            raise SystemExit(
                f"{picks}: found picks of another pool; give another --work, or the settings that made it"
            )
        outcome = trainer.train(records, scene.held_out, seed=seed, length=amount)
        counts = Counter(record["source"] for record in scene.pool)
        result = {
            "scene": scene.name,
            "outside": list(scene.outside),
            "shares": {source: count / len(scene.pool) for source, count in counts.items()},
            "method": method,
            "seed": seed,
            "length": length,
            "rows": len(records),
            "tokens": outcome.tokens,
            "steps": outcome.steps,
            "choosing": chosen["choosing"],
            "training": outcome.seconds,
            "log_det": chosen["log_det"],
            "nll": outcome.nll,
            "losses": outcome.losses,
            "exact": outcome.exact,
        }
        _write(file, result)
        print(
            f"{file.stem}: NLL {outcome.nll['all']:.4f}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True
        )


def _write(file: Path, content: dict[str, Any]) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.rename(file)


@contextmanager
def _claimed(file: Path) -> Iterator[Path | None]:
    """The file, for this process alone; None if it is there or another process is at it. A kill lets go of it."""
    with open(file.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield None if file.is_file() else file


def _file(folder: Path, scene: str, method: str, seed: int, length: str = "picks") -> Path:
    plain = "".join(letter if letter.isalnum() else "-" for letter in method)
    return folder / f"{scene}_{plain}_{length}_{seed}.json"


if __name__ == "__main__":
    main()
