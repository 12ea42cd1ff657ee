"""Data that grow: the rows that are there stay to the bit, those of new records are added, and `extend` goes on."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs.errors import SpiceWarning, StoreMismatchError
from spice_rs.store.grown import FILE, read_grown
from tiny import make_records

RECORDS = make_records(30)
OPTIONS = {"dim": 16, "progress": False}


def write(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def rows_of(store):
    """Dataset row → cells."""
    return dict(zip(store.index.tolist(), store.read(np.arange(len(store))), strict=True))


def test_the_recipe_of_a_pool_that_grows(proxy, tmp_path, capsys):
    """As README and docs/settings.md have it."""
    pool, store, out = tmp_path / "pool.jsonl", tmp_path / "store", ("--out", tmp_path / "picks.jsonl")
    extract = ("extract", "--model", proxy, "--data", pool, "--out", store, "--dim", 16)
    write(pool, RECORDS[:20])
    assert run(*extract) == 0
    sel = tmp_path / "sel.safetensors"
    assert run("select", store, "-k", 6, "--data", pool, *out, "--save", sel) == 0
    before = rows_of(spice_rs.GradientStore(store))
    write(pool, RECORDS)
    capsys.readouterr()
    assert run(*extract) == 0
    said = capsys.readouterr()
    assert "has 30 records, and there were 20; the rows that are there stay" in said.err
    assert "30 rows" in said.out
    more = tmp_path / "more.safetensors"
    assert run("extend", sel, store, "--data", pool, *out, "--force", "--save", more) == 0
    after = rows_of(spice_rs.GradientStore(store))
    assert all(np.array_equal(after[row], before[row]) for row in before)
    assert len(after) == 30
    picks = spice_rs.Selection.load(more, store)
    assert picks.indices.tolist() == spice_rs.select(store, 6).indices.tolist()
    assert [json.loads(line)["id"] for line in out[1].read_text().splitlines()] == [
        RECORDS[row]["id"] for row in picks.indices
    ]


def test_a_grown_store_belongs_to_the_grown_data_and_grows_again(proxy, tmp_path):
    spice_rs.extract(proxy, RECORDS[:10], tmp_path / "s", **OPTIONS)
    for count in (20, 30):
        with pytest.warns(SpiceWarning, match=f"{count} records, and there were {count - 10}"):
            store = spice_rs.extract(proxy, RECORDS[:count], tmp_path / "s", **OPTIONS)
        assert sorted(store.index) == list(range(count))
        assert store.provenance["dataset"]["rows"] == count
        with warnings.catch_warnings():
            warnings.simplefilter("error", SpiceWarning)
            assert len(spice_rs.extract(proxy, RECORDS[:count], tmp_path / "s", **OPTIONS)) == count
        spice_rs.plan(proxy, RECORDS[:count], tmp_path / "s", **OPTIONS)
    picks = spice_rs.select(store, 4)
    picks.to_jsonl(tmp_path / "p.jsonl", RECORDS)
    with pytest.raises(spice_rs.InvalidInputError, match="found 20 records, expected 30"):
        picks.to_jsonl(tmp_path / "q.jsonl", RECORDS[:20])
    assert len(spice_rs.select(store, 4, groups=["a", "b"] * 15)) == 4
    # The data that it began with are no longer its own: what is learned from the others is there.
    with pytest.raises(StoreMismatchError, match="expected those that its rows were extracted from"):
        spice_rs.extract(proxy, RECORDS[:10], tmp_path / "s", **OPTIONS)


def test_rows_that_were_left_out_or_not_reached_are_extracted_from_the_grown_data(proxy, tmp_path):
    bad = {"instruction": "a", "response": ""}
    first = [*RECORDS[:4], bad, *RECORDS[5:10]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        spice_rs.extract(proxy, first, tmp_path / "s", skip_bad=True, limit=8, **OPTIONS)
        store = spice_rs.extract(proxy, [*first, *RECORDS[10:]], tmp_path / "s", skip_bad=True, **OPTIONS)
        assert sorted(set(range(30)) - set(store.index.tolist())) == [4]
        whole = [*RECORDS, RECORDS[0]]
        assert len(spice_rs.extract(proxy, whole, tmp_path / "s", **OPTIONS)) == 31


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda records: [RECORDS[29], *records], 0),  # in front: all numbers move
        (lambda records: [*records[:7], RECORDS[29], *records[7:], RECORDS[28]], 7),
        (lambda records: [*records[:7], {**records[7], "response": "h h"}, *records[8:], RECORDS[28]], 7),
    ],
)
def test_what_is_no_growth_is_refused_and_leaves_the_store(proxy, tmp_path, change, first):
    spice_rs.extract(proxy, RECORDS[:10], tmp_path / "s", **OPTIONS)
    for refused in (spice_rs.extract, spice_rs.plan):
        with pytest.raises(StoreMismatchError, match=f"the first that differs: record {first}.*or those and"):
            refused(proxy, change(RECORDS[:10]), tmp_path / "s", **OPTIONS)
    assert read_grown(tmp_path / "s") is None
    assert len(spice_rs.GradientStore(tmp_path / "s")) == 10


def test_rows_extracted_anew_are_refused_with_the_way_that_works(proxy, tmp_path):
    spice_rs.extract(proxy, RECORDS[:10], tmp_path / "s", **OPTIONS)
    before = spice_rs.select(tmp_path / "s", 3)
    other = spice_rs.extract(proxy, RECORDS, tmp_path / "t", seed=1, **OPTIONS)
    with pytest.raises(StoreMismatchError, match="extract the grown data into the store that has the old"):
        spice_rs.extend(before, other)


def test_copies_of_a_grown_store_are_grown_and_a_broken_note_claims_nothing(proxy, tmp_path):
    spice_rs.extract(proxy, RECORDS[:10], tmp_path / "s", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        store = spice_rs.extract(proxy, RECORDS, tmp_path / "s", **OPTIONS)
    same = spice_rs.GradientStore.merge([tmp_path / "s"], tmp_path / "merged")
    for copy in (same, store.convert(tmp_path / "int8", "int8")):
        assert copy.provenance["dataset"]["rows"] == 30
    store.compact()
    assert store.provenance["dataset"]["rows"] == 30
    for text in (
        "{",
        "[]",
        "{}",
        '{"rows": -1}',
        '{"rows": true, "fingerprint": "x"}',
        '{"rows": 3, "own": 1}',
    ):
        (tmp_path / "s" / FILE).write_text(text)
        assert spice_rs.GradientStore(tmp_path / "s").provenance["dataset"]["rows"] == 10
    (tmp_path / "s" / FILE).unlink()
    (tmp_path / "s" / FILE).symlink_to(tmp_path / "merged" / FILE)
    assert spice_rs.GradientStore(tmp_path / "s").provenance["dataset"]["rows"] == 10


def test_plan_takes_a_store_whose_columns_were_named(proxy, tmp_path):
    records = [{"frage": each["instruction"], "antwort": each["response"]} for each in RECORDS[:8]]
    columns = {"prompt": "frage", "response": "antwort"}
    spice_rs.extract(proxy, records, tmp_path / "s", columns=columns, **OPTIONS)
    assert spice_rs.plan(proxy, records, tmp_path / "s", columns=columns, **OPTIONS).rows == 0
