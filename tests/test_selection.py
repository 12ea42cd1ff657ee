"""Properties of `select`: exact picks, and the same whatever the threads, the search and the memory layout."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import pools
import spice_rs
from counts import cases, for_cases, some
from spice_rs import InvalidInputError, SpiceWarning

SERIES = ("indices", "gains", "base", "conflict", "scores", "overruled")
HOT_ROWS = (1, 2, 3, 5, 9, 20, 45, None)
"""With fewer hot rows than rows, the rest is cold: bounds, refreshes, evictions and promotions."""
THREADS = (1, 2, 3, 8)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def assert_same(a: spice_rs.Selection, b: spice_rs.Selection) -> None:
    """Bit for bit the same picks and series."""
    for name in SERIES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.stop_reason == b.stop_reason


# --- exactness ---------------------------------------------------------------------------------------------------


@cases(2400)
@given(pools.cases(), st.sampled_from([None, None, None, 0.1, 0.5, 0.9]), st.integers(0, 2**32))
def test_every_pick_is_best_at_its_own_prefix_and_nothing_else_matters(case, omega, seed):
    r = np.random.default_rng(seed)

    def run(source=case.rows, **keywords):
        keywords = {"threads": int(r.choice(THREADS)), **keywords}
        return spice_rs.select(
            source, case.k, alpha=case.alpha, conflict_penalty=case.penalty, early_stop=omega, **keywords
        )

    eager = run(search="eager", threads=1)
    assert oracle.judge(case.rows, eager.indices, case.alpha, case.penalty) is None
    assert len(eager) == case.k or eager.stop_reason == "early_stop"
    assert_same(eager, run(search="eager"))
    for hot_rows in HOT_ROWS:
        for search in ("lazy", "lazy_gain"):
            assert_same(eager, run(search=search, hot_rows=hot_rows))
    if case.rows.dtype != np.float64:
        with tempfile.TemporaryDirectory() as folder:
            assert_same(eager, run(in_shards(folder, case.rows, r), hot_rows=int(r.integers(1, 20))))


def in_shards(folder: str, rows: np.ndarray, r: np.random.Generator) -> str:
    """Write the rows to a store, in an order of its own, in shards of some size."""
    order = r.permutation(len(rows))
    per_shard = (
        int(r.integers(1, len(rows) + 1)) if len(rows) < 8 else int(r.integers(len(rows) // 8, len(rows)))
    )
    store = os.path.join(folder, "store")
    with spice_rs.GradientStore.create(
        store, dim=rows.shape[1], dtype=rows.dtype.name, rows_per_shard=per_shard
    ) as writer:
        writer.append(rows[order], index=order)
    return store


@cases(200)
@given(
    pools.cases(),
    st.integers(5, 60),
    st.sampled_from([None, 0.2, 0.6]),
    st.sampled_from(["none", "unit"]),
    st.sampled_from(HOT_ROWS[:-1]),
    st.sampled_from(THREADS),
)
def test_windows_and_unit_rows_do_not_depend_on_the_search(case, size, omega, normalize, hot_rows, threads):
    keywords = {
        "alpha": case.alpha,
        "conflict_penalty": case.penalty,
        "early_stop": omega,
        "normalize": normalize,
    }
    size = min(size, len(case.rows))
    windows = {"pool_size": size, "select_per_window": -(-size // 2), "seed": case.k}
    for budget in ({"k": case.k}, windows):
        eager = spice_rs.select(case.rows, search="eager", threads=1, **budget, **keywords)
        for search in ("lazy", "lazy_gain"):
            lazy = spice_rs.select(
                case.rows, search=search, hot_rows=hot_rows, threads=threads, **budget, **keywords
            )
            assert_same(eager, lazy)


@pytest.mark.slow
def test_the_case_generator_makes_the_penalty_matter():
    decided = []

    def look(case):
        sel = spice_rs.select(case.rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty)
        plain = spice_rs.select(case.rows, case.k, alpha=case.alpha, conflict_penalty=0)
        decided.append(bool(sel.overruled.any()) and sel.indices.tolist() != plain.indices.tolist())

    for_cases(look, pools.cases(), count=200, same=True)
    assert sum(decided) >= 40


@pytest.mark.slow
def test_the_case_generator_makes_gains_alone_loose_bounds():
    loose = []

    def look(case):
        def read(search):
            sel = spice_rs.select(
                case.rows,
                case.k,
                alpha=case.alpha,
                conflict_penalty=case.penalty,
                search=search,
                hot_rows=9,
            )
            return sel.rows_read.sum()

        loose.append(read("lazy") * 1.3 < read("lazy_gain"))

    for_cases(look, pools.cases(), count=200, same=True)
    assert sum(loose) >= 6


@pytest.mark.slow
def test_the_case_generator_reaches_all_of_the_engine():
    reached = Counter()

    def look(case):
        n, d = case.rows.shape
        rows = case.rows.astype(np.float64)
        sel = spice_rs.select(
            rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty, search="lazy_gain", hot_rows=2
        )
        norms = np.linalg.norm(rows, axis=1)
        distinct = len(np.unique(rows, axis=0))
        reached.update(
            {
                "refreshed again and again": bool(sel.rows_read.sum() > 3 * n),
                "a second epoch": case.k > max(32, d // 2),
                "a third epoch": case.k > 2 * max(32, d // 2),
                "never an epoch": n <= d // 4,
                "k = n": case.k == n,
                "k = 20 d": case.k == 20 * d,
                "twins": distinct < n,
                "a zero row": bool((norms == 0).any()),
                "equal norms": n > 1 and bool(np.ptp(norms) <= 1e-3 * norms.max()),
                "low rank": bool(1 < np.linalg.matrix_rank(rows) < min(n, d)),
                "norms below 1e-5": bool((norms[norms > 0] < 1e-5).any()),
                "norms above 1e4": bool((norms > 1e4).any()),
                "a mean of zero": bool((rows[sel.indices].cumsum(0) == 0).all(1).any()),
                "opposite rows": bool((np.unique(rows, axis=0) == -np.unique(rows, axis=0)[::-1]).all()),
                "penalty 10": case.penalty == 10,
                "penalty 0": case.penalty == 0,
                **{str(case.rows.dtype): True},
            }
        )

    for_cases(look, pools.cases(), count=200, same=True)
    rare = {name: count for name, count in reached.items() if count < 5}
    assert not rare, rare
    assert len(reached) == 19


def test_the_oracle_finds_a_wrong_pick():
    rows = pools.law("opposed", 40, 8, 1)
    picks = spice_rs.select(rows, 10, conflict_penalty=0.5).indices.copy()
    assert oracle.judge(rows, picks, 1.0, 0.5) is None
    picks[[4, 5]] = picks[[5, 4]]
    assert oracle.judge(rows, picks, 1.0, 0.5) is not None
    twins = np.ones((2, 3))
    assert "twin" in oracle.judge(twins, np.array([1, 0]), 1.0, 0.0)


def test_long_runs_through_many_epochs_stay_exact():
    rows = pools.law("clustered", 400, 6, 3)
    sel = spice_rs.select(rows, 400, conflict_penalty=0.3)
    assert oracle.judge(rows, sel.indices, 1.0, 0.3) is None
    assert_same(sel, spice_rs.select(rows, 400, conflict_penalty=0.3, search="eager"))


@pytest.mark.parametrize("search", ["eager", "lazy"])
@pytest.mark.parametrize("file", ["golden_dev", "golden_generated"])
def test_golden_picks(shared_file, file, search):
    golden = np.load(shared_file(f"golden/{file}.npz"))
    for case in json.loads(bytes(golden["meta"])):
        name = case["name"]
        if file == "golden_dev":
            rows, picks, trace = (golden[f"{name}/{key}"] for key in ("G", "full_indices", "full_trace"))
        else:
            rows = pools.law(case["law"], case["n"], case["d"], case["seed"]).astype(case["dtype"])
            picks, trace = golden[f"{name}/indices"], golden[f"{name}/trace"]
        sel = spice_rs.select(
            rows,
            case["k"],
            alpha=case["alpha"],
            conflict_penalty=case["lam"],
            early_stop=case.get("omega"),
            search=search,
        )
        np.testing.assert_array_equal(sel.indices, picks, err_msg=name)
        ours = np.stack([sel.gains, sel.conflict, sel.base, sel.scores], axis=1)
        np.testing.assert_allclose(ours, trace, rtol=0, atol=1e-10, err_msg=name)
        assert sel.log_det == pytest.approx(case["logdet"], abs=1e-8)
        if file == "golden_generated":
            plain = spice_rs.select(rows, case["k"], alpha=case["alpha"], conflict_penalty=0.0)
            changed = len(set(sel.indices) - set(plain.indices)) / len(sel)
            assert 0.2 < changed < 0.8, name


def test_golden_picks_of_the_released_code(shared_file):
    golden = np.load(shared_file("golden/golden_dev.npz"))
    for case in json.loads(bytes(golden["meta"])):
        name, rows = case["name"], golden[f"{case['name']}/G"]
        for mode, keywords in {
            "diag_conflict": {"fisher": "diagonal", "conflict_penalty": case["lam"]},
            "diag_greedy": {"fisher": "diagonal", "conflict_penalty": 0.0},
            "scalar_conflict": {"fisher": "scalar", "conflict_penalty": case["lam"]},
            "top_k": {"method": "top_k"},
        }.items():
            picks = golden[f"{name}/{mode}_indices"]
            sel = spice_rs.select(rows, len(picks), **keywords)
            np.testing.assert_array_equal(sel.indices, picks, err_msg=f"{name} {mode}")
            np.testing.assert_allclose(sel.gains, golden[f"{name}/{mode}_gains"], atol=1e-6)


# --- modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["diagonal", "scalar"])
@pytest.mark.parametrize("penalty", [0.0, 0.4])
@pytest.mark.parametrize("omega", [None, 0.6])
def test_other_readings_of_the_fisher_information_match_a_naive_loop(fisher, penalty, omega):
    rows = pools.law("opposed", 300, 12, 5)
    alpha = 0.7
    gain = oracle.diagonal_gain(alpha) if fisher == "diagonal" else oracle.scalar_gain(alpha)
    picks, trace = oracle.greedy(rows, 120, gain, penalty, omega)
    for search in ("eager", "lazy"):
        sel = spice_rs.select(
            rows, 120, alpha=alpha, conflict_penalty=penalty, fisher=fisher, early_stop=omega, search=search
        )
        assert sel.indices.tolist() == picks
        np.testing.assert_allclose(np.stack([sel.gains, sel.conflict, sel.scores], 1), trace, atol=1e-12)
        assert sel.log_det == pytest.approx(oracle.log_det(rows[picks], alpha), rel=1e-10)
        assert sel.stop_reason == ("budget" if len(picks) == 120 else "early_stop")


def test_top_k_takes_the_largest_rows_and_ignores_the_penalty():
    rows = pools.law("opposed", 200, 10, 2)
    rows[7] = rows[3]
    sel = spice_rs.select(rows, 50, method="top_k", conflict_penalty=5.0)
    norms = (rows.astype(np.float64) ** 2).sum(1)
    assert sel.indices.tolist() == np.argsort(-norms, kind="stable")[:50].tolist()
    np.testing.assert_allclose(sel.gains, np.log1p(norms[sel.indices]))
    np.testing.assert_array_equal(sel.gains, sel.scores)
    assert sel.conflict.max() > 0
    assert sel.log_det == pytest.approx(oracle.log_det(rows[sel.indices], 1.0))


@pytest.mark.parametrize("fisher", ["full", "diagonal"])
def test_windows_are_runs_of_their_own(fisher):
    rows = pools.law("clustered", 230, 16, 4)
    sel = spice_rs.select(
        rows, pool_size=50, select_per_window=8, seed=3, fisher=fisher, conflict_penalty=0.2
    )
    order = np.random.default_rng(3).permutation(230)
    expected = []
    for start in range(0, 230, 50):
        window = order[start : start + 50]
        window = np.sort(window)  # ties inside a window go to the lowest row
        part = spice_rs.select(rows[window], 8, fisher=fisher, conflict_penalty=0.2)
        expected += window[part.indices].tolist()
    assert sel.indices.tolist() == expected
    assert sel.log_det == pytest.approx(oracle.log_det(rows[expected], 1.0), rel=1e-10)
    assert sel.stop_reason == "budget"


def test_windows_stop_early_each_by_its_own_first_gain():
    rows = pools.law("clustered", 300, 8, 4)
    sel = spice_rs.select(rows, pool_size=100, select_per_window=50, early_stop=0.5)
    assert sel.stop_reason == "early_stop"
    assert len(sel) < 150


def test_a_short_last_window_gives_all_it_has():
    sel = spice_rs.select(pools.law("flat", 21, 4, 0), pool_size=10, select_per_window=5)
    assert len(sel) == 5 + 5 + 1


# --- what a run reports ------------------------------------------------------------------------------------------


def test_series_follow_their_definitions():
    rows = pools.law("opposed", 120, 9, 8).astype(np.float64)
    alpha, penalty = 0.5, 0.4
    sel = spice_rs.select(rows, 60, alpha=alpha, conflict_penalty=penalty)
    gains, others = [], []
    for t, x in enumerate(sel.indices):
        before = oracle.log_det(rows[sel.indices[:t]], alpha) if t else 0.0
        gains.append(oracle.log_det(rows[sel.indices[: t + 1]], alpha) - before)
        at = oracle.full_scores(rows, sel.indices[:t].tolist(), alpha, penalty)
        at.gain[sel.indices[:t]] = -1
        others.append(at.gain.max() > at.gain[x] * (1 + 1e-12))
        assert sel.conflict[t] == pytest.approx(at.conflict[x], abs=1e-12)
    np.testing.assert_allclose(sel.gains, gains, atol=1e-10)
    np.testing.assert_allclose(sel.base, np.log1p(alpha * (rows[sel.indices] ** 2).sum(1)), rtol=1e-13)
    np.testing.assert_array_equal(sel.epsilon, sel.gains - sel.base)
    np.testing.assert_array_equal(sel.scores, sel.gains - penalty * sel.conflict)
    assert sel.overruled.tolist() == others
    assert sel.overruled.any()
    assert sel.log_det == pytest.approx(oracle.log_det(rows[sel.indices], alpha))
    assert sel.signal == pytest.approx(alpha * np.median((rows**2).sum(1)))
    assert sel.indices.dtype == np.int64
    assert sel.gains.dtype == np.float64
    assert "60 of 120 rows" in repr(sel)


def test_early_stop_leaves_out_the_row_that_triggers_it():
    rows = pools.law("clustered", 300, 8, 4)
    whole = spice_rs.select(rows, 300)
    stopped = spice_rs.select(rows, early_stop=0.5)
    m = len(stopped)
    assert stopped.stop_reason == "early_stop"
    assert (stopped.gains > 0.5 * stopped.gains[0]).all()
    assert whole.gains[m] <= 0.5 * whole.gains[0]
    np.testing.assert_array_equal(whole.indices[:m], stopped.indices)
    assert spice_rs.select(np.eye(4), early_stop=0.5).stop_reason == "exhausted"
    assert spice_rs.select(np.eye(4), 4, early_stop=0.5).stop_reason == "budget"


def test_half_life_is_where_the_gain_first_halves():
    sel = spice_rs.select(pools.law("clustered", 300, 8, 4), 200)
    t = sel.half_life
    assert sel.gains[t] <= sel.gains[0] / 2 < sel.gains[t - 1]
    assert spice_rs.select(np.eye(3), 3).half_life is None


def test_log_det_of_any_rows():
    rows = pools.law("clustered", 90, 20, 1)
    for m in (1, 15, 60):
        picked = np.random.default_rng(m).choice(90, m, replace=False)
        assert spice_rs.log_det(rows, picked, alpha=2.0) == pytest.approx(
            oracle.log_det(rows[picked], 2.0), rel=1e-11
        )
    with pytest.raises(InvalidInputError, match="90"):
        spice_rs.log_det(rows, [3, 90])
    with pytest.raises(InvalidInputError, match="rows"):
        spice_rs.log_det(rows, [0.5])


# --- what must not matter ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["full", "diagonal", "scalar"])
def test_threads_and_search_do_not_matter(fisher):
    rows = pools.law("opposed", 1500, 24, 6).astype(np.float16)
    reference = spice_rs.select(rows, 200, fisher=fisher, conflict_penalty=0.3, search="eager", threads=1)
    for threads in (1, 2, 3, 8):
        for search in ("eager", "lazy"):
            other = spice_rs.select(
                rows, 200, fisher=fisher, conflict_penalty=0.3, search=search, threads=threads
            )
            assert_same(reference, other)


@pytest.mark.parametrize("penalty", [0.1, 1.0])
@pytest.mark.parametrize("law", pools.LAWS)
def test_hot_rows_and_threads_do_not_matter_at_a_size_where_rows_are_cold(law, penalty):
    rows = pools.law(law, 1500, 64, 11).astype(np.float16)
    eager = spice_rs.select(rows, 300, conflict_penalty=penalty, search="eager")
    assert oracle.judge(rows, eager.indices, 1.0, penalty, every=17) is None
    for hot_rows in (16, 64, None):
        for threads in (1, 2):
            lazy = spice_rs.select(rows, 300, conflict_penalty=penalty, hot_rows=hot_rows, threads=threads)
            assert_same(eager, lazy)
            assert lazy.rows_read.sum() > 1500  # not by having had all rows hot


def test_more_means_than_angles_are_kept_from_leave_bounds_valid():
    # A new period, and with it a mean to measure from, at nearly every pick.
    rows = pools.law("opposed", 900, 6, 3)
    eager = spice_rs.select(rows, 500, conflict_penalty=0.5, search="eager")
    for hot_rows in (1, 4):
        assert_same(eager, spice_rs.select(rows, 500, conflict_penalty=0.5, hot_rows=hot_rows))


def test_hot_rows_that_outlive_the_last_cold_row_stay_right_through_epochs():
    # One row against a cone of others is cold for long; with it the last cold row is read for `overruled` alone.
    for seed in range(some(40)):
        r = np.random.default_rng(seed)
        rows = np.array([0, 0, 0, 1.0]) + 0.1 * r.standard_normal((65, 4))
        rows[-1] *= -1
        rows *= 1e-3
        eager = spice_rs.select(rows, 65, search="eager")
        for hot_rows in (30, 42, 60):
            assert_same(eager, spice_rs.select(rows, 65, hot_rows=hot_rows))


@pytest.mark.parametrize("penalty", [15.0, 30.0, 36.0, 100.0, 1e6])
def test_penalties_far_above_every_gain_are_weighed_exactly(penalty):
    r = np.random.default_rng(0)
    for _ in range(some(300)):
        rows = r.standard_normal((r.integers(3, 20), r.integers(1, 3)))
        eager = spice_rs.select(rows, len(rows), conflict_penalty=penalty, search="eager")
        for hot_rows in (1, 2):
            assert_same(eager, spice_rs.select(rows, len(rows), conflict_penalty=penalty, hot_rows=hot_rows))


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_long_rows_are_picked_alike_whether_or_not_all_inner_products_are_taken_at_once(penalty):
    # From k = n/16 on the engine takes all of them; the first 8 picks tell the two ways apart.
    r = np.random.default_rng(5)
    side = r.choice([-1, 1], (130, 1)) * r.gamma(2, 0.7, (130, 1))
    rows = (side * r.standard_normal(66_000) + 0.5 * r.standard_normal((130, 66_000))) / 128
    rows = rows.astype(np.float16)
    rows[77] = rows[3]
    by_rows = spice_rs.select(rows, 8, conflict_penalty=penalty)
    assert oracle.judge(rows, by_rows.indices, 1.0, penalty) is None
    for keywords in ({}, {"search": "eager"}, {"hot_rows": 5}, {"threads": 3}):
        at_once = spice_rs.select(rows, 9, conflict_penalty=penalty, **keywords)
        for name in SERIES:
            np.testing.assert_array_equal(getattr(at_once, name)[:8], getattr(by_rows, name), err_msg=name)


def available_memory() -> int:
    """Bytes that the machine can still give; 0 if it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


@pytest.mark.slow
def test_unprojected_rows_of_a_million_columns():
    if available_memory() < 6 << 30:
        pytest.skip("needs 6 GB of free memory")
    n, d, k, penalty, part = 250, 1_000_000, 30, 0.3, 20_000
    r = np.random.default_rng(0)
    rows = np.empty((n, d), np.float16)
    gram = np.zeros((n, n))
    side = (r.choice([-1, 1], (n, 1)) * r.gamma(2, 0.7, (n, 1)) * 1e-5).astype(np.float32)
    size = (r.lognormal(0, 0.4, (n, 1)) * 2e-5).astype(np.float32)
    for start in range(0, d, part):
        noise = r.integers(-100, 101, (n, part), dtype=np.int8).astype(np.float32)
        axis = r.integers(-100, 101, part, dtype=np.int8).astype(np.float32)
        rows[:, start : start + part] = size * noise + side * axis
        columns = rows[:, start : start + part].astype(np.float64)
        gram += columns @ columns.T
    picks, gains, conflict = greedy_by_gram(gram, k, penalty)
    sel = spice_rs.select(rows, k, conflict_penalty=penalty)
    assert sel.indices.tolist() == picks
    np.testing.assert_allclose(sel.gains, gains, rtol=1e-10)
    np.testing.assert_allclose(sel.conflict, conflict, atol=1e-10)
    assert sel.overruled.any()


def greedy_by_gram(gram: np.ndarray, k: int, penalty: float) -> tuple[list[int], list[float], list[float]]:
    """The greedy picks (α = 1) of rows whose inner products are `gram`, with their Δ and conflict."""
    norms, picks, gains, conflicts = np.sqrt(np.diag(gram)), [], [], []
    for _ in range(k):
        system = np.eye(len(picks)) + gram[np.ix_(picks, picks)]
        q = norms**2 - (gram[:, picks] * np.linalg.solve(system, gram[picks]).T).sum(1)
        against = np.zeros(len(gram))
        if picks:
            length = np.sqrt(gram[np.ix_(picks, picks)].sum()) / len(picks)
            against = np.maximum(0.0, -gram[:, picks].mean(1) / (norms * length + oracle.ETA))
        score = np.log1p(q) - penalty * against
        score[picks] = -np.inf
        best = int(np.argmax(score))
        gains.append(np.log1p(q[best]))
        conflicts.append(against[best])
        picks.append(best)
    return picks, gains, conflicts


def test_element_types_hold_the_same_rows():
    rows = pools.law("clustered", 100, 8, 2).astype(np.float16)
    reference = spice_rs.select(rows, 40)
    assert_same(reference, spice_rs.select(rows.astype(np.float32), 40))
    assert_same(reference, spice_rs.select(rows.astype(np.float64), 40))
    assert_same(reference, spice_rs.select(np.asfortranarray(rows), 40))
    assert_same(reference, spice_rs.select(rows.astype(">f4"), 40))
    assert_same(reference, spice_rs.select(np.repeat(rows, 2, axis=0)[::2], 40))


def test_unit_rows_compete_by_direction_alone():
    rows = pools.law("clustered", 150, 12, 7).astype(np.float64)
    rows[4] = 0
    sel = spice_rs.select(rows, 149, normalize="unit")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms == 0, 1, norms)
    assert oracle.judge(unit, sel.indices, 1.0, 0.1) is None
    np.testing.assert_allclose(sel.base[sel.base > 0], np.log(2), rtol=1e-14)
    for scale in (1e-200, 1e200):
        scaled = spice_rs.select(rows * scale, 50, normalize="unit")
        assert scaled.indices.tolist() == sel.indices[:50].tolist()


# --- settings that do nothing ------------------------------------------------------------------------------------


def warnings_of(*args, **keywords) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spice_rs.select(*args, **keywords)
    assert all(w.category is SpiceWarning for w in caught)
    return [str(w.message) for w in caught]


def test_a_penalty_that_changes_nothing_is_said_aloud():
    rows = np.abs(pools.law("clustered", 100, 8, 1))
    assert any("changed none of the 20 picks" in m for m in warnings_of(rows, 20, conflict_penalty=0.1))
    assert any("changed none of the 20 picks" in m for m in warnings_of(rows, 20, preset="paper"))
    assert warnings_of(rows, 20) == []  # nobody asked for the default
    assert warnings_of(rows, 20, conflict_penalty=0.0) == []
    assert warnings_of(pools.law("opposed", 500, 8, 1), 100, conflict_penalty=0.5) == []


def test_a_scale_that_makes_u_linear_or_constant_is_said_aloud():
    rows = pools.law("clustered", 100, 8, 1)
    assert any("U is linear" in m for m in warnings_of(rows, 20, alpha=1e-9, conflict_penalty=0))
    big = np.eye(50) * np.linspace(1e6, 1.01e6, 50)[:, None]
    assert any("same to 1 %" in m for m in warnings_of(big, 20, conflict_penalty=0))


def test_a_picked_zero_row_is_said_aloud():
    rows = np.vstack([pools.law("clustered", 10, 4, 1), np.zeros((2, 4), np.float32)])
    assert any("2 of the picks are rows of zeros (the first: row 10)" in m for m in warnings_of(rows, 12))
    assert not any("zeros" in m for m in warnings_of(rows, 10, conflict_penalty=0))


# --- bad input ---------------------------------------------------------------------------------------------------

ROWS = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"k": 0}, "k: found 0"),
        ({"k": 5}, "k: found 5, expected a number from 1 to 4"),
        ({"k": -1}, "k: found -1"),
        ({"k": 2.5}, "k: found 2.5"),
        ({"k": True}, "k: found True"),
        ({"k": 10**20}, "k: found 1"),
        ({"k": 2, "threads": 10**20}, "threads: found 1"),
        ({}, "k: found None"),
        ({"k": 2, "alpha": -1.0}, "alpha: found -1"),
        ({"k": 2, "alpha": 0}, "alpha: found 0"),
        ({"k": 2, "alpha": float("nan")}, "alpha: found nan"),
        ({"k": 2, "alpha": 1e308 * 10}, "alpha: found inf"),
        ({"k": 2, "conflict_penalty": -0.1}, "conflict_penalty: found -0.1"),
        ({"k": 2, "early_stop": 0.0}, "early_stop: found 0"),
        ({"k": 2, "early_stop": 1.0}, "early_stop: found 1"),
        ({"k": 2, "fisher": "kfac"}, "fisher: found"),
        ({"k": 2, "method": "best"}, "method: found"),
        ({"k": 2, "search": "quick"}, "search: found"),
        ({"k": 2, "normalize": "l2"}, "normalize: found 'l2'"),
        ({"k": 2, "normalize": None}, "normalize: found None"),
        ({"k": 2, "normalize": "mean"}, "normalize: found 'mean'"),
        ({"k": 2, "threads": 0}, "threads: found 0"),
        ({"k": 2, "threads": 10**6}, "threads: found 1000000, expected a whole number from 1 to 4096"),
        ({"k": 2, "alpha": [1]}, "alpha: found [1]"),
        ({"k": 2, "conflict_penalty": "x"}, "conflict_penalty: found 'x'"),
        ({"k": 2, "early_stop": "a"}, "early_stop: found 'a'"),
        ({"k": 2, "time_limit": "5s"}, "time_limit: found '5s'"),
        ({"k": 2, "epsilon": None}, "epsilon: found None"),
        ({"k": 2, "preset": ["paper"]}, "preset: found ['paper']"),
        ({"k": 2, "fisher": None}, "fisher: found None"),
        ({"k": 2, "method": 3}, "method: found 3"),
        ({"k": 2, "search": None}, "search: found None"),
        ({"k": 2, "seed": -1}, "seed: found -1"),
        ({"pool_size": 2}, "pool_size: found"),
        ({"k": 2, "pool_size": 2, "select_per_window": 1}, "pool_size: found"),
        ({"select_per_window": 1}, "select_per_window: found"),
        ({"pool_size": 2, "select_per_window": 3}, "select_per_window: found 3"),
        ({"pool_size": 0, "select_per_window": 0}, "pool_size: found 0"),
    ],
)
def test_bad_arguments_name_themselves(keywords, says):
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(ROWS, **keywords)
    assert says in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_that_is_not_finite_is_named(bad, dtype):
    rows = np.ones((9, 5), dtype)
    rows[6, 2] = bad
    with pytest.raises(InvalidInputError, match="row 6, column 2: found"):
        spice_rs.select(rows, 2)


def test_rows_too_large_for_float64_are_refused():
    with pytest.raises(InvalidInputError, match="row 1: found a squared norm that overflows"):
        spice_rs.select(np.array([[1.0], [1e200]]), 1)
    for method in ("greedy", "top_k"):
        with pytest.raises(InvalidInputError, match="alpha: found 1 with rows up to"):
            spice_rs.select(np.array([[1.0], [1e7]]), 1, method=method)
    with pytest.raises(InvalidInputError, match="alpha"):
        spice_rs.log_det(np.array([[1.0], [1e7]]), [0])


def test_log_det_keeps_its_digits_where_gains_lose_theirs():
    rows = np.random.default_rng(0).standard_normal((12, 4)) * 1e5
    sel = spice_rs.select(rows, 12)
    exact = sum(math.log(x) for x in np.linalg.svd(np.vstack([np.eye(4), rows]), compute_uv=False)) * 2
    assert sel.log_det == pytest.approx(exact, abs=1e-9)
    assert spice_rs.log_det(rows, []) == 0.0


@pytest.mark.parametrize(
    "source",
    [
        np.ones(3),
        np.ones((2, 2, 2)),
        np.ones((0, 4)),
        np.ones((4, 0)),
        np.ones((2, 2), int),
        np.ones((2, 2), complex),
    ],
)
def test_wrong_rank_or_element_type_is_refused(source):
    with pytest.raises(InvalidInputError, match="found"):
        spice_rs.select(source, 1)


def test_lists_are_not_guessed_at():
    with pytest.raises(InvalidInputError, match="list"):
        spice_rs.select([[1.0]], 1)


# --- long runs ---------------------------------------------------------------------------------------------------


def test_progress_calls_count_up_and_their_errors_end_the_run():
    rows = pools.law("flat", 4000, 128, 0)
    seen: list[tuple[int, float, int]] = []
    sel = spice_rs.select(rows, 300, search="eager", progress=lambda *state: seen.append(state))
    assert seen[-1] == (300, sel.gains[-1], sel.rows_read.sum())
    assert [picks for picks, _, _ in seen] == sorted({picks for picks, _, _ in seen})

    def refuse(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        spice_rs.select(rows, 3000, search="eager", progress=refuse)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_within_a_second():
    script = """
        import sys, time, numpy as np, spice_rs
        rows = np.random.default_rng(0).standard_normal((30_000, 256), dtype=np.float32)
        started = []
        def progress(picks, gain, rows_read):
            if not started:
                started.append(1); print("running", flush=True)
        try:
            spice_rs.select(rows, 20_000, search="eager", progress=progress)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - sent < 1.0
    process.wait(10)


def test_importing_the_package_is_light():
    script = "import sys, spice_rs; print([m for m in ('torch', 'transformers', 'tqdm', 'datasets') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
