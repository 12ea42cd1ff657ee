"""Records and tokens on disk: the same samples as in memory, shared by ranks, and never trusted blindly."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spice_rs
from reference import make_data, make_model, run
from spice_rs.data import scratch
from spice_rs.data.dataset import Example, dataset_fingerprint, load_records, tokenise
from spice_rs.data.record_file import ByRow, RecordWriter
from spice_rs.data.records import fingerprint_and_hashes, record_hash
from spice_rs.data.scratch import Scratch
from spice_rs.data.token_file import MAGIC, TokenFile, TokenWriter
from spice_rs.errors import InvalidInputError
from spice_rs.extraction import inputs
from spice_rs.extraction.batching import Samples, learned_of, lengths_of, longest_first, rows_of
from spice_rs.extraction.inputs import read_text
from spice_rs.extraction.own_data import OwnTable
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.token_cache import TokenCache, scratch_folder
from tiny import WORDS, make_records, make_tokenizer

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}a {{ m['content'] }} b {% else %}{{ m['content'] }} </s>\n"
    "{% endif %}{% endfor %}"
)
said = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9).map(" ".join)
pairs = st.builds(lambda a, b: {"instruction": a, "output": b, "id": 3}, said, said)
texts = st.builds(lambda a: {"text": a}, said)
chats = st.lists(st.tuples(said, said, st.booleans()), min_size=1, max_size=3).map(
    lambda turns: {
        "messages": [
            turn
            for ask, reply, learned in [*turns[:-1], (*turns[-1][:2], True)]
            for turn in (
                {"role": "user", "content": ask},
                {"role": "assistant", "content": reply, "train": learned},
            )
        ]
    }
)
ids = st.lists(st.integers(2, 9), min_size=2, max_size=20)
tokens = st.builds(
    lambda ids, other, from_: {
        "input_ids": ids,
        "labels": [-100] * min(from_, len(ids) - 1) + [other] * (len(ids) - min(from_, len(ids) - 1)),
    },
    ids,
    st.integers(2, 9),
    st.integers(0, 9),
)
bad = st.sampled_from([{"instruction": "a"}, {"text": " "}, {"input_ids": []}, 7])


def in_file(examples):
    writer = TokenWriter()
    for each in examples:
        writer.append(each)
    rows = np.arange(3)
    return writer.finish(rows, rows + 5, {"a": 1})


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.num_tokens, one.cut) == (other.index, other.num_tokens, other.cut)
        for name in ("input_ids", "labels"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.dtype == right.dtype == np.int32
            np.testing.assert_array_equal(left, right)
            assert left.flags.writeable  # torch takes no other without a word


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(pairs, chats, texts, tokens, bad), min_size=1, max_size=12), st.integers(4, 30))
def test_samples_are_those_of_the_way_through_memory(records, max_length):
    tokenizer = make_tokenizer(chat_template=CHAT)
    try:
        held = load_records(records, skip_bad=True)
        expected = tokenise(held, tokenizer, max_length=max_length, skip_bad=True)
    except InvalidInputError as error:
        with pytest.raises(InvalidInputError) as caught:
            load_records(records, skip_bad=True, keeper=RecordWriter())
        assert str(caught.value) == str(error)
        return
    stored = load_records(records, skip_bad=True, keeper=RecordWriter())
    assert (stored.rows, stored.bad, stored.described) == (held.rows, held.bad, held.described)
    for one, other in zip(stored, held, strict=True):
        assert (one.index, one.place, one.messages, one.text) == (
            other.index,
            other.place,
            other.messages,
            other.text,
        )
        assert (one.tokens is None) == (other.tokens is None)
        if one.tokens is not None:
            np.testing.assert_array_equal(one.tokens, other.tokens)
            assert one.tokens.dtype == np.int64
    fingerprint, hashes = fingerprint_and_hashes(stored)
    assert fingerprint == dataset_fingerprint(held)
    assert hashes.tolist() == [record_hash(each) for each in held]
    found = (
        in_file(tokenise(stored.items, tokenizer, max_length=max_length, skip_bad=True)) if expected else ()
    )
    assert_same(found, expected)
    if expected:
        assert found.longest == max(each.length for each in expected)
        assert found.largest == max(max(each.input_ids.max(), each.labels.max()) for each in expected)


def test_tools_marks_and_options_come_back_as_they_are():
    record = {
        "messages": [
            {"role": "user", "content": "é\u2028"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1.5, None, True, "ü"]}}}],
            },
            {"role": "tool", "content": "3", "name": "f"},
            {"role": "assistant", "content": "three", "train": False},
        ],
        "tools": [{"name": "f", "parameters": {"type": "object"}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    held, stored = load_records([record]), load_records([record], keeper=RecordWriter())
    assert stored[0] == held[0]
    by_row = ByRow(load_records([{"a": 1}, record], skip_bad=True, keeper=RecordWriter()).items)
    assert list(by_row) == [1]
    assert by_row[1].messages == held[0].messages
    with pytest.raises(KeyError):
        by_row[0]


def test_orders_and_shares_of_a_file_are_those_of_a_list():
    draw = np.random.default_rng(0)
    examples = [
        Example(3 * row, np.full(length, 5, np.int32), np.full(length, 5, np.int32), length - 1)
        for row, length in enumerate(draw.integers(2, 9, 200).tolist())
    ]
    table = in_file(examples)
    samples = Samples(table, np.arange(200))
    for number in range(3):
        assert_same(list(Rank(number, 3).slice(samples)), Rank(number, 3).slice(examples))
    listed = longest_first(examples)
    assert listed == sorted(examples, key=lambda each: (-each.length, each.index))
    filed = longest_first(samples)
    for of in (rows_of, lengths_of, learned_of):
        np.testing.assert_array_equal(of(filed), of(listed))
    assert samples.of_rows([9, 0])[0].index == 9
    own = Samples(OwnTable(5), np.arange(5))
    assert [each.index for each in longest_first(own)] == [0, 1, 2, 3, 4]


# --- memory ------------------------------------------------------------------------------------------------------


def held_for(count, folder):
    """Bytes of Python's memory that reading holds, and how many objects, for so many records."""
    path = folder / f"{count}.jsonl"
    with path.open("w") as file:
        for row in range(count):
            file.write(json.dumps({"instruction": "a b c " * 30, "output": "d e f " * 30, "id": row}) + "\n")
    options = Settings.of({"tokenizer": make_tokenizer(), "device": "cpu"})
    model = _model()
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    try:
        reading = read_text(model, str(path), options, out=folder / "store")
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(reading.samples) == count
    return held, len(gc.get_objects()) - before


def _model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=512, **sizes))


def test_memory_of_a_record_is_bounded_whatever_its_length(tmp_path):
    held_for(100, tmp_path)  # caches
    small, few = held_for(500, tmp_path)
    large, many = held_for(4500, tmp_path)
    assert (large - small) / 4000 < 100, (small, large)
    assert many - few < 400  # no object of Python for each
