"""Representative picks, against their definition in naive loops of float64, and what is refused or said of them."""

from __future__ import annotations

import itertools
import math
import re
import warnings
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

ROUNDED = 4e-6
"""Rows are float32: scores of the definition in float64 may be off by so much."""


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def unit(rows: Any) -> Any:
    rows = np.asarray(rows, np.float64)
    found = np.zeros_like(rows)
    for i, row in enumerate(rows):
        largest = max(map(abs, row.tolist()), default=0.0)
        if largest:
            scaled = [cell / largest for cell in row.tolist()]
            norm = math.sqrt(sum(cell * cell for cell in scaled))
            found[i] = [cell / norm for cell in scaled]
    return found


def naive_power(rows: Any, gamma: float, rank: int | None = None) -> Any:
    """C^{γ/2}, (d, d), by one outer product after the other."""
    dim = np.shape(rows)[1]
    moment = np.zeros((dim, dim))
    for row in unit(rows):
        moment += np.outer(row, row)
    values, vectors = np.linalg.eigh(moment)
    values = values[::-1] / values[-1] if values[-1] > 0 else np.zeros(dim)
    vectors = vectors[:, ::-1]
    power = np.zeros((dim, dim))
    for j in range(dim if rank is None else min(rank, dim)):
        if values[j] > 1e-12:
            power += values[j] ** (gamma / 2) * np.outer(vectors[:, j], vectors[:, j])
    return power


def judge(
    rows: Any, picks: list[int], alpha: float, penalty: float = 0.0, weights: Any = None, free: Any = None
) -> str | None:
    """Return why picks are not greedy on `rows`, each judged at its own prefix; equal rows go by their number."""
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, float)
    free = np.ones(len(rows), bool) if free is None else np.array(free, bool)
    matrix, total = np.eye(rows.shape[1]), np.zeros(rows.shape[1])
    for step, pick in enumerate(picks):
        inverse = np.linalg.inv(matrix)
        scores = []
        for i, row in enumerate(rows):
            gain = math.log1p(alpha * weights[i] * max(0.0, float(row @ inverse @ row)))
            length = math.sqrt(float(row @ row)) * math.sqrt(float(total @ total))
            conflict = max(0.0, -float(row @ total) / (length + 1e-8)) if step and length else 0.0
            scores.append(gain - penalty * conflict if free[i] else -math.inf)
        best = int(np.argmax(scores))
        if scores[pick] < scores[best] - ROUNDED * (1 + alpha * float((rows[best] ** 2).sum())):
            return f"step {step}: picked {pick} ({scores[pick]!r}), but {best} scores {scores[best]!r}"
        free[pick] = False
        matrix += alpha * weights[pick] * np.outer(rows[pick], rows[pick])
        total += weights[pick] * rows[pick]
    return None


def drawn(seed: int, rows: int, dim: int) -> Any:
    """Rows with a common direction and a spectrum that falls."""
    random = np.random.default_rng(seed)
    return np.float32(random.standard_normal((rows, dim)) * 0.9 ** np.arange(dim) + 0.3)


def represented(rows: Any, gamma: float, rank: int | None = None) -> Any:
    """The rows of the definition."""
    return unit(rows) @ naive_power(rows, gamma, rank)


@st.composite
def pools(draw: Any) -> Any:
    """Few values, so that equal, opposite and zero rows abound; more rows than columns or fewer, some of low rank."""
    dim = draw(st.integers(1, 7))
    cells = st.integers(-2, 2).map(float)
    rows = np.array(
        draw(st.lists(st.lists(cells, min_size=dim, max_size=dim), min_size=1, max_size=16)), np.float64
    )
    if draw(st.booleans()):
        rows[:, dim // 2 :] = 0
    if draw(st.booleans()):
        rows *= 10.0 ** draw(st.integers(-6, 4))
    return rows.astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))


class TestPicks:
    @cases(300)
    @given(pools(), st.sampled_from([1e-3, 0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 0.3]))
    def test_they_are_greedy_on_the_rows_of_the_definition(
        self, rows: Any, gamma: float, penalty: float
    ) -> None:
        if not unit(rows).any():
            assert spice_rs.select(rows, len(rows), represent=gamma).indices.tolist() == [*range(len(rows))]
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpiceWarning)
            found = spice_rs.select(rows, len(rows), represent=gamma, conflict_penalty=penalty)
        new = represented(rows, gamma)
        squares = (new**2).sum(1)
        alpha = 1 / float(np.median(squares[squares > 1e-18]))
        assert found.settings["alpha"] == pytest.approx(alpha, rel=1e-4)
        assert judge(new, found.indices.tolist(), found.settings["alpha"], penalty) is None
        picked = new[found.indices]
        whole = np.linalg.slogdet(np.eye(len(new)) + found.settings["alpha"] * picked @ picked.T)[1]
        assert found.log_det == pytest.approx(float(whole), rel=1e-4, abs=1e-5)
        # Of equal rows the first comes first, and a row and its opposite have one gain alone.
        place = {row: rank for rank, row in enumerate(found.indices.tolist())}
        for i, j in itertools.combinations(range(len(rows)), 2):
            if (rows[i] == rows[j]).all():
                assert place[i] < place[j]
            if (rows[i] == -rows[j]).all():
                assert found.base[place[i]] == found.base[place[j]]

    @pytest.mark.parametrize("gamma", [0.5, 1, 2])
    @pytest.mark.parametrize("rank", [None, 1, 5, 12])
    def test_they_are_greedy_on_more_rows_too(self, gamma: float, rank: int | None) -> None:
        rows = drawn(0, 150, 12)
        found = spice_rs.select(rows, 60, represent=gamma, represent_rank=rank)
        new = represented(rows, gamma, rank)
        assert judge(new, found.indices.tolist(), found.settings["alpha"]) is None
        assert found.settings["alpha"] == pytest.approx(1 / np.median((new**2).sum(1)), rel=1e-6)
        assert found.settings["represent"]["directions"] == (rank or 12)

    def test_one_that_ignores_the_second_moment_is_told_apart(self) -> None:
        rows = drawn(0, 150, 12)
        plain = spice_rs.select(rows, 20, normalize="unit", alpha="auto", conflict_penalty=0)
        assert judge(represented(rows, 1), plain.indices.tolist(), 3.0) is not None
        assert judge(represented(rows, 0.5), spice_rs.select(rows, 20, represent=1).indices.tolist(), 3.0)

    def test_a_gamma_of_nothing_changes_nothing(self) -> None:
        rows = drawn(1, 200, 10)
        for options in ({}, {"normalize": "unit", "alpha": "auto", "conflict_penalty": 0.0}):
            off, plain = (
                spice_rs.select(rows, 30, represent=0, **options),
                spice_rs.select(rows, 30, **options),
            )
            assert off.indices.tolist() == plain.indices.tolist()
            assert (off.gains == plain.gains).all()
            assert off.settings == plain.settings
            assert off.settings["represent"] is None
        # And next to nothing changes next to nothing.
        said: dict[str, Any] = {
            "normalize": "none",
            "alpha": 1,
            "conflict_penalty": 0.1,
        }  # unit rows tie at first
        small, plain = spice_rs.select(rows, 30, represent=1e-9, **said), spice_rs.select(rows, 30, **said)
        assert small.indices.tolist() == plain.indices.tolist()
        assert small.gains == pytest.approx(plain.gains, rel=1e-5)

    @pytest.mark.parametrize(
        "rows", [1, 3, 100, *(pytest.param(each, marks=pytest.mark.slow) for each in (239, 240, 241, 700))]
    )
    def test_threads_files_and_searches_change_no_bit(self, tmp_path: Path, rows: int) -> None:
        pool = drawn(2, rows, 33)
        pool[rows // 2] = pool[0]
        k = min(rows, 40)
        expected = spice_rs.select(pool, k, represent=1, threads=1)
        order = np.random.default_rng(0).permutation(rows)
        for number, size in enumerate((1, 7, 240, 1000)):
            path = tmp_path / str(number)
            with GradientStore.create(path, dim=33, dtype="float32", rows_per_shard=size) as writer:
                writer.append(pool[order], index=order)
            for threads in (1, 2, 5):
                found = spice_rs.select(path, k, represent=1, threads=threads)
                assert found.indices.tolist() == expected.indices.tolist()
                assert (found.gains == expected.gains).all()
                assert found.settings["alpha"] == expected.settings["alpha"]
        for search in ("eager", "lazy_gain"):
            assert spice_rs.select(pool, k, represent=1, search=search).indices.tolist() == (
                expected.indices.tolist()
            )
        cut = [pool[: rows // 3], pool[rows // 3 :]] if rows > 3 else [pool]
        assert (spice_rs.select(cut, k, represent=1).gains == expected.gains).all()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
    def test_stores_of_few_digits(self, tmp_path: Path, dtype: str) -> None:
        pool = drawn(3, 90, 8)
        with GradientStore.create(tmp_path / "store", dim=8, dtype=dtype) as writer:
            writer.append(pool, index=np.arange(90))
        rows = GradientStore(tmp_path / "store").read(np.arange(90))
        found = spice_rs.select(tmp_path / "store", 30, represent=1)
        assert judge(represented(rows, 1), found.indices.tolist(), found.settings["alpha"]) is None

    def test_more_columns_than_rows(self) -> None:
        rows = drawn(4, 9, 400)
        found = spice_rs.select(rows, 9, represent=1)
        assert found.settings["represent"]["directions"] == 9
        assert judge(represented(rows, 1), found.indices.tolist(), found.settings["alpha"]) is None

    def test_rows_of_zeros_come_last(self) -> None:
        rows = np.zeros((6, 4), np.float32)
        rows[3] = [1, 2, 0, 0]
        found = spice_rs.select(rows, 6, represent=2)
        assert found.indices.tolist() == [3, 0, 1, 2, 4, 5]
        assert (found.gains[1:] == 0).all()
        alone = spice_rs.select(np.float32([[3, 4]]), 1, represent=1)
        assert alone.gains.tolist() == pytest.approx([math.log(2)])
        assert spice_rs.select(np.zeros((3, 2)), 2, represent=1).indices.tolist() == [0, 1]

    def test_it_is_a_selection_from_other_rows(self) -> None:
        """What is given beside it holds as on those: scale, α, λ."""
        rows = drawn(5, 120, 9) * np.linspace(0.2, 5, 120)[:, None].astype(np.float32)
        said: dict[str, Any] = {"normalize": "none", "alpha": 0.7, "conflict_penalty": 0.5}
        found = spice_rs.select(rows, 40, represent=1, **said)
        new = np.float64(rows) @ naive_power(rows, 1)
        assert {name: found.settings[name] for name in said} == said
        assert judge(new, found.indices.tolist(), 0.7, 0.5) is None
        as_said = spice_rs.select(rows, 40, represent=1)
        assert as_said.settings["normalize"] == "unit"
        assert as_said.settings["conflict_penalty"] == 0
        preset = spice_rs.select(rows, 40, represent=1, preset="paper")
        assert (preset.settings["alpha"], preset.settings["conflict_penalty"]) == (1, 0.1)
        assert preset.settings["normalize"] == "none"

    @pytest.mark.parametrize(
        "options",
        [
            {"fisher": "scalar"},
            {"method": "top_k"},
            {"early_stop": 0.5},
            {"pool_size": 40, "select_per_window": 5},
            {"method": "epsilon_lazy", "epsilon": 0.01},
            {"method": "stochastic"},
            {"max_similarity": 0.8},
            {"groups": [i % 3 for i in range(200)]},
            {"groups": [i % 3 for i in range(200)], "group_shares": {0: (0.5, None), 1: (None, 4)}},
            {"initial": [5, 9]},
            {"include": [5, 9]},
            {"weights": np.linspace(0.5, 2, 200)},
            {"prior": np.linspace(0, 1, 200), "prior_weight": 0.2},
            {"budget": 300, "costs": np.arange(1, 201)},
        ],
    )
    def test_everything_else_is_as_on_these_rows(self, options: dict[str, Any]) -> None:
        rows = drawn(6, 200, 10)
        k = {} if {"budget", "pool_size"} & options.keys() else {"k": 25}
        found = spice_rs.select(rows, represent=1, **k, **options)
        new = np.float32(represented(rows, 1))
        same = {"alpha": found.settings["alpha"], "conflict_penalty": 0, "normalize": "none"}
        expected = spice_rs.select(new, **k, **same, **options)
        assert found.indices.tolist() == expected.indices.tolist()
        assert found.gains == pytest.approx(expected.gains, rel=1e-4, abs=1e-6)
        assert found.stop_reason == expected.stop_reason
        if found.near_duplicates is not None and expected.near_duplicates is not None:
            assert found.near_duplicates.rows.tolist() == expected.near_duplicates.rows.tolist()
            assert len(found.near_duplicates) > 0
            assert found.near_duplicates.cosine == pytest.approx(expected.near_duplicates.cosine, abs=1e-5)

    def test_alpha_is_of_the_candidates(self) -> None:
        rows = drawn(7, 60, 6)
        gone = list(range(40))
        found = spice_rs.select(rows, 10, represent=1, exclude=gone)
        squares = (represented(rows, 1) ** 2).sum(1)  # of the whole pool
        assert found.settings["alpha"] == pytest.approx(1 / np.median(squares[40:]), rel=1e-6)
        assert (
            judge(
                represented(rows, 1),
                found.indices.tolist(),
                found.settings["alpha"],
                0,
                None,
                [row not in gone for row in range(60)],
            )
            is None
        )

    def test_for_a_target(self) -> None:
        rows, target = drawn(8, 150, 8), drawn(9, 6, 8) + 1
        found = spice_rs.select(rows, 20, represent=1, target=target)
        relevance = spice_rs.relevance(rows, target)
        assert found.relevance == pytest.approx(relevance[found.indices])
        weights = np.maximum(relevance, 0)
        new = represented(rows, 1)
        typical = np.median((weights * (new**2).sum(1))[weights > 0])
        assert found.settings["alpha"] == pytest.approx(1 / typical, rel=1e-5)
        # The core reads rows times √w.
        assert (
            judge(
                new * np.sqrt(weights)[:, None],
                found.indices.tolist(),
                found.settings["alpha"],
                free=weights > 0,
            )
            is None
        )


class TestAfterwards:
    def test_it_is_kept_and_told(self, tmp_path: Path) -> None:
        rows = drawn(10, 120, 8)
        found = spice_rs.select(rows, 20, represent=1, represent_rank=5)
        found.save(tmp_path / "sel.safetensors")
        again = Selection.load(tmp_path / "sel.safetensors", rows)
        assert again.settings == found.settings
        kept = found.settings["represent"]
        assert (kept["gamma"], kept["rank"], kept["directions"]) == (1.0, 5, 5)
        values = np.linalg.eigvalsh(unit(rows).T @ unit(rows))[::-1]
        assert kept["energy"] == pytest.approx(values[:5].sum() / values.sum())
        assert "representative (γ = 1)" in again.summary()
        assert "5 directions of 8 columns" in again.summary()
        assert (
            found.head(7).indices.tolist()
            == spice_rs.select(rows, 7, represent=1, represent_rank=5).indices.tolist()
        )
        assert "representative" not in spice_rs.select(rows, 5).summary()

    @pytest.mark.parametrize("rank", [None, 4])
    def test_a_certificate_is_of_these_rows(self, rank: int | None) -> None:
        rows = drawn(11, 14, 6)
        found = spice_rs.select(rows, 4, represent=1, represent_rank=rank)
        proven = spice_rs.certify(found, rows)
        new, alpha = represented(rows, 1, rank), found.settings["alpha"]
        best = max(
            np.linalg.slogdet(np.eye(6) + alpha * new[list(some)].T @ new[list(some)])[1]
            for some in itertools.combinations(range(14), 4)
        )
        assert proven.log_det == pytest.approx(found.log_det, rel=1e-9)
        assert proven.upper_bound >= best * (1 - 1e-6)
        assert proven.ratio <= found.log_det / best + 1e-6
        assert proven.upper_bound <= 2 * best
        with pytest.raises(StoreMismatchError, match="fingerprint"):
            spice_rs.certify(found, rows + np.float32(1))

    def test_rows_are_explained_in_this_geometry(self) -> None:
        rows = drawn(12, 100, 7)
        rows[50] = rows[3]
        found = spice_rs.select(rows, 100, represent=1).head(15)
        new, alpha = represented(rows, 1), found.settings["alpha"]
        unpicked = [row for row in range(100) if row not in found.indices.tolist()]
        for why in spice_rs.explain(found, rows, unpicked):
            assert why.reason != "unknown"
            assert why.base == pytest.approx(math.log1p(alpha * float((new[why.row] ** 2).sum())), rel=1e-5)
            cosines = [
                float(new[why.row] @ new[pick])
                / math.sqrt(float((new[why.row] ** 2).sum()) * float((new[pick] ** 2).sum()))
                for pick in found.indices
            ]
            assert abs(why.nearest_cosine) == pytest.approx(max(map(abs, cosines)), abs=1e-5)
        analysis = spice_rs.analyze(found, rows)
        assert (analysis.margin[np.isfinite(analysis.margin)] >= -1e-9).all()

    def test_a_near_duplicate_is_one_of_these_rows(self) -> None:
        rows = drawn(13, 100, 7)
        found = spice_rs.select(rows, 10, represent=1, max_similarity=0.7)
        assert found.near_duplicates is not None
        row = int(found.near_duplicates.rows[0])
        [why] = spice_rs.explain(found, rows, row)
        assert why.reason in ("near_duplicate", "redundant", "small_gain")
        new = represented(rows, 1)
        a, b = new[row], new[found.near_duplicates.of[0]]
        cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
        assert found.near_duplicates.cosine[0] == pytest.approx(cosine, abs=1e-5)

    def test_coverage_has_one_yardstick(self) -> None:
        rows, held = drawn(14, 200, 10), drawn(15, 60, 10)
        found = spice_rs.select(rows, 30, represent=1)
        cover = spice_rs.coverage(found, rows, held)
        picked, wanted = unit(rows[found.indices]), unit(held)
        inverse = np.linalg.inv(np.eye(10) + picked.T @ picked)  # α = 1 of unit rows
        left = [math.log1p(float(row @ inverse @ row)) for row in wanted]
        assert cover.left == pytest.approx(np.mean(left), rel=1e-9)
        plain = spice_rs.select(rows, 30, normalize="unit", alpha="auto", conflict_penalty=0)
        assert spice_rs.coverage(plain, rows, held).random == pytest.approx(cover.random)

    def test_a_report_is_of_these_rows(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        rows = drawn(16, 150, 8)
        found = spice_rs.select(rows, 20, represent=1, represent_rank=3)
        spice_rs.write_report(found, rows, tmp_path / "page.html")
        assert "representative (γ = 1)" in (tmp_path / "page.html").read_text("utf-8")

    def test_a_checkpoint_goes_on(self, tmp_path: Path) -> None:
        rows, file = drawn(17, 150, 8), tmp_path / "run"
        whole = spice_rs.select(rows, 30, represent=1)
        spice_rs.select(rows, 10, represent=1, checkpoint=file)
        found = spice_rs.select(rows, 30, represent=1, checkpoint=file)
        assert found.indices.tolist() == whole.indices.tolist()
        assert (found.gains == whole.gains).all()
        for other in ({"represent": 0.5}, {"represent": 1, "represent_rank": 4}):
            with pytest.raises(StoreMismatchError, match=r"alpha|represent\.(gamma|rank)"):
                spice_rs.select(rows, 30, checkpoint=file, **other)
            with pytest.raises(StoreMismatchError, match=r"represent\.(gamma|rank)"):
                spice_rs.select(rows, 30, checkpoint=file, alpha=found.settings["alpha"], **other)

    def test_files_of_before_have_none(self, tmp_path: Path) -> None:
        from spice_rs.selection.saved import read_run, write_run

        rows = drawn(18, 50, 5)
        spice_rs.select(rows, 5).save(tmp_path / "old")
        run = read_run(tmp_path / "old")
        del run.settings["represent"]
        write_run(tmp_path / "old", run)
        old = Selection.load(tmp_path / "old", rows)
        assert old.settings["represent"] is None
        assert spice_rs.certify(old, rows).ratio > 0
        assert spice_rs.extend(old, np.concatenate([rows, rows[:1]])).kept == 5

    @pytest.mark.parametrize(
        "wrong",
        [
            {"gamma": -1.0},
            {"gamma": 0.0},
            {"gamma": 5.0},
            {"gamma": True},
            {"rank": 0},
            {"rank": 2},
            {"directions": 0},
            {"directions": 9},
            {"energy": 2.0},
            {"energy": "all"},
            {"more": 1},
        ],
    )
    def test_a_file_that_says_nonsense_is_corrupt(self, tmp_path: Path, wrong: dict[str, Any]) -> None:
        from spice_rs.selection.saved import read_run, write_run

        rows = drawn(19, 50, 5)
        spice_rs.select(rows, 5, represent=1).save(tmp_path / "sel")
        run = read_run(tmp_path / "sel")
        run.settings["represent"] |= wrong
        write_run(tmp_path / "sel", run)
        with pytest.raises(spice_rs.CorruptStoreError, match=r"represent"):
            Selection.load(tmp_path / "sel")


class TestRoom:
    @pytest.mark.parametrize("where", ["named", "too many for memory"])
    def test_a_file_changes_no_bit_and_is_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        rows = drawn(20, 300, 12)
        expected = spice_rs.select(rows, 30, represent=1)
        options: dict[str, Any] = {}
        if where == "named":
            options["represent_folder"] = tmp_path
        else:
            monkeypatch.setattr("spice_rs.selection.represent.IN_MEMORY", 100)
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        asked: list[Path] = []
        usage = __import__("shutil").disk_usage
        monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(Path(path)) or usage(path))
        found = spice_rs.select(rows, 30, represent=1, **options)
        assert asked == [tmp_path]
        assert (found.gains == expected.gains).all()
        assert list(tmp_path.iterdir()) == []

    def test_no_room_is_said_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = drawn(21, 300, 12)
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(
            InvalidInputError, match=r"represent_folder: found 0\.0 GB free in .*represent_rank"
        ):
            spice_rs.select(rows, 30, represent=1, represent_folder=tmp_path)
        with pytest.raises(InvalidInputError, match=r"represent_folder: found no room .*No such file"):
            monkeypatch.undo()
            spice_rs.select(rows, 30, represent=1, represent_folder=tmp_path / "none")


class TestRefusals:
    @pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 4.5, "1", True, None, [1]])
    def test_no_gamma(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"^represent: found .*0 switches it off"):
            spice_rs.select(np.eye(3), 2, represent=value)

    @pytest.mark.parametrize("value", [0, -1, 2.5, "all", True])
    def test_no_rank(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"^represent_rank: found "):
            spice_rs.select(np.eye(3), 2, represent=1, represent_rank=value)

    def test_what_does_not_go_together(self) -> None:
        rows = drawn(22, 40, 4)
        for options, message in (
            ({"represent_rank": 3}, "represent_rank: found it without represent"),
            ({"represent_folder": "."}, "represent_folder: found it without represent"),
            ({"represent": 1, "represent_rank": 5}, "represent_rank: found 5, expected at most 4"),
            ({"represent": 1, "fisher": "diagonal"}, "fisher: found 'diagonal' beside represent=1"),
        ):
            with pytest.raises(InvalidInputError, match=re.escape(message)):
                spice_rs.select(rows, 5, **options)
        found = spice_rs.select(rows, 5, represent=1)
        with pytest.raises(InvalidInputError, match=r"extend: found representative picks"):
            spice_rs.extend(found, np.concatenate([rows, rows]))

    def test_matrices_that_do_not_fit_are_refused(self) -> None:
        rows = np.zeros((2, 3_000_000), np.float32)
        rows[:, 0] = 1
        with pytest.raises(InvalidInputError, match=r"^represent: found 3000000 columns, .* GB of memory"):
            spice_rs.select(rows, 1, represent=1)

    def test_rows_of_nan(self) -> None:
        rows = drawn(23, 20, 4)
        rows[7, 2] = math.nan
        with pytest.raises(InvalidInputError, match=r"row 7, column 2: found NaN"):
            spice_rs.select(rows, 5, represent=1)


class TestCommands:
    def test_the_command_line_has_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = drawn(24, 80, 8)
        np.save(tmp_path / "rows.npy", rows)
        pool, picks, kept = tmp_path / "rows.npy", tmp_path / "picks.jsonl", tmp_path / "sel.safetensors"
        asked = ("--represent", "1", "--represent-rank", "5")
        assert run("select", pool, "-k", 10, *asked, "--out", picks, "--save", kept) == 0
        assert "representative (γ = 1): 5 directions of 8 columns" in capsys.readouterr().err
        expected = spice_rs.select(rows, 10, represent=1, represent_rank=5)
        saved = Selection.load(kept, pool)
        assert saved.indices.tolist() == expected.indices.tolist()
        assert run("certify", kept, pool) == 0
        assert f"{spice_rs.certify(expected, rows).upper_bound:.6g}" in capsys.readouterr().out
        for selection, again in ((kept, ()), (kept, asked), (picks, asked)):
            assert run("explain", selection, pool, 3, *again, "--json") == 0
            [why] = spice_rs.explain(expected, rows, 3)
            assert f'"base": {why.base}' in capsys.readouterr().out
        assert run("explain", picks, pool, 3) == 2
        assert "gain of rank 0" in capsys.readouterr().err
        assert run("explain", kept, pool, 3, "--represent", "0.5") == 2
        assert "--represent: found 0.5" in capsys.readouterr().err
        assert run("select", pool, "-k", 10, "--represent", "9", "--out", tmp_path / "no.jsonl") == 2
        assert "--represent: found 9" in capsys.readouterr().err
        assert run("curvature", pool, "--represent", "1") == 0
        found = spice_rs.curvature(rows, represent=1)
        assert f"{found.total:.9g}" in capsys.readouterr().out

    def test_curvature_is_of_these_rows(self) -> None:
        rows = drawn(25, 30, 5)
        found = spice_rs.curvature(rows, represent=1, represent_rank=4)
        new, alpha = represented(rows, 1, 4), found.settings["alpha"]
        inverse = np.linalg.inv(np.eye(5) + alpha * new.T @ new)
        leverages = [alpha * float(row @ inverse @ row) for row in new]
        assert found.leverages == pytest.approx(leverages, rel=1e-5)
        assert found.settings["represent"]["rank"] == 4
        with pytest.raises(InvalidInputError, match="represent_rank: found it without represent"):
            spice_rs.curvature(rows, represent_rank=4)
        assert spice_rs.curvature(rows).settings["alpha"] == 1
