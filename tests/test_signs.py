"""Signs of life on stderr, movement within a batch, and a standard output that is the command's alone."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import spice_rs
from command import run
from models import make_model
from reference import make_data
from spice_rs import cli, signs, streams
from spice_rs.extraction.movement import Movement
from tiny import make_records


@pytest.fixture
def heard(monkeypatch):
    """What is said, with little patience."""
    said: list[str] = []
    monkeypatch.setattr(signs, "FIRST", 0.05)
    monkeypatch.setattr(signs, "PATIENCE", 0.05)
    monkeypatch.setattr(signs.Listener, "say", lambda self, what: said.append(what))
    return said


def test_steps_that_take_long_are_said_once_and_short_ones_and_seen_ones_never(heard):
    signs.step("nobody listens")
    with signs.heard("at once"):
        for what in ("short", "long"):
            signs.step(what)
        time.sleep(0.3)
        signs.step("seen")
        signs.seen()
        time.sleep(0.3)
        signs.step("last")
    assert heard == ["at once", "long"]
    assert signs._listener is None


def test_a_step_is_said_while_the_core_works(heard):
    with signs.heard():
        spice_rs.select(np.random.default_rng(0).standard_normal((30_000, 64), dtype=np.float32), 800)
    assert any(what.startswith("read: 30,000 rows") or what.startswith("select: 800 picks") for what in heard)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["extract", "plan", "doctor", "run"])
def test_what_loads_torch_says_so_before(command, tmp_path):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in make_records(3)))
    none = str(tmp_path / "none")  # no model, which is found out after that
    process = subprocess.Popen(
        [sys.executable, "-m", "spice_rs", command, "--model", none, "--data", str(tmp_path / "pool.jsonl")]
        + (["--out", str(tmp_path / "s")] if command in ("extract", "run") else []),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "spice-rs: loading torch and transformers …\n"
    assert process.poll() is None  # long before it is done
    out, err = process.communicate(timeout=120)
    assert (out, err.count("\n"), process.returncode) == ("", 1, 2)


@pytest.mark.slow
def test_long_commands_tell_their_steps(heard, proxy, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(signs.Listener, "begin", lambda self, what: told.append(what))
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in make_records(20)))
    model = ("--model", proxy, "--data", tmp_path / "pool.jsonl", "--min-coverage", 0)
    steps = {}
    for command, more in {
        "plan": (),
        "doctor": (),
        "extract": ("--out", tmp_path / "s"),
        "select": (tmp_path / "s", "-k", 3, "--out", tmp_path / "p.jsonl", "--save", tmp_path / "sel"),
        "certify": (tmp_path / "sel", tmp_path / "s"),
        "curvature": (tmp_path / "s",),
        "compare": (tmp_path / "s", "-k", 2),
        "report": (tmp_path / "sel", tmp_path / "s", "--out", tmp_path / "r.html"),
        "verify": (tmp_path / "s",),
        "repair": (tmp_path / "s",),
        "export": (tmp_path / "s", tmp_path / "rows.npy"),
    }.items():
        told.clear()
        assert run(command, *(model if command in ("plan", "doctor", "extract") else ()), *more) == 0
        steps[command] = list(told)
    for command in ("plan", "doctor", "extract"):
        read = ["read", f"reading {tmp_path / 'pool.jsonl'}", "loading the model", "tokenise: 20 records"]
        assert [each for each in steps[command] if each in read] == read
    assert "measuring batch 1 of 1" in steps["plan"]
    assert "the same rows by plain autograd" in steps["doctor"]
    assert steps["extract"][-1] == "extract: 342 tokens"
    assert "read: 20 rows" in steps["select"]
    assert all(steps.values()), steps


class Counter:
    """A bar that keeps its states."""

    def __init__(self):
        self.states = [0]

    def update(self, n=1):
        self.states.append(self.states[-1] + n)


def test_tokens_are_counted_within_a_batch():
    bar = Counter()
    moving = Movement(bar, 4)
    moving.begin(100)
    for _ in range(6):  # more than was thought
        moving()
    assert bar.states == [0, 20, 40, 60, 80]
    moving.begin(50)  # it did not fit, and is made smaller
    moving()
    assert bar.states[-1] == 10
    moving.end(50)
    moving.begin(30)
    moving()
    moving.end(30)
    assert bar.states[-1] == 80


def test_the_first_batch_moves_before_it_ends(monkeypatch, tmp_path):
    from spice_rs.extraction import gradients

    bars: list[Counter] = []

    def bar(progress, *, total, **_):
        bars.append(Counter())
        bars[-1].total = total
        bars[-1].close = bars[-1].set_postfix_str = lambda *_, **__: None
        return bars[-1]

    monkeypatch.setattr(gradients, "bar", bar)
    spice_rs.extract(make_model(), make_data(6), tmp_path / "s", dim=16, tokens_per_batch=10**6)
    (shown,) = bars
    assert shown.states[-1] == shown.total
    assert len(shown.states) > 6  # in one batch
    assert shown.states == sorted(shown.states)


NOISY = """
import ctypes, logging, sys, warnings
from spice_rs import cli
parsers = cli._parsers
def noisy(called):
    found = parsers(called)
    print("while loading", flush=True)
    from spice_rs.extraction import loading
    loading.load_model, noisily.load = noisily, loading.load_model
    return found
cli._parsers = noisy
def noisily(*args, **options):
    print("printed", flush=True)
    ctypes.CDLL(None).puts(b"put by C")
    ctypes.CDLL(None).fflush(None)
    logging.getLogger("transformers").error("logged")
    warnings.warn("warned")
    import tqdm
    for _ in tqdm.tqdm(range(3), desc="their bar"):
        pass
    return noisily.load(*args, **options)
print("before", flush=True)
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", [None, "--progress", "--no-progress"])
def test_standard_output_is_ours_alone_and_files_get_no_bars_unasked(flag, proxy, tmp_path):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in make_records(5)))
    options = ["--model", str(proxy), "--data", str(tmp_path / "pool.jsonl"), "--min-coverage", "0"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            NOISY,
            "extract",
            *options,
            "--out",
            str(tmp_path / "s"),
            *([] if flag is None else [flag]),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"before\n{tmp_path / 's'}: 5 rows")
    assert done.stdout.endswith("of those meant\n")
    assert done.stdout.count("\n") == 3
    assert "while loading\n" in done.stderr
    assert "printed\n" in done.stderr
    assert "put by C\n" in done.stderr
    assert "warned" not in done.stderr
    for text in ("logged", "spice-rs: "):
        assert (text in done.stderr) == (flag != "--no-progress"), text
    for bar in ("their bar", "Loading weights"):
        assert (bar in done.stderr) == (flag == "--progress"), bar


@pytest.mark.parametrize("typed", [[], ["info", "nowhere"]])
def test_a_call_leaves_the_environment_as_it_was(typed, monkeypatch, capsys):
    """Also where the process was started with the same words, or without one, as the tests may be."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["spice-rs", *typed])
    before = dict(os.environ)
    assert cli.main(typed) == 2
    assert dict(os.environ) == before
    assert cli.main() == 2
    assert dict(os.environ) == before


def test_json_in_a_pipe_is_json_whatever_is_printed(tmp_path, monkeypatch, capsys):
    rows = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    compare = spice_rs.compare

    @functools.wraps(compare)
    def noisily(*args, **options):
        print("from a library")
        return compare(*args, **options)

    monkeypatch.setattr(spice_rs, "compare", noisily)
    assert run("compare", tmp_path / "x.npy", "-k", 2, "--methods", "random", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert "from a library\n" in err
    assert run("select", tmp_path / "x.npy", "-k", 2) == 0
    assert [json.loads(line)["rank"] for line in capsys.readouterr().out.splitlines()] == [0, 1]


def test_standard_output_comes_back_whatever_happens(capfd):
    before = sys.stdout
    for descriptor in (False, True):
        with pytest.raises(LookupError), streams.ours_alone(descriptor=descriptor):
            print("ours", file=streams.stdout(), flush=True)
            print("theirs")
            os.system("echo of a process")
            raise LookupError
        assert sys.stdout is before
        assert streams.stdout() is before
