"""What a plan predicts is what a run takes, within 30 %. Time is counted by a clock of the test's own: real time is not
a test (see `benches/planning.py`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

import spice_rs
from command import run as command
from models import COMMON, make_model
from reference import make_data, run
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.extraction import planning
from spice_rs.extraction.gradients import GradientRun
from tiny import make_records

PLAIN = {"projection": "sparse", "dim": 512, "tokens_per_batch": 60}


def near(found, expected):
    return found == pytest.approx(expected, rel=0.3)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that batches have taken: a fixed part, one per token, and one per pair of tokens as in attention."""
    passed = [0.0]
    original = GradientRun.compute

    def compute(self, samples, length=0):
        longest = max(sample.length for sample in samples)
        passed[0] += 0.5 + len(samples) * (0.1 * longest + 0.02 * longest**2)
        return original(self, samples, length)

    monkeypatch.setattr(GradientRun, "compute", compute)
    monkeypatch.setattr(planning, "clock", lambda: passed[0])
    return passed


@pytest.mark.slow
@pytest.mark.parametrize("family", COMMON)
@pytest.mark.parametrize("measure", [4, 8])
def test_time_is_predicted_from_a_few_batches(measure, family, clock, tmp_path):
    model, data = make_model(family), make_data(300)
    found = spice_rs.plan(model, data, measure=measure, **PLAIN)
    assert found.measured == measure
    assert found.batches > 5 * measure
    clock[0] = 0.0
    run(model, data, tmp_path / "s", **PLAIN)
    assert near(found.seconds, clock[0])
    assert near(found.rows_per_second, 300 / clock[0])
    assert near(found.hours, clock[0] / 3600)
    assert found.tokens == sum(len(item["input_ids"]) for item in data)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_disk_is_predicted(dtype, tmp_path):
    model, data = make_model(), make_data(50)
    found = spice_rs.plan(model, data, dim=2048, dtype=dtype, projection="sparse")
    store = run(model, data, tmp_path / "s", dim=2048, dtype=dtype, projection="sparse")
    assert near(found.disk, store.info()["bytes"])


@pytest.mark.slow
def test_rows_that_are_there_do_not_count_and_nothing_is_left_behind(tmp_path):
    model, data = make_model(), make_data(20)
    assert spice_rs.plan(model, data, tmp_path / "s", **PLAIN, dtype="float32").rows == 20
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    assert spice_rs.plan(model, data, tmp_path / "empty", **PLAIN).rows == 20
    (tmp_path / "empty").rmdir()
    run(model, data, tmp_path / "s", **PLAIN, limit=12)
    before = sorted(tmp_path.rglob("*"))
    found = spice_rs.plan(model, data, tmp_path / "s", **PLAIN, dtype="float32")
    assert found.rows == 8
    assert sorted(tmp_path.rglob("*")) == before
    run(model, data, tmp_path / "s", **PLAIN, dtype="float32")
    done = spice_rs.plan(model, data, tmp_path / "s", **PLAIN, dtype="float32")
    assert (done.rows, done.seconds, done.disk, done.batches) == (0, 0, 0, 0)
    assert str(done)


@pytest.mark.parametrize("change", [{"dim": 256}, {"seed": 1}, {"norms": True}, {"dtype": "float32"}])
def test_a_store_that_the_run_would_refuse_is_refused(change, tmp_path):
    model, data = make_model(), make_data(6)
    run(model, data, tmp_path / "s", **PLAIN, dtype="float16")
    with pytest.raises(StoreMismatchError):
        spice_rs.plan(model, data, tmp_path / "s", **{**PLAIN, "dtype": "float16", **change})


def test_processes_share_the_time_and_not_the_memory(clock):
    model, data = make_model(), make_data(300)
    one, four = (spice_rs.plan(model, data, processes=count, **PLAIN) for count in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4, rel=0.1)
    assert four.rows_per_second == pytest.approx(4 * one.rows_per_second, rel=0.1)
    assert near(four.memory, one.memory)
    assert four.rows == one.rows


@pytest.mark.slow
def test_batches_that_do_not_fit_are_planned_smaller(monkeypatch):
    original = GradientRun.compute

    def limited(self, samples, length=0):
        if len(samples) > 3:
            raise RuntimeError("out of memory")
        return original(self, samples, length)

    monkeypatch.setattr(GradientRun, "compute", limited)
    found = spice_rs.plan(make_model(), make_data(40), projection="sparse", dim=64, tokens_per_batch=400)
    assert found.tokens_per_batch <= 3 * 19
    assert found.batches >= 13


def test_wrong_arguments_are_named():
    for options, word in (({"measure": 0}, "measure"), ({"processes": -1}, "processes")):
        with pytest.raises(InvalidInputError, match=word):
            spice_rs.plan(make_model(), make_data(2), **options)
    with pytest.raises(TypeError, match="colour"):
        spice_rs.plan(make_model(), make_data(2), colour=1)


def test_bytes_are_planned_too():
    sizes = [
        spice_rs.plan(make_model(), make_data(2), dim=4096, dtype=dtype).disk for dtype in ("int8", "float16")
    ]
    assert sizes[1] - sizes[0] == 2 * 4096


def test_the_command_prints_a_table(proxy, tmp_path, capsys):
    data = tmp_path / "pool.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in make_records(30)), encoding="utf-8")
    arguments = ["plan", "--model", proxy, "--data", data, "--dim", 64, "--measure", 3]
    assert command(*arguments, "--out", tmp_path / "store") == 0
    rows = dict(
        re.split(r"  +(?=\S)", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]
    )
    found = {name.strip(): value.strip() for name, value in rows.items()}
    assert found["rows to compute"] == "30"
    assert {"rows/s", "tokens/s", "time", "disk", "memory"} <= found.keys()
    assert re.fullmatch(
        r"[\d.]+ kB of tokens \(\S+/store\.tokens-\S+\), before it [\d.]+ kB of records",
        found["disk until it ends"],
    )
    assert not (tmp_path / "store").exists()
    assert command(*arguments, "--measure", 0) == 2


PEAK = """
import resource, sys
import spice_rs
data, proxy, what, out = sys.argv[1:]
options = {"dim": 1 << 16, "device": "cpu"}
if what == "plan":
    print(spice_rs.plan(proxy, data, **options).memory)
else:
    spice_rs.extract(proxy, data, out, progress=False, **options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts kibibytes")
def test_memory_is_predicted(proxy, tmp_path):
    data = tmp_path / "pool.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in make_records(200)), encoding="utf-8")
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(data), str(proxy), what, str(tmp_path / "store")],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            ).stdout
        )
        for what in ("plan", "extract")
    ]
    assert near(*peaks), peaks
