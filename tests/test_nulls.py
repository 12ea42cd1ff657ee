"""A null says nothing: the same record is the same from every file, alone and among others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from readings import (
    ALPACA,
    BLUE,
    CHAT,
    PAIR,
    USER,
    fingerprint,
    refusal,
    two_replies,
)
from spice_rs.data.records import dataset_fingerprint, load_records, record_hash
from spice_rs.errors import InvalidInputError


def calling(arguments, **more):
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call], **more}]}


SHAPES = [
    calling({"place": "harbour"}),
    calling({"unit": "m", "deep": {"a": [1, 2]}}),
    calling({}),
    {
        **calling({"place": "harbour"}),
        "tools": [{"name": "look", "parameters": {"type": "object", "properties": {}}}],
    },
    {
        "messages": CHAT,
        "tools": [{"name": "go", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}],
    },
    {"messages": CHAT, "tools": []},
    {"messages": [{**USER, "name": "Ann"}, {**BLUE, "reasoning_content": "hm"}]},
    two_replies({"weight": 0}),
    {**ALPACA, "system": "s"},
    PAIR,
    {"text": "a story"},
    {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": CHAT, "chat_template_kwargs": {"date": "today"}},
]


def test_the_same_record_is_the_same_in_every_file_alone_and_among_others(tmp_path):
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, load_dataset

    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(shape) + "\n" for shape in SHAPES), encoding="utf-8")
    names = dict.fromkeys(name for shape in SHAPES for name in shape)
    wide = [
        {**names, **shape} for shape in SHAPES
    ]  # pyarrow and datasets take the first record's columns alone
    tables = [pyarrow.Table.from_pylist(part) for part in (wide[:4], wide[4:7], wide[7:])]
    joined = pyarrow.concat_tables(tables, promote_options="permissive")
    pyarrow.parquet.write_table(joined, tmp_path / "joined.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wide), tmp_path / "a.parquet")
    alone = [Dataset.from_list([shape]) for shape in SHAPES]
    sources = [
        SHAPES,
        lines,
        tmp_path / "a.parquet",
        Dataset.from_list(wide),
        Dataset.from_list(wide).to_pandas().to_dict("records"),
        tmp_path / "joined.parquet",
        load_dataset("json", data_files=str(lines), split="train", cache_dir=str(tmp_path / "cache")),
    ]
    hashes = [[record_hash(record) for record in load_records(source)] for source in sources]
    assert all(each == hashes[0] for each in hashes)
    assert [record_hash(load_records(each)[0]) for each in alone] == hashes[0]
    assert len(set(hashes[0])) == len(SHAPES) - 1  # an empty list of tools is none
    assert len({dataset_fingerprint(load_records(source)) for source in sources}) == 1


def test_images_and_sounds_of_datasets_are_refused_and_never_decoded():
    from datasets import Audio, Dataset, Image, List

    nothing = {"bytes": b"no image", "path": None}
    for name, kind, value in (
        ("image", Image(), nothing),
        ("sound", Audio(), nothing),
        ("shots", List(Image()), [nothing]),
    ):
        data = Dataset.from_list([{**PAIR, name: None}, {**PAIR, name: value}])
        data = data.cast_column(name, kind)
        with pytest.raises(InvalidInputError, match=rf"data\[1\]: field '{name}' holds"):
            load_records(data)
        assert [each.row for each in load_records(data, skip_bad=True).bad] == [1]
        plain = dataset_fingerprint(load_records([PAIR, PAIR]))
        assert dataset_fingerprint(load_records(data, ignore_columns=name)) == plain
        assert len(load_records(data.select([0]))) == 1
        calls = Dataset.from_list([{**calling({"a": 1}), name: None}, {**calling({"b": "c"}), name: None}])
        assert fingerprint(calls.cast_column(name, kind)[1]) == fingerprint(calling({"b": "c"}))
        assert dataset_fingerprint(load_records(calls.cast_column(name, kind))) == dataset_fingerprint(
            load_records(calls)
        )


def test_maps_of_parquet_are_objects(tmp_path):
    import pyarrow
    import pyarrow.parquet

    call = pyarrow.struct(
        [("name", pyarrow.string()), ("arguments", pyarrow.map_(pyarrow.string(), pyarrow.string()))]
    )
    turn = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", pyarrow.list_(call))]
    )
    given = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "look", "arguments": [("place", "harbour")]}],
    }
    table = pyarrow.Table.from_pylist(
        [{"messages": [USER, given]}], schema=pyarrow.schema([("messages", pyarrow.list_(turn))])
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (record,) = load_records(tmp_path / "a.parquet")
    assert record.messages[1].more["tool_calls"] == [{"name": "look", "arguments": {"place": "harbour"}}]


@pytest.mark.parametrize(
    ("with_nulls", "without"),
    [
        (calling({"place": "harbour", "unit": None}), calling({"place": "harbour"})),
        (calling({"place": None}), calling({})),
        (calling({"deep": {"a": None, "b": [{"c": None, "d": 1}]}}), calling({"deep": {"b": [{"d": 1}]}})),
        (calling({"a": 1}, reasoning_content=None, name=None), calling({"a": 1})),
        (
            {"messages": [{**USER, "tool_calls": None, "weight": None}, {**BLUE, "tool_calls": []}]},
            {"messages": CHAT},
        ),
        ({"messages": CHAT, "tools": None, "system": None}, {"messages": CHAT}),
        (
            {"messages": CHAT, "tools": [{"name": "a", "x": None}]},
            {"messages": CHAT, "tools": [{"name": "a"}]},
        ),
        (
            {"messages": CHAT, "tools": '[{"name": "a", "x": null}]'},
            {"messages": CHAT, "tools": [{"name": "a"}]},
        ),
        ({"messages": CHAT, "chat_template_kwargs": {"a": None}}, {"messages": CHAT}),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Which river?", "image": None}]},
                    BLUE,
                ]
            },
            {"messages": CHAT},
        ),
        (
            {"messages": np.array([{**USER, "name": float("nan")}, BLUE], dtype=object)},
            {"messages": tuple(CHAT)},
        ),
        ({"messages": None, **PAIR}, PAIR),
        ({"input_ids": None, "instruction": float("nan"), **PAIR}, PAIR),
        ({"messages": CHAT, "prompt": np.nan, "label": None, "weight": None}, {"messages": CHAT}),
    ],
)
def test_a_null_says_nothing(with_nulls, without):
    assert fingerprint(with_nulls) == fingerprint(without)


def test_what_is_no_null_of_an_object_stays():
    assert fingerprint(calling({"a": [1, None]})) != fingerprint(calling({"a": [1]}))
    assert fingerprint(calling('{"unit": null}')) != fingerprint(calling("{}"))  # words, as they stand
    assert fingerprint(calling({"a": ""})) != fingerprint(calling({}))
    assert "null in 'prompt'" in refusal({"prompt": None, "response": "r"})
    assert "'content'" in refusal({"messages": [{"role": "user", "content": None}, BLUE]})
