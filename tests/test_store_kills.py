"""Writers and compactions killed by SIGKILL at random moments: no committed row is lost, twice or in part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import killer
from counts import some
from spice_rs import GradientStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


def test_what_was_committed_survives_kills(tmp_path: Path) -> None:
    kills = some(400)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, killer.__file__, str(tmp_path), str(kills), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    counts = dict(pair.split("=") for pair in done.stdout.split())
    assert sum(map(int, counts.values())) >= kills
    assert int(counts["write"]) >= kills // 2
    assert int(counts["compact"]) >= kills // 20

    store = tmp_path / "store"
    rows = killer.check(tmp_path)
    assert rows > kills
    found = GradientStore(store).verify()
    assert found["leftovers"] == sorted(name for name in os.listdir(store) if name.startswith(".tmp-"))
    repaired = GradientStore.repair(store)
    removed = found["leftovers"] + found["superseded"]
    assert repaired == {"removed": removed, "kept": [], "damaged": [], "duplicates": []}
    found = GradientStore(store).verify()
    assert (found["leftovers"], found["superseded"]) == ([], [])
    assert {name for name in os.listdir(store) if not name.startswith("shard-")} == {"store.json", ".lock"}
    assert killer.check(tmp_path) == rows
