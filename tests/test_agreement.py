"""Agreement of two proxies against the same numbers from their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest

import oracle
import pools
import spice_rs
from command import run
from spice_rs.analysis.agreement import ALIKE
from spice_rs.analysis.spearman import spearman as rank_correlation
from spice_rs.errors import InvalidInputError, SpiceWarning

RNG = np.random.default_rng(0)
A = pools.law("clustered", 120, 12, 3).astype(np.float64)
B = (A @ RNG.standard_normal((12, 9)) / 3 + 0.3 * RNG.standard_normal((120, 9))).astype(np.float64)


def spearman(x, y):
    """The definition, by counting: rank = those below + half of the equal ones."""
    ranks = [
        [(np.sum(v < each) + (np.sum(v == each) + 1) / 2) for each in v] for v in (np.array(x), np.array(y))
    ]
    return np.corrcoef(ranks)[0, 1]


def test_all_numbers_are_those_of_their_definitions():
    found = spice_rs.agreement(A, B, 30, alpha=0.7, conflict_penalty=0.4, random_sets=3, seed=5)
    picks = [spice_rs.select(rows, 30, alpha=0.7, conflict_penalty=0.4).indices for rows in (A, B)]
    assert found.a.indices.tolist() == picks[0].tolist()
    assert found.b.indices.tolist() == picks[1].tolist()
    for j in range(1, 31):
        assert found.overlap[j - 1] == len(set(picks[0][:j]) & set(picks[1][:j])) / j
        assert found.chance[j - 1] == j / 120
    assert found.sizes.tolist() == [1, 2, 4, 8, 15, 30]
    draws = np.random.default_rng(5)
    random = [draws.choice(120, 30, replace=False) for _ in range(3)]
    for place, k in enumerate(found.sizes):
        for name, rows, sets in (
            ("own_a", A, picks[:1]),
            ("own_b", B, picks[1:]),
            ("b_in_a", A, picks[1:]),
            ("a_in_b", B, picks[:1]),
            ("random_in_a", A, random),
            ("random_in_b", B, random),
        ):
            expected = np.mean([oracle.log_det(rows[each[:k]], 0.7) for each in sets])
            assert getattr(found, name)[place] == pytest.approx(expected, rel=1e-9), name
    gains = [np.log1p(0.7 * (rows**2).sum(1)) for rows in (A, B)]
    assert found.spearman == pytest.approx(spearman(*gains), abs=1e-12)


def test_a_source_agrees_with_itself_and_not_with_its_reverse():
    same = spice_rs.agreement(A, A)
    assert len(same.overlap) == 12  # a tenth
    assert (same.overlap == 1).all()
    assert same.spearman == pytest.approx(1)
    np.testing.assert_allclose(same.a_in_b, same.own_b)
    sizes = (A**2).sum(1)
    opposite = A / sizes[:, None]  # the longest row is the shortest
    assert spice_rs.agreement(A, opposite).spearman == pytest.approx(-1)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_with_and_without_ties(ties):
    x, y = RNG.standard_normal((2, 200))
    if ties:
        x, y = x.round(), y.round()
    assert rank_correlation(x, y + x, ALIKE) == pytest.approx(spearman(x, y + x), abs=1e-12)
    assert np.isnan(rank_correlation(x, np.ones(200), ALIKE))
    assert np.isnan(rank_correlation(1 + 1e-13 * x, y, ALIKE))


def test_unit_rows_have_no_order_of_single_gains():
    found = spice_rs.agreement(A, B, 5, normalize="unit")
    assert np.isnan(found.spearman)
    assert "none, all rows are alike" in str(found)
    assert found.as_dict()["spearman"] is None


def test_stores_are_compared_by_dataset_row(tmp_path):
    first, second = RNG.permutation(120)[:90], np.sort(RNG.permutation(120)[:100])
    for name, rows, index in (("a", A, first), ("b", B, second)):
        with spice_rs.GradientStore.create(tmp_path / name, dim=rows.shape[1], dtype="float32") as writer:
            writer.append(rows[index].astype(np.float32), index=index)
    common = np.intersect1d(first, second)
    with pytest.warns(SpiceWarning, match=f"{len(common)} rows are in both sources"):
        found = spice_rs.agreement(tmp_path / "a", tmp_path / "b", 20)
    plain = spice_rs.agreement(A[common].astype(np.float32), B[common].astype(np.float32), 20)
    assert found.rows == len(common)
    assert found.a.indices.tolist() == common[plain.a.indices].tolist()
    assert found.b.indices.tolist() == common[plain.b.indices].tolist()
    np.testing.assert_allclose(found.a_in_b, plain.a_in_b, rtol=1e-9)
    assert found.spearman == pytest.approx(plain.spearman, abs=1e-12)


def test_the_command_prints_the_table_or_json(tmp_path, capsys):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", B)
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    found = spice_rs.agreement(A, B, 10, alpha=2)
    assert run("agreement", *paths, "-k", 10, "--alpha", 2) == 0
    assert capsys.readouterr().out.strip() == str(found)
    assert run("agreement", *paths, "-k", 10, "--alpha", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found.as_dict()
    assert run("agreement", *paths, "-k", 1000) == 2
    assert "k: found 1000, expected at most 120" in capsys.readouterr().err


def test_alpha_by_the_median_norm_is_each_sources_own():
    numbers = [1 / np.median((each.astype(np.float64) ** 2).sum(1)) for each in (A, B)]
    found = spice_rs.agreement(A, B, 10, alpha="auto")
    assert [each.settings["alpha"] for each in (found.a, found.b)] == pytest.approx(numbers, rel=1e-12)
    expected = spice_rs.log_det(B, found.a.indices, alpha=numbers[1])
    assert found.a_in_b[-1] == pytest.approx(expected, rel=1e-9)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match="random_sets: found 0"):
        spice_rs.agreement(A, B, random_sets=0)
    with pytest.raises(InvalidInputError, match="found 1 row in both, in"):
        spice_rs.agreement(A[:1], B)
    with pytest.raises(InvalidInputError, match="alpha"):
        spice_rs.agreement(A, B, alpha=-1)


def test_rows_of_zeros_have_nothing_to_share():
    found = spice_rs.agreement(np.zeros((6, 3)), A[:6], 2)
    assert np.isnan(found.spearman)
    assert " - " in str(found)
    assert (found.b_in_a == 0).all()
