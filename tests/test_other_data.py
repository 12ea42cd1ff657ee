"""Data that are not all that they seem: padding, folders of files, splits, words that nobody knows, another pool."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

import spice_rs
from command import run
from spice_rs.data.records import load_records
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from tiny import WORDS, make_records


def write_lines(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_padding_is_known_by_the_tokenizer_beside_the_model(proxy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(proxy)
    tokenizer.pad_token = "a"
    model = tmp_path / "model"
    for file in proxy.iterdir():
        model.mkdir(exist_ok=True)
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(model)
    pad = WORDS["a"]
    right = {"input_ids": [4, 5, 6, pad, pad, pad], "labels": [-100, 5, 6, pad, pad, pad]}
    left = {"input_ids": [pad, pad, pad, 4, 5, 6], "labels": [-100, -100, -100, -100, 5, 6]}
    for record in (right, left):
        with pytest.raises(InvalidInputError, match=r"data\[0\]: .*pad"):
            spice_rs.extract(str(model), [record] * 4, tmp_path / "s", dim=16, progress=False)
        masked = {**record, "attention_mask": [int(token != pad) for token in record["input_ids"]]}
        store = spice_rs.extract(
            str(model), [masked] * 4, tmp_path / f"s{record is right}", dim=16, progress=False
        )
        assert len(store) == 4


def test_a_folder_of_several_kinds_is_refused_and_splits_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    records = make_records(6)
    write_lines(tmp_path / "mixed" / "a.jsonl", records)
    datasets.Dataset.from_list(records).to_parquet(str(tmp_path / "mixed" / "b.parquet"))
    with pytest.raises(
        InvalidInputError, match=r"^\S*mixed: found files of several kinds \(a.jsonl, b.parquet\)"
    ):
        load_records(tmp_path / "mixed")
    # What lies beside data and is none of it: a licence, a description, a cache.
    hub = tmp_path / "hub"
    for folder in ("data", ".cache"):
        (hub / folder).mkdir(parents=True)
    datasets.Dataset.from_list(records).to_parquet(str(hub / "data" / "train-0.parquet"))
    (hub / "LICENSE.txt").write_text("MIT")
    (hub / "dataset_infos.json").write_text("{}")
    (hub / ".cache" / "old.csv").write_text("a")
    assert len(load_records(hub)) == 6
    write_lines(tmp_path / "split" / "train.jsonl", records)
    write_lines(tmp_path / "split" / "test.jsonl", records[:2])
    several = r"splits train \(6 records\), test \(2 records\), expected the name of one. Add split='train', or give '.*::"
    with pytest.raises(InvalidInputError, match=several):
        load_records(tmp_path / "split")
    assert len(load_records(f"{tmp_path / 'split'}::test")) == 2


def test_a_text_that_is_no_path_is_named():
    with pytest.raises(InvalidInputError, match="data is str .* no path"):
        load_records(json.dumps(make_records(200)))


def test_words_that_nobody_knows_are_told(proxy, tmp_path):
    foreign = [
        {"instruction": "a", "response": "der blaue Fluss"},
        {"instruction": "b", "response": "the red"},
    ]
    with pytest.warns(
        SpiceWarning, match=r"knows no word of what is learned in 2 records \(the first: data\[1\]\)"
    ):
        spice_rs.extract(proxy, [make_records(1)[0], *foreign], tmp_path / "s", dim=16, progress=False)


def test_another_pool_does_not_join_a_store_and_its_first_record_is_named(proxy, tmp_path):
    records = make_records(12)
    options = {"dim": 16, "progress": False}
    spice_rs.extract(proxy, records, tmp_path / "s", **options)
    changed = [*records[:5], {**records[5], "response": "h h h"}, *records[6:]]
    for other, count in ((changed, 12), (records[:-2], 10), ([*changed, *records], 24)):
        with pytest.raises(
            StoreMismatchError, match=f"^out: .*found others in data \\({count} of them"
        ) as caught:
            spice_rs.extract(proxy, other, tmp_path / "s", **options)
        assert ("record 5" in str(caught.value)) == (count != 10)
        assert ("record 10" in str(caught.value)) == (count == 10)
        assert "Give these with data=…, or another folder with out=…." in str(caught.value)


def test_given_values_are_as_many_as_the_data_had(proxy, tmp_path):
    store = spice_rs.extract(proxy, make_records(12), tmp_path / "s", dim=16, progress=False)
    for count in (11, 13, 24):
        with pytest.raises(InvalidInputError, match=f"groups: found {count} values, expected 12"):
            spice_rs.select(store, 4, groups=["a", "b"] * (count // 2) + ["a"] * (count % 2))
    assert len(spice_rs.select(store, 4, groups=["a", "b"] * 6, conflict_penalty=0)) == 4


def test_the_doctor_shows_what_is_not_read_and_explain_wants_to_know_what_data_are_for(
    proxy, tmp_path, capsys
):
    pool = write_lines(tmp_path / "pool.jsonl", make_records(12))
    found = spice_rs.doctor(proxy, pool, samples=2)
    assert next(check for check in found.checks if check.name == "columns that are not read").found == "id"
    spice_rs.extract(proxy, pool, tmp_path / "s", dim=16, progress=False)
    assert (
        run("select", tmp_path / "s", "-k", 3, "--out", tmp_path / "p.jsonl", "--save", tmp_path / "sel") == 0
    )
    capsys.readouterr()
    assert run("explain", tmp_path / "sel", tmp_path / "s", 5, "--data", tmp_path / "none.jsonl") == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_a_frame_is_no_dataset(tmp_path):
    pandas = pytest.importorskip("pandas")
    sel = spice_rs.select(np.eye(6, 3), 2, conflict_penalty=0)
    with pytest.raises(InvalidInputError, match="dataset: found DataFrame, expected a datasets.Dataset"):
        sel.dataset(pandas.DataFrame({"a": range(6)}))


def test_picks_of_another_store_are_no_rows_of_this_one(proxy, tmp_path, capsys):
    records = make_records(30)
    options = {"dim": 16, "progress": False}
    spice_rs.extract(proxy, records, tmp_path / "s", **options)
    pool = write_lines(tmp_path / "pool.jsonl", records)
    picks = tmp_path / "r1.jsonl"
    assert run("select", tmp_path / "s", "-k", 20, "--data", pool, "--out", picks) == 0
    spice_rs.extract(proxy, picks, tmp_path / "s2", **options)
    capsys.readouterr()
    for name in ("exclude", "initial", "include"):
        place = tmp_path / f"{name}.jsonl"
        few = [line for line in picks.read_text().splitlines() if json.loads(line)["spice"]["index"] < 20]
        place.write_text("\n".join(few))
        arguments = (
            "select",
            tmp_path / "s2",
            "-k",
            3,
            f"--{name}",
            place,
            "--out",
            tmp_path / f"{name}.out.jsonl",
        )
        assert run(*arguments) == 2
        assert f"{name}.jsonl, line 1: found another record than the one that row" in capsys.readouterr().err
    # Rows of the same data are what they were.
    own = ("select", tmp_path / "s", "-k", 3, "--exclude", picks, "--out", tmp_path / "own.jsonl")
    assert run(*own) == 0
    assert run("explain", picks, tmp_path / "s2", 3) == 2
    assert "found another record" in capsys.readouterr().err
