"""The command line on a tiny model, and on what people give it by mistake: exit code 2, one message, no traceback."""

from __future__ import annotations

import gzip
import json
import re

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers

import pools
import spice_rs
from command import run
from spice_rs.progress import libraries_silent
from tiny import make_records

DIM = 64


RECORDS = make_records(12)
LINES = [json.dumps(record, ensure_ascii=False).encode() for record in RECORDS]


def text_of(lines) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def with_line_4(line: bytes) -> bytes:
    """The good lines, and this one among them."""
    return text_of([*LINES[:3], line, *LINES[3:]])


def extract(proxy, data, out, *more) -> int:
    usual = () if "--dim" in more else ("--dim", DIM)
    return run("extract", "--model", proxy, "--data", data, "--out", out, *usual, "--no-progress", *more)


def said(capsys) -> str:
    """What the command had to say: one message, two lines at most."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "spice-rs: " in err
    message = err[err.index("spice-rs: ") :].strip()  # loading a model draws bars before it
    assert len(message.splitlines()) <= 2, message
    return message


def rows_of(path):
    """(n, dim) rows in the order of the data."""
    store = spice_rs.GradientStore(path)
    return store.read(np.argsort(store.index))


# --- extract -----------------------------------------------------------------------------------------------------


def test_extract_then_select_leads_from_data_to_picks(proxy, tmp_path, capsys):
    data, out = tmp_path / "pool.jsonl", tmp_path / "store"
    data.write_bytes(text_of(LINES))
    assert extract(proxy, data, out) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first == f"{out}: 12 rows × {DIM} columns, float16"
    # The norms are 160 weights of 15,520.
    assert second == "gradients of 15,360 parameters in 14 layers: 99.0% of those meant"
    assert "spice-rs:" not in captured.err
    store = spice_rs.GradientStore(out)
    assert sorted(store.index.tolist()) == list(range(12))
    expected = [len(record["response"].split()) + 1 for record in RECORDS]  # the end token too
    assert store.num_tokens[np.argsort(store.index)].tolist() == expected
    assert run("verify", out) == 0
    assert run("select", out, "-k", 4, "--data", data, "--out", tmp_path / "picks.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "picks.jsonl").read_text("utf-8").splitlines()]
    picks = [line.pop("spice")["index"] for line in lines]
    assert picks == spice_rs.select(out, 4).indices.tolist()
    assert lines == [RECORDS[row] for row in picks]


@pytest.mark.parametrize("command", ["extract", "plan", "doctor", "run"])
@pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")
def test_bars_of_libraries_are_for_terminals_and_for_those_who_ask(command, proxy, tmp_path, capsys):
    data = tmp_path / "pool.jsonl"
    data.write_bytes(text_of(LINES))
    arguments = [command, "--model", proxy, "--data", data]
    if command == "run":
        arguments += ["--pool-size", 6, "--select-per-window", 2, "--interval", 1, "--dim", DIM]
    for number, (flags, shown) in enumerate(
        ((["--no-progress"], False), ([], False), (["--progress"], True))
    ):
        place = ["--out", tmp_path / f"out-{number}"] if command != "doctor" else []
        assert run(*arguments, *place, *flags) == 0
        assert ("Loading weights" in capsys.readouterr().err) == shown
        assert transformers.utils.logging.is_progress_bar_enabled()
        assert not huggingface_hub.utils.are_progress_bars_disabled()


@pytest.mark.parametrize("before", [True, False])
def test_bars_of_libraries_are_as_they_were_afterwards(before):
    hub, bars = huggingface_hub.utils, transformers.utils.logging
    try:
        (hub.enable_progress_bars if before else hub.disable_progress_bars)()
        for progress in (False, None, True):
            with pytest.raises(KeyboardInterrupt), libraries_silent(progress):
                assert bars.is_progress_bar_enabled() == (progress is not False)
                assert hub.are_progress_bars_disabled() == (progress is False or not before)
                assert datasets.are_progress_bars_disabled() == (progress is False)
                raise KeyboardInterrupt
            assert bars.is_progress_bar_enabled()
            assert hub.are_progress_bars_disabled() == (not before)
            assert not datasets.are_progress_bars_disabled()
    finally:
        hub.enable_progress_bars()


def test_extracting_again_adds_nothing(proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    for _ in range(2):
        assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "store") == 0
        assert "12 rows" in capsys.readouterr().out
    assert len(list((tmp_path / "store").glob("shard-*"))) == 1


def test_compressed_data_gives_the_same_rows(proxy, tmp_path):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    (tmp_path / "pool.jsonl.gz").write_bytes(gzip.compress(text_of(LINES)))
    assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "s") == 0
    assert extract(proxy, tmp_path / "pool.jsonl.gz", tmp_path / "t") == 0
    np.testing.assert_array_equal(rows_of(tmp_path / "t"), rows_of(tmp_path / "s"))


def test_columns_of_other_names_are_given_by_flag(proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    renamed = [{"q": record["instruction"], "a": record["response"]} for record in RECORDS]
    (tmp_path / "other.jsonl").write_bytes(text_of(json.dumps(record).encode() for record in renamed))
    assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "s") == 0
    assert extract(proxy, tmp_path / "other.jsonl", tmp_path / "t", "--columns", "prompt=q,response=a") == 0
    np.testing.assert_array_equal(rows_of(tmp_path / "t"), rows_of(tmp_path / "s"))
    capsys.readouterr()
    assert extract(proxy, tmp_path / "other.jsonl", tmp_path / "u", "--columns", "prompt") == 2
    assert "NAME=COLUMN" in capsys.readouterr().err


BOMB = b"[" * 200_000
BAD_LINES = {
    "cut short": (b'{"instruction": "a", "respo', "not JSON"),
    "no response": (b'{"instruction": "a"}', "'response'"),
    "no instruction": (b'{"response": "a"}', "'instruction'"),
    "empty response": (b'{"instruction": "a", "response": ""}', "'response'"),
    "blank response": (b'{"instruction": "a", "response": " \\n "}', "'response'"),
    "a number for text": (b'{"instruction": 3, "response": "a"}', "'instruction'"),
    "no object": (b"[1, 2]", "list"),
    "not UTF-8": (b'{"instruction": "\xff", "response": "a"}', "UTF-8"),
    "lists without end": (BOMB, "not JSON"),
    "objects without end": (b'{"instruction":' * 100_000, "not JSON"),
}


@pytest.mark.parametrize(("line", "names"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_record_is_named_by_its_line_and_field(line, names, proxy, tmp_path, capsys):
    data = tmp_path / "pool.jsonl"
    data.write_bytes(with_line_4(line))
    assert extract(proxy, data, tmp_path / "store") == 2
    message = said(capsys)
    assert f"{data}, line 4: " in message
    assert names in message
    assert "--skip-bad" in message
    assert len(message) < 1000  # it shows the start of a long line, not all of it
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("line", [line for line, _ in BAD_LINES.values()], ids=BAD_LINES)
def test_skipping_a_bad_record_counts_it_and_moves_no_other_row(line, proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(with_line_4(line))
    assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "store", "--skip-bad") == 0
    message = said(capsys)
    assert "1 of 13 records were left out" in message
    assert "line 4" in message
    listed = (tmp_path / "store.left-out.jsonl").read_text(encoding="utf-8").splitlines()
    (left_out,) = map(json.loads, listed)
    assert left_out["row"] == 3
    assert f"1 {left_out['reason']}; all in {tmp_path / 'store.left-out.jsonl'}" in message
    store = spice_rs.GradientStore(tmp_path / "store")
    assert sorted(store.index.tolist()) == [*range(3), *range(4, 13)]
    expected = [len(record["response"].split()) + 1 for record in RECORDS]
    assert store.num_tokens[np.argsort(store.index)].tolist() == expected


def test_lines_count_blank_ones_and_rows_do_not(proxy, tmp_path, capsys):
    data = tmp_path / "pool.jsonl"
    data.write_bytes(text_of([LINES[0], b"", LINES[1], b"{", b"  ", LINES[2]]))
    assert extract(proxy, data, tmp_path / "store", "--skip-bad") == 0
    message = said(capsys)
    assert "1 of 4 records" in message
    assert "line 4" in message
    assert sorted(spice_rs.GradientStore(tmp_path / "store").index.tolist()) == [0, 1, 3]


def test_skipping_every_record_is_an_error(proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(b"{\n" * 3)
    assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "store", "--skip-bad") == 2
    message = said(capsys)
    assert "all 3 records" in message
    assert "line 1" in message


PACKED = gzip.compress(text_of(LINES), mtime=0)
FILES = {
    "no records": ("pool.jsonl", b"\n\n"),
    "a JSON list cut short": ("pool.json", b"[" + LINES[0]),
    "a JSON list without end": ("pool.json", BOMB),
    "gzip cut short": ("pool.jsonl.gz", PACKED[:-20]),
    "gzip with another checksum": ("pool.jsonl.gz", PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:]),
    "gzip overwritten inside": ("pool.jsonl.gz", PACKED[:10] + b"\xff" * 20 + PACKED[30:]),
    "no gzip": ("pool.jsonl.gz", text_of(LINES)),
    "no Parquet": ("pool.parquet", text_of(LINES)),
    "an unknown suffix": ("pool.xlsx", b"instruction,response\na,b\n"),
}


@pytest.mark.parametrize("skip", [[], ["--skip-bad"]], ids=["", "skip-bad"])
@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_named_and_never_skipped(name, content, skip, proxy, tmp_path, capsys):
    data = tmp_path / name
    data.write_bytes(content)
    assert extract(proxy, data, tmp_path / "store", *skip) == 2
    message = said(capsys)
    assert str(data) in message
    assert re.search(r"check|correct|copy|download|write it|convert", message)
    assert not (tmp_path / "store").exists()


def test_data_that_is_not_there_is_named(proxy, tmp_path, capsys):
    assert extract(proxy, tmp_path / "none.jsonl", tmp_path / "store") == 2
    message = said(capsys)
    assert f"{tmp_path / 'none.jsonl'}: " in message
    assert "no such file" in message
    assert re.search(r"[Cc]heck", message)
    assert not (tmp_path / "store").exists()


def test_a_model_that_is_not_there_is_named(tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    assert extract(tmp_path / "none", tmp_path / "pool.jsonl", tmp_path / "store") == 2
    message = said(capsys)
    assert f"{tmp_path / 'none'}: " in message
    assert re.search(r"no such (file or )?folder|does not exist|[Cc]heck", message)
    assert "repo_type" not in message  # an argument of another library
    assert not (tmp_path / "store").exists()


def test_a_folder_without_a_model_is_named(proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    (tmp_path / "empty").mkdir()
    assert extract(tmp_path / "empty", tmp_path / "pool.jsonl", tmp_path / "store") == 2
    assert f"{tmp_path / 'empty'}: no causal language model" in said(capsys)
    assert not (tmp_path / "store").exists()


ARGUMENTS = {
    "no device of that name": (["--device", "abacus"], ["device", "'abacus'"]),
    "no columns": (["--dim", "0"], ["--dim: found 0", "at least 1"]),
    "fewer than no columns": (["--dim", "-4"], ["--dim: found -4", "at least 1"]),
    "no rows": (["--limit", "0"], ["--limit: found 0", "at least 1"]),
    "no room for a target": (["--max-length", "1"], ["--max-length: found 1", "at least 2"]),
    "no batch": (["--tokens-per-batch", "0"], ["--tokens-per-batch: found 0", "at least 1"]),
    "no module": (["--target-modules", "x_proj"], ["x_proj", "q_proj"]),
    "a projection that is none": (["--projection", "other"], ["--projection", "'other'", "two_sided"]),
    "a dtype that is none": (["--dtype", "int8"], ["--dtype", "'int8'", "bfloat16"]),
    "a word for a number": (["--dim", "many"], ["--dim", "'many'"]),
}


@pytest.mark.parametrize(("arguments", "names"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_out_of_range_is_named(arguments, names, proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "store", *arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    *_, message = err.strip().splitlines()  # argparse shows the usage before it
    assert "spice-rs" in message
    for name in names:
        assert name in message
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_user_error(proxy, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(text_of(LINES))
    assert extract(proxy, tmp_path / "pool.jsonl", tmp_path / "store", "--device", "cuda") == 2
    message = said(capsys)
    assert "device" in message
    assert "'cuda'" in message
    assert not (tmp_path / "store").exists()


def test_a_store_of_other_settings_is_left_alone(proxy, tmp_path, capsys):
    data, out = tmp_path / "pool.jsonl", tmp_path / "store"
    data.write_bytes(text_of(LINES))
    assert extract(proxy, data, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    for arguments, field in (
        (["--seed", 3], "--seed: found 3, expected 0"),
        (["--max-length", 20], "--max-length: found 20, expected 2048"),
        (["--dtype", "float32"], "--dtype: found 'float32', expected 'float16'"),
        (["--no-completion-only"], "--completion-only: found False, expected True"),
    ):
        assert extract(proxy, data, out, *arguments) == 2
        message = said(capsys)
        assert str(out) in message
        assert field in message
        assert "another folder" in message
    data.write_bytes(text_of(LINES[:-1]))
    assert extract(proxy, data, out) == 2
    assert f"--out: {out} has rows of other data" in said(capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# --- select ------------------------------------------------------------------------------------------------------

ROWS = pools.law("opposed", 50, 8, 3)


@pytest.fixture
def store(tmp_path):
    with spice_rs.GradientStore.create(tmp_path / "store", dim=8, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(50))
    return tmp_path / "store"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_cell_that_is_no_number_is_named_by_row_and_column(value, dtype, tmp_path, capsys):
    rows = ROWS.astype(dtype)
    rows[33, 5] = value
    np.save(tmp_path / "rows.npy", rows)
    assert run("select", tmp_path / "rows.npy", "-k", 3, "--out", tmp_path / "picks.jsonl") == 2
    message = said(capsys)
    assert "row 33, column 5" in message
    assert ("NaN" if np.isnan(value) else "inf") in message
    assert not (tmp_path / "picks.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (np.arange(12).reshape(3, 4), ["int64", "float32"]),
        (np.ones((3, 4), complex), ["complex128", "float32"]),
        (np.array([["a", "b"]]), ["float32"]),
        (np.ones((2, 3, 4), np.float32), ["(2, 3, 4)", "(rows, columns)"]),
        (np.ones(5, np.float32), ["(5,)", "(rows, columns)"]),
        (np.ones((0, 4), np.float32), ["(0, 4)", "(rows, columns)"]),
    ],
    ids=["int64", "complex", "text", "3-D", "1-D", "no rows"],
)
def test_an_array_of_the_wrong_kind_is_named_with_what_was_expected(rows, names, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", rows)
    assert run("select", tmp_path / "rows.npy", "-k", 1) == 2
    message = said(capsys)
    for name in [f"{tmp_path / 'rows.npy'}: ", *names]:
        assert name in message


def test_objects_in_an_array_are_not_unpickled(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    assert run("select", tmp_path / "rows.npy", "-k", 1) == 2
    assert "rows.npy" in said(capsys)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--conflict-penalty", -1], "--conflict-penalty: found -1"),
        (["--conflict-penalty", "nan"], "--conflict-penalty: found"),
        (["--conflict-penalty", "inf"], "--conflict-penalty: found"),
        (["--early-stop", 1.5], "--early-stop: found 1.5"),
        (["--early-stop", 0], "--early-stop: found 0"),
        (["--alpha", 0], "--alpha: found 0"),
        (["--threads", 0], "--threads: found 0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(arguments, names, store, capsys):
    assert run("select", store, "-k", 3, *arguments) == 2
    message = said(capsys)
    assert names in message
    assert "expected" in message


@pytest.mark.parametrize("command", [["select", "-k", "3"], ["info"], ["verify"]], ids=lambda c: c[0])
def test_a_shard_cut_short_is_named(command, store, capsys):
    shard = next(store.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert run(command[0], store, *command[1:]) == 2
    message = said(capsys)
    assert shard.name in message
    assert "expected" in message


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_data_byte_is_found_by_verify(place, store, capsys):
    shard = next(store.glob("shard-*"))
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # of the data, as safetensors has it
    position = {"first": start, "middle": (start + len(data)) // 2, "last": len(data) - 1}[place]
    data[position] ^= 1
    shard.write_bytes(data)
    code = run("select", store, "-k", 3)
    assert code in (0, 2)  # it does not read checksums, but what it reads may make no sense
    assert "Traceback" not in capsys.readouterr().err
    assert run("verify", store) == 2
    assert shard.name in said(capsys)
