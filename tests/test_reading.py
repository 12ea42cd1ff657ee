"""Records and tokens on disk: the same samples as in memory, shared by ranks, and never trusted blindly."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spice_rs
from counts import cases
from models import make_model
from spice_rs.data import scratch
from spice_rs.data.dataset import Example, dataset_fingerprint, load_records, tokenise
from spice_rs.data.record_file import ByRow, RecordWriter
from spice_rs.data.records import fingerprint_and_hashes, record_hash
from spice_rs.data.row_set import RowSet
from spice_rs.data.scratch import Scratch
from spice_rs.data.token_file import MAGIC, TokenFile, TokenWriter
from spice_rs.data.tokenising import _chunks
from spice_rs.errors import InvalidInputError
from spice_rs.extraction import inputs
from spice_rs.extraction.batching import Samples, learned_of, lengths_of, longest_first, rows_of
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.inputs import read_text
from spice_rs.extraction.own_data import OwnTable
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.token_cache import TokenCache, scratch_folder
from spice_rs.selection.columns import Columns
from spice_rs.selection.picks import pick_lines
from spice_rs.store.sources import open_source
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


@cases(60)
@given(st.lists(st.one_of(pairs, chats, texts, tokens, bad), min_size=1, max_size=12), st.integers(4, 30))
def test_samples_are_those_of_the_way_through_memory(records, max_length):
    tokenizer = make_tokenizer(chat_template=CHAT)
    records = [*records, {"text": "a"}]
    held = load_records(records, skip_bad=True)
    expected = tokenise(held, tokenizer, max_length=max_length, skip_bad=True)
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
            assert stored.items.edges[stored.items.rows == one.index].tolist() == [[*one.tokens[0, [0, -1]]]]
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


@given(st.lists(st.integers(0, 3000), unique=True, max_size=40), st.integers(-2, 3100))
def test_sets_of_rows_are_sets(rows, other):
    for given_rows in (rows, [*range(200), *(row + 200 for row in rows)]):
        found = RowSet(np.array(given_rows, np.int64))
        assert sorted(given_rows) == list(found)
        assert len(found) == len(given_rows)
        assert (other in found) == (other in set(given_rows))


# --- memory ------------------------------------------------------------------------------------------------------


def held_for(count, folder):
    """Bytes of Python's memory that reading holds, and how many objects, for so many records."""
    path = folder / f"{count}.jsonl"
    with path.open("w") as file:
        for row in range(count):
            file.write(json.dumps({"instruction": "a b c " * 30, "output": "d e f " * 30, "id": row}) + "\n")
    options = Settings.of({"tokenizer": make_tokenizer(), "device": "cpu"}, extract)
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
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return make_model(vocab_size=len(WORDS), max_position_embeddings=512, num_key_value_heads=1, **sizes)


@pytest.mark.slow
def test_memory_of_a_record_is_bounded_whatever_its_length(tmp_path):
    held_for(100, tmp_path)  # caches
    small, few = held_for(500, tmp_path)
    large, many = held_for(4500, tmp_path)
    assert (large - small) / 4000 < 100, (small, large)
    assert many - few < 400  # no object of Python for each


# --- shared by ranks, and by the next run ------------------------------------------------------------------------


@pytest.fixture
def pool(proxy, tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in make_records(12)))
    return str(proxy), str(path)


@pytest.fixture
def counted(monkeypatch):
    """The files that data were tokenised into; None for one without a name."""
    made = []

    def noted(folder, path):
        made.append(path)
        return TokenWriter(folder, path)

    monkeypatch.setattr(inputs, "TokenWriter", noted)
    return made


def as_rank(monkeypatch, number, count):
    for name, value in (("RANK", number), ("WORLD_SIZE", count), ("LOCAL_RANK", 0)):
        monkeypatch.setenv(name, str(value))


def extracted(pool, out, **options):
    return spice_rs.extract(*pool, out, **{"dim": 32, "device": "cpu", "progress": False, **options})


def left_of(folder):
    return sorted(each.name.partition(".tokens-")[0] for each in folder.glob("*.tokens-*"))


def test_ranks_read_the_data_once_and_the_last_one_removes_the_tokens(pool, tmp_path, monkeypatch, counted):
    for number in (2, 0, 1):
        as_rank(monkeypatch, number, 3)
        store = extracted(pool, tmp_path / "s")
        assert left_of(tmp_path) == (["s"] if number != 1 else [])
    assert len(counted) == 1
    monkeypatch.delenv("RANK")
    whole = extracted(pool, tmp_path / "one")
    assert store.provenance == whole.provenance
    for name in ("index", "record", "num_tokens"):
        left, right = (getattr(each, name)[np.argsort(each.index)] for each in (store, whole))
        np.testing.assert_array_equal(left, right)
    assert left_of(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda pool, options: Path(pool[1]).write_text(Path(pool[1]).read_text() + "\n"),
        lambda pool, options: options.update(max_length=30),
        lambda pool, options: options.update(chat_template="none"),
        lambda pool, options: options.update(tokenizer=make_tokenizer(chat_template=CHAT)),
    ],
    ids=["data", "length", "template", "tokenizer"],
)
def test_tokens_of_other_data_settings_or_tokenizers_are_made_anew(
    change, pool, tmp_path, monkeypatch, counted
):
    as_rank(monkeypatch, 0, 2)
    options = {}
    extracted(pool, tmp_path / "s")
    change(pool, options)
    cache = TokenCache.of(tmp_path / "s", None)
    before = cache.path.read_bytes()
    reading = read_text(*pool, Settings.of({"device": "cpu", **options}, extract), cache=cache)
    assert len(reading.samples) == 12
    assert len(counted) == 2
    assert cache.path.read_bytes() != before
    again = read_text(*pool, Settings.of({"device": "cpu", **options}, extract), cache=cache)
    assert len(counted) == 2
    assert again.provenance == reading.provenance
    assert_same(list(again.samples), list(reading.samples))
    assert [again.hashed(row) for row in range(12)] == [reading.hashed(row) for row in range(12)]


@pytest.mark.parametrize("place", ["first", "middle", "end", "cut", "empty", "more", "link", "head"])
def test_a_damaged_file_is_made_anew(place, pool, tmp_path, counted):
    cache = TokenCache.of(tmp_path / "s", None)
    options = Settings.of({"device": "cpu"}, extract)
    expected = list(read_text(*pool, options, cache=cache).samples)
    content = bytearray(cache.path.read_bytes())
    if place == "cut":
        content = content[: len(content) // 2]
    elif place == "empty":
        content = b""
    elif place == "more":
        content += bytes(8)
    elif place == "head":
        content[-48:-40] = (1 << 62).to_bytes(8, "little")
    elif place == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        cache.path.unlink()
        cache.path.symlink_to(tmp_path / "elsewhere")
        content = None
    else:
        content[{"first": 0, "middle": len(content) // 2, "end": -len(MAGIC) - 3}[place]] ^= 1
    if content is not None:
        cache.path.write_bytes(content)
    assert_same(list(read_text(*pool, options, cache=cache).samples), expected)
    assert len(counted) == 2
    assert TokenFile.open(cache.path).is_whole()


def test_what_contradicts_itself_is_no_file_of_tokens(tmp_path):
    examples = [Example(0, np.full(4, 5, np.int32), np.full(4, 5, np.int32), 3)]
    whole = bytes(in_file(examples)._content)
    for end in range(0, len(whole), 7):
        (tmp_path / "t").write_bytes(whole[:end])
        assert TokenFile.open(tmp_path / "t") is None
    assert TokenFile.open(tmp_path) is None
    assert TokenFile.open(tmp_path / "none") is None


def test_a_run_that_was_stopped_goes_on_without_reading(pool, tmp_path, counted, monkeypatch):
    from spice_rs.extraction.gradients import GradientRun

    original = GradientRun.fill

    def stopped(self, writer, samples, *args, **options):
        original(self, writer, samples[:5], *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(GradientRun, "fill", stopped)
    with pytest.raises(KeyboardInterrupt):
        extracted(pool, tmp_path / "s")
    assert left_of(tmp_path) == ["s"]
    monkeypatch.setattr(GradientRun, "fill", original)
    assert len(extracted(pool, tmp_path / "s")) == 12
    assert len(counted) == 1
    assert left_of(tmp_path) == []


def test_what_is_refused_leaves_no_tokens(pool, tmp_path, counted):
    with pytest.raises(InvalidInputError):
        extracted(pool, tmp_path / "s", target_modules="nothing")
    assert len(counted) == 1
    assert left_of(tmp_path) == []
    extracted(pool, tmp_path / "s")
    with pytest.raises(spice_rs.StoreMismatchError):
        extracted(pool, tmp_path / "s", max_length=30)
    assert left_of(tmp_path) == []


def test_data_in_memory_are_read_by_each(pool, tmp_path, monkeypatch, counted):
    for number in (0, 1):
        as_rank(monkeypatch, number, 2)
        store = extracted((pool[0], make_records(12)), tmp_path / "s")
    assert counted == [None, None]
    assert len(store) == 12
    assert left_of(tmp_path) == []


def test_data_that_change_while_they_are_read_are_shared_with_nobody(pool, tmp_path, monkeypatch):
    original = inputs.fingerprint_and_hashes

    def late(records):
        with open(pool[1], "a") as file:
            file.write("\n")
        return original(records)

    monkeypatch.setattr(inputs, "fingerprint_and_hashes", late)
    cache = TokenCache.of(tmp_path / "s", None)
    assert len(read_text(*pool, Settings.of({"device": "cpu"}, extract), cache=cache).samples) == 12
    assert left_of(tmp_path) == []


def test_a_data_set_of_datasets_is_shared_too(pool, tmp_path, monkeypatch, counted):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(make_records(12)).save_to_disk(tmp_path / "pool")
    for number in (0, 1):
        as_rank(monkeypatch, number, 2)
        store = extracted((pool[0], str(tmp_path / "pool")), tmp_path / "s")
    assert len(counted) == 1
    assert len(store) == 12


def test_a_folder_of_ones_own_for_tokens(pool, tmp_path, monkeypatch, counted):
    (tmp_path / "fast").mkdir()
    for out in (tmp_path / "a" / "s", tmp_path / "b" / "s"):  # two stores of one name
        as_rank(monkeypatch, 0, 2)
        extracted(pool, out, cache_dir=tmp_path / "fast")
    assert len(left_of(tmp_path / "fast")) == 2
    assert left_of(tmp_path / "a") == []
    with pytest.raises(InvalidInputError, match=r"cache_dir: found no folder .*none"):
        extracted(pool, tmp_path / "c", cache_dir=tmp_path / "none")


# --- room --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_full_disk_is_said_and_leaves_nothing(after, pool, tmp_path, monkeypatch):
    left = [after]
    original = scratch.put

    def full(file, content):
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        original(file, content)

    monkeypatch.setattr(scratch, "put", full)
    with pytest.raises(
        InvalidInputError, match=r"No space left on device.*name another one: in cache_dir"
    ) as caught:
        extracted(pool, tmp_path / "s")
    assert str(tmp_path) in str(caught.value)
    monkeypatch.setattr(scratch, "put", original)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["pool.jsonl"]
    assert len(extracted(pool, tmp_path / "s")) == 12


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"not-there: found no room for the tokens of the data"):
        Scratch(tmp_path / "not-there")
    assert scratch_folder(None, None) is None
    assert scratch_folder(tmp_path / "a" / "b", None) == tmp_path


# --- real processes ----------------------------------------------------------------------------------------------


def start(pool, out, number, count, **environment):
    names = {"RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    words = ["--model", pool[0], "--data", pool[1], "--out", str(out), "--dim", "32", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "spice_rs", "extract", *words, "--no-progress"],
        env={**os.environ, **names, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs flock and SIGKILL")
def test_the_others_go_on_where_the_one_that_reads_is_killed(pool, tmp_path):
    with open(pool[1], "a") as file:
        file.writelines(json.dumps(each) + "\n" for each in make_records(1000))
    out = tmp_path / "s"
    first = start(pool, out, 0, 2)
    lock = Path(f"{TokenCache.of(out, None).path}.lock")
    deadline = time.monotonic() + 120
    while not lock.exists() and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first.kill()
    first.communicate()
    rest = [start(pool, out, number, 2) for number in (1, 0)]
    said = [each.communicate(timeout=200) for each in rest]
    assert [each.returncode for each in rest] == [0, 0], said
    assert len(spice_rs.GradientStore(out)) == 1012
    assert left_of(tmp_path) == []


@pytest.mark.slow
def test_picks_are_shown_without_holding_the_records(tmp_path):
    """Of a million records the picks alone are in memory, and of columns each text once."""
    path = tmp_path / "pool.jsonl"
    with path.open("w") as file:
        for row in range(20_000):
            record = {"instruction": "a b c " * 40, "output": str(row), "source": f"source {row % 3} " * 8}
            file.write(json.dumps(record) + "\n")
    rows = np.arange(20_000)
    selection = spice_rs.select(np.random.default_rng(0).normal(size=(20_000, 4)), 5, progress=False)

    def peak(work):
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1] / len(rows)
        finally:
            tracemalloc.stop()

    assert peak(lambda: list(pick_lines(selection, str(path)))) < 20
    source = open_source(np.zeros((20_000, 4)))
    given = {"groups": "source"}
    assert peak(lambda: Columns(source, str(path), given)) < 60


def test_reading_and_tokenising_are_shown_unless_nothing_is(pool, tmp_path, capfd):
    extracted(pool, tmp_path / "a", progress=True)
    shown = capfd.readouterr().err
    assert "read:" in shown
    assert "tokenise:" in shown
    extracted(pool, tmp_path / "b", progress=False)
    assert capfd.readouterr().err == ""


def test_few_letters_are_tokenised_at_once():
    """A call of a tokenizer cannot be stopped."""
    records = load_records([{"text": "a" * 100_000}] * 9 + [{"text": "a"}] * 1200)
    sizes = [len(chunk) for chunk in _chunks(records)]
    assert sum(sizes) == 1209
    assert max(sizes) <= 512
    assert max(sizes[:3]) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_the_lock_is_not_waited_for(tmp_path):
    cache = TokenCache.of(tmp_path / "s", None)
    os.mkfifo(f"{cache.path}.lock")

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        with cache._locked() as mine:
            assert not mine
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
