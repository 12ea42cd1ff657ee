"""Tools on whole stores: rows stay as they are stored, and every moment in between is a store."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs import CorruptStoreError, GradientStore, InvalidInputError, StoreError, StoreMismatchError

DIM = 5
DTYPES = ("int8", "float16", "bfloat16", "float32")


def some_rows(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, DIM)) * 10.0 ** rng.integers(-6, 6, (n, 1))).astype(np.float32)


def fill(
    path: Path,
    index: list[int] | range,
    rows: np.ndarray | None = None,
    hashed: bool = False,
    **options: object,
) -> Path:
    """A store of these rows, with values that follow from the index."""
    index = np.asarray(index, dtype=np.int64)
    rows = some_rows(1000)[index] if rows is None else rows
    with GradientStore.create(path, dim=DIM, **options) as w:
        w.append(
            rows,
            index,
            num_tokens=index % 7 + 1,
            loss=index / 10,
            record=index * 7919 - 1 if hashed else None,
        )
    return path


def content(store: GradientStore | Path) -> dict[int, tuple]:
    """All that a store knows of each row."""
    store = GradientStore(store) if isinstance(store, Path) else store
    store.verify()
    columns = [store.read(np.arange(len(store))), store._core.scale, store.norm]
    columns += [column for column in (store.num_tokens, store.loss, store.record) if column is not None]
    values = zip(store.index.tolist(), *(c.tolist() for c in columns), strict=True)
    return {row: tuple(rest) for row, *rest in values}


def shards(path: Path) -> list[str]:
    return sorted(shard.name for shard in path.glob("shard-*"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compaction_keeps_every_bit_of_every_row(tmp_path: Path, dtype: str) -> None:
    path = fill(tmp_path / "s", range(50), hashed=dtype != "int8", dtype=dtype, rows_per_shard=3)
    before = content(path)
    store = GradientStore(path)
    opened_before = GradientStore(path)
    assert store.compact() == {"shards_before": 17, "shards": 1, "deleted": 0}
    assert len(shards(path)) == 1
    assert content(store) == content(path) == before
    # Whoever had the store open reads on.
    np.testing.assert_array_equal(
        opened_before.read(np.argsort(opened_before.index)), store.read(np.argsort(store.index))
    )
    assert store.compact() == {"shards_before": 1, "shards": 1, "deleted": 0}


def test_compaction_leaves_large_shards_and_respects_the_size(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(40), rows_per_shard=20, writer="large")
    fill(path, range(40, 80), rows_per_shard=1, writer="small")
    size = 20 * (24 + 2 * DIM)
    assert GradientStore(path).compact(size)["shards"] == 4
    assert shards(path)[2:] == ["shard-large-000000.safetensors", "shard-large-000001.safetensors"]
    assert sorted(content(path)) == list(range(80))
    with pytest.raises(InvalidInputError, match="bytes_per_shard"):
        GradientStore(path).compact(-1)


def test_shards_with_other_columns_are_compacted_apart(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for row, loss in enumerate([None, [0.5], None, [0.25]]):
        with GradientStore.create(path, dim=DIM) as w:
            w.append(some_rows(1), [row], loss=loss)
    assert GradientStore(path).compact()["shards"] == 2
    store = GradientStore(path)
    store.verify()
    assert sorted(store.index) == [0, 1, 2, 3]


def test_a_writer_goes_on_while_the_store_is_compacted(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(10), rows_per_shard=2, writer="w")
    with GradientStore.create(path, dim=DIM, rows_per_shard=2, writer="w") as w:
        GradientStore(path).compact()
        w.append(some_rows(10), np.arange(10, 20), num_tokens=np.ones(10, int), loss=np.zeros(10))
    assert sorted(content(path)) == list(range(20))


def test_names_that_compaction_has_freed_are_used_again(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(10), rows_per_shard=2, writer="w")
    opened_before, names = GradientStore(path), shards(path)
    before = content(opened_before)
    GradientStore(path).compact()
    fill(path, range(10, 25), rows_per_shard=3, writer="w")
    assert set(names) <= set(shards(path))
    # They are not taken for those that were replaced, nor by whoever had the store open for what is open.
    assert sorted(content(path)) == list(range(25))
    assert content(opened_before) == before


def test_rows_that_come_back_under_a_freed_name_are_not_taken_for_those_that_were_replaced(
    tmp_path: Path,
) -> None:
    path = fill(tmp_path / "s", range(4), rows_per_shard=2, writer="w")
    GradientStore(path).compact()
    (compacted,) = shards(path)
    before = (path / compacted).read_bytes()
    GradientStore(path).delete([0, 1])
    # As if the deletion had been killed before it removed what it replaced, whose list of replaced shards counts.
    (path / compacted).write_bytes(before)
    assert sorted(GradientStore(path).index) == [2, 3]
    fill(path, [0, 1], rows_per_shard=2, writer="w")
    assert "shard-w-000000.safetensors" in shards(path)
    assert sorted(content(path)) == [0, 1, 2, 3]
    assert GradientStore.repair(path)["removed"] == [compacted]
    assert sorted(content(path)) == [0, 1, 2, 3]


def test_shards_of_the_same_rows_and_name_are_told_apart(tmp_path: Path) -> None:
    files = {
        (fill(tmp_path / name, [1, 2], writer="w") / "shard-w-000000.safetensors").read_bytes()
        for name in "ab"
    }
    assert len(files) == 2
    assert len({GradientStore(tmp_path / name).fingerprint for name in "ab"}) == 1


OTHERS = """
import os, sys
from pathlib import Path
import numpy as np
from spice_rs import GradientStore
folder, user = Path(sys.argv[1]), 65534


def as_other(work):
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        return
    os.setgid(user), os.setuid(user)
    work()
    os._exit(0)


def write(path, row):
    with GradientStore.create(path, dim=2, rows_per_shard=1) as w:
        w.append(np.ones((2, 2), np.float32), [row, row + 1])


folder.chmod(0o711)  # may be passed, and not listed
own, shared = folder / "own", folder / "shared"
own.mkdir(), shared.mkdir()
os.chown(own, user, user), shared.chmod(0o777)
as_other(lambda: (write(own / "s", 0), write(own, 2), GradientStore(own).convert(own / "t", "float32")))
assert len(GradientStore(own)) == len(GradientStore(own / "t")) == 2
write(shared, 0)
GradientStore(shared).compact()
(shared / "store.json").chmod(0o644)
as_other(lambda: (write(shared, 2), GradientStore(shared).compact()))
assert GradientStore(shared).compact()["shards_before"] == 1
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs to become another user")
def test_folders_of_others_can_be_passed_and_shared() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is for its user alone
        done = subprocess.run(
            [sys.executable, "-c", OTHERS, folder], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_damaged_shard_is_not_compacted_into_a_sound_one(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(10), rows_per_shard=2)
    damage(path / shards(path)[2])
    with pytest.raises(CorruptStoreError, match="data_checksum"):
        GradientStore(path).compact()
    assert len(shards(path)) == 5
    with pytest.raises(CorruptStoreError, match="data_checksum"):
        GradientStore(path).delete([4])
    with pytest.raises(CorruptStoreError, match="data_checksum"):
        GradientStore.merge([path], tmp_path / "merged")
    with pytest.raises(CorruptStoreError, match="data_checksum"):
        GradientStore(path).convert(tmp_path / "merged", "float32")
    assert sorted(os.listdir(tmp_path)) == ["s"]


def damage(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)


def test_deleted_rows_are_gone_and_the_others_are_as_they_were(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(20), rows_per_shard=4)
    before = content(path)
    store = GradientStore(path)
    gone = {0, 5, 8, 9, 10, 11, 19}
    assert store.delete([*gone, 777])["deleted"] == len(gone)
    assert content(store) == content(path) == {row: rest for row, rest in before.items() if row not in gone}
    assert len(shards(path)) == 4
    assert store.delete([5])["deleted"] == 0
    # They can be appended again.
    fill(path, sorted(gone))
    assert content(path) == before
    GradientStore(path).delete(np.arange(20))
    assert (len(GradientStore(path)), shards(path)) == (0, [])
    fill(path, range(20))
    assert content(path) == before


def test_one_process_at_a_time_replaces_shards(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(4), rows_per_shard=1)
    with open(path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for work in (
            lambda: GradientStore(path).compact(),
            lambda: GradientStore(path).delete([1]),
            lambda: GradientStore.repair(path),
        ):
            with pytest.raises(StoreError, match="lock: found another compaction"):
                work()
    assert len(content(path)) == 4
    GradientStore(path).compact()
    with pytest.raises(StoreError, match=r"store\.json"):
        GradientStore.repair(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_merging_keeps_all_rows_once_and_as_they_are(tmp_path: Path) -> None:
    whole = content(fill(tmp_path / "whole", range(30), dtype="int8"))
    a = fill(tmp_path / "a", range(20), dtype="int8", rows_per_shard=3)
    b = fill(tmp_path / "b", range(15, 30), dtype="int8", rows_per_shard=4)
    empty = tmp_path / "empty"
    GradientStore.create(empty, dim=DIM, dtype="int8").close()
    merged = GradientStore.merge([a, empty, b], tmp_path / "new" / "m")
    assert content(merged) == whole
    assert merged.index.tolist() == list(range(30))
    # The same row twice in one store is resolved too.
    for shard in shards(b):
        (a / shard).write_bytes((b / shard).read_bytes())
    with pytest.raises(StoreError, match=r"index 15: .*the same row.*spice-rs repair"):
        GradientStore(a)
    assert content(GradientStore.merge([a], tmp_path / "resolved")) == whole


def test_different_rows_of_one_index_are_not_merged(tmp_path: Path) -> None:
    a = fill(tmp_path / "a", range(5), writer="a")
    b = fill(tmp_path / "b", [4, 5], some_rows(2, seed=9), writer="b")
    with pytest.raises(
        StoreError, match=r"index 4: found different rows in .*shard-a-000000.*shard-b-000000"
    ):
        GradientStore.merge([a, b], tmp_path / "m")
    whole = {"first": content(a) | {5: content(b)[5]}, "last": content(a) | content(b)}
    for keep in ("first", "last"):
        merged = GradientStore.merge([a, b], tmp_path / keep, differing=keep)
        assert content(merged) == whole[keep]
    # Two machines have computed one row, each in its way, into one store.
    for shard in shards(b):
        (a / shard).write_bytes((b / shard).read_bytes())
    merged = GradientStore.merge([a], tmp_path / "one", differing="last")
    assert content(merged) == whole["last"]
    for shard in shards(b):
        (a / shard).unlink()
    with pytest.raises(InvalidInputError, match="differing: found 'all'"):
        GradientStore.merge([a, b], tmp_path / "m", differing="all")
    for schema, field in (
        ({"dtype": "float32"}, "dtype"),
        ({"provenance": {"seed": 1}}, "provenance.seed"),
        ({"reduction": "sum"}, "reduction"),
    ):
        other = fill(tmp_path / field, [9], **schema)
        with pytest.raises(StoreMismatchError, match=f"{field}: found"):
            GradientStore.merge([a, other], tmp_path / "m")
    with pytest.raises(InvalidInputError, match="sources: found no store"):
        GradientStore.merge([], tmp_path / "m")
    with pytest.raises(StoreError, match="path: found something"):
        GradientStore.merge([a], b)
    assert not (tmp_path / "m").exists()


def test_work_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(20), rows_per_shard=2)
    before = content(path)

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total == 20
        if done >= 10:
            raise KeyboardInterrupt

    for work in (
        lambda: GradientStore.merge([path], tmp_path / "m", stop),
        lambda: GradientStore(path).convert(tmp_path / "m", "int8", stop),
        lambda: GradientStore(path).compact(200, stop),
        lambda: GradientStore(path).delete([7], lambda *_: stop(10, 20)),
    ):
        with pytest.raises(KeyboardInterrupt):
            work()
        assert content(path) == before
        assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversion_writes_what_would_have_been_written(tmp_path: Path, dtype: str) -> None:
    source = GradientStore(
        fill(tmp_path / "s", range(40), dtype="float32", rows_per_shard=7, reduction="sum")
    )
    converted = source.convert(tmp_path / "c", dtype)
    direct = fill(tmp_path / "direct", range(40), dtype=dtype, reduction="sum")
    assert content(converted) == content(direct)
    assert converted.dtype == dtype
    assert converted.provenance == {}
    # And what was rounded to this dtype stays as it is, wherever it goes.
    back = converted.convert(tmp_path / "back", "float32")
    assert back.provenance == ({} if dtype == "float32" else {"converted_from": dtype})
    np.testing.assert_array_equal(back.read(np.arange(40)), converted.read(np.arange(40)))
    again = back.convert(tmp_path / "again", dtype)
    assert again.provenance == back.provenance
    np.testing.assert_array_equal(again.read(np.arange(40)), converted.read(np.arange(40)))
    with pytest.raises(InvalidInputError, match="dtype"):
        source.convert(tmp_path / "x", "float64")


def test_export_is_the_matrix_by_dataset_row(tmp_path: Path) -> None:
    rows = some_rows(9)
    order = np.random.default_rng(0).permutation(9)
    fill(tmp_path / "s", list(order * 2), rows[order], dtype="float32", rows_per_shard=2)
    GradientStore(tmp_path / "s").export(tmp_path / "rows.npy", tmp_path / "index.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "index.npy"), np.arange(9) * 2)
    with pytest.raises(InvalidInputError, match="expected a place for a file"):
        GradientStore(tmp_path / "s").export(tmp_path / "none" / "rows.npy")
    with pytest.raises(InvalidInputError, match="index: found .*the file of the rows"):
        GradientStore(tmp_path / "s").export(tmp_path / "both.npy", f"{tmp_path}/./both.npy")
    assert not (tmp_path / "both.npy").exists()
    with pytest.raises(InvalidInputError, match="positions: found -2, expected at least 0"):
        GradientStore(tmp_path / "s").read([0, -2])
    with pytest.raises(InvalidInputError, match="sources: found .*expected a list of folders"):
        GradientStore.merge(str(tmp_path / "s"), tmp_path / "merged")


def test_repair_leaves_a_store_that_is_sound(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(10), rows_per_shard=2)
    names = shards(path)
    whole = content(path)
    damage(path / names[1])
    os.truncate(path / names[3], 100)
    (path / "shard-x-000000.safetensors").write_bytes(b"nonsense")
    (path / ".tmp-1-dead").write_bytes(b"half a shard")
    (path / ".tmp-2-alive").write_bytes(b"half a shard")
    (path / ".tmp-3-folder").mkdir()
    (path / "notes.txt").write_text("mine")
    with open(path / ".tmp-2-alive") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        done = GradientStore.repair(path)
    assert done["removed"] == [".tmp-1-dead"]
    assert done["kept"] == [".tmp-2-alive", ".tmp-3-folder"]
    aside = [f"damaged-{name}" for name in (names[1], names[3], "shard-x-000000.safetensors")]
    assert [shard["name"] for shard in done["damaged"]] == aside
    assert "data_checksum" in done["damaged"][0]["reason"]
    assert all((path / name).exists() for name in aside)
    assert (path / "notes.txt").exists()
    assert sorted(content(path)) == [0, 1, 4, 5, 8, 9]
    # What is missing can be computed again, and damaged again.
    fill(path, [2, 3, 6, 7])
    assert content(path) == whole
    assert GradientStore.repair(path) == {
        "removed": [".tmp-2-alive"],
        "kept": [".tmp-3-folder"],
        "damaged": [],
        "duplicates": [],
    }
    (path / names[1]).write_bytes(b"nonsense")
    assert GradientStore.repair(path)["damaged"][0]["name"] == aside[0] + ".1"
    (path / "store.json").write_bytes(b"{}")
    with pytest.raises(CorruptStoreError, match=r"store\.json"):
        GradientStore.repair(path)


def test_a_live_writer_is_not_repaired_away(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", [0])
    stop = threading.Event()

    def repair() -> None:
        while not stop.is_set():
            GradientStore.repair(path)

    thread = threading.Thread(target=repair)
    thread.start()
    try:
        with GradientStore.create(path, dim=DIM, rows_per_shard=1) as w:
            for row in range(1, 100):
                w.append(some_rows(1), [row], num_tokens=[1], loss=[0.0])
    finally:
        stop.set()
        thread.join()
    assert sorted(content(path)) == list(range(100))


def test_damage_to_a_compacted_shard_brings_back_what_it_replaced(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(6), rows_per_shard=2)
    old = {name: (path / name).read_bytes() for name in shards(path)}
    whole = content(path)
    GradientStore(path).compact()
    new = shards(path)
    # As if the process had been killed before it removed the old files.
    for name, data in old.items():
        (path / name).write_bytes(data)
    assert content(path) == whole
    assert GradientStore(path).verify()["superseded"] == sorted(old)
    damage(path / new[0])
    for work in (lambda: GradientStore(path).compact(), lambda: GradientStore(path).delete([0])):
        with pytest.raises(CorruptStoreError, match="checksum"):
            work()
        assert set(old) <= set(shards(path))
    assert GradientStore.repair(path)["removed"] == []
    assert content(path) == whole


def test_a_damaged_shard_that_was_replaced_does_not_bring_back_what_it_replaced(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", range(6), rows_per_shard=2)
    old = {name: (path / name).read_bytes() for name in shards(path)}
    GradientStore(path).compact()
    old |= {name: (path / name).read_bytes() for name in shards(path)}
    GradientStore(path).delete([3])
    whole = content(path)
    # As if both had been killed before they removed the old files, and all of these had been damaged since.
    for name, data in old.items():
        (path / name).write_bytes(data)
    assert content(path) == whole
    for name in old:
        damage(path / name)
        assert content(path) == whole
    done = GradientStore.repair(path)
    assert (sorted(done["removed"]), done["damaged"]) == (sorted(old), [])
    assert content(path) == whole


@pytest.mark.slow
def test_the_command_line_has_the_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = fill(tmp_path / "a", range(6), rows_per_shard=1)
    b = fill(tmp_path / "b", range(4, 10), rows_per_shard=1)

    def answer(*arguments: object) -> dict:
        assert run(*arguments, "--json", "--no-progress") == 0
        return json.loads(capsys.readouterr().out)

    assert answer("merge", tmp_path / "m", a, b) == {"path": str(tmp_path / "m"), "rows": 10}
    assert answer("compact", a) == {"shards_before": 6, "shards": 1, "deleted": 0}
    assert answer("convert", a, tmp_path / "c", "--dtype", "int8")["dtype"] == "int8"
    answer("export", a, tmp_path / "a.npy", "--index", tmp_path / "i.npy", "--memory-limit", 10**6)
    assert np.load(tmp_path / "a.npy").shape == (6, DIM)
    (a / ".tmp-0-x").touch()
    assert answer("verify", a)["leftovers"] == [".tmp-0-x"]
    assert answer("repair", a) == {"removed": [".tmp-0-x"], "kept": [], "damaged": [], "duplicates": []}
    d = fill(tmp_path / "d", range(6), rows_per_shard=2)
    assert answer("delete", d, 0, 1, 5) == {"shards_before": 3, "shards": 2, "deleted": 3, "absent": 0}
    np.save(tmp_path / "gone.npy", [2, 3, 77])
    assert answer("delete", d, "--rows", tmp_path / "gone.npy")["deleted"] == 2
    assert sorted(content(d)) == [4]
    other = fill(tmp_path / "other", [4], some_rows(1, seed=9))
    assert answer("merge", tmp_path / "m3", a, other, "--differing", "last")["rows"] == 6
    (a / ".tmp-0-x").touch()
    for command, says in (
        (["delete", d, 4], "1 row deleted, 0 left"),
        (["verify", d, "--memory-limit", 10**6], "sound"),
        (["verify", a], "leftovers: .tmp-0-x"),
        (["repair", a], "removed: .tmp-0-x"),
        (["repair", a], "nothing to repair"),
        (["compact", b, "--bytes-per-shard", "100"], "6 shards are 3 now"),
        (["merge", tmp_path / "m2", a, b], "10 rows"),
        (["convert", a, tmp_path / "c2", "--dtype", "bfloat16"], "6 rows, bfloat16"),
        (["export", a, tmp_path / "a.npy", "--force"], "6 rows × 5 columns"),
    ):
        assert run(*command) == 0
        assert says in capsys.readouterr().out
    for command in (
        ["merge", tmp_path / "m", a, b],
        ["convert", a, tmp_path / "c3", "--dtype", "float8"],
        ["compact", tmp_path],
        ["delete", a],
        ["delete", a, 1, "--rows", tmp_path / "gone.npy"],
        ["delete", a, "--rows", a / "store.json"],
        ["verify", a, "--memory-limit", 1],
        ["export", a, tmp_path / "none" / "a.npy"],
        ["export", a, tmp_path / "a.npy"],
    ):
        assert run(*command) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_picks_do_not_change_when_a_store_is_compacted_or_merged(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", list(np.random.default_rng(1).permutation(60)), rows_per_shard=3)
    parts = [fill(tmp_path / f"part{i}", range(i, 60, 3)) for i in range(3)]
    picks = spice_rs.select(path, 20, normalize="unit")
    merged = GradientStore.merge(parts, tmp_path / "m")
    GradientStore(path).compact()
    for source in (path, merged):
        again = spice_rs.select(source, 20, normalize="unit")
        np.testing.assert_array_equal(again.indices, picks.indices)
        np.testing.assert_array_equal(again.scores, picks.scores)


FULL = """
import resource, signal, sys
import numpy as np
from spice_rs import GradientStore, StoreError
# Files larger than this cannot be written, as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
path, other = sys.argv[1:]
rows = np.ones((1000, 5), np.float32)
w = GradientStore.create(path, dim=5)
w.append(rows, np.arange(1000, 2000))
for work in (w.commit, w.close, GradientStore(path).compact, lambda: GradientStore(path).convert(other, "float32")):
    try:
        work()
    except StoreError as error:
        assert "no way to write it" in str(error), error
    else:
        raise AssertionError(work)
assert w.contains([1500]).all()
GradientStore(path).delete([3])
import os; os._exit(0)
"""


SMALL_DISK = """
import sys
import numpy as np
from spice_rs import GradientStore, StoreError
path = sys.argv[1] + "/s"
rows = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
w = GradientStore.create(path, dim=512, bytes_per_shard=50_000)
written = 0
try:
    for start in range(0, 100_000, 64):
        w.append(rows, np.arange(start, start + 64))
        w.commit()
        written = start + 64
    raise AssertionError("the disk has room for this?")
except StoreError as error:
    assert "No space left on device" in str(error), error
try:
    w.close()
except StoreError:
    pass
else:
    raise AssertionError("closed on a full disk")
store = GradientStore(path)
assert set(range(written)) <= set(store.index.tolist())
assert store.verify()["leftovers"] == []
for work in (lambda: store.merge([path], sys.argv[1] + "/m"), lambda: store.convert(sys.argv[1] + "/c", "float32")):
    try:
        work()
    except StoreError as error:
        assert "No space left on device" in str(error), error
    else:
        raise AssertionError("written on a full disk")
# Room again, as soon as nobody has the deleted shards open: what waited is written.
del store
GradientStore(path).delete(np.arange(640))
w.close()
store = GradientStore(path)
store.verify()
assert sorted(store.index) == list(range(640, written + 64)), (written, len(store))
print("held")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made with Linux's tmpfs")
def test_a_disk_that_fills_up_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SMALL_DISK)
    mount = 'mount -t tmpfs -o size=4m tmpfs "$1" || exit 77; exec "$2" "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(disk)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [*command, sys.executable, str(script)], capture_output=True, text=True, env=environment
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"no file system of our own here: {done.stderr.strip()}")
    assert done.stdout == "held\n", done.stderr


def test_a_full_disk_is_an_error_and_leaves_the_store_whole(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with GradientStore.create(path, dim=DIM, rows_per_shard=100) as w:
        w.append(some_rows(1000), np.arange(1000))
    before = content(path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FULL, str(path), str(tmp_path / "other")]
    subprocess.run(command, check=True, env=environment)
    del before[3]
    assert content(path) == before
    assert not GradientStore(path).info()["leftovers"]
    assert os.listdir(tmp_path) == ["s"]
