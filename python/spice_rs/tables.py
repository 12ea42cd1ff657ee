"""Tables of text: for terminals, Markdown and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from spice_rs.printable import as_html, as_markdown, one_line, width

Cells = Sequence[Sequence[str]]
"""Rows of a table, the first of them the headings."""


UNKNOWN = "–"
"""What a table shows for a number that there is none of."""


def cell(value: float, form: str) -> str:
    """Return a number in this format; a dash for nan."""
    return UNKNOWN if value != value else format(value, form)


def aligned(rows: Cells, *, left: bool = False) -> str:
    """Return rows of cells as a table with a line under the first; all columns but the first to the right, or `left`."""
    shown = [[one_line(each) for each in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*shown, strict=True)]
    lines = []
    for number, row in enumerate(shown):
        cells = []
        for place, (text, wide) in enumerate(zip(row, widths, strict=True)):
            room = " " * (wide - width(text))
            cells.append(text + room if left or place == 0 else room + text)
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * wide for wide in widths))
    return "\n".join(lines)


def markdown(rows: Cells) -> str:
    """Return a table in Markdown, numbers to the right: all columns but the first."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(as_markdown, cells)) + " |"

    return "\n".join([line(rows[0]), "|---" + "|--:" * (len(rows[0]) - 1) + "|", *map(line, rows[1:])])


def html_table(rows: Cells) -> str:
    """Return a table in HTML, for notebooks."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{as_html(each)}</{tag}>" for each in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table><thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>"


def html_view(rows: Cells, *lines: str) -> str:
    """Return a table in HTML with sentences below it, for notebooks."""
    return html_table(rows) + "".join(f"<p>{as_html(each)}</p>" for each in lines)
