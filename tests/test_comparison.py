"""Methods side by side: rows of any source, the baselines by their definitions, and what is measured."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given

import oracle
import pools
import spice_rs
from command import run
from counts import cases
from spice_rs import InvalidInputError, SpiceWarning, StoreMismatchError, demo
from spice_rs.analysis import baselines, measures
from spice_rs.analysis.baselines import NotAvailable, facility_location, k_center, random_rows
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import open_source

N = 90
ROWS = pools.law("opposed", N, 12, 5)
LABELS = [("maths", "code", "chat")[i * i % 7 % 3] for i in range(N)]
WORDS = [3 + i * 5 % 13 for i in range(N)]
RECORDS = [
    {"instruction": f"do {i}", "response": f"done {i}", "source": LABELS[i], "words": WORDS[i]}
    for i in range(N)
]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


def make_store(path, rows, index, dtype="float16", tokens=None, per_shard=7):
    reduction = None if tokens is None else "sum"
    with spice_rs.GradientStore.create(
        path, dim=rows.shape[1], dtype=dtype, reduction=reduction, rows_per_shard=per_shard
    ) as writer:
        writer.append(rows.astype(np.float32), index=index, num_tokens=tokens)
    return spice_rs.GradientStore(path)


# --- rows of a source ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_of_arrays_are_what_the_arrays_hold(dtype):
    rows = ROWS.astype(dtype)
    reader = RowReader(open_source(rows))
    wanted = np.random.default_rng(0).integers(0, N, 200)
    assert np.array_equal(reader.read(wanted), rows[wanted].astype(np.float64))
    assert reader.read([]).shape == (0, 12)
    assert RowReader(open_source(rows), dtype=np.float32).read([3]).dtype == np.float32
    for size in (1, 7, N, 1000, None):
        blocks = list(reader.blocks(size))
        assert np.concatenate([positions for positions, _ in blocks]).tolist() == list(range(N))
        assert np.array_equal(np.concatenate([block for _, block in blocks]), rows.astype(np.float64))


def test_rows_of_bfloat16_are_the_upper_halves_of_float32(tmp_path):
    halves = (ROWS.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    halves.tofile(tmp_path / "rows.bin")
    source = open_source(tmp_path / "rows.bin", dim=12, dtype="bfloat16")
    expected = (halves.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(RowReader(source).read(np.arange(N)), expected)


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-12, 1, 1e9])
def test_rows_of_stores_are_scaled_as_the_selection_scales_them(tmp_path, dtype, size):
    tokens = np.arange(1, N + 1, dtype=np.int32)
    index = np.random.default_rng(1).permutation(3 * N)[:N]
    store = make_store(tmp_path / "store", ROWS * size, index, dtype, tokens)
    stored = store.read(np.arange(N)).astype(np.float64)
    source = open_source(store)
    order = np.random.default_rng(2).permutation(N)
    for normalize, expected in {
        "none": stored,
        "sum": stored,
        "mean": stored / tokens[:, None],
        "auto": stored / tokens[:, None],
        "unit": stored / np.linalg.norm(stored, axis=1, keepdims=True),
    }.items():
        reader = RowReader(source, normalize)
        assert reader.normalize == ("mean" if normalize == "auto" else normalize)
        # store.read rounds the product of cell and scale to float32.
        np.testing.assert_allclose(reader.read(order), expected[order], rtol=2e-7, atol=0)
        read = np.concatenate([block for _, block in reader.blocks(5, order)])
        assert np.array_equal(read, reader.read(order))


def test_unit_rows_of_any_length_have_length_one_and_zero_rows_stay_zero():
    rows = np.array([[0.0, 0.0], [3e-200, 4e-200], [3e200, -4e200], [1.0, 0.0]])
    assert np.allclose(
        RowReader(open_source(rows), "unit").read(np.arange(4)), [[0, 0], [0.6, 0.8], [0.6, -0.8], [1, 0]]
    )


# --- baselines ----------------------------------------------------------------------------------------------------


def naive_k_center(rows, k):
    """Every distance from the difference, at every step; the first of equal ones."""
    rows = rows.astype(np.float64)
    picks = [int(np.argmax((rows**2).sum(1)))]
    nearest = np.full(len(rows), np.inf)
    while len(picks) < k:
        nearest = np.minimum(nearest, ((rows - rows[picks[-1]]) ** 2).sum(1))
        nearest[picks] = -1
        picks.append(int(np.argmax(nearest)))
    return picks


def covering_radii(rows, picks):
    """The distance of each pick to the picks before it, and the largest that any row left had then."""
    rows = rows.astype(np.float64)
    nearest = np.sqrt(((rows - rows[picks[0]]) ** 2).sum(1))
    for pick in picks[1:]:
        yield nearest[pick], nearest.max()
        nearest = np.minimum(nearest, np.sqrt(((rows - rows[pick]) ** 2).sum(1)))


@cases(150)
@given(pools.cases())
def test_each_pick_of_k_center_is_a_farthest_row(case):
    source = open_source(case.rows)
    picks = k_center(source.dataset_order(), RowReader(source), case.k)
    assert len(set(picks.tolist())) == case.k
    lengths = np.linalg.norm(case.rows.astype(np.float64), axis=1)
    assert lengths[picks[0]] >= lengths.max() * (1 - 1e-12)
    for own, farthest in covering_radii(case.rows, picks):
        assert own >= farthest - 1e-7 * lengths.max()


@pytest.mark.parametrize("law", pools.LAWS)
def test_k_center_picks_what_the_naive_traversal_picks(law):
    rows = pools.law(law, 400, 24, 3).astype(np.float64)
    rows[350:] = rows[:50]  # twins: the lower one first, at distance 0 the other
    source = open_source(rows)
    assert k_center(source.dataset_order(), RowReader(source), 400).tolist() == naive_k_center(rows, 400)


def test_the_search_of_k_center_changes_no_pick(monkeypatch):
    rows = np.random.default_rng(4).integers(-2, 3, (300, 4)).astype(np.float32)  # many equal distances
    source = open_source(rows)
    expected = naive_k_center(rows, 300)
    for fewest, most in ((1, 1), (3, 5), (1000, 1000)):
        monkeypatch.setattr(baselines, "FEWEST", fewest)
        monkeypatch.setattr(baselines, "MOST", most)
        assert k_center(source.dataset_order(), RowReader(source), 300).tolist() == expected


def test_k_center_measures_few_rows_again(monkeypatch):
    rows = pools.law("clustered", 3000, 32, 0)
    measured = []
    read = RowReader.read
    monkeypatch.setattr(
        RowReader, "read", lambda self, rows: measured.append(len(np.atleast_1d(rows))) or read(self, rows)
    )
    source = open_source(rows)
    k_center(source.dataset_order(), RowReader(source), 200)
    assert sum(measured) < 0.5 * 200 * 3000


def test_baselines_do_not_depend_on_how_rows_are_spread_over_shards(tmp_path):
    index = np.random.default_rng(3).permutation(5 * N)[:N]
    parts = [index[:31], index[31:60], index[60:]]
    rows_of = dict(zip(index.tolist(), ROWS, strict=True))
    for number, part in enumerate(parts):
        make_store(tmp_path / f"part{number}", np.stack([rows_of[i] for i in part.tolist()]), part, "float32")
    whole = make_store(tmp_path / "whole", ROWS, index, "float32")
    spread = [tmp_path / f"part{number}" for number in (2, 0, 1)]
    one, many = (
        spice_rs.compare(s, 20, ["random", "k_center", "windows"], pool_size=16) for s in (whole, spread)
    )
    for name in one.selections:
        assert one.selections[name].indices.tolist() == many.selections[name].indices.tolist()


def test_random_rows_are_those_of_numpy():
    picks = random_rows(open_source(ROWS).dataset_order(), 11, seed=5)
    assert picks.tolist() == np.random.default_rng(5).permutation(N)[:11].tolist()


def naive_facility_location(rows, k):
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    kernel = (1 + unit @ unit.T) / 2
    best, picks = np.zeros(len(rows)), []
    for _ in range(k):
        gains = np.maximum(kernel, best).sum(1)
        gains[picks] = -1
        picks.append(int(np.argmax(gains)))
        best = np.maximum(best, kernel[picks[-1]])
    return picks


def test_facility_location_hands_a_library_the_cosines(monkeypatch):
    rows = np.random.default_rng(8).standard_normal((70, 9))
    rows[5] = 0
    reader = RowReader(open_source(rows))

    class FakeFunction:
        """What of submodlib is called."""

        def __init__(self, n, mode, separate_rep, sijs):
            assert (n, mode, separate_rep) == (70, "dense", False)
            self.kernel = sijs

        def maximize(self, budget, optimizer, show_progress):
            assert (optimizer, show_progress) == ("LazyGreedy", False)
            assert budget < 70  # it refuses a budget of all rows
            best, picks = np.zeros(70), []
            for _ in range(budget):
                gains = np.maximum(self.kernel, best).sum(1)
                gains[[row for row, _ in picks]] = -1
                picks.append((int(np.argmax(gains)), 0.0))
                best = np.maximum(best, self.kernel[picks[-1][0]])
            return picks

    fake = type("submodlib", (), {"FacilityLocationFunction": FakeFunction})
    monkeypatch.setattr(baselines, "import_module", lambda name: fake)
    picks, library = facility_location(reader, 8)
    assert library == "submodlib"
    assert picks.tolist() == naive_facility_location(rows, 8)
    assert sorted(facility_location(reader, 70)[0].tolist()) == list(range(70))


@pytest.mark.parametrize("library", ["submodlib", "apricot"])
def test_the_libraries_pick_what_the_naive_greedy_picks(library, monkeypatch):
    pytest.importorskip(library)
    rows = np.random.default_rng(8).standard_normal((70, 9))
    run_library = getattr(baselines, f"_by_{library}")
    assert run_library(RowReader(open_source(rows)), 8).tolist() == naive_facility_location(rows, 8)


def test_facility_location_says_why_it_cannot_run(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(baselines, "import_module", missing)
    with pytest.raises(NotAvailable, match="pip install submodlib-py"):
        facility_location(RowReader(open_source(ROWS)), 3)
    comparison = spice_rs.compare(ROWS, 5, ["random", "facility_location"])
    assert [row.method for row in comparison.rows] == ["random 0", "random 1", "random 2"]
    assert any("facility_location was left out" in note for note in comparison.notes)
    assert "facility_location was left out" in comparison.summary()
    with pytest.raises(InvalidInputError, match="neither submodlib nor apricot"):
        spice_rs.compare(ROWS, 5, "facility_location")
    monkeypatch.setattr(baselines, "FACILITY_ROWS", N - 1)
    with pytest.raises(NotAvailable, match=f"up to {N - 1} rows, and the pool has {N}"):
        facility_location(RowReader(open_source(ROWS)), 3)


# --- what is measured ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        return spice_rs.compare(
            ROWS,
            20,
            conflict_penalty=0.5,
            data=RECORDS,
            groups="source",
            lengths="words",
            pool_size=16,
            random_sets=2,
            certificate=False,
        )


LINES = [
    "spice",
    "no_penalty",
    "diagonal",
    "windows",
    "top_k",
    "k_center",
    "representative",
    "random 0",
    "random 1",
]


def test_every_method_picks_k_different_rows(comparison):
    assert [name for name in comparison.selections if name != "facility_location"] == LINES
    assert [row.method for row in comparison.rows] == list(comparison.selections)
    for selection in comparison.selections.values():
        assert len(set(selection.indices.tolist())) == 20


def test_the_methods_are_those_of_select(comparison):
    picks = {name: selection.indices.tolist() for name, selection in comparison.selections.items()}
    assert picks["spice"] == spice_rs.select(ROWS, 20, conflict_penalty=0.5).indices.tolist()
    assert picks["no_penalty"] == spice_rs.select(ROWS, 20, conflict_penalty=0).indices.tolist()
    assert picks["representative"] == spice_rs.select(ROWS, 20, represent=1).indices.tolist()
    assert picks["top_k"] == spice_rs.select(ROWS, 20, method="top_k").indices.tolist()
    diagonal = spice_rs.select(ROWS, 20, conflict_penalty=0.5, fisher="diagonal")
    assert picks["diagonal"] == diagonal.indices.tolist()
    assert picks["k_center"] == naive_k_center(ROWS, 20)
    assert picks["random 1"] == np.random.default_rng(1).permutation(N)[:20].tolist()


@pytest.mark.parametrize(
    ("k", "pool_size"), [(20, 16), (7, 16), (1, 16), (N, 16), (89, 16), (20, 200), (30, 7)]
)
def test_every_window_has_its_share_of_the_picks(k, pool_size):
    sides = spice_rs.compare(ROWS, k, "windows", pool_size=pool_size, seed=3, scales=())
    picks = sides.selections["windows"].indices.tolist()
    assert len(picks) == k
    order = np.random.default_rng(3).permutation(N)
    windows = [order[start : start + pool_size] for start in range(0, N, pool_size)]
    left = list(picks)
    for window in windows:
        of_window = [row for row in picks if row in set(window.tolist())]
        share = k * len(window) / N
        most = -(-k * pool_size // N)
        assert len(of_window) <= min(most, len(window))
        assert len(of_window) >= math.floor(share) - 1
        assert left[: len(of_window)] == of_window  # window after window
        left = left[len(of_window) :]
        if of_window:
            own = spice_rs.select(ROWS[np.sort(window)], len(of_window), fisher="diagonal")
            assert np.sort(window)[own.indices].tolist() == of_window


def u(rows, picks, alpha=1.0):
    chosen = rows[picks].astype(np.float64)
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + alpha * chosen.T @ chosen)[1])


def test_the_numbers_are_those_of_the_definitions(comparison):
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    chance = np.mean([u(ROWS, comparison.selections[f"random {i}"].indices) for i in range(2)])
    for row in comparison.rows:
        picks = comparison.selections[row.method].indices
        assert row.picks == 20
        assert row.log_det == pytest.approx(u(ROWS, picks), rel=1e-9)
        assert row.against_random == pytest.approx(row.log_det / chance, rel=1e-9)
        assert list(row.log_dets) == ["unit"]
        assert row.log_dets["unit"] == pytest.approx(u(unit, picks), rel=1e-6)
        conflicts, gains = [0.0], []
        for step, pick in enumerate(picks):
            before = picks[:step].tolist()
            if step:
                conflicts.append(oracle.conflicts(ROWS, before)[pick])
            gains.append(u(ROWS, picks[: step + 1]) - u(ROWS, picks[:step]))
        assert row.conflict == pytest.approx(np.mean(conflicts), abs=1e-9)
        assert comparison.selections[row.method].gains == pytest.approx(gains, rel=1e-6, abs=1e-9)
        half = [step for step, gain in enumerate(gains) if gain <= 0.5 * gains[0]]
        assert row.half_life == (half[0] if half else None)
        labels = [LABELS[pick] for pick in picks]
        assert row.shares == pytest.approx({name: labels.count(name) / 20 for name in set(LABELS)})
        assert row.median_length == np.median([WORDS[pick] for pick in picks])
        assert row.total_length == sum(WORDS[pick] for pick in picks)
        assert row.seconds >= 0
    assert comparison.pool.rows == N
    assert comparison.pool.shares == pytest.approx({name: LABELS.count(name) / N for name in set(LABELS)})
    assert comparison.pool.total_length == sum(WORDS)


def test_alpha_by_the_median_norm_is_that_of_the_same_number():
    number = 1 / float(np.median((ROWS.astype(np.float64) ** 2).sum(1)))
    auto, given_ = (spice_rs.compare(ROWS, 9, alpha=alpha, random_sets=1) for alpha in ("auto", number))
    assert auto.settings["alpha"] == pytest.approx(number, rel=1e-12)
    for one, other in zip(auto.rows, given_.rows, strict=True):
        assert one.log_det == pytest.approx(other.log_det, rel=1e-9)
        assert one.certificate == pytest.approx(other.certificate, rel=1e-9)
    for judged in (
        spice_rs.log_det(ROWS, [3, 5], alpha="auto"),
        spice_rs.log_det(ROWS, [3, 5], alpha=number),
    ):
        assert judged == pytest.approx(oracle_u(ROWS[[3, 5]], number), rel=1e-9)
    assert spice_rs.curvature(ROWS, alpha="auto").total == pytest.approx(
        spice_rs.curvature(ROWS, alpha=number).total, rel=1e-9
    )


def oracle_u(rows, alpha):
    rows = rows.astype(np.float64)
    return np.linalg.slogdet(np.eye(len(rows)) + alpha * rows @ rows.T)[1]


def test_the_overlap_is_the_jaccard_index(comparison):
    sets = [set(selection.indices.tolist()) for selection in comparison.selections.values()]
    expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    assert np.allclose(comparison.overlap, expected)


def test_a_store_is_compared_by_mean_loss_and_measured_on_all_scales(tmp_path):
    tokens = np.array(WORDS, np.int32)
    store = make_store(tmp_path / "store", ROWS, np.arange(N), "float32", tokens)
    sides = spice_rs.compare(store, 10, ["spice", "random"], random_sets=1, alpha=2)
    assert sides.settings["normalize"] == "mean"
    assert sides.settings["length_unit"] == "tokens"
    for row in sides.rows:
        picks = sides.selections[row.method].indices
        assert row.log_det == pytest.approx(u(ROWS / tokens[:, None], picks, 2), rel=1e-6)
        assert list(row.log_dets) == ["sum", "unit"]
        assert row.log_dets["sum"] == pytest.approx(u(ROWS, picks, 2), rel=1e-6)
        assert row.total_length == tokens[picks].sum()
    assert list(spice_rs.compare(store, 3, "random", normalize="none").rows[0].log_dets) == ["mean", "unit"]
    assert list(spice_rs.compare(store, 3, "random", normalize="unit").rows[0].log_dets) == ["sum", "mean"]
    asked = spice_rs.compare(store, 3, "random", scales=["unit", "none"]).rows[0]
    assert list(asked.log_dets) == ["unit", "none"]
    assert spice_rs.compare(store, 3, "random", scales=()).rows[0].log_dets == {}


def test_ones_own_picks_are_compared_with_the_others():
    mine = spice_rs.select(ROWS, 12, conflict_penalty=3.0, normalize="unit")
    sides = spice_rs.compare(
        ROWS,
        12,
        {
            "paper": "spice",
            "mine": mine,
            "by hand": [3, 1, 2],
            "shares": {"groups": LABELS},
            "stopped": {"early_stop": 0.5},
            "by chance": "random",
        },
        random_sets=1,
    )
    assert [row.method for row in sides.rows] == [
        "paper",
        "mine",
        "by hand",
        "shares",
        "stopped",
        "by chance 0",
    ]
    assert sides.selections["mine"].indices.tolist() == mine.indices.tolist()
    assert sides["mine"].log_det == pytest.approx(u(ROWS, mine.indices))
    assert sides.selections["by hand"].indices.tolist() == [3, 1, 2]
    assert sides["by hand"].picks == 3
    grouped = spice_rs.select(ROWS, 12, groups=LABELS)
    assert sides.selections["shares"].indices.tolist() == grouped.indices.tolist()
    assert sides["stopped"].picks == len(spice_rs.select(ROWS, early_stop=0.5))
    assert np.allclose(np.diag(sides.overlap), 1)
    with pytest.raises(KeyError):
        sides["spice"]
    other = spice_rs.select(ROWS + 1, 3)
    with pytest.raises(StoreMismatchError):
        spice_rs.compare(ROWS, 3, {"other": other})


class FakeCertificate:
    upper_bound = 400.0


def test_a_certificate_bounds_every_method_of_at_most_k_picks(monkeypatch):
    asked = []

    def certify(selection, source, *, threads, progress):
        assert (threads, progress) == (2, False)
        asked.append(selection)
        return FakeCertificate()

    monkeypatch.setattr(measures, "certify", certify)
    methods = {"spice": "spice", "greedy": "no_penalty", "more": list(range(11))}
    sides = spice_rs.compare(ROWS, 10, methods, threads=2, progress=False)
    assert sides["spice"].certificate == pytest.approx(sides["spice"].log_det / 400)
    assert sides["greedy"].certificate == pytest.approx(sides["greedy"].log_det / 400)
    assert sides["more"].certificate is None
    assert [selection.settings["conflict_penalty"] for selection in asked] == [0.0]
    assert "U/bound" in sides.summary()

    def too_large(*_, **__):
        raise InvalidInputError("memory: found too little")

    monkeypatch.setattr(measures, "certify", too_large)
    sides = spice_rs.compare(ROWS, 10, "spice")
    assert sides["spice"].certificate is None
    assert sides.notes[-1] == "There is no bound of U: memory: found too little"
    assert "U/bound" not in sides.summary()


def test_progress_goes_through_every_method():
    seen = []
    spice_rs.compare(
        ROWS, 6, ["spice", "k_center", "top_k"], progress=lambda method, picks: seen.append((method, picks))
    )
    assert {method for method, _ in seen} == {"spice", "k_center", "top_k"}
    assert [picks for method, picks in seen if method == "k_center"] == [1, 2, 3, 4, 5, 6]

    def stop(method, picks):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spice_rs.compare(ROWS, 6, "spice", progress=stop)


def test_warnings_of_the_runs_are_notes_once():
    rows = ROWS * 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sides = spice_rs.compare(rows, 5, ["spice", "no_penalty"])
    linear = [note for note in sides.notes if "U is linear" in note]
    assert len(linear) == 1
    assert linear[0].startswith("spice: ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k: found 0"),
        ({"k": N + 1}, f"k: found {N + 1}, expected a number from 1 to {N}"),
        ({"k": None}, "k: found None"),
        ({"methods": "fps"}, "methods: found 'fps', expected one of spice"),
        ({"methods": []}, "methods: found none"),
        ({"methods": ["spice", "spice"]}, "twice"),
        ({"methods": {"a": []}}, "no picks of 'a'"),
        ({"methods": {"a": [1, 1]}}, r"methods\['a'\]: found row 1 twice"),
        ({"methods": {"a": [N]}}, f"found {N}, expected rows of array"),
        ({"methods": {"a": {"lamda": 0.2}}}, r"methods\['a'\]: found 'lamda', expected options of select"),
        ({"methods": [np.arange(10)]}, "methods: found .*expected names, or a mapping"),
        ({"methods": 5}, "methods: found 5"),
        ({"methods": {"random": "random", "random 0": [1, 2]}}, "two lines called 'random 0'"),
        ({"conflict_penalty": "x"}, "conflict_penalty: found 'x'"),
        ({"scales": ["auto"]}, "scales: found 'auto'"),
        ({"scales": ["mean"]}, "normalize: found 'mean'"),
        ({"random_sets": 0}, "random_sets: found 0"),
        ({"groups": "source"}, "no data"),
        ({"data": RECORDS}, "expected one in groups=… or lengths=…"),
        ({"data": RECORDS, "groups": "nothing"}, "groups: found no 'nothing'"),
        ({"lengths": [1, 2]}, "lengths: found 2 values"),
        ({"normalize": "mean"}, "normalize: found 'mean'"),
    ],
)
def test_bad_arguments_are_named(options, says):
    with pytest.raises(InvalidInputError, match=says):
        spice_rs.compare(ROWS, **{"k": 5, "methods": ["random", "top_k"], **options})


@pytest.mark.parametrize(("n", "k"), [(1, 1), (50, 50), (100, 80)])
def test_small_pools_have_one_window(n, k):
    sides = spice_rs.compare(ROWS[np.arange(n) % N], k, ["spice", "windows", "random"], random_sets=1)
    assert [row.picks for row in sides.rows] == [k, k, k]


def test_a_scale_on_which_alpha_is_out_of_range_is_left_out_with_a_note():
    for options in ({"alpha": "auto"}, {"alpha": 1e14}):
        sides = spice_rs.compare(ROWS * 1e-8, 10, ["spice", "random"], random_sets=1, **options)
        assert sides["spice"].log_dets == {}
        assert any("'unit' was left out: alpha" in note for note in sides.notes)
        assert sides.summary()


def test_a_pool_of_nothing_is_compared_too():
    sides = spice_rs.compare(np.zeros((40, 6), np.float32), 5, ["spice", "random"], random_sets=1)
    assert [row.certificate for row in sides.rows] == [1.0, 1.0]


# --- tables -------------------------------------------------------------------------------------------------------


def test_the_tables_show_every_method(comparison):
    text = comparison.summary()
    lines = text.splitlines()
    assert lines[0] == "20 of 90 rows, α = 1, λ = 0.5, rows as 'none'"
    for name in [*LINES, "(pool)"]:
        shown = [line.split("  ")[0] for line in lines]
        assert shown.count(name) == (2 if name == "(pool)" else 3)
    assert lines[2].split() == (
        "method picks U U/random U (unit) conflict half-life median words total words seconds".split()
    )
    spice = next(line for line in lines if line.startswith("spice ")).split()
    assert spice[:3] == ["spice", "20", f"{comparison['spice'].log_det:.2f}"]
    markdown = comparison.to_markdown()
    assert markdown.count("\n| spice | 20 |") == 1
    assert all(
        line.startswith("|") or "|" not in line for line in markdown.splitlines() if "Shared" not in line
    )
    page = comparison._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 3
    assert "<td>random 1</td>" in page
    assert repr(comparison).startswith("Comparison(20 of 90 rows: spice, no_penalty, ")


def test_a_table_without_groups_and_lengths_has_no_empty_columns():
    text = spice_rs.compare(ROWS, 5, "spice").summary()
    assert "Share" not in text
    assert "median" not in text
    assert "U/random" not in text


def test_many_groups_are_summed_in_one_column():
    groups = [f"g{i % 30:02}" for i in range(N)]
    sides = spice_rs.compare(ROWS, 30, "random", groups=groups, random_sets=1)
    table = sides.summary().split("Share of each group")[1].split("Shared")[0].splitlines()
    assert "(20 others)" in table[2]
    shares = [float(cell.rstrip("%")) for cell in table[4].split()[2:]]
    assert len(shares) == 11
    assert sum(shares) == pytest.approx(100, abs=1)


def test_text_in_html_and_markdown_is_escaped():
    sides = spice_rs.compare(ROWS, 5, {"<b>|": "spice"})
    assert "<b>|" not in sides._repr_html_()
    assert "&lt;b&gt;|" in sides._repr_html_()
    assert "| \\<b>\\| |" in sides.to_markdown()


def test_a_frame_has_an_element_per_method(comparison):
    frame = comparison.to_frame()
    assert {len(column) for _, column in frame.items()} == {len(comparison)}
    assert frame["method"].tolist() == [row.method for row in comparison.rows]
    assert frame["log_det_unit"].tolist() == [row.log_dets["unit"] for row in comparison.rows]
    assert frame["share_maths"].tolist() == [row.shares["maths"] for row in comparison.rows]
    half = frame["half_life"]
    assert [None if np.isnan(x) else int(x) for x in half] == [row.half_life for row in comparison.rows]
    assert [None if np.isnan(x) else x for x in frame["certificate"]] == [
        row.certificate for row in comparison.rows
    ]
    plain = json.loads(json.dumps(comparison.to_dict()))
    assert plain["methods"][0]["log_det"] == comparison.rows[0].log_det
    assert plain["pool"]["shares"] == pytest.approx(comparison.pool.shares)
    assert plain["settings"]["k"] == 20


def test_the_demo_ends_with_the_selection_and_a_comparison(tmp_path, capsys):
    store = make_store(tmp_path / "store", ROWS, np.arange(N)[::-1], "float32", np.array(WORDS, np.int32))
    sel = spice_rs.select(store, 9, normalize="unit", conflict_penalty=0.2)
    demo._show(store, sel, RECORDS)
    shown = capsys.readouterr().out
    assert shown.startswith(sel.summary())
    sides = spice_rs.compare(
        store, 9, ["spice"], normalize="unit", conflict_penalty=0.2, data=RECORDS, groups="source"
    )
    line = next(line for line in sides.summary().splitlines() if line.startswith("spice ") and "%" in line)
    assert line.split() in [shown_line.split() for shown_line in shown.splitlines()]
    assert sides.selections["spice"].indices.tolist() == sel.indices.tolist()


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_what_the_function_returns(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    arguments = ["compare", tmp_path / "rows.npy", "-k", 8, "--methods", "spice,random", "--random-sets", 1]
    arguments += ["--data", tmp_path / "pool.jsonl", "--groups", "source", "--lengths", "words", "--alpha", 2]
    sides = spice_rs.compare(
        ROWS, 8, ["spice", "random"], random_sets=1, data=RECORDS, groups="source", lengths="words", alpha=2
    )
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    for line in sides.summary().splitlines():
        if "." not in line or "%" in line:  # all but the seconds
            assert line in text
    assert run(*arguments, "--markdown", "--no-certificate") == 0
    assert "| spice | 8 |" in capsys.readouterr().out
    assert run(*arguments, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert [method["log_det"] for method in plain["methods"]] == [row.log_det for row in sides.rows]
    assert run("compare", tmp_path / "rows.npy", "-k", 8, "--methods", "best") == 2
    assert "methods: found 'best'" in capsys.readouterr().err
    assert run("compare", tmp_path / "rows.npy") == 2
