"""How many rows, as people say it: rows, a share, per cent; what may be meant in two ways is refused."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spice_rs
from command import run
from spice_rs.selection.arguments import Share, rows_of, rows_wanted

ROWS = np.random.default_rng(0).standard_normal((30, 4), dtype=np.float32)


def picked(k) -> int:
    return len(spice_rs.select(ROWS, k, conflict_penalty=0))


@pytest.mark.parametrize(
    ("k", "rows"),
    [
        (3, 3),
        (1, 1),
        (1.0, 30),
        (0.1, 3),
        ("10%", 3),
        (" 10 % ", 3),
        ("100%", 30),
        (".5%", 1),
        ("12.5%", 4),  # 3.75
        (0.05, 2),  # 1.5: half a row goes up
        (0.001, 1),
        (np.float32(0.1), 3),
        (np.float64(0.1), 3),
        (np.int64(3), 3),
        (np.array(0.1), 3),
    ],
)
def test_rows_and_shares(k, rows):
    selection = spice_rs.select(ROWS, k, conflict_penalty=0)
    assert len(selection) == selection.settings["k"] == rows
    assert selection.indices.tolist() == spice_rs.select(ROWS, rows, conflict_penalty=0).indices.tolist()


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_a_share_is_the_nearest_number_of_rows(rows, millionths):
    share = rows_wanted(f"{millionths / 10_000:.4f}%")
    assert isinstance(share, Share)
    exact = Fraction(millionths, 10**6) * rows
    assert rows_of(share, rows) == max(1, math.floor(exact + Fraction(1, 2)))


@pytest.mark.parametrize(
    ("k", "said"),
    [
        (10.0, "k: found 10.0, expected a whole number of at least 1, or a share above 0 and up to 1. It may be rows or per"
               " cent: k=10 is that many rows, k='10.0%' that share of them."),
        (1.5, "It may be rows or per cent: k='1.5%' that share of them."),
        ("10", "k: found '10', expected a whole number of at least 1, or a share above 0 and up to 1. It may be rows or per"
               " cent: k=10 is that many rows, k='10%' that share of them."),
        (0, "k: found 0"),
        (0.0, "k: found 0.0"),
        (-0.1, "k: found -0.1"),
        (math.nan, "k: found nan"),
        (math.inf, "k: found inf"),
        ("0%", "k: found '0%'"),
        ("101%", "k: found '101%'"),
        ("-5%", "k: found '-5%'"),
        ("ten", "k: found 'ten'"),
        ("", "k: found ''"),
        ("1e1%", "k: found '1e1%'"),
        (True, "k: found True"),
        ([3], "k: found [3]"),
    ],
)  # fmt: skip
def test_what_is_neither_or_either_is_refused(k, said):
    with pytest.raises(spice_rs.InvalidInputError, match=re.escape(said)):
        spice_rs.select(ROWS, k)


def test_every_function_that_picks_takes_shares():
    sides = spice_rs.compare(ROWS, "20%", ["spice", "random"], random_sets=1)
    assert all(row.picks == 6 for row in sides.rows)
    assert spice_rs.agreement(ROWS, ROWS + 0.1, 0.2).sizes[-1] == 6
    before = spice_rs.select(ROWS[:20], 4)
    assert len(spice_rs.extend(before, ROWS, k=0.5)) == 15
    assert len(spice_rs.select(ROWS, "10%", target=ROWS[:4] + 1)) == 3  # of all rows, not of the candidates


def test_the_command_line_says_it_alike(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    found = []
    for words in (("-k", "3"), ("-k", "0.1"), ("-k", "10%"), ("--share", "0.1"), ("--share", "10%")):
        assert run("select", tmp_path / "rows.npy", *words) == 0
        found.append([json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()])
    assert found == [found[0]] * 5
    assert len(found[0]) == 3
    assert run("select", tmp_path / "rows.npy", "-k", "1.0") == 0
    assert len(capsys.readouterr().out.splitlines()) == 30
    assert run("select", tmp_path / "rows.npy", "--share", "1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 30
    for words, said in (
        (("--share", "3"), "3 rows are -k 3, 3 per cent --share 3%"),
        (("-k", "3", "--share", "0.1"), "--share: found it beside -k 3"),
        (("-k", "10.0"), "-k 10 is that many rows, -k 10.0% that share"),
        (("-k", "few"), "-k: found 'few', expected a number of rows, or a share of them"),
    ):
        assert run("select", tmp_path / "rows.npy", *words) == 2
        assert said in capsys.readouterr().err
