"""Properties of runs: one holds all shorter ones, and an interrupted one ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest

import oracle
import pools
import spice_rs
from spice_rs import InvalidInputError, Selection, SpiceWarning, StoreError, StoreMismatchError
from spice_rs.selection.saved import read_run

PICKED = ("indices", "gains", "base", "conflict", "scores", "overruled", "log_dets")
ROWS = pools.law("opposed", 400, 12, 5)
ROWS[[40, 41, 42, 300]] = ROWS[7]  # twins
MODES = [
    {},
    {"search": "eager"},
    {"early_stop": 0.045},
    {"fisher": "diagonal"},
    {"fisher": "scalar"},
    {"method": "top_k"},
    {"normalize": "unit", "conflict_penalty": 0.0},
]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def assert_same(a: Selection, b: Selection) -> None:
    """Bit for bit the same run; only how many rows it took to find the picks may differ."""
    for name in PICKED:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.stop_reason, a.log_det, a.signal) == (b.stop_reason, b.log_det, b.signal)
    assert a.settings == b.settings


def interrupted(rows, checkpoint, after: int, monkeypatch, **keywords) -> int:
    """Start a run that ends with an error once there are `after` picks; return how many it has kept."""
    monkeypatch.setattr("spice_rs.selection.run.INTERVAL", 0.0)

    def stop(picks, *_):
        if picks >= after:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        spice_rs.select(rows, checkpoint=checkpoint, progress=stop, **keywords)
    return len(read_run(checkpoint))


# --- one run holds all shorter ones ------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", MODES, ids=str)
def test_a_head_is_the_run_with_the_smaller_budget(keywords):
    run = spice_rs.select(ROWS, 200, **keywords)
    for k in (1, 11, 12, 13, 40, len(run)):
        head, short = run.head(k), spice_rs.select(ROWS, k, **keywords)
        for name in (*PICKED, "rows_read", "epsilon"):
            if name == "log_dets":  # larger matrices are factored in another order
                np.testing.assert_allclose(head.log_dets, short.log_dets, rtol=1e-12)
            else:
                np.testing.assert_array_equal(getattr(head, name), getattr(short, name), err_msg=name)
        assert head.log_det == pytest.approx(short.log_det, rel=1e-12)
        assert (head.stop_reason, head.signal, head.settings) == ("budget", short.signal, short.settings)
        assert head.settings["k"] == k
    assert run.settings["k"] == 200


@pytest.mark.parametrize("keywords", MODES, ids=str)
@pytest.mark.parametrize("alpha", [1.0, 1e6])
def test_log_dets_are_u_of_every_prefix(keywords, alpha):
    run = spice_rs.select(ROWS, 90, alpha=alpha, **keywords)
    rows = ROWS.astype(np.float64)
    if keywords.get("normalize") == "unit":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [oracle.log_det(rows[run.indices[: t + 1]], alpha) for t in range(len(run))]
    np.testing.assert_allclose(run.log_dets, expected, rtol=1e-9)
    assert run.log_det == run.log_dets[-1]


def test_log_dets_of_more_picks_than_a_chunk_holds_match_the_definition():
    rows = pools.law("clustered", 700, 3, 1)
    run = spice_rs.select(rows, 700, method="top_k")
    for t in (1, 2, 3, 4, 6, 7, 300, 699, 700):
        assert run.log_dets[t - 1] == pytest.approx(spice_rs.log_det(rows, run.indices[:t]), rel=1e-12)


def test_of_windows_only_the_last_log_det_is_given():
    run = spice_rs.select(ROWS, pool_size=100, select_per_window=30)
    assert np.isnan(run.log_dets[:-1]).all()
    assert run.log_det == run.log_dets[-1] == pytest.approx(oracle.log_det(ROWS[run.indices], 1.0), rel=1e-9)


def test_a_head_of_windows_is_refused():
    run = spice_rs.select(ROWS, pool_size=50, select_per_window=5)
    with pytest.raises(InvalidInputError, match="windows"):
        run.head(5)


@pytest.mark.parametrize("k", [0, -1, 21, 2.0, True, None, "3"])
def test_a_head_out_of_range_names_k(k):
    with pytest.raises(InvalidInputError, match="k: found .* from 1 to 20"):
        spice_rs.select(ROWS, 20).head(k)


def test_a_head_is_no_view_of_its_run():
    run = spice_rs.select(ROWS, 20)
    head = run.head(5)
    head.gains[:] = 0
    head.settings["source"]["rows"] = 0
    assert run.gains.all()
    assert run.settings["source"]["rows"] == 400


# --- interruption and resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", MODES, ids=str)
@pytest.mark.parametrize("cut", [1, 13, 59])
def test_a_resumed_run_ends_with_the_same_bits(keywords, cut, tmp_path):
    whole = spice_rs.select(ROWS, 60, **keywords)
    if cut >= len(whole):
        pytest.skip("the run is shorter")
    file = tmp_path / "run"
    spice_rs.select(ROWS, cut, checkpoint=file, **keywords)
    assert_same(spice_rs.select(ROWS, 60, checkpoint=file, **keywords), whole)
    assert_same(spice_rs.select(ROWS, 60, checkpoint=file, **keywords), whole)
    assert_same(Selection.load(file, ROWS), whole)


@pytest.mark.slow
def test_an_exception_of_the_progress_function_leaves_a_checkpoint_to_resume_from(tmp_path, monkeypatch):
    rows = pools.law("opposed", 12_000, 128, 2)
    file = tmp_path / "run"
    kept = interrupted(rows, file, 5, monkeypatch, k=2000, search="eager")
    assert 5 <= kept < 2000
    with pytest.raises(InvalidInputError, match=f"interrupted after {kept} picks"):
        Selection.load(file)
    seen = []
    resumed = spice_rs.select(rows, 2000, checkpoint=file, progress=lambda picks, *_: seen.append(picks))
    assert seen[0] >= kept  # nothing is searched for again
    assert_same(resumed, spice_rs.select(rows, 2000))


def test_a_checkpoint_serves_larger_and_smaller_budgets(tmp_path):
    file = tmp_path / "run"
    spice_rs.select(ROWS, 50, checkpoint=file)
    before = file.read_bytes()
    assert_same(spice_rs.select(ROWS, 20, checkpoint=file), spice_rs.select(ROWS, 20))
    assert file.read_bytes() == before, "a smaller budget must not cost the longer run its picks"
    assert_same(spice_rs.select(ROWS, 400, checkpoint=file), spice_rs.select(ROWS, 400))
    assert_same(spice_rs.select(ROWS, early_stop=None, k=400, checkpoint=file), spice_rs.select(ROWS, 400))


def test_a_checkpoint_without_a_budget_resumes_to_the_same_early_stop(tmp_path):
    whole = spice_rs.select(ROWS, early_stop=0.3)
    assert whole.stop_reason == "early_stop"
    file = tmp_path / "run"
    spice_rs.select(ROWS, len(whole) // 2, early_stop=0.3, checkpoint=file)
    assert_same(spice_rs.select(ROWS, early_stop=0.3, checkpoint=file), whole)
    exhausted = spice_rs.select(np.eye(4), early_stop=0.5, checkpoint=tmp_path / "eye")
    assert exhausted.stop_reason == "exhausted"
    assert_same(spice_rs.select(np.eye(4), early_stop=0.5, checkpoint=tmp_path / "eye"), exhausted)


def test_a_run_over_a_store_resumes_by_dataset_rows(tmp_path):
    order = np.random.default_rng(0).permutation(400)
    store = tmp_path / "store"
    with spice_rs.GradientStore.create(store, dim=12, dtype="float32", rows_per_shard=90) as writer:
        writer.append(ROWS[order], index=1000 + order)
    whole = spice_rs.select(store, 80)
    np.testing.assert_array_equal(whole.indices, 1000 + spice_rs.select(ROWS, 80).indices)
    spice_rs.select(store, 30, checkpoint=tmp_path / "run")
    assert_same(spice_rs.select(store, 80, checkpoint=tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"alpha": 2.0}, "alpha: found 1.0, expected 2.0"),
        ({"conflict_penalty": 0.2}, "conflict_penalty: found 0.1, expected 0.2"),
        ({"fisher": "scalar"}, "fisher: found 'full', expected 'scalar'"),
        ({"early_stop": 0.5}, "early_stop: found None, expected 0.5"),
        ({"normalize": "unit"}, "normalize: found 'none', expected 'unit'"),
        ({"method": "top_k"}, "method: found 'greedy', expected 'top_k'"),
        ({"source": ROWS[:-1]}, "source.rows: found 400, expected 399"),
        ({"source": ROWS.astype(np.float64)}, "source.dtype: found 'float32', expected 'float64'"),
        ({"source": -ROWS}, "source.fingerprint: found 'xxh3-64:"),
    ],
)
def test_a_checkpoint_of_another_run_names_the_field_and_stays(keywords, field, tmp_path):
    file = tmp_path / "run"
    spice_rs.select(ROWS, 20, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(StoreMismatchError) as caught:
        spice_rs.select(keywords.pop("source", ROWS), 30, checkpoint=file, **keywords)
    assert f"{file}: {field}" in str(caught.value)
    assert "another file" in str(caught.value)
    assert file.read_bytes() == before


def test_other_threads_and_another_search_may_resume(tmp_path):
    file = tmp_path / "run"
    spice_rs.select(ROWS, 20, checkpoint=file, search="eager", threads=1)
    assert_same(spice_rs.select(ROWS, 60, checkpoint=file, threads=2), spice_rs.select(ROWS, 60))


def test_a_file_that_is_no_checkpoint_is_refused_and_stays(tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text('{"instruction": "do not overwrite me"}\n' * 9)
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"pool\.jsonl: file: found"):
        spice_rs.select(ROWS, 5, checkpoint=file)
    assert file.read_bytes() == before
    for place in (tmp_path, tmp_path / "none" / "run"):
        with pytest.raises(InvalidInputError, match="expected a place for a file"):
            spice_rs.select(ROWS, 5, checkpoint=place)


def test_windows_have_no_checkpoint(tmp_path):
    with pytest.raises(InvalidInputError, match="checkpoint: found it beside pool_size=50"):
        spice_rs.select(ROWS, pool_size=50, select_per_window=5, checkpoint=tmp_path / "run")


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spice_rs.selection.run.INTERVAL", 0.0)
    monkeypatch.setattr("spice_rs.selection.checkpoint.write_run", full)
    with pytest.raises(OSError, match="No space left"):
        spice_rs.select(ROWS, 400, search="eager", checkpoint=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


RUN = """
    import sys, numpy as np, spice_rs
    import spice_rs.selection.selection
    spice_rs.selection.run.INTERVAL = 0.05
    keywords = {"early_stop": 0.03} if sys.argv[3] == "early" else {}
    def progress(picks, gain, rows_read):
        print(picks, flush=True)
    spice_rs.select(
        np.load(sys.argv[1]), 700, search="eager", threads=1, checkpoint=sys.argv[2], progress=progress, **keywords
    )
"""


def start(folder, how="budget", script=RUN) -> subprocess.Popen[str]:
    """Run `script` on the pool in `folder`."""
    command = [sys.executable, "-c", textwrap.dedent(script), folder / "rows.npy", folder / "run", how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def pool(tmp_path):
    """A pool with many twins that the eager search takes seconds for."""
    rows = pools.law("clustered", 30_000, 96, 8)
    rows[3000:3500] = rows[:500]
    np.save(tmp_path / "rows.npy", rows)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("how", ["budget", "early"])
def test_a_run_killed_at_random_moments_ends_with_the_same_picks(how, pool, tmp_path):
    moments, kept, kills = random.Random(how), 0, 0
    while (process := start(tmp_path, how)).stdout is not None:
        wanted = kept + moments.randint(1, 60) if kills < 5 else 10**9
        for line in process.stdout:
            if int(line) >= wanted:
                time.sleep(moments.uniform(0, 0.1))
                process.kill()
                break
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        before, kept = kept, len(read_run(tmp_path / "run")) if (tmp_path / "run").exists() else 0
        assert kept >= before
    assert kills == 5
    assert 0 < kept < 700
    keywords = {"early_stop": 0.03} if how == "early" else {}
    whole = spice_rs.select(pool, 700, **keywords)
    assert whole.stop_reason == ("early_stop" if how == "early" else "budget")
    resumed = Selection.load(tmp_path / "run", pool)
    assert_same(resumed, whole)


@pytest.mark.slow
def test_ctrl_c_keeps_the_picks_within_a_second(pool, tmp_path):
    process = start(tmp_path, script=RUN.replace("INTERVAL = 0.05", "INTERVAL = 1e9"))
    assert process.stdout is not None
    seen = int(process.stdout.readline())
    assert not (tmp_path / "run").exists()
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - sent < 2  # a second, and the interpreter's own end
    kept = len(read_run(tmp_path / "run"))
    assert seen <= kept < 700
    assert_same(spice_rs.select(pool, 700, checkpoint=tmp_path / "run"), spice_rs.select(pool, 700))


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "run"
    spice_rs.select(ROWS, 20).save(file)
    before = file.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        spice_rs.select(ROWS, 30).save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


# --- the time limit ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_time_limit_ends_a_run_with_a_prefix_of_its_picks(tmp_path):
    rows = pools.law("flat", 20_000, 256, 1)
    started = time.monotonic()
    limited = spice_rs.select(rows, 20_000, search="eager", time_limit=1.0, checkpoint=tmp_path / "run")
    assert time.monotonic() - started < 5
    m = len(limited)
    assert limited.stop_reason == "time_limit"
    assert 0 < m < 20_000
    short = spice_rs.select(rows, m)
    np.testing.assert_array_equal(limited.indices, short.indices)
    np.testing.assert_array_equal(limited.gains, short.gains)
    assert limited.log_det == short.log_det
    assert_same(spice_rs.select(rows, m + 3, checkpoint=tmp_path / "run"), spice_rs.select(rows, m + 3))


@pytest.mark.slow
def test_a_time_limit_in_the_middle_of_any_step_loses_no_pick():
    # Of the eager search most steps are passes over the rows, some factor a 700 × 700 matrix.
    rows = pools.law("flat", 4000, 700, 1).astype(np.float64)
    whole = spice_rs.select(rows, 4000)
    for limit in (0.2, 0.5, 0.9, 1.4):
        seen = [0]
        limited = spice_rs.select(
            rows,
            4000,
            search="eager",
            time_limit=limit,
            progress=lambda picks, *_, seen=seen: seen.append(picks),
        )
        assert limited.stop_reason == "time_limit"
        assert len(limited) == max(seen)
        np.testing.assert_array_equal(limited.indices, whole.indices[: len(limited)])


def test_a_time_limit_shorter_than_the_first_reading_gives_no_picks(tmp_path):
    limited = spice_rs.select(ROWS, 20, time_limit=1e-9, checkpoint=tmp_path / "run")
    assert (len(limited), limited.stop_reason, limited.log_det) == (0, "time_limit", 0.0)
    assert limited.signal > 0
    assert "0 of 400 rows" in repr(limited)
    limited.save(tmp_path / "sel")
    assert len(Selection.load(tmp_path / "sel", ROWS)) == 0
    assert_same(spice_rs.select(ROWS, 20, checkpoint=tmp_path / "run"), spice_rs.select(ROWS, 20))


def test_a_time_limit_keeps_the_picks_that_a_checkpoint_had(tmp_path):
    file = tmp_path / "run"
    spice_rs.select(ROWS, 30, checkpoint=file)
    limited = spice_rs.select(ROWS, 60, time_limit=1e-9, checkpoint=file)
    assert (len(limited), limited.stop_reason) == (30, "time_limit")
    assert len(spice_rs.select(ROWS, 30, time_limit=1e-9, checkpoint=file)) == 30
    assert_same(spice_rs.select(ROWS, 60, checkpoint=file), spice_rs.select(ROWS, 60))


def test_a_time_limit_that_does_not_pass_changes_nothing():
    assert_same(spice_rs.select(ROWS, 60, time_limit=1e300), spice_rs.select(ROWS, 60))


@pytest.mark.slow
def test_with_windows_a_time_limit_gives_whole_windows():
    none = spice_rs.select(ROWS, pool_size=100, select_per_window=10, time_limit=1e-9)
    assert (len(none), none.stop_reason) == (0, "time_limit")
    rows = pools.law("flat", 30_000, 64, 1)
    whole = spice_rs.select(rows, pool_size=300, select_per_window=150, search="eager")
    some = spice_rs.select(rows, pool_size=300, select_per_window=150, search="eager", time_limit=0.4)
    windows = whole.indices.reshape(-1, 150).tolist()
    assert all(window in windows for window in some.indices.reshape(-1, 150).tolist())


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_no_length_of_time_names_itself(limit):
    with pytest.raises(InvalidInputError, match="time_limit: found"):
        spice_rs.select(ROWS, 5, time_limit=limit)
