"""One run of the selection: the only call of the core's search, whoever asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from spice_rs import _core
from spice_rs.progress import Progress, Watcher
from spice_rs.selection.checkpoint import INTERVAL, Checkpoint
from spice_rs.selection.conditions import Conditions
from spice_rs.selection.options import Control, Objective, Past, Windows
from spice_rs.store.pool import Pool


def run(
    pool: Pool,
    objective: Objective,
    conditions: Conditions,
    *,
    windows: Windows | None = None,
    past: Past | None = None,
    checkpoint: Checkpoint | None = None,
    threads: int | None = None,
    progress: Progress = None,
    time_limit: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Select; under a budget of cost twice, of which the better is kept.

    Args:
        pool: the rows at their scale, with their weights.
        objective: how they are valued.
        conditions: what may be picked.
        windows: the rows of each short run, or None for one run over all.
        past: what an earlier run leaves.
        checkpoint: the file that keeps the picks.
        threads: as for `select`.
        progress: as for `select`.
        time_limit: as for `select`.

    Returns:
        What `_core.select` returned, and under a budget of cost what came of each of both runs.
    """

    def once(watcher: Watcher, seconds: float | None, *, costed: bool) -> dict[str, Any]:
        return _core.select(
            pool,
            objective,
            conditions.for_core(costed=costed),
            windows=windows,
            past=past or Past(),
            control=Control(threads, seconds, watcher, checkpoint.save if checkpoint else None, INTERVAL),
        )

    if conditions.costs is not None:
        return _both_runs(once, conditions, progress, time_limit)
    rows = conditions.source.rows
    with Watcher(progress, rows, objective.k or rows) as watcher:
        return once(watcher, time_limit, costed=False), None


def _both_runs(
    once: Callable[..., dict[str, Any]], conditions: Conditions, progress: Progress, limit: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run under a budget of cost, with gains per cost and with gains as they are; return the better and a comparison.

    This is cost-benefit greedy for a knapsack and the better of both runs (Khuller, Moss and Naor 1999; Leskovec et al.
    2007). Either rule alone can be far from the best: one dear row may be worth more than all the cheap ones, and many
    cheap ones more than a dear one. The larger U of both is not.
    """
    rows, started = conditions.source.rows, time.monotonic()
    results = {}
    with Watcher(progress, rows, conditions.about_picks(), runs=2) as watcher:
        for name in ("costed", "uncosted"):
            seconds = limit
            if limit is not None:  # half of it each; what the first leaves is the second's
                spent = time.monotonic() - started
                seconds = limit / 2 if name == "costed" else max(limit - spent, limit * 1e-3)
            results[name] = once(watcher, seconds, costed=name == "costed")
            watcher.next_run()
    compared: dict[str, Any] = {
        name: {
            "log_det": result["log_det"],
            "picks": len(result["indices"]),
            "cost": conditions.cost_of(result["indices"]),
        }
        for name, result in results.items()
    }
    costed, uncosted = results["costed"], results["uncosted"]
    # Two orders of the same rows have the same U, but for rounding.
    same = set(costed["indices"].tolist()) == set(uncosted["indices"].tolist())
    kept = "costed" if same or costed["log_det"] >= uncosted["log_det"] else "uncosted"
    result = results[kept]
    if any(each["stop_reason"] == "time_limit" for each in results.values()):
        result["stop_reason"] = "time_limit"
    return result, {"kept": kept, **compared}
