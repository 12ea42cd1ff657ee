"""`analyze`: every number of a pick is the one that its definition gives, step by step, in plain numpy."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import pools
import spice_rs
from counts import cases
from spice_rs.analysis import picks as module
from spice_rs.analysis.prefixes import MOST_SIGNAL, Prefixes, cost, first_near_duplicates
from spice_rs.analysis.replay import log_spaced
from spice_rs.analysis.spearman import ranks, spearman


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spice_rs.SpiceWarning)
        yield


def gain_of(rows, picked, alpha, weights=None):
    """log(1 + αw gᵀM⁻¹g) by one solve for all rows."""
    w = np.ones(len(rows)) if weights is None else weights
    scaled = rows * np.sqrt(alpha * w)[:, None]
    matrix = np.eye(rows.shape[1]) + scaled[picked].T @ scaled[picked]
    return np.log1p((np.linalg.solve(np.linalg.cholesky(matrix), scaled.T) ** 2).sum(0))


def check_margins(found, rows, allowed, score_of):
    """`score_of(picked)` gives (n,) scores; `allowed(step)` who could be picked there."""
    indices = found.selection.indices
    for step in np.flatnonzero(~np.isnan(found.margin)):
        scores = score_of(indices[:step].tolist())
        open_ = allowed(step).copy()
        open_[indices[: step + 1]] = False
        if not open_.any():
            assert found.margin[step] == np.inf
            assert found.runner_up[step] == -1
            continue
        best = scores[open_].max()
        tolerance = 1e-9 * (1 + abs(scores).max())
        assert found.margin[step] == pytest.approx(scores[indices[step]] - best, abs=tolerance)
        assert open_[found.runner_up[step]]
        assert scores[found.runner_up[step]] == pytest.approx(best, abs=tolerance)


@cases(20, derandomize=True)
@given(pools.cases())
def test_every_number_is_its_definition(case):
    rows = case.rows.astype(np.float64)
    if case.alpha * (rows**2).sum(1).max() > 1e9:  # there the oracle's own solve has few digits
        rows = rows / np.sqrt((rows**2).sum(1).max())
    sel = spice_rs.select(rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty)
    found = spice_rs.analyze(sel, rows)
    indices = sel.indices.tolist()
    norms = np.linalg.norm(rows, axis=1)
    assert found.norm == pytest.approx(norms[indices], rel=1e-12)
    for step, row in enumerate(indices):
        before = indices[:step]
        overlap = (case.alpha * rows[before] @ rows[row]) ** 2
        assert found.bound[step] == pytest.approx(
            overlap.sum() / (1 + case.alpha * norms[row] ** 2), rel=1e-9, abs=1e-12
        )
        if not before:
            assert found.nearest[step] == -1
            continue
        lengths = norms[before] * norms[row]
        cosines = np.divide(rows[before] @ rows[row], lengths, out=np.zeros(step), where=lengths > 0)
        assert abs(found.nearest_cosine[step]) == pytest.approx(np.abs(cosines).max(), abs=1e-9)
        at = before.index(found.nearest[step])
        assert cosines[at] == pytest.approx(found.nearest_cosine[step], abs=1e-9)
        mean = rows[before].mean(0)
        if np.linalg.norm(mean) > 1e-6 * norms[before].max(initial=0):
            expected = rows[row] @ mean / max(norms[row] * np.linalg.norm(mean), 1e-300)
            assert found.cosine[step] == pytest.approx(expected, abs=1e-8)
            assert sel.conflict[step] <= max(0.0, -found.cosine[step]) + 1e-8

    def score(picked):
        return gain_of(rows, picked, case.alpha) - case.penalty * oracle.conflicts(rows, picked)

    if rows.shape[1] <= 64 and (norms[norms > 0].min(initial=1) > 1e-4 or not case.penalty):
        check_margins(found, rows, lambda _: np.ones(len(rows), bool), score)


@pytest.mark.parametrize("law", ["opposed", "clustered"])
def test_recursion_and_factors_of_each_prefix_agree(law):
    rows = pools.law(law, 300, 24, 1).astype(np.float64)
    weights = np.random.default_rng(0).uniform(0.2, 3, 300)
    sizes = np.array([0, 1, 3, 11, 12, 13, 40, 60])
    chosen = np.random.default_rng(1).permutation(300)[:60]
    both = [
        Prefixes(rows[chosen], 0.7, sizes, weights=weights[chosen], signal=signal).measure(
            rows, weights, overlap=True
        )
        for signal in (0.0, 2 * MOST_SIGNAL)
    ]
    for at, size in enumerate(sizes.tolist()):
        expected = gain_of(rows, chosen[:size], 0.7, weights)
        for measured in both:
            assert measured.gain[:, at] == pytest.approx(expected, rel=1e-9, abs=1e-11)
    for name in ("cosine", "conflict", "overlap"):
        a, b = (getattr(measured, name) for measured in both)
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    base = np.log1p(0.7 * weights * (rows**2).sum(1))
    assert both[0].gain[:, 0] == pytest.approx(base)
    assert both[0].base == pytest.approx(base)
    for at, size in enumerate(sizes.tolist()):
        picked = chosen[:size]
        overlap = (0.7 * rows @ rows[picked].T) ** 2 @ weights[picked] * weights
        assert both[0].overlap[:, at] == pytest.approx(overlap, rel=1e-9, abs=1e-12)
        mean = (weights[picked, None] * rows[picked]).sum(0) / max(weights[picked].sum(), 1e-300)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(mean)
        cosine = np.divide(rows @ mean, lengths, out=np.zeros(300), where=lengths > 0)
        assert both[0].cosine[:, at] == pytest.approx(cosine, abs=1e-9)
        assert both[0].conflict[:, at] == pytest.approx(
            np.maximum(0, -(rows @ mean) / (lengths + 1e-8)), abs=1e-9
        )


def test_few_long_rows_are_followed_without_a_matrix():
    rows = np.random.default_rng(5).standard_normal((60, 200))
    sizes = np.arange(0, 41, 8)
    gain = Prefixes(rows[:40], 0.3, sizes).measure(rows).gain
    for at, size in enumerate(sizes.tolist()):
        assert gain[:, at] == pytest.approx(gain_of(rows, list(range(size)), 0.3), rel=1e-9)


@cases(20, derandomize=True)
@given(pools.cases(), st.floats(0.05, 0.99))
def test_near_duplicates_are_those_of_the_rule(case, limit):
    rows = case.rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    lengths = np.outer(norms, norms)
    cosines = np.divide(rows @ rows.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    selected = min(case.k, len(rows) - 1)
    places, found = first_near_duplicates(rows[selected:], rows[:selected], limit)
    for at, row in enumerate(range(selected, len(rows))):
        own = np.abs(cosines[row, :selected])
        if (np.abs(own - limit) < 1e-9).any():
            continue
        near = np.flatnonzero(own > limit)
        assert places[at] == (near[0] if len(near) else selected)
        if len(near):
            assert found[at] == pytest.approx(cosines[row, near[0]], abs=1e-9)


def exact_gain(rows, picked, row):
    """log(1 + gᵀM⁻¹g) in fractions."""
    cells = [[Fraction(float(cell)) for cell in r] for r in rows]
    d = len(cells[0])
    matrix = [
        [Fraction(i == j) + sum(cells[p][i] * cells[p][j] for p in picked) for j in range(d)]
        + [cells[row][i]]
        for i in range(d)
    ]
    for i in range(d):  # positive definite: no pivot is 0
        for j in range(i + 1, d):
            factor = matrix[j][i] / matrix[i][i]
            matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    solved = [Fraction(0)] * d
    for i in reversed(range(d)):
        rest = matrix[i][d] - sum(matrix[i][j] * solved[j] for j in range(i + 1, d))
        solved[i] = rest / matrix[i][i]
    return np.log1p(float(sum(a * b for a, b in zip(solved, cells[row], strict=True))))


@pytest.mark.parametrize("k", [2, 12])
def test_huge_rows_are_not_measured_by_differences(k):
    rows = pools.law("clustered", 25, 6, 2).astype(np.float64) * 1e5
    rows[7] = rows[3] * (1 + 1e-6)
    sel = spice_rs.select(rows, k, conflict_penalty=0)
    found = spice_rs.analyze(sel, rows)
    assert found.candidates is not None
    assert (rows**2).sum(1).max() > MOST_SIGNAL
    for row in range(25):
        expected = exact_gain(rows, sel.indices.tolist(), row)
        assert found.candidates["gain"][row] == pytest.approx(expected, rel=1e-6), row
    assert (found.margin >= -1e-6).all()


def test_runners_up_obey_the_conditions(tmp_path):
    rng = np.random.default_rng(4)
    n = 120
    rows = pools.law("opposed", n, 10, 4)
    rows[60:70] = rows[50:60] * 1.01
    labels = rng.choice(["a", "b", "c"], n)
    costs = rng.uniform(1, 9, n)
    prior = rng.uniform(0, 0.3, n)
    weights = rng.uniform(0.5, 2, n)
    exclude, initial = [3, 4, 5], [10, 11]
    given = {"groups": labels, "costs": costs, "initial": initial, "exclude": exclude}
    given |= {"weights": weights, "prior": prior}
    sel = spice_rs.select(
        rows,
        budget=90.0,
        group_shares={"a": (0.3, None), "b": (None, 20.0)},
        max_similarity=0.95,
        conflict_penalty=0.4,
        prior_weight=2.0,
        **given,
    )
    found = spice_rs.analyze(sel, rows, **given)
    wide = rows.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    per_cost = costs.mean() / costs if sel.compared["kept"] == "costed" else np.ones(n)
    limits = {"a": (27.0, np.inf), "b": (0.0, 20.0), "c": (0.0, np.inf)}
    assert {quota[0]: quota[1] for quota in sel.quotas} == {"a": pytest.approx(27.0), "b": 0, "c": 0}

    def allowed(step):
        picked = sel.indices[:step]
        spent = {g: costs[picked][labels[picked] == g].sum() for g in limits}
        unmet = {g: max(0.0, limits[g][0] - spent[g]) for g in limits}
        left = 90.0 - sum(spent.values())
        open_ = np.array(
            [
                spent[g] + c <= limits[g][1] * (1 + 1e-9)
                and c + sum(unmet[h] for h in limits if h != g) + max(0.0, unmet[g] - c) <= left + 1e-7
                for g, c in zip(labels, costs, strict=True)
            ]
        )
        near = (np.abs(unit @ unit[[*initial, *picked]].T) > 0.95).any(1)
        open_[near] = False
        open_[[*exclude, *initial]] = False
        return open_

    def score(picked):
        everything = [*initial, *picked]
        mean = (weights[everything, None] * wide[everything]).sum(0) / weights[everything].sum()
        conflict = np.maximum(
            0, -(wide @ mean) / (np.linalg.norm(wide, axis=1) * np.linalg.norm(mean) + 1e-8)
        )
        return per_cost * gain_of(wide, everything, 1.0, weights) + 2.0 * prior - 0.4 * conflict

    check_margins(found, wide, allowed, score)
    assert np.isfinite(found.margin).sum() >= len(sel) - 2
    assert (found.margin >= -1e-12).all()
    without = spice_rs.analyze(sel, rows, initial=initial, weights=weights, costs=costs)
    assert np.isnan(without.margin).all()
    assert "groups, exclude, prior" in without.notes[0]
    with pytest.raises(spice_rs.InvalidInputError, match="weights: found None"):
        spice_rs.analyze(sel, rows, initial=initial)
    with pytest.raises(spice_rs.InvalidInputError, match="prior: found values of hash"):
        spice_rs.analyze(sel, rows, **{**given, "prior": prior + 1})
    with pytest.raises(spice_rs.InvalidInputError, match="initial: found values of hash"):
        spice_rs.analyze(sel, rows, **{**given, "initial": [11, 10]})


def test_rows_to_include_had_no_rival():
    rows = pools.law("opposed", 40, 6, 0)
    found = spice_rs.analyze(spice_rs.select(rows, 6, include=[30, 31]), rows)
    assert np.isnan(found.margin).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("fisher", "method"), [("diagonal", "greedy"), ("scalar", "greedy"), ("full", "top_k")]
)
def test_other_readings_have_their_own_rivals(fisher, method):
    rows = pools.law("opposed", 80, 8, 5)
    sel = spice_rs.select(rows, 15, fisher=fisher, method=method, conflict_penalty=0.3, alpha=2.0)
    found = spice_rs.analyze(sel, rows)
    wide = rows.astype(np.float64)
    gain = {"diagonal": oracle.diagonal_gain(2.0), "scalar": oracle.scalar_gain(2.0)}.get(
        fisher, lambda rows, _: np.log1p(2.0 * (rows**2).sum(1))
    )
    penalty = 0.0 if method == "top_k" else 0.3
    check_margins(
        found,
        wide,
        lambda _: np.ones(80, bool),
        lambda picked: gain(wide, picked) - penalty * oracle.conflicts(wide, picked),
    )
    assert not np.isnan(found.margin).any()
    assert (found.theorem4 is None) == (method == "top_k" or fisher != "full")


@pytest.mark.parametrize("stop", [None, 0.7])
def test_windows_are_runs_of_their_own(stop):
    rows = pools.law("clustered", 100, 6, 8)
    sel = spice_rs.select(rows, pool_size=32, select_per_window=5, seed=3, early_stop=stop)
    found = spice_rs.analyze(sel, rows)
    order = np.random.default_rng(3).permutation(100)
    wide = rows.astype(np.float64)
    seen = 0
    for start in range(0, 100, 32):
        window = order[start : start + 32]
        mine = [row for row in sel.indices.tolist() if row in set(window.tolist())]
        for step, row in enumerate(mine):
            scores = gain_of(wide, mine[:step], 1.0) - 0.1 * oracle.conflicts(wide, mine[:step])
            others = [other for other in window if other not in mine[: step + 1]]
            expected = scores[row] - scores[others].max(initial=-np.inf)
            assert found.margin[seen + step] == pytest.approx(expected, abs=1e-9)
        seen += len(mine)
    assert seen == len(sel)


def test_correlations_are_those_of_plain_ranks():
    rows = pools.law("opposed", 90, 8, 6).astype(np.float64)
    sel = spice_rs.select(rows, 12, conflict_penalty=0.5)
    found = spice_rs.analyze(sel, rows).stepwise
    assert found.ranks.tolist() == list(range(1, 12))
    for at, rank in enumerate(found.ranks.tolist()):
        picked = sel.indices[:rank].tolist()
        free = np.setdiff1d(np.arange(90), picked)
        gain = gain_of(rows, picked, 1.0)
        lost = np.abs(gain - gain_of(rows, [], 1.0))
        conflict = oracle.conflicts(rows, picked)
        overlap = ((rows @ rows[picked].T) ** 2).sum(1)
        mean = rows[picked].mean(0)
        cosine = np.abs(rows @ mean) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(mean))
        for name, a, b in (
            ("conflict_gain", conflict, gain),
            ("conflict_epsilon", conflict, lost),
            ("cosine_gain", cosine, gain),
            ("cosine_epsilon", cosine, lost),
            ("overlap_gain", overlap, gain),
            ("overlap_epsilon", overlap, lost),
        ):
            x, y = (
                np.array([(v < u).sum() + ((v == u).sum() + 1) / 2 for u in v]) for v in (a[free], b[free])
            )
            assert getattr(found, name)[at] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9), name


def test_ranks_share_ties_and_constants_have_no_correlation():
    assert ranks(np.array([3.0, 1, 3, 0])).tolist() == [3.5, 2, 3.5, 1]
    assert spearman(np.arange(5.0), -np.arange(5.0)) == -1
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_theorem_4_holds_with_c_1_and_is_tight_for_one_small_row():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((200, 5)) * 10.0 ** rng.uniform(-3, 1, (200, 1))
    found = spice_rs.analyze(spice_rs.select(rows, 30), rows)
    assert found.theorem4.violations == 0
    assert found.theorem4.checked == sum(200 - rank for rank in range(1, 30))
    assert np.nanmax(found.tightness) <= 1 + 1e-9
    # Two short parallel rows: |ε| → α²(gᵀg')²/(1 + α‖g‖²).
    pair = spice_rs.analyze(spice_rs.select(np.full((2, 3), 1e-3), 2), np.full((2, 3), 1e-3))
    assert pair.tightness[1] == pytest.approx(1.0, rel=1e-4)


def test_a_sample_of_the_steps_is_told_and_no_different(monkeypatch):
    rows = pools.law("clustered", 200, 12, 1)
    sel = spice_rs.select(rows, 50)
    whole = spice_rs.analyze(sel, rows)
    assert whole.looked_at == 50
    few = spice_rs.analyze(sel, rows, steps=7)
    looked = ~np.isnan(few.margin)
    assert looked.sum() == few.looked_at <= 7
    assert looked[0]
    assert looked[-1]
    assert few.margin[looked] == pytest.approx(whole.margin[looked], abs=1e-12)
    assert "at 7 of 50 steps" in few.notes[0]
    monkeypatch.setattr(module, "AFFORDABLE", 1e4)
    dear = spice_rs.analyze(sel, rows)
    assert dear.looked_at == len(log_spaced(50, module.FEWER_STEPS))
    assert spice_rs.analyze(sel, rows, sample=40).stepwise.rows.max() <= 40


def test_a_long_row_makes_steps_dearer_and_fewer(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((60, 200))
    long = rows.copy()
    long[7] *= 1e4  # no differences of its numbers are trusted: each step costs a product of its own
    prices = [cost(np.arange(50), 60, 200, recursive=each) for each in (True, False)]
    assert prices[0] < prices[1] / 2
    monkeypatch.setattr(module, "AFFORDABLE", (prices[0] + prices[1]) / 2)
    assert spice_rs.analyze(spice_rs.select(rows, 50), rows).looked_at == 50
    assert spice_rs.analyze(spice_rs.select(long, 50), long).looked_at < 50


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("normalize", ["mean", "unit", "none"])
def test_stores_in_any_order_of_files(tmp_path, dtype, normalize):
    rows = pools.law("opposed", 60, 8, 3)
    order = np.random.default_rng(0).permutation(60) * 3
    tokens = np.arange(1, 61, dtype=np.int32)
    with spice_rs.GradientStore.create(tmp_path / "s", dim=8, dtype=dtype, reduction="sum") as writer:
        for part in np.array_split(np.arange(60), 3):
            writer.append(rows[part], index=order[part], num_tokens=tokens[part])
            writer.commit()
    store = spice_rs.GradientStore(tmp_path / "s")
    sel = spice_rs.select(store, 10, normalize=normalize)
    found = spice_rs.analyze(sel, store)
    plain = np.zeros((178, 8))
    plain[store.index] = store.read(np.arange(60)).astype(np.float64)
    if normalize == "mean":
        plain[store.index] /= store.num_tokens[:, None]
    if normalize == "unit":
        plain[store.index] /= np.linalg.norm(plain[store.index], axis=1, keepdims=True)
    there = np.isin(np.arange(178), store.index)
    check_margins(
        found,
        plain,
        lambda _: there,
        lambda picked: gain_of(plain, picked, 1.0) - 0.1 * oracle.conflicts(plain, picked),
    )
    assert found.num_tokens.tolist() == [tokens[order.tolist().index(row)] for row in sel.indices]
    assert set(found.candidates["index"]) == set(store.index)


def test_another_source_is_refused():
    rows = pools.law("clustered", 30, 4, 0)
    sel = spice_rs.select(rows, 3)
    with pytest.raises(spice_rs.StoreMismatchError, match="fingerprint"):
        spice_rs.analyze(sel, rows * 2)
    with pytest.raises(spice_rs.StoreMismatchError, match="rows"):
        spice_rs.analyze(sel, rows[:-1])
    with pytest.raises(spice_rs.InvalidInputError, match="steps: found 0"):
        spice_rs.analyze(sel, rows, steps=0)


def test_columns_are_as_long_as_the_picks_and_the_summary_has_them():
    rows = pools.law("opposed", 50, 6, 1)
    sel = spice_rs.select(rows, 9, data=None, groups=["x", "y"] * 25)
    found = spice_rs.analyze(sel, rows, groups=["x", "y"] * 25)
    frame = found.to_dict()
    assert {len(column) for column in frame.values()} == {9}
    assert frame["group"].tolist() == sel.groups.tolist()
    assert found.medians()["gain"] == np.median(sel.gains)
    text = found.summary()
    for word in ("half-life", "margin", "Theorem 4", "Spearman"):
        assert word in text
    assert repr(found).startswith("Analysis(9 picks")
