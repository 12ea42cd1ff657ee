"""Synthetic pools, the same rows for the same arguments (numpy Generator, PCG64)."""

from __future__ import annotations

import os

import numpy as np

LAWS = ("clustered", "unit", "opposed", "flat")
BLOCK = 1000
"""Rows that share one seed: any range of rows is drawn without the ones before it."""


def law(name: str, n: int, d: int, seed: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows start:stop, all n by default, of a synthetic pool; float32 (stop - start, d).

    clustered: 50 clusters, power-law spectrum, log-normal norms. unit: the same directions, rows of norm 1. opposed:
    two camps along one axis, conflicts everywhere. flat: isotropic rows of norm 1, the worst case for laziness.
    """
    stop = n if stop is None else stop
    shared = np.random.default_rng([seed, 0])
    spectrum = (np.arange(1, d + 1) ** -0.7).astype(np.float32)
    centres = shared.standard_normal((50, d), dtype=np.float32) * spectrum
    axis = shared.standard_normal(d).astype(np.float32)
    axis /= np.linalg.norm(axis)
    rows = np.empty((stop - start, d), np.float32)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        r = np.random.default_rng([seed, 1, block])
        noise = r.standard_normal((BLOCK, d), dtype=np.float32)
        if name == "opposed":
            strength = r.choice([-1.0, 1.0], BLOCK) * r.gamma(2, 0.7, BLOCK)
            x = strength[:, None].astype(np.float32) * axis + 0.3 * noise
        elif name == "flat":
            x = noise / np.linalg.norm(noise, axis=1, keepdims=True)
        else:
            x = (
                centres[r.integers(0, 50, BLOCK)] * r.gamma(2, 0.5, (BLOCK, 1)).astype(np.float32)
                + noise * spectrum
            )
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            if name == "clustered":
                x *= 3 * r.lognormal(0, 0.6, (BLOCK, 1)).astype(np.float32)
        first = block * BLOCK
        low, high = max(start, first), min(stop, first + BLOCK)
        rows[low - start : high - start] = x[low - first : high - first]
    return rows


def write_law(path: str | os.PathLike[str], name: str, n: int, d: int, seed: int, dtype: str) -> None:
    """Write a pool as a `.npy` file, one block of rows after the other: memory does not grow with n."""
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n, d)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, BLOCK):
            law(name, n, d, seed, start, min(n, start + BLOCK)).astype(dtype).tofile(file)
        file.flush()
        os.fsync(file.fileno())  # nothing is left to be written while a selection is timed
