"""Synthetic pools, the same rows for the same arguments (numpy Generator, PCG64)."""

from __future__ import annotations

import numpy as np

LAWS = ("clustered", "unit", "opposed", "flat")


def law(name: str, n: int, d: int, seed: int) -> np.ndarray:
    """Rows (n, d) float32 of a synthetic pool.

    clustered: 50 clusters, power-law spectrum, log-normal norms. unit: the same directions, rows of norm 1. opposed:
    two camps along one axis, conflicts everywhere. flat: isotropic rows of norm 1, the worst case for laziness.
    """
    shared = np.random.default_rng([seed, 0])
    spectrum = (np.arange(1, d + 1) ** -0.7).astype(np.float32)
    centres = shared.standard_normal((50, d), dtype=np.float32) * spectrum
    axis = shared.standard_normal(d).astype(np.float32)
    axis /= np.linalg.norm(axis)
    blocks = []
    for block in range(-(-n // 1000)):
        r = np.random.default_rng([seed, 1, block])
        noise = r.standard_normal((1000, d), dtype=np.float32)
        if name == "opposed":
            strength = r.choice([-1.0, 1.0], 1000) * r.gamma(2, 0.7, 1000)
            x = strength[:, None].astype(np.float32) * axis + 0.3 * noise
        elif name == "flat":
            x = noise / np.linalg.norm(noise, axis=1, keepdims=True)
        else:
            x = (
                centres[r.integers(0, 50, 1000)] * r.gamma(2, 0.5, (1000, 1)).astype(np.float32)
                + noise * spectrum
            )
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            if name == "clustered":
                x *= 3 * r.lognormal(0, 0.6, (1000, 1)).astype(np.float32)
        blocks.append(x.astype(np.float32))
    return np.concatenate(blocks)[:n]
