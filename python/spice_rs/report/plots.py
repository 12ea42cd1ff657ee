"""Plots of a selection: each function returns a matplotlib figure, which `figure.savefig` writes as SVG, PDF or PNG.

They need matplotlib (pip install 'spice-rs[report]'), and neither its windows nor its global state. Dashes, markers
and shades tell what is what, so that a grey print can be read.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.pool_map import PoolMap
from spice_rs.analysis.random_sets import Chance
from spice_rs.analysis.result import Analysis
from spice_rs.analysis.sweep import Sweep
from spice_rs.nouns import counted
from spice_rs.printable import as_plot, one_line, short
from spice_rs.selection.result import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, ORANGE, GREY, PALE = "#000000", "#0b4a8f", "#c1580a", "#7a7a7a", "#c4c4c4"
"""Dark to pale in a grey print too: black, blue, orange, grey, pale."""

SHOWN = 28
"""Letters of a label, at most."""

MOST_LABELS = 12
"""Groups that a plot of shares shows; the smaller ones become one."""


def gain_decay(analysis: Analysis) -> Figure:
    """Δ of each pick, with what it is worth alone and what interaction costs it, over the rank."""
    of = analysis.selection
    figure, axes = _figure("Gain of each pick", "rank of the pick", "nats")
    ranks = np.arange(1, len(of) + 1)
    axes.plot(ranks, of.base, color=GREY, linestyle=":", label="base: log(1 + α‖g‖²), alone")
    axes.plot(ranks, of.gains, color=BLACK, label="gain Δ = base + ε")
    axes.plot(ranks, -of.epsilon, color=ORANGE, linestyle="--", label="|ε|, what earlier picks cost it")
    if analysis.half_life is not None:
        axes.axvline(analysis.half_life + 1, color=BLUE, linestyle="-.", linewidth=0.9)
        axes.annotate(
            f" Δ is half the first after {counted(analysis.half_life, 'pick')}",
            (analysis.half_life + 1, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=BLUE,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def conflict_against_gain(analysis: Analysis) -> Figure:
    """Gain over the cosine to the mean of the picks: of the picks when they were picked, of the others at the end."""
    figure, axes = _figure(
        "Conflict against gain", "cosine to the mean of the picks (below 0: conflict)", "gain Δ / nats"
    )
    left = analysis.candidates
    if left is not None:
        free = ~left["picked"]
        axes.scatter(
            left["cosine"][free], left["gain"][free], s=7, color=PALE, label="not picked, beside all picks"
        )
    axes.scatter(
        analysis.cosine[1:],
        analysis.selection.gains[1:],
        s=14,
        marker="x",
        linewidths=0.8,
        color=BLACK,
        label="picks, each beside those before it",
    )
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def information(selection: Selection, chance: Chance | None = None) -> Figure:
    """U of the first picks over their number, against random sets: the mean, and from the least to the largest."""
    figure, axes = _figure("Information of the first picks", "rows", "U = log det(I + αF) / nats")
    known = np.isfinite(selection.log_dets)
    ranks = np.arange(1, len(selection) + 1)
    marker = "o" if known.sum() < 3 else None
    axes.plot(ranks[known], selection.log_dets[known], color=BLACK, marker=marker, label="picks")
    if chance is not None:
        low, high = chance.log_dets.min(0), chance.log_dets.max(0)
        count = len(chance.log_dets)
        mean = chance.log_dets.mean(0)
        axes.plot(chance.sizes, mean, color=GREY, linestyle="--", label=f"random rows, mean of {count} sets")
        axes.fill_between(chance.sizes, low, high, color=PALE, linewidth=0, label="their range")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def group_shares(labels: Sequence[object], picked: npt.ArrayLike, *, name: str = "group") -> Figure:
    """Share of each group in the pool and among the picks.

    Args:
        labels: (n,) label of each row of the pool.
        picked: (m,) row numbers of the picks.
        name: what the groups are, for the axis.
    """
    names = np.array([str(label) for label in labels], dtype=object)
    chosen = names[np.asarray(picked)]
    order = [
        label for label, _ in sorted(Counter(names.tolist()).items(), key=lambda item: (-item[1], item[0]))
    ]
    shown = order[:MOST_LABELS]
    rows = [(label, (names == label).mean(), (chosen == label).mean()) for label in shown]
    if len(order) > len(shown):
        rest = f"{len(order) - len(shown)} others"
        rows.append((rest, 1 - sum(row[1] for row in rows), 1 - sum(row[2] for row in rows)))
    figure, axes = _figure(
        f"Shares by {short(name, SHOWN, one_line)}", "share / %", "", height=1.1 + 0.36 * len(rows)
    )
    places = np.arange(len(rows))
    axes.barh(
        places - 0.2,
        [100 * row[1] for row in rows],
        0.38,
        color=PALE,
        edgecolor=BLACK,
        label="pool",
        linewidth=0.6,
    )
    axes.barh(
        places + 0.2,
        [100 * row[2] for row in rows],
        0.38,
        color=BLUE,
        edgecolor=BLACK,
        hatch="///",
        label="picks",
        linewidth=0.6,
    )
    axes.set_yticks(places, [as_plot(short(row[0], SHOWN, one_line)) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _legend(axes)
    return figure


def length_distribution(lengths: npt.ArrayLike, picked: npt.ArrayLike, *, unit: str = "tokens") -> Figure:
    """How long the answers are, in the pool and among the picks.

    Args:
        lengths: (n,) length of each row's answer.
        picked: (m,) row numbers of the picks.
        unit: unit of the lengths.
    """
    sizes = np.maximum(np.asarray(lengths, float), 1.0)
    chosen = sizes[np.asarray(picked)]
    figure, axes = _figure("Length of the answers", f"learned {unit}", "share of the rows / %")
    top = max(float(sizes.max()), 2.0)
    edges = np.geomspace(max(1.0, sizes.min()) * 0.999, top * 1.001, 26)
    for values, who, color, dash in ((sizes, "pool", GREY, "-"), (chosen, "picks", BLACK, "--")):
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        label = f"{who}, median {np.median(values):.0f}"
        axes.stairs(shares, edges, linewidth=1.4, color=color, linestyle=dash, label=label)
    axes.set_xscale("log")
    _legend(axes)
    return figure


def norm_against_length(
    norms: npt.ArrayLike, lengths: npt.ArrayLike, picked: npt.ArrayLike, *, unit: str = "tokens"
) -> Figure:
    """Norm of the rows as they competed, over the length of their answers.

    Args:
        norms: (n,) ‖g‖ of rows of the pool.
        lengths: (n,) length of each row's answer.
        picked: (n,) bool, whether it is a pick.
        unit: unit of the lengths.
    """
    sizes, lengths_of, chosen = np.asarray(norms, float), np.asarray(lengths, float), np.asarray(picked, bool)
    figure, axes = _figure("Norm against length", f"learned {unit}", "norm ‖g‖ of the row, as it competed")
    rest = ~chosen
    axes.scatter(lengths_of[rest], sizes[rest], s=7, color=PALE, label="not picked")
    axes.scatter(
        lengths_of[chosen], sizes[chosen], s=14, marker="x", linewidths=0.8, color=BLACK, label="picks"
    )
    axes.set_xscale("log")
    if (sizes > 0).any() and sizes.max() > 3 * sizes[sizes > 0].min():
        axes.set_yscale("log")
    elif np.ptp(sizes) <= 1e-6 * sizes.max(initial=0.0):  # unit rows
        axes.set_ylim(0, 2 * float(sizes.max(initial=0.0)) or 1.0)
    _legend(axes)
    return figure


def map_of_pool(pool: PoolMap) -> Figure:
    """Where the picks lie in the plane in which the pool varies most."""
    first, second = (
        f"principal direction {i + 1} ({100 * pool.shares[i]:.1f} % of the variance)" for i in (0, 1)
    )
    figure, axes = _figure("Map of the pool", first, second, height=4.6)
    axes.scatter(
        pool.pool[:, 0], pool.pool[:, 1], s=7, color=PALE, label=f"pool ({counted(len(pool.pool), 'row')})"
    )
    axes.scatter(
        pool.picks[:, 0],
        pool.picks[:, 1],
        s=16,
        marker="x",
        linewidths=0.8,
        color=BLACK,
        label=f"picks ({len(pool.picks)})",
    )
    axes.set_aspect("equal", adjustable="datalim")
    _legend(axes)
    return figure


def sweep_of_setting(found: Sweep) -> Figure:
    """What another λ or α picks: U beside what the penalty does and how many picks stay."""
    word = (
        "conflict penalty λ" if found.setting == "conflict_penalty" else "weight α of the Fisher information"
    )
    figure, axes = _figure(f"Other values of the {word}", word, "U of the picks / nats")
    linear = bool((found.values == 0).any())
    if linear:
        axes.set_xscale("symlog", linthresh=float(found.values[found.values > 0].min(initial=1.0)))
    else:
        axes.set_xscale("log")
    lines = axes.plot(found.values, found.log_det, color=BLACK, marker="o", markersize=4, label="U (left)")
    axes.axvline(found.at, color=GREY, linewidth=0.9, linestyle="-.")
    right = axes.twinx()
    right.set_ylabel("share / %")
    right.set_ylim(-3, 103)
    for values, style in (
        (found.shared, {"color": BLUE, "linestyle": "--", "marker": "s", "label": "picks that stay"}),
        (
            found.overruled,
            {"color": ORANGE, "linestyle": ":", "marker": "^", "label": "decided by the penalty"},
        ),
        (found.conflict, {"color": GREY, "linestyle": "-.", "marker": "v", "label": "mean conflict / %"}),
    ):
        lines += right.plot(found.values, 100 * values, markersize=4, **style)  # type: ignore[arg-type]
    spread = float(np.ptp(found.log_det))
    middle = float(found.log_det.mean())
    if spread < 0.05 * abs(middle):  # or rounding would look like a cliff
        axes.set_ylim(middle - 0.05 * abs(middle), middle + 0.05 * abs(middle))
    figure.legend(
        lines,
        [str(line.get_label()) for line in lines],
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def check_installed() -> None:
    """Fail now if the plots would fail after a long analysis.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "No module named 'matplotlib': plots need more packages; pip install 'spice-rs[report]'",
            name="matplotlib",
        )


def _figure(title: str, x: str, y: str, *, height: float = 3.4) -> tuple[Figure, Axes]:
    check_installed()
    from spice_rs.report.figure import QuietFigure

    figure = QuietFigure(figsize=(6.2, height), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_title(as_plot(title), fontsize=11, loc="left")
    axes.set_xlabel(as_plot(x), fontsize=9)
    axes.set_ylabel(as_plot(y), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
