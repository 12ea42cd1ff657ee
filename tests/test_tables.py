"""Records in tables: CSV files, data frames of pandas and polars, tables of Arrow."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest

import spice_rs
from spice_rs.data.records import dataset_fingerprint, load_records
from spice_rs.errors import InvalidInputError
from tiny import make_records

ROWS = [
    {"instruction": 'a "b",\nc', "input": "", "output": "d é", "source": "x"},
    {"instruction": "e", "input": "f", "output": "g\th", "source": "y"},
]


def write(path, rows, delimiter=","):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.tsv", "\t"), ("p.csv.gz", ",")])
def test_a_table_of_text_is_read(tmp_path, name, delimiter):
    expected = dataset_fingerprint(load_records(ROWS))
    path = write(tmp_path / name, ROWS, delimiter)
    assert dataset_fingerprint(load_records(path)) == expected
    if not name.endswith(".gz"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets write it
        assert dataset_fingerprint(load_records(path)) == expected


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    path = tmp_path / "p.csv"
    for text, says in (
        ("instruction,output\na,b\nc\n", "row 1: found 1 cell, expected 2"),
        ("instruction,output,notes\na,b,c\n", "row 0: found text in 'notes', which is not read"),
        ("output,output\na,b\n", "found the column 'output' twice"),
        ('instruction,output\na,"b\n', "cannot be read to its end"),
        ("instruction,output\n", "found no records"),
        ("", "found no records"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=says):
            load_records(path)
    path.write_bytes(b"instruction,output\na,\xff\n")
    with pytest.raises(InvalidInputError, match="cannot be read to its end"):
        load_records(path)
    path.write_text("instruction,output\na,b\nc\n")
    assert len(load_records(path, skip_bad=True)) == 1
    path.write_text(f"instruction,output\na,{'b' * 300_000}\n")
    assert len(load_records(path)[0].messages[1].content) == 300_000


def frames(rows):
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    yield pandas.DataFrame(rows)
    yield pandas.DataFrame(rows, index=[7, 3])
    yield pyarrow.Table.from_pylist(rows)
    try:
        import polars
    except ImportError:
        return
    yield polars.DataFrame(rows)


def test_data_frames_are_read_row_by_row():
    expected = dataset_fingerprint(load_records(ROWS))
    for frame in frames(ROWS):
        assert dataset_fingerprint(load_records(frame)) == expected
    half = [{**ROWS[0], "system": None, "n": 1.5}, {**ROWS[1], "system": "s", "n": None}]
    for frame in frames(half):
        assert dataset_fingerprint(load_records(frame)) == dataset_fingerprint(load_records(half))


def test_tables_belong_to_rows_as_files_do(proxy, tmp_path):
    pandas = pytest.importorskip("pandas")
    records = make_records(30)
    store = spice_rs.extract(proxy, records, tmp_path / "s", dim=16, progress=False)
    frame = pandas.DataFrame([{**record, "group": row % 2} for row, record in enumerate(records)])
    chosen = spice_rs.select(store, 6, data=frame, groups="group", conflict_penalty=0)
    chosen.to_csv(tmp_path / "picks.csv", frame)
    # A second round from the picks' own table, joined by the rows that it names.
    again = spice_rs.extract(proxy, tmp_path / "picks.csv", tmp_path / "again", dim=16, progress=False)
    np.testing.assert_array_equal(
        again.read(again.positions(np.arange(6))), store.read(store.positions(chosen.indices))
    )
    chosen.to_csv(tmp_path / "same.csv", tmp_path / "picks.csv", index_column="spice.index")
    with open(tmp_path / "same.csv", newline="", encoding="utf-8") as file:
        second = list(csv.DictReader(file))
    assert (
        [row["spice.rank"] for row in second]
        == [row["spice.earlier.rank"] for row in second]
        == list("012345")
    )
    chosen.to_jsonl(tmp_path / "same.jsonl", tmp_path / "same.csv", index_column="spice.index")
    third = [json.loads(line) for line in open(tmp_path / "same.jsonl", encoding="utf-8")]
    assert all(row["spice"]["earlier"]["earlier.rank"] == str(row["spice"]["rank"]) for row in third)
    assert not any(name.startswith("spice.") for row in third for name in row)
    with pytest.raises(InvalidInputError, match="is not the one that row"):
        chosen.to_csv(tmp_path / "other.csv", frame[::-1])
