"""The steps together: data to picks in one call, the demo's pool and table, and a killed extraction."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

import spice_rs
from spice_rs import cli, pipeline
from spice_rs.data.records import load_records
from spice_rs.demo import write_pool
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.extraction.loss import SummedLoss
from spice_rs.report.shares import composition_table
from tiny import make_records

RECORDS = 30
EXTRACTION = {"dim": 64, "projection": "two_sided", "device": "cpu", "progress": False}
QUIET = {"conflict_penalty": 0}  # no warning that the penalty did nothing


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- choose ------------------------------------------------------------------------------------------------------


def check_picks(path, records, picked):
    """The file holds the picked records, unchanged but for the numbers of their picks, in rank order."""
    lines = read_lines(path)
    assert [line["spice"]["rank"] for line in lines] == list(range(len(picked)))
    assert [line["spice"]["index"] for line in lines] == picked.indices.tolist()
    assert [line["spice"]["gain"] for line in lines] == picked.gains.tolist()
    for line in lines:
        assert {key: value for key, value in line.items() if key != "spice"} == records[
            line["spice"]["index"]
        ]


def test_choose_leads_from_data_to_picks(proxy, tmp_path):
    records = make_records(RECORDS)
    data = write_lines(tmp_path / "pool.jsonl", records)
    store, picked = pipeline.choose(
        str(proxy),
        data,
        tmp_path / "new" / "out",
        share=0.2,
        extraction=EXTRACTION,
        selection={"conflict_penalty": 0.5, "normalize": "unit"},
    )
    assert sorted(store.index.tolist()) == list(range(RECORDS))
    assert store.dim == 64
    assert len(picked) == len(set(picked.indices.tolist())) == 6
    assert (picked.settings["conflict_penalty"], picked.settings["normalize"]) == (0.5, "unit")
    check_picks(tmp_path / "new" / "out" / "picks.jsonl", records, picked)
    on_disk = spice_rs.select(tmp_path / "new" / "out" / "store", 6, conflict_penalty=0.5, normalize="unit")
    assert picked.indices.tolist() == on_disk.indices.tolist()


def test_choose_takes_one_of_several_splits(proxy, tmp_path):
    records = make_records(12)
    data = {"train": records[:8], "test": records[8:]}
    options = {**EXTRACTION, "split": "train"}
    store, picked = pipeline.choose(str(proxy), data, tmp_path / "out", share=0.3, extraction=options)
    assert len(store) == 8
    assert store.provenance["dataset"]["split"] == "train"
    lines = (tmp_path / "out/picks.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [records[row]["id"] for row in picked.indices]


def test_choosing_again_computes_nothing_and_gives_the_same_picks(proxy, tmp_path, monkeypatch):
    data = write_lines(tmp_path / "pool.jsonl", make_records(RECORDS))

    def choose(share):
        return pipeline.choose(
            str(proxy), data, tmp_path / "out", share=share, extraction=EXTRACTION, selection=QUIET
        )

    def state():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").iterdir()}

    _, first = choose(0.2)
    lines, files = (tmp_path / "out" / "picks.jsonl").read_bytes(), state()

    def never(self, *batch):
        raise AssertionError("a gradient was computed a second time")

    monkeypatch.setattr(SummedLoss, "__call__", never)
    _, again = choose(0.2)
    assert again.indices.tolist() == first.indices.tolist()
    assert (tmp_path / "out" / "picks.jsonl").read_bytes() == lines
    _, more = choose(0.5)  # another share needs no other rows
    assert more.indices.tolist()[:6] == first.indices.tolist()
    assert len(read_lines(tmp_path / "out" / "picks.jsonl")) == len(more) == 15
    assert state() == files


def test_records_that_are_left_out_do_not_shift_the_picks(proxy, tmp_path):
    records = make_records(12)
    lines = [json.dumps(record) for record in records]
    lines[4] = '{"instruction": "a", "respo'
    (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.warns(SpiceWarning, match="1 of 12 records were left out"):
        store, picked = pipeline.choose(
            str(proxy),
            str(tmp_path / "pool.jsonl"),
            tmp_path / "out",
            share=1,
            extraction={**EXTRACTION, "skip_bad": True},
            selection=QUIET,
        )
    assert sorted(store.index.tolist()) == sorted(picked.indices.tolist()) == [*range(4), *range(5, 12)]
    check_picks(tmp_path / "out" / "picks.jsonl", records, picked)


def test_choose_takes_a_list_and_picks_at_least_one_row(proxy, tmp_path):
    records = make_records(5)
    _, picked = pipeline.choose(str(proxy), records, tmp_path / "out", share=1e-9, extraction=EXTRACTION)
    assert len(picked) == 1
    check_picks(tmp_path / "out" / "picks.jsonl", records, picked)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, 240, math.nan, math.inf])
def test_a_share_out_of_range_is_refused_before_anything_is_done(share, proxy, tmp_path, monkeypatch):
    data = write_lines(tmp_path / "pool.jsonl", make_records(5))
    before = sorted(tmp_path.rglob("*"))
    calls = []
    extract = pipeline.extract
    monkeypatch.setattr(pipeline, "extract", lambda *a, **k: calls.append(1) or extract(*a, **k))
    with pytest.raises(InvalidInputError, match="share"):
        pipeline.choose(str(proxy), data, tmp_path / "out", share=share, extraction=EXTRACTION)
    assert calls == []
    assert sorted(tmp_path.rglob("*")) == before


def test_other_settings_leave_store_and_picks_as_they_were(proxy, tmp_path):
    data = write_lines(tmp_path / "pool.jsonl", make_records(6))
    pipeline.choose(str(proxy), data, tmp_path / "out", share=0.5, extraction=EXTRACTION, selection=QUIET)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(StoreMismatchError, match="seed"):
        pipeline.choose(str(proxy), data, tmp_path / "out", share=0.5, extraction={**EXTRACTION, "seed": 1})
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


# --- the table of the picks --------------------------------------------------------------------------------------


def cells(table: str) -> dict[str, list[str]]:
    """Rows of a table by their first cell; two spaces or more part the cells."""
    return {row[0]: row[1:] for row in (re.split(r"\s{2,}", line) for line in table.splitlines())}


def test_the_table_shows_each_group_in_the_pool_and_among_the_picks():
    groups = ["b", "a", "a", "longer name", "b", "a", "b", "b"]
    lengths = [10, 3, 5, 7, 20, 100, 30, 40]
    rows = cells(composition_table(groups, lengths, [6, 1, 0], unit="words"))
    assert rows["group"] == ["pool", "share", "median words", "picks", "share", "median words"]
    assert rows["a"] == ["3", "37.5%", "5", "1", "33.3%", "3"]
    assert rows["b"] == ["4", "50.0%", "25", "2", "66.7%", "20"]
    assert rows["longer name"] == ["1", "12.5%", "7", "0", "0.0%", "-"]
    assert rows["all"] == ["8", "100.0%", "15", "3", "100.0%", "10"]
    assert [name for name in rows if name.strip("-")] == ["group", "a", "b", "longer name", "all"]


def test_the_columns_of_the_table_are_aligned():
    table = composition_table(["x", "a long name", "x"], np.array([1, 20000, 3]), np.array([1]))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["-" * 11, "-" * 4, "-" * 6, "-" * 13, "-" * 5, "-" * 6, "-" * 13]
    assert lines[2] == "a long name     1   33.3%          20000      1  100.0%          20000"
    assert lines[3] == "x               2   66.7%              2      0    0.0%              -"


def test_a_table_without_picks_has_no_medians_of_picks():
    rows = cells(composition_table(["a", "b"], [1, 2], np.array([], dtype=np.int64)))
    assert rows["a"] == ["1", "50.0%", "1", "0", "0.0%", "-"]
    assert rows["all"] == ["2", "100.0%", "2", "0", "0.0%", "-"]


# --- the pool of the demo ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """(file, records) of the demo's pool."""
    pytest.importorskip("reasoning_gym")
    path = tmp_path_factory.mktemp("demo") / "pool.jsonl"
    return path, write_pool(path, 150)


def of_source(pool, name):
    found = [record for record in pool[1] if record["source"] == name]
    assert len(found) > 15
    return found


def last_number(text: str) -> int:
    return int(re.findall(r"-?\d+", text)[-1])


def test_the_pool_is_the_same_each_time_and_in_its_file(pool, tmp_path):
    path, records = pool
    assert read_lines(path) == records
    random.seed(99)  # the state of anybody else's generators is nothing to it
    np.random.seed(99)
    assert write_pool(tmp_path / "again.jsonl", 150) == records
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_the_pool_has_many_sources_in_equal_shares_and_mixed(pool):
    _, records = pool
    sizes = Counter(record["source"] for record in records)
    assert len(sizes) >= 5
    assert sum(sizes.values()) == 150
    assert max(sizes.values()) - min(sizes.values()) <= 1
    changes = sum(a["source"] != b["source"] for a, b in itertools.pairwise(records))
    assert changes > 75


def test_every_record_of_the_pool_can_be_learned(pool):
    for record in pool[1]:
        assert set(record) == {"source", "instruction", "response"}
        assert record["instruction"].strip()
        assert record["response"].strip()
    assert len(load_records(str(pool[0]))) == 150


def test_the_greatest_common_divisors_are_right(pool):
    for record in of_source(pool, "gcd"):
        numbers = [int(number) for number in re.findall(r"\d+", record["instruction"])]
        assert len(numbers) >= 2
        *steps, answer = record["response"].splitlines()
        assert last_number(answer) == math.gcd(*numbers), record
        assert steps
        for step in steps:
            a, b, rest = map(int, re.fullmatch(r"(\d+) mod (\d+) = (\d+)", step).groups())
            assert a % b == rest, record


def test_the_sums_are_right_and_so_is_each_step(pool):
    for record in of_source(pool, "chain_sum"):
        expression = record["instruction"].split(":")[1].replace(" ", "").rstrip("=")
        terms = re.findall(r"[+-]?\d+", expression)
        assert "".join(terms) == expression
        *steps, answer = record["response"].splitlines()
        assert last_number(answer) == sum(map(int, terms)), record
        assert len(steps) == len(terms) - 1 >= 2
        total = int(terms[0])
        for step in steps:
            left, sign, right, result = re.fullmatch(r"(-?\d+) ([+-]) (\d+) = (-?\d+)", step).groups()
            assert int(left) == total
            total = int(left) + int(sign + right)
            assert int(result) == total, record


def test_the_letters_are_counted_right_in_each_word_and_in_all(pool):
    for record in of_source(pool, "letter_counting"):
        letter, text = re.search(r'letter "(.)" appear in the text: "(.*)"', record["instruction"]).groups()
        tally, answer = record["response"].splitlines()
        assert last_number(answer) == text.lower().count(letter.lower()), record
        counts = [int(number) for number in re.findall(r": (\d+)", tally)]
        assert sum(counts) == last_number(answer), record
        assert 0 not in counts


def test_the_words_are_sorted(pool):
    for record in of_source(pool, "word_sorting"):
        order, words = re.search(
            r"sort these words in (\w+) order .*list: (.*)", record["instruction"]
        ).groups()
        expected = sorted(words.split(", "), reverse=order == "descending")
        assert record["response"] == ", ".join(expected)


# --- a killed extraction -----------------------------------------------------------------------------------------


@pytest.fixture
def roomy(tmp_path):
    """A folder whose content goes when the test ends: the stores in it are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_extraction_goes_on_where_it_stopped(proxy, roomy):
    count, dim = 300, 1 << 18  # 512 KiB a row: a shard of 64 MiB is full after 128 rows
    data = write_lines(roomy / "pool.jsonl", make_records(count))

    def arguments(out, tokens):
        settings = {
            "--model": proxy,
            "--data": data,
            "--out": out,
            "--dim": dim,
            "--tokens-per-batch": tokens,
        }
        options = [str(word) for pair in settings.items() for word in pair]
        return ["extract", *options, "--device", "cpu", "--no-progress"]

    with open(roomy / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "spice_rs", *arguments(roomy / "store", 16)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            deadline = time.monotonic() + 120
            while not list((roomy / "store").glob("shard-*")):
                assert process.poll() is None, (roomy / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"

    kept = spice_rs.GradientStore(roomy / "store")
    assert 0 < len(kept) < count
    kept.verify()
    shards = {path.name: path.stat().st_mtime_ns for path in (roomy / "store").glob("shard-*")}

    assert cli.main(arguments(roomy / "store", 512)) == 0
    assert cli.main(arguments(roomy / "whole", 512)) == 0
    resumed, whole = (spice_rs.GradientStore(roomy / name) for name in ("store", "whole"))
    assert sorted(resumed.index.tolist()) == sorted(whole.index.tolist()) == list(range(count))
    resumed.verify()
    after = {path.name: path.stat().st_mtime_ns for path in (roomy / "store").glob("shard-*")}
    assert shards.items() < after.items()  # what was committed is still there as it was
    places = [np.argsort(store.index) for store in (resumed, whole)]
    np.testing.assert_array_equal(resumed.num_tokens[places[0]], whole.num_tokens[places[1]])
    for start in range(0, count, 50):
        found, expected = (
            store.read(place[start : start + 50])
            for store, place in zip((resumed, whole), places, strict=True)
        )
        errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert errors.max() < 1e-3
