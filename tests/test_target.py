"""Selection for a target, against its definition in naive loops, and what is refused or said of targets."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spice_rs
from command import run
from counts import cases
from spice_rs import GradientStore, InvalidInputError, Selection, SpiceWarning, StoreMismatchError


def unit(rows: Any) -> Any:
    rows = np.asarray(rows, np.float64)
    norms = [math.sqrt(sum(cell * cell for cell in row)) for row in rows.tolist()]
    return np.array(
        [
            [cell / norm if norm else 0.0 for cell in row]
            for row, norm in zip(rows.tolist(), norms, strict=True)
        ]
    )


def mean(rows: Any) -> Any:
    """Of the unit rows that are not zero."""
    kept = [row for row in unit(rows) if any(row)]
    return sum(kept) / len(kept) if kept else np.zeros(np.shape(rows)[1])


def naive_relevance(pool: Any, target: Any) -> list[float]:
    """r of each row; 0 where there is no direction, as far as float64 tells."""
    centre = mean(pool)
    contrast = mean(target) - centre
    length = math.sqrt(float(contrast @ contrast))
    found = []
    for row in unit(pool):
        beyond = row - centre
        own = math.sqrt(float(beyond @ beyond))
        known = any(row) and own > 1e-9 and length > 1e-9
        found.append(float(beyond @ contrast) / (own * length) if known else 0.0)
    return found


def naive_picks(rows: Any, weights: list[float], k: int, alpha: float) -> list[int]:
    """Greedy log det(I + α Σ w u uᵀ) over rows of weight above 0, by inverting the matrix at each step."""
    matrix = np.eye(rows.shape[1])
    picks: list[int] = []
    for _ in range(k):
        inverse = np.linalg.inv(matrix)
        best, who = -1.0, -1
        for i, row in enumerate(rows):
            if i in picks or weights[i] <= 0:
                continue
            gain = math.log1p(alpha * weights[i] * float(row @ inverse @ row))
            if gain > best * (1 + 1e-12):
                best, who = gain, i
        if who < 0:
            break
        picks.append(who)
        matrix += alpha * weights[who] * np.outer(rows[who], rows[who])
    return picks


def drawn(seed: int, rows: int, dim: int, shift: float = 0.3) -> Any:
    return np.float32(np.random.default_rng(seed).standard_normal((rows, dim)) + shift)


def aimed(seed: int, rows: int, dim: int) -> Any:
    found = drawn(seed, rows, dim)
    found[:, : max(1, dim // 3)] += 2
    return found


def cells(low: int, high: int) -> Any:
    return st.integers(low, high).map(float)


@st.composite
def pools(draw: Any) -> tuple[Any, Any]:
    """Few values, so that equal, opposite and zero rows abound."""
    dim = draw(st.integers(1, 6))
    rows = st.lists(cells(-2, 2), min_size=dim, max_size=dim)
    pool = np.array(draw(st.lists(rows, min_size=2, max_size=25)))
    target = np.array(draw(st.lists(rows, min_size=1, max_size=5)))
    return pool, target


class TestRelevance:
    @cases(200)
    @given(pools())
    def test_it_is_that_of_the_definition(self, drawn_pool: tuple[Any, Any]) -> None:
        pool, target = drawn_pool
        if not target.any() or np.array_equal(pool, target):
            with pytest.raises(InvalidInputError, match=r"^target"):
                spice_rs.relevance(pool, target)
            return
        assert spice_rs.relevance(pool, target) == pytest.approx(naive_relevance(pool, target), abs=1e-9)

    def test_a_target_equal_to_the_mean_asks_for_nothing(self) -> None:
        pool = np.float64([[1, 0], [-1, 0], [0, 1], [0, -1]])
        assert (spice_rs.relevance(pool, np.float64([[1, 0], [-1, 0]])) == 0).all()
        with pytest.raises(InvalidInputError, match=r"target: found no row .* that points to it"):
            spice_rs.select(pool, 1, target=np.float64([[1, 0], [-1, 0]]))

    def test_groups_have_a_column_each(self) -> None:
        pool, a, b = drawn(0, 50, 6), aimed(1, 4, 6), -aimed(2, 3, 6)
        found = spice_rs.relevance(pool, np.concatenate([a, b]), target_groups=["a"] * 4 + ["b"] * 3)
        assert found.shape == (50, 2)
        assert (found[:, 0] == spice_rs.relevance(pool, a)).all()
        assert (found[:, 1] == spice_rs.relevance(pool, b)).all()

    def test_it_is_by_dataset_row(self, tmp_path: Path) -> None:
        pool, target = drawn(0, 40, 6), aimed(1, 5, 6)
        with GradientStore.create(tmp_path / "store", dim=6, dtype="float32") as writer:
            for part in (range(20, 40), range(20)):
                writer.append(pool[list(part)], index=np.array(part))
        assert (spice_rs.relevance(tmp_path / "store", target) == spice_rs.relevance(pool, target)).all()


class TestPicks:
    @cases(60)
    @given(st.integers(0, 10**6), st.integers(2, 8), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    def test_they_are_those_of_the_naive_algorithm(self, seed: int, dim: int, weight: float) -> None:
        pool, target = drawn(seed, 40, dim), aimed(seed + 1, 5, dim)
        relevance = naive_relevance(pool, target)
        own = [max(unit(pool) @ row) for row in unit(target)]
        assert max(own) <= 1.001
        shut = (unit(pool) @ unit(target).T > 0.999).any(axis=1)
        weights = [r**weight if r > 0 and not out else 0.0 for r, out in zip(relevance, shut, strict=True)]
        left = sum(each > 0 for each in weights)
        if not left:
            return
        k = min(6, left)
        alpha = 1 / float(np.median([each for each in weights if each > 0]))
        found = spice_rs.select(pool, k, target=target, target_weight=weight)
        assert found.indices.tolist() == naive_picks(unit(pool), weights, k, alpha)
        assert found.settings["alpha"] == pytest.approx(alpha)
        assert found.relevance == pytest.approx([relevance[row] for row in found.indices])
        assert found.settings["normalize"] == "unit"
        assert found.settings["conflict_penalty"] == 0

    def test_no_bit_depends_on_threads_or_shards(self, tmp_path: Path) -> None:
        pool, target = drawn(0, 700, 9), aimed(1, 12, 9)
        order = np.random.default_rng(2).permutation(700)
        with GradientStore.create(tmp_path / "store", dim=9, dtype="float32") as writer:
            for part in np.split(order, [100, 101, 500]):
                writer.append(pool[part], index=part)
        whole = spice_rs.select(pool, 40, target=target, threads=1)
        for source, threads in ((pool, 2), (pool, 5), (tmp_path / "store", 1), (tmp_path / "store", 5)):
            found = spice_rs.select(source, 40, target=target, threads=threads)
            for name in ("indices", "gains", "scores", "log_dets", "relevance"):
                assert (getattr(found, name) == getattr(whole, name)).all()
            assert (found.target.mean == whole.target.mean).all()
            assert (found.target.directions == whole.target.directions).all()
            assert found.settings["alpha"] == whole.settings["alpha"]

    def test_what_is_said_is_obeyed(self) -> None:
        pool, target = drawn(0, 60, 5), aimed(1, 6, 5)
        found = spice_rs.select(pool, 9, target=target, normalize="none", alpha=2.0, conflict_penalty=0.3)
        assert (found.settings["alpha"], found.settings["conflict_penalty"]) == (2.0, 0.3)
        assert found.settings["normalize"] == "none"
        preset = spice_rs.select(pool, 9, target=target, preset="paper")
        assert (preset.settings["alpha"], preset.settings["conflict_penalty"]) == (1.0, 0.1)

    def test_without_a_target_nothing_is_other_than_before(self) -> None:
        found = spice_rs.select(drawn(0, 60, 5), 9)
        assert (found.settings["alpha"], found.settings["conflict_penalty"]) == (1.0, 0.1)
        assert (found.target, found.relevance, found.settings["target"]) == (None, None, None)

    def test_weights_are_multiplied(self) -> None:
        pool, target = drawn(0, 60, 5), aimed(1, 6, 5)
        own = np.random.default_rng(3).uniform(0.5, 2, 60)
        relevance = np.array(naive_relevance(pool, target))
        weights = np.where(relevance > 0, relevance * own, 0)
        found = spice_rs.select(pool, 8, target=target, weights=own, alpha=3.0)
        assert found.indices.tolist() == naive_picks(unit(pool), weights.tolist(), 8, 3.0)


class TestOwnRows:
    def test_rows_of_the_target_are_left_out_and_listed(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 6, 6)
        pool[7], pool[3] = target[2] * 5, target[4] + 1e-4
        found = spice_rs.select(pool, 20, target=target)
        assert found.target.overlap.tolist() == [3, 7]
        assert not {3, 7} & set(found.indices.tolist())
        [why] = spice_rs.explain(found, pool, [7])
        assert why.reason == "in_target"
        assert "row 3, 7" in found.summary()

    def test_they_can_be_included_all_the_same(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 6, 6)
        pool[7] = target[2]
        found = spice_rs.select(pool, 5, target=target, include=[7])
        assert found.indices[0] == 7
        spice_rs.analyze(found, pool)


class TestTogetherWith:
    """Each condition beside a target, against the same run with the weights and the exclusions spelled out."""

    pool, target = drawn(0, 80, 6), aimed(1, 8, 6)

    def both(self, **options: Any) -> tuple[Selection, Selection]:
        relevance = spice_rs.relevance(self.pool, self.target)
        away = np.flatnonzero(relevance <= 0)
        weights = np.where(relevance > 0, relevance, 1.0)
        found = spice_rs.select(self.pool, target=self.target, **options)
        spelled = {"conflict_penalty": 0.0, **options}
        spelled.pop("exclude", None)
        exclude = np.union1d(away, options.get("exclude", []))
        exclude = np.setdiff1d(exclude, options.get("initial", [])).astype(np.int64)
        other = spice_rs.select(
            self.pool,
            **spelled,
            exclude=exclude,
            weights=weights,
            normalize="unit",
            alpha=found.settings["alpha"],
        )
        return found, other

    @pytest.mark.parametrize(
        "options",
        [
            {"k": 10, "groups": [i % 3 for i in range(80)]},
            {"budget": 30.0, "costs": [1 + i % 4 for i in range(80)]},
            {"k": 10, "max_similarity": 0.8},
            {"k": 10, "prior": [i / 80 for i in range(80)], "prior_weight": 0.5},
            {"early_stop": 0.5},
            {"k": 10, "conflict_penalty": 0.5},
            {"k": 10, "method": "top_k"},
            {"k": 10, "fisher": "diagonal"},
        ],
        ids=lambda options: ",".join(options),
    )
    def test_it_is_the_run_with_weights_and_exclusions(self, options: dict[str, Any]) -> None:
        found, other = self.both(**options)
        assert found.indices.tolist() == other.indices.tolist()
        assert (found.gains == other.gains).all()

    def test_initial_include_exclude(self) -> None:
        towards = np.argsort(-spice_rs.relevance(self.pool, self.target))
        initial, include, exclude = towards[:2].tolist(), towards[4:6].tolist(), towards[2:4].tolist()
        found, other = self.both(k=8, initial=initial, include=include, exclude=exclude)
        assert found.indices.tolist() == other.indices.tolist()
        assert found.indices[:2].tolist() == include

    def test_rows_that_point_away_count_for_nothing(self) -> None:
        away = np.argsort(spice_rs.relevance(self.pool, self.target))[:3].tolist()
        plain = spice_rs.select(self.pool, 8, target=self.target, alpha=5.0)
        beside = spice_rs.select(self.pool, 8, target=self.target, alpha=5.0, initial=away)
        assert beside.indices.tolist() == plain.indices.tolist()
        assert beside.gains == pytest.approx(plain.gains)

    def test_checkpoints_go_on(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"target": self.target, "checkpoint": tmp_path / "run"}
        spice_rs.select(self.pool, 4, **options)
        found = spice_rs.select(self.pool, 9, **options)
        assert found.indices.tolist() == spice_rs.select(self.pool, 9, target=self.target).indices.tolist()
        with pytest.raises(StoreMismatchError, match="target"):
            spice_rs.select(self.pool, 9, target=self.target[1:], checkpoint=tmp_path / "run")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"k": None, "pool_size": 20, "select_per_window": 2}, "target: found it beside pool_size"),
            ({"method": "stochastic"}, "target: found it beside method='stochastic'"),
            ({"method": "epsilon_lazy"}, "target: found it beside method='epsilon_lazy'"),
        ],
    )
    def test_what_does_not_go_together_is_refused_by_name(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(InvalidInputError, match=re.escape(said)):
            spice_rs.select(self.pool, **{"k": 5, **options}, target=self.target)

    def test_extend_refuses_it(self) -> None:
        found = spice_rs.select(self.pool, 5, target=self.target)
        with pytest.raises(InvalidInputError, match="picks made with target"):
            spice_rs.extend(found, self.pool)

    def test_those_to_include_count_among_what_k_may_be(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 6, 6)
        pool[7] = target[2]
        left = spice_rs.select(pool, 1, target=target).target.candidates
        away = int(np.argmin(spice_rs.relevance(pool, target)))
        found = spice_rs.select(pool, left + 2, target=target, include=[7, away])
        assert len(found) == left + 2
        assert found.indices[:2].tolist() == [7, away]

    def test_rows_to_include_may_be_all_that_is_left(self, tmp_path: Path) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 6, 6)
        relevance = spice_rs.relevance(pool, target)
        away = np.flatnonzero(relevance < 0)[:2]
        found = spice_rs.select(pool, 2, target=target, include=away, exclude=np.flatnonzero(relevance > 0))
        assert found.indices.tolist() == away.tolist()
        found.save(tmp_path / "sel")
        assert (Selection.load(tmp_path / "sel", pool).relevance == relevance[away]).all()


class TestMessages:
    pool, target = drawn(0, 60, 6), aimed(1, 6, 6)

    def test_what_is_excluded_is_not_said_to_point_away(self) -> None:
        pointing = np.flatnonzero(spice_rs.relevance(self.pool, self.target) > 0)
        with pytest.raises(
            InvalidInputError, match=r"rows excluded or initial\), expected some. Exclude fewer"
        ):
            spice_rs.select(self.pool, 5, target=self.target, exclude=pointing)

    def test_a_target_without_contrast_is_said_to_have_none(self) -> None:
        pool = np.float32(np.vstack([np.eye(4), -np.eye(4)]))
        with pytest.raises(InvalidInputError, match="looks like the pool itself"):
            spice_rs.select(pool, 2, target=np.float32([[1, 1, 0, 0], [-1, -1, 0, 0]]))

    def test_weights_that_leave_float64(self) -> None:
        with pytest.raises(InvalidInputError, match=r"weights: found 9.99989e-321 for a row of relevance"):
            spice_rs.select(self.pool, 5, target=self.target, target_weight=9, weights=np.full(60, 1e-320))
        small = spice_rs.select(self.pool, 5, target=self.target, weights=np.full(60, 1e-150))
        assert small.indices.tolist() == spice_rs.select(self.pool, 5, target=self.target).indices.tolist()

    def test_a_weight_needs_a_target(self) -> None:
        with pytest.raises(InvalidInputError, match="target_weight: found 5 without target"):
            spice_rs.select(self.pool, 5, target_weight=5)

    def test_headerless_targets_have_the_shape_of_the_source(self, tmp_path: Path) -> None:
        self.pool.tofile(tmp_path / "p.bin")
        self.target.tofile(tmp_path / "t.bin")
        shape: dict[str, Any] = {"dim": 6, "dtype": "float32"}
        found = spice_rs.select(tmp_path / "p.bin", 5, target=tmp_path / "t.bin", **shape)
        assert found.indices.tolist() == spice_rs.select(self.pool, 5, target=self.target).indices.tolist()
        assert len(spice_rs.relevance(tmp_path / "p.bin", tmp_path / "t.bin", **shape)) == 60

    def test_the_data_of_the_target_are_called_so(self) -> None:
        data = [{"a": i % 2} for i in range(4)]
        with pytest.raises(InvalidInputError, match="target_data: found no record 4"):
            spice_rs.select(self.pool, 5, target=self.target, target_groups="a", target_data=data)

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ([{"a": 1}, {"a": 2}], "target_data: found 2 records, expected 6, as in the data that "),
            ([3] * 6, "target_data[0]: found int 3, expected an object"),
        ],
    )
    def test_the_data_of_a_targets_store_are_called_so_too(
        self, tmp_path: Path, data: list[Any], said: str
    ) -> None:
        provenance = {"dataset": {"rows": 6, "fingerprint": "f"}}
        with GradientStore.create(tmp_path / "t", dim=6, provenance=provenance) as writer:
            writer.append(self.target, index=np.arange(6))
        with pytest.raises(InvalidInputError, match=re.escape(said)) as refused:
            spice_rs.select(self.pool, 5, target=tmp_path / "t", target_groups="a", target_data=data)
        assert "index_column" not in str(refused.value)

    @pytest.mark.parametrize("preset", ["paper", "paper+"])
    def test_what_a_preset_refuses_is_advised_without_it(self, preset: Any) -> None:
        with pytest.warns(SpiceWarning) as told:
            spice_rs.select(self.pool, 5, target=self.target, preset=preset)
        texts = [str(each.message) for each in told]
        assert any("leave preset out, and try " in text for text in texts)
        assert not any(re.search(r"(?<!out, and )\btry [^.]*normalize", text) for text in texts)

    def test_windows_take_no_target_and_that_comes_first(self) -> None:
        with pytest.raises(InvalidInputError, match="^target: found it beside pool_size=16"):
            spice_rs.select(self.pool, 6, target=self.target, pool_size=16)

    def test_a_checkpoint_of_another_target_names_both(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", self.target)
        options: dict[str, Any] = {"checkpoint": tmp_path / "ck"}
        spice_rs.select(self.pool, 5, target=tmp_path / "a.npy", **options)
        with pytest.raises(
            StoreMismatchError, match=r"^checkpoint: .*ck is of a run with target .*a\.npy, this .*no target"
        ):
            spice_rs.select(self.pool, 5, alpha=9.0, normalize="unit", **options)
        with pytest.raises(StoreMismatchError, match=r"a\.npy, this one is with target array of shape"):
            spice_rs.select(self.pool, 5, target=self.target[:3], **options)
        np.save(tmp_path / "a.npy", self.target[:3])
        with pytest.raises(StoreMismatchError, match="this one is with that target as it is now"):
            spice_rs.select(self.pool, 5, target=tmp_path / "a.npy", **options)
        np.save(tmp_path / "a.npy", self.target)
        with pytest.raises(StoreMismatchError, match=r"ck: target_weight: found 1\.0, expected 2\.0"):
            spice_rs.select(self.pool, 5, target=tmp_path / "a.npy", target_weight=2, alpha=1.0, **options)


class TestSeveral:
    def test_groups_get_as_many_picks_each(self) -> None:
        pool = drawn(0, 200, 12, 0.0)
        a, b = drawn(1, 8, 12, 0.0), drawn(2, 3, 12, 0.0)
        a[:, 0] += 4
        b[:, 1] += 4
        found = spice_rs.select(pool, 21, target=np.concatenate([a, b]), target_groups=["a"] * 8 + ["b"] * 3)
        labels, counts = np.unique(found.groups.astype(str), return_counts=True)
        assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == {"a": 11, "b": 10}
        both = spice_rs.relevance(pool, np.concatenate([a, b]), target_groups=["a"] * 8 + ["b"] * 3)
        assert found.relevance.tolist() == both[found.indices].max(axis=1).tolist()
        assert [["a", "b"][each] for each in both[found.indices].argmax(axis=1)] == found.groups.tolist()
        assert spice_rs.explain(found, pool, [int(found.indices[0])])[0].reason == "picked"
        assert not np.isnan(spice_rs.analyze(found, pool).margin).any()

    def test_a_group_that_has_too_few_rows_leaves_the_others_more(self) -> None:
        pool = np.concatenate([drawn(0, 40, 6), drawn(1, 2, 6)])
        pool[:40, 0] += 3
        pool[40:, 1] += 9
        target = np.float32([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
        found = spice_rs.select(pool, 12, target=target, target_groups=["x", "y"])
        assert len(found) == 12

    def test_shares_can_be_said(self) -> None:
        pool, target = drawn(0, 200, 8), np.concatenate([aimed(1, 4, 8), -aimed(2, 4, 8)])
        shares = {"a": (2, 2), "b": (None, None)}
        found = spice_rs.select(
            pool, 10, target=target, target_groups=["a"] * 4 + ["b"] * 4, group_shares=shares
        )
        assert found.groups.tolist().count("a") == 2

    def test_what_is_wrong_is_said(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 4, 6)
        for options, said in (
            ({"target_groups": ["a"] * 3}, "target_groups: found 3 values, expected 4"),
            (
                {"target_groups": "source"},
                "target_groups: found the column name 'source' and no data, expected target_data=",
            ),
            ({"target_groups": ["a"] * 4, "groups": [1] * 60}, "target_groups: found them beside groups"),
            ({"target_data": [{"a": 1}] * 4}, "target_data: found it without target_groups"),
        ):
            with pytest.raises(InvalidInputError, match=re.escape(said)):
                spice_rs.select(pool, 5, target=target, **options)
        with pytest.raises(InvalidInputError, match="target_groups: found it without target"):
            spice_rs.select(pool, 5, target_groups=["a"] * 4)

    def test_a_column_of_the_targets_data(self) -> None:
        pool, target = drawn(0, 60, 6), np.concatenate([aimed(1, 2, 6), -aimed(2, 2, 6)])
        data = [{"kind": "p"}, {"kind": "p"}, {"kind": "q"}, {"kind": "q"}]
        found = spice_rs.select(pool, 6, target=target, target_groups="kind", target_data=data)
        assert found.target.labels == ["p", "q"]


class TestSaid:
    def test_the_pools_own_mixture_is_warned_of(self) -> None:
        pool = drawn(0, 400, 10)
        with pytest.warns(SpiceWarning, match=r"the target looks like the pool itself"):
            found = spice_rs.select(pool, 5, target=drawn(99, 20, 10))
        assert found.target.is_chance == [True]
        assert "hardly more" in found.summary()

    def test_a_real_target_is_not(self, recwarn: pytest.WarningsRecorder) -> None:
        found = spice_rs.select(drawn(0, 400, 10), 5, target=aimed(99, 20, 10))
        assert found.target.is_chance == [False]
        assert not [each for each in recwarn if "target" in str(each.message)]

    def test_more_rows_than_point_to_it(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 4, 6)
        left = int((spice_rs.relevance(pool, target) > 0).sum())
        with pytest.raises(
            InvalidInputError, match=rf"k: found 60, expected at most {left}.*{60 - left} rows with r ≤ 0"
        ):
            spice_rs.select(pool, 60, target=target)
        assert len(spice_rs.select(pool, left, target=target)) == left

    @pytest.mark.parametrize(
        ("target", "said"),
        [
            (np.full((2, 6), np.nan, np.float32), "a finite number"),
            (np.zeros((3, 6), np.float32), "target: found 3 rows, all zero"),
            (np.empty((0, 6), np.float32), "target"),
            (np.ones((3, 5), np.float32), "has 5 columns, array of shape (60, 6) has 6. Give rows"),
            ("nowhere", "nowhere"),
            (7, "target: found int"),
            (
                {"a": "b"},
                "target: found dict, expected one source. Put the records into one file, extract it once",
            ),
            ([{"a": 1}], "target: found a list of records, expected their gradients. Extract them first"),
        ],
    )
    def test_targets_that_are_none(self, target: Any, said: str) -> None:
        with pytest.raises(spice_rs.SpiceError, match=re.escape(said)):
            spice_rs.select(drawn(0, 60, 6), 5, target=target)

    @pytest.mark.parametrize("weight", [-1, math.nan, math.inf, 11, "1", True, None])
    def test_weights_that_are_none(self, weight: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"^target_weight: found"):
            spice_rs.select(drawn(0, 60, 6), 5, target=aimed(1, 4, 6), target_weight=weight)

    def test_a_store_of_other_settings_is_refused_by_name(self, tmp_path: Path) -> None:
        for name, seed in (("pool", 0), ("target", 1)):
            provenance = {"model": {"id": "m"}, "projection": {"kind": "sparse", "seed": seed, "dim": 6}}
            with GradientStore.create(
                tmp_path / name, dim=6, reduction="sum", provenance=provenance
            ) as writer:
                writer.append(drawn(seed, 20, 6), index=np.arange(20), num_tokens=np.full(20, 3))
        with pytest.raises(
            StoreMismatchError, match=r"^target: .*: projection\.seed 1, expected 0\. .*like="
        ):
            spice_rs.select(tmp_path / "pool", 3, target=tmp_path / "target")

    def test_stores_with_the_same_rows_are_to_be_one(self, tmp_path: Path) -> None:
        for seed, name in enumerate("ab"):
            with GradientStore.create(tmp_path / name, dim=6) as writer:
                writer.append(aimed(seed, 4, 6), index=np.arange(4))
        both = [tmp_path / "a", tmp_path / "b"]
        with pytest.raises(
            InvalidInputError, match="^target: found row 0 in .*tell them apart with target_groups"
        ) as no:
            spice_rs.select(drawn(0, 60, 6), 5, target=both)
        assert "merge" not in str(no.value)

    def test_another_model_is_named_by_what_differs_and_not_by_hashes(self, tmp_path: Path) -> None:
        for name, size in (("pool", 64), ("target", 32)):
            config = {"hidden_size": size, "num_layers": 2, "vocab_size": 99}
            model = {"id": "m", "weights": f"{size:x}" * 32, "settings": {"config": config}}
            with GradientStore.create(
                tmp_path / name, dim=6, reduction="sum", provenance={"model": model}
            ) as writer:
                writer.append(drawn(size, 20, 6), index=np.arange(20), num_tokens=np.full(20, 3))
        with pytest.raises(StoreMismatchError) as refused:
            spice_rs.select(tmp_path / "pool", 3, target=tmp_path / "target")
        said = str(refused.value)
        assert "pool: hidden_size 32, expected 64; other weights. Extract it as that was: " in said
        assert "num_layers" not in said

    def test_rows_that_point_away_are_explained(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 4, 6)
        found = spice_rs.select(pool, 5, target=target)
        worst = int(np.argmin(spice_rs.relevance(pool, target)))
        best = int(np.argmax(spice_rs.relevance(pool, target)))
        away, top = spice_rs.explain(found, pool, [worst, best])
        assert away.reason == "points_away"
        assert "60th of 60" in away.text
        assert "1st of 60" in top.text
        assert top.relevance == spice_rs.relevance(pool, target)[best]


class TestSaved:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 4, 6)
        pool[9] = target[0]
        found = spice_rs.select(pool, 5, target=target, target_groups=[0, 0, 1, 1])
        found.save(tmp_path / "sel")
        loaded = Selection.load(tmp_path / "sel", pool)
        assert (loaded.relevance == found.relevance).all()
        assert loaded.target.settings() == found.target.settings()
        for name in ("mean", "directions", "overlap", "contrast", "noise"):
            assert (getattr(loaded.target, name) == getattr(found.target, name)).all()
        assert spice_rs.certify(loaded, pool).ratio == spice_rs.certify(found, pool).ratio
        assert loaded.summary() == found.summary()

    def test_the_first_picks_are_those_of_a_smaller_k(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 4, 6)
        first = spice_rs.select(pool, 9, target=target).head(3)
        assert first.relevance.tolist() == spice_rs.select(pool, 3, target=target).relevance.tolist()
        assert first.target.rows == 4

    def test_one_row_has_no_noise(self, tmp_path: Path) -> None:
        found = spice_rs.select(drawn(0, 60, 6), 5, target=aimed(1, 1, 6))
        assert math.isnan(found.target.noise[0])
        found.save(tmp_path / "sel")
        assert math.isnan(Selection.load(tmp_path / "sel").target.noise[0])

    def test_the_certificate_is_about_candidates_for_the_target(self) -> None:
        pool, target = drawn(0, 60, 6), aimed(1, 4, 6)
        found = spice_rs.select(pool, 10, target=target)
        bound = spice_rs.certify(found, pool)
        relevance = spice_rs.relevance(pool, target)
        weights = np.where(relevance > 0, relevance, 1e-200)
        same = spice_rs.select(pool, 10, weights=weights, normalize="unit", alpha=found.settings["alpha"])
        assert bound.upper_bound == pytest.approx(spice_rs.certify(same, pool, weights=weights).upper_bound)
        assert bound.ratio > 0.9


class TestReport:
    def test_a_page_shows_the_target(self, tmp_path: Path) -> None:
        pool, target = drawn(0, 80, 6), aimed(1, 8, 6)
        pool[4] = target[0]
        found = spice_rs.select(pool, 8, target=target, target_groups=["x"] * 4 + ["y"] * 4)
        spice_rs.write_report(found, pool, tmp_path / "r.html", progress=False)
        page = (tmp_path / "r.html").read_text("utf-8")
        for fact in ("x: ‖q‖ =", "y: ‖q‖ =", "point away from the target, 1 left out", "row 4"):
            assert fact in page

    def test_random_sets_are_of_candidates(self) -> None:
        from spice_rs.analysis.inputs import SelectionInputs
        from spice_rs.analysis.random_sets import random_sets
        from spice_rs.analysis.replay import Replay

        pool, target = drawn(0, 80, 6), aimed(1, 8, 6)
        found = spice_rs.select(pool, 8, target=target)
        relevance = spice_rs.relevance(pool, target)
        weights = np.where(relevance > 0, relevance, 1.0)
        away = np.flatnonzero(relevance <= 0)
        alike: dict[str, Any] = {
            "weights": weights,
            "exclude": away,
            "normalize": "unit",
            "conflict_penalty": 0,
        }
        other = spice_rs.select(pool, 8, alpha=found.settings["alpha"], **alike)
        same = Replay(other, pool, SelectionInputs(weights=weights, exclude=away))
        assert random_sets(Replay(found, pool)).log_dets == pytest.approx(random_sets(same).log_dets)


class TestComparison:
    def test_each_method_picks_what_its_rule_says(self) -> None:
        pool, target = drawn(0, 80, 6), aimed(1, 8, 6)
        sides = spice_rs.compare(pool, 10, target=target, random_sets=1)
        picks = {row.method: sides.selections[row.method].indices.tolist() for row in sides.rows}
        relevance = spice_rs.relevance(pool, target)
        assert picks["target"] == spice_rs.select(pool, 10, target=target).indices.tolist()
        assert picks["relevance"] == np.argsort(-relevance, kind="stable")[:10].tolist()
        cosines = unit(pool) @ unit(target).mean(0)
        assert picks["less"] == np.argsort(-cosines, kind="stable")[:10].tolist()
        assert sides["relevance"].relevance == pytest.approx(np.sort(relevance)[-10:].mean())
        assert sides.settings["normalize"] == "unit"
        assert "relevance" in sides.summary()

    def test_every_method_has_the_same_candidates(self) -> None:
        pool, target = drawn(0, 40, 6), aimed(1, 8, 6)
        pool[5] = target[3] * 40
        sides = spice_rs.compare(pool, 15, target=target, random_sets=5)
        assert {"spice", "top_k", "k_center", "less", "random 4"} <= sides.selections.keys()
        assert not any(5 in each.indices for each in sides.selections.values())
        assert any("windows was left out" in note for note in sides.notes)
        with pytest.raises(InvalidInputError, match="k: found 40, expected a number from 1 to 39"):
            spice_rs.compare(pool, 40, target=target)

    def test_exclusions_of_ones_own_leave_those_of_the_target(self) -> None:
        pool, target = drawn(0, 40, 6), aimed(1, 8, 6)
        pool[5] = target[3] * 40
        ways: dict[str, Any] = {"mine": {"exclude": [1], "normalize": "none"}, "less": "less"}
        sides = spice_rs.compare(pool, 10, ways, target=target)
        assert not {1, 5} & set(sides.selections["mine"].indices.tolist())
        windows: dict[str, Any] = {"k": None, "pool_size": 10, "select_per_window": 2}
        sides = spice_rs.compare(pool, 10, {"w": windows, "less": "less"}, target=target)
        assert any("w was left out: windows cannot" in note for note in sides.notes)

    def test_more_rows_than_point_to_the_target_leave_that_method_out(self) -> None:
        pool, target = drawn(0, 40, 6), aimed(1, 8, 6)
        sides = spice_rs.compare(pool, 38, ["spice", "target", "less"], target=target)
        assert any(
            "The method target was left out" in note and "rows point to the target" in note
            for note in sides.notes
        )
        assert "target" not in sides.selections

    def test_a_target_that_may_be_chance_is_a_warning_said_once(self) -> None:
        pool, target = drawn(0, 400, 6), drawn(1, 40, 6)
        with pytest.warns(SpiceWarning, match="^target: its contrast to the pool") as told:
            sides = spice_rs.compare(pool, 3, ["target", "less"], target=target, certificate=False)
        assert sum("its contrast" in str(each.message) for each in told) == 1
        assert not any("its contrast" in note for note in sides.notes)

    def test_without_a_target_they_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="methods: found 'less' without target"):
            spice_rs.compare(drawn(0, 40, 6), 5, "less")
        assert "less" not in spice_rs.compare(drawn(0, 40, 6), 5, random_sets=1).selections


def test_a_list_of_picks_for_a_target_is_not_explained_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows in (("pool", drawn(0, 60, 6)), ("target", aimed(1, 4, 6))):
        np.save(tmp_path / f"{name}.npy", rows)
    picks, pool = tmp_path / "picks.jsonl", tmp_path / "pool.npy"
    assert run("select", pool, "-k", 5, "--target", tmp_path / "target.npy", "--out", picks) == 0
    capsys.readouterr()
    assert run("explain", picks, pool, 8) == 2
    said = capsys.readouterr().err
    assert (
        "Of rows that were picked with --target …, --weights … or --initial …, only that file can be" in said
    )
    assert "select --save wrote" in said


def test_the_command_line_speaks_of_what_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, aim = tmp_path / "pool.npy", tmp_path / "target.npy"
    for file, rows in ((pool, drawn(0, 60, 6)), (aim, aimed(1, 4, 6))):
        np.save(file, rows)
    sel, kinds = tmp_path / "sel.safetensors", tmp_path / "kinds.jsonl"
    assert run("select", pool, "-k", 5, "--target", aim, "--out", tmp_path / "p", "--save", sel) == 0
    kinds.write_text('{"kind": "a"}\n{"kind": null}\n' * 2)
    select = ("select", pool, "--target", aim)
    for line, said in (
        ((*select, "b", "-k", 5), "--target: found 'b' beside '"),
        (
            (*select, "--share", 0),
            "--share: found '0', expected a share above 0 and up to 1, or per cent, such as 0.1",
        ),
        (
            (*select, "--share", "110%"),
            "--share: found 110%, expected a share above 0 and up to 1. 0.1 and 10% are",
        ),
        ((*select, "--share", "1"), "--share: found 1.0, 60 of the 60 rows, expected at most "),
        (
            (*select, "-k", 5, "--target-groups", "kind"),
            "expected --target-data beside it. Give the data.\n",
        ),
        (
            (*select, "-k", 5, "--target-groups", "kind", "--target-data", kinds),
            f"--target-groups: found none for row 1 of column 'kind' of {kinds}, expected a text",
        ),
        (("explain", sel, pool, 60), "ROW: found 60, expected rows of "),
        (("explain", sel, pool, 60), "(0 to 59)"),
        (("extend", sel, pool), f"{sel}: found picks made with target, expected those of one exact run"),
        (("certify", sel, aim), f"SOURCE: {aim} has 4 rows, {sel} was selected from 60 ({pool})"),
        (("explain", sel, aim, 3), f"SOURCE: {aim} has 4 rows, {sel} was selected from 60 ({pool})"),
    ):
        assert run(*line) == 2, line
        assert said in capsys.readouterr().err, line


# --- what a newcomer met -------------------------------------------------------------------------------------------

WIDE = aimed(1, 60, 6) - np.float32(0.4)
WANTED = aimed(2, 12, 6)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            ("--target", "a", "--target=b"),
            "--target: found twice (a and b), expected once. Leave one out. Several",
        ),
        (("-k", "6", "-k3"), "-k: found twice (6 and 3), expected once"),
        (("--seed", "1", "--see", "2"), "--seed: found twice (1 and 2)"),
    ],
)
def test_an_option_that_is_given_twice_is_no_choice_of_ours(typed, says, tmp_path, capsys):
    np.save(tmp_path / "p.npy", WIDE)
    assert run("select", tmp_path / "p.npy", *(() if "-k" in typed else ("-k", 2)), *typed) == 2
    assert says in capsys.readouterr().err
    assert run("select", tmp_path / "p.npy", "-k", 2, "-k", 2) == 0  # the same twice is one


@pytest.mark.parametrize("end", ["jsonl", "json", "csv", "parquet", "npy"])
@pytest.mark.parametrize("grouped", [False, True])
def test_scores_are_in_the_format_that_the_name_says(end, grouped, tmp_path, capsys):
    np.save(tmp_path / "p.npy", WIDE)
    np.save(tmp_path / "t.npy", WANTED)
    labels = ["b" if row % 2 else "a" for row in range(len(WANTED))]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"of": label}) + "\n" for label in labels))
    groups = ("--target-groups", "of", "--target-data", tmp_path / "t.jsonl") if grouped else ()
    out = tmp_path / f"r.{end}"
    assert run("relevance", tmp_path / "p.npy", tmp_path / "t.npy", "--out", out, *groups) == 0
    expected = spice_rs.relevance(WIDE, WANTED, target_groups=labels if grouped else None)
    err = capsys.readouterr().err
    best = expected.max(axis=1) if grouped else expected
    assert f"{out}: {len(WIDE)} rows, {(best > 0).sum()} of them point to the target" in err
    if end == "npy":
        np.testing.assert_array_equal(np.load(out), expected)
        return
    pandas = pytest.importorskip("pandas")
    read = {"jsonl": functools.partial(pandas.read_json, lines=True), "json": pandas.read_json}
    frame = (read.get(end) or getattr(pandas, f"read_{end}"))(out)
    assert list(frame) == ["row", "relevance", *(["relevance.a", "relevance.b"] if grouped else [])]
    assert frame["row"].tolist() == list(range(len(WIDE)))
    np.testing.assert_allclose(frame["relevance"], best, atol=1e-9)
    if grouped:
        np.testing.assert_allclose(frame[["relevance.a", "relevance.b"]], expected, atol=1e-9)


def test_scores_in_a_format_that_there_is_not_are_refused_before_anything_is_read(tmp_path, capsys):
    assert run("relevance", tmp_path / "none.npy", tmp_path / "none.npy", "--out", tmp_path / "r.xlsx") == 2
    assert "r.xlsx: found a name that ends in '.xlsx'" in capsys.readouterr().err


def test_scores_and_picks_for_a_weak_target_are_warned_of_alike():
    weak = WIDE[::3] * np.float32(3)
    with pytest.warns(SpiceWarning, match="looks like the pool itself"):
        spice_rs.relevance(WIDE, weak)
    zero = np.concatenate([WANTED, np.zeros_like(WANTED[:1])])
    says = rf"target: 1 of its {len(zero)} rows is all zero and does not count"
    with pytest.warns(SpiceWarning, match=says):
        spice_rs.relevance(WIDE, zero)
    with pytest.warns(SpiceWarning, match=says):
        made = spice_rs.select(WIDE, 3, target=zero)
    assert "(1 of them all zero, which does not count)" in made.summary()


def test_picks_say_what_they_are_worth_to_the_target(tmp_path):
    made = spice_rs.select(WIDE, 4, target=WANTED)
    np.testing.assert_array_equal(made.to_dict()["relevance"], made.relevance)
    made.to_jsonl(tmp_path / "picks.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "picks.jsonl").read_text().splitlines()]
    assert [line["relevance"] for line in lines] == made.relevance.tolist()
    plain = spice_rs.select(WIDE, 4)
    assert "relevance" not in plain.to_dict()


def test_groups_of_a_target_that_nothing_is_picked_for_are_named():
    labels = [f"g{row}" for row in range(len(WANTED))]
    with pytest.warns(SpiceWarning, match=rf"target_groups: no pick is for \d+ of {len(WANTED)} groups \('g"):
        spice_rs.select(WIDE, 2, target=WANTED, target_groups=labels)


def test_rows_of_a_target_that_cannot_be_used_are_said_to_be_the_targets(tmp_path):
    broken = WANTED.copy()
    broken[2, 1] = np.nan
    np.save(tmp_path / "t.npy", broken)
    with pytest.raises(InvalidInputError, match=rf"target: {tmp_path / 't.npy'}: row 2, column 1: found NaN"):
        spice_rs.select(WIDE, 2, target=tmp_path / "t.npy")
    spice_rs.select(WIDE, 2).save(tmp_path / "sel.safetensors")
    with pytest.raises(InvalidInputError, match="found a saved selection, expected gradients"):
        spice_rs.select(WIDE, 2, target=tmp_path / "sel.safetensors")
