"""The total curvature of a pool: by its definition, and proven to be no larger than what is claimed."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

import exact
import pools
import spice_rs
from command import run
from counts import cases
from spice_rs import InvalidInputError


def ratios(rows: np.ndarray, alpha: float) -> np.ndarray:
    """Δ_x(D∖{x})/Δ_x(∅), nan for zero rows."""
    matrix = exact.pairs(rows, alpha)
    found = np.full(len(rows), np.nan)
    for x in range(len(rows)):
        others = [row for row in range(len(rows)) if row != x]
        alone = exact.gain(matrix, x, [])
        if alone > 0:
            found[x] = exact.gain(matrix, x, others) / alone
    return found


@cases(60)
@given(pools.cases())
def test_no_pool_has_a_larger_curvature_than_claimed(case):
    rows = case.rows[:24]
    found = spice_rs.curvature(rows, alpha=case.alpha)
    signal = case.alpha * (rows.astype(np.float64) ** 2).sum(1)
    true = ratios(rows, case.alpha)
    assert np.array_equal(np.isnan(found.ratios), signal == 0)
    seen = signal > 0
    if not seen.any():
        return
    assert 1 - np.nanmin(true[seen]) <= found.total + found.error + 1e-9
    # Digits go with the condition of I + αF, at most the sum of its eigenvalues.
    tolerance = 1e-9 + 1e-14 * signal.sum()
    np.testing.assert_allclose(found.ratios[seen], true[seen], rtol=0, atol=tolerance)
    assert 0 <= found.total <= 1
    assert 1 - 1 / np.e - 1e-12 <= found.guarantee <= 1


def test_it_is_the_smallest_ratio_beside_any_rows_and_bounds_greedy_picks():
    for seed in range(4):
        rows = np.random.default_rng(seed).standard_normal((8, 3 + 3 * (seed % 2))) * (0.3 + seed)
        matrix = exact.pairs(rows, 0.7)
        found = spice_rs.curvature(rows, alpha=0.7)
        smallest = min(
            exact.gain(matrix, x, beside) / exact.gain(matrix, x, [])
            for x in range(8)
            for size in range(8)
            for beside in itertools.combinations([row for row in range(8) if row != x], size)
        )
        assert found.total == pytest.approx(1 - smallest, abs=1e-12)
        assert found.error < 1e-10
        for k in range(1, 8):
            picks = spice_rs.select(rows, k, alpha=0.7, conflict_penalty=0)
            assert picks.log_det >= found.guarantee * exact.best(matrix, k)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 100.0])
def test_rows_may_be_longer_than_they_are_many(scale):
    rows = pools.law("clustered", 40, 30, 1) * np.float32(scale)
    wide = np.hstack([rows, np.zeros((40, 50), np.float32)])
    narrow, pairs = spice_rs.curvature(rows), spice_rs.curvature(wide)
    np.testing.assert_allclose(pairs.ratios, narrow.ratios, rtol=1e-9)
    np.testing.assert_allclose(pairs.leverages, narrow.leverages, rtol=1e-9)
    assert pairs.row == narrow.row
    inverse = np.linalg.inv(np.eye(30) + rows.T.astype(float) @ rows)
    np.testing.assert_allclose(narrow.leverages, ((rows @ inverse) * rows).sum(1), rtol=1e-7)


def test_pools_of_which_it_is_known():
    assert spice_rs.curvature(3 * np.eye(5)).total == pytest.approx(0, abs=1e-12)
    assert spice_rs.curvature(np.ones((1, 4))).guarantee == pytest.approx(1, abs=1e-12)
    zeros = spice_rs.curvature(np.zeros((3, 2)))
    assert (zeros.total, zeros.guarantee, zeros.row) == (0, 1, None)
    assert np.isnan(zeros.ratios).all()
    assert "3 rows, total 0, guarantee 100.0 %" in repr(zeros)
    twins = spice_rs.curvature(np.float32([[0, 0], [0, 2], [1e3, 0], [1e3, 0], [-1e3, 0]]))
    assert twins.row == 2
    assert twins.total == pytest.approx(1 - np.log1p(1e6 / (1 + 2e6)) / np.log1p(1e6), abs=1e-9)
    many = spice_rs.curvature(pools.law("unit", 3000, 4, 0))
    assert many.total > 0.99
    assert many.guarantee == pytest.approx(1 - 1 / np.e, abs=0.005)


def test_huge_rows_beside_tiny_ones_cost_no_digits():
    rows = np.diag([1e6, 1e6, 1.0, 1e-3, 1e-5])
    for pool in (rows, np.vstack([rows, np.zeros((3, 5))])):
        found = spice_rs.curvature(pool)
        np.testing.assert_allclose(found.ratios[:5], 1, rtol=1e-3)
        assert found.total + found.error < 0.01


def test_a_row_of_its_own_beside_huge_twins_keeps_its_ratio():
    rows = 1e5 * np.random.default_rng(0).standard_normal((6, 700))
    rows[3:] = rows[:1] * [[1], [-1], [0.5]]
    found = spice_rs.curvature(rows)
    np.testing.assert_allclose(found.ratios[1:3], 1, rtol=1e-3)
    np.testing.assert_allclose(found.ratios, ratios(rows, 1.0), rtol=0, atol=1e-3)
    assert found.total + found.error >= 1 - min(ratios(rows, 1.0))


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1.0, 100.0])
def test_nearly_parallel_huge_rows_are_claimed_no_better_than_exact_arithmetic_has_them(noise):
    r = np.random.default_rng(0)
    rows = 1e6 * np.array([1.0, -1.0]) + noise * r.standard_normal((12, 2))
    cells = [[Fraction(cell) for cell in row] for row in rows.tolist()]
    a = 1 + sum(x * x for x, _ in cells)
    b = sum(x * y for x, y in cells)
    d = 1 + sum(y * y for _, y in cells)
    missed = [1 - (d * x * x - 2 * b * x * y + a * y * y) / (a * d - b * b) for x, y in cells]
    true = [-math.log(rest) / math.log(1 + x * x + y * y) for rest, (x, y) in zip(missed, cells, strict=True)]
    found = spice_rs.curvature(rows)
    assert found.total + found.error >= 1 - min(true)
    assert found.total == pytest.approx(1 - min(true), abs=1e-3)
    wide = spice_rs.curvature(np.hstack([rows, np.zeros((12, 20))]))  # by pairs
    assert wide.total + wide.error >= 1 - min(true)


def test_where_rows_lie_and_who_counts_does_not_matter(tmp_path):
    rows = pools.law("clustered", 700, 20, 2).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    with spice_rs.GradientStore.create(
        tmp_path / "store", dim=20, dtype="float16", rows_per_shard=90
    ) as writer:
        writer.append(rows, index=np.arange(700) + 10)
    whole = spice_rs.curvature(rows, threads=1)
    for source in (tmp_path / "rows.npy", tmp_path / "store", [rows[:300], rows[300:]]):
        for threads in (1, 2, 3):
            found = spice_rs.curvature(source, normalize="none", threads=threads)
            assert (found.total, found.error) == (whole.total, whole.error)
            np.testing.assert_array_equal(found.ratios, whole.ratios)
            assert found.row == found.rows[np.nanargmin(found.ratios)]
    assert spice_rs.curvature(tmp_path / "store").rows[0] == 10


def test_scales_and_weights_are_those_of_select():
    rows = pools.law("clustered", 60, 8, 3).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        spice_rs.curvature(rows, normalize="unit").ratios, spice_rs.curvature(unit).ratios, rtol=1e-10
    )
    weights = np.linspace(0.1, 3, 60)
    weighted = spice_rs.curvature(rows, weights=weights)
    np.testing.assert_allclose(
        weighted.ratios, spice_rs.curvature(rows * np.sqrt(weights)[:, None]).ratios, rtol=1e-10
    )
    records = [{"quality": weight} for weight in weights.tolist()]
    named = spice_rs.curvature(rows, data=records, weights="quality")
    np.testing.assert_array_equal(named.ratios, weighted.ratios)
    assert named.settings == weighted.settings
    assert (
        weighted.settings["weights"]
        == spice_rs.select(rows, 3, weights=weights, conflict_penalty=0).settings["weights"]
    )


def test_progress_and_interruption():
    rows = np.random.default_rng(0).standard_normal((2000, 256), dtype=np.float32)
    seen = []
    spice_rs.curvature(rows, progress=lambda done, planned: seen.append((done, planned)))
    assert seen[-1] == (6000, 6000)
    assert seen == sorted(seen)

    def stop(done, planned):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spice_rs.curvature(np.tile(rows, (20, 1)), progress=stop)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"alpha": 0}, "alpha: found 0"),
        ({"alpha": 1e30}, "alpha: found 1e30"),
        ({"threads": 0}, "threads: found 0"),
        ({"normalize": "mean"}, "normalize: found 'mean'"),
        ({"weights": [1.0, 2.0]}, "weights: found 2 values"),
        ({"weights": "quality"}, "weights: found the column name 'quality'"),
    ],
)
def test_arguments_out_of_range_are_refused(keywords, words):
    with pytest.raises(InvalidInputError, match=words):
        spice_rs.curvature(np.ones((5, 3), np.float32), **keywords)


def test_a_row_that_is_no_row_is_named():
    rows = np.ones((5, 3))
    rows[3, 1] = np.nan
    with pytest.raises(InvalidInputError, match="row 3, column 1"):
        spice_rs.curvature(rows)


def test_the_command_says_what_it_is_about(tmp_path, capsys):
    rows = pools.law("clustered", 200, 8, 4)
    np.save(tmp_path / "rows.npy", rows)
    assert run("curvature", tmp_path / "rows.npy", "--out", tmp_path / "all.npz", "--alpha", 2) == 0
    said = capsys.readouterr().out
    assert "--conflict-penalty 0" in said
    found = spice_rs.curvature(rows, alpha=2)
    archive = np.load(tmp_path / "all.npz")
    np.testing.assert_array_equal(archive["ratios"], found.ratios)
    np.testing.assert_array_equal(archive["rows"], np.arange(200))
    assert run("curvature", tmp_path / "rows.npy", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total"] == spice_rs.curvature(rows).total
    assert run("curvature", tmp_path / "rows.npy", "--alpha", -1) == 2
    assert "alpha: found -1" in capsys.readouterr().err
    assert run("curvature", tmp_path / "rows.npy", "--out", tmp_path / "none" / "all.npz") == 2
