"""The layouts of docs/data-formats.md, cases that were dropped without a word, and hashes of what is learned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from readings import (
    ALPACA,
    BLUE,
    CHAT,
    GPT,
    HUMAN,
    PAIR,
    QA,
    TOKENS,
    USER,
    fingerprint,
    read,
    refusal,
)
from spice_rs.data.layouts import LAYOUTS, is_metadata
from spice_rs.data.records import Message, dataset_fingerprint, load_records, parse_record, record_hash
from spice_rs.errors import InvalidInputError


def test_calls_of_tools_in_other_words_are_the_same():
    call = {"name": "look", "arguments": {"place": "harbour"}}
    wrapped = {"type": "function", "function": call}
    asked = {"role": "user", "content": "Look it up"}
    plain = {
        "messages": [
            asked,
            {"role": "assistant", "content": "", "tool_calls": [wrapped]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "three"},
        ]
    }
    sharegpt = [
        {"from": "human", "value": "Look it up"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "three"},
    ]
    swift = [
        asked,
        {"role": "tool_call", "content": json.dumps([call])},
        {"role": "tool_response", "content": "3"},
        {"role": "assistant", "content": "three"},
    ]
    openai = [
        asked,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "content": "3"},
        {"role": "assistant", "content": "three"},
    ]
    text = [asked, {"role": "assistant", "tool_calls": json.dumps([wrapped])}, *plain["messages"][2:]]
    prints = {
        fingerprint(each)
        for each in (
            plain,
            {"conversations": sharegpt},
            {"messages": swift},
            {"messages": openai},
            {"messages": text},
        )
    }
    assert len(prints) == 1
    described = {"name": "look", "parameters": {"type": "object"}}
    functions = fingerprint({"messages": openai, "functions": [described], "parallel_tool_calls": False})
    assert functions == fingerprint({**plain, "tools": [{"type": "function", "function": described}]})
    both = [
        asked,
        {"role": "assistant", "content": "Let me see."},
        {"role": "tool_call", "content": json.dumps(call)},
    ]
    (turn,) = read({"messages": both}).messages[1:]
    assert turn == Message("assistant", "Let me see.", {"tool_calls": [wrapped]})
    for broken in ("look(harbour)", "[]", "{}", '"look"'):
        assert "expected" in refusal({"conversations": [HUMAN, {"from": "function_call", "value": broken}]})


def test_options_of_the_template_and_tools_go_with_every_conversation():
    record = read(
        {"prompt": [USER], "completion": [BLUE], "chat_template_kwargs": {"enable_thinking": False}}
    )
    assert record.template_options == {"enable_thinking": False}
    assert read({"messages": CHAT, "chat_template_kwargs": '{"a": 1}'}).template_options == {"a": 1}
    assert "chat_template_kwargs" in refusal({"messages": CHAT, "chat_template_kwargs": "now"})
    tools = [{"name": "look"}]
    assert read({"prompt": [USER], "completion": [BLUE], "tools": tools}).tools == tools
    assert read({**PAIR, "tools": tools}).tools == tools


SHOWING = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% for c in m.tool_calls or [] %}"
    " {{ c['function'] | tojson }}{% endfor %}{{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def test_cases_that_were_dropped_without_a_word(proxy, shared_file, tmp_path):
    """Every pair of the shared cases, as records and as rows of a store."""
    import spice_rs
    from tiny import make_tokenizer

    cases = [
        json.loads(line)
        for line in shared_file("cases/records.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    pool, pairs = [], []
    for case in cases:
        try:
            same = fingerprint(case["a"]) == fingerprint(case["b"])
        except InvalidInputError:
            assert case["relation"] == "differ"
            continue
        assert same == (case["relation"] == "equal"), case["name"]
        pairs.append(case)
        pool += [{**case["a"], "number": 1}, {**case["b"], "number": 2}]
    model = AutoModelForCausalLM.from_pretrained(proxy)
    model.resize_token_embeddings(40)
    store = spice_rs.extract(
        model, pool, tmp_path / "s", dim=64, tokenizer=make_tokenizer(chat_template=SHOWING), progress=False
    )
    rows = store.read(np.argsort(store.index)).reshape(len(pairs), 2, -1)
    assert len(pairs) >= 6
    for case, (a, b) in zip(pairs, rows.astype(np.float64), strict=True):
        assert np.allclose(a, b, rtol=1e-2, atol=1e-2) == (case["relation"] == "equal"), case["name"]


def test_columns_are_ignored_and_wanted_sides_learned_by_flags(proxy, tmp_path, capsys):
    import spice_rs
    from command import run

    def extract(name, record, *flags):
        (tmp_path / "pool.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
        given = ("--model", proxy, "--data", tmp_path / "pool.jsonl", "--out", tmp_path / name)
        return run("extract", *given, "--dim", 8, "--no-progress", *flags)

    def row(name):
        return spice_rs.GradientStore(tmp_path / name).read(np.array([0]))

    plain = {"prompt": "a b", "response": "c d"}
    assert extract("plain", plain) == 0
    noted = {**plain, "the judge's note": "e f", "draft-2": "g"}
    assert extract("x", noted) == 2
    assert "line 1" in capsys.readouterr().err
    assert extract("noted", noted, "--ignore-columns", "the judge's note,draft-2") == 0
    pair = {"prompt": "a b", "chosen": "c d", "rejected": "e"}
    assert extract("y", pair) == 2
    assert "--preference chosen" in capsys.readouterr().err
    assert extract("pair", pair, "--preference", "chosen") == 0
    for name in ("noted", "pair"):
        np.testing.assert_array_equal(row(name), row("plain"))
    assert extract("z", plain, "--ignore-columns", "a,,b") == 2
    assert extract("z", plain, "--preference", "rejected") == 2


def test_stores_of_plain_records_stay_valid():
    """The hash of what was read rightly before stays what it was."""
    plain = load_records([PAIR, {"text": "a story"}, {"messages": CHAT, "tools": [{"name": "a"}]}, TOKENS])
    assert dataset_fingerprint(plain) == "d162cf72baead76a490beebbd987941170f1d1c4de1bdbdf1797117a67ffcc76"
    assert record_hash(plain[0]) == record_hash(load_records([QA, PAIR])[1])
    assert len({record_hash(record) for record in plain}) == 4
    assert -(1 << 63) <= record_hash(plain[0]) < 1 << 63
    assert parse_record(3, "here", PAIR) == dataclasses.replace(plain[0], index=3, place="here")


EXAMPLES = {
    "Tokenised": {**TOKENS, "attention_mask": [1] * 4, "token_type_ids": [0] * 4, "length": 4, "text": "x"},
    "OpenAI chat": {"messages": CHAT, "tools": [], "system_prompt": "s", "parallel_tool_calls": True},
    "ShareGPT": {"conversations": [HUMAN, GPT], "system": "s", "tools": "[]", "title": "Rivers"},
    "UltraChat": {"messages": CHAT, "prompt": "Which river?"},
    "Alpaca": {
        **ALPACA,
        "input": "i",
        "text": "And how long? i nine",
        "system": "s",
        "history": [["a", "b"]],
    },
    "Dolly": {"instruction": "q", "context": "c", "response": "r", "category": "qa"},
    "OpenOrca": {"id": "x", "system_prompt": "s", "question": "q", "response": "r"},
    "ms-swift": {"system": "s", "query": "q", "response": "r", "history": [["a", "b"]]},
    "MetaMath": {"query": "q", "response": "r", "original_question": "o", "type": "GSM"},
    "SQuAD": {"question": "q", "context": "c", "answers": {"text": ["r"], "answer_start": [0]}, "title": "t"},
    "TRL prompt": {**PAIR, "tools": []},
    "KTO": {**PAIR, "label": True},
    "Preference": {"prompt": "q", "chosen": "r", "rejected": "s"},
    "Several": {"prompt": "q", "completions": ["r", "s"], "scores": [1, 2]},
    "Plain": {"text": "a story"},
    "OASST": {"text": "a story", "role": "prompter", "message_id": "x"},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_page_lists_the_layouts_and_they_are_read_so(layout):
    def cell(names):
        return ", ".join(" or ".join(f"`{each}`" for each in name.split("|")) for name in names) or "–"

    page = (Path(__file__).parents[1] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    named = [cell(names) for names in (layout.told_by, layout.reads)]
    assert (
        " | ".join(
            [f"| {layout.name}", *named, layout.read_as, cell(layout.refuses), f"{cell(layout.ignores)} |"]
        )
        in page
    )
    (example,) = [each for name, each in EXAMPLES.items() if layout.name.startswith(name)]
    assert layout.fits(frozenset(example))
    known = {*layout.reads, *layout.ignores, *layout.refuses}
    assert all(name in known or is_metadata(name) for name in example if name != "text")
    if "refused" in layout.read_as.split(";")[0]:
        refusal(example)
    if layout.reads:
        read(example, preference="chosen" if "preference=" in layout.read_as else None)
    for name in layout.refuses:
        assert name in refusal({**example, name: "x"})
    for name in layout.ignores:
        assert fingerprint({**example, name: None}, preference="chosen") == fingerprint(
            example, preference="chosen"
        ) or (layout.name.startswith("Preference"))
