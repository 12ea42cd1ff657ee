"""What held-out rows would still gain, against loops over inverted matrices."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest

import pools
import spice_rs
from command import run
from spice_rs import GradientStore, InvalidInputError, StoreMismatchError

ROWS = pools.law("clustered", 240, 6, 3).astype(np.float64)
POOL, HELD = ROWS[:200], ROWS[200:]


def left(rows: Any, chosen: Any, held: Any, alpha: float, weights: Any = None) -> float:
    matrix = np.eye(rows.shape[1])
    for row in chosen:
        matrix += alpha * (1.0 if weights is None else weights[row]) * np.outer(rows[row], rows[row])
    inverse = np.linalg.inv(matrix)
    return float(np.mean([math.log1p(alpha * float(row @ inverse @ row)) for row in held]))


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_it_is_what_the_definition_says():
    sel = spice_rs.select(POOL, 15, normalize="unit", alpha="auto", conflict_penalty=0)
    found = spice_rs.coverage(sel, POOL, HELD, random_sets=2, seed=7)
    alpha = sel.settings["alpha"]
    assert found.left == pytest.approx(left(unit(POOL), sel.indices, unit(HELD), alpha))
    assert found.alone == pytest.approx(left(unit(POOL), [], unit(HELD), alpha))
    draws = np.random.default_rng(7)
    expected = [left(unit(POOL), draws.choice(200, 15, replace=False), unit(HELD), alpha) for _ in range(2)]
    assert found.random == pytest.approx(expected)
    assert found.ratio == pytest.approx(found.left / np.mean(expected))
    assert (found.picks, found.rows) == (15, 40)
    assert "15 picks leave" in repr(found)


def test_rows_of_the_source_itself_are_not_drawn():
    sel = spice_rs.select(ROWS, 15, exclude=range(200, 240))
    found = spice_rs.coverage(sel_without(sel), ROWS, list(range(200, 240)), random_sets=3)
    assert found.left == pytest.approx(left(ROWS, sel.indices, HELD, 1.0))
    draws = np.random.default_rng(0)
    expected = [left(ROWS, draws.choice(np.arange(200), 15, replace=False), HELD, 1.0) for _ in range(3)]
    assert found.random == pytest.approx(expected)


def sel_without(sel):
    """The same picks, made without an exclusion that would have to be given again."""
    return spice_rs.select(ROWS, len(sel), include=sel.indices)


def test_weights_initial_rows_and_targets_count_as_they_did():
    weights = np.random.default_rng(1).uniform(0.5, 2, 200)
    sel = spice_rs.select(POOL, 10, weights=weights, initial=[3, 4])
    found = spice_rs.coverage(sel, POOL, HELD, weights=weights, initial=[3, 4], random_sets=1)
    assert found.left == pytest.approx(left(POOL, [3, 4, *sel.indices], HELD, 1.0, weights))
    target = HELD[:5] + 1
    sel = spice_rs.select(POOL, 10, target=target)
    relevance = spice_rs.relevance(POOL, target)
    found = spice_rs.coverage(sel, POOL, HELD, random_sets=1)
    assert found.left == pytest.approx(
        left(unit(POOL), sel.indices, unit(HELD), sel.settings["alpha"], relevance)
    )


def test_groups_have_their_own():
    sel = spice_rs.select(POOL, 10)
    labels = ["a"] * 10 + ["b"] * 30
    found = spice_rs.coverage(sel, POOL, HELD, groups=labels, random_sets=2)
    assert found.groups["a"][0] == 10
    assert found.groups["a"][1] == pytest.approx(left(POOL, sel.indices, HELD[:10], 1.0))
    assert (10 * found.groups["a"][1] + 30 * found.groups["b"][1]) / 40 == pytest.approx(found.left)
    data = [{"kind": label} for label in labels]
    assert spice_rs.coverage(sel, POOL, HELD, groups="kind", data=data, random_sets=2).groups == found.groups
    picked = set(sel.indices.tolist())
    free = [row for row in range(200) if row not in picked][:40]
    listed = spice_rs.coverage(sel, POOL, free, groups=labels, random_sets=1)
    assert listed.groups["b"][0] == 30


def test_what_cannot_be_is_refused(tmp_path):
    sel = spice_rs.select(POOL, 10)
    for held, said in (
        ([int(sel.indices[0])], f"held_out: found row {sel.indices[0]}, which was picked"),
        ([500], "held_out: found 500"),
        ([], "held_out: found no rows"),
        (POOL, "that were picked"),
        ("nowhere", "nowhere"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(said)):
            spice_rs.coverage(sel, POOL, held)
    with pytest.raises(StoreMismatchError, match="^held_out: .* has 5 columns, .* has 6"):
        spice_rs.coverage(sel, POOL, HELD[:, :5])
    with pytest.raises(InvalidInputError, match="expected greedy picks of one run"):
        spice_rs.coverage(spice_rs.select(POOL, 10, fisher="diagonal"), POOL, HELD)
    for name, seed in (("pool", 0), ("held", 1)):
        provenance = {"projection": {"seed": seed}}
        with GradientStore.create(tmp_path / name, dim=6, provenance=provenance) as writer:
            writer.append(POOL if name == "pool" else HELD, index=np.arange(200 if name == "pool" else 40))
    with pytest.raises(StoreMismatchError, match=r"held_out: .*: projection\.seed 1, expected 0"):
        stored = spice_rs.select(tmp_path / "pool", 10)
        spice_rs.coverage(stored, tmp_path / "pool", tmp_path / "held")


@pytest.fixture
def saved(tmp_path):
    """Files of a pool, of held-out rows, of their records, and of a selection."""
    np.save(tmp_path / "pool.npy", POOL)
    np.save(tmp_path / "held.npy", HELD)
    (tmp_path / "held.jsonl").write_text(
        "".join(json.dumps({"text": "a", "kind": "<script>x" if i % 4 else "b"}) + "\n" for i in range(40))
    )
    spice_rs.select(tmp_path / "pool.npy", 12).save(tmp_path / "sel.safetensors")
    return tmp_path


def test_the_command_shows_what_python_does(saved, capsys):
    line = ("coverage", saved / "sel.safetensors", saved / "pool.npy", "--held-out", saved / "held.npy")
    line += ("--data", saved / "held.jsonl", "--groups", "kind", "--random-sets", 3, "--seed", 4)
    kinds = ["<script>x" if i % 4 else "b" for i in range(40)]
    sel = spice_rs.Selection.load(saved / "sel.safetensors")
    expected = spice_rs.coverage(sel, POOL, HELD, groups=kinds, random_sets=3, seed=4)
    assert run(*line) == 0
    assert capsys.readouterr().out == expected.summary() + "\n"
    assert run(*line, "--json") == 0
    assert json.loads(capsys.readouterr().out) == expected.as_dict()
    shown = expected.summary().splitlines()
    assert shown[2].split()[:2] == ["all", "40"]
    assert f"{expected.left:.4f}" in shown[2]
    assert {words.split()[0] for words in shown[3:5]} == {"<script>x", "b"}
    page = expected._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;x" in page
    assert f"{expected.groups['b'][1]:.4f}" in page


@pytest.mark.parametrize(
    ("held", "more", "words"),
    [
        ("narrow.npy", (), "narrow.npy has 5 columns, "),
        ("pool.npy", (), "--held-out: found rows in"),
        ("none.npy", (), "none.npy"),
        ("held.npy", ("--random-sets", 0), "--random-sets: found 0"),
        ("held.npy", ("--groups", "kind"), "kind"),
        ("held.npy", ("--alpha", 7), "--alpha"),
        (None, (), "--held-out"),
    ],
)
def test_the_command_refuses_what_python_refuses_in_its_own_words(saved, capsys, held, more, words):
    np.save(saved / "narrow.npy", HELD[:, :5])
    line = ("coverage", saved / "sel.safetensors", saved / "pool.npy")
    line += () if held is None else ("--held-out", saved / held)
    assert run(*line, *more) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "held_out" not in told


def test_the_command_says_where_stores_differ_and_where_weights_go(saved, capsys):
    for name, seed in (("s", 0), ("h", 1)):
        with GradientStore.create(saved / name, dim=6, provenance={"projection": {"seed": seed}}) as writer:
            writer.append(POOL if name == "s" else HELD, index=np.arange(200 if name == "s" else 40))
    spice_rs.select(saved / "s", 5).save(saved / "stored.safetensors")
    assert run("coverage", saved / "stored.safetensors", saved / "s", "--held-out", saved / "h") == 2
    assert ": projection.seed 1, expected 0. " in (err := capsys.readouterr().err)
    assert "spice-rs: --held-out: " in err
    assert f"`spice-rs extract --data … --out … --like {saved / 's'}`" in err
    weighed = spice_rs.select(saved / "pool.npy", 5, weights=np.arange(1.0, 201))
    weighed.save(saved / "weighed.safetensors")
    line = ("coverage", saved / "weighed.safetensors", saved / "pool.npy", "--held-out", saved / "held.npy")
    assert run(*line) == 2
    assert "found one with weights" in capsys.readouterr().err


def test_held_out_rows_are_sources_of_any_kind(tmp_path):
    sel = spice_rs.select(POOL, 10)
    np.save(tmp_path / "h.npy", HELD)
    expected = spice_rs.coverage(sel, POOL, HELD, random_sets=1).left
    assert spice_rs.coverage(sel, POOL, [tmp_path / "h.npy"], random_sets=1).left == expected
    POOL.tofile(tmp_path / "p.bin")
    HELD.tofile(tmp_path / "h.bin")
    shape = {"dim": 6, "dtype": "float64"}
    found = spice_rs.coverage(sel, tmp_path / "p.bin", tmp_path / "h.bin", random_sets=1, **shape)
    assert found.left == expected
