"""The report: one file with everything in it, and plots of what it says."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
import types
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import oracle
import pools
import spice_rs
from command import run
from spice_rs.analysis.inputs import SelectionInputs
from spice_rs.analysis.pool_map import pool_map
from spice_rs.analysis.random_sets import random_sets
from spice_rs.analysis.replay import Replay
from spice_rs.analysis.sweep import sweep
from spice_rs.selection.from_file import read_selection

pytest.importorskip("matplotlib")
from spice_rs.report import page as page_module
from spice_rs.report import plots


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spice_rs.SpiceWarning)
        yield


@pytest.fixture
def pool(tmp_path):
    """A store with gaps in its numbering, out of order, and its data."""
    rows = pools.law("opposed", 80, 8, 3)
    order = np.random.default_rng(5).permutation(80)
    with spice_rs.GradientStore.create(
        tmp_path / "store", dim=8, dtype="float32", reduction="mean"
    ) as writer:
        writer.append(rows[order], index=2 * order, num_tokens=(order + 1).astype(np.int32))
    records = [
        {"source": ["<maths>", "chat & more"][i // 2 % 2], "instruction": f"do <b>{i}</b>", "response": "x"}
        for i in range(160)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


class Outline(html.parser.HTMLParser):
    """Tags that are open, text of table cells, addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.cells, self.addresses, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "path", "use", "rect", "line", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.addresses += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith("#")
        ]

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def outline(path):
    found = Outline()
    found.feed(path.read_text(encoding="utf-8"))
    assert not found.open
    return found


@pytest.mark.slow
def test_the_page_holds_everything_and_needs_nothing(pool):
    sel = spice_rs.select(pool / "store", 9, conflict_penalty=0.5)
    out = pool / "report.html"
    found = spice_rs.write_report(sel, pool / "store", out, data=str(pool / "pool.jsonl"))
    page, text = outline(out), out.read_text(encoding="utf-8")
    assert "script" not in page.tags
    assert not page.addresses
    assert "url(http" not in text
    assert page.tags.count("svg") == 9
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    ids = re.findall(r'<clipPath id="(.*?)"', text)
    assert len(ids) == len(set(ids))
    for row in sel.indices.tolist():
        assert str(row) in page.cells
        label = ["<maths>", "chat & more"][row // 2 % 2]
        assert f"{label} · do <b>{row}</b> · x" in page.cells
    assert f"{sel.log_det:.6g} nats" in page.cells
    assert page.cells[page.cells.index("<maths>") + 1] == "40"
    assert found.stepwise.averages()["overlap_gain"][2] > 0


def test_a_figure_is_always_the_same_svg():
    rows = pools.law("opposed", 30, 5, 6)
    found = spice_rs.analyze(spice_rs.select(rows, 6), rows)
    first, second = (page_module.svg(plots.gain_decay(found), 0) for _ in range(2))
    assert first == second


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not drawn, which takes most of the time."""
    monkeypatch.setattr(page_module, "svg", lambda figure, number: f"<svg id=f{number}></svg>")


def test_conditions_and_windows_have_pages_too(pool, undrawn):
    given = {"data": str(pool / "pool.jsonl"), "groups": "source", "exclude": [2, 4]}
    sel = spice_rs.select(pool / "store", 8, **given)
    spice_rs.write_report(sel, pool / "store", pool / "r.html", **given)
    page = outline(pool / "r.html")
    assert "group" in page.cells
    assert page.tags.count("svg") == 7
    with pytest.raises(spice_rs.InvalidInputError, match="sweeps: found it"):
        spice_rs.write_report(sel, pool / "store", pool / "r.html", **given, sweeps=True)
    windows = spice_rs.select(pool / "store", pool_size=20, select_per_window=2)
    spice_rs.write_report(windows, pool / "store", pool / "w.html", sweeps=False)
    assert outline(pool / "w.html").tags.count("svg") == 4


def test_the_certificate_is_on_the_page(pool, undrawn, monkeypatch):
    asked = []

    def certify(selection, source, **given):
        asked.append(given)
        return types.SimpleNamespace(ratio=0.87654)

    monkeypatch.setattr(page_module, "certify", certify)
    weights = np.linspace(0.5, 2, 159)
    sel = spice_rs.select(pool / "store", 5, weights=weights, initial=[6])
    spice_rs.write_report(sel, pool / "store", pool / "r.html", weights=weights, initial=[6])
    assert "at least <b>0.8765</b>" in (pool / "r.html").read_text()
    assert asked[0]["weights"] is weights
    assert asked[0]["initial"] == [6]


def test_the_command_takes_saved_selections_and_picks(pool, capsys, undrawn):
    assert (
        run(
            "select",
            pool / "store",
            "-k",
            6,
            "--alpha",
            2,
            "--out",
            pool / "p.jsonl",
            "--save",
            pool / "s.safetensors",
        )
        == 0
    )
    capsys.readouterr()
    flags = ("--no-sweeps", "--data", pool / "pool.jsonl")
    assert run("report", pool / "s.safetensors", pool / "store", "--out", pool / "a.html", *flags) == 0
    shown = capsys.readouterr().out
    assert "half-life of the gain" in shown
    assert outline(pool / "a.html").tags.count("svg") == 7
    assert run("explain", pool / "s.safetensors", pool / "store", 2) == 0
    reason = capsys.readouterr().out
    assert run("explain", pool / "p.jsonl", pool / "store", 2, "--alpha", 2) == 0
    assert capsys.readouterr().out == reason
    assert run("report", pool / "p.jsonl", pool / "store", "--out", pool / "c.html", *flags) == 2
    assert "gain of rank 0" in capsys.readouterr().err
    assert not (pool / "c.html").exists()
    assert run("report", pool / "s.safetensors", pool / "store", "--out", pool / "no" / "c.html") == 2
    assert (
        run("report", pool / "s.safetensors", pool / "store", "--data", pool / "pool.jsonl", "--column", "x")
        == 2
    )
    assert "found no 'x' in record 0" in capsys.readouterr().err


def test_a_selection_made_again_of_its_picks_is_the_same(pool):
    sel = spice_rs.select(pool / "store", 7, conflict_penalty=0.7)
    (pool / "rows.txt").write_text("".join(f"{row}\n" for row in sel.indices))
    again = read_selection(pool / "rows.txt", pool / "store", conflict_penalty=0.7)
    for name in ("indices", "gains", "base", "conflict", "scores", "log_dets"):
        assert getattr(again, name).tolist() == getattr(sel, name).tolist()
    assert not np.isnan(spice_rs.analyze(again, pool / "store").margin).any()


@pytest.mark.slow
def test_lists_of_picks_are_held_to_their_scores_too(pool, undrawn):
    sel = spice_rs.select(pool / "store", 40, conflict_penalty=0.9)
    assert sel.conflict.any()
    sel.to_jsonl(pool / "list.jsonl")
    with pytest.raises(spice_rs.StoreMismatchError, match="score of rank .*conflict_penalty=0.1"):
        read_selection(pool / "list.jsonl", pool / "store")
    again = read_selection(pool / "list.jsonl", pool / "store", conflict_penalty=0.9)
    assert again.scores.tolist() == sel.scores.tolist()
    spice_rs.write_report(again, pool / "store", pool / "list.html", sweeps=False)
    assert "picks decided by the penalty" not in outline(pool / "list.html").cells
    (pool / "none.jsonl").write_text("")
    with pytest.raises(spice_rs.InvalidInputError, match="none.jsonl: found no picks"):
        read_selection(pool / "none.jsonl", pool / "store")


def test_a_sweep_leaves_out_what_is_out_of_range(undrawn, tmp_path):
    rows = pools.law("unit", 40, 6, 1) * 9e5  # α‖g‖² ≈ 8·10¹¹: ten times α is as far as it goes
    sel = spice_rs.select(rows, 5)
    found = sweep(sel, rows, "alpha")
    assert found.values.max() == 10
    assert len(found.values) == len(found.log_det) == 7
    spice_rs.write_report(sel, rows, tmp_path / "r.html")
    with pytest.raises(spice_rs.InvalidInputError, match="alpha: found 100"):
        sweep(sel, rows, "alpha", values=[100.0])


def test_a_page_does_without_a_certificate_that_does_not_fit(pool, undrawn, monkeypatch):
    def certify(*_, **__):
        raise spice_rs.InvalidInputError("source: found too much, expected less. Project it.")

    monkeypatch.setattr(page_module, "certify", certify)
    sel = spice_rs.select(pool / "store", 5)
    spice_rs.write_report(sel, pool / "store", pool / "r.html", sweeps=False)
    assert "found too much" in (pool / "r.html").read_text()


def test_a_column_without_data_is_refused(pool):
    with pytest.raises(spice_rs.InvalidInputError, match="column: found 'topic' without data"):
        spice_rs.write_report(
            spice_rs.select(pool / "store", 3), pool / "store", pool / "r.html", column="topic"
        )


def test_random_sets_have_their_own_log_det():
    rows = pools.law("clustered", 60, 7, 2).astype(np.float64)
    weights = np.random.default_rng(0).uniform(0.5, 2, 60)
    sel = spice_rs.select(rows, 12, alpha=0.5, weights=weights, initial=[3], exclude=[5])
    replay = Replay(sel, rows, SelectionInputs(weights=weights, initial=[3], exclude=[5]))
    found = random_sets(replay, sets=2, seed=4)
    draws = np.random.default_rng(4)
    candidates = np.setdiff1d(np.arange(60), [3, 5])
    for number in range(2):
        drawn = draws.choice(candidates, 12, replace=False)
        for at, size in enumerate(found.sizes.tolist()):
            held = [3, *drawn[:size]]
            expected = oracle.log_det(rows[held] * np.sqrt(weights[held])[:, None], 0.5)
            assert found.log_dets[number, at] == pytest.approx(expected, rel=1e-10)
    assert found.sizes[-1] == 12


@pytest.mark.parametrize("shape", [(50, 6), (20, 90), (5, 1), (1, 3)])
def test_the_map_is_principal_components(shape):
    rows = np.random.default_rng(1).standard_normal(shape) * np.linspace(3, 1, shape[1])
    sel = spice_rs.select(rows, min(4, len(rows)))
    found = pool_map(Replay(sel, rows))
    centred = rows - rows.mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    whole = (singular**2).sum()
    for axis in range(min(2, len(singular))):
        if whole > 1e-12:
            assert found.shares[axis] == pytest.approx(singular[axis] ** 2 / whole, abs=1e-12)
            assert np.linalg.norm(found.pool[:, axis]) == pytest.approx(singular[axis], abs=1e-9)
    assert found.picks == pytest.approx(found.pool[sel.indices], abs=1e-12)


def test_a_sweep_is_select_with_other_settings():
    rows = pools.law("opposed", 70, 8, 1)
    sel = spice_rs.select(rows, 10, alpha=2.0, conflict_penalty=0.3)
    found = sweep(sel, rows, "alpha", values=[0.1, 2.0, 20.0])
    for at, value in enumerate([0.1, 2.0, 20.0]):
        again = spice_rs.select(rows, 10, alpha=value, conflict_penalty=0.3)
        assert found.log_det[at] == pytest.approx(oracle.log_det(rows[again.indices], 2.0))
        assert found.shared[at] == len(set(again.indices) & set(sel.indices)) / 10
        assert found.conflict[at] == pytest.approx(again.conflict.mean())
    assert found.shared[1] == 1.0
    with pytest.raises(spice_rs.InvalidInputError, match="setting: found 'k'"):
        sweep(sel, rows, "k")


def test_every_plot_names_its_axes_and_draws_its_numbers():
    rows = pools.law("opposed", 90, 8, 6)
    sel = spice_rs.select(rows, 12, conflict_penalty=0.5)
    found, replay = spice_rs.analyze(sel, rows), Replay(sel, rows)
    labels = [f"source {i % 15}" for i in range(90)]
    lengths = np.arange(1, 91)
    left = found.candidates
    figures = {
        "gain": plots.gain_decay(found),
        "conflict": plots.conflict_against_gain(found),
        "information": plots.information(sel, random_sets(replay)),
        "shares": plots.group_shares(labels, sel.indices, name="source"),
        "lengths": plots.length_distribution(lengths, sel.indices),
        "norms": plots.norm_against_length(left["norm"], lengths[left["index"]], left["picked"]),
        "map": plots.map_of_pool(pool_map(replay)),
        "sweep": plots.sweep_of_setting(sweep(sel, rows, "conflict_penalty", values=[0, 0.5])),
    }
    for name, figure in figures.items():
        axes = figure.axes[0]
        assert axes.get_xlabel(), name
        assert axes.get_ylabel() or name == "shares"
        assert axes.get_title(loc="left")
        assert figure.legends
    lines = {line.get_label().split(":")[0]: line.get_ydata() for line in figures["gain"].axes[0].get_lines()}
    assert lines["base"].tolist() == sel.base.tolist()
    assert lines["gain Δ = base + ε"].tolist() == sel.gains.tolist()
    assert figures["information"].axes[0].get_lines()[0].get_ydata().tolist() == sel.log_dets.tolist()
    bars = figures["shares"].axes[0].containers
    assert sum(bar.get_width() for bar in bars[0]) == pytest.approx(100)
    assert sum(bar.get_width() for bar in bars[1]) == pytest.approx(100)
    assert len(bars[0]) == plots.MOST_LABELS + 1
    # Dark and light tell pool and picks apart without colour.
    grey = [0.3 * r + 0.59 * g + 0.11 * b for r, g, b, _ in (bar[0].get_facecolor() for bar in bars)]
    assert abs(grey[0] - grey[1]) > 0.4


def test_without_matplotlib_the_package_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, spice_rs\n"
        "rows = np.random.default_rng(0).standard_normal((20, 3))\n"
        "sel = spice_rs.select(rows, 3)\n"
        "spice_rs.analyze(sel, rows)\n"
        "try: spice_rs.write_report(sel, rows, 'never.html')\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'spice-rs[report]'" in done.stdout, done.stderr


def test_importing_the_package_imports_no_matplotlib():
    code = "import sys, spice_rs; print(any(name.split('.')[0] in ('matplotlib', 'torch') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
