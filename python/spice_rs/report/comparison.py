"""A comparison of methods as tables: plain text, Markdown, HTML, and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spice_rs.nouns import counted
from spice_rs.printable import as_html as html_text
from spice_rs.printable import as_markdown as markdown_text
from spice_rs.printable import one_line
from spice_rs.tables import Cells, aligned, html_table, markdown

if TYPE_CHECKING:
    from spice_rs.analysis.comparison import ComparedMethod, Comparison

MOST_GROUPS = 10
"""Groups that get a column of their own; the shares of all others are summed."""


def as_text(comparison: Comparison) -> str:
    """Return plain text."""
    parts = [f"{title}\n\n{aligned(cells)}" for title, cells in _tables(comparison)]
    return "\n\n".join([*parts, *map(one_line, comparison.notes)])


def as_markdown(comparison: Comparison) -> str:
    """Return Markdown."""
    parts = [f"**{markdown_text(title)}**\n\n{markdown(cells)}" for title, cells in _tables(comparison)]
    return "\n\n".join([*parts, *map(markdown_text, comparison.notes)]) + "\n"


def as_html(comparison: Comparison) -> str:
    """Return HTML for a notebook."""
    parts = [f"<p><b>{html_text(title)}</b></p>{html_table(cells)}" for title, cells in _tables(comparison)]
    return "".join([*parts, *(f"<p>{html_text(note)}</p>" for note in comparison.notes)])


def columns_of(comparison: Comparison) -> dict[str, npt.NDArray[Any]]:
    """Return columns by name."""
    rows = comparison.rows
    columns: dict[str, npt.NDArray[Any]] = {
        "method": np.array([row.method for row in rows], object),
        "picks": np.array([row.picks for row in rows], np.int64),
    }
    for name in ("log_det", "against_random", "certificate"):
        columns[name] = _numbers(rows, lambda row, name=name: getattr(row, name))
    for scale in rows[0].log_dets:
        columns[f"log_det_{scale}"] = _numbers(rows, lambda row, scale=scale: row.log_dets[scale])
    for name in ("conflict", "half_life"):
        columns[name] = _numbers(rows, lambda row, name=name: getattr(row, name))
    for label in rows[0].shares:
        columns[f"share_{label}"] = _numbers(rows, lambda row, label=label: row.shares[label])
    for name in ("median_length", "total_length", "relevance", "seconds"):
        columns[name] = _numbers(rows, lambda row, name=name: getattr(row, name))
    return columns


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return plain JSON types."""
    pool = {**vars(comparison.pool), "shares": _named(comparison.pool.shares)}
    return {
        "settings": comparison.settings,
        "pool": pool,
        "methods": [{**vars(row), "shares": _named(row.shares)} for row in comparison.rows],
        "overlap": comparison.overlap.tolist(),
        "notes": comparison.notes,
    }


def _named(shares: dict[Any, float]) -> dict[str, float]:
    return {str(label): share for label, share in shares.items()}


def _numbers(rows: list[ComparedMethod], value: Any) -> npt.NDArray[np.float64]:
    found = [value(row) for row in rows]
    return np.array([np.nan if number is None else number for number in found], np.float64)


def _tables(comparison: Comparison) -> list[tuple[str, Cells]]:
    """Return (title, rows of cells) of each table; what is not known for any method has no column."""
    settings = comparison.settings
    title = (
        f"{settings['k']} of {counted(comparison.pool.rows, 'row')}, α = {settings['alpha']:g},"
        f" λ = {settings['conflict_penalty']:g}, rows as {settings['normalize']!r}"
    )
    tables = [(title, _measures(comparison))]
    if comparison.pool.shares:
        tables.append(("Share of each group", _shares(comparison)))
    if len(comparison) > 1:
        tables.append(("Shared picks, |A∩B|/|A∪B|", _overlaps(comparison)))
    return tables


def _measures(comparison: Comparison) -> Cells:
    rows, unit = comparison.rows, comparison.settings["length_unit"]
    columns: list[tuple[str, list[str]]] = [
        ("method", [row.method for row in rows]),
        ("picks", [str(row.picks) for row in rows]),
        ("U", [_digits(row.log_det) for row in rows]),
        ("U/random", [_ratio(row.against_random) for row in rows]),
        ("U/bound", [_ratio(row.certificate) for row in rows]),
        *((f"U ({scale})", [_digits(row.log_dets[scale]) for row in rows]) for scale in rows[0].log_dets),
        ("relevance", [_ratio(row.relevance) for row in rows]),
        ("conflict", [f"{row.conflict:.3f}" for row in rows]),
        ("half-life", [_half_life(row) for row in rows]),
        (f"median {unit}", [_whole(row.median_length) for row in rows]),
        (f"total {unit}", [_whole(row.total_length) for row in rows]),
        ("seconds", [_digits(row.seconds) for row in rows]),
    ]
    known = [(name, cells) for name, cells in columns if any(cell != "-" for cell in cells)]
    pool = {
        "method": "(pool)",
        "picks": str(comparison.pool.rows),
        "relevance": _ratio(comparison.pool.relevance),
        f"median {unit}": _whole(comparison.pool.median_length),
        f"total {unit}": _whole(comparison.pool.total_length),
    }
    return [
        [name for name, _ in known],
        *([cells[i] for _, cells in known] for i in range(len(rows))),
        [pool.get(name, "") for name, _ in known],
    ]


def _shares(comparison: Comparison) -> Cells:
    pool = comparison.pool.shares
    labels = sorted(pool, key=lambda label: -pool[label])
    shown, rest = labels[:MOST_GROUPS], labels[MOST_GROUPS:]

    def line(name: str, shares: dict[Any, float]) -> list[str]:
        others = [f"{sum(shares[label] for label in rest):.1%}"] if rest else []
        return [name, *(f"{shares[label]:.1%}" for label in shown), *others]

    more = [f"({len(rest)} others)"] if rest else []
    return [
        ["method", *map(str, shown), *more],
        *(line(row.method, row.shares) for row in comparison.rows),
        line("(pool)", pool),
    ]


def _overlaps(comparison: Comparison) -> Cells:
    names = [row.method for row in comparison.rows]
    lines = [
        [name, *(f"{value:.2f}" for value in values)]
        for name, values in zip(names, comparison.overlap.tolist(), strict=True)
    ]
    return [["", *names], *lines]


def _digits(value: float) -> str:
    """Return a number with the decimals that mean something."""
    size = abs(value)
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:.{decimals}f}"


def _half_life(row: ComparedMethod) -> str:
    return f"> {row.picks - 1}" if row.half_life is None else str(row.half_life)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
