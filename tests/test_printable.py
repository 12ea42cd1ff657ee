"""Whatever labels, names and records hold: people are shown it and nothing obeys it; machines get it as it is."""

from __future__ import annotations

import contextlib
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pools
import spice_rs
from command import run
from counts import cases
from spice_rs import printable, tables
from spice_rs.errors import InvalidInputError, SpiceWarning

ROWS = pools.law("clustered", 24, 6, 3).astype(np.float32)
NASTY = [
    "\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "a\rb", "a\nb", "a\tb", "nul\0", "back\b\b", "\x7f", "\x85",
    "\u202egnp.exe", "\u2066x\u2069", "\u200b", "\u200f", "\u2028", "\u2029", "\ufeff", "\ud83d", "\udcff",
    "$\\frac{$", "$", "$x$", "a_b^c", "a|b", "`code`", "<b>bold</b>", "[x](javascript:y)", "&lt;", "*x*", "~~x~~",
    "# x", "- x", "1. x", "> x", "\\", "\\|", "日本語", "👩‍👩‍👧", "é", "=1+1", "   ", "",
]  # fmt: skip
OBEYED = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2028\u2029\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""What is never shown as it is."""


any_text = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(NASTY)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def assert_shown(text: str, tabs: bool = True) -> None:
    """Nothing in it does anything but end a line."""
    found = OBEYED.search(text if tabs else text.replace("\t", "\x01"))
    assert found is None, (found, text[max(0, found.start() - 40) : found.end() + 40])


@given(any_text)
@example("\x1b\\x1b")
def test_text_is_escaped_once_and_only_where_it_must_be(text):
    line, lines = printable.one_line(text), printable.many_lines(text)
    assert_shown(line, tabs=False)
    assert_shown(lines)
    assert "\n" not in line
    assert printable.one_line(line) == line
    assert printable.many_lines(lines) == lines
    for letter in set(text):
        if letter.isprintable():
            assert letter in line
    if text.isprintable():
        assert line == lines == text
    line.encode()


def test_the_escapes_are_pythons_own():
    assert printable.one_line("a\x1b[1m\u202e\ud83d\0\n\\") == "a\\x1b[1m\\u202e\\ud83d\\x00\\n\\"


@given(any_text)
def test_errors_and_warnings_print_what_they_quote(text):
    for kind in (InvalidInputError, spice_rs.StoreMismatchError, SpiceWarning):
        assert_shown(str(kind(f"label: found {text}")))


class Cells(html.parser.HTMLParser):
    """Tags, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@cases(60)
@given(any_text, any_text)
def test_what_results_show_in_a_terminal_a_notebook_and_markdown(one, other):
    if one == other:
        other += "x"
    labels = [one, other] * 12
    sel = spice_rs.select(ROWS, 6, groups=labels, normalize="unit")
    sel.settings["source"]["name"] = one
    shown = [
        sel.summary(),
        repr(sel),
        str(spice_rs.explain(sel, ROWS, 3, groups=labels, data=records(one, other))[0]),
    ]
    sides = spice_rs.compare(ROWS, 4, {one: "spice", other: [1, 2]}, groups=labels, certificate=False)
    shown += [sides.summary(), sides.to_markdown(), repr(sides), sel._repr_html_(), sides._repr_html_()]
    for text in shown:
        assert_shown(text, tabs=False)
    page = Cells(sel._repr_html_() + sides._repr_html_())
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "pre", "p", "b"}
    assert printable.one_line(one) in page.text


def records(one: str, other: str) -> list[dict[str, str]]:
    return [{"instruction": f"{one}{i}", "response": f"{other} x"} for i in range(24)]


@cases(150)
@given(st.lists(st.tuples(any_text, any_text), min_size=1, max_size=4))
@example([(each, each) for each in NASTY])
def test_a_table_in_markdown_says_what_its_cells_say(rows):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    text = tables.markdown([("head", "number"), *rows])
    assert_shown(text, tabs=False)
    assert len(text.splitlines()) == 2 + len(rows)
    page = Cells(parser.render(text))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    found = [cell for cell in inline(parser, text)][2:]
    expected = [
        re.sub(r"[ \t]+$|^[ \t]+", "", printable.one_line(cell).strip()) for row in rows for cell in row
    ]
    assert found == expected


def inline(parser, text):
    """The text of each cell, as it is rendered."""
    for token in parser.parse(text):
        if token.type == "inline":
            assert all(child.type in ("text", "text_special") for child in token.children), token.children
            yield "".join(child.content for child in token.children)


@given(any_text)
def test_a_paragraph_in_markdown_is_one(text):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = [token.type for token in parser.parse(printable.as_markdown(text))]
    assert tokens in ([], ["paragraph_open", "inline", "paragraph_close"]), (tokens, text)


def test_columns_stay_aligned_beside_wide_letters():
    lines = tables.aligned(
        [["group", "n"], ["日本", "1"], ["abcd", "22"], ["e\u0301", "3"], ["\x1b", "4"]]
    ).splitlines()
    assert len({printable.width(line) for line in lines}) == 1
    assert lines[2].endswith("日本    1")
    assert [unicodedata.east_asian_width(letter) for letter in "日a"] == ["W", "Na"]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_plots_take_any_label(tmp_path):
    pytest.importorskip("matplotlib")
    from spice_rs.report import plots

    picked = np.array([0, 2])
    for label in NASTY:
        figure = plots.group_shares([label, "other"] * 4, picked, name=label)
        for end in ("png", "svg"):
            figure.savefig(tmp_path / f"plot.{end}")
        assert_shown((tmp_path / "plot.svg").read_text())
        figure.canvas.draw()
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert "other" in shown


def test_dollars_are_drawn_as_dollars():
    matplotlib = pytest.importorskip("matplotlib")
    for label in ("$x$", "\\$", "\\\\$ a $", "$$"):
        text = printable.as_plot(label)
        shown, mathematics = matplotlib.text.Text(text=text)._preprocess_math(text)
        assert (shown, mathematics) == (label, False)


@pytest.fixture
def pool(tmp_path):
    """Rows, their data with such labels, and a selection."""
    labels = [NASTY[i % len(NASTY)] for i in range(24)]
    data = [
        {"source": label, "instruction": f"{label} q{i}", "response": f"{label} a{i}"}
        for i, label in enumerate(labels)
    ]
    np.save(tmp_path / "pool.npy", ROWS)
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in data))
    spice_rs.select(tmp_path / "pool.npy", 6, normalize="unit").save(tmp_path / "sel.safetensors")
    return tmp_path, data


@pytest.mark.slow
def test_every_command_shows_and_none_obeys(pool, capfd):
    pytest.importorskip("matplotlib")
    folder, data = pool
    rows, sel, records = (folder / name for name in ("pool.npy", "sel.safetensors", "pool.jsonl"))
    odd = folder / "a\x1b[2Jb\u202e\n.npy"
    np.save(odd, ROWS)
    held = folder / "h\x1b.npy"
    np.save(held, ROWS + 1)
    spice_rs.select(odd, 4).save(folder / "odd.safetensors")
    assert run("select", rows, "-k", 8, "--data", records, "--groups", "source") == 0
    shown = capfd.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["source"] for line in lines] == [data[line["spice"]["index"]]["source"] for line in lines]
    out, err = shown.out, shown.err
    for command in (
        ("explain", sel, rows, 1, 2, 3, 4, 5, 6, 7, 8, 9, "--data", records),
        ("explain", sel, rows, 1, "--data", records, "--json"),
        ("compare", rows, "-k", 4, "--methods", "spice,random", "--data", records, "--groups", "source"),
        (
            "compare",
            rows,
            "-k",
            4,
            "--methods",
            "spice,random",
            "--data",
            records,
            "--groups",
            "source",
            "--markdown",
        ),
        (
            "compare",
            rows,
            "-k",
            4,
            "--methods",
            "spice,random",
            "--data",
            records,
            "--groups",
            "source",
            "--json",
        ),
        ("certify", folder / "odd.safetensors", odd),
        ("curvature", odd),
        ("agreement", odd, rows),
        ("coverage", sel, rows, "--held-out", held, "--data", records, "--groups", "source"),
        ("report", sel, rows, "--data", records, "--out", folder / "r\x07\u202e.html"),
        ("export-picks", sel, "--data", records),
        ("select", odd, "-k", 3, "--out", folder / "p\x1b.jsonl", "--preset", "paper+"),
    ):
        assert run(*command) == 0, command
        shown = capfd.readouterr()
        out, err = out + shown.out, err + shown.err
        assert shown.out or shown.err
    for command in (
        ("select", odd, "-k", 99),
        ("select", folder / "none\x1b\u202e", "-k", 9),
        ("select", rows, "-k", 3, "\x1b[31m--wrong"),
        ("select", rows, "-k", "\x1b[31m3"),
        ("\x1b[31mselect",),
        ("explain", sel, rows, 1, "--groups", "\x1b]0;x\x07", "--data", records),
    ):
        assert run(*command) == 2, command
        shown = capfd.readouterr()
        assert shown.err
        out, err = out + shown.out, err + shown.err
    assert_shown(out)
    assert_shown(err)
    assert "\\x1b[2J" in err
    assert "\\\\x1b[2J" not in err
    assert_shown((folder / "r\x07\u202e.html").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "cp1252", "utf-8", "latin-1:strict"])
def test_any_encoding_of_stdout_will_do(pool, encoding):
    folder, data = pool
    odd = os.fsencode(folder) + b"/pool\xff\x1b.npy"
    np.save(open(odd, "wb"), ROWS)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments in (
        [b"select", odd, b"-k", b"4", b"--data", os.fsencode(folder / "pool.jsonl"), b"--groups", b"source"],
        [b"explain", os.fsencode(folder / "sel.safetensors"), os.fsencode(folder / "pool.npy"), b"1", b"--data",
         os.fsencode(folder / "pool.jsonl")],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "spice_rs", *arguments], capture_output=True, env=environment, timeout=120
        )
        text = done.stdout.decode(encoding.split(":")[0])
        assert done.returncode == 0, done.stderr
        assert b"Error" not in done.stderr
        assert_shown(text)
        assert_shown(done.stderr.decode(encoding.split(":")[0]))
        if arguments[0] == b"select":
            lines = [json.loads(line) for line in text.splitlines()]
            assert [each["source"] for each in lines] == [
                data[each["spice"]["index"]]["source"] for each in lines
            ]


def test_files_keep_what_was_there(pool):
    folder, data = pool
    sel = spice_rs.Selection.load(folder / "sel.safetensors")
    records = [
        {**each, "source": each["source"].replace("\ud83d", "").replace("\udcff", "")} for each in data
    ]
    records = [
        {name: value.encode(errors="ignore").decode() for name, value in each.items()} for each in records
    ]
    sel.to_jsonl(folder / "p.jsonl", records)
    lines = [json.loads(line) for line in (folder / "p.jsonl").read_text().split("\n") if line]
    assert [{**line, "spice": 0} for line in lines] == [
        {**records[i], "spice": 0} for i in sel.indices.tolist()
    ]


def test_a_bar_shows_the_users_labels():
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        spice_rs.compare(ROWS, 3, {"\x1b[2J\u202e": "spice"}, progress=True, certificate=False)
    assert "\u202e" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_stores_with_such_names_and_provenance(tmp_path, capfd):
    odd = tmp_path / "s\x1b]0;x\x07\u202e\nstore"
    with spice_rs.GradientStore.create(
        odd, dim=6, dtype="float32", provenance={"model": "m\x9b\u2028\x1b[2J"}
    ) as writer:
        writer.append(ROWS, index=np.arange(24))
    store = spice_rs.GradientStore(odd)
    assert store.provenance == {"model": "m\x9b\u2028\x1b[2J"}
    assert_shown(repr(store))
    assert_shown(store._repr_html_(), tabs=False)
    copy, merged = tmp_path / "c\x1b[1m", tmp_path / "m\r\u2066"
    for command in (
        ("info", odd),
        ("info", odd, "--json"),
        ("verify", odd),
        ("convert", odd, copy, "--dtype", "float16"),
        ("merge", merged, odd),
        ("compact", copy),
        ("delete", copy, 3),
        ("repair", copy),
        ("export", merged, tmp_path / "x\x07.npy"),
        ("select", odd, "-k", 3),
    ):
        assert run(*command) == 0, command
        shown = capfd.readouterr()
        assert_shown(shown.out)
        assert_shown(shown.err)
        if command[-1] == "--json":
            assert json.loads(shown.out)["path"] == str(odd)
    for command in (
        ("convert", odd, copy, "--dtype", "float16"),
        ("verify", tmp_path / "no\x1b"),
    ):
        assert run(*command) == 2
        assert_shown(capfd.readouterr().err)
