"""Arguments that are another thing on the command line: what stands behind their options, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spice_rs.commands.values import columns, path, rows_or_share
from spice_rs.selection.constraints import PER_ROW, SCALARS


@dataclass(frozen=True)
class Own:
    """What holds of an argument here.

    Attributes:
        metavar: Its placeholder.
        text: What the help says instead of the docstring.
        kind: What reads it.
    """

    metavar: str | None = None
    text: str | None = None
    kind: Callable[[str], Any] | None = None


TEXTS = {
    "model": Own("MODEL", "a causal language model: its folder, hub id or .gguf file", path),
    "data": Own(
        "DATA",
        "the records: a .jsonl, .json, .csv, .tsv or .parquet file (.gz too), a folder of such files, or a hub id",
        path,
    ),
    "k": Own("ROWS|SHARE", kind=rows_or_share),
    "like": Own("STORE", kind=path),
    "tokenizer": Own(
        "TOKENIZER", "folder or hub id of a tokenizer (default: the one beside the model)", path
    ),
    "out": Own("FOLDER", kind=path),
    "checkpoint": Own("FILE", kind=path),
    "target": Own("TARGET", kind=path),
    "target_data": Own("DATA", kind=path),
    "gguf_file": Own("NAME"),
    "device": Own("DEVICE", "cpu, cuda or cuda:1, for example (default: the GPU if there is one)"),
    "split": Own(
        "NAME",
        "which split of the data, where they have several; the store remembers it (default: the only one)",
    ),
    "chat_template": Own("FILE|none", kind=path),
    "index_column": Own("COLUMN"),
    "completion_only": Own(
        text="learn the assistant's turns alone; --no-completion-only learns all tokens (default: --completion-only)"
    ),
    "columns": Own(
        text="names of columns, where the data have others than those known: prompt=frage,response=antwort"
    ),
    "autocast": Own(
        text="multiply in bfloat16 what the model keeps in float32; CPUs with bfloat16 units are two to three times as fast"
        " with it, and a row is then off by a per cent or so (default: on a GPU)"
    ),
    "progress": Own(
        text="show progress on stderr; --no-progress: nothing of it, nor of what libraries show (default: bars on a"
        " terminal, elsewhere a line for each step that takes longer)"
    ),
    "tensorboard": Own(
        text="write the metrics to OUT/tensorboard too (default: if the package is installed)"
    ),
    "interval": Own(
        text="windows between two optimiser steps; the paper has 1, 10 and 50. With more than there are, the only step is"
        " the one after the last window, so that no pick depends on it"
    ),
    "max_grad_norm": Own(text="longer gradients are scaled down to this norm"),
    "methods": Own(
        "NAME,…",
        kind=columns,
        text="some of spice, no_penalty, diagonal, windows, top_k, k_center, facility_location, representative, target,"
        " relevance, less and random, with commas between them (default: all)",
    ),
}
"""Argument → what holds of it here."""

DEFAULTS = {
    "limit": "all rows",
    "like": "none",
    "lora_rank": "no LoRA",
    "gguf_file": "none",
    "ignore_columns": "none",
    "columns": "by the names that are known",
    "preference": "refuse preference data",
    "chat_template": "the tokenizer's",
    "optimizer": "none",
    "checkpoints": "the model as it is",
    "alpha": "1; auto with --target or --represent",
    "conflict_penalty": "0.1; 0 with --target or --represent",
    "early_stop": "off",
    "represent_rank": "all",
    "represent_folder": "the system's",
    "target": "none",
    "target_groups": "one target",
    "target_data": "none",
    "preset": "none",
    "groups": "none",
    "budget": "none",
    "initial": "none",
    "include": "none",
    "exclude": "none",
    **{each.name: "off" for each in SCALARS},
    **{each.name: each.absent for each in PER_ROW},
    "pool_size": "no windows",
    "select_per_window": "no windows",
    "time_limit": "none",
    "checkpoint": "none",
    "index_column": "the n-th record is row n",
    "lengths": "none",
    "costs": "none",
    "dim": "none",
    "dtype": "none",
    "k": "all",
    "threads": "all cores",
    "hot_rows": "by the processor's caches",
    "search": "lazy",
    "old_rows": "the lowest",
    "split": "the only one",
    "steps": "as many as are cheap",
    "column": "source",
    "out": "none",
}
"""Argument whose default is None in Python → what that means, where its docstring does not say."""

_PROPER = ("Adam", "LoRA", "SPICE")

_PYTHON_ALONE = (
    (re.compile(r" A module that has it on keeps it\."), ""),
    (re.compile(r" \(of your own data: samples\)"), ""),
    (re.compile(r"leaving it out for 64 MiB|None for 64 MiB"), "64 MiB by default"),
    (re.compile(r"[;.,]? ?[Ss]ee spice_rs[\w.]*"), ""),
    (re.compile(r",? or \(N,\)[^.;]*? by dataset row"), ""),
    (re.compile(r", or \(h,\) labels[^.;]*"), ""),
    (re.compile(r"\(m,\) "), ""),
    (re.compile(r" ?From Python[^.]*\."), ""),
    (re.compile(r", or a selection from the same source"), ""),
    (re.compile(r"the name of a column of data"), "a column of --data"),
    (re.compile(r" ?Here: a column of --data\."), ""),
    (re.compile(r"spice_rs\.analyze"), "analyze"),
    (re.compile(r" To build on both, give one list of both\."), ""),
    (re.compile(r"column of data\b"), "column of --data"),
    (re.compile(r"\(T,\) labels? (of each target row )?by dataset row( of the target)?, or "), ""),
    (re.compile(r"; (1|0\.1) unless said otherwise"), ""),
    (re.compile(r" Selection\.target and Selection\.relevance tell what came of it\."), ""),
    (re.compile(r"extract\(\.\.\., like=\.\.\.\)"), "extract --like"),
    (re.compile(r"None for no limit"), "null for no limit"),
    (re.compile(r"label → \(minimum, maximum\)"), "an object: label → [minimum, maximum]"),
    (re.compile(r" Here: pool, even, or JSON"), " Given as pool, even, or as JSON"),
    (re.compile(r"Here: a file"), "Given as a file"),
    (re.compile(r",? and Selection\.compared has both"), "; both are shown"),
    (re.compile(r"; Selection\.near_duplicates lists those[^.]*"), ""),
    (re.compile(r", a state dict by index or by name, or an optimiser;"), ";"),
    (re.compile(r", numpy\.random\.default_rng\(seed\)\.permutation\(n\),"), ""),
)


def without_python(text: str) -> str:
    """Return an explanation without what can be done from Python alone."""
    for pattern, instead in _PYTHON_ALONE:
        text = pattern.sub(instead, text)
    lower = text[1:2].islower() or text[1:2] == " "
    return text[:1].lower() + text[1:] if lower and not text.startswith(_PROPER) else text
