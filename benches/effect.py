"""What constraints do to a selection from real gradients: picks per source, tokens and U. Prints one table.

    python benches/effect.py [--gradients FILE.npz] [--pool FILE.jsonl.gz] [--share 0.1]

FILE.npz has `gradients` (n, d), `index` (n,), the row of the pool, and `num_tokens` (n,), the learned tokens of each row;
the pool has a record a line whose `source` names the group. Every selection takes `--share` of the rows, or of the tokens.
U is of the rows as they are scaled for that run, so that it compares runs of one scale only. α = 1, λ = 0.1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import warnings
from pathlib import Path

import numpy as np

import spice_rs

SHARED = Path(__file__).parents[1] / "../shared/data"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradients", default=str(SHARED / "gradients_smollm2.npz"))
    parser.add_argument("--pool", default=str(SHARED / "pool.jsonl.gz"))
    parser.add_argument("--share", type=float, default=0.1)
    settings = parser.parse_args()

    archive = np.load(settings.gradients)
    rows, tokens = archive["gradients"], archive["num_tokens"].astype(np.float64)
    with gzip.open(settings.pool, "rt", encoding="utf-8") as lines:
        labels = [json.loads(line)["source"] for line in lines]
    sources = np.array([labels[row] for row in archive["index"]])
    names = sorted(set(sources.tolist()))
    k, tenth = round(settings.share * len(rows)), settings.share
    print(
        f"{len(rows)} rows of {rows.shape[1]} columns, {tokens.sum():,.0f} tokens; {settings.share:.0%} of them\n"
    )

    runs: dict[str, dict[str, object]] = {
        "none": {"k": k},
        "pool shares": {"k": k, "groups": sources, "group_shares": "pool"},
        "token budget": {"costs": tokens, "budget": tenth},
        "both": {"costs": tokens, "budget": tenth, "groups": sources, "group_shares": "pool"},
    }
    heading = ["rows as", "constraints", "picks", *names, "tokens", "median tokens", "U", "kept run"]
    print("| " + " | ".join(heading) + " |\n|" + "---|" * len(heading))
    pool = [f"{(sources == name).mean():.0%}" for name in names]
    print(
        f"| | (the pool) | {len(rows)} | {' | '.join(pool)} | {tokens.sum():,.0f} | {np.median(tokens):.0f} | | |"
    )
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)
    for scale in ("none", "unit"):
        for name, options in runs.items():
            sel = spice_rs.select(rows, normalize=scale, **options)  # type: ignore[arg-type]
            print_run(scale, name, sel, sources, tokens, names)
        random = np.random.default_rng(0).permutation(len(rows))[:k]
        value = spice_rs.log_det(rows, random, normalize=scale)
        print_picks([scale, "(random)"], random, sources, tokens, names, [f"{value:.0f}", ""])


def print_run(
    scale: str, name: str, sel: spice_rs.Selection, sources: np.ndarray, tokens: np.ndarray, names: list[str]
) -> None:
    kept = ""
    if sel.compared:
        other = "uncosted" if sel.compared["kept"] == "costed" else "costed"
        kept = f"{sel.compared['kept']} (U of the other {sel.compared[other]['log_det']:.0f})"
    print_picks([scale, name], sel.indices, sources, tokens, names, [f"{sel.log_det:.0f}", kept])


def print_picks(
    head: list[str],
    picks: np.ndarray,
    sources: np.ndarray,
    tokens: np.ndarray,
    names: list[str],
    tail: list[str],
) -> None:
    shares = [f"{(sources[picks] == name).mean():.0%}" for name in names]
    numbers = [f"{tokens[picks].sum():,.0f}", f"{np.median(tokens[picks]):.0f}"]
    print("| " + " | ".join([*head, str(len(picks)), *shares, *numbers, *tail]) + " |", flush=True)


if __name__ == "__main__":
    main()
