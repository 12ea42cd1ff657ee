"""Conditions of a selection as users give them: arrays and columns, quotas, files, messages.

What a run makes of them is in test_constraints.py.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pools
import spice_rs
from command import run
from counts import cases
from spice_rs import InvalidInputError, Selection, SpiceWarning, StoreMismatchError, _core
from spice_rs.report.shares import group_table
from spice_rs.selection import quotas
from spice_rs.selection.picks import pick_lines, read_rows
from spice_rs.selection.requested import Requested
from spice_rs.store.sources import open_source

N = 60
ROWS = pools.law("opposed", N, 6, 2)
LABELS = [("maths", "code", "chat", "chat")[i * i % 7 % 4] for i in range(N)]
COSTS = [1 + i * 7 % 11 for i in range(N)]
RECORDS = [
    {
        "instruction": f"do {i}",
        "response": f"done {i}",
        "source": LABELS[i],
        "tokens": COSTS[i],
        "quality": i / 9,
    }
    for i in range(N)
]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


@pytest.fixture
def calls(monkeypatch):
    """What every run of the core is asked for."""
    made, select = [], _core.select

    def watched(pool, objective, constraints, *, control, **keywords):
        asked = {**vars(constraints), "weights": pool.weights, "time_limit": control.time_limit}
        made.append(asked)
        return select(pool, objective, constraints, control=control, **keywords)

    monkeypatch.setattr(_core, "select", watched)
    return made


@pytest.fixture
def store(tmp_path):
    """A store of some dataset rows, in an order of its own; returns it and its rows' dataset rows."""
    index = np.random.default_rng(0).permutation(3 * N)[:N]
    with spice_rs.GradientStore.create(
        tmp_path / "store", dim=6, dtype="float32", rows_per_shard=23
    ) as writer:
        writer.append(ROWS, index=index, num_tokens=np.array(COSTS, np.int32))
    return tmp_path / "store", spice_rs.GradientStore(tmp_path / "store").index


def warnings_of(*arguments, **keywords) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spice_rs.select(*arguments, **keywords)
    return [str(each.message) for each in caught]


# --- values ------------------------------------------------------------------------------------------------------


def columns_of(values):
    """The same values as everything that holds a column."""
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    return {
        "list": values,
        "tuple": tuple(values),
        "array": np.array(values),
        "objects": np.array(values, object),
        "scalars": list(np.array(values)),
        "series": pandas.Series(values, index=range(1, len(values) + 1)),
        "categories": pandas.Series(values, dtype="category"),
        "dataset": datasets.Dataset.from_dict({"x": values})["x"],
    }


@pytest.mark.parametrize("kind", ["str", "int", "bool"])
def test_labels_may_be_anything_that_holds_a_column(kind):
    labels = {"str": LABELS, "int": [len(x) for x in LABELS], "bool": [x == "code" for x in LABELS]}[kind]
    expected = spice_rs.select(ROWS, 12, groups=labels)
    assert expected.groups.tolist() == [labels[row] for row in expected.indices]
    assert expected.groups.dtype == {"str": object, "int": np.int64, "bool": bool}[kind]
    for name, column in columns_of(labels).items():
        sel = spice_rs.select(ROWS, 12, groups=column)
        assert sel.indices.tolist() == expected.indices.tolist(), name
        assert sel.settings == expected.settings, name


def test_numbers_may_be_anything_that_holds_a_column():
    expected = spice_rs.select(ROWS, 12, weights=COSTS).settings["weights"]
    for name, column in columns_of(COSTS).items():
        if name != "categories":
            assert spice_rs.select(ROWS, 12, weights=column).settings["weights"] == expected, name
    assert spice_rs.select(ROWS, 12, weights=np.array(COSTS, np.float32)).settings["weights"] == expected


def test_columns_of_the_data_are_read_like_arrays(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    arrays = {"groups": LABELS, "weights": COSTS, "prior": [record["quality"] for record in RECORDS]}
    expected = spice_rs.select(ROWS, 12, **arrays)
    for data in (
        tmp_path / "pool.jsonl",
        str(tmp_path / "pool.jsonl"),
        RECORDS,
        datasets.Dataset.from_list(RECORDS),
    ):
        sel = spice_rs.select(ROWS, 12, data=data, groups="source", weights="tokens", prior="quality")
        assert sel.settings == expected.settings
        assert sel.indices.tolist() == expected.indices.tolist()


def test_values_follow_their_dataset_rows_into_a_store(store, calls):
    path, index = store
    labels, weights = [f"group {i % 5}" for i in range(3 * N)], np.arange(3 * N) + 1.0
    spice_rs.select(path, 9, groups=labels, weights=weights, exclude=index[:3], include=index[[7, 5]])
    call = calls[-1]
    np.testing.assert_array_equal(call["weights"], weights[index])
    assert call["exclude"].tolist() == [0, 1, 2]
    assert call["include"].tolist() == [7, 5]
    names = list(dict.fromkeys(labels[row] for row in np.sort(index)))
    assert [names[code] for code in call["groups"]] == [labels[row] for row in index]
    records = [{"g": label, "w": weight} for label, weight in zip(labels, weights.tolist(), strict=True)]
    spice_rs.select(path, 9, data=records, groups="g", weights="w", exclude=index[:3], include=index[[7, 5]])
    for name in ("weights", "groups", "minima", "maxima"):
        np.testing.assert_array_equal(calls[-1][name], call[name])


def test_how_rows_are_spread_over_shards_is_in_no_setting(tmp_path):
    found = []
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(N)
        with spice_rs.GradientStore.create(
            tmp_path / f"{seed}", dim=6, dtype="float32", rows_per_shard=17
        ) as writer:
            writer.append(ROWS[order], index=order)
        sel = spice_rs.select(
            tmp_path / f"{seed}", 9, groups=LABELS, weights=COSTS, exclude=[3, 1], include=[9, 7]
        )
        found.append({key: value for key, value in sel.settings.items() if key != "source"})
    assert found[0] == found[1]


# --- quotas ------------------------------------------------------------------------------------------------------


@cases(200)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.data())
def test_shares_of_the_pool_are_whole_rows_by_largest_remainder(sizes, data):
    pool = sum(sizes)
    if pool == 0:
        return
    k = data.draw(st.integers(1, pool))
    codes = np.repeat(np.arange(len(sizes)), sizes)
    found = quotas.resolve(
        [f"{i}" for i in range(len(sizes))], codes, np.ones(pool, bool), None, "pool", Fraction(k)
    )
    assert found.minima == found.maxima
    assert sum(found.minima) == k
    exact = [Fraction(k * size, pool) for size in sizes]
    gained = [minimum - share // 1 for minimum, share in zip(found.minima, exact, strict=True)]
    assert set(gained) <= {0, 1}
    assert all(minimum <= size for minimum, size in zip(found.minima, sizes, strict=True))
    for i, a in enumerate(exact):  # whoever was rounded up had more to spare, or as much and came first
        for j, b in enumerate(exact):
            if gained[i] > gained[j]:
                assert (-(a % 1), i) < (-(b % 1), j)


def test_equal_remainders_go_to_the_group_that_appears_first():
    labels = ["b", "c", "a", "a", "c", "b"]
    assert spice_rs.select(np.eye(6), 4, groups=labels).quotas == [["b", 2, 2], ["c", 1, 1], ["a", 1, 1]]
    assert spice_rs.select(np.eye(6), 2, groups=labels, exclude=[0, 5]).quotas == [
        ["b", 0, 0],
        ["c", 1, 1],
        ["a", 1, 1],
    ]


@pytest.mark.parametrize(
    ("share", "k", "expected"),
    [
        ((3, 5), 10, (3, 5)),
        ((None, 4), 10, (0, 4)),
        ((2, None), 10, (2, None)),
        ((0.1, 0.3), 30, (3, 9)),  # tenths of 30, not what float64 makes of them
        ([0.25, 0.75], 10, (3, 7)),
        ((0.0, 1.0), 10, (0, 10)),
        ((np.float32(0.1), np.int64(7)), 30, (3, 7)),
        ((0, 0), 10, (0, 0)),
    ],
)
def test_shares_and_numbers_of_rows_are_rounded_inwards(share, k, expected):
    labels = ["x"] * 20 + ["y"] * 40
    sel = spice_rs.select(ROWS, k, groups=labels, group_shares={"x": share})
    assert sel.quotas == [["x", *expected], ["y", 0, None]]
    inside = int((sel.groups == "x").sum())
    assert expected[0] <= inside <= (k if expected[1] is None else expected[1])


def test_labels_that_are_no_text_may_be_spelled_as_json_has_them():
    sel = spice_rs.select(
        ROWS, 10, groups=[i % 2 for i in range(N)], group_shares={"1": (None, 2), 0: (1, None)}
    )
    assert sel.quotas == [[0, 1, None], [1, 0, 2]]
    sel = spice_rs.select(ROWS, 10, groups=[i % 2 == 0 for i in range(N)], group_shares={"true": (None, 2)})
    assert sel.quotas == [[True, 0, 2], [False, 0, None]]


def test_with_a_budget_quotas_are_cost(calls):
    labels = ["x"] * 20 + ["y"] * 40
    own = [math.fsum(COSTS[:20]), math.fsum(COSTS[20:])]
    sel = spice_rs.select(ROWS, budget=100, costs=COSTS, groups=labels)
    shares = [100 * each / sum(own) for each in own]
    assert [quota[1:] for quota in sel.quotas] == [
        [pytest.approx(share), pytest.approx(share)] for share in shares
    ]
    sel = spice_rs.select(ROWS, budget=100.0, costs=COSTS, groups=labels, group_shares={"x": (0.25, 30.5)})
    assert sel.quotas == [["x", 25.0, 30.5], ["y", 0.0, None]]
    assert calls[-1]["maxima"].tolist() == [30.5, math.inf]


# --- what a budget gives -----------------------------------------------------------------------------------------


def test_of_two_runs_under_a_budget_the_better_is_kept():
    dear_first = np.vstack([np.eye(4)[:1] * 100, np.eye(4)[1:2] * 0.1, np.eye(4)[2:] * 0.05])
    # By value per cost the cheap rows come first, and leave too little for the dear one.
    sel = spice_rs.select(dear_first, budget=100, costs=[100, 0.01, 50, 50], conflict_penalty=0)
    assert sel.indices.tolist() == [0]
    assert sel.compared["kept"] == "uncosted"
    many = np.vstack([np.eye(5)[:1] * 1.5, np.eye(5)[1:]])
    sel = spice_rs.select(many, budget=4, costs=[4, 1, 1, 1, 1], conflict_penalty=0)
    assert sel.indices.tolist() == [1, 2, 3, 4]
    assert sel.compared == {
        "kept": "costed",
        "costed": {"log_det": sel.log_det, "picks": 4, "cost": 4.0},
        "uncosted": {"log_det": pytest.approx(math.log(3.25)), "picks": 1, "cost": 4.0},
    }
    assert sel.costs.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert "4 of 5 rows, cost 4 of 4" in repr(sel)


def test_equal_costs_keep_the_costed_run():
    sel = spice_rs.select(ROWS, budget=9, costs=np.ones(N))
    assert sel.compared["kept"] == "costed"
    assert sel.indices.tolist() == spice_rs.select(ROWS, 9).indices.tolist()


def test_the_same_rows_in_another_order_keep_the_costed_run():
    for seed in range(20):  # U of both is the same but for rounding
        rows = np.random.default_rng(seed).standard_normal((30, 5))
        sel = spice_rs.select(rows, budget=1000, costs=np.arange(30) + 1)
        assert len(sel) == 30
        assert sel.stop_reason == "exhausted"
        assert sel.compared["kept"] == "costed"


def test_costs_are_the_tokens_of_a_store_unless_given(store, calls):
    path, index = store
    sel = spice_rs.select(path, budget=40)
    np.testing.assert_array_equal(calls[0]["costs"], spice_rs.GradientStore(path).num_tokens)
    assert sel.costs.sum() <= 40
    costs = np.arange(3 * N) + 1
    spice_rs.select(path, budget=400, costs=costs)
    np.testing.assert_array_equal(calls[-1]["costs"], costs[index])
    assert ["multiplier" not in call["per_row"] for call in calls] == [False, True] * 2


def test_a_budget_below_one_is_a_share_of_all_costs(calls):
    spice_rs.select(ROWS, budget=0.3, costs=COSTS)
    assert calls[-1]["budget"] == sum(COSTS) * 3 / 10
    spice_rs.select(ROWS, budget=1, costs=COSTS)
    assert calls[-1]["budget"] == 1.0


def test_progress_counts_through_both_runs():
    seen = []
    sel = spice_rs.select(ROWS, budget=60, costs=COSTS, progress=lambda *state: seen.append(state))
    assert seen[-1][0] == sel.compared["costed"]["picks"] + sel.compared["uncosted"]["picks"]
    assert seen == sorted(seen, key=lambda state: (state[0], state[2]))


def test_both_runs_share_the_time(calls):
    spice_rs.select(ROWS, budget=60, costs=COSTS, time_limit=60.0)
    first, second = (call["time_limit"] for call in calls)
    assert first == 30.0
    assert 30 < second <= 60
    spice_rs.select(ROWS, budget=60, costs=COSTS)
    assert calls[-1]["time_limit"] is None


# --- rows by name ------------------------------------------------------------------------------------------------


def test_a_selection_stands_for_its_rows(calls):
    first = spice_rs.select(ROWS, 8)
    sel = spice_rs.select(ROWS, 5, initial=first)
    np.testing.assert_array_equal(calls[-1]["initial"], first.indices)
    assert not set(sel.indices) & set(first.indices)
    assert sel.settings["initial"]["rows"] == 8
    more = spice_rs.select(ROWS, 10, include=first)
    assert more.indices[:8].tolist() == first.indices.tolist()
    assert (more.forced, first.forced) == (8, 0)
    assert spice_rs.select(ROWS, 5, initial=first.indices).settings == sel.settings
    for field in ("initial", "include", "exclude"):
        with pytest.raises(StoreMismatchError, match=f"{field}: source: fingerprint: found .* expected"):
            spice_rs.select(-ROWS, 20, **{field: first})
        with pytest.raises(StoreMismatchError, match="rows: found 60, expected 59"):
            spice_rs.select(ROWS[:-1], 20, **{field: first})


def test_empty_lists_are_no_conditions():
    plain = spice_rs.select(ROWS, 5)
    sel = spice_rs.select(ROWS, 5, initial=[], include=np.array([], np.int64), exclude=())
    assert sel.settings == plain.settings


def test_the_order_of_excluded_rows_does_not_matter():
    first, second = (spice_rs.select(ROWS, 5, exclude=rows).settings for rows in ([4, 9], [9, 4]))
    assert first == second


# --- what is refused ---------------------------------------------------------------------------------------------

SHARES = "group_shares"


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"groups": LABELS[:-1]}, "groups: found 59 values, expected 60, one per row"),
        ({"groups": [*LABELS, "x"]}, "groups: found 61 values, expected 60"),
        ({"groups": [None, *LABELS[1:]]}, "groups: found none for row 0, expected a text"),
        ({"groups": [*LABELS[:-1], math.nan]}, "groups: found float nan for row 59"),
        ({"groups": [*LABELS[:7], 7, *LABELS[8:]]}, "groups: found int 7 for row 7"),
        ({"groups": [["a"]] * N}, "groups: found list ['a'] for row 0"),
        ({"groups": set(LABELS)}, "groups: found set"),
        ({"groups": {"a": 1}}, "groups: found dict"),
        ({"groups": np.ones((N, 2))}, "groups: found an array of shape (60, 2)"),
        ({"groups": "source"}, "groups: found the column name 'source' and no data"),
        ({"groups": "sauce", "data": RECORDS}, "groups: found no 'sauce' in record 0 of data"),
        ({"groups": "source", "data": RECORDS[:50]}, "data: found no record 50, expected all 60 rows"),
        ({"groups": "source", "data": [*RECORDS, {"source": "x"}]}, "data: found more than 60 records, expected 60, one"),
        ({"groups": "source", "data": [*RECORDS, {}, {}]}, "data: found more than 60 records, expected 60, one per row"),
        ({"groups": "source", "data": [*RECORDS[:-1], {"source": None}]}, "groups: found none for row 59 of column"),
        ({"data": RECORDS}, "data: found it without the name of a column"),
        ({SHARES: "pool"}, "group_shares: found it without groups"),
        ({"groups": LABELS, SHARES: "equal"}, "group_shares: found 'equal'"),
        ({"groups": LABELS, SHARES: [0.5, 0.5]}, "group_shares: found [0.5, 0.5]"),
        ({"groups": LABELS, SHARES: {"math": (1, 2)}}, "group_shares: found the label 'math', expected labels of the 3"),
        ({"groups": LABELS, SHARES: {"maths": 3}}, "group_shares['maths']: found 3, expected (minimum, maximum)"),
        ({"groups": LABELS, SHARES: {"maths": (5, 2)}}, "found a minimum of 5 and a maximum of 2 rows"),
        ({"groups": LABELS, SHARES: {"maths": (0.55, 0.55)}}, "a minimum of 6 and a maximum of 5 rows (from (0.55"),
        ({"groups": LABELS, SHARES: {"maths": (1.5, None)}}, "group_shares['maths']: found 1.5"),
        ({"groups": LABELS, SHARES: {"maths": (-1, None)}}, "group_shares['maths']: found -1"),
        ({"groups": LABELS, SHARES: {"maths": (True, None)}}, "group_shares['maths']: found True"),
        ({"groups": LABELS, SHARES: {"maths": (0, 10**400)}}, "group_shares['maths']: found 1000000"),
        ({"groups": LABELS, SHARES: {"maths": (10**5000, None)}}, "group_shares['maths']: found int too long to show"),
        ({"groups": LABELS, SHARES: {"maths": ("a", None)}}, "group_shares['maths']: found 'a'"),
        ({"groups": LABELS, SHARES: {"maths": (math.nan, None)}}, "group_shares['maths']: found nan"),
        ({"groups": LABELS, SHARES: {"code": (9, 9), "maths": (2, 2)}}, "minima of 11 rows in all, expected at most k=10"),
        ({"groups": [*LABELS[:-1], "x"], SHARES: {"x": (2, 2)}}, "minimum of 2 rows for group 'x', expected at most the 1"),
        ({"groups": LABELS, SHARES: dict.fromkeys(LABELS, (0, 3))}, "that allow 9 rows in all, expected at least k=10"),
        ({"groups": [1] * N, SHARES: {1: (1, 2), "1": (1, 2)}}, "group_shares: found twice the label '1'"),
        ({"groups": LABELS, SHARES: {"maths": (1, None)}, "early_stop": 0.5}, "early_stop: found 0.5 beside a minimum for"),
        ({"groups": LABELS, "early_stop": 0.5, "k": None}, "group_shares: found 'pool' and no k"),
        ({"costs": COSTS}, "costs: found it without budget"),
        ({"budget": 9, "costs": COSTS}, "budget: found it beside k=10"),
        ({"budget": 9, "k": None}, "budget: found it without costs for array of shape (60, 6)"),
        ({"budget": 0, "k": None, "costs": COSTS}, "budget: found 0, expected a cost of at least 1, or a share"),
        ({"budget": -2.0, "k": None, "costs": COSTS}, "budget: found -2.0"),
        ({"budget": math.inf, "k": None, "costs": COSTS}, "budget: found inf"),
        ({"budget": 10**400, "k": None, "costs": COSTS}, "budget: found 1000000"),
        ({"budget": 10**5000, "k": None, "costs": COSTS}, "budget: found int too long to show"),
        ({"budget": "9", "k": None, "costs": COSTS}, "budget: found '9'"),
        ({"budget": 9, "k": None, "costs": [0, *COSTS[1:]]}, "costs: found 0 for row 0, expected finite numbers above 0"),
        ({"budget": 9, "k": None, "costs": [*COSTS[:-1], "x"]}, "costs: found str 'x' for row 59, expected a number"),
        ({"budget": 9, "k": None, "costs": [*COSTS[:-1], [1]]}, "costs: found list [1] for row 59"),
        ({"budget": 9, "k": None, "costs": COSTS, "checkpoint": "run"}, "checkpoint: found it beside budget"),
        ({"budget": 9, "k": None, "costs": COSTS, "groups": LABELS, SHARES: {"code": (0.5, 4.0)}}, "minimum of 4.5 and a"),
        ({"budget": 9, "k": None, "costs": COSTS, "groups": LABELS, SHARES: {"code": (10, None)}}, "at most budget=9"),
        ({"weights": -np.ones(N)}, "weights: found -1 for row 0, expected finite numbers above 0"),
        ({"weights": [True] * N}, "weights: found bool True for row 0"),
        ({"weights": [10**400, *COSTS[1:]]}, "weights: found inf for row 0"),
        ({"prior": [0.5] * 59 + [math.nan]}, "prior: found nan for row 59, expected finite numbers"),
        ({"prior": COSTS, "prior_weight": math.inf}, "prior_weight: found inf"),
        ({"prior": COSTS, "prior_weight": 10**400}, "prior_weight: found 1000000"),
        ({"prior": [1e10] * N, "prior_weight": 1e300}, "prior_weight: found 1e+300 with a prior up to 1e+10"),
        ({"prior_weight": 2.0}, "prior_weight: found 2.0 without prior"),
        ({"initial": [3, 60]}, "initial: found 60, expected rows of array of shape (60, 6) (0 to 59). Leave"),
        ({"include": [-1]}, "include: found -1, expected rows of"),
        ({"exclude": [0.5]}, "exclude: found float64 of shape (1,), expected whole numbers"),
        ({"exclude": [True, False]}, "exclude: found bool of shape (2,)"),
        ({"exclude": {1, 2}}, "exclude: found set, expected whole numbers in one dimension. Pass a list"),
        ({"include": frozenset([1])}, "include: found frozenset, expected"),
        ({"initial": 3}, "initial: found int, expected"),
        ({"exclude": [4, 5, 4]}, "exclude: found row 4 twice"),
        ({"initial": [1, 2], "include": [2]}, "include: found row 2, which is in initial too"),
        ({"include": [1, 2], "exclude": [5, 1]}, "exclude: found row 1, which is in include too"),
        ({"initial": [1, 2], "exclude": [5, 1]}, "exclude: found row 1, which is in initial too"),
        ({"exclude": range(51)}, "k: found 10 and 9 rows that are neither initial nor excluded, expected 1 to 9"),
        ({"exclude": range(40), "initial": range(40, 60)}, "initial, exclude: found all rows"),
        ({"k": 61, "groups": LABELS}, "k: found 61, expected a number from 1 to 60, the rows of the source"),
        ({"include": range(11)}, "include: found 11 rows, expected at most k=10"),
        ({"include": [0, 3], "groups": LABELS, SHARES: {LABELS[0]: (None, 0)}}, f"of group {LABELS[0]!r}, expected at"),
        (
            {"include": range(8), "groups": [*["x"] * 8, *["y"] * 52], SHARES: {"y": (3, None)}},
            "include: found rows that leave 2 of k=10, expected at least the 3 rows that the groups' minima still need",
        ),
        ({"include": [1, 2], "budget": 9, "k": None, "costs": [5] * N}, "include: found rows of 10 cost units, expected"),
        ({"max_similarity": 1.0}, "max_similarity: found 1.0, expected a cosine in (0, 1)"),
        ({"max_similarity": 0}, "max_similarity: found 0"),
        ({"max_similarity": "0.9"}, "max_similarity: found '0.9', expected a cosine in (0, 1)"),
        ({"k": None}, "k: found None, expected a number of rows. Give k=…, budget=… (of cost)"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_met_name_themselves(keywords, says):
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(ROWS, **{"k": 10, **keywords})
    assert says in str(caught.value)
    assert "expected" in str(caught.value)


def resolved(rows, **given):
    """The conditions of a run on these rows, checked, and no run."""
    none = dict.fromkeys(inspect.signature(spice_rs.select).parameters)
    requested = Requested.of({**none, "prior_weight": 1.0, "target_weight": 1.0, "represent": 0.0, **given})
    return requested.resolve(open_source(rows), k=None, early_stop=None, threads=1, normalize="none")


def test_costs_to_include_may_exceed_a_limit_by_their_rounding_alone():
    own = {"costs": [1.1, 2.2], "include": [0, 1]}  # 1.1 + 2.2 is more than 3.3 in float64
    one = {**own, "groups": ["x", "x"]}
    resolved(np.eye(2), budget=3.3, **own)
    resolved(np.eye(2), budget=9, group_shares={"x": (None, 3.3)}, **one)
    with pytest.raises(InvalidInputError, match="include: found rows of 3.3 cost units"):
        resolved(np.eye(2), budget=3.3 * (1 - 2e-9), **own)
    with pytest.raises(InvalidInputError, match="include: found 3.3 cost units of group 'x'"):
        resolved(np.eye(2), budget=9, group_shares={"x": (None, 3.3 * (1 - 2e-9))}, **one)
    costs = {"costs": [1.1, 2.2, 3.4], "groups": ["x", "x", "y"], "include": [0, 1]}
    resolved(np.eye(3), budget=6.6, group_shares={"y": (3.3, None)}, **costs)
    with pytest.raises(InvalidInputError, match="groups' minima still need"):
        resolved(np.eye(3), budget=6.6 * (1 - 2e-9), group_shares={"y": (3.3, None)}, **costs)


def test_a_store_may_leave_out_the_last_records_of_its_data(store):
    path, _ = store
    records = [{"g": i % 2} for i in range(3 * N + 5)]
    assert spice_rs.select(path, 5, data=records, groups="g").groups is not None
    first = path.with_name("first")  # the first rows of the data, in their order
    with spice_rs.GradientStore.create(first, dim=6, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(N))
    assert spice_rs.select(first, 5, data=records, groups="g").groups is not None


@pytest.mark.parametrize(
    "given", ["groups", "initial", "include", "max_similarity", "weights", "prior", "budget"]
)
def test_approximations_and_windows_take_no_conditions(given):
    value = {"groups": LABELS, "weights": COSTS, "prior": COSTS, "max_similarity": 0.5, "budget": 9}.get(
        given, [1]
    )
    k = None if given == "budget" else 5
    for method in ("epsilon_lazy", "stochastic"):
        with pytest.raises(
            InvalidInputError, match=f"{given}: found it beside method='{method}', expected 'greedy'"
        ):
            spice_rs.select(ROWS, k, method=method, **{given: value})
    with pytest.raises(InvalidInputError, match=f"{given}: found it beside pool_size=20"):
        spice_rs.select(ROWS, pool_size=20, select_per_window=3, **{given: value})
    with pytest.raises(InvalidInputError, match="exclude: found it beside pool_size=20"):
        spice_rs.select(ROWS, pool_size=20, select_per_window=3, exclude=[1])


def test_missing_values_of_a_store_are_named_by_dataset_row(store):
    path, index = store
    last = int(index.max())
    with pytest.raises(
        InvalidInputError, match=f"weights: found 60 values, expected at least {last + 1}, one per dataset"
    ):
        spice_rs.select(path, 5, weights=np.ones(N))
    weights = np.ones(3 * N)
    weights[index[5]] = 0
    with pytest.raises(InvalidInputError, match=f"weights: found 0 for row {index[5]},"):
        spice_rs.select(path, 5, weights=weights)
    unused = np.ones(3 * N)
    unused[np.setdiff1d(np.arange(3 * N), index)] = np.nan  # rows that no gradient was extracted for
    spice_rs.select(path, 5, weights=unused)
    with pytest.raises(InvalidInputError, match="found no record"):
        spice_rs.select(path, 5, data=RECORDS, groups="source")


def test_tokens_of_zero_are_no_cost(tmp_path):
    with spice_rs.GradientStore.create(tmp_path / "store", dim=6, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(N) + 5, num_tokens=np.arange(N, dtype=np.int32))
    with pytest.raises(InvalidInputError, match="num_tokens of row 5: found 0, expected at least 1"):
        spice_rs.select(tmp_path / "store", budget=9, normalize="none")


# --- checkpoints, files, heads -----------------------------------------------------------------------------------

CONDITIONS = {
    "groups": LABELS,
    "group_shares": dict.fromkeys(LABELS, (None, 6)),
    "initial": [50, 3],
    "include": [7, 11],
    "exclude": [20, 21],
    "max_similarity": 0.99,
    "weights": COSTS,
    "prior": COSTS,
    "prior_weight": 0.01,
}
OTHERS = {
    "groups": LABELS[::-1],
    "group_shares": dict.fromkeys(LABELS, (None, 7)),
    "initial": [3, 50],
    "include": [11, 7],
    "exclude": [20, 22],
    "max_similarity": 0.98,
    "weights": COSTS[::-1],
    "prior": COSTS[::-1],
    "prior_weight": 0.02,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_other_conditions_is_refused(name, tmp_path):
    spice_rs.select(ROWS, 6, checkpoint=tmp_path / "run", **CONDITIONS)
    field = name.replace("group_shares", "groups")
    with pytest.raises(StoreMismatchError, match=f"run: {field}.*: found .* expected"):
        spice_rs.select(ROWS, 8, checkpoint=tmp_path / "run", **{**CONDITIONS, name: OTHERS[name]})
    with pytest.raises(StoreMismatchError, match="run: .*: found"):
        spice_rs.select(ROWS, 8, checkpoint=tmp_path / "run")
    resumed = spice_rs.select(ROWS, 8, checkpoint=tmp_path / "run", **CONDITIONS)
    whole = spice_rs.select(ROWS, 8, **CONDITIONS)
    for series in ("indices", "gains", "scores", "log_dets", "groups"):
        np.testing.assert_array_equal(getattr(resumed, series), getattr(whole, series))


def test_minima_of_groups_tie_a_checkpoint_to_its_k(tmp_path):
    keywords = {"groups": LABELS, "group_shares": {"code": (2, None)}, "checkpoint": tmp_path / "run"}
    spice_rs.select(ROWS, 6, **keywords)
    spice_rs.select(ROWS, 6, **keywords)
    with pytest.raises(StoreMismatchError, match="run: k: found 6, expected 8"):
        spice_rs.select(ROWS, 8, **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"k": 9, **CONDITIONS},
        {"k": 9, "groups": [i % 3 for i in range(N)]},
        {"k": 9, "groups": ["ä\0", *["\ud800"] * (N - 1)], "group_shares": {}},
        {"budget": 40, "costs": COSTS, "groups": LABELS},
        {"budget": 0.2, "costs": COSTS, "max_similarity": 0.9},
        {"k": 40, "max_similarity": 0.3},
        {"early_stop": 0.9999, "initial": range(40), "max_similarity": 0.01},
    ],
    ids=str,
)
def test_conditions_and_their_results_are_saved(keywords, tmp_path):
    sel = spice_rs.select(ROWS, **keywords)
    sel.save(tmp_path / "sel")
    loaded = Selection.load(tmp_path / "sel", ROWS)
    assert loaded.settings == sel.settings
    assert loaded.compared == sel.compared
    assert loaded.forced == sel.forced
    assert repr(loaded) == repr(sel)
    for name in ("costs", "groups"):
        left, right = getattr(loaded, name), getattr(sel, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    assert (loaded.near_duplicates is None) == ("max_similarity" not in keywords)
    if sel.near_duplicates is not None:
        for name in ("rows", "of", "cosine"):
            left, right = (getattr(each.near_duplicates, name) for each in (loaded, sel))
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "sel").read_bytes()
    assert list(pick_lines(loaded)) == list(pick_lines(sel))


def test_heads_cut_what_conditions_added():
    sel = spice_rs.select(ROWS, 12, **CONDITIONS)
    head = sel.head(5)
    assert head.groups.tolist() == sel.groups[:5].tolist()
    assert head.forced == 2
    assert set(head.near_duplicates.of) <= {50, 3, *head.indices}
    assert head.settings["k"] == 5
    with pytest.raises(InvalidInputError, match="k: found 1, expected a whole number from 2 to 12"):
        sel.head(1)
    with pytest.raises(InvalidInputError, match="head: found picks with a minimum for group 'maths'"):
        spice_rs.select(ROWS, 9, groups=LABELS).head(5)
    with pytest.raises(InvalidInputError, match="head: found picks under a budget"):
        spice_rs.select(ROWS, budget=9, costs=COSTS).head(1)


# --- warnings ----------------------------------------------------------------------------------------------------


def test_what_a_budget_leaves_is_said_aloud():
    assert any(
        "3 of the budget of 10 are left (30%)" in m
        for m in warnings_of(np.eye(3), budget=10, costs=[7, 8, 9])
    )
    assert not any("budget" in m for m in warnings_of(np.eye(3), budget=10, costs=[9.9, 9.8, 9.7]))


def test_the_remedy_for_what_a_budget_leaves_fits_its_cause():
    def about(rows, **keywords):
        (found,) = (m for m in warnings_of(rows, **keywords) if "budget" in m)
        return found

    assert about(np.eye(3), budget=5, costs=[7, 8, 9]) == (
        "no row was picked: the cheapest costs 7, and the budget is 5. Raise the budget."
    )
    assert about(np.eye(3), budget=5, costs=[2, 7, 8], exclude=[0]).startswith(
        "no row was picked: the cheapest costs 7"
    )
    assert about(np.eye(3), budget=90, costs=[7, 8, 9]) == (
        "all 3 rows that can be picked were picked: they cost 24, and the budget is 90. Give a smaller budget."
    )
    assert "the cheapest row left costs 8. Raise the budget" in about(np.eye(3), budget=10, costs=[7, 8, 9])
    same = about(np.ones((3, 2)), budget=10, costs=[4, 4, 4], max_similarity=0.9)
    assert same.endswith("2 near-duplicates were skipped. Raise max_similarity, or give a smaller budget.")
    limited = {"groups": ["a", "a", "b"], "group_shares": {"a": (None, 4)}}
    assert about(np.eye(3), budget=12, costs=[4, 4, 4], **limited).endswith(
        " Raise the groups' maxima, or give a smaller budget."
    )
    shares = about(np.eye(4), budget=6, costs=[2] * 4, groups=["a", "a", "b", "b"])
    assert shares.endswith(" Give group_shares, or give a smaller budget.")


def test_shares_of_the_pool_need_not_be_met_to_the_last_token():
    costs, labels = [5 + i % 7 for i in range(N)], ["x"] * 10 + ["y"] * 50
    sel = spice_rs.select(ROWS, budget=100, costs=costs, groups=labels)
    assert sel.costs[sel.groups == "x"].sum() < 0.98 * sel.quotas[0][1]
    assert not any(
        "groups" in m or "group has" in m for m in warnings_of(ROWS, budget=100, costs=costs, groups=labels)
    )
    rows = np.vstack([np.ones((10, 6)), ROWS[10:]])
    said = warnings_of(rows, budget=100, costs=costs, groups=labels, max_similarity=0.99)
    assert any("1 group has less than its share of the pool ('x' " in m for m in said)


def test_groups_that_the_shares_of_the_pool_shut_out_are_counted():
    labels = [i // 6 for i in range(N)]
    assert any("6 of 10 groups get no row" in m and "(k=4)" in m for m in warnings_of(ROWS, 4, groups=labels))
    said = warnings_of(ROWS, 4, groups=labels, exclude=range(48))
    assert not any("get no row" in m for m in said)
    assert not any("get no row" in m for m in warnings_of(ROWS, 10, groups=labels))
    assert not any("get no row" in m for m in warnings_of(ROWS, 4, groups=labels, group_shares={}))
    labels = [max(0, i - 41) for i in range(N)]  # 42 rows, and 18 groups of one
    said = warnings_of(ROWS, budget=45, costs=[9] * N, groups=labels)
    assert any("18 of 19 groups get no row: each of their rows costs more" in m for m in said)


def test_initial_rows_of_an_initial_selection_are_said_to_be_forgotten():
    first = spice_rs.select(ROWS, 4)
    second = spice_rs.select(ROWS, 4, initial=first)
    assert any(
        "a selection that had 4 initial rows itself" in m for m in warnings_of(ROWS, 4, initial=second)
    )
    both = [*first.indices, *second.indices]
    for rows in (first, second.indices, both):
        assert not any("itself" in m for m in warnings_of(ROWS, 4, initial=rows))


def test_skipped_near_duplicates_are_counted_in_the_summary(pool, capsys):
    rows = np.vstack([np.ones((4, 6)), np.eye(6)])
    assert "3 near-duplicates skipped, stopped: " in repr(spice_rs.select(rows, 7, max_similarity=0.9))
    assert "1 near-duplicate skipped, " in repr(spice_rs.select(rows[2:], 7, max_similarity=0.9))
    assert "near-dup" not in repr(spice_rs.select(np.eye(6), 3, max_similarity=0.9))
    np.save(pool / "same.npy", rows)
    assert run("select", pool / "same.npy", "-k", 7, "--max-similarity", 0.9) == 0
    assert "3 near-duplicates skipped" in capsys.readouterr().err


def test_minima_that_near_duplicates_leave_unmet_are_said_aloud():
    rows = np.vstack([np.ones((4, 6)), np.eye(6)])
    labels = ["same"] * 4 + ["other"] * 6
    said = warnings_of(rows, 6, groups=labels, group_shares={"same": (3, None)}, max_similarity=0.9)
    assert any(
        "1 group has less than its minimum ('same' 1 of 3 rows); 3 near-duplicates were skipped: its rows are"
        in m
        for m in said
    )
    labels = ["same"] * 2 + ["too"] * 2 + ["other"] * 6
    shares = {"same": (2, None), "too": (2, None)}
    said = warnings_of(rows, 6, groups=labels, group_shares=shares, max_similarity=0.9)
    assert any(
        "2 groups have less than their minimum" in m and "their rows are too similar" in m for m in said
    )
    said = warnings_of(rows, 5, groups=labels, max_similarity=0.9)
    assert any(
        "1 group has less than its share of the pool" in m and "or give group_shares." in m for m in said
    )
    said = warnings_of(rows, 9, max_similarity=0.9)
    (found,) = (m for m in said if "7 rows were picked and not k=9" in m)
    assert "no row is left that the conditions allow; 3 near-duplicates were skipped." in found
    assert found.endswith(" Raise max_similarity, or select fewer.")


def test_values_that_are_all_the_same_are_said_aloud():
    assert any("weights is 1 for every row" in m for m in warnings_of(ROWS, 5, weights=np.ones(N)))
    assert any("prior is 3 for every row" in m for m in warnings_of(ROWS, 5, prior=[3] * N))
    assert any("prior_weight=0" in m for m in warnings_of(ROWS, 5, prior=COSTS, prior_weight=0))
    assert not any("every row" in m for m in warnings_of(ROWS, 5, weights=np.full(N, 2.0), prior=COSTS))


# --- files and the command line ----------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "4\n17\n\n2\n",
        "[4, 17, 2]",
        "\ufeff4\n17\n2"[1:],
        '{"index": 4}\n{"index": 17, "rank": 1}\n{"spice": {"index": 2}, "index": 99}\n',
        '[{"index": 4}, 17, {"spice": {"index": 2}}]',
    ],
)
def test_rows_are_read_from_text_and_json(text, tmp_path):
    (tmp_path / "rows").write_text(text)
    assert read_rows(tmp_path / "rows") == [4, 17, 2]


def test_rows_are_read_from_picks_and_selections(pool):
    sel = spice_rs.select(ROWS, 5)
    for data in ([], ["--data", pool / "pool.jsonl"]):
        assert run("select", pool / "rows.npy", "-k", 5, "--out", pool / "picks.jsonl", "--force", *data) == 0
        assert read_rows(pool / "picks.jsonl") == sel.indices.tolist()
    sel.save(pool / "sel.safetensors")
    sel.save(pool / "sel")
    for name in ("sel.safetensors", "sel"):
        assert read_rows(pool / name).indices.tolist() == sel.indices.tolist()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4\nfive\n", "rows, line 2: found 'five'"),
        ("4.5\n", "rows, line 1: found 4.5"),
        ("true\n", "rows, line 1: found True"),
        ('{"row": 4}\n', "rows, line 1: found {'row': 4}"),
        ("[4, 17", "rows: found '[4, 17'"),
        ('[4, "x"]', "rows: found 'x'"),
    ],
)
def test_files_that_hold_no_rows_are_refused_by_line(text, says, tmp_path):
    (tmp_path / "rows").write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        read_rows(tmp_path / "rows")
    assert says in str(caught.value)
    with pytest.raises(InvalidInputError, match="no such file"):
        read_rows(tmp_path / "none")


def test_every_condition_is_an_option(pool, capsys):
    (pool / "shares.json").write_text(json.dumps({label: [None, 6] for label in LABELS}))
    (pool / "shares.bad.json").write_text("{")
    for name in ("initial", "include", "exclude"):
        (pool / name).write_text("\n".join(map(str, CONDITIONS[name])))
    command = ["select", pool / "rows.npy", "-k", 9, "--data", pool / "pool.jsonl"]
    options = [
        *("--groups", "source", "--group-shares", pool / "shares.json", "--initial", pool / "initial"),
        *("--include", pool / "include", "--exclude", pool / "exclude", "--max-similarity", 0.99),
        *("--weights", "tokens", "--prior", "tokens", "--prior-weight", 0.01, "--save", pool / "sel"),
    ]
    assert run(*command, *options) == 0
    out, err = capsys.readouterr()
    sel = spice_rs.select(ROWS, 9, **CONDITIONS)
    assert Selection.load(pool / "sel").settings["groups"] == sel.settings["groups"]
    assert Selection.load(pool / "sel").settings["initial"] == sel.settings["initial"]
    inner = [json.loads(line)["spice"] for line in out.splitlines()]
    assert [each["index"] for each in inner] == sel.indices.tolist()
    assert [each["group"] for each in inner] == sel.groups.tolist()
    assert list(inner[0]) == ["index", "rank", "gain", "conflict", "score", "group"]
    assert group_table(sel) in err
    text = json.dumps({"maths": [1, 2]})
    assert run(*command, "--groups", "source", "--group-shares", text) == 0
    assert "log det" in capsys.readouterr().err
    assert run(*command, "--groups", "source", "--group-shares", "pool") == 0
    capsys.readouterr()
    for shares, says in (("{", "no JSON"), (pool / "shares.bad.json", "no JSON"), ("equal", "no JSON")):
        assert run(*command, "--groups", "source", "--group-shares", shares) == 2
        assert says in capsys.readouterr().err
    assert run(*command[:4], "--groups", "source") == 2
    assert "no data" in capsys.readouterr().err


def test_a_budget_shows_both_runs(pool, capsys):
    command = ["select", pool / "rows.npy", "--data", pool / "pool.jsonl", "--costs", "tokens", "--budget"]
    assert run(*command, 40, "--groups", "source") == 0
    out, err = capsys.readouterr()
    sel = spice_rs.select(ROWS, budget=40, costs=COSTS, groups=LABELS)
    inner = [json.loads(line)["spice"] for line in out.splitlines()]
    assert [each["cost"] for each in inner] == sel.costs.tolist()
    assert list(inner[0])[-2:] == ["group", "cost"]
    assert group_table(sel) in err
    compared = sel.compared["uncosted"]
    assert f"uncosted log det {compared['log_det']:.6g} ({compared['picks']} picks, cost" in err
    assert f"kept {sel.compared['kept']}" in err


def test_the_table_of_groups_sets_picks_beside_the_pool():
    labels = ["x"] * 20 + ["y"] * 40
    sel = spice_rs.select(ROWS, 9, groups=labels, exclude=[0], group_shares={"x": (3, 5)})
    inside = int((sel.groups == "x").sum())
    table = [line.split() for line in group_table(sel).splitlines()]
    assert table[0] == ["group", "pool", "share", "picks", "share", "minimum", "maximum"]
    assert table[2] == ["x", "19", "32.2%", str(inside), f"{inside / 9:.1%}", "3", "5"]
    assert table[3][:3] == ["y", "40", "67.8%"]
    assert table[3][-2:] == ["0", "-"]
