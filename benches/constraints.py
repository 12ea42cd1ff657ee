"""What a user may ask of a selection, made up for a pool of n rows: keyword arguments of `select`."""

from __future__ import annotations

from typing import Any

import numpy as np

GROUPS = 20


def asked(name: str, n: int, k: int, seed: int) -> dict[str, Any]:
    """Return keyword arguments, `k` included where the number of rows is what limits.

    Groups are of very different sizes; costs are log-normal (σ = 1), as the lengths of answers are.
    """
    r = np.random.default_rng(seed)
    shares = r.gamma(1.0, 1.0, GROUPS)
    groups = r.choice(GROUPS, n, p=shares / shares.sum())
    costs = np.maximum(1.0, np.round(np.exp(4 + r.standard_normal(n))))
    wishes: dict[str, dict[str, Any]] = {
        "pool shares": {"k": k, "groups": groups, "group_shares": "pool"},
        "maxima": {"k": k, "groups": groups, "group_shares": {g: (0, 1.5 / GROUPS) for g in range(GROUPS)}},
        "budget": {"costs": costs, "budget": float(costs.mean() * k)},
        "small budget": {"costs": costs, "budget": float(costs.mean() * k / 6)},
        "budget and shares": {
            "costs": costs,
            "budget": float(costs.mean() * k / 6),
            "groups": groups,
            "group_shares": "pool",
        },
        "max_similarity": {"k": k, "max_similarity": 0.9},
        "weights": {"k": k, "weights": r.uniform(0.5, 2.0, n)},
        "prior": {"k": k, "prior": r.standard_normal(n), "prior_weight": 0.1},
        "initial": {"k": k, "initial": np.arange(k // 4)},
    }
    return wishes[name]


NAMES = (
    "pool shares",
    "maxima",
    "budget",
    "small budget",
    "budget and shares",
    "max_similarity",
    "weights",
    "prior",
    "initial",
)
