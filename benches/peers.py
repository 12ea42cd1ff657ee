"""What others would run on the same rows. Each peer imports its own package, so that neither needs the other's."""

from __future__ import annotations

import time

import numpy as np


def torch_loop(
    source: str, form: str, picks: int, *, alpha: float, penalty: float, unit: bool
) -> dict[str, object]:
    """Run the first `picks` picks of the fused eager loop; float32, all cores, rows converted beforehand.

    Each pick is one matmul over all rows, in one of two forms: "G @ [w, m]", (n, d) @ (d, 2), is what one writes first;
    "linear(G, [w, m])", torch.nn.functional.linear, is the fastest of all ways that we tried (`[w, m] @ G.T`, two
    matrix-vector products, a transposed copy), by a factor of four where it reaches the bandwidth of the memory.
    """
    import torch

    rows = torch.from_numpy(np.load(source)).float()
    if unit:
        rows /= rows.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def loop(budget: int) -> list[int]:
        norms = rows.norm(dim=1)
        q = norms**2
        chosen: list[int] = []
        taken = torch.zeros(len(rows), dtype=torch.bool)
        earlier = torch.zeros(budget, rows.shape[1])
        total = torch.zeros(rows.shape[1])
        alignment = torch.zeros(len(rows))
        mean_norm = 0.0
        for step in range(budget):
            conflict = (-alignment / (norms * mean_norm + 1e-8)).clamp(min=0) if step else alignment
            score = torch.log1p(alpha * q.clamp(min=0)) - penalty * conflict
            best = int(score.masked_fill(taken, -torch.inf).argmax())
            chosen.append(best)
            taken[best] = True
            g = rows[best]
            w = g - alpha * (earlier[:step].T @ (earlier[:step] @ g))
            w /= torch.sqrt(1 + alpha * q[best])
            earlier[step] = w
            total += g
            mean = total / (step + 1)
            mean_norm = float(mean.norm())
            if form == "G @ [w, m]":
                along_w, alignment = (rows @ torch.stack([w, mean], 1)).unbind(1)
            else:
                along_w, alignment = torch.nn.functional.linear(rows, torch.stack([w, mean])).unbind(1)
            q -= alpha * along_w**2
        return chosen

    loop(3)  # warm up
    started = time.perf_counter()
    chosen = loop(picks)
    return {
        "seconds": time.perf_counter() - started,
        "picks": picks,
        "indices": chosen,
        "threads": torch.get_num_threads(),
    }


def submodlib(source: str, k: int, *, alpha: float) -> dict[str, object]:
    """Build the kernel I + αGGᵀ in numpy float32, hand it to submodlib, and pick with LazyGreedy (no penalty)."""
    from submodlib import LogDeterminantFunction

    rows = np.load(source).astype(np.float32)
    times = [time.perf_counter()]
    kernel = alpha * (rows @ rows.T)
    kernel[np.diag_indices_from(kernel)] += 1
    times.append(time.perf_counter())
    function = LogDeterminantFunction(n=len(rows), mode="dense", lambdaVal=0.0, sijs=kernel)
    times.append(time.perf_counter())
    picks = function.maximize(budget=k, optimizer="LazyGreedy", show_progress=False)
    times.append(time.perf_counter())
    parts = dict(zip(("kernel", "hand-over", "picking"), np.diff(times).tolist(), strict=True))
    return {"seconds": times[-1] - times[0], "parts": parts, "indices": [int(row) for row, _ in picks]}
