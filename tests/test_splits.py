"""Splits: named in Python and on the command line, remembered by the store, and never guessed."""

from __future__ import annotations

import json

import pytest

import spice_rs
from command import run
from spice_rs.data import reading
from spice_rs.data.dataset import load_records
from spice_rs.data.splits import with_split
from spice_rs.errors import InvalidInputError
from tiny import make_records

datasets = pytest.importorskip("datasets")

RECORDS = make_records(20)
SETTINGS = {"dim": 16, "progress": False, "min_coverage": 0}


@pytest.fixture(params=["saved", "files", "memory"])
def several(request, tmp_path):
    """The same two splits: a DatasetDict on disk, a folder of files, and in memory."""
    parts = {"train": RECORDS[:14], "test": RECORDS[14:]}
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    if request.param == "memory":
        return splits
    if request.param == "saved":
        splits.save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        for name, rows in parts.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "data" / f"{name}.jsonl").write_text(text)
    return str(tmp_path / "data")


def test_several_splits_need_a_name_and_are_listed(several, proxy, tmp_path):
    listed = r"found the splits train \(14 records\), test \(6 records\), expected the name of one. Add split='train'"
    for read in (load_records, lambda data: spice_rs.extract(proxy, data, tmp_path / "s", **SETTINGS)):
        with pytest.raises(InvalidInputError, match=listed):
            read(several)
    with pytest.raises(
        InvalidInputError, match=r"found no split 'tset' but train \(14 records\), test \(6 records\)"
    ):
        load_records(with_split(several, "tset"))
    assert len(load_records(with_split(several, "test"))) == 6
    assert len(load_records(with_split(several, "train"))) == 14


def test_a_split_is_remembered(several, proxy, tmp_path):
    store = spice_rs.extract(proxy, several, tmp_path / "s", split="test", **SETTINGS)
    assert store.provenance["dataset"]["split"] == "test"
    assert len(store) == 6
    again = spice_rs.extract(proxy, with_split(several, "test"), tmp_path / "s", **SETTINGS)
    assert len(again) == 6
    sel = spice_rs.select(store, 2, data=several, groups="id", progress=False)
    sel.save(tmp_path / "sel")
    for each in (sel, spice_rs.Selection.load(tmp_path / "sel")):
        each.to_jsonl(tmp_path / "p.jsonl", several)
        lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [RECORDS[14 + row]["id"] for row in sel.indices]
    if isinstance(several, str):
        with pytest.raises(InvalidInputError, match="record 0 is not the one"):
            sel.to_jsonl(tmp_path / "q.jsonl", f"{several}::train")


@pytest.mark.slow
def test_every_step_takes_the_same_split(several, proxy, tmp_path, capsys):
    if not isinstance(several, str):
        pytest.skip("the command line has paths alone")
    store, saved = tmp_path / "s", tmp_path / "sel.safetensors"
    model = ("--model", proxy, "--min-coverage", 0, "--data", several)
    assert run("extract", *model, "--out", store) == 2
    assert "Add --split train, or give" in capsys.readouterr().err
    for command, more in {
        "plan": (*model, "--split", "test"),
        "doctor": (*model, "--split", "test", "--samples", 3),
        "extract": (*model, "--out", store, "--split", "test"),
        "run": (
            *model,
            "--out",
            tmp_path / "run",
            "--split",
            "test",
            *"--pool-size 3 --select-per-window 1".split(),
        ),
    }.items():
        assert run(command, *more) == 0, capsys.readouterr().err
    for split in ((), ("--split", "test")):
        data = ("--data", several, *split)
        out = tmp_path / f"o{len(split)}"
        assert run("select", store, "-k", 2, *data, "--out", f"{out}.jsonl", "--save", saved, "--force") == 0
        assert run("export-picks", saved, *data, "--out", f"{out}.csv", "--llama-factory", out) == 0
        assert run("report", saved, store, *data, "--out", f"{out}.html", "--no-sweeps") == 0
        assert run("compare", store, "-k", 2, "--methods", "random", *data, "--groups", "id") == 0
    assert (tmp_path / "o0.jsonl").read_text() == (tmp_path / "o2.jsonl").read_text()
    capsys.readouterr()
    assert run("select", store, "-k", 2, "--data", several, "--split", "train", "--out", tmp_path / "x") == 2
    assert "record 0 is not the one" in capsys.readouterr().err


def test_what_has_no_splits_says_so(tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
    alone = datasets.Dataset.from_list(RECORDS)
    alone.save_to_disk(str(tmp_path / "alone"))
    datasets.DatasetDict({"all": alone}).save_to_disk(str(tmp_path / "one"))
    assert len(load_records(tmp_path / "one")) == len(load_records(tmp_path / "alone")) == 20
    with pytest.raises(InvalidInputError, match="found split 'a' of a file, which has none"):
        load_records(with_split(file, "a"))
    with pytest.raises(InvalidInputError, match="found split 'a' of a data set that is one of its own"):
        load_records(with_split(tmp_path / "alone", "a"))
    for data, says in ((RECORDS, "beside a list"), (alone, "beside a Dataset"), (None, "without data")):
        with pytest.raises(InvalidInputError, match=f"split: found 'a' {says}"):
            with_split(data, "a")
    with pytest.raises(InvalidInputError, match="expected one split"):
        with_split(f"{tmp_path}/one::all", "a")
    assert run("curvature", tmp_path / "x", "--split", "a") == 2


def test_columns_are_no_splits_and_a_remedy_can_be_followed():
    for columns in ({"prompt": ["a", "b"], "response": ["c", "d"]}, {"text": ["hello there"]}):
        with pytest.raises(InvalidInputError, match="data: found dict .*expected a list of records"):
            load_records(columns)
    two = {"train": make_records(4), "test": make_records(2)}
    with pytest.raises(InvalidInputError, match=r"give data\['train'\] as data"):
        load_records(two)


def test_a_data_set_of_one_split_is_that_split():
    rows = datasets.Dataset.from_list(make_records(5))
    only = reading.loaded(datasets.DatasetDict({"train": rows}))
    assert reading.size_of(only) == 5
    assert reading.identity(only) == reading.identity(rows)
    assert reading.identity(only) is not None
