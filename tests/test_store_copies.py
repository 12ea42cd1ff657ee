"""Rows that are in a store more than once: copies are dropped by a repair, rows that differ are refused by name."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from command import run
from spice_rs import GradientStore, StoreError
from spice_rs.store.lease import lease
from stores import sealed, split

DIM = 5


def cells(rows: np.ndarray) -> np.ndarray:
    return np.sin(rows[:, None] * 7.0 + np.arange(DIM)).astype(np.float32)


def fill(path: Path, parts: dict[str, list[int]], rows_per_shard: int = 4, **known: bool) -> Path:
    """Writers that do not know of each other, as an extraction that was started twice."""
    writers = {
        name: GradientStore.create(
            path, dim=DIM, provenance={"model": "m"}, writer=name, rows_per_shard=rows_per_shard
        )
        for name in parts
    }
    for name, rows in parts.items():
        index = np.asarray(rows, np.int64)
        record = None if known.get("bare") == name else index * 7
        writers[name].append(cells(index), index, num_tokens=index % 5 + 1, loss=index / 8, record=record)
        writers[name].close()
    return path


def content(path: Path) -> dict[int, tuple]:
    store = GradientStore(path)
    store.verify()
    assert store.provenance == {"model": "m"}
    assert len(np.unique(store.index)) == len(store)
    assert store.loss is not None
    assert store.num_tokens is not None
    rows = store.read(np.arange(len(store)))
    values = zip(store.index, rows.tolist(), store.norm, store.loss, store.num_tokens, strict=True)
    return {int(row): tuple(rest) for row, *rest in values}


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_what_two_writers_wrote_is_there_once_after_a_repair(tmp_path: Path) -> None:
    whole = content(fill(tmp_path / "once", {"a": list(range(10))}))
    path = fill(tmp_path / "twice", {"a": list(range(10)), "b": list(range(10))})
    with pytest.raises(StoreError, match="index 0: found the same row in .*shard-a-000000.* and in .*b-000000"
                       r".*spice-rs repair .*twice"):  # fmt: skip
        GradientStore(path)
    done = GradientStore.repair(path)
    assert [copies["name"] for copies in done["duplicates"]] == [
        f"shard-b-{number:06}.safetensors" for number in range(3)
    ]
    assert [row for copies in done["duplicates"] for row in copies["rows"]] == list(range(10))
    assert done["duplicates"][0]["kept_in"] == ["shard-a-000000.safetensors"]
    # 2 bytes a cell; index, record, scale, norm, loss and tokens
    assert done["duplicates"][0]["bytes"] == 4 * (DIM * 2 + 8 + 8 + 4 * 4)
    assert content(path) == whole
    assert GradientStore(path).fingerprint == GradientStore(tmp_path / "once").fingerprint
    assert GradientStore.repair(path)["duplicates"] == []
    with GradientStore.create(path, dim=DIM, provenance={"model": "m"}) as writer:  # an extraction goes on
        assert writer.contains(range(11)).tolist() == [True] * 10 + [False]
        writer.append(cells(np.array([10])), [10], num_tokens=[1], loss=[0.0], record=[70])
    assert sorted(content(path)) == list(range(11))


@pytest.mark.parametrize("seed", range(20))
def test_a_repair_keeps_what_the_naive_algorithm_keeps(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    parts = {
        name: rng.sample(range(30), rng.randint(0, 25)) for name in "abcd"[: rng.randint(1, 4)]
    }  # up to four copies, shards that overlap in part, in any order
    parts["z"] = list(range(40, 43))
    path = fill(tmp_path / "s", parts, rows_per_shard=rng.randint(1, 9))
    naive: dict[int, int] = defaultdict(int)
    for row in itertools.chain(*parts.values()):
        naive[row] += 1
    whole = content(fill(tmp_path / "once", {"a": sorted(naive)}))
    done = GradientStore.repair(path)
    dropped: dict[int, int] = defaultdict(int)
    for copies in done["duplicates"]:
        for row in copies["rows"]:
            dropped[row] += 1
    assert dict(dropped) == {row: count - 1 for row, count in naive.items() if count > 1}
    assert content(path) == whole
    if not done["duplicates"]:
        return
    # A repair that is killed between two steps leaves any of the old shards beside the new ones.
    healed = files(path)
    old = {
        name: data
        for name, data in files(fill(tmp_path / "again", parts, rng.randint(1, 9))).items()
        if name.startswith("shard-")
    }
    for name in rng.sample(sorted(old), min(3, len(old))):
        if name not in healed:
            (path / name).write_bytes(old[name])
    GradientStore.repair(path)
    assert content(path) == whole


def test_copies_in_one_shard_and_after_a_deletion_are_dropped(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", {"a": [0, 1, 2, 3]})
    shard = path / "shard-a-000000.safetensors"
    header, data = split(shard)
    changed = bytearray(data)
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            size = (end - start) // 4
            changed[start + 3 * size : end] = changed[start + size : start + 2 * size]
    header["__metadata__"].pop("rows_checksum")
    shard.write_bytes(sealed(header, bytes(changed)))
    with pytest.raises(StoreError, match="index 1: found the same row"):
        GradientStore(path)
    done = GradientStore.repair(path)["duplicates"]
    assert [(copies["name"], copies["rows"], copies["kept_in"]) for copies in done] == [
        (shard.name, [1], [shard.name])
    ]
    assert sorted(content(path)) == [0, 1, 2]

    twice = fill(tmp_path / "t", {"a": list(range(8)), "z": [20]})
    GradientStore(twice).delete([2])
    fill(tmp_path / "u", {"b": list(range(8))})
    for name, other in files(tmp_path / "u").items():
        if name.startswith("shard-"):
            (twice / name).write_bytes(other)
    GradientStore.repair(twice)
    assert sorted(content(twice)) == [*range(8), 20]  # the other writer did have row 2


def test_rows_that_differ_are_refused_and_nothing_is_dropped(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", {"a": [1, 2, 3], "b": [1, 2]})
    with GradientStore.create(tmp_path / "other", dim=DIM, provenance={"model": "m"}, writer="c") as writer:
        writer.append(np.ones((1, DIM)), [3], num_tokens=[4], loss=[0.0], record=[21])
    name = "shard-c-000000.safetensors"
    shutil.copy(tmp_path / "other" / name, path)
    before = files(path)
    with pytest.raises(StoreError) as caught:
        GradientStore.repair(path)
    message = str(caught.value)
    for part in ("index 3", str(path / "shard-a-000000.safetensors"), str(path / name), "--differing"):
        assert part in message
    after = files(path)
    assert {n: after[n] for n in before} == before
    merged = GradientStore.merge([path], tmp_path / "merged", differing="last")
    assert sorted(merged.index) == [1, 2, 3]
    np.testing.assert_array_equal(merged.read(merged.positions([3])), np.ones((1, DIM)))

    (path / "shard-d-000000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"index 3.*set aside before: damaged-shard-d"):
        GradientStore.repair(path)


def test_of_copies_the_one_of_which_most_is_known_is_kept(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", {"a": [0, 1], "b": [0, 1]}, bare="a")
    done = GradientStore.repair(path)["duplicates"]
    assert [copies["name"] for copies in done] == ["shard-a-000000.safetensors"]
    assert GradientStore(path).record.tolist() == [0, 7]


def test_the_command_names_what_it_drops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fill(tmp_path / "s", {"a": list(range(10)), "b": [3, 4, 5, 9]})
    assert run("verify", path) == 2
    assert "spice-rs repair" in capsys.readouterr().err
    assert run("repair", path, "--no-progress") == 0
    said = capsys.readouterr().out
    assert "dropped from shard-b-000000.safetensors" in said
    assert "3-5, 9 (4 rows, 168 bytes)" in said
    assert sorted(content(path)) == list(range(10))


def test_a_live_extraction_goes_on_and_the_lease_of_a_dead_one_goes(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", {"a": [0, 1], "b": [0, 1]})
    with lease(path):
        done = GradientStore.repair(path)
        assert (done["kept"], done["removed"], len(done["duplicates"])) == ([".extracting"], [], 1)
        GradientStore(path).compact()
        GradientStore(path).delete([1])
        assert (path / ".extracting").exists()
        with open(path / ".extracting") as held, pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (path / ".extracting").write_text("process 1 on gone")
    assert GradientStore.repair(path)["removed"] == [".extracting"]
    assert sorted(content(path)) == [0]


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77; exec "$2" -c "$3" "$1"'
REPAIR = "import sys; from spice_rs import GradientStore; print(GradientStore.repair(sys.argv[1]))"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.skipif(sys.platform != "linux", reason="mounts of one's own")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", {"a": [0, 1], "b": [0, 1]})
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(path)]
    try:
        done = subprocess.run(
            [*command, sys.executable, REPAIR], capture_output=True, text=True, env=environment()
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no mounts of our own here: {done.stderr.strip()}")
    assert re.search(r"StoreError.*Read-only file system", done.stderr), done.stderr
    GradientStore.repair(path)
    assert sorted(content(path)) == [0, 1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes calls fail")
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO"])
def test_a_repair_that_fails_anywhere_loses_no_row(tmp_path: Path, fault: str) -> None:
    parts = {"a": list(range(9)), "b": [1, 2, 20, 3, 4, 5], "c": [20, 21]}
    whole = content(fill(tmp_path / "once", {"a": [*range(9), 20, 21]}))
    calls = "link,linkat,unlink,unlinkat,rename,renameat,renameat2,fsync,ftruncate"
    for when in range(1, 40):
        path = fill(tmp_path / f"s{when}", parts)
        # Counted in the thread of the call: the interpreter itself makes none of these on its way.
        command = ["strace", "-qq", "-o", os.devnull, "-e", f"trace={calls}"]
        command += ["-e", f"inject={calls}:{fault}:when={when}", sys.executable, "-c", REPAIR, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if "ptrace" in done.stderr:
            pytest.skip("no tracing here")
        GradientStore.repair(path)
        assert content(path) == whole, when
        assert not [name for name in os.listdir(path) if name.startswith(".tmp-")]
        shutil.rmtree(path)
        if done.returncode == 0:
            break
        assert "StoreError" in done.stderr or done.returncode == -signal.SIGKILL, done.stderr
    assert 5 < when < 39


@pytest.mark.slow
def test_repairs_that_are_killed_at_random_lose_no_row(tmp_path: Path) -> None:
    rows = list(range(300))
    whole = content(fill(tmp_path / "once", {"a": rows}, 50))
    rng = random.Random(1)
    path = tmp_path / "s"
    for _ in range(15):
        shutil.rmtree(path, ignore_errors=True)
        fill(path, {"a": rows, "b": rows[7:], "c": rows[::2]}, 20)
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                GradientStore.repair(path)
                os._exit(0)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        GradientStore.repair(path)
        assert content(path) == whole
