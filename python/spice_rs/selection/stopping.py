"""What is to be said of an early stop that ended nothing, or everything at once."""

from __future__ import annotations

import math

from spice_rs.selection.result import Selection


def early_stop_finding(selection: Selection) -> str | None:
    """Return a sentence about an early stop that never came, or came after the first pick; None where it did its work.

    Of a run that its time limit ended nothing is known.
    """
    omega, picks = selection.settings["early_stop"], len(selection)
    if omega is None or not picks or selection.stop_reason == "time_limit":
        return None
    if selection.stop_reason == "early_stop":
        return _at_once(selection, omega)
    # Windows that no early stop has ended have this many picks each, the last of them perhaps fewer.
    run = selection.settings["select_per_window"] or picks
    later = [rank for rank in range(picks) if rank % run >= max(1, selection.forced)]
    what = "run" if run >= picks else "window"
    if not later:
        return (
            f"early_stop={omega:g} ended no {what}: it looks at what follows the first pick, and nothing was to follow."
            " Select more rows, or leave it out."
        )
    lowest = min(later, key=lambda rank: _share(selection, rank, rank - rank % run))
    share = _share(selection, lowest, lowest - lowest % run)
    above = math.ceil(share * 1000) / 1000
    remedies = [f"raise it to {above:g} to stop there"] if above < 1 else []
    left = selection.stop_reason != "exhausted" and picks < selection.settings["source"]["rows"]
    remedies += ["select more rows"] if left else []
    last = "all rows asked for were picked" if left else "no row was left"
    return (
        f"early_stop={omega:g} ended no {what}: {last} before Δ fell to {omega:g} of the first pick's; the lowest, at rank"
        f" {lowest}, is {share:.3g} of it. {_sentence([*remedies, 'leave it out'])}"
    )


def _at_once(selection: Selection, omega: float) -> str | None:
    """Return a sentence about runs that ended with the picks they could not but make."""
    size, rows = selection.settings["pool_size"], selection.settings["source"]["rows"]
    runs = 1 if size is None else -(-rows // size)
    if len(selection) > runs * max(1, selection.forced):
        return None
    what = "the run" if size is None else "every window"
    return (
        f"early_stop={omega:g} ended {what} after the first pick: Δ of the next one was at most {omega:g} of its Δ"
        f" ({selection.gains[0]:.4g} at row {selection.indices[0]}). Lower it, or leave it out; if one row is far longer"
        " than the others, try normalize='unit'."
    )


def _share(selection: Selection, rank: int, first: int) -> float:
    """Return Δ of a pick as a part of the first pick's."""
    whole = float(selection.gains[first])
    return float(selection.gains[rank]) / whole if whole > 0 else 1.0


def _sentence(remedies: list[str]) -> str:
    text = ", ".join(remedies[:-1]) + (", or " if len(remedies) > 1 else "") + remedies[-1]
    return f"{text[0].upper()}{text[1:]}."
