"""One HTML file about a selection: plots, tables, settings; nothing outside the file is needed to read it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spice_rs._core import __version__
from spice_rs.analysis.certificate import certify
from spice_rs.analysis.inputs import SelectionInputs, takes_inputs
from spice_rs.analysis.picks import analyze
from spice_rs.analysis.pool_map import pool_map
from spice_rs.analysis.random_sets import Chance, random_sets
from spice_rs.analysis.replay import Replay
from spice_rs.analysis.result import Analysis
from spice_rs.analysis.stepwise import NAMES, NO_STEPS
from spice_rs.analysis.sweep import sweep
from spice_rs.arguments import flag_or_none, shown, text_or_none
from spice_rs.atomic import check_place, replacing
from spice_rs.data.excerpt import excerpt
from spice_rs.data.matching import raw_records, spread
from spice_rs.data.row_set import RowSet
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.nouns import counted
from spice_rs.paths import local
from spice_rs.printable import as_html
from spice_rs.progress import Progress
from spice_rs.report import plots
from spice_rs.report.shares import beside_pool, composition_rows
from spice_rs.report.summary import (
    early_stop_facts,
    extended_facts,
    represented_facts,
    target_facts,
    unfinished_facts,
)
from spice_rs.selection.arguments import count_or_none
from spice_rs.selection.constraints import KEYS
from spice_rs.selection.result import Selection, as_selection
from spice_rs.tables import cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

SHOWN_PICKS = 100
"""Picks in the table."""

MOST_GROUPS = 50
"""Groups that a table of shares shows."""

EXCERPT = 160
"""Letters of a record in the table."""

MOST_SWEPT = 2e8
"""Cells of the source up to which other λ and α are tried unless the caller says otherwise."""

PAPER = {"conflict_gain": "−0.79", "conflict_epsilon": "0.90"}
"""What the paper reports (arXiv 2601.23155)."""

Table = Sequence[Sequence[object]]


@takes_inputs
def write_report(
    selection: Selection,
    source: Any,
    out: str | os.PathLike[str],
    *,
    column: str | None = None,
    sweeps: bool | None = None,
    steps: int | None = None,
    progress: Progress = None,
    dim: int | None = None,
    dtype: str | None = None,
    **given: Unpack[SelectionInputs],
) -> Analysis:
    """Write an HTML page about a selection, with plots as SVG inside it, and return the analysis behind it.

    Args:
        selection: the picks.
        source: what they were picked from, as for `spice_rs.select`.
        out: the HTML file; replaced if it is there.
        data: what the source was extracted from: records are shown beside their picks, and columns can be named.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        groups: as `select` had it, as for `spice_rs.analyze`.
        **given: as `select` had them: see `SelectionInputs`.
        column: column of `data` whose values are compared between pool and picks; by default the one that `groups`
            names, or "source" where the records have it.
        sweeps: whether to select again with other λ and α; by default for sources of up to 2·10⁸ cells and
            selections without conditions.
        steps: as for `spice_rs.analyze`.
        progress: show a bar, or do not; by default where a person can see it.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: an argument cannot be used, or is not what the selection was made with.
        StoreMismatchError: the source is not what was selected from.
        ModuleNotFoundError: matplotlib is not installed.
    """
    out, steps, sweeps = local(out, "out"), count_or_none("steps", steps), flag_or_none("sweeps", sweeps)
    column, progress = text_or_none("column", column), shown(progress)
    selection = as_selection(selection)
    check_place(out)
    plots.check_installed()
    replay = Replay(selection, source, given, dim=dim, dtype=dtype)
    groups = given.get("groups")
    labels, records = _records(
        replay,
        given.get("data"),
        column or (groups if isinstance(groups, str) else None),
        given.get("index_column"),
    )
    shape: dict[str, Any] = {"dim": dim, "dtype": dtype}
    found = analyze(selection, source, **given, steps=steps, progress=progress, **shape)
    conditions = [key for key in KEYS if selection.settings[key] is not None]
    if sweeps and conditions:
        raise InvalidInputError(
            f"sweeps: found it for picks made with {', '.join(conditions)}, expected picks without conditions. Leave"
            " it out."
        )
    if sweeps is None:
        sweeps = not conditions and replay.source.rows * replay.source.dim <= MOST_SWEPT
    windowed = selection.settings["pool_size"] is not None
    chance = None if windowed else random_sets(replay)
    sections = [_overview(found, chance)]
    if (certificate := _certificate(selection, source, given, shape, progress)) is not None:
        sections.append(certificate)
    figures = [plots.gain_decay(found), plots.conflict_against_gain(found)]
    if chance is not None:
        figures.append(plots.information(selection, chance))
    if labels is not None:
        figures.append(plots.group_shares(labels[1], _places(replay), name=labels[0]))
    tokens = replay.source.num_tokens
    if tokens is not None:
        figures.append(plots.length_distribution(tokens[replay.order], _places(replay)))
        if found.candidates is not None and selection.settings["normalize"] != "unit":  # these have one norm
            places = replay.source.positions(found.candidates["index"])
            figures.append(
                plots.norm_against_length(
                    found.candidates["norm"], tokens[places], found.candidates["picked"]
                )
            )
    figures.append(plots.map_of_pool(pool_map(replay)))
    if sweeps:
        for setting in ("conflict_penalty", "alpha"):
            figures.append(
                plots.sweep_of_setting(
                    sweep(selection, source, setting, progress=progress, dim=dim, dtype=dtype)
                )
            )
    sections.append(
        "<div class=figures>"
        + "".join(svg(figure, number) for number, figure in enumerate(figures))
        + "</div>"
    )
    if labels is not None:
        sections.append(_composition(replay, *labels))
    sections.append(_correlations(found))
    sections.append(_picks(found, records))
    sections.append(_settings(selection))
    text = _PAGE.format(
        title=as_html(f"Selection from {selection.settings['source']['name']}"),
        body="\n".join(sections),
        version=__version__,
    )
    with replacing(out) as file:
        file.write(text.encode())
    return found


# --- parts of the page --------------------------------------------------------------------------------------------


def _overview(found: Analysis, chance: Chance | None) -> str:
    of = found.selection
    half = "beyond the last pick" if found.half_life is None else counted(found.half_life, "pick")
    source = of.settings["source"]
    rows: list[tuple[object, ...]] = [
        ("picks", f"{len(of)} of {counted(source['rows'], 'row')}; stopped: {of.stop_reason}"),
        *early_stop_facts(of),
        *unfinished_facts(source),
        *extended_facts(of),
        *target_facts(of),
        *represented_facts(of),
        ("U = log det(I + αF)", f"{of.log_det:.6g} nats"),
    ]
    if chance is not None:
        last = chance.log_dets[:, -1]
        rows.append(
            (
                "U of random sets",
                f"{last.mean():.6g} (mean of {len(last)}; {last.min():.6g} to {last.max():.6g})",
            )
        )
    rows += [
        ("gain Δ, first and last pick", f"{of.gains[0]:.4g} and {of.gains[-1]:.4g} nats"),
        ("half-life of the gain", half),
        ("median α‖g‖² of the pool", f"{of.signal:.3g}"),
        (
            "picks with any conflict",
            f"{(of.conflict > 0).mean():.1%}; mean conflict {of.conflict.mean():.4f}",
        ),
        *(
            []
            if "remade" in of.settings
            else [("picks decided by the penalty", f"{int(of.overruled.sum())}")]
        ),
        ("median margin over the runner-up", cell(found.medians()["margin"], ".4g")),
    ]
    notes = "".join(f"<p class=note>{as_html(note)}</p>" for note in found.notes)
    beside = beside_pool(of)
    return (
        _table("", rows, header=False) + (_table("Picks beside the pool", beside) if beside else "") + notes
    )


def _certificate(
    selection: Selection, source: Any, given: SelectionInputs, shape: dict[str, Any], progress: Progress
) -> str | None:
    """Return what is proven of U, where that can be had; see `spice_rs.certify`."""
    if selection.settings["pool_size"] is not None:  # windows have a k of their own
        return None
    weights = given.get("weights")
    names = ("weights", "initial", *(("data", "index_column") if isinstance(weights, str) else ()))
    again: dict[str, Any] = {name: given.get(name) for name in names}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpiceWarning)  # of what was said already
            ratio = float(certify(selection, source, **again, progress=progress, **shape).ratio)
    except InvalidInputError as error:  # its matrices do not fit: the rest of the page does
        return f"<h2>Certificate</h2><p class=note>{as_html(str(error))}</p>"
    return (
        f"<h2>Certificate</h2><p>U of the picks is at least <b>{ratio:.4f}</b> of the largest U that any"
        f" {counted(len(selection), 'row has', 'rows have')}. This is about U alone: no guarantee is known for the score"
        " with a penalty.</p>"
    )


def _composition(replay: Replay, name: str, labels: list[object]) -> str:
    """Return a table of shares, unless there are more groups than anybody reads."""
    if len(set(map(str, labels))) > MOST_GROUPS:
        return ""
    tokens = replay.source.num_tokens
    lengths = np.zeros(replay.source.rows) if tokens is None else tokens[replay.order]
    rows = composition_rows([str(label) for label in labels], lengths, _places(replay))
    shown = [at for at in range(len(rows[0])) if tokens is not None or at not in (3, 6)]
    return _table(f"By {name}", [[row[at] for at in shown] for row in rows])


def _correlations(found: Analysis) -> str:
    if not len(found.stepwise.ranks):
        return f"<p class=note>{as_html(NO_STEPS)}</p>"
    header = ("pair", "mean over steps", "median", "steps", "paper")
    rows: list[tuple[object, ...]] = [header]
    for name, (mean, median, steps) in found.stepwise.averages().items():
        rows.append((NAMES[name], cell(mean, ".3f"), cell(median, ".3f"), steps, PAPER.get(name, "")))
    text = _table("Spearman’s ρ over the candidates, step by step", rows)
    if found.theorem4 is not None and found.theorem4.checked:
        ratios = found.theorem4
        known = ratios.median[np.isfinite(ratios.median)]
        middle = f"{np.median(known):.3g}" if len(known) else "not defined"
        text += (
            "<p class=note>Theorem 4 with C = 1, |ε| ≤ α²Σ(gᵀg<sub>y</sub>)²/(1 + α‖g‖²): median of |ε| over the bound"
            f" {middle}, {counted(ratios.violations, 'violation')} in {counted(ratios.checked, 'pair')} of row and"
            " step.</p>"
        )
    return text


def _picks(found: Analysis, records: dict[int, Any]) -> str:
    frame = found.to_dict()
    columns = ["rank", "index", "gain", "base", "conflict", "score", "margin", "runner_up"]
    columns += ["nearest", "nearest_cosine", *(name for name in ("group", "num_tokens") if name in frame)]
    header: list[object] = [name.replace("_", " ") for name in columns]
    rows: list[list[object]] = [header + (["record"] if records else [])]
    for at in range(min(len(found), SHOWN_PICKS)):
        cells: list[object] = []
        for name in columns:
            value = frame[name][at]
            alone = name in ("conflict", "nearest_cosine") and frame["nearest"][at] == -1
            absent = alone or (name in ("nearest", "runner_up") and value == -1) or value != value
            cells.append("" if absent else f"{value:.4g}" if isinstance(value, np.floating) else value)
        if records:
            record = records.get(int(frame["index"][at]), {})
            cells.append(_excerpt(record) or excerpt(record))
        rows.append(cells)
    more = f" (the first {SHOWN_PICKS} of {len(found)})" if len(found) > SHOWN_PICKS else ""
    return _table(f"Picks{more}", rows)


def _settings(selection: Selection) -> str:
    rows: list[tuple[object, ...]] = []
    for name, value in selection.settings.items():
        inner = value if isinstance(value, dict) else {"": value}
        rows += [(f"{name} {key}".strip(), _excerpt(each)) for key, each in inner.items() if each is not None]
    return _table("Settings", rows, header=False)


def _excerpt(value: Any) -> str:
    if isinstance(value, dict):
        value = " · ".join(str(each) for each in value.values() if isinstance(each, str | int | float))
    text = " ".join(str(value).split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _table(title: str, rows: Table, *, header: bool = True) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if header and number == 0 else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{as_html(cell)}</{tag}>" for cell in row) + "</tr>")
    heading = f"<h2>{as_html(title)}</h2>" if title else ""
    return f"{heading}<div class=wide><table>{''.join(lines)}</table></div>"


def svg(figure: Figure, number: int) -> str:
    """A figure as SVG of a page, the same each time; `number` keeps its ids apart from those of the others."""
    import matplotlib

    drawn = io.StringIO()
    # Ids are hashes: with a salt of its own no figure refers to the parts of another, and a page is always the same.
    with matplotlib.rc_context({"svg.hashsalt": f"spice-rs {number}", "svg.fonttype": "path"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    title = as_html(figure.axes[0].get_title(loc="left").replace(r"\$", "$"))  # see `as_plot`
    start = text.index("<svg")
    return f'<figure role=img aria-label="{title}">{text[start:]}</figure>'


# --- what the data adds -------------------------------------------------------------------------------------------


def _places(replay: Replay) -> Any:
    """Return where the picks are in the order of the dataset rows."""
    place = np.empty(replay.source.rows, np.int64)
    place[replay.order] = np.arange(replay.source.rows)
    return place[replay.picks]


def _records(
    replay: Replay, data: Any, column: str | None, index_column: str | None
) -> tuple[tuple[str, list[object]] | None, dict[int, Any]]:
    """Return (name and values of a column for the rows in the order of the dataset, records of the picks shown)."""
    if data is None and column is not None:
        raise InvalidInputError(
            f"column: found {column!r} without data, expected both. Give the data that the source was made from."
        )
    if data is None:
        return None, {}
    shown = set(replay.selection.indices[:SHOWN_PICKS].tolist())
    rows = replay.order if replay.source.index is None else replay.source.index[replay.order]
    wanted = RowSet(rows)
    name, values, records = column or "source", {}, {}
    same: dict[str, str] = {}  # each text once
    checked = shown.union(spread(rows))
    for row, record in raw_records(
        data, wanted, replay.source.belonging, index_column=index_column, checked=checked
    ):
        if row in shown:
            records[row] = record
        if name in record:
            value = record[name]
            values[row] = same.setdefault(value, value) if isinstance(value, str) else value
        elif column is not None:
            raise InvalidInputError(
                f"column: found no {column!r} in record {row} of the data, expected it in every record. Name a column that"
                " all rows have."
            )
    if column is not None and len(values) < len(wanted):
        raise InvalidInputError(
            f"data: found {len(values)} of {counted(len(wanted), 'record')}, expected one for every row. Give the"
            " data that the"
            " gradients were extracted from."
        )
    labels = [values.get(row, "") for row in rows.tolist()]
    return ((name, labels) if len(values) == len(wanted) else None), records


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #111; max-width: 1320px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.1em; margin-top: 1.8em }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 1em }}
figure {{ margin: 0 }} figure svg {{ width: 100%; height: auto }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }}
th, td {{ padding: 2px 10px 2px 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }}
.note, footer {{ color: #555; font-size: 13px }}
@media print {{ figure, tr {{ break-inside: avoid }} }}
</style></head><body>
<h1>{title}</h1>
{body}
<footer><p>Written by spice-rs {version}. All logarithms are natural.</p></footer>
</body></html>
"""
