"""What a selection looks like beside its pool, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spice_rs.printable import short
from spice_rs.selection.composition import ALIKE, Composition
from spice_rs.selection.result import Selection
from spice_rs.tables import UNKNOWN, aligned


def composition_table(
    groups: Sequence[str], lengths: npt.ArrayLike, picked: npt.ArrayLike, *, unit: str = "tokens"
) -> str:
    """Return a table of each group's share and median length in the pool and among the picks.

    Args:
        groups: (n,) label of each row of the pool, for example its source.
        lengths: (n,) length of each row's answer.
        picked: (m,) row numbers of the picks.
        unit: unit of the lengths.
    """
    return aligned(composition_rows(groups, lengths, picked, unit=unit))


def composition_rows(
    groups: Sequence[str], lengths: npt.ArrayLike, picked: npt.ArrayLike, *, unit: str = "tokens"
) -> list[tuple[str, ...]]:
    """Return the cells of `composition_table`, the heading first."""
    labels = np.array(groups, dtype=object)
    sizes = np.asarray(lengths)
    chosen = np.asarray(picked)
    header = ("group", "pool", "share", "median " + unit, "picks", "share", "median " + unit)
    rows: list[tuple[str, ...]] = [header]
    members = [(str(name), labels == name) for name in sorted(set(labels.tolist()))]
    for name, inside in [*members, ("all", np.ones(len(labels), bool))]:
        among = chosen[inside[chosen]]
        rows.append(
            (
                name,
                str(int(inside.sum())),
                f"{inside.mean():.1%}",
                _median(sizes[inside]),
                str(len(among)),
                f"{len(among) / max(len(chosen), 1):.1%}",
                _median(sizes[among]),
            )
        )
    return rows


SHOWN_LABELS = 8
"""Labels that `beside_pool` shows, those that gained or lost most; the others in one line."""


def beside_pool(selection: Selection) -> list[list[str]]:
    """Return the cells of a table of what picks are made of beside their pool, the heading first; empty if nobody knows.

    Shares of groups that the caller gave are left to `group_rows`.
    """
    made = selection.composition
    if made is None or not len(selection):
        return []
    rows = [["", "picks", "pool"], ["rows", f"{len(selection):,}", f"{made.rows:,}"]]
    if made.pool_tokens is not None:
        median, total = made.pool_tokens
        rows += [
            ["median tokens", f"{made.median_tokens:,g}", f"{median:,g}"],
            ["tokens", f"{made.total_tokens:,}", f"{total:,}"],
        ]
    if selection.groups is None:
        rows += _label_rows(made)
    alike = "not compared" if made.num_alike is None else f"{made.num_alike:,}"
    return [*rows, [f"alike (|cosine| > {ALIKE:g})", alike, UNKNOWN]]


def _label_rows(made: Composition) -> list[list[str]]:
    """Return the share of each label, in the order of the pool's shares."""
    picks, pool = made.shares, made.pool_shares
    moved = sorted(pool, key=lambda label: -abs(picks[label] - pool[label]))[:SHOWN_LABELS]
    column = "" if made.column is None else f"{short(made.column, 30, str)} "
    rows = [
        [f"{column}{short(label, 30, str)}", f"{picks[label]:.1%}", f"{pool[label]:.1%}"]
        for label in sorted(moved, key=lambda label: -pool[label])
    ]
    left = [label for label in pool if label not in set(moved)]
    if left:
        shares = (sum(each[label] for label in left) for each in (picks, pool))
        rows.append([f"{column}{len(left)} others", *(f"{share:.1%}" for share in shares)])
    return rows


def group_table(selection: Selection) -> str:
    """Return a table of each group's share of the pool and of the picks, and of its limits.

    Args:
        selection: picks with groups.
    """
    return aligned(group_rows(selection))


def group_rows(selection: Selection) -> list[list[str]]:
    """Return the cells of `group_table`, the heading first."""
    groups, quotas = selection.settings["groups"], selection.quotas
    labels = [] if selection.groups is None else selection.groups.tolist()
    header = ["group", "pool", "share", "picks", "share", "minimum", "maximum"]
    pool, picks = groups["pool"], [labels.count(quota[0]) for quota in quotas]
    columns = [pool, _shares(pool), picks, _shares(picks)]
    if selection.costs is not None:
        costs = [float(selection.costs[np.array(labels, object) == quota[0]].sum()) for quota in quotas]
        header[3:3] = ["cost", "share"]
        header[7:7] = ["cost", "share"]
        columns = [pool, _shares(pool), groups["pool_cost"], _shares(groups["pool_cost"])]
        columns += [picks, _shares(picks), costs, _shares(costs)]
    limits = [[_number(limit) for limit in quota[1:]] for quota in quotas]
    rows = [
        [str(quota[0]), *(_number(column[i]) for column in columns), *limits[i]]
        for i, quota in enumerate(quotas)
    ]
    return [header, *rows]


def _shares(amounts: Sequence[float]) -> list[str]:
    whole = sum(amounts)
    return [f"{amount / whole:.1%}" if whole else "-" for amount in amounts]


def _number(value: object) -> str:
    return (
        "-" if value is None else f"{round(value, 1):.12g}" if isinstance(value, int | float) else str(value)
    )


def _median(values: npt.NDArray[np.generic]) -> str:
    return f"{np.median(values.astype(np.float64)):.0f}" if len(values) else "-"
