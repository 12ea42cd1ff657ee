"""Properties of constrained selection: groups, budgets, owned rows, near-duplicates, weights and priors."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import oracle
import pools
import spice_rs
from constraint_cases import KINDS, Asked, asked
from constraint_judge import judge_constrained
from constraint_rules import Prefixes, infeasible, largest_remainder, resolve
from constraint_run import Run, greedy_constrained
from counts import for_cases
from spice_rs import InvalidInputError, Selection, SpiceWarning, StoreMismatchError
from spice_rs.selection.saved import read_run

SERIES = ("indices", "gains", "base", "conflict", "scores", "log_dets")
HOT_ROWS = (1, 2, 3, 5, 9, 20, 45, None)
THREADS = (1, 2, 3, 8)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def run(case: Asked, source=None, **others) -> Selection:
    return spice_rs.select(case.rows if source is None else source, **{**case.keywords, **others})


def verdict(case: Asked, sel: Selection, every: int = 1) -> str | None:
    """Why a selection is not what was asked for, or None."""
    conditions = case.conditions
    if conditions.budget is not None:
        conditions = conditions.costed(sel.compared["kept"] == "costed")
    return judge_constrained(case.rows, sel, conditions, every)


def duplicates_of(sel: Selection) -> list[tuple]:
    found = sel.near_duplicates
    if found is None:
        return []
    return list(zip(found.rows.tolist(), found.of.tolist(), found.cosine.tolist(), strict=True))


def assert_same(a: Selection, b: Selection, *, overruled: bool = True, names=SERIES) -> None:
    """Bit for bit the same run; only how many rows it took to find the picks may differ."""
    for name in names:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    if overruled:
        np.testing.assert_array_equal(a.overruled, b.overruled, err_msg="overruled")
    assert a.stop_reason == b.stop_reason
    assert a.log_det == b.log_det
    assert a.forced == b.forced
    assert a.compared == b.compared
    assert duplicates_of(a) == duplicates_of(b)
    assert (a.costs is None, a.groups is None) == (b.costs is None, b.groups is None)
    if a.costs is not None:
        np.testing.assert_array_equal(a.costs, b.costs)
    if a.groups is not None:
        assert list(a.groups) == list(b.groups)


def in_shards(folder: str, rows: np.ndarray, r: np.random.Generator, **columns) -> str:
    """Write the rows to a store, in an order of its own, in shards of some size."""
    order = r.permutation(len(rows))
    store = os.path.join(folder, "store")
    with spice_rs.GradientStore.create(
        store, dim=rows.shape[1], dtype=rows.dtype.name, rows_per_shard=int(r.integers(1, len(rows) + 1))
    ) as writer:
        writer.append(rows[order], index=order, **{name: values[order] for name, values in columns.items()})
    return store


# --- the oracle itself -------------------------------------------------------------------------------------------


def naive(case: Asked) -> tuple[Run, str | None]:
    """The run of the naive algorithm and what the judge says of it."""
    conditions = case.conditions
    if conditions.budget is not None:
        conditions = conditions.costed(True)
    made = greedy_constrained(case.rows, conditions)
    return made, judge_constrained(case.rows, made, conditions)


def test_the_judge_accepts_the_naive_algorithm():
    def look(case):
        assert naive(case)[1] is None

    for_cases(look, asked(), count=100)


def test_the_scores_of_the_oracle_follow_the_definitions():
    rows = pools.law("opposed", 40, 5, 0).astype(np.float64)
    r = np.random.default_rng(0)
    weights, prior, costs = r.lognormal(0, 1, 40), r.standard_normal(40), r.integers(1, 9, 40)
    keywords = {"weights": weights, "prior": prior, "prior_weight": 0.5, "initial": [4, 9], "alpha": 0.7}
    conditions = resolve(40, {**keywords, "costs": costs, "budget": 30, "conflict_penalty": 0.4}).costed(True)
    prefix = Prefixes(rows, conditions)
    for x in (3, 30, 12):
        prefix.push(x)
    order = [4, 9, 3, 30, 12]

    def u(picked):
        return np.linalg.slogdet(
            np.eye(5) + 0.7 * sum(weights[x] * np.outer(rows[x], rows[x]) for x in picked)
        )[1]

    mean = sum(weights[x] * rows[x] for x in order) / sum(weights[x] for x in order)
    at = prefix.scores()
    assert prefix.log_det()[0] == pytest.approx(u(order))
    for x in (0, 5, 17):
        gain = u([*order, x]) - u(order)
        cosine = rows[x] @ mean / (np.linalg.norm(rows[x]) * np.linalg.norm(mean))
        assert at.gain[x] == pytest.approx(gain)
        assert at.conflict[x] == pytest.approx(max(0.0, -cosine), abs=1e-6)
        assert at.score[x] == pytest.approx(
            costs.mean() / costs[x] * gain - 0.4 * at.conflict[x] + 0.5 * prior[x]
        )
        assert at.merit[x] == pytest.approx(at.score[x] + 0.4 * at.conflict[x])
    assert at.conflict.max() > 0.1


def changed(made: Run, order: np.ndarray, **others) -> Run:
    """The run with the picks of `order` in that order, which may leave some out."""
    names = ("indices", "gains", "base", "conflict", "scores", "overruled", "log_dets")
    return replace(made, **{name: getattr(made, name)[order] for name in names}, **others)


@pytest.mark.slow
def test_the_judge_finds_what_is_wrong_with_a_run():
    """Two picks swapped, one pick too few, an ineligible row, a near-duplicate kept quiet or made up, another end."""
    found: Counter = Counter()

    def look(case):
        conditions = case.conditions
        if conditions.budget is not None:
            conditions = conditions.costed(True)
        made = greedy_constrained(case.rows, conditions)
        m, first = len(made.indices), made.forced
        if not made.clear or m < first + 2:
            return

        def rejected(name: str, other: Run) -> None:
            why = judge_constrained(case.rows, other, conditions)
            assert why is not None, name
            found[name] += 1

        order = np.arange(m)
        scores = made.scores
        if abs(scores[-1] - scores[-2]) > 1e-6 * abs(scores).max():
            swapped = order.copy()
            swapped[[-1, -2]] = swapped[[-2, -1]]
            rejected("two picks swapped", changed(made, swapped))
        rejected("stopped too early", changed(made, order[:-1], log_det=made.log_dets[-2]))
        for name in ("gains", "scores", "base", "conflict"):
            rejected(
                name, replace(made, **{name: getattr(made, name) + 1e-6 * (1 + abs(getattr(made, name)))})
            )
        rejected("log_dets", replace(made, log_dets=made.log_dets * 1.001 + 1e-6))
        rejected("forced", replace(made, forced=first + 1))
        for row in (conditions.initial + conditions.exclude)[:1]:
            other = made.indices.copy()
            other[-1] = row
            rejected("an owned or excluded row", replace(made, indices=other))
        for reason in {"budget", "exhausted", "early_stop"} - {made.stop_reason}:
            if conditions.budget is None or conditions.max_similarity is None:
                rejected("another end", replace(made, stop_reason=reason))
        twins = made.near_duplicates
        if twins is not None and len(twins.rows):
            fewer = replace(twins, rows=twins.rows[:-1], of=twins.of[:-1], cosine=twins.cosine[:-1])
            if made.stop_reason == "exhausted":
                rejected("a near-duplicate kept quiet", replace(made, near_duplicates=fewer))
            rejected("another cosine", replace(made, near_duplicates=replace(twins, cosine=-twins.cosine)))
        left = np.setdiff1d(np.flatnonzero(conditions.candidates()), made.indices)
        if twins is not None and (left := np.setdiff1d(left, twins.rows)).size:
            more = replace(
                twins,
                rows=np.append(twins.rows, left[0]).astype(int),
                of=np.append(twins.of, made.indices[0]).astype(int),
                cosine=np.append(twins.cosine, 1.0),
            )
            rejected("a near-duplicate made up", replace(made, near_duplicates=more))
        flipped = made.overruled.copy()
        flipped[-1] = not flipped[-1]
        rivals = len(left) and conditions.max_similarity is None
        if rivals and (made.overruled[-1] or (conditions.penalty == 0 and m > first)):
            rejected("overruled", replace(made, overruled=flipped))

    for_cases(look, asked(), count=150, same=True)
    rare = {name: count for name, count in found.items() if count < 5}
    assert not rare, rare
    assert len(found) == 14, found


def test_the_judge_refuses_rows_that_the_limits_forbid():
    rows = np.diag([5.0, 4, 3, 2, 1])
    keywords = {"k": 3, "groups": list("aabbb"), "group_shares": {"a": (None, 1)}, "conflict_penalty": 0.0}
    conditions = resolve(5, keywords)
    made = greedy_constrained(rows, conditions)
    assert made.indices.tolist() == [0, 2, 3]
    unlimited = greedy_constrained(rows, resolve(5, {"k": 3, "conflict_penalty": 0.0}))
    assert unlimited.indices.tolist() == [0, 1, 2]
    assert "row 1 is not eligible" in judge_constrained(rows, unlimited, conditions)
    tight = resolve(5, {**keywords, "group_shares": {"b": (3, None)}})
    assert greedy_constrained(rows, tight).indices.tolist() == [2, 3, 4]
    assert "row 0 is not eligible" in judge_constrained(rows, made, tight)
    budget = {"costs": np.array([3.0, 1, 1, 1, 1]), "budget": 3, "conflict_penalty": 0.0}
    paid = greedy_constrained(rows, resolve(5, budget).costed(False))
    assert paid.indices.tolist() == [0]
    spread = resolve(5, budget).costed(True)
    assert greedy_constrained(rows, spread).indices.tolist() == [1, 2, 3]
    assert "scores" in judge_constrained(rows, paid, spread)
    assert "row 1 is not eligible" in judge_constrained(rows, unlimited, resolve(5, budget).costed(False))


@pytest.mark.slow
def test_the_generator_makes_every_condition_matter():
    reached: Counter = Counter()

    def indices(case: Asked, *names, **others) -> list[int]:
        other = case.without(*names, **others)
        conditions = other.conditions
        if conditions.budget is not None:
            conditions = conditions.costed(True)
        return greedy_constrained(other.rows, conditions).indices.tolist()

    def look(case):
        made, _ = naive(case)
        reached.update({name: 1 for name in made.events})
        picks, keywords = made.indices.tolist(), case.keywords
        for name in ("weights", "prior", "include", "exclude", "initial", "max_similarity"):
            if name in keywords and "groups" not in keywords:
                reached[f"{name} changes picks"] += indices(case, name) != picks
        if keywords["conflict_penalty"] > 0:
            reached["the penalty changes picks"] += indices(case, conflict_penalty=0.0) != picks
        if "budget" in keywords:
            other = greedy_constrained(case.rows, case.conditions)
            reached["costed is better"] += made.log_det > other.log_det
            reached["uncosted is better"] += made.log_det < other.log_det
        shares = keywords.get("group_shares", "pool") if "groups" in keywords else {}
        reached["shares of the pool, of cost" if "budget" in keywords else "shares of the pool"] += (
            shares == "pool"
        )
        if shares != "pool":
            reached["a share"] += any(isinstance(v, float) for pair in shares.values() for v in pair)
        reached["early stop after an included row"] += (
            made.stop_reason == "early_stop" and made.forced > 0 and len(picks) > made.forced
        )
        reached["clear"] += made.clear
        reached[keywords["fisher"]] += 1
        reached[keywords["method"]] += 1

    for kinds in [
        ("groups",),
        ("budget", "groups"),
        ("max_similarity", "initial"),
        ("include", "exclude"),
        None,
    ]:
        for_cases(look, asked(kinds), count=70, same=True)
    rare = {name: count for name, count in reached.items() if count < 3}
    assert not rare, rare
    assert len(reached) == 29, sorted(reached)


# --- exactness ---------------------------------------------------------------------------------------------------

COUNTS = {**{(kind,): 100 for kind in KINDS}, ("groups", "budget"): 120, KINDS: 150, None: 500}


@pytest.mark.parametrize("kinds", COUNTS, ids=lambda kinds: "any" if kinds is None else " ".join(kinds))
def test_every_pick_is_the_best_eligible_one_and_nothing_else_matters(kinds):
    def look(case, seed):
        r = np.random.default_rng(seed)
        eager = run(case, search="eager", threads=1)
        assert verdict(case, eager) is None
        fields_are_true(case, eager)
        assert_same(eager, run(case, search="eager", threads=int(r.choice(THREADS[1:]))))
        overruled = "max_similarity" not in case.keywords
        for hot_rows in r.choice(HOT_ROWS, 3, replace=False):
            for search in ("lazy", "lazy_gain"):
                lazy = run(case, search=search, hot_rows=hot_rows, threads=int(r.choice(THREADS)))
                assert_same(eager, lazy, overruled=overruled)
        if case.rows.dtype != np.float64:
            with tempfile.TemporaryDirectory() as folder:
                shards = run(case, in_shards(folder, case.rows, r), hot_rows=int(r.integers(1, 20)))
                assert_same(eager, shards, overruled=overruled)

    for_cases(look, asked(kinds), st.integers(0, 2**32), count=COUNTS[kinds])


def fields_are_true(case: Asked, sel: Selection, *, other_run: bool = True) -> None:
    """What a selection says beside its series; with `other_run` also of the run that was not kept."""
    keywords, picks = case.keywords, sel.indices
    if "groups" in keywords:
        labels = np.asarray(keywords["groups"]).tolist()
        assert list(sel.groups) == [labels[x] for x in picks]
    else:
        assert sel.groups is None
    assert (sel.near_duplicates is None) or "max_similarity" in keywords
    json.dumps(sel.settings, allow_nan=False)
    if "budget" not in keywords:
        assert sel.costs is None
        assert sel.compared is None
        return
    np.testing.assert_array_equal(sel.costs, np.asarray(keywords["costs"], float)[picks])
    both = {name: sel.compared[name] for name in ("costed", "uncosted")}
    kept = both[sel.compared["kept"]]
    assert kept == {"log_det": sel.log_det, "picks": len(sel), "cost": sel.costs.sum()}
    ahead = both["costed"]["log_det"] - both["uncosted"]["log_det"]
    prefix = Prefixes(case.rows.astype(np.float64), case.conditions)
    for x in picks:
        prefix.push(x)
    # The same rows in another order have the same U but for rounding.
    assert (
        sel.compared["kept"] == ("costed" if ahead >= 0 else "uncosted")
        or abs(ahead) <= 2 * prefix.log_det()[1]
    )
    for name, other in both.items() if other_run else ():
        made = greedy_constrained(case.rows, case.conditions.costed(name == "costed"))
        if made.clear:
            assert other["log_det"] == pytest.approx(made.log_det, rel=0, abs=2 * made.margin)
            assert (other["picks"], other["cost"]) == (len(made.indices), made.cost)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shares", ["pool", {f"topic {i}": (i, 100 + 5 * i) for i in range(20)}], ids=["pool", "own"]
)
def test_long_runs_with_many_groups_stay_exact(shares):
    rows = pools.law("clustered", 3000, 32, 5)
    r = np.random.default_rng(0)
    topics = [f"topic {i}" for i in r.choice(20, 3000, p=np.arange(1, 21) / 210)]
    case = Asked(rows, {"k": 1500, "groups": topics, "group_shares": shares, "conflict_penalty": 0.3})
    sel = run(case)
    assert len(sel) == 1500
    assert verdict(case, sel, every=61) is None
    assert_same(sel, run(case, hot_rows=100, threads=3))
    assert_same(sel, run(case, search="eager"))


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True], ids=["one", "topics"])
def test_long_runs_with_a_budget_of_tokens_stay_exact(grouped):
    rows = pools.law("opposed", 3000, 32, 6)
    r = np.random.default_rng(1)
    keywords = {"costs": r.integers(5, 400, 3000), "budget": 0.5, "conflict_penalty": 0.3}
    if grouped:
        keywords["groups"] = r.choice(20, 3000, p=np.arange(1, 21) / 210)
    case = Asked(rows, keywords)
    sel = run(case)
    assert len(sel) > 1000
    assert verdict(case, sel, every=61) is None
    assert_same(sel, run(case, hot_rows=100, threads=3))
    assert_same(sel, run(case, search="eager"))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [False, True], ids=["rows", "budget"])
@pytest.mark.parametrize("law", ["clustered", "opposed"])
def test_everything_together_is_exact_at_a_size_where_rows_are_cold(law, budget):
    rows = pools.law(law, 1500, 64, 11)
    r = np.random.default_rng(3)
    rows[r.integers(0, 1500, 40)] = rows[r.integers(0, 1500, 40)] * r.choice([1.0, -1.0, 2.0], (40, 1))
    order = r.permutation(1500).tolist()
    keywords = {
        "groups": r.choice(6, 1500, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]),
        "weights": r.choice([0.5, 1, 2, 3], 1500),
        "prior": 0.3 * r.standard_normal(1500),
        "initial": order[:20],
        "include": order[20:25],
        "exclude": order[25:400],
        "max_similarity": 0.9,
        "conflict_penalty": 0.5,
    }
    if budget:
        keywords.update(
            costs=r.integers(1, 30, 1500), budget=4000, group_shares={0: (None, 900), 4: (0.125, None)}
        )
    else:
        keywords.update(k=300, group_shares={0: (None, 60), 4: (30, 40), 5: (0.125, None)})
    case = Asked(rows, keywords)
    eager = run(case, search="eager")
    assert verdict(case, eager) is None
    fields_are_true(case, eager, other_run=False)
    for hot_rows in (16, 64, None):
        for search in ("lazy", "lazy_gain"):
            assert_same(eager, run(case, search=search, hot_rows=hot_rows, threads=2), overruled=False)


# --- quotas and budgets ------------------------------------------------------------------------------------------


def counts_of(sel: Selection) -> Counter:
    return Counter(list(sel.groups))


def test_pool_shares_are_those_of_the_largest_remainder():
    def look(counts, seed, share):
        r = np.random.default_rng(seed)
        labels = r.permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
        names = list(dict.fromkeys(labels))
        k = max(1, round(share * len(labels)))
        expected = dict(zip(names, largest_remainder([counts[name] for name in names], k), strict=True))
        rows = r.standard_normal((len(labels), 3))
        sel = spice_rs.select(rows, k, groups=labels)
        assert len(sel) == k
        assert counts_of(sel) == {name: count for name, count in expected.items() if count}

    few = st.lists(st.integers(1, 12), min_size=1, max_size=9)
    for_cases(look, few, st.integers(0, 2**32), st.floats(0.02, 1.0), count=150)


def test_largest_remainder_of_the_oracle():
    assert largest_remainder([1, 1, 1], 2) == [1, 1, 0]
    assert largest_remainder([6, 3, 1], 5) == [3, 2, 0]  # 3, 1.5, 0.5: a tie, to the earlier
    assert largest_remainder([49, 49, 2], 50) == [25, 24, 1]
    assert sum(largest_remainder([7, 11, 13], 17)) == 17


def test_pool_shares_are_of_the_candidates_alone():
    rows = pools.law("flat", 40, 5, 0)
    labels = ["a"] * 20 + ["b"] * 20
    sel = spice_rs.select(rows, 10, groups=labels, exclude=np.arange(15), initial=[19])
    assert counts_of(sel) == {"a": 2, "b": 8}  # of 4 and 20 candidates
    with_b = spice_rs.select(rows, 10, groups=labels, exclude=np.arange(20))
    assert counts_of(with_b) == {"b": 10}


def test_labels_may_be_of_rows_that_the_source_does_not_have(tmp_path):
    rows = pools.law("flat", 30, 5, 0)
    store = tmp_path / "store"
    with spice_rs.GradientStore.create(store, dim=5, dtype="float32") as writer:
        writer.append(rows, index=100 + np.arange(30)[::-1])
    labels = np.array(["elsewhere"] * 100 + ["a"] * 20 + ["b"] * 10 + ["elsewhere"] * 7)
    sel = spice_rs.select(store, 9, groups=labels)
    assert counts_of(sel) == {"a": 6, "b": 3}
    assert list(sel.groups) == labels[sel.indices].tolist()
    like = spice_rs.select(rows[::-1].copy(), 9, groups=labels[100:130])
    np.testing.assert_array_equal(sel.indices, 100 + like.indices)
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(store, 9, groups=labels[:129])
    assert "groups" in str(caught.value)
    assert "129" in str(caught.value)


@pytest.mark.parametrize("share", [0.07, 0.29, 0.57, 0.58, 0.1 + 0.2])
def test_a_share_that_means_a_whole_number_of_rows_is_that_number(share):
    # 0.29·100 is 28.999999999999996 and 0.07·100 is 7.000000000000001 in float64.
    labels = ["a"] * 100 + ["b"] * 300
    for shares, size in (((share, share), 1.0), ((None, share), 3.0), ((share, None), 0.1)):
        rows = pools.law("flat", 400, 6, 2)
        rows[:100] *= size
        sel = spice_rs.select(rows, 100, groups=labels, group_shares={"a": shares}, conflict_penalty=0.0)
        assert counts_of(sel)["a"] == round(100 * share), shares


@pytest.mark.parametrize(("part", "whole"), [(1, 3), (2, 3), (5, 6), (3, 7), (1, 49), (13, 49)])
def test_a_share_that_is_a_quotient_of_rows_is_that_many_rows(part, whole):
    # 1/3 in float64 is a little less than a third of 9 rows, 2/3 a little more than two thirds.
    rows = pools.law("flat", 4 * whole, 6, 2)
    labels = np.arange(4 * whole) < 2 * part
    for k in (whole, 2 * whole):
        count = part * k // whole
        sel = spice_rs.select(rows, k, groups=labels, group_shares={True: (part / whole, part / whole)})
        assert counts_of(sel)[True] == count


@pytest.mark.parametrize("count", [3, 6, 7, 9, 10, 11, 13])
def test_pool_shares_of_cost_that_are_whole_are_filled_to_the_last(count):
    # Quotas that sum to the budget leave no slack, and rounding must not make that less than none.
    r = np.random.default_rng(count)
    rows = pools.law("clustered", 12 * count, 8, count)
    labels = np.tile(np.arange(count), 12)
    for each in (3, 5, 7):
        keywords = {"groups": labels, "costs": np.ones(len(rows)), "budget": each * count}
        sel = spice_rs.select(rows, **keywords)
        assert counts_of(sel) == {g: each for g in range(count)}
        assert sel.stop_reason == "budget"
        assert verdict(Asked(rows, keywords), sel) is None
    uneven = np.repeat(np.arange(count), np.arange(1, count + 1) * 2)[: len(rows)]
    case = Asked(
        rows[: len(uneven)],
        {"groups": uneven, "costs": r.integers(1, 30, len(uneven)), "budget": 0.5, "conflict_penalty": 0.2},
    )
    sel = run(case)
    assert len(sel) > 0
    assert verdict(case, sel) is None


def test_pool_shares_of_a_budget_for_more_than_there_is_are_what_there_is():
    rows = pools.law("flat", 30, 5, 0)
    labels = ["a"] * 10 + ["b"] * 20
    sel = spice_rs.select(rows, costs=np.ones(30), budget=0.9, groups=labels, exclude=np.arange(4, 12))
    assert counts_of(sel) == {"a": 4, "b": 18}
    assert sel.stop_reason == "exhausted"


@pytest.mark.slow
def test_limits_that_cannot_hold_are_refused_and_others_are_kept():
    refused: Counter = Counter()

    def look(seed):
        r = np.random.default_rng(seed)
        n, count = int(r.integers(4, 30)), int(r.integers(1, 5))
        labels = [f"topic {g}" for g in r.integers(0, count, n)]
        k = int(r.integers(1, n + 1))
        some = r.permutation(n).tolist()
        shares = {}
        for name in dict.fromkeys(labels):
            low = int(r.integers(0, 2 + k // count)) if r.random() < 0.6 else None
            high = int(r.integers(0, 4 + 2 * k // count)) if r.random() < 0.6 else None
            shares[name] = (low, high)
        keywords = {"groups": labels, "group_shares": shares, "include": some[: r.integers(0, 4)]}
        if r.random() < 0.5:
            keywords["exclude"] = some[4 : 4 + r.integers(0, n // 3 + 1)]
        if r.random() < 0.4:
            keywords.update(costs=r.integers(1, 5, n), budget=int(r.integers(1, 2 * n)))
        else:
            keywords["k"] = min(k, n - len(keywords.get("exclude", [])))
        case = Asked(r.standard_normal((n, 3)), keywords)
        why = infeasible(case.conditions)
        refused["yes" if why else "no"] += 1
        if why is None:
            assert verdict(case, run(case)) is None
        else:
            with pytest.raises(InvalidInputError):
                run(case)

    for_cases(look, st.integers(0, 2**32), count=300)
    assert min(refused.values()) > 40


def test_a_budget_of_unit_costs_is_a_number_of_rows():
    def look(case, cost):
        plain = spice_rs.select(case.rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty)
        paid = spice_rs.select(
            case.rows,
            costs=np.full(len(case.rows), cost),
            budget=cost * case.k,
            alpha=case.alpha,
            conflict_penalty=case.penalty,
        )
        for name in (*SERIES, "overruled"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(paid, name), err_msg=name)
        assert paid.stop_reason == ("budget" if case.k < len(case.rows) else "exhausted")
        assert paid.compared["kept"] == "costed"
        assert paid.compared["costed"] == paid.compared["uncosted"]

    for_cases(look, pools.cases(), st.sampled_from([1.0, 2.5, 17.0]), count=60)


def test_a_budget_is_a_share_of_the_cost_of_all_rows():
    rows = pools.law("clustered", 60, 6, 0)
    costs = np.arange(1, 61)
    share = spice_rs.select(rows, costs=costs, budget=0.25, exclude=[0, 59])
    whole = spice_rs.select(rows, costs=costs, budget=0.25 * costs.sum(), exclude=[0, 59])
    assert_same(share, whole)


def test_a_store_that_cannot_say_what_rows_cost_is_refused(tmp_path):
    rows = pools.law("clustered", 20, 6, 0)
    for name, tokens in (("none", None), ("zero", np.array([1] * 19 + [0], np.int32))):
        (tmp_path / name).mkdir()
        columns = {} if tokens is None else {"num_tokens": tokens}
        store = in_shards(str(tmp_path / name), rows, np.random.default_rng(1), **columns)
        with pytest.raises(InvalidInputError) as caught:
            spice_rs.select(store, budget=300)
        assert "tokens" in str(caught.value) or "costs" in str(caught.value)
        assert tokens is None or "19" in str(caught.value)


def test_costs_are_the_learned_tokens_of_the_store_unless_given(tmp_path):
    rows = pools.law("clustered", 60, 6, 0)
    tokens = np.random.default_rng(0).integers(1, 50, 60).astype(np.int32)
    store = in_shards(str(tmp_path), rows, np.random.default_rng(1), num_tokens=tokens)
    case = Asked(rows, {"costs": tokens, "budget": 300})
    by_store = spice_rs.select(store, budget=300)
    assert_same(by_store, run(case))
    assert verdict(case, by_store) is None
    ones = spice_rs.select(store, budget=20, costs=np.ones(60))
    np.testing.assert_array_equal(ones.indices, spice_rs.select(rows, 20).indices)


def test_rows_that_no_longer_fit_make_room_for_cheaper_ones():
    rows = np.diag([5.0, 4, 3, 2])
    sel = spice_rs.select(rows, costs=[4, 3, 2, 1], budget=5, conflict_penalty=0.0)
    uncosted = sel.compared["uncosted"]
    assert (uncosted["picks"], uncosted["cost"]) == (2, 5)  # rows 0 and 3: 1 and 2 no longer fit
    assert sel.compared["costed"]["cost"] <= 5
    assert sel.stop_reason == "budget"
    everything = spice_rs.select(rows, costs=[4, 3, 2, 1], budget=11)
    assert (len(everything), everything.stop_reason) == (4, "exhausted")
    nothing = spice_rs.select(rows, costs=[4, 3, 2, 2], budget=1)
    assert (len(nothing), nothing.stop_reason, nothing.log_det) == (0, "budget", 0.0)


def test_columns_of_the_data_serve_as_labels_costs_weights_and_priors(tmp_path):
    rows = pools.law("opposed", 50, 5, 4)
    r = np.random.default_rng(4)
    columns = {
        "topic": r.choice(["maths", "code", "talk"], 50).tolist(),
        "tokens": r.integers(1, 9, 50).tolist(),
        "worth": r.choice([0.5, 1.0, 2.0], 50).tolist(),
        "quality": r.standard_normal(50).tolist(),
    }
    records = [
        {"instruction": str(i), "response": str(i), **{name: values[i] for name, values in columns.items()}}
        for i in range(50)
    ]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    names = {
        "groups": "topic",
        "costs": "tokens",
        "weights": "worth",
        "prior": "quality",
        "prior_weight": 0.5,
    }
    arrays = {
        **names,
        **{key: columns[name] for key, name in names.items() if isinstance(name, str)},
    }
    expected = spice_rs.select(rows, budget=60, **arrays)
    assert verdict(Asked(rows, {"budget": 60, **arrays}), expected) is None
    for data in (records, path, str(path)):
        assert_same(spice_rs.select(rows, budget=60, data=data, **names), expected)


# --- what must not matter ----------------------------------------------------------------------------------------


def test_conditions_that_ask_for_nothing_change_no_bit():
    def look(case):
        n = len(case.rows)
        rows = case.rows.astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        cosines = np.abs(rows @ rows.T) / np.maximum(np.outer(norms, norms), 1e-300)
        closest = (cosines - 2 * np.eye(n)).max(initial=0.0) if n > 1 else 0.0
        nothing = [
            {"prior": np.zeros(n)},
            {"prior": np.ones(n), "prior_weight": 0.0},
            {"weights": np.ones(n)},
            {"groups": ["all"] * n, "group_shares": {}},
            {"groups": np.arange(n) % 2, "group_shares": {0: (0, None), (n - 1) % 2: (None, case.k)}},
            {"groups": ["all"] * n},
            {"groups": [7] * n, "group_shares": "pool"},
            {"groups": ["all"] * n, "group_shares": {"all": (1.0, 1.0)}},
            {"exclude": [], "initial": [], "include": []},
        ]
        if closest < 1 - 1e-9:
            nothing.append({"max_similarity": (1 + closest) / 2})
        plain = spice_rs.select(case.rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty)
        assert (plain.forced, plain.costs, plain.groups, plain.near_duplicates, plain.compared) == (
            0,
            *[None] * 4,
        )
        for keywords in nothing:
            other = spice_rs.select(
                case.rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty, **keywords
            )
            for name in SERIES:
                np.testing.assert_array_equal(
                    getattr(plain, name), getattr(other, name), err_msg=f"{keywords} {name}"
                )
            if "max_similarity" not in keywords:
                np.testing.assert_array_equal(plain.overruled, other.overruled, err_msg=str(keywords))
            assert plain.stop_reason == other.stop_reason
            assert duplicates_of(other) == []

    for_cases(look, pools.cases(), count=60)


def assert_close(case: Asked, whole: Selection, other: Selection, start: int = 0, rows=None) -> bool:
    """The picks from `start` on are those of `other`, with gains alike up to the digits that such rows leave.

    Returns False if the picks are others, which is right only where rounding may decide. `rows` are the dataset rows
    that positions of `other` stand for.
    """
    indices = other.indices if rows is None else rows[other.indices]
    assert whole.stop_reason == other.stop_reason
    if whole.indices[start:].tolist() != indices.tolist():
        assert not greedy_constrained(case.rows, case.conditions).clear
        return False
    prefix = Prefixes(case.rows.astype(np.float64), case.conditions)
    for t, x in enumerate(whole.indices):
        if t >= start:
            slip, last = prefix.scores().slip, t - start
            assert other.gains[last] == pytest.approx(whole.gains[t], rel=4 * slip, abs=0), t
            assert other.conflict[last] == whole.conflict[t]
            assert other.base[last] == whole.base[t]
        prefix.push(x)
        if t >= start:
            assert other.log_dets[last] == pytest.approx(
                whole.log_dets[t], rel=0, abs=2 * prefix.log_det()[1]
            )
    return True


def test_excluded_rows_might_as_well_not_be_there():
    kinds = ("exclude", "groups", "initial", "include", "max_similarity", "weights", "prior")

    def look(case):
        keywords = dict(case.keywords)
        keep = np.setdiff1d(np.arange(len(case.rows)), keywords.pop("exclude"))
        assume(len(keep) < len(case.rows))
        place = {int(row): position for position, row in enumerate(keep)}
        for name in ("weights", "prior", "groups"):
            keywords[name] = np.asarray(keywords[name])[keep]
        for name in ("initial", "include"):
            keywords[name] = [place[row] for row in keywords[name]]
        labels = np.asarray(case.keywords["groups"])
        if isinstance(shares := keywords.get("group_shares"), dict):
            left = labels[keep].tolist()
            keywords["group_shares"] = {name: pair for name, pair in shares.items() if name in left}
        order = [label for label in dict.fromkeys(labels.tolist()) if label in labels[keep]]
        assume(order == list(dict.fromkeys(labels[keep].tolist())))  # ties of shares are broken by it
        whole, part = run(case), spice_rs.select(case.rows[keep], **keywords)
        if not assert_close(case, whole, part, rows=keep):
            return
        found = [(int(keep[row]), int(keep[of]), cosine) for row, of, cosine in duplicates_of(part)]
        assert duplicates_of(whole) == found

    for_cases(look, asked(kinds), count=120)


def test_owned_rows_that_are_the_first_picks_of_a_run_go_on_with_the_rest():
    def look(case, part):
        case = case.without(early_stop=None)
        whole = run(case)
        m = int(part * len(whole))
        assume(0 < m < len(whole))
        rest = run(case.without(k=case.keywords["k"] - m, initial=whole.indices[:m]))
        if assert_close(case, whole, rest, start=m):
            np.testing.assert_array_equal(whole.overruled[m:], rest.overruled)
        assert_same(run(case.without(k=case.keywords["k"] - m, initial=whole.head(m))), rest)

    for_cases(look, asked(("exclude", "weights", "prior")), st.floats(0, 1), count=60)
    for_cases(look, asked(()), st.floats(0, 1), count=60)


@pytest.mark.parametrize(
    "keywords", [{}, {"fisher": "diagonal"}, {"fisher": "scalar"}, {"method": "top_k"}], ids=str
)
@pytest.mark.parametrize("m", [1, 17, 120])
def test_owned_forced_and_excluded_rows_leave_the_bits_alone_where_no_digits_are_lost(keywords, m):
    rows = pools.law("opposed", 400, 24, 1)
    keywords = {"conflict_penalty": 0.3, **keywords}
    whole = spice_rs.select(rows, 200, **keywords)
    rest = spice_rs.select(rows, 200 - m, initial=whole.indices[:m], **keywords)
    for name in ("indices", "gains", "base", "conflict", "scores", "overruled"):
        np.testing.assert_array_equal(getattr(whole, name)[m:], getattr(rest, name), err_msg=name)
    forced = spice_rs.select(rows, 200, include=whole.indices[:m], **keywords)
    for name in SERIES:
        np.testing.assert_array_equal(getattr(whole, name), getattr(forced, name), err_msg=name)
    others = np.setdiff1d(np.arange(400), whole.indices)[::2]
    without = spice_rs.select(rows, 200, exclude=others, **keywords)
    for name in SERIES:
        np.testing.assert_array_equal(getattr(whole, name), getattr(without, name), err_msg=name)


def test_gains_of_forced_rows_keep_as_many_digits_as_those_of_other_picks():
    rows = np.array([[-3038.265046784863], [654.1473406011359]])
    lengths = [Fraction(float(x)) ** 2 for x in rows[:, 0]]
    expected = float(np.log1p(float(lengths[1] / (1 + lengths[0]))))
    slip = 1e-10 * float(1 + lengths[0]) * 1e-6
    for keywords in ({}, {"include": [0]}, {"include": [0, 1]}):
        sel = spice_rs.select(rows, 2, conflict_penalty=0.0, **keywords)
        assert sel.gains[1] == pytest.approx(expected, rel=slip, abs=0), keywords


def test_included_rows_that_are_the_first_picks_of_a_run_change_nothing():
    def look(case, part):
        whole = run(case)
        m = int(part * len(whole))
        assume(m > 0)
        forced = run(case.without(include=whole.indices[:m]))
        assert forced.forced == m
        if assert_close(case, whole, forced):
            np.testing.assert_array_equal(whole.overruled[m:], forced.overruled[m:])

    for_cases(look, asked(("groups", "initial", "weights", "prior")), st.floats(0, 1), count=60)
    for_cases(look, asked(()), st.floats(0, 1), count=40)


@pytest.mark.parametrize(("fisher", "method"), [("full", "greedy"), ("scalar", "greedy"), ("full", "top_k")])
def test_weights_that_are_powers_of_four_scale_rows_by_powers_of_two(fisher, method):
    def look(case, seed):
        powers = np.random.default_rng(seed).integers(-3, 4, len(case.rows))
        rows = case.rows.astype(np.float64)
        assume(case.alpha * (4.0**powers * (rows**2).sum(1)).max() < 1e12)  # float64 has no digits beyond
        keywords = {
            "k": case.k,
            "alpha": case.alpha,
            "conflict_penalty": 0.0,
            "fisher": fisher,
            "method": method,
        }
        weighted = spice_rs.select(rows, weights=4.0**powers, **keywords)
        scaled = spice_rs.select(rows * 2.0 ** powers[:, None], **keywords)
        for name in ("indices", "gains", "base", "scores", "log_dets"):
            np.testing.assert_array_equal(getattr(weighted, name), getattr(scaled, name), err_msg=name)

    for_cases(look, pools.cases(), st.integers(0, 2**32), count=40)


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_an_owned_row_of_weight_three_is_three_owned_rows(penalty):
    # Fisher information and mean are the same; so is everything that is chosen by them.
    rows = pools.law("opposed", 80, 6, 9).astype(np.float64)
    weights = np.ones(80)
    weights[[3, 50]] = 3
    once = spice_rs.select(rows, 30, initial=[3, 50, 7], weights=weights, conflict_penalty=penalty)
    copies = np.vstack([rows, rows[[3, 3, 50, 50]]])
    thrice = spice_rs.select(copies, 30, initial=[3, 50, 7, 80, 81, 82, 83], conflict_penalty=penalty)
    np.testing.assert_array_equal(once.indices, thrice.indices)
    np.testing.assert_allclose(once.gains, thrice.gains, rtol=1e-10)
    np.testing.assert_allclose(once.conflict, thrice.conflict, atol=1e-12)
    np.testing.assert_allclose(once.log_dets, thrice.log_dets, rtol=1e-12)


def test_weighted_gains_add_up_to_u_of_the_weighted_information():
    rows = pools.law("opposed", 90, 7, 3).astype(np.float64)
    weights = np.random.default_rng(0).lognormal(0, 1, 90)
    sel = spice_rs.select(rows, 40, weights=weights, alpha=0.6, conflict_penalty=0.4, initial=[5, 6])
    order = [5, 6, *sel.indices]
    for t in (1, 2, 17, 40):
        information = sum(weights[x] * np.outer(rows[x], rows[x]) for x in order[: 2 + t])
        u = np.linalg.slogdet(np.eye(7) + 0.6 * information)[1]
        assert sel.log_dets[t - 1] == pytest.approx(u, rel=1e-12)
        mean = sum(weights[x] * rows[x] for x in order[: 1 + t]) / weights[order[: 1 + t]].sum()
        g = rows[sel.indices[t - 1]]
        against = -(g @ mean) / (np.linalg.norm(g) * np.linalg.norm(mean) + oracle.ETA)
        assert sel.conflict[t - 1] == pytest.approx(max(0.0, against), abs=1e-12)
    start = np.linalg.slogdet(np.eye(7) + 0.6 * (rows[[5, 6]].T * weights[[5, 6]]) @ rows[[5, 6]])[1]
    np.testing.assert_allclose(sel.log_dets, start + np.cumsum(sel.gains), rtol=1e-10)


def test_unit_rows_meet_conditions_too():
    rows = pools.law("clustered", 70, 6, 1).astype(np.float64)
    r = np.random.default_rng(2)
    keywords = {"k": 40, "weights": r.choice([0.5, 1, 2], 70), "max_similarity": 0.8, "initial": [4, 9]}
    sel = spice_rs.select(rows, normalize="unit", **keywords)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert verdict(Asked(unit, keywords), sel) is None


@pytest.mark.parametrize(("d", "owned", "alpha"), [(64, 2000, 1e4), (200, 500, 1e6), (64, 3, 1e8)])
def test_gains_beside_many_owned_rows_keep_their_digits(d, owned, alpha):
    rows = np.random.default_rng(0).standard_normal((owned + 10, d))
    sel = spice_rs.select(rows, 10, alpha=alpha, conflict_penalty=0.0, initial=range(owned))
    matrix = np.eye(d) + alpha * rows[:owned].T @ rows[:owned]
    for row, gain in zip(sel.indices, sel.gains, strict=True):
        value = np.linalg.norm(np.linalg.solve(np.linalg.cholesky(matrix), rows[row])) ** 2
        excused = 1e-10 * max(1.0, 1e-6 * np.linalg.cond(matrix))
        assert gain == pytest.approx(np.log1p(alpha * value), rel=excused)
        matrix += alpha * np.outer(rows[row], rows[row])


def test_rows_that_weights_make_equal_are_no_twins(tmp_path):
    # 2·g of weight 1 and g of weight 4 are one row in F and two in the mean; as int8 they have the same bytes too.
    base = 1e-7 * pools.law("opposed", 40, 3, 1).astype(np.float32)
    rows, weights = np.vstack([base * 4, base * 2, base]), np.repeat([1.0, 4.0, 16.0], 40)
    with spice_rs.GradientStore.create(tmp_path / "store", dim=3, dtype="int8") as writer:
        writer.append(rows, index=np.arange(120))
    keywords = {"conflict_penalty": 0.01, "weights": weights}
    eager = spice_rs.select(tmp_path / "store", 100, search="eager", **keywords)
    for hot_rows in (1, 3, 9, 40):
        assert_same(eager, spice_rs.select(tmp_path / "store", 100, hot_rows=hot_rows, **keywords))


def test_tenths_of_a_budget_fit_it():
    costs, groups = np.full(20, 0.1), ["a"] * 10 + ["b"] * 10
    sel = spice_rs.select(POOL[:20], budget=1.0, costs=costs, groups=groups)
    assert sorted(sel.groups.tolist()) == ["a"] * 5 + ["b"] * 5
    for more in (
        {},
        {"include": [0, 1]},
        {"groups": ["a", "b"], "group_shares": {"a": (1.1, None), "b": (2.2, None)}},
    ):
        assert len(spice_rs.select(POOL[:2], budget=3.3, costs=[1.1, 2.2], **more)) == 2


# --- near-duplicates ---------------------------------------------------------------------------------------------


def test_a_skipped_near_duplicate_names_the_first_pick_it_is_too_close_to():
    rows = np.array([[4.0, 0, 0], [0, 3, 0], [-2, 0, 0], [2, 0.1, 0], [0, 0, 1], [0, 0, 0]])
    sel = spice_rs.select(rows, 4, max_similarity=0.9, conflict_penalty=0.0)
    assert sel.indices.tolist() == [0, 1, 4, 5]
    found = sel.near_duplicates
    assert found.rows.tolist() == [3, 2] or found.rows.tolist() == [2, 3]
    assert found.of.tolist() == [0, 0]
    assert (found.rows.dtype, found.of.dtype, found.cosine.dtype) == (np.int64, np.int64, np.float64)
    assert found.cosine[found.rows == 2] == -1.0
    owned = spice_rs.select(rows, 4, max_similarity=0.9, conflict_penalty=0.0, initial=[3, 0])
    assert owned.near_duplicates.of.tolist() == [3]
    assert owned.stop_reason == "exhausted"
    twins = spice_rs.select(np.ones((5, 2)), 3, max_similarity=0.5)
    assert (twins.indices.tolist(), twins.stop_reason) == ([0], "exhausted")
    assert twins.near_duplicates.rows.tolist() == [1, 2, 3, 4]
    assert duplicates_of(spice_rs.select(rows, 2, max_similarity=0.9, conflict_penalty=0.0)) == []


def test_a_row_at_the_threshold_is_not_too_similar():
    rows = np.array([[2.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0.5, 0]])
    sel = spice_rs.select(rows, 3, max_similarity=0.5, conflict_penalty=0.0)
    assert (sorted(sel.indices.tolist()), sel.stop_reason) == ([0, 1, 2], "budget")
    below = spice_rs.select(rows, 3, max_similarity=0.4999999, conflict_penalty=0.0)
    assert below.stop_reason == "exhausted"
    assert duplicates_of(below)[0] in [(0, 1, 0.5), (1, 0, 0.5)]


def test_included_rows_may_be_near_duplicates():
    rows = np.array([[4.0, 0], [3, 0], [2, 0], [0, 1]])
    sel = spice_rs.select(rows, 3, max_similarity=0.5, include=[2, 1])
    assert sel.indices.tolist() == [2, 1, 3]
    assert duplicates_of(sel) == [(0, 2, 1.0)]
    owned = spice_rs.select(rows, 2, max_similarity=0.5, initial=[0], include=[2])
    assert owned.indices.tolist() == [2, 3]


# --- early stop --------------------------------------------------------------------------------------------------


def test_the_first_gain_is_that_of_the_first_row_that_costs():
    rows = np.diag([8.0, 4, 2, 1])
    gain = np.log1p([64.0, 16, 4, 1])
    omega = 0.5 * (gain[2] + gain[3]) / gain[1]  # row 2 may come after row 1, row 3 may not
    keywords = {"conflict_penalty": 0.0, "early_stop": omega}
    owned = spice_rs.select(rows, initial=[0], **keywords)
    assert (owned.indices.tolist(), owned.stop_reason) == ([1, 2], "early_stop")
    included = spice_rs.select(rows, include=[3, 2], **keywords)
    assert included.indices.tolist() == [3, 2, 0, 1]  # Δ₁ is row 3's; row 2 is forced anyway
    assert included.stop_reason == "exhausted"
    small_last = spice_rs.select(rows, include=[0, 3], **{**keywords, "early_stop": 0.9})
    assert (small_last.indices.tolist(), small_last.stop_reason) == ([0, 3], "early_stop")


def test_an_early_stop_looks_at_the_gain_and_not_at_the_merit():
    rows = np.diag([4.0, 2, 1])
    sel = spice_rs.select(rows, early_stop=0.5, conflict_penalty=0.0, prior=[0.0, 0.0, 100.0])
    gain = np.log1p([16.0, 4, 1])
    assert sel.indices.tolist() == [2, 0, 1]
    np.testing.assert_allclose(sel.gains, gain[[2, 0, 1]])
    np.testing.assert_allclose(sel.scores, gain[[2, 0, 1]] + [100, 0, 0])
    paid = spice_rs.select(rows, early_stop=0.55, conflict_penalty=0.0, costs=[8, 1, 1], budget=10)
    assert paid.compared["costed"]["picks"] >= 1


def test_early_stop_goes_with_maxima_and_not_with_minima():
    rows = pools.law("clustered", 100, 5, 1)
    labels = np.arange(100) % 2
    endless = Asked(rows, {"groups": labels, "group_shares": {0: (None, 5)}, "early_stop": 0.3})
    sel = run(endless)
    assert sel.stop_reason == "early_stop"
    assert verdict(endless, sel) is None
    case = Asked(rows, {"k": 50, "groups": labels, "group_shares": {0: (None, 5)}, "early_stop": 0.3})
    assert verdict(case, run(case)) is None
    for shares in ("pool", None, {1: (1, None)}, {1: (0.1, 0.9)}):
        with pytest.raises(InvalidInputError, match="early_stop"):
            spice_rs.select(rows, 60, groups=labels, group_shares=shares, early_stop=0.3)


# --- refusals ----------------------------------------------------------------------------------------------------

ROWS = pools.law("opposed", 12, 4, 0)
LABELS = list("aaaaaabbbbcc")
COSTS = [1.0, 2, 3, 4, 5, 6, 1, 2, 3, 4, 1, 2]  # a 21, b 10, c 3
GROUPED = {"groups": LABELS}
PAID = {"groups": LABELS, "costs": COSTS, "budget": 20}


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        # What cannot hold.
        ({"k": 5, **GROUPED, "group_shares": {"c": (3, None)}}, ["c", "3", "2"]),
        ({"k": 5, **GROUPED, "group_shares": {"b": (4, None)}, "exclude": [6]}, ["b", "4", "3"]),
        ({"k": 5, **GROUPED, "group_shares": {"b": (3, None)}, "initial": [6, 7]}, ["b", "3", "2"]),
        ({"k": 5, **GROUPED, "group_shares": {"absent": (1, None)}}, ["absent"]),
        ({"k": 5, **GROUPED, "group_shares": {"a": (3, None), "b": (3, None)}}, ["6", "5"]),
        (
            {"k": 10, **GROUPED, "group_shares": {"a": (0.5, None), "b": (4, None), "c": (2, None)}},
            ["11", "10"],
        ),
        ({"k": 5, **GROUPED, "group_shares": {"a": (3, 2)}}, ["a", "3", "2"]),
        ({"k": 8, **GROUPED, "group_shares": {"b": (0.5, 0.25)}}, ["b"]),
        ({"k": 7, **GROUPED, "group_shares": {"a": (None, 2), "b": (None, 2)}}, ["6", "7"]),
        ({"k": 2, "include": [0, 1, 2]}, ["include", "3", "2"]),
        (
            {"k": 4, **GROUPED, "group_shares": {"a": (None, 1)}, "include": [3, 5]},
            ["include", "a", "2", "1"],
        ),
        ({"k": 6, **GROUPED, "include": [10, 11]}, ["include", "c", "2", "1"]),
        ({**PAID, "group_shares": {"c": (3.5, None)}}, ["c", "3.5", "3"]),
        ({**PAID, "group_shares": {"a": (12, None), "b": (9, None)}}, ["21", "20"]),
        ({**PAID, "group_shares": {"a": (12, 11.5)}}, ["a", "12", "11.5"]),
        ({**PAID, "budget": 10, "group_shares": {}, "include": [5, 4]}, ["include", "11", "10"]),
        ({**PAID, "group_shares": {"a": (None, 5)}, "include": [5]}, ["include", "a", "6", "5"]),
        # Rows.
        ({"k": 2, "initial": [3, 4, 3]}, ["initial", "3"]),
        ({"k": 2, "include": [4, 4]}, ["include", "4"]),
        ({"k": 2, "exclude": [5, 1, 5]}, ["exclude", "5"]),
        ({"k": 2, "initial": [7, 8], "include": [8]}, ["initial", "include", "8"]),
        ({"k": 2, "include": [7, 9], "exclude": [9]}, ["include", "exclude", "9"]),
        ({"k": 2, "initial": [7], "exclude": [6, 7]}, ["initial", "exclude", "7"]),
        ({"k": 2, "initial": [12]}, ["initial", "12"]),
        ({"k": 2, "include": [99]}, ["include", "99"]),
        ({"k": 2, "exclude": [-1]}, ["exclude", "-1"]),
        ({"k": 2, "exclude": [0.5]}, ["exclude"]),
        # Labels and shares.
        ({"k": 2, "groups": LABELS[:-1]}, ["groups", "11", "12"]),
        ({"k": 2, "groups": [*LABELS, "a"]}, ["groups", "13", "12"]),
        ({"k": 2, "groups": "topic"}, ["groups", "topic", "data"]),
        ({"k": 2, "group_shares": {"a": (1, None)}}, ["group_shares", "groups"]),
        ({"k": 2, **GROUPED, "group_shares": "equal"}, ["group_shares", "equal"]),
        ({"k": 2, **GROUPED, "group_shares": {"a": (-1, None)}}, ["group_shares", "a", "-1"]),
        ({"k": 2, **GROUPED, "group_shares": {"a": (None, 1.5)}}, ["group_shares", "a", "1.5"]),
        ({"k": 2, **GROUPED, "group_shares": {"a": (None, float("nan"))}}, ["group_shares", "a", "nan"]),
        ({"k": 2, **GROUPED, "group_shares": {"a": 0.5}}, ["group_shares", "a", "0.5"]),
        # Costs and budgets.
        ({"k": 2, "costs": COSTS}, ["costs", "budget"]),
        ({"k": 2, "costs": COSTS, "budget": 5}, ["budget", "k"]),
        ({"budget": 5}, ["costs"]),
        ({"budget": 0, "costs": COSTS}, ["budget", "0"]),
        ({"budget": -3.0, "costs": COSTS}, ["budget", "-3"]),
        ({"budget": float("nan"), "costs": COSTS}, ["budget", "nan"]),
        ({"budget": float("inf"), "costs": COSTS}, ["budget", "inf"]),
        ({"budget": 5, "costs": COSTS[:-1]}, ["costs", "11", "12"]),
        ({"budget": 5, "costs": [*COSTS[:-1], 0.0]}, ["costs", "11", "0"]),
        ({"budget": 5, "costs": [*COSTS[:-1], -2.0]}, ["costs", "11", "-2"]),
        ({"budget": 5, "costs": [*COSTS[:4], float("nan"), *COSTS[5:]]}, ["costs", "4", "nan"]),
        ({"budget": 5, "costs": [*COSTS[:4], float("inf"), *COSTS[5:]]}, ["costs", "4", "inf"]),
        ({"budget": 0.5, "costs": [1e308] * 12}, ["costs"]),
        ({"budget": 1.0, "costs": np.geomspace(1e-300, 1e300, 12)}, ["costs"]),
        ({"budget": 5, "costs": COSTS, "checkpoint": "run"}, ["checkpoint", "budget"]),
        # Similarity, weights, priors.
        ({"k": 2, "max_similarity": 0.0}, ["max_similarity", "0"]),
        ({"k": 2, "max_similarity": 1.0}, ["max_similarity", "1"]),
        ({"k": 2, "max_similarity": -0.5}, ["max_similarity", "-0.5"]),
        ({"k": 2, "max_similarity": float("nan")}, ["max_similarity", "nan"]),
        ({"k": 2, "weights": np.ones(11)}, ["weights", "11", "12"]),
        ({"k": 2, "weights": [1.0] * 9 + [0.0, 1, 1]}, ["weights", "9", "0"]),
        ({"k": 2, "weights": [1.0] * 9 + [-1.5, 1, 1]}, ["weights", "9", "-1.5"]),
        ({"k": 2, "weights": [1.0] * 9 + [float("nan"), 1, 1]}, ["weights", "9", "nan"]),
        ({"k": 2, "weights": [1.0] * 9 + [float("inf"), 1, 1]}, ["weights", "9", "inf"]),
        ({"k": 2, "prior": np.zeros(13)}, ["prior", "13", "12"]),
        ({"k": 2, "prior": [0.0] * 5 + [float("nan")] + [0.0] * 6}, ["prior", "5", "nan"]),
        ({"k": 2, "prior": [0.0] * 5 + [float("-inf")] + [0.0] * 6}, ["prior", "5", "-inf"]),
        ({"k": 2, "prior": np.zeros(12), "prior_weight": float("nan")}, ["prior_weight", "nan"]),
        # What does not go together.
        ({"k": 5, **GROUPED, "early_stop": 0.5}, ["early_stop", "minim"]),
        *[
            ({"k": 2, "method": method, **keywords}, [method, name])
            for method in ("epsilon_lazy", "stochastic")
            for name, keywords in {
                "groups": GROUPED,
                "initial": {"initial": [1]},
                "include": {"include": [1]},
                "max_similarity": {"max_similarity": 0.5},
                "weights": {"weights": np.full(12, 2.0)},
                "prior": {"prior": np.arange(12.0)},
            }.items()
        ],
        *[
            ({"pool_size": 6, "select_per_window": 2, **keywords}, ["pool_size", name])
            for name, keywords in {
                "groups": GROUPED,
                "initial": {"initial": [1]},
                "include": {"include": [1]},
                "exclude": {"exclude": [1]},
                "max_similarity": {"max_similarity": 0.5},
                "weights": {"weights": np.full(12, 2.0)},
                "prior": {"prior": np.arange(12.0)},
                "budget": {"budget": 5, "costs": COSTS},
            }.items()
        ],
        *[
            ({"budget": 5, "costs": COSTS, "method": method}, [method, "budget"])
            for method in ("epsilon_lazy", "stochastic")
        ],
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_names_itself(keywords, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(ROWS, **keywords)
    for text in says:
        assert text in str(caught.value), str(caught.value)


def test_included_rows_that_leave_too_little_for_a_minimum_are_refused():
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(ROWS, 4, groups=LABELS, group_shares={"b": (2, None)}, include=[0, 1, 2])
    assert "include" in str(caught.value)
    with pytest.raises(InvalidInputError):
        spice_rs.select(ROWS, **{**PAID, "budget": 12}, group_shares={"b": (4, None)}, include=[4, 3])


def test_more_rows_than_there_are_candidates_are_refused_or_run_out():
    try:
        sel = spice_rs.select(ROWS, 12, exclude=[3], initial=[5])
    except InvalidInputError:
        return
    assert (len(sel), sel.stop_reason) == (10, "exhausted")


def test_approximate_methods_leave_out_excluded_rows():
    rows = pools.law("clustered", 200, 8, 0)
    favourites = spice_rs.select(rows, 20).indices
    for method in ("epsilon_lazy", "stochastic"):
        sel = spice_rs.select(rows, 50, method=method, exclude=favourites)
        assert len(sel) == 50
        assert not np.isin(sel.indices, favourites).any()


def test_a_column_that_the_data_does_not_have_is_named():
    records = [{"instruction": "a", "response": "b", "topic": "x"}] * 12
    for name in ("groups", "weights", "prior"):
        with pytest.raises(InvalidInputError) as caught:
            spice_rs.select(ROWS, 2, data=records, **{name: "colour"})
        assert "colour" in str(caught.value)
    with pytest.raises(InvalidInputError):
        spice_rs.select(ROWS, 2, data=records, weights="topic")


def test_a_selection_stands_for_its_rows_in_their_source_alone(tmp_path):
    first = spice_rs.select(ROWS, 4)
    for name in ("initial", "include"):
        assert_same(
            spice_rs.select(ROWS, 6, **{name: first}),
            spice_rs.select(ROWS, 6, **{name: first.indices}),
        )
        first.save(tmp_path / "first")
        assert_same(
            spice_rs.select(ROWS, 6, **{name: Selection.load(tmp_path / "first")}),
            spice_rs.select(ROWS, 6, **{name: first}),
        )
        for other in (-ROWS, ROWS[:11], ROWS.astype(np.float64)):
            with pytest.raises(StoreMismatchError):
                spice_rs.select(other, 6, **{name: first})


# --- files, heads and checkpoints --------------------------------------------------------------------------------

POOL = pools.law("opposed", 400, 12, 5)
POOL[[40, 41, 42, 300]] = POOL[7]  # twins
EVERYTHING = {
    "groups": np.array(["x", "y", "z"])[np.arange(400) % 3].tolist(),
    "group_shares": {"x": (None, 20), "y": (None, 150)},
    "weights": np.random.default_rng(0).choice([0.5, 1, 3], 400),
    "prior": np.random.default_rng(1).standard_normal(400),
    "prior_weight": 0.2,
    "initial": [9, 8, 200],
    "include": [17, 300],
    "exclude": [1, 2, 3],
    "max_similarity": 0.97,
    "conflict_penalty": 0.3,
}
NESTED = [
    {name: EVERYTHING[name] for name in names}
    for names in (
        ["groups", "group_shares"],
        ["weights"],
        ["prior", "prior_weight"],
        ["initial"],
        ["include"],
        ["exclude"],
        ["max_similarity"],
        list(EVERYTHING),
    )
] + [
    {**EVERYTHING, "fisher": "diagonal"},
    {**EVERYTHING, "search": "eager"},
    {**EVERYTHING, "method": "top_k"},
]


def of_kinds(keywords: dict) -> str:
    return " ".join(keywords)


def assert_same_file(a: Selection, b: Selection) -> None:
    assert_same(a, b)
    assert a.signal == b.signal
    assert a.settings == b.settings


@pytest.mark.parametrize("keywords", NESTED, ids=of_kinds)
@pytest.mark.parametrize("cut", [3, 13, 59])
def test_a_resumed_run_under_conditions_ends_with_the_same_bits(keywords, cut, tmp_path):
    whole = spice_rs.select(POOL, 60, **keywords)
    file = tmp_path / "run"
    spice_rs.select(POOL, cut, checkpoint=file, **keywords)
    assert_same_file(spice_rs.select(POOL, 60, checkpoint=file, **keywords), whole)
    assert_same_file(spice_rs.select(POOL, 60, checkpoint=file, **keywords), whole)
    assert_same_file(Selection.load(file, POOL), whole)


@pytest.mark.parametrize(
    "keywords",
    [
        {"groups": (np.arange(12_000) % 7).tolist()},
        {"groups": (np.arange(12_000) % 7).tolist(), "group_shares": {0: (100, 120), 1: (0.5, None)}},
        {
            "groups": (np.arange(12_000) % 7).tolist(),
            "weights": np.random.default_rng(0).choice([0.5, 1, 3], 12_000),
            "prior": np.random.default_rng(1).standard_normal(12_000),
            "initial": [5, 6, 7],
            "include": [70, 11],
            "exclude": [0, 1],
        },
        {"max_similarity": 0.9, "initial": [5, 6, 7]},
    ],
    ids=of_kinds,
)
def test_an_interrupted_run_under_conditions_ends_with_the_same_bits(keywords, tmp_path, monkeypatch):
    rows = pools.law("opposed", 12_000, 128, 2)
    rows[6000:6500] = rows[:500] * 2
    file, k = tmp_path / "run", 600
    monkeypatch.setattr("spice_rs.selection.run.INTERVAL", 0.0)

    def stop(picks, *_):
        if picks >= 20:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        spice_rs.select(rows, k, checkpoint=file, progress=stop, search="eager", **keywords)
    assert 20 <= len(read_run(file)) < k
    seen = []
    resumed = spice_rs.select(
        rows, k, checkpoint=file, progress=lambda picks, *_: seen.append(picks), **keywords
    )
    assert seen[0] >= 20
    assert_same_file(resumed, spice_rs.select(rows, k, **keywords))


def test_any_run_that_is_nested_resumes_to_the_same_bits():
    def look(case, part):
        k = case.keywords["k"]
        cut = max(int(part * k), len(case.keywords["include"]), 1)
        whole = run(case)
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "run")
            run(case.without(k=cut), checkpoint=file)
            assert_same_file(run(case, checkpoint=file), whole)

    for_cases(look, asked(("initial", "include", "exclude", "weights", "prior")), st.floats(0, 1), count=60)


@pytest.mark.parametrize("keywords", [NESTED[0], NESTED[4], EVERYTHING], ids=of_kinds)
def test_a_run_that_had_no_time_goes_on_under_its_conditions(keywords, tmp_path):
    file = tmp_path / "run"
    limited = spice_rs.select(POOL, 60, checkpoint=file, time_limit=1e-9, **keywords)
    assert limited.stop_reason == "time_limit"
    assert len(limited) < 60
    assert_same_file(
        spice_rs.select(POOL, 60, checkpoint=file, **keywords), spice_rs.select(POOL, 60, **keywords)
    )


@pytest.mark.parametrize(
    "other",
    [
        {"groups": EVERYTHING["groups"][::-1]},
        {"groups": None, "group_shares": None},
        {"group_shares": {"x": (None, 21), "y": (None, 150)}},
        {"group_shares": {"x": (None, 20)}},
        {"group_shares": {"x": (1, 20), "y": (None, 150)}},
        {"weights": None},
        {"weights": EVERYTHING["weights"][::-1].copy()},
        {"prior": None, "prior_weight": 1.0},
        {"prior": EVERYTHING["prior"] + 1e-9},
        {"prior_weight": 0.25},
        {"initial": [9, 8]},
        {"initial": None},
        {"include": [300, 17]},
        {"include": [17]},
        {"exclude": [1, 2, 4]},
        {"exclude": None},
        {"max_similarity": 0.98},
        {"max_similarity": None},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_conditions_is_refused_and_stays(other, tmp_path):
    file = tmp_path / "run"
    spice_rs.select(POOL, 20, checkpoint=file, **EVERYTHING)
    before = file.read_bytes()
    with pytest.raises(StoreMismatchError) as caught:
        spice_rs.select(POOL, 30, checkpoint=file, **{**EVERYTHING, **other})
    assert str(file) in str(caught.value)
    assert file.read_bytes() == before
    plain = tmp_path / "plain"
    spice_rs.select(POOL, 20, checkpoint=plain, conflict_penalty=0.3)
    with pytest.raises(StoreMismatchError):
        spice_rs.select(POOL, 30, checkpoint=plain, **EVERYTHING)


@pytest.mark.parametrize("shares", ["pool", {"x": (30, None)}, {"z": (15, 40)}], ids=str)
@pytest.mark.parametrize("k", [40, 90])
def test_runs_with_minima_are_not_nested_and_a_checkpoint_does_not_pretend_so(shares, k, tmp_path):
    keywords = {"groups": EVERYTHING["groups"], "group_shares": shares, "conflict_penalty": 0.3}
    file = tmp_path / "run"
    spice_rs.select(POOL, 60, checkpoint=file, **keywords)
    try:
        resumed = spice_rs.select(POOL, k, checkpoint=file, **keywords)
    except StoreMismatchError:
        return
    assert_same(resumed, spice_rs.select(POOL, k, **keywords))


@pytest.mark.parametrize("keywords", NESTED, ids=of_kinds)
def test_a_head_under_conditions_is_the_run_with_the_smaller_budget(keywords):
    whole = spice_rs.select(POOL, 80, **keywords)
    for k in (3, 20, 80):
        head, short = whole.head(k), spice_rs.select(POOL, k, **keywords)
        for name in ("indices", "gains", "base", "conflict", "scores"):
            np.testing.assert_array_equal(getattr(head, name), getattr(short, name), err_msg=name)
        np.testing.assert_allclose(head.log_dets, short.log_dets, rtol=1e-12)
        assert (head.stop_reason, head.forced, head.costs) == ("budget", short.forced, None)
        assert (head.groups is None) == (short.groups is None)
        assert head.groups is None or list(head.groups) == list(short.groups)
        assert head.settings == short.settings


def test_a_finished_checkpoint_still_has_its_near_duplicates(tmp_path):
    rows = np.array([[4.0, 0, 0], [100, 0, 0], [0, 0.01, 0], [0, 0, 0.001]])
    keywords = {"max_similarity": 0.9, "conflict_penalty": 0.0, "checkpoint": tmp_path / "run"}
    for _ in range(3):
        sel = spice_rs.select(rows, 3, **keywords)
        assert sel.indices.tolist() == [1, 2, 3]
        assert duplicates_of(sel) == [(0, 1, 1.0)]


def test_a_head_has_the_near_duplicates_of_the_shorter_run():
    keywords = {"max_similarity": 0.97, "conflict_penalty": 0.3}
    whole = spice_rs.select(POOL, 80, **keywords)
    assert len(duplicates_of(whole)) >= 3
    for k in (1, 5, 20, 40, 80):
        assert duplicates_of(whole.head(k)) == duplicates_of(spice_rs.select(POOL, k, **keywords))


@pytest.mark.parametrize(
    "keywords",
    [
        {"k": 60, "groups": EVERYTHING["groups"]},
        {"k": 60, "groups": EVERYTHING["groups"], "group_shares": {"x": (3, None)}},
        {"budget": 60, "costs": np.full(400, 2.0)},
    ],
    ids=of_kinds,
)
def test_a_head_of_runs_that_are_not_nested_is_refused(keywords):
    sel = spice_rs.select(POOL, **keywords)
    with pytest.raises(InvalidInputError, match="head"):
        sel.head(5)


@pytest.mark.parametrize(
    "keywords",
    [
        {"k": 60, **EVERYTHING},
        {"k": 60, "groups": (np.arange(400) % 5).tolist()},
        {"k": 60, "groups": np.arange(400) % 5, "initial": [3]},
        {"budget": 0.25, "costs": np.arange(1, 401) / 8},
        {"budget": 300, "costs": np.arange(1, 401), "groups": EVERYTHING["groups"], "include": [4]},
        {"k": 60, "max_similarity": 0.9},
        {"k": 3, "max_similarity": 0.999},
    ],
    ids=of_kinds,
)
def test_a_saved_constrained_selection_comes_back_to_the_bit(keywords, tmp_path):
    sel = spice_rs.select(POOL, **keywords)
    sel.save(tmp_path / "sel")
    loaded = Selection.load(tmp_path / "sel", POOL)
    assert_same_file(loaded, sel)
    if sel.near_duplicates is not None:
        for name in ("rows", "of", "cosine"):
            assert getattr(loaded.near_duplicates, name).dtype == getattr(sel.near_duplicates, name).dtype
    if sel.groups is not None:
        assert [type(label) for label in list(loaded.groups)] == [type(label) for label in list(sel.groups)]
    assert repr(loaded) == repr(sel)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "sel").read_bytes()


def test_fractions_of_the_oracle_are_exact():
    conditions = resolve(4, {"costs": [1.125, 2, 3, 4], "budget": 0.5, "groups": list("abab")})
    assert conditions.budget == Fraction(81, 16)
    assert sum(conditions.minima) == conditions.budget
    assert conditions.minima[0] == conditions.budget * Fraction(33, 81)
