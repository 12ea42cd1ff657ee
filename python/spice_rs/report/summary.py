"""A selection for people: a page of text in a terminal, a table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spice_rs.nouns import counted
from spice_rs.printable import as_html as html_text
from spice_rs.printable import one_line
from spice_rs.report.shares import beside_pool, group_rows
from spice_rs.selection.constraints import PER_ROW, SCALARS
from spice_rs.selection.stopping import early_stop_finding
from spice_rs.tables import aligned, html_table

if TYPE_CHECKING:
    from spice_rs.selection.result import Selection

SHOWN_GROUPS = 50
"""More groups than these are no table that anybody reads."""

SHOWN_ROWS = 5
"""Rows that a sentence lists."""
_STOPPED = {
    "budget": "at the budget",
    "early_stop": "early, as gains had fallen",
    "exhausted": "as no row is left that may be picked",
    "time_limit": "at the time limit",
}
"""Where a run has ended."""

SHOWN_PICKS = 10
"""First picks that a notebook shows."""


def as_text(selection: Selection) -> str:
    """Return one fact per line, and tables of what the picks are made of and of the groups."""
    facts = _facts(selection)
    width = max(len(name) for name, _ in facts)
    text = "\n".join(f"{name.ljust(width)}  {one_line(value)}" for name, value in facts)
    tables = [aligned(table) for table in (beside_pool(selection), _groups(selection)) if table]
    return "\n\n".join([text, *tables])


def as_sentence(selection: Selection) -> str:
    """Return the least that people want to know of a run that has just ended."""
    m, settings = len(selection), selection.settings
    text = f"{m} of {counted(settings['source']['rows'], 'row')} picked"
    if selection.kept is not None:
        text += (
            f" ({counted(selection.kept, 'pick')} kept, the first {selection.unchanged} in order;"
            f" {counted(int(selection.rows_read.sum()), 'row')} read again)"
        )
    if selection.costs is not None:
        text += f", cost {selection.costs.sum():g} of {settings['budget']:g}"
    if m:
        text += f": gain {selection.gains[0]:.4g} at first and {selection.gains[-1]:.4g} at last"
    decided = int(selection.overruled.sum())
    text += f"; log det {selection.log_det:.6g}; the penalty decided {counted(decided, 'pick')}"
    if selection.near_duplicates is not None:
        text += f"; {counted(len(selection.near_duplicates), 'near-duplicate')} skipped"
    return f"{text}; stopped {_STOPPED[selection.stop_reason]}; median α‖g‖² {selection.signal:.3g}"


def as_html(selection: Selection) -> str:
    """Return the facts, what the picks are made of, the first of them and the groups as HTML."""
    facts = "".join(
        f"<tr><th>{html_text(name)}</th><td>{html_text(value)}</td></tr>" for name, value in _facts(selection)
    )
    groups, beside = _groups(selection), beside_pool(selection)
    return (
        f"<table>{facts}</table>"
        + (html_table(beside) if beside else "")
        + html_table(_first_picks(selection))
        + (f"<pre>{html_text(aligned(groups), lines=True)}</pre>" if groups else "")
    )


def _groups(selection: Selection) -> list[list[str]]:
    shown = selection.groups is not None and len(selection.quotas) <= SHOWN_GROUPS
    return group_rows(selection) if shown else []


def unfinished_facts(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is to be said of a selection's source whose extraction had not ended: nothing of others."""
    return [
        ("unfinished", f"the extraction had not ended: {there} of {counted(rows, 'row')} were there")
        for there, rows in source.get("unfinished") or []
    ]


def early_stop_facts(selection: Selection) -> list[tuple[str, str]]:
    """Return what is to be said of an early stop that did nothing, or everything: nothing of others."""
    finding = early_stop_finding(selection)
    return [] if finding is None else [("early stop", finding)]


def extended_facts(selection: Selection) -> list[tuple[str, str]]:
    """Return what is to be said of picks from a pool that has grown: nothing of others."""
    grown = selection.settings.get("extended")
    if grown is None:
        return []
    kept = f"{counted(selection.kept or 0, 'pick')} kept of the smaller pool, which had {grown['picks']}"
    return [
        (
            "extended",
            f"{kept}; {len(grown['new'])} new, the first {selection.unchanged} unchanged in order",
        )
    ]


def target_facts(selection: Selection) -> list[tuple[str, str]]:
    """Return what is to be said of the target of a selection: nothing of one without."""
    target, relevance = selection.target, selection.relevance
    if target is None or relevance is None:
        return []
    zero = (
        f" ({target.zero_rows} of them all zero, which {'does' if target.zero_rows == 1 else 'do'} not count)"
    )
    rows = f"{counted(target.rows, 'row')} of {target.name}{zero if target.zero_rows else ''}"
    facts = [("target", f"{rows}, τ = {target.weight:g}")]
    names = [""] if target.labels is None else [f"{label}: " for label in target.labels]
    for name, contrast, noise, chance in zip(
        names, target.contrast, target.noise, target.is_chance, strict=True
    ):
        beside = (
            "of one row, which says nothing of chance" if noise != noise else f"beside {noise:.3f} of chance"
        )
        weak = ": hardly more than any rows of the pool" if chance else ""
        facts.append(("contrast", f"{name}‖q‖ = {contrast:.3f} {beside}{weak}"))
    own = f"{len(target.overlap)} left out since the target has them"
    if len(target.overlap):
        shown = ", ".join(map(str, target.overlap[:SHOWN_ROWS].tolist()))
        own += f" (row {shown}{', …' if len(target.overlap) > SHOWN_ROWS else ''})"
    facts.append(
        (
            "candidates",
            f"{counted(target.candidates, 'row')}; {target.away} point away from the target, {own}",
        )
    )
    if len(relevance):
        facts.append(
            (
                "relevance",
                f"{relevance.min():.3f} to {relevance.max():.3f}, median {np.median(relevance):.3f}",
            )
        )
    return facts


def represented_facts(selection: Selection) -> list[tuple[str, str]]:
    """Return what is to be said of representative picks: nothing of others."""
    represented = selection.settings.get("represent")
    if represented is None:
        return []
    directions, dim = represented["directions"], selection.settings["source"]["dim"]
    return [
        (
            "rows",
            f"representative (γ = {represented['gamma']:g}): {counted(directions, 'direction')} of"
            f" {counted(dim, 'column')}, with {represented['energy']:.1%} of the energy",
        )
    ]


def _facts(selection: Selection) -> list[tuple[str, str]]:
    settings, m = selection.settings, len(selection)
    source = settings["source"]
    facts = [
        (
            "picks",
            f"{m} of {counted(source['rows'], 'row')} of {source['name']}, {counted(source['dim'], 'column')} of"
            f" {source['dtype']}",
        ),
        *unfinished_facts(source),
        ("method", _method(selection)),
        (
            "settings",
            f"α = {settings['alpha']:g}, λ = {settings['conflict_penalty']:g}, rows as {settings['normalize']!r}",
        ),
    ]
    if conditions := _conditions(selection):
        facts.append(("conditions", conditions))
    facts += target_facts(selection)
    facts += represented_facts(selection)
    facts.append(("stopped", selection.stop_reason))
    facts += early_stop_facts(selection)
    facts.append(("U", f"{selection.log_det:.6g} nats, log det(I + αF) of the picks"))
    if m:
        gains, base = selection.gains, float(selection.base.sum())
        half = selection.half_life
        facts.append(
            (
                "gain Δ",
                f"{gains[0]:.4g} → {gains[-1]:.4g}, "
                + (
                    f"half of the first after {counted(half, 'pick')}"
                    if half is not None
                    else "never half of the first"
                ),
            )
        )
        if base > 0:
            facts.append(("interaction", f"Σε is {selection.epsilon.sum() / base:.1%} of Σ base"))
        conflicting = int((selection.conflict > 0).sum())
        facts.append(
            (
                "conflict",
                f"mean {selection.conflict.mean():.3g}; {counted(conflicting, 'pick has', 'picks have')} any",
            )
        )
        facts.append(("penalty", f"decided {counted(int(selection.overruled.sum()), 'pick')}"))
        facts.append(
            (
                "rows read",
                f"each in a first pass, {selection.rows_read.sum()} again, {selection.rows_read.mean():.0f} per pick",
            )
        )
    facts.append(("signal", f"median α‖g‖² {selection.signal:.3g}"))
    if selection.costs is not None:
        facts.append(("cost", f"{selection.costs.sum():g} of {settings['budget']:g}"))
    if selection.compared is not None:
        facts.append(("kept run", _compared(selection.compared)))
    if selection.near_duplicates is not None:
        facts.append(("near-duplicates", f"{len(selection.near_duplicates)} skipped"))
    return [*facts, *extended_facts(selection)]


def _method(selection: Selection) -> str:
    settings = selection.settings
    text = f"{settings['method']}, {settings['fisher']} Fisher information"
    if settings["epsilon"] is not None:
        text += f", ε = {settings['epsilon']:g}"
    if settings["pool_size"] is not None:
        text += f", {counted(settings['select_per_window'], 'row')} of each window of {settings['pool_size']}"
    if settings["early_stop"] is not None:
        text += f", until Δ is {settings['early_stop']:g} of the first"
    return text


def _conditions(selection: Selection) -> str:
    settings = selection.settings
    parts = []
    for name in ("initial", "include", "exclude"):
        if settings[name] is not None:
            parts.append(f"{name} {counted(settings[name]['rows'], 'row')}")
    if selection.groups is not None:
        parts.append(counted(len(selection.quotas), "group"))
    if settings["budget"] is not None:
        parts.append(f"budget {settings['budget']:g}")
    for each in SCALARS:
        if settings[each.name] is not None:
            parts.append(f"{each.name} {settings[each.name]:g}")
    parts += [each.name for each in PER_ROW if settings[each.name] is not None]
    return ", ".join(parts)


def _compared(compared: dict[str, Any]) -> str:
    runs = [
        f"{name} U {run['log_det']:.6g} ({counted(run['picks'], 'pick')}, cost {run['cost']:g})"
        for name, run in compared.items()
        if name != "kept"
    ]
    return f"{compared['kept']}: {'; '.join(runs)}"


def _first_picks(selection: Selection) -> list[list[str]]:
    header = ["rank", "row", "gain Δ", "base", "conflict", "score", "U"]
    rows = [
        [
            str(rank),
            str(selection.indices[rank]),
            *(
                f"{values[rank]:.4g}"
                for values in (selection.gains, selection.base, selection.conflict, selection.scores)
            ),
            f"{selection.log_dets[rank]:.5g}",
        ]
        for rank in range(min(len(selection), SHOWN_PICKS))
    ]
    left = len(selection) - len(rows)
    return [header, *rows, *([[f"{left} more", *[""] * 6]] if left else [])]
