"""The command line: one line per user error, JSON Lines out, options that follow the functions."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

import pools
import spice_rs
from command import run

ROWS = pools.law("opposed", 50, 8, 3)


@pytest.fixture
def pool(tmp_path):
    """A store and the data it stands for."""
    with spice_rs.GradientStore.create(tmp_path / "store", dim=8, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(50))
    records = [{"id": f"r{i}", "instruction": f"do {i}", "response": f"döne {i}"} for i in range(50)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def test_picks_are_records_with_one_more_key(pool):
    assert (
        run("select", pool / "store", "-k", 5, "--data", pool / "pool.jsonl", "--out", pool / "picks.jsonl")
        == 0
    )
    sel = spice_rs.select(pool / "store", 5)
    lines = [json.loads(line) for line in (pool / "picks.jsonl").read_text().splitlines()]
    for rank, line in enumerate(lines):
        row = int(sel.indices[rank])
        assert line == {
            "id": f"r{row}",
            "instruction": f"do {row}",
            "response": f"döne {row}",
            "spice": {
                "index": row,
                "rank": rank,
                "gain": sel.gains[rank],
                "conflict": sel.conflict[rank],
                "score": sel.scores[rank],
            },
        }
    assert len(lines) == 5


def test_picks_without_data_go_to_stdout(pool, capsys):
    assert run("select", pool / "store", "-k", 3, "--conflict-penalty", 0.5) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    expected = spice_rs.select(pool / "store", 3, conflict_penalty=0.5)
    assert [line["index"] for line in lines] == expected.indices.tolist()
    assert list(lines[0]) == ["index", "rank", "gain", "conflict", "score"]
    assert "3 of 50 rows" in err


def test_every_setting_of_select_is_an_option(pool, capsys):
    np.save(pool / "rows.npy", ROWS)
    ROWS.tofile(pool / "rows.bin")
    settings = [
        "--alpha",
        2,
        "--fisher",
        "diagonal",
        "--normalize",
        "unit",
        "--search",
        "eager",
        "--threads",
        1,
    ]
    assert run("select", pool / "rows.npy", "-k", 4, *settings) == 0
    npy = capsys.readouterr().out
    assert run("select", pool / "rows.bin", "-k", 4, *settings, "--dim", 8, "--dtype", "float32") == 0
    assert capsys.readouterr().out == npy
    expected = spice_rs.select(ROWS, 4, alpha=2, fisher="diagonal", normalize="unit")
    assert [json.loads(line)["index"] for line in npy.splitlines()] == expected.indices.tolist()
    assert run("select", pool / "store", "--pool-size", 10, "--select-per-window", 2, "--seed", 3) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert run("select", pool / "store", "--early-stop", 0.5) == 0


def test_a_selection_is_saved_and_a_run_resumed(pool, capsys):
    saved, checkpoint = pool / "sel.safetensors", pool / "run.safetensors"
    assert run("select", pool / "store", "-k", 9, "--save", saved, "--checkpoint", checkpoint) == 0
    whole = spice_rs.select(pool / "store", 9)
    for file in (saved, checkpoint):
        loaded = spice_rs.Selection.load(file, pool / "store")
        assert loaded.indices.tolist() == whole.indices.tolist()
        assert loaded.settings == whole.settings
    before = capsys.readouterr().out
    assert run("select", pool / "store", "-k", 12, "--checkpoint", checkpoint, "--time-limit", 60) == 0
    assert capsys.readouterr().out.startswith(before)
    assert len(spice_rs.Selection.load(checkpoint)) == 12
    assert run("select", pool / "store", "-k", 12, "--checkpoint", checkpoint, "--alpha", 2) == 2
    assert "alpha: found 1.0, expected 2.0" in capsys.readouterr().err
    assert run("select", pool / "store", "-k", 3, "--time-limit", 1e-9) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "0 of 50 rows" in captured.err
    assert "stopped at the time limit" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["select", "{pool}/store", "-k", "3", "--save", "{pool}/none/sel"], "none"),
        (["select", "{pool}/store", "-k", "3", "--checkpoint", "{pool}"], "a folder"),
        (["select", "{pool}/store", "-k", "3", "--checkpoint", "{pool}/pool.jsonl"], "expected a selection"),
        (["select", "{pool}/store", "-k", "3", "--time-limit", "0"], "--time-limit: found 0"),
        (["select", "{pool}/store", "-k", "0"], "-k: found 0"),
        (["select", "{pool}/store", "-k", "51"], "-k: found 51"),
        (["select", "{pool}/store", "-k", "3", "--alpha", "-1"], "--alpha: found -1"),
        (["select", "{pool}/store"], "-k: found none"),
        (["select", "{pool}", "-k", "3"], "store"),
        (["select", "{pool}/none", "-k", "3"], "no such file or folder"),
        (["select", "{pool}/store", "-k", "3", "--data", "{pool}/none.jsonl"], "none.jsonl"),
        (["select", "{pool}/store", "-k", "3", "--data", "{pool}/short.jsonl"], "found no record"),
        (["select", "{pool}/store", "-k", "3", "--data", "{pool}/taken.jsonl"], "'spice'"),
        (["select", "{pool}/store", "-k", "3", "--out", "{pool}/none/picks.jsonl"], "none"),
        (["info", "{pool}"], "store"),
        (["verify", "{pool}/none"], "store"),
        (["demo", "{pool}/demo", "--samples", "3"], "of at least 20"),
    ],
)
def test_user_errors_take_one_line_and_exit_with_2(pool, capsys, arguments, says, monkeypatch):
    monkeypatch.chdir(pool)
    lines = (pool / "pool.jsonl").read_text().splitlines(keepends=True)
    (pool / "short.jsonl").write_text("".join(lines[:1]))
    (pool / "taken.jsonl").write_text(
        "".join(json.dumps({**json.loads(line), "spice": 1}) + "\n" for line in lines)
    )
    assert run(*[a.format(pool=pool) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err


def test_a_damaged_store_is_found_by_verify(pool, capsys):
    assert run("verify", pool / "store") == 0
    assert "sound" in capsys.readouterr().out
    shard = next((pool / "store").glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert run("verify", pool / "store") == 2
    assert shard.name in capsys.readouterr().err


def test_info_prints_what_the_store_is(pool, capsys):
    assert run("info", pool / "store", "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["rows"], info["dim"], info["dtype"]) == (50, 8, "float32")
    assert run("info", pool / "store") == 0
    assert "float32" in capsys.readouterr().out


def test_warnings_are_one_line_on_stderr(pool, capsys):
    np.save(pool / "rows.npy", np.abs(ROWS))
    assert run("select", pool / "rows.npy", "-k", 5, "--conflict-penalty", 0.1) == 0
    err = capsys.readouterr().err
    assert "spice-rs: warning: --conflict-penalty 0.1 changed none" in err
    assert ".py" not in err.replace("rows.npy", "")


@pytest.mark.parametrize("command", [[], ["select"], ["compare"], ["info"], ["verify"], ["demo"]])
def test_help_needs_no_torch_and_says_something_of_every_option(command):
    script = f"""
import sys
sys.modules["torch"] = None
from spice_rs.cli import main
main({[*command, "--help"]!r})
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if command == ["select"]:
        for name in inspect.signature(spice_rs.select).parameters:
            if name != "source":
                flag = f"-{name} " if len(name) == 1 else f"-{name.replace('_', '-')}"
                assert flag in result.stdout.replace("[no-]", "")
        assert "(default: 0.1; 0 with --target or --represent)" in result.stdout
        assert "Weight" in result.stdout or "weight λ" in result.stdout


def test_without_torch_extract_says_what_to_install():
    script = """
import sys
sys.modules["torch"] = None
from spice_rs.cli import main
sys.exit(main(["extract", "--model", "m", "--data", "d", "--out", "o"]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_module_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "spice_rs", "--version"], capture_output=True, text=True)
    assert result.stdout.startswith("spice-rs 0.")


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    np.save(tmp_path / "rows.npy", pools.law("opposed", 3000, 4, 0))
    command = [sys.executable, "-m", "spice_rs", "select", str(tmp_path / "rows.npy"), "-k", "3000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith('{"index"')
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(30) == 141
    assert "Broken pipe" not in err
    assert "Exception" not in err


def test_messages_of_several_lines_become_one(monkeypatch, capsys):
    def fail(*_, **__):
        raise spice_rs.InvalidInputError("first\nsecond\n   third")

    monkeypatch.setattr(spice_rs.GradientStore, "__init__", fail)
    assert run("info", "store") == 2
    assert capsys.readouterr().err == "spice-rs: first second third\n"


def test_a_command_leaves_the_callers_warnings_as_they_were(pool):
    before = warnings.showwarning
    assert run("info", pool / "store") == 0
    assert warnings.showwarning is before
