"""Time `select` against the loop that a user would write in torch; prints one table.

    python benches/selection.py [--rows 20000] [--dim 1024] [--picks 2000] [--laws clustered unit opposed flat]

The torch loop is one matmul `[w, mean] @ G.T` per pick over all rows in float32 on all cores, with the same formula. It is
timed over its first `--loop-picks` picks and extrapolated linearly (every pick costs it the same). All runs of a law
share one process and one pool (float16 for us, its float32 copy for torch, which has no fast float16 on CPUs).
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings

import numpy as np
import torch

import spice_rs
from laws import LAWS, law


def torch_loop(rows: torch.Tensor, picks: int, alpha: float, penalty: float) -> float:
    """Run the fused eager loop; returns seconds."""
    started = time.perf_counter()
    norms = rows.norm(dim=1)
    q = norms**2
    taken = torch.zeros(len(rows), dtype=torch.bool)
    total = torch.zeros(rows.shape[1])
    directions: list[torch.Tensor] = []
    alignment = torch.zeros(len(rows))
    mean_norm = 0.0
    for step in range(picks):
        conflict = (-alignment / (norms * mean_norm + 1e-8)).clamp(min=0) if step else alignment
        score = torch.log1p(alpha * q.clamp(min=0)) - penalty * conflict
        best = int(score.masked_fill(taken, -torch.inf).argmax())
        taken[best] = True
        g = rows[best]
        w = g.clone()
        for earlier in directions:
            w -= alpha * (earlier @ g) * earlier
        w /= torch.sqrt(1 + alpha * q[best])
        directions.append(w)
        total += g
        mean = total / (step + 1)
        mean_norm = float(mean.norm())
        products = torch.stack([w, mean]) @ rows.T  # (2, n): twice as fast as rows @ (d, 2)
        q -= alpha * products[0] ** 2
        alignment = products[1]
    return time.perf_counter() - started


def seconds(run) -> tuple[float, object]:
    """Return (seconds, result)."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--picks", type=int, default=2000)
    parser.add_argument("--loop-picks", type=int, default=60)
    parser.add_argument("--eager-picks", type=int, default=60)
    parser.add_argument("--penalty", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    a = parser.parse_args()
    warnings.simplefilter("ignore", spice_rs.SpiceWarning)

    print(f"machine: {platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}")
    print(
        f"pool: n = {a.rows}, d = {a.dim}, seed {a.seed}, float16; k = {a.picks}, alpha = 1, lambda = {a.penalty}"
    )
    print(
        f"torch loop and eager: first {a.loop_picks} and {a.eager_picks} picks, extrapolated linearly to {a.picks}\n"
    )
    print("law         torch loop s   eager s   lazy s   lazy / torch loop   rows read per pick")
    for name in a.laws:
        rows = law(name, a.rows, a.dim, a.seed).astype(np.float16)
        dense = torch.tensor(rows).float()
        torch_loop(dense, 3, 1.0, a.penalty)  # warm up
        loop = torch_loop(dense, a.loop_picks, 1.0, a.penalty) * a.picks / a.loop_picks

        def run(k: int, search: str, rows: np.ndarray = rows):
            return spice_rs.select(rows, k, conflict_penalty=a.penalty, search=search, progress=False)

        eager = seconds(lambda run=run: run(a.eager_picks, "eager"))[0] * a.picks / a.eager_picks
        lazy, selection = seconds(lambda run=run: run(a.picks, "lazy"))
        print(
            f"{name:10}  {loop:12.1f}  {eager:8.1f}  {lazy:7.1f}  {loop / lazy:16.1f} ×"
            f"  {selection.rows_read[1:].mean():18.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
