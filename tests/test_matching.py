"""Data that are joined with rows are those that the rows were extracted from, on every path, or they are refused."""

from __future__ import annotations

import functools
import json
import pickle
import random
import re
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs.data import matching
from spice_rs.data.matching import Belonging, raw_records, spread
from spice_rs.data.records import load_records, parse_record, record_hash
from spice_rs.data.row_places import RowPlaces
from spice_rs.data.samples import sample_hash
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.store.store import GradientStore
from stores import shards, split
from tiny import make_records

RECORDS = [
    {**record, "topic": "ab"[row % 2], "w": 1.0 + row % 3} for row, record in enumerate(make_records(20))
]
K = 6


def lines_of(records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path: Path, records) -> Path:
    path.write_text(lines_of(records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pool(proxy, tmp_path_factory):
    """A folder with the data, their store, and two selections from it: plain, and under groups and weights."""
    folder = tmp_path_factory.mktemp("pool")
    write(folder / "pool.jsonl", RECORDS)
    store = spice_rs.extract(proxy, folder / "pool.jsonl", folder / "store", dim=64, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        spice_rs.select(store, K).save(folder / "sel.safetensors")
        picks = spice_rs.select(store, K, data=RECORDS, groups="topic", weights="w")
        picks.save(folder / "grouped.safetensors")
    return folder


@pytest.fixture
def selection(pool):
    return spice_rs.Selection.load(pool / "sel.safetensors")


def swapped(records, a=7, b=12):
    records = list(records)
    records[a], records[b] = records[b], records[a]
    return records


OTHERS = {
    "swapped": (swapped(RECORDS), 7),
    "shuffled": (random.Random(1).sample(RECORDS, 20), None),
    "filtered": ([record for row, record in enumerate(RECORDS) if row != 3], 3),
    "filtered, as long": ([record for row, record in enumerate(RECORDS) if row != 3] + [RECORDS[3]], 3),
    "changed": ([*RECORDS[:5], {**RECORDS[5], "response": "a b"}, *RECORDS[6:]], 5),
    "unreadable": ([*RECORDS[:5], {"topic": "a", "w": 1.0}, *RECORDS[6:]], 5),
    "longer": ([*RECORDS, RECORDS[0]], 20),
    "shorter": (RECORDS[:-1], 19),
}
"""Data that are not those of the store, and the first record that differs."""


# --- what is known ------------------------------------------------------------------------------------------------


def test_a_store_has_the_hash_of_each_record(pool):
    store = spice_rs.GradientStore(pool / "store")
    expected = {record.index: record_hash(record) for record in load_records(RECORDS)}
    assert dict(zip(store.index.tolist(), store.record.tolist(), strict=True)) == expected
    assert len(set(expected.values())) == 20
    assert store.info()["columns"] == ["index", "scale", "norm", "loss", "num_tokens", "record"]
    assert store.provenance["dataset"].keys() == {"fingerprint", "rows"}  # as stores had it before


def test_a_hash_is_of_what_is_learned_alone():
    def of(record):
        return record_hash(parse_record(0, "here", record))

    plain = {"instruction": "a", "response": "b"}
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert of(plain) == of({**plain, "score": 3}) == of({"prompt": "a", "completion": "b"}) == of(chat)
    assert record_hash(parse_record(9, "there", plain)) == of(plain)
    others = [{**plain, "input": "c"}, {**plain, "response": "b "}, {"text": "a"}, {"text": "b"}]
    others += [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2], "labels": [-100, 2]}]
    assert len({of(each) for each in [plain, *others]}) == 1 + len(others)
    assert all(-(1 << 63) <= of(each) < 1 << 63 for each in others)


def test_tools_and_calls_count_alike_in_columnar_data(tmp_path):
    datasets = pytest.importorskip("datasets")

    def call(name, **arguments):
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    records = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [call("f", x=1, y="b")]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}}}}],
        },
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "c", "tool_calls": [call("g", z="d")]},
            ],
            "tools": [{"type": "function", "function": {"name": "g", "parameters": {"z": {"type": "str"}}}}],
        },
    ]
    plain = [record_hash(each) for each in load_records(records)]
    filled = datasets.Dataset.from_list(records)
    assert None in filled[0]["messages"][1]["tool_calls"][0]["function"]["arguments"].values()
    assert [record_hash(each) for each in load_records(filled)] == plain
    changed = json.loads(json.dumps(records).replace('"x": 1', '"x": 2'))
    assert [record_hash(each) == old for each, old in zip(load_records(changed), plain, strict=True)] == [
        False,
        True,
    ]


def test_a_selection_keeps_what_tells_its_records(pool, selection, tmp_path):
    store = spice_rs.GradientStore(pool / "store")
    expected = store.record[store.positions(selection.indices)]
    again = pickle.loads(pickle.dumps(selection))  # noqa: S301 - our own
    selection.save(tmp_path / "again.safetensors")
    for each in (selection, again, spice_rs.Selection.load(tmp_path / "again.safetensors")):
        assert each.record_hashes.tolist() == expected.tolist()
        assert each.settings["source"]["data"]["total"] == 20
    assert selection.head(2).record_hashes.tolist() == expected[:2].tolist()
    spice_rs.extend(selection.head(3), store, k=K)
    extended = spice_rs.extend(selection, store, k=K + 1)
    assert extended.record_hashes.tolist() == store.record[store.positions(extended.indices)].tolist()
    extended.to_jsonl(tmp_path / "picks.jsonl", RECORDS)
    finished = spice_rs.select(store, K, checkpoint=tmp_path / "run")
    assert finished.record_hashes.tolist() == expected.tolist()
    assert spice_rs.Selection.load(tmp_path / "run").record_hashes.tolist() == expected.tolist()


def test_a_selection_from_an_array_claims_nothing(tmp_path):
    rows = np.random.default_rng(0).standard_normal((20, 8), dtype=np.float32)
    selection = spice_rs.select(rows, 3)
    selection.save(tmp_path / "sel.safetensors")
    loaded = spice_rs.Selection.load(tmp_path / "sel.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (selection, loaded):
            assert each.record_hashes is None
            assert each.belonging is None
            each.to_jsonl(tmp_path / "picks.jsonl", random.Random(1).sample(RECORDS, 20))


# --- every path ---------------------------------------------------------------------------------------------------


def paths(pool, out):
    """What takes data: a name → what is called with it."""
    store = pool / "store"
    picks = spice_rs.Selection.load(pool / "sel.safetensors")
    grouped = spice_rs.Selection.load(pool / "grouped.safetensors")
    again = {"groups": "topic", "weights": "w"}

    def dataset(data, **options):
        datasets = pytest.importorskip("datasets")
        data = datasets.load_dataset("json", data_files=str(data), cache_dir=out / "cache")["train"]
        return picks.dataset(data, **options)

    return {
        "select groups": lambda data, **o: spice_rs.select(store, 3, data=data, groups="topic", **o),
        "select costs": lambda data, **o: spice_rs.select(store, budget=5, data=data, costs="w", **o),
        "select prior": lambda data, **o: spice_rs.select(store, 3, data=data, prior="w", **o),
        "to_jsonl": lambda data, **o: picks.to_jsonl(out / "p.jsonl", data, **o),
        "to_parquet": lambda data, **o: picks.to_parquet(out / "p.parquet", data, **o),
        "to_llama_factory": lambda data, **o: picks.to_llama_factory(out / "lf", data, **o),
        "dataset": dataset,
        "explain": lambda data, **o: spice_rs.explain(grouped, store, [1], data=data, **again, **o),
        "Selection.explain": lambda data, **o: grouped.explain(1, store, data=data, **again, **o),
        "analyze": lambda data, **o: spice_rs.analyze(grouped, store, data=data, **again, **o),
        "report": lambda data, **o: spice_rs.write_report(picks, store, out / "r.html", data=data, **o),
        "compare": lambda data, **o: spice_rs.compare(
            store, 3, ["top_k"], data=data, groups="topic", certificate=False, **o
        ),
        "certify": lambda data, **o: spice_rs.certify(grouped, store, data=data, weights="w", **o),
        "curvature": lambda data, **o: spice_rs.curvature(store, data=data, weights="w", **o),
    }


PATHS = (
    "select groups",
    "select costs",
    "select prior",
    "to_jsonl",
    "to_parquet",
    "to_llama_factory",
    "dataset",
    "explain",
    "Selection.explain",
    "analyze",
    "report",
    "compare",
    "certify",
    "curvature",
)


@pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "report" else name for name in PATHS]
)
def test_every_path_takes_the_data_and_refuses_others(name, pool, tmp_path):
    assert set(paths(pool, tmp_path)) == set(PATHS)
    call = paths(pool, tmp_path)[name]
    call(pool / "pool.jsonl")
    indices = set(spice_rs.Selection.load(pool / "sel.safetensors").indices.tolist())
    joins_picks = name in ("to_jsonl", "to_parquet", "to_llama_factory", "dataset")
    for kind, (records, first) in OTHERS.items():
        data = write(tmp_path / "other.jsonl", records)
        unseen = joins_picks and len(records) == 20 and first is not None and not {first, 12} & indices
        if unseen and kind != "filtered, as long":  # only what is joined is known to a selection
            continue
        with pytest.raises(InvalidInputError) as caught:
            call(data)
        message = str(caught.value)
        assert "index_column" in message, (kind, message)
        if len(records) != 20:
            assert {str(len(records)), "20"} <= set(re.findall(r"\d+", message)), (kind, message)
        if not joins_picks and first is not None and first < len(records) and kind != "longer":
            at = f"line {first + 1}: record {first} is not the one that row {first}"
            assert at in message, (kind, message)
            assert str(pool / "store") in message
    # In another order, with their rows beside them, they are the same to all.
    numbered = [{**record, "row": row} for row, record in enumerate(RECORDS)]
    random.Random(2).shuffle(numbered)
    call(write(tmp_path / "numbered.jsonl", numbered), index_column="row")
    with pytest.raises(InvalidInputError, match="index_column='row'"):
        call(
            write(tmp_path / "wrong.jsonl", [{**each, "row": 19 - each["row"]} for each in numbered]),
            index_column="row",
        )


def test_what_a_message_says(pool, tmp_path):
    data = write(tmp_path / "pool.jsonl", OTHERS["filtered"][0])
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(pool / "store", 3, data=data, groups="topic")
    assert str(caught.value) == (
        f"{data}, line 4: record 3 is not the one that row 3 of {pool / 'store'} was extracted from; there are 19 records,"
        f" and there were 20. {matching.REMEDY}"
    )
    with pytest.raises(InvalidInputError) as caught:
        spice_rs.select(pool / "store", 3, data=write(data, OTHERS["longer"][0]), groups="topic")
    assert str(caught.value).startswith(
        f"{data}: found 21 records, expected 20, as in the data that {pool / 'store'} was extracted from; the first that"
        f" it did not have: {data}, line 21."
    )
    with pytest.raises(InvalidInputError, match="found 19 records, expected 20.*; it ends before record 19"):
        spice_rs.select(pool / "store", 3, data=write(data, RECORDS[:-1]), groups="topic")
    with pytest.raises(InvalidInputError, match=r"line 6: record 5 is not.*\(found 'topic'"):
        spice_rs.select(pool / "store", 3, data=write(data, OTHERS["unreadable"][0]), groups="topic")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")
def test_the_command_line_refuses_on_one_line(pool, tmp_path, capsys, monkeypatch):
    store, plain, grouped = pool / "store", pool / "sel.safetensors", pool / "grouped.safetensors"
    data, out = write(tmp_path / "other.jsonl", random.Random(1).sample(RECORDS, 20)), tmp_path / "out"
    numbered = [{**record, "spice": {"index": row}} for row, record in enumerate(RECORDS)]
    random.Random(2).shuffle(numbered)
    joined = write(tmp_path / "joined.jsonl", numbered)
    weighted = ("--groups", "topic", "--weights", "w")
    commands = {
        "select": ("select", store, "-k", 3, "--out", out),
        "select groups": ("select", store, "-k", 3, "--out", "-", "--groups", "topic"),
        "select parquet": ("select", store, "-k", 3, "--out", f"{out}.parquet"),
        "select llama": ("select", store, "-k", 3, "--llama-factory", tmp_path / "lf"),
        "extend": ("extend", plain, store, "--out", out),
        "export": ("export-picks", plain, "--out", out),
        "export llama": ("export-picks", plain, "--llama-factory", tmp_path / "lf2"),
        "report": ("report", plain, store, "--out", tmp_path / "r.html"),
        "explain": ("explain", grouped, store, 1, *weighted),
        "compare": ("compare", store, "-k", 3, "--methods", "top_k", "--groups", "topic"),
        "certify": ("certify", grouped, store, "--weights", "w"),
        "curvature": ("curvature", store, "--weights", "w"),
    }
    plain_rows = [{**RECORDS[each["spice"]["index"]], "row": each["spice"]["index"]} for each in numbered]
    rows = write(tmp_path / "rows.jsonl", plain_rows)
    made = []
    select = spice_rs.select
    watched = functools.wraps(select)(lambda *a, **o: made.append(a) or select(*a, **o))
    monkeypatch.setattr(spice_rs, "select", watched)
    for name, command in commands.items():
        capsys.readouterr()
        assert run(*command, "--data", data) == 2, name
        [message] = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert re.search(r"is not the one that row .*--index-column", message), (name, message)
        assert not out.exists()
        assert not made, name  # it is said before a long selection, not after
        force = ["--force"] if "--out" in command or "--llama-factory" in command else []
        assert run(*command, *force, "--data", rows, "--index-column", "row") == 0, name
        assert run(*command, *force, "--data", joined, "--index-column", "spice.index") == 0, name
        out.unlink(missing_ok=True)
        made.clear()


def test_a_run_joins_its_picks_with_what_it_read(proxy, tmp_path, monkeypatch):
    from spice_rs.schedule import schedule

    data = write(tmp_path / "pool.jsonl", RECORDS)
    save_trained = schedule.save_trained

    def and_change(trained, folder):  # all is picked, and nothing joined
        picks = (tmp_path / "run" / "state" / "picks.jsonl").read_text("utf-8").splitlines()
        write(data, swapped(RECORDS, *sorted(json.loads(pick)["index"] for pick in picks)[:2]))
        save_trained(trained, folder)

    monkeypatch.setattr(schedule, "save_trained", and_change)
    options = {"pool_size": 10, "select_per_window": 3, "lora_rank": 2, "dim": 32, "progress": False}
    with pytest.raises(InvalidInputError, match="is not the one that row"):
        spice_rs.run_schedule(proxy, data, tmp_path / "run", **options)
    assert not (tmp_path / "run" / "picks.jsonl").exists()
    write(data, RECORDS)
    monkeypatch.setattr(schedule, "save_trained", save_trained)
    done = spice_rs.run_schedule(proxy, data, tmp_path / "run", **options)
    assert len((tmp_path / "run" / "picks.jsonl").read_text("utf-8").splitlines()) == len(done)


def test_nobody_reads_records_around_the_check():
    package = Path(spice_rs.__file__).parent
    allowed = {"data/matching.py", "data/records.py", "data/reading.py", "selection/picks.py"}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name not in allowed and not name.startswith("data/"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\b(open_data|parse_record)\b", text), name


# --- the same records in another file -----------------------------------------------------------------------------


def test_the_same_records_may_come_from_anywhere(pool, selection, tmp_path):
    datasets = pytest.importorskip("datasets")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    scored = [{"score": row / 7, **record, "text_length": 3} for row, record in enumerate(RECORDS)]
    parquet.write_table(pyarrow.Table.from_pylist(scored), tmp_path / "pool.parquet")
    (tmp_path / "pool.json").write_text(json.dumps(scored))
    datasets.Dataset.from_list(scored).save_to_disk(tmp_path / "saved")
    chats = [
        {
            "messages": [
                {"role": "user", "content": record["instruction"]},
                {"role": "assistant", "content": record["response"]},
            ]
        }
        for record in RECORDS
    ]
    for data in (
        tmp_path / "pool.parquet",
        tmp_path / "pool.json",
        tmp_path / "saved",
        datasets.Dataset.from_list(scored),
        scored,
        chats,
    ):
        selection.to_jsonl(tmp_path / "picks.jsonl", data)
        if data is not chats:
            found = spice_rs.select(pool / "store", 3, data=data, groups="topic")
            assert set(found.groups) <= {"a", "b"}
    with pytest.raises(InvalidInputError, match=r"data\[7\]: record 7 is not"):
        shuffled = datasets.Dataset.from_list(swapped(scored))
        spice_rs.select(pool / "store", 3, data=shuffled, groups="topic")


def test_columns_that_were_added_may_be_such_as_extraction_refuses(pool, selection, tmp_path):
    added = {"weight": 0.5, "scores": [0.5], "remarks of the reviewer": "a b c d"}
    judged = [{**record, **added} for record in RECORDS]
    with pytest.raises(InvalidInputError):
        load_records(judged)
    selection.to_jsonl(tmp_path / "p.jsonl", judged)
    spice_rs.select(pool / "store", 3, data=judged, prior="weight")
    with pytest.raises(InvalidInputError, match="record 7 is not"):
        spice_rs.select(pool / "store", 3, data=swapped(judged), prior="weight")


def test_fields_that_only_some_records_have_may_be_null_elsewhere(proxy, tmp_path):
    datasets = pytest.importorskip("datasets")
    chat = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}],
        "topic": "c",
    }
    mixed = [*RECORDS[:4], {"text": "a b c", "topic": "t"}, *RECORDS[4:8], chat]
    store = spice_rs.extract(proxy, mixed, tmp_path / "s", dim=64, progress=False)
    filled = datasets.Dataset.from_list([{"messages": None, "text": None, **each} for each in mixed])
    picks = spice_rs.select(store, 9, data=filled, groups="topic")
    assert len(picks.dataset(filled)) == 9


def test_columns_of_other_names_are_read_as_they_were(proxy, pool, tmp_path):
    renamed = [
        {
            "q": each["instruction"],
            "a": each["response"],
            "topic": each["topic"],
            "prompt": "x",
            "response": "y",
        }
        for each in RECORDS
    ]
    columns = {"prompt": "q", "response": "a"}
    store = spice_rs.extract(proxy, renamed, tmp_path / "s", dim=64, columns=columns, progress=False)
    assert store.provenance["dataset"]["columns"] == columns
    spice_rs.select(store, 3, data=renamed, groups="topic").to_llama_factory(tmp_path / "lf", renamed)
    entry = json.loads((tmp_path / "lf" / "dataset_info.json").read_text("utf-8"))["spice"]
    assert (entry["columns"]["prompt"], entry["columns"]["response"]) == ("q", "a")
    with pytest.raises(InvalidInputError, match="record 7 is not"):
        spice_rs.select(store, 3, data=swapped(renamed), groups="topic")
    # The same records under other names go on with the store, which keeps its own.
    again = spice_rs.extract(proxy, RECORDS, tmp_path / "s", dim=64, progress=False)
    assert (len(again), again.provenance) == (20, store.provenance)


@pytest.mark.parametrize("kind", ["pairs", "turns"])
def test_columns_that_say_nothing_are_left_out_for_llama_factory(proxy, tmp_path, kind, capsys):
    def record(row, each):
        if kind == "pairs":
            return {**each, "context": f"page {row}", "label": bool(row % 2)}
        turns = [{"role": "user", "content": each["instruction"]}]
        return {
            "chat": [
                *turns,
                {"role": "assistant", "content": each["response"], "weight": 0, "thinking": "hm"},
            ],
            "learned": [0, 0],
        }

    data = write(tmp_path / "d.jsonl", [record(row, each) for row, each in enumerate(make_records(8))])
    ignored = ["context", "label"] if kind == "pairs" else ["messages.weight", "messages.thinking", "learned"]
    columns = None if kind == "pairs" else {"messages": "chat"}
    store = tmp_path / "store"
    spice_rs.extract(proxy, data, store, dim=64, columns=columns, ignore_columns=ignored, progress=False)
    command = ("select", store, "-k", 3, "--data", data, "--out", tmp_path / "p.jsonl")
    assert run(*command, "--save", tmp_path / "s.safetensors", "--llama-factory", tmp_path / "lf") == 0
    expected = {"prompt": "instruction", "response": "response"} if kind == "pairs" else {"messages": "chat"}
    saved = ("export-picks", tmp_path / "s.safetensors", "--data", data)
    assert run(*saved, "--llama-factory", tmp_path / "lf", "--name", "again") == 0
    entries = json.loads((tmp_path / "lf" / "dataset_info.json").read_text())
    assert entries["spice"]["columns"] == entries["again"]["columns"] == expected
    if kind == "pairs":  # what is named now is read
        spice_rs.Selection.load(tmp_path / "s.safetensors").to_llama_factory(
            tmp_path / "lf",
            data,
            columns={"instruction": "instruction", "response": "response", "context": "context"},
        )
        entries = json.loads((tmp_path / "lf" / "dataset_info.json").read_text())
        assert entries["spice"]["columns"] == {**expected, "query": "context"}


def test_records_that_were_left_out_may_be_anything(proxy, tmp_path):
    data = [*RECORDS[:4], {"topic": "c"}, *RECORDS[4:8]]
    with pytest.warns(SpiceWarning, match="left out"):
        store = spice_rs.extract(proxy, data, tmp_path / "s", dim=64, skip_bad=True, progress=False)
    spice_rs.select(store, 3, data=data, groups="topic")
    data[4] = {"topic": "d", "instruction": "a", "response": "b"}
    spice_rs.select(store, 3, data=data, groups="topic").to_jsonl(tmp_path / "p.jsonl", data)
    with pytest.raises(InvalidInputError, match="record 3 is not"):
        spice_rs.select(store, 3, data=swapped(data, 3, 6), groups="topic")


def test_a_limited_extraction_is_of_the_whole_data(proxy, tmp_path):
    store = spice_rs.extract(proxy, RECORDS, tmp_path / "s", dim=64, limit=8, progress=False)
    assert (len(store), store.expected_rows) == (8, None)
    found = spice_rs.select(
        store, 3, data=[*RECORDS[:8], *RECORDS[:7:-1]], groups="topic"
    )  # the rest has no rows
    assert len(found) == 3
    with pytest.raises(InvalidInputError, match="found 8 records, expected 20"):
        spice_rs.select(store, 3, data=RECORDS[:8], groups="topic")


# --- a column of rows ---------------------------------------------------------------------------------------------


def test_rows_are_looked_up_by_a_column(pool, selection, tmp_path):
    rows = selection.indices.tolist()
    some = [{**RECORDS[row], "at": {"row": row}} for row in sorted(rows, reverse=True)]
    selection.to_jsonl(tmp_path / "p.jsonl", some, index_column="at.row")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").splitlines()]
    assert [line["at"]["row"] for line in lines] == [line["spice"]["index"] for line in lines] == rows
    for records, words in (
        (some[1:], f"no record with row {some[0]['at']['row']}"),
        ([*some, some[2]], "a second time"),
        ([*some, {**some[0], "at": {"row": True}}], r"data\[6\]: found bool True"),
        ([*some, {**some[0], "at": None}], "found null"),
        ([*some, {**some[0], "at": {"row": 20}}], "found row 20.*expected rows below 20"),
        ([*some, {**some[0], "at": {"row": -1}}], "expected the dataset row"),
        ([{**some[0], "response": "a"}, *some[1:]], "is not the one that row"),
        ([{"at": some[0]["at"]}, *some[1:]], "is not the one that row .*expected the prompt"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            selection.to_jsonl(tmp_path / "p.jsonl", records, index_column="at.row")
    with pytest.raises(InvalidInputError, match="no record with row"):
        spice_rs.select(pool / "store", 3, data=some, groups="topic", index_column="at.row")


def test_a_column_of_rows_needs_data(pool, selection, tmp_path):
    store = pool / "store"
    for call in (
        lambda: spice_rs.select(store, 3, index_column="row"),
        lambda: selection.to_jsonl(tmp_path / "p.jsonl", index_column="row"),
        lambda: spice_rs.explain(selection, store, [1], index_column="row"),
        lambda: spice_rs.certify(selection, store, index_column="row"),
        lambda: spice_rs.compare(store, 3, ["top_k"], index_column="row"),
    ):
        with pytest.raises(InvalidInputError, match="index_column: found 'row' without data"):
            call()
    assert run("select", store, "-k", 3, "--out", tmp_path / "p.jsonl", "--index-column", "row") == 2


def test_a_data_set_is_looked_up_by_a_column(selection):
    datasets = pytest.importorskip("datasets")
    rows = selection.indices.tolist()
    numbered = [{**record, "row": row, "spice": {"index": row}} for row, record in enumerate(RECORDS)]
    shuffled = datasets.Dataset.from_list(random.Random(3).sample(numbered, 20))
    for column in ("row", "spice.index"):
        assert selection.dataset(shuffled, index_column=column)["row"] == rows
    with pytest.raises(InvalidInputError, match="index_column='id'"):
        selection.dataset(shuffled, index_column="id")


# --- much data, old stores, samples of one's own -------------------------------------------------------------------


def test_of_many_records_a_part_is_compared(monkeypatch):
    rows = np.arange(1000)
    assert spread(rows, 1000) == rows.tolist()
    some = spread(rows, 7)
    assert (len(some), some[0], some[-1]) == (7, 0, 999)
    assert np.ptp(np.diff(some)) <= 1
    records = [{"text": f"t{row}"} for row in rows]
    hashes = np.array([record_hash(parse_record(0, "", record)) for record in records])
    belonging = Belonging("s", 1000, rows=rows, hashes=hashes)
    compared = []
    monkeypatch.setattr(
        matching, "record_hash", lambda record: compared.append(record.index) or record_hash(record)
    )
    assert len(list(raw_records(records, range(1000), belonging, checked=some))) == 1000
    assert compared == some
    # Wherever the difference is met, the first one is named.
    with pytest.raises(InvalidInputError, match=r"data\[500\]: record 500 is not"):
        list(raw_records([*records[:500], *records[501:], records[0]], range(1000), belonging, checked=some))


def old_store(store, path: Path, **changes):
    """The store as an earlier version made it: without hashes."""
    provenance = store.provenance | changes
    order = np.arange(len(store))
    with spice_rs.GradientStore.create(
        path, dim=store.dim, dtype=store.dtype, reduction="sum", provenance=provenance
    ) as writer:
        writer.append(store.read(order), store.index, store.num_tokens, store.loss)
    return spice_rs.GradientStore(path)


def test_an_old_store_compares_what_it_can_and_warns_once(pool, proxy, tmp_path, monkeypatch):
    old = old_store(spice_rs.GradientStore(pool / "store"), tmp_path / "old")
    assert old.record is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # few records: all are compared at once
        picks = spice_rs.select(old, 3, conflict_penalty=0, data=RECORDS, groups="topic")
        picks.to_jsonl(tmp_path / "p.jsonl", RECORDS)
    with pytest.raises(InvalidInputError, match="found 19 records, expected 20"):
        picks.to_jsonl(tmp_path / "p.jsonl", RECORDS[:-1])
    with pytest.warns(SpiceWarning, match=r"old: it keeps nothing.*the data are others"):
        picks.to_jsonl(tmp_path / "p.jsonl", swapped(RECORDS))
    matching.warned.clear()
    monkeypatch.setattr(matching, "MOST_CHECKED", 10)
    with pytest.warns(SpiceWarning, match="is not known.*Extract again"):
        spice_rs.select(old, 3, data=RECORDS, groups="topic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picks.to_jsonl(tmp_path / "p.jsonl", RECORDS)
    matching.warned.clear()
    numbered = [{**record, "row": row} for row, record in enumerate(RECORDS)]
    with pytest.warns(SpiceWarning, match="is not known"):
        picks.to_jsonl(tmp_path / "p.jsonl", numbered[::-1], index_column="row")
    # Going on with it, an extraction leaves it as it is.
    with spice_rs.GradientStore.create(
        tmp_path / "part", dim=old.dim, dtype=old.dtype, reduction="sum", provenance=old.provenance
    ) as writer:
        writer.append(old.read([0, 1]), old.index[:2], old.num_tokens[:2], old.loss[:2])
    whole = spice_rs.extract(proxy, RECORDS, tmp_path / "part", dim=64, progress=False)
    assert (len(whole), whole.record, whole.provenance) == (20, None, old.provenance)
    assert not any("record" in split(shard)[0] for shard in shards(tmp_path / "part"))


def test_a_selection_of_an_earlier_version_warns_once(selection, tmp_path, monkeypatch):
    matching.warned.clear()
    source = {
        name: value for name, value in selection.settings["source"].items() if name not in ("data", "hashed")
    }
    settings = {**selection.settings, "source": source}
    replace(selection, settings=settings, record_hashes=None).save(tmp_path / "old.safetensors")
    old = spice_rs.Selection.load(tmp_path / "old.safetensors")
    with pytest.warns(SpiceWarning, match="keeps nothing to compare"):
        old.to_jsonl(tmp_path / "p.jsonl", RECORDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old.head(2).to_jsonl(tmp_path / "p.jsonl", RECORDS)


def test_samples_of_ones_own_count_by_their_values(tmp_path):
    torch = pytest.importorskip("torch")
    sample = {"x": torch.tensor([1.5, 2.0]), "y": 3}
    same = [{"y": np.int32(3), "x": [1.5, 2.0]}, {"x": np.float64([1.5, 2.0]), "y": torch.tensor(3)}]
    assert {sample_hash(each) for each in same} == {sample_hash(sample)}
    assert sample_hash({**sample, "id": "n"}, ["x", "y"]) == sample_hash(sample)
    others = [
        {"x": [2.0, 1.5], "y": 3},
        {"x": [[1.5, 2.0]], "y": 3},
        {"x": [1.5, 2.0], "z": 3},
        ([1.5, 2.0], 3),
    ]
    assert len({sample_hash(each) for each in [sample, *others]}) == 5
    assert sample_hash((torch.ones(2, dtype=torch.bfloat16), "a")) == sample_hash([[1.0, 1.0], "a"])

    table = [
        {"x": torch.randn(4, generator=torch.Generator().manual_seed(row)), "y": row % 2} for row in range(9)
    ]
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    store = spice_rs.extract(model, table, tmp_path / "s", loss_fn=own_loss, dim=16, progress=False)
    assert store.provenance["dataset"]["fields"] == ["x", "y"]
    assert store.provenance["dataset"]["own"] is True
    facts = [{**sample, "topic": "ab"[row % 2]} for row, sample in enumerate(table)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        picks = spice_rs.select(store, 3, data=facts, groups="topic")
    picks.to_jsonl(tmp_path / "p.jsonl", [{**each, "x": each["x"].tolist()} for each in facts])
    with pytest.raises(InvalidInputError, match=r"data\[2\]: record 2 is not"):
        spice_rs.select(store, 3, data=swapped(facts, 2, 5), groups="topic")


def test_facts_about_samples_that_are_no_mappings_are_counted_alone(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    matching.warned.clear()
    table = torch.utils.data.TensorDataset(torch.randn(9, 4), torch.arange(9) % 2)
    store = spice_rs.extract(
        torch.nn.Linear(4, 2),
        table,
        tmp_path / "s",
        loss_fn=tuple_loss,
        dim=8,
        progress=False,
        min_coverage=0.1,
    )
    assert len(set(store.record.tolist())) == 9
    facts = [{"topic": "ab"[row % 2]} for row in range(9)]
    with pytest.warns(SpiceWarning, match="the number of them alone was compared"):
        spice_rs.select(store, 3, data=facts, groups="topic")
    with pytest.raises(InvalidInputError, match="found 8 records, expected 9"):
        spice_rs.select(store, 3, data=facts[1:], groups="topic")


def tuple_loss(model, batch):
    import torch

    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def own_loss(model, batch):
    import torch

    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def test_stores_of_grown_data_are_of_the_grown_data(proxy, tmp_path):
    spice_rs.extract(proxy, RECORDS[:12], tmp_path / "a", dim=64, progress=False)
    later = spice_rs.extract(proxy, RECORDS, tmp_path / "b", dim=64, progress=False)
    later.delete(range(12))
    both = [tmp_path / "a", tmp_path / "b"]
    found = spice_rs.select(both, 3, data=RECORDS, groups="topic")
    found.to_jsonl(tmp_path / "p.jsonl", RECORDS)
    for data in (RECORDS[:12], swapped(RECORDS)):
        with pytest.raises(InvalidInputError, match="index_column"):
            spice_rs.select(both, 3, data=data, groups="topic")


@pytest.mark.parametrize(
    "change",
    [
        {"columns": "prompt"},
        {"columns": {"prompt": 7}},
        {"ignore_columns": 7},
        {"ignore_columns": [None]},
        {"preference": "rejected"},
        {"rows": -1},
        {"rows": True},
        {"fields": ["a", 1]},
        {"own": 1},
        {"fingerprint": 3},
    ],
)
def test_what_extract_does_not_write_says_nothing_of_data(change, tmp_path):
    dataset = {"rows": 4, "fingerprint": "f", **change}
    assert Belonging.about({"dataset": dataset}) is None
    with GradientStore.create(tmp_path / "s", dim=2, provenance={"dataset": dataset}) as writer:
        writer.append(np.eye(4, 2, dtype=np.float32) + 1, np.arange(4), record=[1, 2, 3, 4])
    sel = spice_rs.select(tmp_path / "s", 2, conflict_penalty=0)
    sel.to_jsonl(tmp_path / "picks.jsonl", [{"prompt": "a", "response": "b"}] * 4)
    about = {"total": 4, "fingerprint": "f", "layout": {}, "own": False, "fields": None}
    assert Belonging.is_about(about)
    for name, value in change.items():
        place = {"rows": "total"}.get(name, name)
        wrong = {**about, place: value} if place in about else {**about, "layout": {name: value}}
        assert not Belonging.is_about(wrong)
    assert not Belonging.is_about({**about, "layout": {"foo": 1}})


@pytest.mark.parametrize(
    "rows", [range(3000), [2999 - n for n in range(3000)], [n * n for n in range(500)], [10**15, 0, 63, 64]]
)
def test_places_of_rows_are_those_of_a_dict_and_take_little(rows):
    places, expected = RowPlaces(), {}
    for number, row in enumerate(rows):
        assert row not in places
        places.put(row, number)
        expected[row] = number
    assert {row: places.get(row) for row in expected} == expected
    assert len(places) == len(expected)
    assert all(row not in places for row in (10**16, max(expected) + 1))
    tracemalloc.start()
    many = RowPlaces()
    for row in range(100_000):
        many.put(row, row)
    assert tracemalloc.get_traced_memory()[0] < 25 * 100_000  # a dict takes 100
    tracemalloc.stop()
