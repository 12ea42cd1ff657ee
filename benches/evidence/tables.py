"""The results as Markdown: a row per method, means and spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Result = dict[str, Any]


def report(results: Iterable[Result], settings: Mapping[str, Any]) -> str:
    """Return a table for every scene and training length."""
    results = list(results)
    parts = []
    for scene in settings["scenes"]:
        for length in settings["lengths"]:
            found = [
                each for each in results if each["scene"] == scene and each["length"] in (length, "none")
            ]
            if found:
                parts.append(_table(scene, length, found, settings))
    return "\n".join(parts)


def _table(scene: str, length: str, results: list[Result], settings: Mapping[str, Any]) -> str:
    sources = sorted(name for name in results[0]["nll"] if name != "all")
    outside = [name for name in sources if name in results[0]["outside"]]
    inside = [name for name in sources if name not in outside]
    wanted = settings["lengths"][length]
    lines = [
        f"### {scene}, same {next(iter(wanted))} ({next(iter(wanted.values()))})\n",
        "| chosen by | rows | tokens | U (unit) | choosing s | training s | "
        + " | ".join(f"{name}{' *' if name in outside else ''}" for name in sources)
        + " | mean of sources | pool's mixture |"
        + (" outside * |" if outside else "")
        + (" exact |" if any(each["exact"] for each in results) else ""),
    ]
    columns = lines[-1].count("|") - 1
    lines.append("|" + "---|" * columns)
    methods = dict.fromkeys(each["method"] for each in results)
    shares = results[0]["shares"]
    for method in methods:
        runs = [each for each in results if each["method"] == method]
        nll = {name: np.array([each["nll"][name] for each in runs]) for name in sources}
        weights = np.array([shares.get(name, 0.0) for name in inside])
        mixture = weights @ np.array([nll[name] for name in inside]) / weights.sum()
        cells = [
            method,
            f"{np.mean([each['rows'] for each in runs]):.0f}",
            f"{np.mean([each['tokens'] for each in runs]):.0f}",
            _number([each["log_det"] for each in runs], 1),
            f"{np.mean([each['choosing'] for each in runs]):.2f}",
            f"{np.mean([each['training'] for each in runs]):.0f}",
            *(_number(nll[name]) for name in sources),
            _number(np.mean([nll[name] for name in sources], 0)),
            _number(mixture),
        ]
        if outside:
            cells.append(_number(np.mean([nll[name] for name in outside], 0)))
        if any(each["exact"] for each in results):
            cells.append(
                ", ".join(
                    f"{name} {np.mean([each['exact'].get(name, 0) for each in runs]):.0%}"
                    for name in runs[0]["exact"]
                )
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(values: Any, decimals: int = 3) -> str:
    """Mean ± standard deviation over seeds (n − 1), the latter where there are several."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not values.size:
        return ""
    spread = f" ± {values.std(ddof=1):.{decimals}f}" if values.size > 1 else ""
    return f"{values.mean():.{decimals}f}{spread}"
