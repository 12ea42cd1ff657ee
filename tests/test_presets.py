"""The α that goes by the pool, and settings by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs.errors import InvalidInputError


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spice_rs.SpiceWarning)
        yield


def rows(n: int = 200, d: int = 60, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    return (r.standard_normal((n, d)) * r.lognormal(0, 1, (n, 1))).astype(np.float32)


def test_auto_is_one_over_the_median_of_the_rows_that_are_not_zero():
    pool = rows()
    pool[:150:2] = 0
    norms = np.square(pool.astype(np.float64)).sum(1)
    chosen = spice_rs.select(pool, 5, alpha="auto")
    assert chosen.settings["alpha"] == pytest.approx(1 / np.median(norms[norms > 0]), rel=1e-12)


@pytest.mark.parametrize("factor", [2.0**-6, 2.0**10])
def test_the_unit_of_the_gradients_changes_no_pick_with_auto(factor: float):
    pool = rows()
    here = spice_rs.select(pool, 40, alpha="auto", early_stop=0.3)
    there = spice_rs.select(pool * np.float32(factor), 40, alpha="auto", early_stop=0.3)
    np.testing.assert_array_equal(here.indices, there.indices)
    np.testing.assert_allclose(here.gains, there.gains, rtol=1e-12)
    assert len(here) < 40
    assert not np.allclose(spice_rs.select(pool * np.float32(factor), 5).gains, here.gains[:5])


def test_auto_goes_by_weights_and_by_the_scale_that_competes():
    pool, weights = rows(), np.linspace(0.1, 9, 200)
    norms = np.square(pool.astype(np.float64)).sum(1)
    weighted = spice_rs.select(pool, 5, alpha="auto", weights=weights)
    assert weighted.settings["alpha"] == pytest.approx(1 / np.median(weights * norms), rel=1e-12)
    assert spice_rs.select(pool, 5, alpha="auto", normalize="unit").settings["alpha"] == 1.0


def test_a_pool_of_zero_rows_has_alpha_one():
    assert spice_rs.select(np.zeros((5, 3), np.float32), 2, alpha="auto").settings["alpha"] == 1.0


def test_a_run_with_auto_is_saved_resumed_and_extended_with_its_number(tmp_path):
    pool = rows()
    before = spice_rs.select(pool[:180], 20, alpha="auto", checkpoint=tmp_path / "run")
    again = spice_rs.select(pool[:180], 20, alpha="auto", checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(before.indices, again.indices)
    grown = spice_rs.extend(before, pool)
    assert grown.settings["alpha"] == before.settings["alpha"]


@pytest.mark.parametrize("alpha", ["Auto", "", "1"])
def test_other_words_for_alpha_are_refused(alpha):
    with pytest.raises(InvalidInputError, match="alpha: found .*expected a finite number above 0 or 'auto'"):
        spice_rs.select(rows(), 3, alpha=alpha)


def test_the_paper_is_one_flag_away():
    pool = rows()
    paper = spice_rs.select(pool, 20, preset="paper")
    assert {name: paper.settings[name] for name in ("alpha", "conflict_penalty", "fisher", "early_stop")} == {
        "alpha": 1.0,
        "conflict_penalty": 0.1,
        "fisher": "full",
        "early_stop": None,
    }
    stopped = spice_rs.select(pool, preset="paper+")
    assert stopped.settings["early_stop"] == 0.5
    assert stopped.stop_reason == "early_stop"


@pytest.mark.parametrize(
    "other", [{"alpha": "auto"}, {"conflict_penalty": 0.5}, {"normalize": "unit"}, {"method": "top_k"}]
)
def test_what_contradicts_a_preset_is_refused_by_name(other):
    with pytest.raises(InvalidInputError, match=f"{next(iter(other))}: found .* beside preset='paper'"):
        spice_rs.select(rows(), 3, preset="paper", **other)


def test_what_agrees_with_a_preset_or_is_not_in_it_is_accepted():
    spice_rs.select(rows(), 3, preset="paper", conflict_penalty=0.1, exclude=[1])
    with pytest.raises(InvalidInputError, match="preset: found 'papers'"):
        spice_rs.select(rows(), 3, preset="papers")


def test_both_are_on_the_command_line(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", rows())
    select = ("select", tmp_path / "rows.npy", "-k", "5")
    assert run(*select, "--alpha", "auto", "--conflict-penalty", "0.5") == 0
    assert run(*select, "--preset", "paper") == 0
    assert run(*select, "--alpha", "much") == 2
    assert "found 'much', expected a number or auto" in capsys.readouterr().err
