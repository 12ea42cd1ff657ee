"""The one table: a Markdown row per measurement, printed when it is there."""

from __future__ import annotations

COLUMNS = {
    "section": 11,
    "pool": 9,
    "n": 9,
    "d": 5,
    "k": 6,
    "λ": 4,
    "dtype": 7,
    "rows as": 7,
    "run": 22,
    "seconds": 9,
    "against": 24,
    "its s": 9,
    "ratio": 8,
    "read/pick": 9,
    "peak MB": 8,
    "note": 4,
}
"""Heading and width of each column."""

NUMERIC = {"n", "d", "k", "λ", "seconds", "its s", "ratio", "read/pick", "peak MB"}

READING = """\
- seconds: one call of `spice_rs.select`, in a process of its own, opening the (mapped) file included; the pool has just
  been written and lies in the page cache.
- its s: the peer's seconds or the limit; ratio = its s / seconds: above 1 we are faster than the peer, or within the limit.
- read/pick: rows evaluated per pick, the run's first pick (which sees every row) left out.
- peak MB: most anonymous memory (RssAnon, read every 5 ms; 1 MB = 10⁶ bytes) of our process, the interpreter and numpy
  included; pages of the mapped pool are not in it.
- picks that are ours: the same rows in both sets; float32 breaks the ties of unit rows at will, and each choice leads on.
- BUSY: other programs took the named share of the machine's processor time meanwhile; measure such a row again.
"""


def heading() -> str:
    """Return the two lines above the rows."""
    names = " | ".join(name.ljust(width) for name, width in COLUMNS.items())
    rules = "|".join("-" * (width + 1) + (":" if name in NUMERIC else "-") for name, width in COLUMNS.items())
    return f"| {names} |\n|{rules}|"


def line(**cells: object) -> str:
    """Return one row; numbers get the digits that mean something, what is missing stays empty."""
    shown = {name: _text(value) for name, value in cells.items()}
    unknown = shown.keys() - COLUMNS.keys()
    if unknown:
        raise KeyError(f"no such column: {sorted(unknown)}")
    aligned = (
        shown.get(name, "").rjust(width) if name in NUMERIC else shown.get(name, "").ljust(width)
        for name, width in COLUMNS.items()
    )
    return "| " + " | ".join(aligned) + " |"


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        decimals = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 1 else 4
        return f"{value:,.{decimals}f}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", "/")
