"""A pool that grows: `extend` is `select` on the grown pool, and reads little."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pools
import spice_rs
from command import run
from counts import cases
from spice_rs import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.selection.from_file import read_selection
from spice_rs.store.sources import open_source

SERIES = ("indices", "gains", "base", "conflict", "scores", "overruled")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def assert_same(a: spice_rs.Selection, b: spice_rs.Selection) -> None:
    for name in SERIES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_allclose(a.log_dets, b.log_dets, rtol=1e-12)
    assert (a.stop_reason, a.signal) == (b.stop_reason, b.signal)


@cases(300)
@given(
    pools.cases(),
    st.integers(0, 2**32),
    st.sampled_from([None, None, 0.3]),
    st.sampled_from(["full", "full", "full", "diagonal", "scalar"]),
)
def test_an_extended_selection_is_a_fresh_one(case, seed, omega, fisher):
    r = np.random.default_rng(seed)
    n = len(case.rows)
    count = int(r.integers(1, n)) if n > 1 and r.random() < 0.5 else max(1, n - int(r.integers(0, 4)))
    old = np.arange(count) if r.random() < 0.5 else np.sort(r.permutation(n)[:count])
    keywords = {
        "alpha": case.alpha,
        "conflict_penalty": case.penalty,
        "early_stop": omega,
        "fisher": fisher,
    }
    k = int(r.integers(1, n + 1))
    # As rows of a source that knows them by the same dataset rows.
    before = at(case.rows[old], old, int(r.integers(1, count + 1)), keywords)
    fresh = spice_rs.select(case.rows, k, search="eager", **keywords)
    for hot_rows, search in ((1, "lazy"), (3, "lazy"), (9, "lazy_gain"), (None, "lazy"), (2, "eager")):
        after = spice_rs.extend(
            before,
            case.rows,
            k=k,
            old_rows=old,
            search=search,
            hot_rows=hot_rows,
            threads=int(r.choice([1, 2, 3])),
        )
        assert_same(after, fresh)
        same = [a == b for a, b in zip(before.indices.tolist(), fresh.indices.tolist(), strict=False)]
        assert after.unchanged == (same.index(False) if False in same else len(same))
        assert after.kept == len(set(before.indices.tolist()) & set(fresh.indices.tolist()))
        assert after.settings["k"] == k


def at(rows: np.ndarray, index: np.ndarray, k: int, keywords: dict) -> spice_rs.Selection:
    """Return a selection from rows that have the given dataset rows."""
    opened = open_source(rows)
    selection = spice_rs.select(rows, k, **keywords)
    source = selection.settings["source"]
    source["content"] = spice_rs._core.fingerprint(
        dataclasses.replace(opened.stored, index=index.astype(np.int64)), threads=1
    )
    return spice_rs.Selection(
        **{name: getattr(selection, name) for name in (*SERIES[1:], "rows_read", "log_dets")},
        indices=index[selection.indices].astype(np.int64),
        stop_reason=selection.stop_reason,
        log_det=selection.log_det,
        signal=selection.signal,
        settings=selection.settings,
    )


ROWS = pools.law("clustered", 5000, 24, 3)


def test_rows_that_nobody_picks_are_all_that_is_read():
    weak = 1e-3 * pools.law("unit", 500, 24, 4).astype(np.float32)
    rows = np.vstack([ROWS.astype(np.float32), weak])
    before = spice_rs.select(rows[:5000], 300)
    after = spice_rs.extend(before, rows)
    fresh = spice_rs.select(rows, 300)
    assert_same(after, fresh)
    assert after.kept == after.unchanged == 300
    assert after.rows_read.sum() < 1200 < fresh.rows_read.sum()
    assert "300 picks kept" in repr(after)
    assert after.head(20).kept == 20
    longer = spice_rs.extend(before, rows, k=350)
    assert_same(longer, spice_rs.select(rows, 350))
    assert longer.kept == 300


def test_settings_that_did_nothing_are_said_aloud_as_by_select():
    def said(function, *arguments, **keywords):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(*arguments, **keywords)
        assert {each.filename for each in caught} == {__file__}
        return [str(each.message) for each in caught]

    rows = np.vstack([np.eye(8), 0.5 * np.eye(8), np.zeros((2, 8))])
    before = spice_rs.select(rows[:12], 4, alpha=1e-6)
    assert said(spice_rs.extend, before, rows) == said(spice_rs.select, rows, 4, alpha=1e-6)
    assert any("zeros" in message for message in said(spice_rs.extend, before, rows, k=17))


def test_a_new_row_that_wins_ends_the_prefix():
    strong = 300 * pools.law("unit", 3, 24, 5)
    rows = np.vstack([ROWS, strong.astype(ROWS.dtype)])
    after = spice_rs.extend(spice_rs.select(ROWS, 100), rows)
    assert after.unchanged == 0
    assert 0 < after.kept <= 97
    assert_same(after, spice_rs.select(rows, 100))


def test_a_store_grows_by_new_shards(tmp_path, capsys):
    rows = ROWS.astype(np.float16)

    def append(first: int, last: int) -> None:
        with spice_rs.GradientStore.create(tmp_path / "store", dim=24, dtype="float16") as writer:
            writer.append(rows[first:last], index=np.arange(first, last))

    append(0, 4000)
    before = spice_rs.select(tmp_path / "store", 200)
    before.save(tmp_path / "before")
    append(4000, 5000)
    after = spice_rs.extend(spice_rs.Selection.load(tmp_path / "before"), tmp_path / "store")
    assert_same(after, spice_rs.select(tmp_path / "store", 200))
    after.save(tmp_path / "after")
    assert spice_rs.Selection.load(tmp_path / "after", tmp_path / "store").kept == after.kept
    assert run("extend", tmp_path / "before", tmp_path / "store", "--out", tmp_path / "picks.jsonl") == 0
    lines = (tmp_path / "picks.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == after.indices.tolist()
    assert f"{after.kept} picks kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], ["4999 old rows", "5000"]),
        (lambda rows: np.vstack([rows[:1] * 2, rows[1:], rows[:1]]), ["content of the 5000 old rows"]),
        (lambda rows: np.vstack([rows[:1], rows]), ["content", "old_rows"]),
        (lambda rows: rows[:, :20], ["dim", "20", "24"]),
        (lambda rows: rows.astype(np.float16), ["dtype", "float16", "float32"]),
    ],
)
def test_a_pool_that_did_not_grow_from_the_earlier_one_is_refused(change, words):
    before = spice_rs.select(ROWS, 10)
    with pytest.raises(StoreMismatchError) as caught:
        spice_rs.extend(before, change(ROWS))
    assert all(word in str(caught.value) for word in words), caught.value


def test_rows_in_between_are_named():
    rows = np.vstack([ROWS[:1] * 0.5, ROWS])
    after = spice_rs.extend(at(ROWS, np.arange(1, 5001), 50, {}), rows, old_rows=np.arange(1, 5001))
    assert_same(after, spice_rs.select(rows, 50))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"pool_size": 100, "select_per_window": 2}, "pool_size=100"),
        ({"k": 10, "method": "stochastic"}, "stochastic"),
        ({"k": 10, "exclude": [3]}, "exclude"),
        ({"k": 10, "groups": [0, 1] * 2500}, "groups"),
    ],
)
def test_selections_of_another_kind_are_refused(keywords, words):
    before = spice_rs.select(ROWS, **keywords)
    with pytest.raises(InvalidInputError, match=words):
        spice_rs.extend(before, ROWS)


def test_picks_scored_again_from_a_list_are_refused(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "picks.txt").write_text("7\n30\n2\n")  # whoever chose them: not the best ones
    again = read_selection(tmp_path / "picks.txt", tmp_path / "rows.npy")
    again.save(tmp_path / "again")
    with pytest.raises(InvalidInputError, match="scored again from a list, expected what select returned"):
        spice_rs.extend(spice_rs.Selection.load(tmp_path / "again"), ROWS)
    assert run("extend", tmp_path / "again", tmp_path / "rows.npy") == 2
    assert "or load what select --save wrote" in capsys.readouterr().err
