"""Certificates: no choice of k rows is better than they say, however the picks were made."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exact
import pools
import spice_rs
from command import run
from counts import cases
from spice_rs import InvalidInputError, SpiceWarning, StoreMismatchError


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def naive(rows: np.ndarray, alpha: float, picks, prefixes, owned=()) -> tuple[list[float], list[float]]:
    """Both bounds at each prefix, in float64 from the formulas."""
    rows, k = rows.astype(np.float64), len(picks)
    free = np.setdiff1d(np.arange(len(rows)), owned)
    submodular, concave = [], []
    for prefix in prefixes:
        chosen = [*owned, *picks[:prefix]]
        matrix = np.eye(rows.shape[1]) + alpha * rows[chosen].T @ rows[chosen]
        value = np.linalg.slogdet(matrix)[1]
        leverage = alpha * (np.linalg.solve(np.linalg.cholesky(matrix), rows.T) ** 2).sum(0)
        outside = np.setdiff1d(free, picks[:prefix])
        submodular.append(value + np.sort(np.log1p(leverage[outside]))[::-1][:k].sum())
        inside = leverage[picks[:prefix]].sum()
        concave.append(value + np.sort(leverage[free])[::-1][:k].sum() - inside)
    return submodular, concave


@cases(60)
@given(pools.cases(), st.integers(1, 4), st.integers(0, 3))
def test_no_choice_of_rows_beats_the_bound(case, k, wanted):
    rows = case.rows[:8]
    k = min(k, len(rows))
    method = ("greedy", "top_k", "stochastic", "greedy")[wanted]
    selection = spice_rs.select(rows, k, alpha=case.alpha, conflict_penalty=case.penalty, method=method)
    found = spice_rs.certify(selection, rows)
    matrix = exact.pairs(rows, case.alpha)
    most, have = exact.best(matrix, k), exact.log_det(matrix, selection.indices)
    rounding = 1e-12 + 1e-17 * case.alpha * (rows.astype(np.float64) ** 2).sum()  # of the judge
    assert (found.bounds >= most * (1 - rounding)).all()
    assert (found.submodular >= most * (1 - rounding)).all()
    assert (found.concave >= most * (1 - rounding)).all()
    assert found.ratio <= (have / most if most > 0 else 1) * (1 + rounding)
    assert 0 <= found.ratio <= 1
    assert (found.relaxed >= most * (1 - rounding)).all()
    assert found.upper_bound == min([*found.bounds, *found.relaxed])
    if found.prefix is not None:
        assert found.bounds[found.prefixes.tolist().index(found.prefix)] == found.upper_bound


@pytest.mark.parametrize("law", ["clustered", "unit", "opposed"])
@pytest.mark.parametrize(
    ("n", "dim", "k", "prefixes"),
    [
        (30, 60, 12, 12),  # by pairs
        (30, 60, 30, 5),
        (400, 60, 25, 12),  # by directions
        (400, 20, 90, 12),  # both ways
        (400, 8, 50, [7, 50]),  # by columns
        (300, 5, 300, 6),
    ],
)
def test_bounds_are_those_of_the_formulas(law, n, dim, k, prefixes):
    rows = pools.law(law, n, dim, 5)
    selection = spice_rs.select(rows, k, alpha=0.8, conflict_penalty=0.3)
    found = spice_rs.certify(selection, rows, prefixes)
    assert found.prefixes[0] == 0
    assert found.prefixes[-1] == found.picks == k
    submodular, concave = naive(rows, 0.8, selection.indices, found.prefixes)
    np.testing.assert_allclose(found.submodular, submodular, rtol=1e-8)
    np.testing.assert_allclose(found.concave, concave, rtol=1e-8)
    np.testing.assert_allclose(found.log_dets[1:], selection.log_dets[found.prefixes[1:] - 1], rtol=1e-9)
    assert found.log_det == pytest.approx(selection.log_det, rel=1e-9)
    assert found.ratio == pytest.approx(found.log_det / found.upper_bound, rel=1e-7)
    assert f"{k} picks" in repr(found)


def test_more_prefixes_never_loosen_it():
    rows = pools.law("clustered", 500, 16, 6)
    selection = spice_rs.select(rows, 60)
    few, many = spice_rs.certify(selection, rows, 1), spice_rs.certify(selection, rows, list(range(61)))
    assert few.prefixes.tolist() == [0, 1, 60]
    assert many.upper_bound <= few.upper_bound * (1 + 1e-9)
    dozen = spice_rs.certify(selection, rows)
    assert dozen.ratio > 0.98 * many.ratio


@pytest.mark.parametrize(("n", "dim", "k"), [(10, 2, 5), (10, 3, 6), (10, 30, 6), (10, 11, 7)])
def test_better_weights_bound_every_choice_too(n, dim, k):
    for seed in range(6):
        r = np.random.default_rng(seed)
        rows = r.standard_normal((n, dim)) * r.choice([0.1, 1, 10], (n, 1))
        for initial in ([], [3, 8]):
            selection = spice_rs.select(rows, k, conflict_penalty=1, initial=initial)
            found = spice_rs.certify(selection, rows, steps=9, initial=initial)
            most = exact.best(exact.pairs(rows, 1.0), k, initial)
            assert (found.relaxed >= most * (1 - 1e-12)).all()


@pytest.mark.parametrize(("n", "dim", "k"), [(600, 12, 100), (90, 100, 45)])
def test_better_weights_tighten_the_bound_by_the_formula(n, dim, k):
    rows = pools.law("unit", n, dim, 5).astype(np.float64)
    selection = spice_rs.select(rows, k, conflict_penalty=0)
    without, found = (spice_rs.certify(selection, rows, steps=steps) for steps in (0, 4))
    assert without.relaxed.size == 0
    np.testing.assert_array_equal(without.bounds, found.bounds)
    assert found.prefix is None
    assert found.upper_bound == found.relaxed.min() < without.upper_bound
    # The first step, by hand: towards the k largest leverages, by one of the shares that are tried.
    weights = np.zeros(n)
    weights[selection.indices] = 1

    def at(weights: np.ndarray) -> tuple[float, float]:
        matrix = np.eye(dim) + (rows * weights[:, None]).T @ rows
        leverage = ((rows @ np.linalg.inv(matrix)) * rows).sum(1)
        value = np.linalg.slogdet(matrix)[1]
        return value, value + np.sort(leverage)[::-1][:k].sum() - (weights * leverage).sum()

    leverage = (
        (rows @ np.linalg.inv(np.eye(dim) + rows[selection.indices].T @ rows[selection.indices])) * rows
    ).sum(1)
    target = np.zeros(n)
    target[np.argsort(-leverage)[:k]] = 1
    tried = [
        at((1 - share) * weights + share * target) for share in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
    ]
    assert found.relaxed[0] == pytest.approx(max(tried)[1], rel=1e-9)


def test_it_is_tight_where_rows_do_not_interact():
    selection = spice_rs.select(np.diag(np.arange(1.0, 21.0)), 7, conflict_penalty=0)
    assert spice_rs.certify(selection, np.diag(np.arange(1.0, 21.0))).ratio > 1 - 1e-9
    zeros = np.zeros((4, 3))
    assert spice_rs.certify(spice_rs.select(zeros, 2), zeros).ratio == 1
    ones = np.ones((1, 2))
    assert spice_rs.certify(spice_rs.select(ones, 1), ones).ratio > 1 - 1e-9


def test_bad_picks_get_a_low_ratio():
    rows = pools.law("clustered", 300, 20, 7)
    good = spice_rs.certify(spice_rs.select(rows, 30, conflict_penalty=0), rows)
    strong = np.argsort(-(rows**2).sum(1))[:200]
    bad = spice_rs.certify(spice_rs.select(rows, 30, exclude=strong), rows)
    assert bad.ratio < 0.8 * good.ratio


def test_windows_and_top_k_are_picks_too():
    rows = pools.law("unit", 200, 6, 8)
    for keywords in ({"pool_size": 50, "select_per_window": 5}, {"k": 20, "method": "top_k"}):
        selection = spice_rs.select(rows, **keywords)
        found = spice_rs.certify(selection, rows)
        assert found.log_det == pytest.approx(selection.log_det)
        submodular, concave = naive(rows, 1.0, selection.indices, found.prefixes)
        np.testing.assert_allclose(found.bounds, np.minimum(submodular, concave), rtol=1e-8)


@pytest.mark.parametrize("dim", [4, 12, 40])
def test_initial_rows_are_there_in_any_choice(dim):
    rows = np.random.default_rng(dim).standard_normal((11, dim))
    initial = [7, 2, 9]
    selection = spice_rs.select(rows, 3, initial=initial)
    found = spice_rs.certify(selection, rows, initial=initial)
    matrix = exact.pairs(rows, 1.0)
    assert found.log_det == pytest.approx(exact.log_det(matrix, [*initial, *selection.indices]), rel=1e-9)
    assert found.upper_bound >= exact.best(matrix, 3, initial) * (1 - 1e-12)
    submodular, concave = naive(rows, 1.0, selection.indices, found.prefixes, initial)
    np.testing.assert_allclose(found.submodular, submodular, rtol=1e-8)
    np.testing.assert_allclose(found.concave, concave, rtol=1e-8)
    for wrong in (None, [2, 7, 9], [1, 2, 3]):
        with pytest.raises(StoreMismatchError, match="initial: found"):
            spice_rs.certify(selection, rows, initial=wrong)


def test_weights_are_those_of_the_selection():
    rows, weights = pools.law("clustered", 80, 6, 9).astype(np.float64), np.linspace(0.2, 2, 80)
    selection = spice_rs.select(rows, 10, weights=weights)
    found = spice_rs.certify(selection, rows, weights=weights)
    submodular, concave = naive(rows * np.sqrt(weights)[:, None], 1.0, selection.indices, found.prefixes)
    np.testing.assert_allclose(found.bounds, np.minimum(submodular, concave), rtol=1e-8)
    records = [{"quality": weight} for weight in weights.tolist()]
    assert spice_rs.certify(selection, rows, data=records, weights="quality").ratio == found.ratio
    for wrong in (None, weights[::-1]):
        with pytest.raises(StoreMismatchError, match="weights: found"):
            spice_rs.certify(selection, rows, weights=wrong)
    with pytest.raises(StoreMismatchError, match="Leave weights out"):
        spice_rs.certify(spice_rs.select(rows, 10), rows, weights=weights)


def test_where_rows_lie_and_who_counts_does_not_matter(tmp_path):
    rows = pools.law("clustered", 700, 20, 2).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    with spice_rs.GradientStore.create(
        tmp_path / "store", dim=20, dtype="float16", rows_per_shard=90
    ) as writer:
        writer.append(rows, index=np.arange(700) + 10)
    whole = spice_rs.certify(spice_rs.select(rows, 80), rows, threads=1)
    for source in (tmp_path / "rows.npy", tmp_path / "store", [rows[:300], rows[300:]]):
        for threads in (1, 2, 3):
            found = spice_rs.certify(spice_rs.select(source, 80), source, threads=threads)
            np.testing.assert_array_equal(found.submodular, whole.submodular)
            np.testing.assert_array_equal(found.concave, whole.concave)
            np.testing.assert_array_equal(found.relaxed, whole.relaxed)
            assert found.ratio == whole.ratio


def test_every_pair_of_few_rows_by_brute_force():
    for seed, dim in itertools.product(range(3), (2, 5, 30)):
        rows = np.random.default_rng(seed).standard_normal((10, dim)) * 10.0 ** (seed - 1)
        matrix = exact.pairs(rows, 1.0)
        for k in (1, 3, 5):
            selection = spice_rs.select(rows, k, conflict_penalty=0)
            found = spice_rs.certify(selection, rows)
            most = exact.best(matrix, k)
            assert found.upper_bound >= most * (1 - 1e-12)
            assert found.ratio <= selection.log_det / most * (1 + 1e-12)
            # Greedy picks are at least 1 - 1/e, and the bound by the last prefix but one knows as much.
            assert found.ratio > 0.5


@pytest.mark.slow
def test_real_gradients_reach_what_was_measured(shared_file):
    rows = np.load(shared_file("data/gradients_smollm2.npz"))["gradients"]
    for normalize, k, ratio in (("none", 200, 0.86), ("unit", 200, 0.90), ("unit", 1000, 0.95)):
        selection = spice_rs.select(rows, k, normalize=normalize)
        assert spice_rs.certify(selection, rows, steps=1).ratio > ratio


def test_progress_and_interruption():
    rows = np.random.default_rng(0).standard_normal((3000, 64), dtype=np.float32)
    selection = spice_rs.select(rows, 100)
    seen = []
    spice_rs.certify(selection, rows, progress=lambda done, planned: seen.append((done, planned)))
    assert seen[-1][0] == seen[-1][1] > 6000
    assert seen == sorted(seen)

    def stop(done, planned):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spice_rs.certify(selection, rows, list(range(101)), progress=stop)


def test_what_does_not_fit_the_selection_is_refused():
    rows = pools.law("unit", 50, 6, 8)
    selection = spice_rs.select(rows, 5)
    for other, words in (
        (rows[:40], "has 40 rows, the selection was selected from 50"),
        (rows.astype(np.float16), "has cells of type float16, .* from float32"),
        (rows[::-1].copy(), "fingerprint"),
    ):
        with pytest.raises(StoreMismatchError, match=words):
            spice_rs.certify(selection, other)
    for steps in (-1, 1.5, True):
        with pytest.raises(InvalidInputError, match="steps: found"):
            spice_rs.certify(selection, rows, steps=steps)
    for prefixes, words in (
        (0, "prefixes: found 0"),
        ([6], "prefixes: found 6, expected numbers from 0 to 5"),
        ([-1], "prefixes: found -1"),
        (2.5, "prefixes: found 2.5, expected a whole number"),
        ([0.5], "prefixes: found float64"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            spice_rs.certify(selection, rows, prefixes)
    none = spice_rs.select(rows, 5, time_limit=1e-9)
    with pytest.raises(InvalidInputError, match="found no picks"):
        spice_rs.certify(none, rows)


def test_the_command_prints_a_table_and_what_it_is_about(tmp_path, capsys):
    rows = pools.law("clustered", 200, 8, 4)
    np.save(tmp_path / "rows.npy", rows)
    assert (
        run("select", tmp_path / "rows.npy", "-k", 20, "--save", tmp_path / "sel", "--out", tmp_path / "p")
        == 0
    )
    assert run("certify", tmp_path / "sel", tmp_path / "rows.npy") == 0
    said = capsys.readouterr().out
    found = spice_rs.certify(spice_rs.select(rows, 20), rows)
    assert f"{found.upper_bound:.6g}" in said
    assert "penalty" in said
    assert run("certify", tmp_path / "sel", tmp_path / "rows.npy", "--json", "--prefixes", 3) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["prefixes"] == [0, 1, 4, 20]
    np.save(tmp_path / "rows.npy", rows[:100])
    assert run("certify", tmp_path / "sel", tmp_path / "rows.npy") == 2
    err = capsys.readouterr().err
    assert "--rows" not in err
    assert f"SOURCE: {tmp_path / 'rows.npy'} has 100 rows, {tmp_path / 'sel'} was selected from 200 (" in err
