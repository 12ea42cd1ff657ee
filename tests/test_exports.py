"""A selection for people and for other programs: summary, frame, JSON Lines, Parquet, Dataset, LLaMA-Factory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import uuid
import warnings
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest

import pools
import spice_rs
from command import run
from spice_rs import InvalidInputError, SpiceWarning, _core
from spice_rs.nouns import counted
from spice_rs.report.exports import check_picks
from spice_rs.selection.picks import pick_lines, read_rows

N = 40
ROWS = pools.law("opposed", N, 6, 2)
RECORDS = [
    {"instruction": f"do {i}", "input": "with ü" * (i % 2), "output": f"done {i}", "score": i / 7}
    for i in range(N)
]
LABELS = [("maths", "chat")[i % 3 % 2] for i in range(N)]
COSTS = [1 + i % 5 for i in range(N)]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


@pytest.fixture
def sel():
    return spice_rs.select(ROWS, 8, conflict_penalty=0.5)


def rich():
    return spice_rs.select(
        ROWS,
        budget=20,
        costs=COSTS,
        groups=LABELS,
        group_shares={"maths": (4, None)},
        exclude=[3],
        max_similarity=0.8,
        conflict_penalty=0.5,
    )


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- for people ---------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_selected_and_how(sel):
    facts = dict(line.split("  ", 1) for line in sel.summary().split("\n\n")[0].splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["picks"] == "8 of 40 rows of array of shape (40, 6), 6 columns of float32"
    assert facts["method"] == "greedy, full Fisher information"
    assert facts["settings"] == "α = 1, λ = 0.5, rows as 'none'"
    assert facts["stopped"] == "budget"
    assert facts["U"].startswith(f"{sel.log_det:.6g} nats")
    assert facts["gain Δ"].startswith(f"{sel.gains[0]:.4g} → {sel.gains[-1]:.4g}, half of the first after ")
    assert f" after {counted(sel.half_life, 'pick')}" in facts["gain Δ"]
    assert facts["interaction"] == f"Σε is {sel.epsilon.sum() / sel.base.sum():.1%} of Σ base"
    assert counted(int((sel.conflict > 0).sum()), "pick has", "picks have") in facts["conflict"]
    assert facts["penalty"] == f"decided {counted(int(sel.overruled.sum()), 'pick')}"
    assert facts["rows read"].startswith(f"each in a first pass, {sel.rows_read.sum()} again")
    assert facts["signal"] == f"median α‖g‖² {sel.signal:.3g}"
    assert "conditions" not in facts


def test_the_summary_names_conditions_costs_and_groups():
    sel = rich()
    text = sel.summary()
    assert "conditions" in text
    assert "exclude 1 row, 2 groups, budget 20, max_similarity 0.8" in text
    assert f"{sel.costs.sum():g} of 20" in text
    assert f"{sel.compared['kept']}: costed U " in text
    assert f"{len(sel.near_duplicates)} skipped" in text
    assert any(line.split()[:1] == ["maths"] for line in text.splitlines())


def test_the_summary_of_other_runs():
    windows = spice_rs.select(ROWS, pool_size=10, select_per_window=2, fisher="diagonal").summary()
    assert "greedy, diagonal Fisher information, 2 rows of each window of 10" in windows
    assert "until Δ is 0.5 of the first" in spice_rs.select(ROWS, early_stop=0.5).summary()
    sampled = spice_rs.select(ROWS, 4, method="stochastic", epsilon=0.2).summary()
    assert "stochastic, full Fisher information, ε = 0.2" in sampled
    nothing = spice_rs.select(ROWS, 4, time_limit=1e-9)
    assert len(nothing) == 0
    assert "time_limit" in nothing.summary()
    assert "time_limit" in nothing._repr_html_()
    grown = spice_rs.extend(spice_rs.select(ROWS[:30], 4), ROWS)
    assert f"{counted(grown.kept, 'pick')} kept of the smaller pool" in grown.summary()


def test_a_notebook_shows_the_facts_the_first_picks_and_the_groups(sel):
    page = sel._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 3
    for rank in range(8):
        assert f"<tr><td>{rank}</td><td>{sel.indices[rank]}</td><td>{sel.gains[rank]:.4g}</td>" in page
    long = spice_rs.select(ROWS, 12)
    assert "<td>2 more</td>" in long._repr_html_()
    assert "<pre>group" in rich()._repr_html_()
    odd = spice_rs.select(ROWS, 4, groups=["<b>" if i % 2 else "a" for i in range(N)])
    assert "<b>" not in odd._repr_html_()


# --- columns ------------------------------------------------------------------------------------------------------


def test_a_frame_has_the_numbers_of_each_pick(sel):
    frame = sel.to_dict()
    expected = {
        "index": sel.indices,
        "gain": sel.gains,
        "base": sel.base,
        "epsilon": sel.epsilon,
        "conflict": sel.conflict,
        "score": sel.scores,
        "log_det": sel.log_dets,
        "overruled": sel.overruled,
        "rows_read": sel.rows_read,
    }
    for name, values in expected.items():
        assert np.array_equal(frame[name], values)
    assert frame["rank"].tolist() == list(range(8))
    assert frame.keys() == {*expected, "rank"}
    frame["gain"][:] = 0  # a copy
    assert sel.gains[0] > 0
    whole = rich()
    assert whole.to_dict()["group"].tolist() == whole.groups.tolist()
    assert whole.to_dict()["cost"].tolist() == whole.costs.tolist()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_of_a_library_has_these_columns(library):
    module = pytest.importorskip(library)
    columns = rich().to_dict()
    table = rich().to_frame(library)
    assert isinstance(table, module.DataFrame)
    assert list(table.columns) == list(columns)
    for name, values in columns.items():
        assert table[name].to_list() == values.tolist()


# --- files --------------------------------------------------------------------------------------------------------


def test_json_lines_are_those_of_the_command_line(sel, tmp_path, monkeypatch):
    for data in (None, RECORDS):
        sel.to_jsonl(tmp_path / "picks.jsonl", data)
        lines = (tmp_path / "picks.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == list(pick_lines(sel, data))
    with pytest.raises(InvalidInputError, match="none"):
        sel.to_jsonl(tmp_path / "none" / "picks.jsonl")
    monkeypatch.chdir(tmp_path)
    sel.to_jsonl("-")  # a file like any other: stdout is the command line's
    assert (tmp_path / "-").is_file()


def test_parquet_holds_the_records_and_the_numbers(sel, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "picks.parquet"
    sel.to_parquet(path)
    table = parquet.read_table(path)
    frame = sel.to_dict()
    assert table.column_names == list(frame)
    for name, values in frame.items():
        assert table[name].to_pylist() == values.tolist()
    assert json.loads(table.schema.metadata[b"spice_rs"]) == sel.settings
    sel.to_parquet(path, RECORDS)
    assert parquet.read_table(path).to_pylist() == list(pick_lines(sel, RECORDS))
    assert rich().to_parquet(path) is None
    assert parquet.read_table(path)["group"].to_pylist() == rich().groups.tolist()


def test_parquet_keeps_fields_that_the_first_record_lacks(sel, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rare = int(sel.indices[5])
    records = [{**record, **({"note": "rare"} if i == rare else {})} for i, record in enumerate(RECORDS)]
    sel.to_parquet(tmp_path / "picks.parquet", records)
    notes = parquet.read_table(tmp_path / "picks.parquet")["note"].to_pylist()
    assert notes == [None] * 5 + ["rare"] + [None] * 2


def test_parquet_refuses_what_it_cannot_hold(sel, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "picks.parquet"
    mixed = [{**record, "output": i if i % 2 else str(i)} for i, record in enumerate(RECORDS)]
    with pytest.raises(InvalidInputError, match="'output': found values of several kinds"):
        sel.to_parquet(path, mixed)
    with pytest.raises(InvalidInputError, match="a folder"):
        sel.to_parquet(tmp_path)
    assert not path.exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInputError, match="pip install pyarrow"):
        sel.to_parquet(path)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_comes_back_in_pick_order(sel):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(RECORDS)
    picked = sel.dataset(dataset)
    assert isinstance(picked, datasets.Dataset)
    assert picked.to_list() == [RECORDS[row] for row in sel.indices]
    with pytest.raises(InvalidInputError, match=f"more than {sel.indices.max()}"):
        sel.dataset(dataset.select(range(int(sel.indices.max()))))
    for wrong in (RECORDS, datasets.DatasetDict({"train": dataset}), dataset.to_iterable_dataset(), None):
        with pytest.raises(InvalidInputError, match=r"expected a datasets\.Dataset"):
            sel.dataset(wrong)
    with pytest.raises(InvalidInputError, match="one of its splits"):
        sel.dataset({"train": dataset})


# --- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    write_lines(tmp_path / "pool.jsonl", RECORDS)
    return tmp_path


def test_select_writes_parquet_and_for_llama_factory(place, sel, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = [
        "select",
        place / "rows.npy",
        "-k",
        8,
        "--conflict-penalty",
        0.5,
        "--data",
        place / "pool.jsonl",
    ]
    assert run(*arguments, "--out", place / "picks.parquet", "--llama-factory", place / "lf") == 0
    assert parquet.read_table(place / "picks.parquet").to_pylist() == list(pick_lines(sel, RECORDS))
    assert read_lines(place / "lf" / "spice.jsonl") == [RECORDS[row] for row in sel.indices.tolist()]
    assert "8 samples as 'spice' in dataset_info.json, for stage sft" in capsys.readouterr().err


def test_export_picks_writes_a_saved_selection(place, sel, capsys):
    saved, pool = place / "sel.safetensors", place / "pool.jsonl"
    sel.save(saved)
    assert run("export-picks", saved) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == list(pick_lines(sel))
    assert run("export-picks", saved, "--data", pool, "--out", place / "picks.jsonl") == 0
    assert capsys.readouterr().out == ""
    assert read_lines(place / "picks.jsonl") == list(pick_lines(sel, RECORDS))
    arguments = ["--data", pool, "--llama-factory", place / "lf", "--name", "mine"]
    assert run("export-picks", saved, *arguments, "--columns", "prompt=instruction,response=output") == 0
    assert capsys.readouterr().out == ""
    entry = json.loads((place / "lf" / "dataset_info.json").read_text())["mine"]
    assert entry["columns"] == {"prompt": "instruction", "response": "output"}
    assert read_lines(place / "lf" / "mine.jsonl") == [RECORDS[row] for row in sel.indices.tolist()]


def test_an_extended_selection_is_written_alike(place, sel):
    saved, pool = place / "sel.safetensors", place / "pool.jsonl"
    sel.save(saved)
    targets = ["--out", place / "picks.csv", "--llama-factory", place / "lf", "--save", place / "new"]
    assert run("extend", saved, place / "rows.npy", "--data", pool, *targets) == 0
    assert read_lines(place / "lf" / "spice.jsonl") == [RECORDS[row] for row in sel.indices.tolist()]
    assert len((place / "picks.csv").read_text(encoding="utf-8").splitlines()) == 9
    assert spice_rs.Selection.load(place / "new").indices.tolist() == sel.indices.tolist()


@pytest.fixture
def unselected(monkeypatch):
    """Selecting is an error: whatever is refused is refused before."""
    monkeypatch.setattr(_core, "select", None)


def test_targets_are_checked_before_the_selection(place, capsys, unselected):
    (place / "lf").write_text("")
    rows, pool = place / "rows.npy", place / "pool.jsonl"
    for arguments, says in (
        (["--llama-factory", place / "lf"], "without --data"),
        (["--llama-factory", place / "lf", "--data", pool], "found a file"),
        (["--out", place / "none" / "picks.parquet"], "none"),
        (["--out", place / "picks.txt"], "a name that ends in '.txt', expected .jsonl"),
        (["--out", place / "picks.parquet.gz"], "'.parquet.gz'"),
        (["--out", place / "picks.safetensors"], "--save"),
    ):
        assert run("select", rows, "-k", 3, *arguments) == 2
        assert says in capsys.readouterr().err


def with_value(value, row=17, **more):
    """The records, with a field in one of them that stands for a fault."""
    return [{**record, **more, "odd": value if i == row else None} for i, record in enumerate(RECORDS)]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "field 'odd': found the number nan"),
        (float("-inf"), "field 'odd': found the number -inf"),
        (np.float32("nan"), "the number nan"),
        (np.array([1.0, np.inf]), "field 'odd[1]': found the number inf"),
        ({"deep": [{"er": float("nan")}]}, "field 'odd.deep[0].er': found the number nan"),
        (Decimal("1.10"), "found Decimal"),
        (timedelta(1), "found timedelta"),
        (np.timedelta64(1, "ns"), "found timedelta64"),
        (np.datetime64("2026-01-01", "ns"), "found datetime64"),
        (b"\x89PNG", "found bytes"),
        ({1, 2}, "found set"),
        (1j, "found complex"),
        (uuid.UUID(int=7), "found UUID"),
        ({1: "a"}, "a field called 1, which is no text"),
    ],
)
@pytest.mark.parametrize("write", ["to_jsonl", "to_json", "to_llama_factory"])
def test_what_json_cannot_hold_is_refused_by_name(tmp_path, value, says, write):
    sel = spice_rs.select(ROWS, N)
    with pytest.raises(InvalidInputError) as caught:
        getattr(sel, write)(tmp_path / "out", with_value(value))
    assert says in str(caught.value)
    assert "17" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_dates_and_arrays_have_a_spelling_in_json(sel, tmp_path):
    row = int(sel.indices[0])
    value = [date(2026, 1, 2), datetime(2026, 1, 2, 3, tzinfo=timezone.utc), np.int8(3), np.arange(2), (1, 2)]
    sel.to_jsonl(tmp_path / "picks.jsonl", with_value(value, row))
    expected = ["2026-01-02", "2026-01-02T03:00:00+00:00", 3, [0, 1], [1, 2]]
    assert read_lines(tmp_path / "picks.jsonl")[0]["odd"] == expected


def test_missing_times_of_pandas_are_no_dates(tmp_path):
    pandas = pytest.importorskip("pandas")
    sel = spice_rs.select(ROWS, N)
    with pytest.raises(InvalidInputError, match="found NaTType"):
        sel.to_jsonl(tmp_path / "picks.jsonl", with_value(pandas.NaT))
    sel.to_jsonl(tmp_path / "picks.jsonl", with_value(pandas.Timestamp("2026-01-02")))
    assert {"2026-01-02T00:00:00", None} == {line["odd"] for line in read_lines(tmp_path / "picks.jsonl")}


def data_files(place, values):
    """A column in every kind of data that can have it: (what --data names, place of row 17)."""
    datasets = pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"instruction": ["a"] * N, "output": ["b"] * N, "odd": values})
    parquet.write_table(table, place / "odd.parquet", row_group_size=10)
    datasets.Dataset.from_parquet(str(place / "odd.parquet")).save_to_disk(str(place / "odd"))
    return {"odd.parquet": "odd.parquet, row 17", "odd": "odd[17]"}


@pytest.mark.parametrize(
    "value", [float("nan"), Decimal("1.5"), timedelta(1), b"x", {"a": [b"x"]}, [float("inf")]]
)
@pytest.mark.parametrize("out", ["picks.jsonl", "picks.json.gz", "-", "lf"])
def test_a_column_that_json_cannot_hold_is_found_before_the_selection(place, capsys, unselected, value, out):
    for name, where in data_files(place, [None] * 17 + [value] * (N - 17)).items():
        target = ["--llama-factory", place / "lf", "--out", place / "picks.parquet"]
        target = target if out == "lf" else ["--out", out if out == "-" else place / out]
        assert run("select", place / "rows.npy", "-k", 3, "--data", place / name, *target) == 2
        err = capsys.readouterr().err
        assert f"{where}: field 'odd" in err
        assert ".parquet" in err


def test_parquet_holds_what_json_cannot(place):
    parquet = pytest.importorskip("pyarrow.parquet")
    for value in (Decimal("1.5"), timedelta(1), b"x"):
        for name in data_files(place, [value] * N):
            target = ["--out", place / "picks.parquet", "--force"]
            assert run("select", place / "rows.npy", "-k", 3, "--data", place / name, *target) == 0
            assert parquet.read_table(place / "picks.parquet")["odd"].to_pylist() == [value] * 3


def test_nan_in_json_lines_is_found_before_the_selection(place, capsys, unselected):
    write_lines(place / "odd.jsonl", with_value(float("nan")))  # Python's own JSON writes NaN
    for out in ("picks.jsonl", "picks.json"):
        assert (
            run("select", place / "rows.npy", "-k", 3, "--data", place / "odd.jsonl", "--out", place / out)
            == 2
        )
        assert "odd.jsonl, line 18: field 'odd': found the number nan" in capsys.readouterr().err


def test_columns_without_a_doubt_are_not_read(place, monkeypatch):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(
        [{"text": f"t{i}", "turns": [{"n": i}], "score": 0.5} for i in range(N)]
    )
    read = []
    original = datasets.Dataset.select_columns
    monkeypatch.setattr(
        datasets.Dataset, "select_columns", lambda self, names: read.append(names) or original(self, names)
    )
    for kind, names in ((".jsonl", ["score"]), (".csv", ["turns", "score"])):
        read.clear()
        if kind == ".csv":
            with pytest.raises(InvalidInputError, match="field 'turns': found list"):
                check_picks(data, kind)
        else:
            check_picks(data, kind)
        assert read == [names]


def test_columns_of_several_kinds_are_found_before_parquet_is_written(place, capsys, unselected):
    pytest.importorskip("pyarrow")
    write_lines(place / "odd.jsonl", [{"text": "a", "odd": i if i < 17 else str(i)} for i in range(N)])
    arguments = ["--data", place / "odd.jsonl", "--out", place / "picks.parquet"]
    assert run("select", place / "rows.npy", "-k", 3, *arguments) == 2
    err = capsys.readouterr().err
    assert "line 18: field 'odd': found text and, in" in err
    assert "line 1, a number" in err


def test_objects_that_parquet_lacks_are_refused(sel, tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(InvalidInputError, match=r"Parquet does not have .* Write \.jsonl"):
        sel.to_parquet(tmp_path / "picks.parquet", [{**record, "meta": {}} for record in RECORDS])
    assert list(tmp_path.iterdir()) == []


# --- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, "pool.jsonl"])
@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.ndjson", "a", "a.JSONL.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet"],
)
def test_the_name_of_the_file_says_the_format(place, sel, name, data):
    out = place / name
    given = [] if data is None else ["--data", place / data]
    assert run("select", place / "rows.npy", "-k", 8, "--conflict-penalty", 0.5, *given, "--out", out) == 0
    records = None if data is None else RECORDS
    lines = list(pick_lines(sel, records))
    contents = out.read_bytes()
    if name.lower().endswith(".gz"):
        contents = gzip.decompress(contents)
    if ".json" in name and "jsonl" not in name.lower():
        assert json.loads(contents) == lines
    elif ".csv" in name:
        read = list(csv.DictReader(io.StringIO(contents.decode(), newline="")))
        frame = {f"spice.{key}": [line["spice"][key] for line in lines] for key in lines[0]["spice"]} if data else (
            sel.to_dict()
        )  # fmt: skip
        frame |= {key: [line[key] for line in lines] for key in lines[0] if key != "spice"} if data else {}
        assert read[0].keys() == frame.keys()
        for key, values in frame.items():
            assert [row[key] for row in read] == [str(value) for value in values]
    elif ".parquet" in name:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        assert table["spice" if data else "index"].to_pylist() == [
            line["spice"] if data else line["index"] for line in lines
        ]
    else:
        assert [json.loads(line) for line in contents.decode().splitlines()] == lines


def test_methods_write_what_their_name_and_the_files_say(sel, tmp_path):
    sel.to_json(tmp_path / "a.json", RECORDS)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == list(pick_lines(sel, RECORDS))
    sel.to_csv(tmp_path / "a.csv", [{"text": 'a "b",\r\nc', "n": None}] * N)
    read = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_bytes().decode(), newline="")))
    assert {(row["text"], row["n"]) for row in read} == {('a "b",\r\nc', "")}
    before = sorted(tmp_path.iterdir())
    for method, name, remedy in (
        ("to_jsonl", "b.csv", "to_csv"),
        ("to_jsonl", "b.json.gz", "to_json"),
        ("to_json", "b.jsonl", "to_jsonl"),
        ("to_csv", "b.parquet", "to_parquet"),
        ("to_parquet", "b.jsonl", "to_jsonl"),
    ):
        with pytest.raises(InvalidInputError, match=f"call {remedy}"):
            getattr(sel, method)(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_csv_refuses_what_no_cell_holds(place, sel, capsys, unselected):
    chats = [{"messages": [{"role": "user", "content": "a"}]} for _ in range(N)]
    write_lines(place / "chats.jsonl", chats)
    arguments = ["--data", place / "chats.jsonl", "--out", place / "picks.csv"]
    assert run("select", place / "rows.npy", "-k", 3, *arguments) == 2
    assert "line 1: field 'messages': found list, expected text or a number" in capsys.readouterr().err
    for value in (b"x", timedelta(1), {"a": 1}):
        with pytest.raises(InvalidInputError, match="field 'odd'"):
            sel.to_csv(place / "picks.csv", with_value(value, int(sel.indices[2])))
    with pytest.raises(InvalidInputError, match=r"a field 'spice\.rank', expected none"):
        sel.to_csv(place / "picks.csv", [{"spice.rank": 1}] * N)
    assert not (place / "picks.csv").exists()


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet"])
def test_picks_are_read_back_from_any_format(place, sel, kind, data, capsys):
    picks = place / f"picks.{kind}"
    given = ["--data", place / "pool.jsonl"] * data
    rows = place / "rows.npy"
    assert run("select", rows, "-k", 8, "--conflict-penalty", 0.5, *given, "--out", picks) == 0
    assert read_rows(picks) == sel.indices.tolist()
    capsys.readouterr()
    assert run("explain", picks, rows, sel.indices[0], "--conflict-penalty", 0.5) == 0
    assert "picked" in capsys.readouterr().out
    # The gains in the list are compared with those of the settings given.
    assert run("explain", picks, rows, sel.indices[0], "--conflict-penalty", 0.5, "--alpha", 3) == 2
    assert "gain of rank 0: found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.csv"])
def test_files_that_are_no_picks_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"instruction\nwhat it is\n")
    with pytest.raises(InvalidInputError, match=f"{name}.*: found"):
        read_rows(tmp_path / name)


def test_tables_with_long_cells_are_read_back(tmp_path, monkeypatch):
    import csv

    path = tmp_path / "picks.csv"
    path.write_text(f"output,spice.index\n{'b' * 300_000},7\n")
    before = csv.field_size_limit(1000)
    try:
        assert read_rows(path) == [7]
        monkeypatch.setattr("spice_rs.data.reading.LONGEST_CELL", 1000)
        csv.field_size_limit(1000)
        with pytest.raises(InvalidInputError, match=r"picks\.csv: found no readable CSV \(field larger"):
            read_rows(path)
    finally:
        csv.field_size_limit(before)


# --- a second round -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_picks_are_selected_from_again(place, sel, kind):
    first, second = place / f"first.{kind}", place / f"second.{kind}"
    rows = ["--conflict-penalty", 0.5, "-k"]
    assert run("select", place / "rows.npy", *rows, 8, "--data", place / "pool.jsonl", "--out", first) == 0
    np.save(place / "again.npy", ROWS[sel.indices])
    assert run("select", place / "again.npy", *rows, 3, "--data", first, "--out", second) == 0
    again = spice_rs.select(ROWS[sel.indices], 3, conflict_penalty=0.5)
    if kind == "parquet":
        lines = pytest.importorskip("pyarrow.parquet").read_table(second).to_pylist()
    else:
        lines = json.loads(second.read_text()) if kind == "json" else read_lines(second)
    earlier = list(pick_lines(sel, RECORDS))
    for line, pick in zip(lines, pick_lines(again), strict=True):
        before = earlier[pick["index"]]
        assert line == {**before, "spice": {**pick, "earlier": before["spice"]}}
    assert read_rows(second) == again.indices.tolist()
    third = list(pick_lines(spice_rs.select(ROWS[:3], 3), lines))
    assert {tuple(line["spice"]["earlier"]["earlier"]) for line in third} == {tuple(earlier[0]["spice"])}


def test_picks_among_other_records_are_selected_from(sel):
    """As in one Parquet file of both: records that were no picks have null there."""
    mixed = [{**record, "spice": None} for record in RECORDS]
    mixed[int(sel.indices[0])]["spice"] = {"index": 5, "rank": 2, "gain": 0.5}
    lines = list(pick_lines(sel, mixed))
    assert lines[0]["spice"]["earlier"] == {"index": 5, "rank": 2, "gain": 0.5}
    assert all("earlier" not in line["spice"] for line in lines[1:])


@pytest.mark.parametrize("value", [1, "salt", {"kind": "salt"}, [], {"index": "5"}])
def test_a_key_of_somebody_elses_is_found_before_the_selection(place, capsys, unselected, value):
    write_lines(
        place / "odd.jsonl", [{**r, **({"spice": value} if i == 17 else {})} for i, r in enumerate(RECORDS)]
    )
    for out in ("picks.jsonl", "picks.csv", "picks.parquet"):
        arguments = ["--data", place / "odd.jsonl", "--out", place / out]
        assert run("select", place / "rows.npy", "-k", 3, *arguments) == 2
        assert "odd.jsonl, line 18: found a key 'spice' in record 17 that no" in capsys.readouterr().err


# --- nothing is overwritten, nothing is lost ----------------------------------------------------------------------


@pytest.mark.slow
def test_files_that_are_there_stay_without_force(place, sel, capsys, monkeypatch):
    rows, pool, saved = place / "rows.npy", place / "pool.jsonl", place / "sel.safetensors"
    sel.save(saved)
    old = place / "old"
    old.write_text("old")
    with spice_rs.GradientStore.create(place / "store", dim=6, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(N))
    select = ["select", rows, "-k", 3, "--data", pool]
    commands = [
        ([*select, "--out", old], "--out"),
        ([*select, "--save", old], "--save"),
        (["extend", saved, rows, "--out", old], "--out"),
        (["extend", saved, rows, "--save", old], "--save"),
        (["export-picks", saved, "--out", old], "--out"),
        (["report", saved, rows, "--out", old], "--out"),
        (["curvature", rows, "--out", old], "--out"),
        (["export", place / "store", old], "FILE"),
        (["export", place / "store", place / "new.npy", "--index", old], "--index"),
    ]
    for command, option in commands:
        assert run(*command) == 2
        assert f"{option}: found {old}, a file that is there already" in capsys.readouterr().err
        assert old.read_text() == "old"
    pytest.importorskip("matplotlib")
    for command, _ in commands:
        assert run(*command, "--force") == 0
        assert old.read_bytes() != b"old"
        old.write_text("old")


def test_a_data_set_of_llama_factory_stays_without_force(place, sel, capsys):
    saved = place / "sel.safetensors"
    sel.save(saved)
    command = ["export-picks", saved, "--data", place / "pool.jsonl", "--llama-factory", place / "lf"]
    assert run(*command) == 0
    before = (place / "lf" / "dataset_info.json").read_bytes()
    assert run(*command) == 2
    assert "a data set 'spice' in" in capsys.readouterr().err
    assert run(*command, "--columns", "prompt=instruction,response=output", "--force") == 0
    assert (place / "lf" / "dataset_info.json").read_bytes() != before
    (place / "lf" / "other.jsonl").write_text("theirs")
    assert run(*command, "--name", "other") == 2
    assert "other.jsonl, a file that is there already" in capsys.readouterr().err
    assert (place / "lf" / "other.jsonl").read_text() == "theirs"


def test_what_is_read_is_never_overwritten(place, sel, capsys, unselected):
    rows, pool = place / "rows.npy", place / "pool.jsonl"
    (place / "link.jsonl").symlink_to(pool)
    before = rows.read_bytes(), pool.read_bytes()
    select = ["select", rows, "-k", 3, "--data", pool, "--force"]
    for more, says in (
        (["--out", pool], "which --data names too"),
        (["--out", place / "link.jsonl"], "which --data names too"),
        (["--save", rows], "which SOURCE names too"),
        (["--out", place / "new", "--save", place / "new"], "which --save names too"),
        (["--out", place / "new", "--checkpoint", place / "new"], "which --checkpoint names too"),
    ):
        assert run(*select, *more) == 2
        assert says in capsys.readouterr().err
    listed, shares, kept = place / "few.jsonl", place / "shares.json", place / "few.safetensors"
    listed.write_text("3\n4\n")
    shares.write_text('{"7": [0.1, null]}')
    sel.save(kept)
    read = [each.read_bytes() for each in (listed, shares, kept)]
    (place / "few-link.jsonl").symlink_to(listed)
    (place / "kept.jsonl").symlink_to(kept)
    for option in ("--initial", "--include", "--exclude"):
        for out in (["--out", listed], ["--save", place / "few-link.jsonl"], ["--checkpoint", listed]):
            assert run(*select, option, listed, *out) == 2
            assert f"{out[0]}: found {out[1]}, which {option} names too" in capsys.readouterr().err
    for command, says in (
        (
            [*select, "--groups", "score", "--group-shares", shares, "--out", shares],
            "which --group-shares names",
        ),
        (["extend", kept, rows, "--save", kept], "which SELECTION names"),
        (["extend", kept, rows, "--save", rows], "which SOURCE names"),
        (["extend", kept, rows, "--old-rows", listed, "--out", listed], "which --old-rows names"),
        (["export-picks", kept, "--out", place / "kept.jsonl"], "which SELECTION names"),
        (["report", kept, rows, "--exclude", listed, "--out", listed], "which --exclude names"),
        (["report", kept, rows, "--initial", listed, "--out", listed], "which --initial names"),
        (["curvature", rows, "--out", rows], "which SOURCE names"),
        (["curvature", rows, "--data", pool, "--weights", "score", "--out", pool], "which --data names"),
    ):
        assert run(*command, *([] if "--force" in command else ["--force"])) == 2
        assert says in capsys.readouterr().err
    assert read == [each.read_bytes() for each in (listed, shares, kept)]
    with spice_rs.GradientStore.create(place / "store", dim=6, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(N))
    part = next(each for each in sorted((place / "store").rglob("*")) if each.is_file())
    held = part.read_bytes()
    assert run("select", place / "store", "-k", 3, "--save", part, "--force") == 2
    assert "a file of the folder that SOURCE names" in capsys.readouterr().err
    assert run("export", place / "store", place / "store.npy") == 0
    assert part.read_bytes() == held
    (place / "lf").mkdir()
    write_lines(place / "lf" / "spice.jsonl", RECORDS)
    select[select.index(pool)] = place / "lf" / "spice.jsonl"
    assert run(*select, "--llama-factory", place / "lf") == 2
    assert "which --data names too" in capsys.readouterr().err
    assert before == (rows.read_bytes(), pool.read_bytes())


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="a device of Unix")
def test_devices_are_written_to_and_stay(place):
    assert run("select", place / "rows.npy", "-k", 3, "--out", "/dev/null") == 0
    assert not os.path.isfile("/dev/null")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_what_a_device_does_not_take_is_kept_in_the_working_folder(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert run("select", place / "rows.npy", "-k", 3, "--out", "/dev/full") == 2
    assert "kept in picks.selection.safetensors" in capsys.readouterr().err
    assert len(spice_rs.Selection.load(place / "picks.selection.safetensors")) == 3
    assert not os.path.lexists("/dev/full.selection.safetensors")


def test_a_link_stays_and_its_target_is_replaced(place, capsys):
    """With its permissions; a link to nothing makes what it names."""
    (place / "far").mkdir()
    target, link = place / "far" / "picks.jsonl", place / "picks.jsonl"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("far/picks.jsonl")
    command = ["select", place / "rows.npy", "-k", 3, "--out", link]
    assert run(*command) == 2  # it is there
    assert run(*command, "--force") == 0
    assert link.is_symlink()
    assert len(read_lines(target)) == 3
    assert target.stat().st_mode & 0o777 == 0o640
    target.unlink()
    assert run(*command, "--force") == 0
    assert link.is_symlink()
    assert len(read_lines(target)) == 3
    link.unlink()
    link.symlink_to("none/picks.jsonl")
    capsys.readouterr()
    assert run(*command, "--force") == 2
    assert "found no folder" in capsys.readouterr().err
    assert sorted(each.name for each in (place / "far").iterdir()) == ["picks.jsonl"]


def test_a_joined_record_that_may_be_picked_is_missed_before_the_selection(place, sel, capsys, monkeypatch):
    records = [{**record, "row": row} for row, record in enumerate(RECORDS) if row != 37]
    write_lines(place / "some.jsonl", records)
    sel.save(place / "sel.safetensors")
    joined = ["--data", place / "some.jsonl", "--index-column", "row", "--out", place / "p.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(_core, "select", None)
        for command in (
            ["select", place / "rows.npy", "-k", 3],
            ["extend", place / "sel.safetensors", place / "rows.npy"],
        ):
            assert run(*command, *joined) == 2
            assert "found no record with row 37" in capsys.readouterr().err
    (place / "never.jsonl").write_text("37\n")
    assert run("select", place / "rows.npy", "-k", 3, *joined, "--exclude", place / "never.jsonl") == 0
    assert len(read_lines(place / "p.jsonl")) == 3


def test_a_selection_that_cannot_be_written_is_kept(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    write_lines(place / "short.jsonl", RECORDS[:1])
    command = ["select", place / "rows.npy", "-k", 3, "--data", place / "short.jsonl"]
    kept = []
    for target in (["--out", "picks.jsonl"], ["--out", "picks.jsonl"], [], ["--save", "mine"]):
        assert run(*command, *target) == 2
        err = capsys.readouterr().err
        assert "found no record" in err
        kept.append(re.search(r"kept in (\S+);", err)[1])
        expected = spice_rs.select(ROWS, 3).indices.tolist()
        assert spice_rs.Selection.load(kept[-1]).indices.tolist() == expected
    assert kept[1:] == ["picks.jsonl.selection1.safetensors", "picks.selection.safetensors", "mine"]
    assert run("export-picks", kept[0], "--data", place / "pool.jsonl", "--out", "picks.jsonl") == 0
    assert len(read_lines(place / "picks.jsonl")) == 3


def test_the_whole_path_looks_at_the_data_first(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from spice_rs import pipeline

    monkeypatch.setattr(pipeline, "extract", None)
    for value, says in ((Decimal(1), "data[17]: field 'odd': found Decimal"), (b"", "found bytes")):
        with pytest.raises(InvalidInputError) as caught:
            pipeline.choose("model", with_value(value), tmp_path / "out")
        assert says in str(caught.value)


def test_images_go_with_their_records(place):
    """Whatever else a record has is written as it came: no mark of an image is left without it."""
    records = [
        {"instruction": f"<image>what {i}?", "output": "a", "images": [f"i/{i}.png"]} for i in range(N)
    ]
    write_lines(place / "shown.jsonl", records)
    assert (
        run(
            "select", place / "rows.npy", "-k", 3, "--data", place / "shown.jsonl", "--out", place / "p.jsonl"
        )
        == 0
    )
    for line in read_lines(place / "p.jsonl"):
        assert {key: value for key, value in line.items() if key != "spice"} == records[
            line["spice"]["index"]
        ]


def test_images_of_a_dataset_are_refused_before_the_selection(place, capsys, unselected):
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    shown = {"text": ["a"] * N, "image": [image.new("RGB", (2, 2))] * N}
    datasets.Dataset.from_dict(shown, features=features).save_to_disk(str(place / "shown"))
    assert run("select", place / "rows.npy", "-k", 3, "--data", place / "shown") == 2
    assert "shown[0]: field 'image.bytes': found bytes" in capsys.readouterr().err
