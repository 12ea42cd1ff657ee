"""Frames: of the library that is there, with the types of the numbers; without one, what to install and how to go on."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import pools
import spice_rs
from spice_rs.frames import as_frame

ROWS = pools.law("clustered", 60, 8, 3)


def results():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spice_rs.SpiceWarning)
        labels = np.array(["x", "y"] * 30, object)
        sel = spice_rs.select(ROWS, 12, groups=labels, max_similarity=0.9)
        yield "selection", sel, 12
        yield "near_duplicates", sel.near_duplicates, len(sel.near_duplicates)
        yield "analysis", spice_rs.analyze(sel, ROWS, groups=labels), 12
        yield "comparison", spice_rs.compare(ROWS, 5, ["spice", "random"], groups=labels), 4
        certificate = spice_rs.certify(sel, ROWS)
        yield "certificate", certificate, len(certificate.prefixes)
        yield "curvature", spice_rs.curvature(ROWS), 60
        sides = spice_rs.agreement(ROWS, ROWS, 8)
        yield "agreement", sides, len(sides.sizes)
        [why] = spice_rs.explain(sel, ROWS, 1, groups=labels)
        yield "explanation", why, len(why.ranks)


@pytest.fixture(scope="module")
def all_results():
    return list(results())


def test_every_result_is_a_frame_of_pandas_with_the_types_of_its_numbers(all_results):
    pandas = pytest.importorskip("pandas")
    for name, result, rows in all_results:
        for library in (None, "pandas"):
            frame = result.to_frame(library=library)
            assert isinstance(frame, pandas.DataFrame), name
            assert len(frame) == rows, name
        if name == "comparison":
            assert frame["picks"].dtype == np.int64
            assert frame["log_det"].dtype == np.float64
            continue
        columns = result.to_dict()
        assert list(frame.columns) == list(columns), name
        for column, values in columns.items():
            if values.dtype == object:
                assert frame[column].tolist() == values.tolist()
            else:
                assert frame[column].dtype == values.dtype, (name, column)
                np.testing.assert_array_equal(frame[column].to_numpy(), values)


def test_a_frame_is_a_copy():
    pytest.importorskip("pandas")
    sel = spice_rs.select(ROWS, 5)
    frame = sel.to_frame()
    frame.loc[0, "gain"] = -1.0
    assert sel.gains[0] > 0


class FakePolars(types.ModuleType):
    """What of polars is used."""

    String = "String"

    class DataFrame:
        def __init__(self, columns):
            self.columns = columns

    class Series:
        def __init__(self, values, dtype=None):
            for value in values:
                value.encode()
            self.values, self.dtype = values, dtype


def test_polars_is_taken_where_there_is_no_pandas_and_where_it_is_asked_for(monkeypatch, all_results):
    monkeypatch.setitem(sys.modules, "polars", FakePolars("polars"))
    sel = all_results[0][1]
    assert isinstance(sel.to_frame("polars"), FakePolars.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    frame = sel.to_frame()
    assert isinstance(frame, FakePolars.DataFrame)
    assert frame.columns["gain"].dtype == np.float64
    assert frame.columns["group"].dtype == "String"
    assert frame.columns["group"].values == sel.groups.tolist()
    with pytest.raises(spice_rs.InvalidInputError, match="surrogate"):
        as_frame({"a": np.array(["\ud83d"], object)})


def test_without_a_library_the_error_says_how_to_go_on(monkeypatch, all_results):
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    for _, result, _ in all_results:
        with pytest.raises(spice_rs.InvalidInputError, match="pip install pandas.*to_dict"):
            result.to_frame()
        with pytest.raises(spice_rs.InvalidInputError, match="found no polars.*pip install polars"):
            result.to_frame(library="polars")
        with pytest.raises(spice_rs.InvalidInputError, match="library: found 'dask'"):
            result.to_frame(library="dask")
        assert result.to_dict()


def test_half_a_surrogate_pair_is_kept():
    pytest.importorskip("pandas")
    texts = np.array(["a\ud83d", "b"], object)
    assert as_frame({"t": texts, "x": np.arange(2.0)})["t"].tolist() == texts.tolist()


def test_neither_library_nor_torch_is_imported_by_selecting():
    code = (
        "import numpy as np, sys, spice_rs; s = spice_rs.select(np.eye(4, dtype='f4'), 2); s.to_dict(); s.summary();"
        " print([m for m in ('pandas', 'polars', 'torch', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.strip() == "[]"


def test_results_of_analyses_are_tables_in_a_notebook_and_show_text_as_text():
    labels = ["<script>x" if i % 2 else "b" for i in range(60)]
    records = [{"text": f"<script>alert({i})</script>"} for i in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spice_rs.SpiceWarning)
        sel = spice_rs.select(ROWS, 8)
        results = {
            "Analysis": (spice_rs.analyze(sel, ROWS), "median"),
            "Certificate": (spice_rs.certify(sel, ROWS), "submodular bound"),
            "Curvature": (spice_rs.curvature(ROWS), "guarantee"),
            "Agreement": (spice_rs.agreement(ROWS, ROWS, 8), "by chance"),
            "Coverage": (spice_rs.coverage(sel, ROWS, ROWS + 9, groups=labels), "held-out rows"),
            "Explanation": (spice_rs.explain(sel, ROWS, 5, data=records)[0], "reason"),
        }
    for name, (result, word) in results.items():
        assert type(result).__name__ == name
        page = result._repr_html_()
        assert page.startswith("<table>"), name
        assert word in page
        assert "<script" not in page
    for name in ("Coverage", "Explanation"):
        assert "&lt;script&gt;" in results[name][0]._repr_html_()
