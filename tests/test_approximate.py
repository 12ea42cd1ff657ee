"""The approximate methods: what they promise, and that they say so where they cannot serve."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import oracle
import pools
import spice_rs
from spice_rs import InvalidInputError, SpiceWarning


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("name", ["clustered", "unit", "flat"])
def test_epsilon_lazy_picks_gain_nearly_as_much_as_the_best(name, epsilon):
    rows = pools.law(name, 600, 24, 3)
    sel = spice_rs.select(rows, 80, conflict_penalty=0.0, method="epsilon_lazy", epsilon=epsilon, hot_rows=20)
    short = 0
    for t in range(80):
        gain = oracle.full_scores(rows, sel.indices[:t].tolist(), 1.0, 0.0).gain
        gain[sel.indices[:t]] = 0
        assert sel.gains[t] == pytest.approx(gain[sel.indices[t]], rel=1e-9)
        assert sel.gains[t] >= (1 - epsilon) * gain.max() * (1 - 1e-9)
        short += sel.gains[t] < gain.max() * (1 - 1e-9)
    assert short > 0 or epsilon < 0.3, "nothing was approximated"


def test_epsilon_lazy_with_a_tiny_epsilon_is_exact_and_with_a_large_one_reads_less():
    rows = pools.law("flat", 2000, 32, 1)
    exact = spice_rs.select(rows, 100, hot_rows=50)
    tiny = spice_rs.select(rows, 100, hot_rows=50, method="epsilon_lazy", epsilon=1e-12)
    large = spice_rs.select(rows, 100, hot_rows=50, method="epsilon_lazy", epsilon=0.2)
    np.testing.assert_array_equal(tiny.indices, exact.indices)
    assert large.rows_read.sum() < 0.7 * exact.rows_read.sum()


def test_stochastic_picks_are_exact_gains_of_different_rows_whatever_the_threads_and_hot_rows():
    rows = pools.law("clustered", 700, 16, 2)
    runs = [
        spice_rs.select(rows, 150, method="stochastic", seed=5, threads=threads, hot_rows=hot)
        for threads, hot in ((1, None), (2, 30), (3, 1), (2, 700))
    ]
    first = runs[0]
    assert len(set(first.indices.tolist())) == 150
    for t in (0, 1, 40, 149):
        at = oracle.full_scores(rows, first.indices[:t].tolist(), 1.0, 0.1)
        assert first.gains[t] == pytest.approx(at.gain[first.indices[t]], rel=1e-9)
        assert first.scores[t] == pytest.approx(at.score[first.indices[t]], rel=1e-9, abs=1e-12)
    for run in runs[1:]:
        np.testing.assert_array_equal(run.indices, first.indices)
        np.testing.assert_array_equal(run.gains, first.gains)
    other = spice_rs.select(rows, 150, method="stochastic", seed=6)
    assert other.indices.tolist() != first.indices.tolist()


def test_a_stochastic_step_takes_the_best_of_so_many_rows_as_the_guarantee_asks_for():
    # One pick of n rows with samples of n·log(1/ε) > n rows is the best of all; with few, it is the best of them.
    rows = pools.law("clustered", 500, 8, 4)
    best = spice_rs.select(rows, 1).indices[0]
    assert spice_rs.select(rows, 1, method="stochastic", epsilon=0.3).indices[0] == best
    # Ten picks of 500 rows with ε = 0.8: samples of 12 rows. The first is the best of all with probability 12/500.
    order = np.argsort(-(rows.astype(np.float64) ** 2).sum(1))
    rank = [
        int(np.flatnonzero(order == spice_rs.select(
            rows, 10, method="stochastic", epsilon=0.8, seed=seed).indices[0])[0])
        for seed in range(200)
    ]  # fmt: skip
    # The best of 12 of 500 has rank (500 - 12)/13 on average, with a spread of as much.
    assert np.mean(rank) == pytest.approx(488 / 13, rel=0.3)


def test_all_rows_can_be_sampled():
    rows = pools.law("opposed", 90, 5, 1)
    sel = spice_rs.select(rows, 90, method="stochastic", epsilon=0.5, hot_rows=7)
    assert sorted(sel.indices.tolist()) == list(range(90))


def test_u_of_the_approximations_is_close_to_the_exact_one():
    rows = pools.law("clustered", 3000, 32, 5)
    exact = spice_rs.select(rows, 150, conflict_penalty=0.0).log_det
    for method, least in (("epsilon_lazy", 0.99), ("stochastic", 0.9)):
        sel = spice_rs.select(rows, 150, conflict_penalty=0.0, method=method, epsilon=0.1)
        assert least * exact <= sel.log_det <= exact * (1 + 1e-9)


@pytest.mark.parametrize("method", ["epsilon_lazy", "stochastic"])
def test_what_an_approximation_cannot_do_is_refused(method, tmp_path):
    rows = np.eye(6)
    for epsilon in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="epsilon: found"):
            spice_rs.select(rows, 2, method=method, epsilon=epsilon)
    for keywords in ({"fisher": "diagonal"}, {"search": "eager"}):
        with pytest.raises(InvalidInputError, match="method: found an approximate one"):
            spice_rs.select(rows, 2, method=method, **keywords)
    with pytest.raises(InvalidInputError, match="checkpoint: found it beside method"):
        spice_rs.select(rows, 2, method=method, checkpoint=tmp_path / "run")


def test_picks_of_samples_are_not_nested():
    sel = spice_rs.select(np.eye(6), 4, method="stochastic")
    with pytest.raises(InvalidInputError, match="head: found picks of method='stochastic'"):
        sel.head(2)
    assert len(spice_rs.select(np.eye(6), 4, method="epsilon_lazy").head(2)) == 2
