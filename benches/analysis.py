"""How conflict goes with gain on real gradients, beside what the paper reports. Prints one table.

    python benches/analysis.py [--gradients FILE.npz] [--share 0.1]

FILE.npz has `gradients` (n, d), of the mean loss. "small" are these times 0.19, about the size that a fresh LoRA gives
(α‖g‖² near 1); "windows" are of 128 rows with 13 picks each, as the released code selects. ρ is Spearman's over the
candidates of a step, the mean over steps: of the penalty's conflict, of |cosine to the mean|, and of the sum of Theorem 4,
Σ(gᵀg_y)², with Δ and with |ε|. The paper reports −0.79 and 0.90 for "conflict". α = 1, λ = 0.1.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np

import spice_rs
from machine import describe

REAL = Path(__file__).parents[1] / "../shared/data/gradients_smollm2.npz"
COLUMNS = (
    "rows as",
    "run",
    "α‖g‖²",
    "half-life",
    "ρ conflict",
    "ρ cosine",
    "ρ sum",
    "abs(ε)/bound",
    "beyond",
    "CPU s",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradients", default=str(REAL))
    parser.add_argument("--share", type=float, default=0.1)
    settings = parser.parse_args()
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)
    rows = np.load(settings.gradients)["gradients"]
    k = max(2, round(settings.share * len(rows)))
    print(
        f"{describe()}\n{len(rows)} rows of {rows.shape[1]} columns, k = {k}; CPU s: seconds of `analyze`, all threads\n"
    )
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for scale, normalize in (("mean", "none"), ("small", "none"), ("unit", "unit")):
        pool = rows.astype(np.float32) * 0.19 if scale == "small" else rows
        for run, options in (("pool", {"k": k}), ("windows", {"pool_size": 128, "select_per_window": 13})):
            line(scale, run, pool, spice_rs.select(pool, normalize=normalize, **options))


def line(scale: str, run: str, pool: np.ndarray, selection: spice_rs.Selection) -> None:
    started = time.process_time()
    found = spice_rs.analyze(selection, pool)
    seconds = time.process_time() - started
    pairs = found.stepwise.averages()
    rho = [
        f"{pairs[f'{name}_gain'][0]:.2f}, {pairs[f'{name}_epsilon'][0]:.2f}"
        for name in ("conflict", "cosine", "overlap")
    ]
    cells = [scale, run, f"{selection.signal:.3g}", half_life(selection), *rho]
    assert found.theorem4 is not None
    cells += [f"{np.nanmedian(found.theorem4.median):.3g}", str(found.theorem4.violations), f"{seconds:.1f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def half_life(selection: spice_rs.Selection) -> str:
    """Picks after which Δ first was half of the first pick's; of windows the median over those where it was."""
    size = selection.settings["select_per_window"]
    if size is None:
        return "beyond k" if selection.half_life is None else str(selection.half_life)
    halves = []
    for start in range(0, len(selection), size):
        gains = selection.gains[start : start + size]
        below = np.flatnonzero(gains <= 0.5 * gains[0])
        halves.append(int(below[0]) if below.size else None)
    known = [half for half in halves if half is not None]
    return f"{np.median(known):.0f} ({len(known)} of {len(halves)})" if known else f"beyond {size}"


if __name__ == "__main__":
    main()
