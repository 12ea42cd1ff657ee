"""Memory that does not suffice is said before work starts: numbers, what limits it, and no process that is killed."""

import os
import subprocess
import sys

import numpy as np
import pytest

import spice_rs
from spice_rs import InvalidInputError
from spice_rs.analysis import baselines
from spice_rs.memory import check_memory
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import open_source

LIMITED = """
import resource, sys
import numpy as np
import spice_rs

name, more, call = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rows = np.random.default_rng(0).standard_normal((3000, 768), dtype=np.float32)
picks = spice_rs.select(rows[:500], 20, threads=1)
taken = {"RLIMIT_AS": "VmSize:", "RLIMIT_DATA": "VmData:"}[name]
status = open("/proc/self/status").read().split()
limit = 1024 * int(status[status.index(taken) + 1]) + more * 1_000_000
resource.setrlimit(getattr(resource, name), (limit, limit))
calls = {
    "select": lambda: spice_rs.select(rows, 1200, threads=2),
    "certify": lambda: spice_rs.certify(picks, rows[:500], threads=2),
    "curvature": lambda: spice_rs.curvature(rows, threads=2),
    "log_det": lambda: spice_rs.log_det(rows, range(2500)),
}
try:
    calls[call]()
except spice_rs.InvalidInputError as error:
    print("refused:", error)
else:
    print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are read from /proc")
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
@pytest.mark.parametrize("call", ["select", "certify", "curvature", "log_det"])
def test_no_limit_of_the_process_ends_it(name, call):
    ended = []
    for more in (2, 60, 150, 240, 330, 450):
        process = subprocess.run(
            [sys.executable, "-c", LIMITED, name, str(more), call],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        assert process.returncode == 0, (more, process.stdout, process.stderr[-2000:])
        ended.append(process.stdout.split(":")[0].strip())
        if ended[-1] == "refused":
            assert f"({name}, ulimit -" in process.stdout
            assert " MB" in process.stdout
    assert ended[0] == "refused"
    assert set(ended) <= {"refused", "done"}


def test_more_than_any_machine_has_is_refused_in_words():
    with pytest.raises(
        InvalidInputError, match="^k: found 9 picks, which takes some 1000000000.0 GB of memory"
    ):
        check_memory("9 picks", 1e18, "Pick fewer.", field="k")
    check_memory("9 picks", 1e6, "Pick fewer.")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_python_asks_before_it_takes(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((30, 4))
    source = open_source(rows)
    reader = RowReader(source, "none")
    monkeypatch.setattr(reader, "dim", 10**13)
    for work in (
        lambda: baselines.k_center(source.dataset_order(), reader, 3),
        lambda: baselines._similarity(reader),
    ):
        with pytest.raises(InvalidInputError, match="methods: found .* of memory, expected at most the"):
            work()


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    from spice_rs.extraction import memory

    asked = []
    monkeypatch.setattr(memory, "check_memory", lambda found, needed, *_, **__: asked.append((found, needed)))
    memory.check_weights(tmp_path)
    save_file(
        {"a": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float32)}, tmp_path / "model.safetensors"
    )
    save_file({"a": np.zeros((300, 5), np.float16)}, tmp_path / "consolidated.safetensors")
    memory.check_weights(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "no.safetensors"}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        memory.check_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "consolidated.safetensors", "c": "consolidated.safetensors"}}'
    )
    memory.check_weights(tmp_path)
    assert [needed for _, needed in asked] == [4.0 * 22, 4.0 * 1500]


def test_a_selection_within_memory_is_made():
    rows = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    assert len(spice_rs.select(rows, 200)) == 200
