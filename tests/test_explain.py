"""`explain`: the reason is the one that a second run without that reason shows to be it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import oracle
import pools
import spice_rs
from command import run
from spice_rs.analysis import explanation


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spice_rs.SpiceWarning)
        yield


def trajectory(rows, picks, row, penalty):
    """(Δ, conflict) of one row at every prefix."""
    scores = [oracle.full_scores(rows, picks[:t], 1.0, penalty) for t in range(len(picks))]
    return np.array([s.gain[row] for s in scores]), np.array([s.conflict[row] for s in scores])


@pytest.mark.parametrize("law", ["opposed", "clustered"])
def test_scores_are_those_of_every_prefix(law):
    rows = pools.law(law, 70, 9, 4)
    sel = spice_rs.select(rows, 20, conflict_penalty=0.6)
    for found in spice_rs.explain(sel, rows, np.arange(70)):
        gain, conflict = trajectory(rows, sel.indices.tolist(), found.row, 0.6)
        assert found.gain == pytest.approx(gain, rel=1e-9, abs=1e-12)
        assert found.conflict == pytest.approx(conflict, rel=1e-6, abs=1e-9)
        assert found.needed.tolist() == sel.scores.tolist()
        if found.reason == "picked":
            assert sel.indices[found.rank] == found.row
            continue
        gaps = sel.scores - (gain - 0.6 * conflict)
        assert found.gap == pytest.approx(gaps[found.rank], abs=1e-9)
        assert found.gap == pytest.approx(gaps[gaps > 1e-8].min(), abs=1e-8)
        assert found.last_gap == pytest.approx(gaps[-1], abs=1e-9)
        assert str(found) == found.text


def test_conflict_redundant_and_small_are_what_their_names_say():
    rows = np.concatenate([pools.law("opposed", 60, 8, 2), 1e-2 * pools.law("opposed", 4, 8, 9)])
    sel = spice_rs.select(rows, 15, conflict_penalty=1.5)
    found = spice_rs.explain(sel, rows, np.arange(64))
    reasons = {each.reason for each in found}
    assert {"picked", "conflict", "redundant", "small_gain"} <= reasons
    base = np.log1p((rows.astype(np.float64) ** 2).sum(1))
    for each in found:
        gain, _ = trajectory(rows, sel.indices.tolist(), each.row, 1.5)
        wins_without = (gain > sel.scores).any()
        if each.reason == "conflict":
            assert wins_without
            assert "conflict" in each.text
        elif each.reason == "redundant":
            assert not wins_without
            assert base[each.row] > sel.scores[-1]
        elif each.reason == "small_gain":
            assert not wins_without
            assert base[each.row] <= sel.scores[-1]


def test_what_a_pick_takes_is_what_leaving_it_out_gives_back():
    rows = pools.law("clustered", 50, 7, 3).astype(np.float64)
    weights = np.random.default_rng(0).uniform(0.3, 3, 50)
    sel = spice_rs.select(rows, 12, initial=[40, 41], weights=weights)
    held = [40, 41, *sel.indices.tolist()]

    def gain(row, picked):
        scaled = rows[picked] * np.sqrt(weights[picked])[:, None]
        matrix = np.eye(7) + scaled.T @ scaled
        return np.log1p(weights[row] * rows[row] @ np.linalg.solve(matrix, rows[row]))

    for each in spice_rs.explain(sel, rows, [1, 2, 3, 4, 5], initial=[40, 41], weights=weights):
        if each.reason == "picked":
            continue
        whole = gain(each.row, held)
        back = {y: gain(each.row, [z for z in held if z != y]) - whole for y in held}
        most = max(back, key=back.get)
        assert each.redundant_with == most
        assert each.taken == pytest.approx(back[most], rel=1e-8)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = unit[held] @ unit[each.row]
        assert each.nearest == held[int(np.abs(cosines).argmax())]
        assert each.nearest_cosine == pytest.approx(cosines[np.abs(cosines).argmax()])


def test_conditions_are_the_reason_only_where_they_decided():
    rows = pools.law("opposed", 60, 8, 7)
    rows[1] *= 12
    rows[50] = rows[1] * 0.999
    labels = np.where(np.arange(60) % 3 == 0, "few", "many")
    given = {"groups": labels, "exclude": [5], "initial": [6]}
    sel = spice_rs.select(rows, 20, group_shares={"few": (None, 2)}, max_similarity=0.97, **given)
    free = spice_rs.select(rows, 20, initial=[6], exclude=[5])
    found = {each.row: each for each in spice_rs.explain(sel, rows, np.arange(60), **given)}
    assert found[5].reason == "excluded"
    assert found[6].reason == "initial"
    skipped = dict(zip(sel.near_duplicates.rows.tolist(), sel.near_duplicates.of.tolist(), strict=True))
    assert skipped
    for row, of in skipped.items():
        assert found[row].reason == "near_duplicate"
        assert f"of row {of}:" in found[row].text
    full = [each.row for each in found.values() if each.reason == "group_full"]
    assert full
    assert set(labels[full]) == {"few"}
    assert len(set(full) & set(free.indices.tolist())) > 0
    without = spice_rs.explain(sel, rows, full[:1], initial=[6])[0]
    assert without.reason != "group_full"


def test_dear_rows_and_windows():
    rows = pools.law("clustered", 40, 6, 1)
    costs = np.ones(40)
    costs[7] = 50.0
    rows[7] *= 30
    sel = spice_rs.select(rows, budget=10, costs=costs)
    assert spice_rs.explain(sel, rows, 7, costs=costs)[0].reason == "budget"
    windows = spice_rs.select(rows, pool_size=10, select_per_window=3, seed=1)
    order = np.random.default_rng(1).permutation(40)
    for each in spice_rs.explain(windows, rows, np.arange(40)):
        window = order.tolist().index(each.row) // 10
        mine = [row for row in windows.indices.tolist() if row in order[window * 10 : window * 10 + 10]]
        if each.reason != "picked":
            assert windows.indices[each.rank] in mine
            assert each.nearest in mine
            assert each.gap > 0


def test_rows_of_one_length_tie_only_while_nothing_is_picked():
    rows = pools.law("clustered", 40, 30, 1)
    sel = spice_rs.select(rows, 10, normalize="unit")
    reasons = [each.reason for each in spice_rs.explain(sel, rows, np.arange(40))]
    assert "tie" not in reasons
    same = np.eye(6, dtype=np.float32)
    assert spice_rs.explain(spice_rs.select(same, 3), same, 4)[0].reason == "tie"


def test_many_rows_and_few_steps_give_the_same_reasons(monkeypatch):
    rows = pools.law("opposed", 70, 9, 4)
    sel = spice_rs.select(rows, 40, conflict_penalty=0.6)
    whole = spice_rs.explain(sel, rows, np.arange(70))
    monkeypatch.setattr(explanation, "MOST_CELLS", 200)  # some four rows at once
    assert [each.text for each in spice_rs.explain(sel, rows, np.arange(70))] == [each.text for each in whole]
    monkeypatch.setattr(explanation, "AFFORDABLE", 1.0)
    fewer = spice_rs.explain(sel, rows, np.arange(70))
    for one, other in zip(fewer, whole, strict=True):
        assert 1 < len(one.ranks) <= explanation.FEWER_STEPS < len(other.ranks)
        assert one.scores == pytest.approx(other.scores[one.ranks], rel=1e-9, abs=1e-12)
        assert (one.reason == "picked") == (other.reason == "picked")


def test_a_run_that_ended_at_once_took_no_rows():
    sel = spice_rs.select(pools.law("opposed", 30, 5, 1), 5, time_limit=1e-9)
    if len(sel):
        pytest.skip("the run was faster than its limit")
    [found] = spice_rs.explain(sel, pools.law("opposed", 30, 5, 1), 3)
    assert "ended before a pick" in found.text


def test_rows_that_are_not_there_are_refused():
    rows = pools.law("clustered", 20, 4, 1)
    sel = spice_rs.select(rows, 3)
    for wrong in ([99], [1, 1], [0.5]):
        with pytest.raises(spice_rs.InvalidInputError, match="rows"):
            spice_rs.explain(sel, rows, wrong)


def test_a_method_that_passes_rows_over_is_said_to():
    rows = pools.law("opposed", 200, 8, 7)
    sel = spice_rs.select(rows, 20, method="stochastic", epsilon=0.9)
    found = spice_rs.explain(sel, rows, np.arange(200))
    unknown = [each for each in found if each.reason == "unknown"]
    assert unknown
    assert all("method (stochastic)" in each.text for each in unknown)
    assert sel.explain(3, rows).text == found[3].text


def test_the_command(tmp_path, capsys):
    rows = pools.law("opposed", 50, 6, 3)
    np.save(tmp_path / "pool.npy", rows)
    groups = ["x" if i % 2 else "y" for i in range(50)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"g": g, "text": "t"}) + "\n" for g in groups))
    sel = spice_rs.select(tmp_path / "pool.npy", 8, groups=groups)
    sel.save(tmp_path / "sel.safetensors")
    data = ("--data", tmp_path / "pool.jsonl", "--groups", "g")
    left = [row for row in range(50) if row not in sel.indices][:2]
    picked = int(sel.indices[2])
    assert run("explain", tmp_path / "sel.safetensors", tmp_path / "pool.npy", picked, *left, *data) == 0
    out = capsys.readouterr().out.splitlines()
    expected = spice_rs.explain(sel, tmp_path / "pool.npy", [picked, *left], groups=groups)
    assert [line for line in out if not line.startswith("  ")] == [each.text for each in expected]
    assert run("explain", tmp_path / "sel.safetensors", tmp_path / "pool.npy", left[0], "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["row"] == left[0]
    assert shown["reason"] in ("conflict", "redundant", "small_gain", "unknown")
    assert run("explain", tmp_path / "sel.safetensors", tmp_path / "pool.npy", 400) == 2
    assert "ROW: found 400" in capsys.readouterr().err
