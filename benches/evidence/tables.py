"""The results as Markdown: a row per method, means and spread over seeds, and paired differences from random rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Result = dict[str, Any]

DRAWS = 2000
"""Of the bootstrap."""


def report(runs: Iterable[Result], picks: Iterable[Result], settings: Mapping[str, Any]) -> str:
    """Return for every scene what was picked, and for every training length what came of it."""
    runs, picks = list(runs), list(picks)
    parts = []
    for scene in settings["scenes"]:
        chosen = [each for each in picks if each["scene"] == scene]
        if chosen:
            parts.append(_picked(scene, chosen))
        for length in settings["lengths"]:
            found = [each for each in runs if each["scene"] == scene and each["length"] in (length, "none")]
            if len(found) > 1:
                parts.append(_table(scene, length, found, settings))
            if any("losses" in each and each["method"] == "random" for each in found):
                parts.append(_differences(scene, length, found))
    return "\n".join(parts)


def _picked(scene: str, results: list[Result]) -> str:
    """Rows, sources, copies and damage of the picks."""
    sources = sorted({source for each in results for source in each["sources"]})
    damaged = any(each["pool_damaged"] for each in results)
    kinds = sorted({kind for each in results for kind in each["damaged"]})
    header = ["chosen by", "draws", "rows", "unique", "U (unit)", *(f"{source} %" for source in sources)]
    header += [*(["damaged %"] if damaged else []), *(f"{kind} %" for kind in kinds)]
    share = np.mean([each["pool_damaged"] for each in results])
    lines = [
        f"### {scene}: what is picked" + (f" (damaged in the pool: {share:.0%})" if damaged else "") + "\n"
    ]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for method in dict.fromkeys(each["method"] for each in results):
        own = [each for each in results if each["method"] == method]
        rows = [len(each["picks"]) for each in own]
        cells = [
            method,
            str(len(own)),
            f"{np.mean(rows):.0f}",
            f"{np.mean([each['unique'] for each in own]):.0f}",
        ]
        cells.append(_number([each["log_det"] for each in own], 1))

        def per_cent(values: list[int], rows: list[int] = rows) -> str:
            return _number([100 * value / all_of for value, all_of in zip(values, rows, strict=True)], 0)

        cells += [per_cent([each["sources"].get(source, 0) for each in own]) for source in sources]
        if damaged:
            cells.append(per_cent([sum(each["damaged"].values()) for each in own]))
            cells += [per_cent([each["damaged"].get(kind, 0) for each in own]) for kind in kinds]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _table(scene: str, length: str, results: list[Result], settings: Mapping[str, Any]) -> str:
    sources = sorted(name for name in results[0]["nll"] if name != "all")
    outside = [name for name in sources if name in results[0]["outside"]]
    wanted = settings["lengths"][length]
    same = " and ".join(f"{name} ({value})" for name, value in wanted.items())
    lines = [
        f"### {scene}, same {same}\n",
        "| chosen by | seeds | rows | tokens | U (unit) | choosing s | training s | "
        + " | ".join(f"{name}{' *' if name in outside else ''}" for name in sources)
        + " | mean of sources | pool's mixture |"
        + (" outside * |" if outside else "")
        + (" exact |" if any(each["exact"] for each in results) else ""),
    ]
    columns = lines[-1].count("|") - 1
    lines.append("|" + "---|" * columns)
    for method in dict.fromkeys(each["method"] for each in results):
        runs = [each for each in results if each["method"] == method]
        nll = {name: np.array([each["nll"][name] for each in runs]) for name in sources}
        cells = [
            method,
            str(len(runs)),
            f"{np.mean([each['rows'] for each in runs]):.0f}",
            f"{np.mean([each['tokens'] for each in runs]):,.0f}",
            _number([each["log_det"] for each in runs], 1),
            f"{np.mean([each['choosing'] for each in runs]):.2f}",
            f"{np.mean([each['training'] for each in runs]):.0f}",
            *(_number(nll[name]) for name in sources),
            _number(np.mean([nll[name] for name in sources], 0)),
            _number(_mixed(nll, results[0])),
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


def _mixed(nll: Mapping[str, Any], result: Result) -> Any:
    """The sources that are not outside, weighted as in the pool."""
    inside = [name for name in result["shares"] if name not in result["outside"]]
    weights = np.array([result["shares"][name] for name in inside])
    return weights @ np.array([nll[name] for name in inside]) / weights.sum()


def _differences(scene: str, length: str, results: list[Result]) -> str:
    """NLL minus that of random rows of the same seeds, with 95 % intervals of a bootstrap over the held-out records.

    A draw takes as many records of each source as there are, with replacement, the same for both ways and all seeds.
    """
    sources = sorted(name for name in results[0]["nll"] if name != "all")
    random = {each["seed"]: each for each in results if each["method"] == "random"}
    lines = [
        f"### {scene}, {length}: difference from random rows, same seeds, and its 95 % interval over held-out records\n",
        "| chosen by | seeds | " + " | ".join(sources) + " | pool's mixture |",
        "|" + "---|" * (len(sources) + 3),
    ]
    for method in dict.fromkeys(each["method"] for each in results):
        runs = [
            each
            for each in results
            if each["method"] == method and each["seed"] in random and method not in ("random", "untrained")
        ]
        if not runs:
            continue
        draws = np.random.default_rng(0)
        found, spread = {}, {}
        for source in sources:
            own = np.mean([each["losses"][source] for each in runs], 0)  # (records, 2): loss, tokens
            other = np.mean([random[each["seed"]]["losses"][source] for each in runs], 0)
            rows = draws.integers(len(own), size=(DRAWS, len(own)))
            gaps = own[:, 0] - other[:, 0]
            found[source] = gaps.sum() / own[:, 1].sum()
            spread[source] = gaps[rows].sum(1) / own[:, 1][rows].sum(1)
        found["pool"], spread["pool"] = _mixed(found, results[0]), _mixed(spread, results[0])
        cells = [
            f"{found[name]:+.3f} [{np.percentile(spread[name], 2.5):+.3f}, {np.percentile(spread[name], 97.5):+.3f}]"
            for name in [*sources, "pool"]
        ]
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(values: Any, decimals: int = 3) -> str:
    """Mean ± standard deviation over seeds (n − 1), the latter where there are several."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not values.size:
        return ""
    spread = f" ± {values.std(ddof=1):.{decimals}f}" if values.size > 1 else ""
    return f"{values.mean():.{decimals}f}{spread}"
