"""Rows and alphas at the ends of float64: numbers to rounding against extended precision, or an error that says why."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exact
import spice_rs
from counts import cases
from spice_rs import InvalidInputError
from spice_rs.analysis.prefixes import log_dets
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")

SMALLEST, LARGEST = 5e-324, float(np.finfo(float).max)
FAR = [
    SMALLEST,
    1e-320,
    1e-310,
    3e-308,
    1e-300,
    1e-200,
    1e-162,
    1e-100,
    1.0,
    1e100,
    1e154,
    1e200,
    1e300,
    3e307,
]


def rows_of(scale: float, n: int = 40, dim: int = 6) -> np.ndarray:
    rows = np.random.default_rng(7).uniform(-4, 4, (n, dim))
    # Whole multiples of the smallest number, or as they are.
    rows = np.round(rows) * SMALLEST if scale == SMALLEST else rows * scale
    return rows[np.abs(rows).max(1) > 0]


def true_units(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(exact.Wide)
    wide /= np.abs(wide).max(1, keepdims=True)
    return (wide / np.sqrt((wide**2).sum(1, keepdims=True))).astype(np.float64)


@pytest.mark.parametrize("scale", FAR)
def test_unit_rows_are_of_length_one_at_any_scale(scale):
    rows = rows_of(scale)
    units = true_units(rows)
    found = RowReader(open_source(rows), "unit").read(np.arange(len(rows)))
    np.testing.assert_allclose(found, units, rtol=1e-14, atol=1e-300)
    of = {"normalize": "unit", "alpha": 3.0}
    picks, expected = (spice_rs.select(source, 25, **of) for source in (rows, units))
    assert picks.indices.tolist() == expected.indices.tolist()
    pairs = exact.pairs(units, 3.0)
    np.testing.assert_allclose(picks.gains, exact.gains(pairs, picks.indices).astype(float), rtol=1e-12)
    u = exact.log_det(pairs, picks.indices)
    assert spice_rs.log_det(rows, picks.indices, **of) == pytest.approx(u, rel=1e-13)
    assert spice_rs.certify(picks, rows).ratio == pytest.approx(
        spice_rs.certify(expected, units).ratio, rel=1e-9
    )
    curvature, of_units = (spice_rs.curvature(source, **of).total for source in (rows, units))
    assert curvature == pytest.approx(of_units, rel=1e-9)


def test_rows_of_all_scales_side_by_side_become_unit_rows():
    rows = np.concatenate([rows_of(scale, 6) for scale in FAR] + [np.zeros((2, 6))])
    units = np.concatenate([true_units(rows[:-2]), np.zeros((2, 6))])
    picks, expected = (spice_rs.select(source, 60, normalize="unit") for source in (rows, units))
    # Rows that agree but for rounding, such as a row and its multiple, may change places.
    np.testing.assert_allclose(picks.gains, expected.gains, rtol=1e-9)
    assert np.isfinite(picks.scores).all()


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, 3.0]), min_size=4, max_size=4), st.integers(-1074, 1021))
@cases(100)
def test_powers_of_two_do_not_show_in_unit_rows(cells, power):
    row = np.ldexp(np.array(cells), power)
    ones = np.random.default_rng(1).standard_normal((5, 4))
    of = {"normalize": "unit", "alpha": 2.0}
    both = [spice_rs.select(np.vstack([each, ones]), 6, **of) for each in (row, np.array(cells))]
    assert both[0].indices.tolist() == both[1].indices.tolist()
    np.testing.assert_array_equal(both[0].gains, both[1].gains)


@pytest.mark.parametrize("scale", [SMALLEST, 1e-310, 1e-200, 1e-150])
@pytest.mark.parametrize(
    "options", [{}, {"alpha": "auto"}, {"fisher": "diagonal"}, {"method": "top_k"}, {"alpha": 1e300}]
)
def test_squares_that_float64_loses_are_refused(scale, options):
    rows = rows_of(scale)
    with pytest.raises(InvalidInputError, match=r"gradients: found rows of ‖g‖² up to .*normalize=\"unit\""):
        spice_rs.select(rows, 3, **options)
    for call in (spice_rs.curvature, lambda rows: spice_rs.log_det(rows, [0, 1])):
        with pytest.raises(InvalidInputError, match="gradients: found rows of"):
            call(rows)


def test_rows_of_zeros_and_small_rows_beside_others_are_legal():
    rows = rows_of(1.0, 20)
    rows[3] *= 1e-170
    rows[5] = 0
    picks = spice_rs.select(rows, len(rows), conflict_penalty=0)
    assert sorted(picks.indices[-2:].tolist()) == [3, 5]
    assert np.isfinite(picks.gains).all()
    assert spice_rs.select(np.zeros((3, 2)), 2).indices.tolist() == [0, 1]


@pytest.mark.parametrize("tiny", [1e-150, 1e-170, 1e-300])
def test_near_duplicates_are_found_among_rows_whose_squares_are_lost(tiny):
    rows = np.eye(6)
    rows[4] = tiny * np.array([0, 0, 0, 1.0, 1e-9, 0])
    rows[5] = [0, 0, 0, 0, 0, 0]
    picks = spice_rs.select(rows, 5, max_similarity=0.9, conflict_penalty=0, partial=True)
    assert 4 not in picks.indices
    assert picks.near_duplicates is not None


@pytest.mark.parametrize("alpha", [1e-3, 1e-8, 1e-15, 1e-16, 1e-17, 1e-100, 1e-200, 1e-300, 3e-308])
@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (30, 30)])
def test_tiny_alphas_cost_no_digits(alpha, shape):
    rows = np.random.default_rng(3).standard_normal(shape) + 0.3
    pairs = exact.pairs(rows, alpha)
    k = min(shape) // 2
    for method in ({}, {"method": "top_k"}, {"fisher": "diagonal"}):
        picks = spice_rs.select(rows, k, alpha=alpha, conflict_penalty=0, **method)
        assert spice_rs.log_det(rows, picks.indices, alpha=alpha) == pytest.approx(
            exact.log_det(pairs, picks.indices), rel=1e-12, abs=SMALLEST
        )
        np.testing.assert_allclose(
            picks.log_dets, np.cumsum(exact.gains(pairs, picks.indices)).astype(float), rtol=1e-12
        )
    everything = np.arange(len(rows))
    assert spice_rs.log_det(rows, everything, alpha=alpha) == pytest.approx(
        exact.log_det(pairs, everything), rel=1e-12
    )
    picks = spice_rs.select(rows, k, alpha=alpha, conflict_penalty=0)
    certificate = spice_rs.certify(picks, rows)
    # Where rows do not interact the largest ones are the best: proven, and not only not disproven.
    assert certificate.ratio > (0.999999 if alpha < 1e-8 else 0.8)
    assert certificate.upper_bound >= exact.log_det(pairs, picks.indices)
    curvature = spice_rs.curvature(rows, alpha=alpha)
    assert 0 <= curvature.total <= 1
    assert np.isfinite(curvature.guarantee)


@given(st.integers(-1000, 40), st.integers(0, 1000))
@cases(60)
def test_log_det_of_any_alpha_is_right_or_refused(power, seed):
    draws = np.random.default_rng(seed)
    rows = draws.standard_normal((draws.integers(1, 12), draws.integers(1, 12)))
    alpha = float(np.ldexp(1.0, power))
    largest = alpha * float((rows**2).sum(axis=1).max())
    if largest > 1e13:
        with pytest.raises(spice_rs.InvalidInputError, match="alpha: found"):
            spice_rs.log_det(rows, range(len(rows)), alpha=alpha)
        return
    u = exact.log_det(exact.pairs(rows, alpha), range(len(rows)))
    assert spice_rs.log_det(rows, range(len(rows)), alpha=alpha) == pytest.approx(
        # What rounding of αGGᵀ does to its least eigenvalue, which 1 is added to.
        u,
        rel=1e-9,
        abs=len(rows) * 2.0**-52 * largest,
    )
    assert log_dets(rows, alpha)[-1] == pytest.approx(u, rel=1e-3 if alpha > 1e6 else 1e-9)


@pytest.mark.parametrize(
    ("alpha", "words"), [(5e-324, "at least"), (1e-309, "at least"), (1e14, "at most"), (1e300, "at most")]
)
def test_alphas_that_float64_cannot_serve_are_refused(alpha, words):
    rows = rows_of(0.3)
    picks = spice_rs.select(rows, 3)
    calls = {
        "select": lambda: spice_rs.select(rows, 3, alpha=alpha),
        "log_det": lambda: spice_rs.log_det(rows, picks.indices, alpha=alpha),
        "curvature": lambda: spice_rs.curvature(rows, alpha=alpha),
    }
    for call in calls.values():
        with pytest.raises(
            InvalidInputError, match=rf"^alpha: found {alpha:.0e}".replace("+", "").replace("e-0", "e-")
        ):
            call()
        with pytest.raises(InvalidInputError, match=words):
            call()


def test_fourth_powers_that_overflow_are_refused():
    rows = rows_of(1e80)
    with pytest.raises(InvalidInputError, match='fisher: found "diagonal" with rows of'):
        spice_rs.select(rows, 3, alpha=1e-160, fisher="diagonal")
    assert len(spice_rs.select(rows, 3, alpha=1e-160)) == 3


@pytest.mark.parametrize("power", [-400, -200, 0, 200, 400])
def test_a_power_of_two_on_rows_and_its_square_on_alpha_change_nothing(power):
    rows = rows_of(1.0, 60)
    scaled, alpha = np.ldexp(rows, power), float(np.ldexp(1.0, -2 * power))
    of = {"conflict_penalty": 0}
    one, other = spice_rs.select(rows, 30, **of), spice_rs.select(scaled, 30, alpha=alpha, **of)
    assert one.indices.tolist() == other.indices.tolist()
    np.testing.assert_array_equal(one.gains, other.gains)
