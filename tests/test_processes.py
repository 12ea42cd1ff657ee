"""Open stores and sources in other processes: pickled, copied, forked in the middle of a call, and killed."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spice_rs
from counts import some
from spice_rs import GradientStore, InvalidInputError, StoreError, StoreMismatchError
from spice_rs.atomic import replacing
from spice_rs.store.sources import join_sources, open_source
from spice_rs.temporary import file_beside, folder_for

DIM = 8
NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")


def loaded(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - it is our own


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32)


def filled(path: Path, index: range, **options: object) -> GradientStore:
    with GradientStore.create(path, dim=DIM, dtype="float32", rows_per_shard=20, **options) as writer:
        writer.append(rows(1000)[list(index)], np.asarray(index))
    return GradientStore(path)


def read_in_worker(given: object) -> np.ndarray:
    if isinstance(given, GradientStore):
        return given.read([0, len(given) - 1])
    return spice_rs.select(given, 3).indices


# Pickles


def test_a_pickled_store_is_opened_again_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled(Path("s"), range(50))
    store = GradientStore("s", memory_limit=1 << 20)
    data = pickle.dumps(store)
    assert len(data) < 500
    monkeypatch.chdir("/")
    again = loaded(data)
    assert (again.path, again._memory_limit, again.fingerprint) == (
        str(tmp_path / "s"),
        1 << 20,
        store.fingerprint,
    )
    np.testing.assert_array_equal(again.index, store.index)
    assert again._core.rows_at_a_time == store._core.rows_at_a_time

    class Mine(GradientStore):
        pass

    for make in (copy.copy, copy.deepcopy):
        copied = make({"store": [store]} if make is copy.deepcopy else store)
        copied = copied["store"][0] if make is copy.deepcopy else copied
        assert copied is not store
        assert copied._core is store._core
        copied.compact()
        assert len(store._info) == len(copied._info)
        assert store._core is not copied._core


def test_a_pickled_store_that_changed_or_moved_is_an_error(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", range(50))
    data = pickle.dumps(store)
    loaded(data)
    (tmp_path / "s").rename(tmp_path / "t")
    with pytest.raises(StoreError, match=str(tmp_path / "s")):
        loaded(data)
    (tmp_path / "t").rename(tmp_path / "s")
    filled(tmp_path / "s", range(50, 60), writer="zzz")
    with pytest.raises(StoreMismatchError, match="60 rows"):
        loaded(data)
    mixed = tmp_path / "mixed"
    filled(mixed, range(20, 40), writer="b")
    filled(mixed, range(0, 20), writer="c")
    filled(mixed, range(40, 60), writer="a")
    data = pickle.dumps(GradientStore(mixed))
    GradientStore(mixed).delete([0])
    filled(mixed, range(0, 1), writer="a0")
    with pytest.raises(StoreMismatchError, match="not in the order"):
        loaded(data)


def test_sources_of_any_kind_are_pickled(tmp_path: Path) -> None:
    pool = rows(60)
    np.save(tmp_path / "g.npy", pool)
    np.savez(tmp_path / "g.npz", g=pool)
    stores = [filled(tmp_path / name, index) for name, index in (("a", range(30)), ("b", range(30, 60)))]
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    sources = [
        tmp_path / "g.npy", tmp_path / "g.npz", f"{tmp_path}/g.npz::g", pool, mapped, mapped[::2],
        np.asfortranarray(pool), stores[0], stores, [pool, pool],
    ]  # fmt: skip
    for given in sources:
        source = open_source(given)
        again = loaded(pickle.dumps(source))
        assert (again.rows, again.description, again.fingerprint) == (
            source.rows, source.description, source.fingerprint,
        )  # fmt: skip
        assert spice_rs.select(again, 4).indices.tolist() == spice_rs.select(source, 4).indices.tolist()
        assert copy.deepcopy(source).identify() == source.identify()
    assert len(pickle.dumps(open_source(stores))) < 1000
    joined = join_sources([open_source(store) for store in stores])
    assert loaded(pickle.dumps(joined)).is_joined


def test_results_are_pickled(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", range(60))
    selection = spice_rs.select(store, 5)
    again = loaded(pickle.dumps(selection))
    assert again.indices.tolist() == selection.indices.tolist()
    assert again.settings == selection.settings
    for result in (
        spice_rs.analyze(selection, store),
        spice_rs.certify(selection, store),
        spice_rs.curvature(store),
        selection.explain(59, store),
    ):
        assert type(loaded(pickle.dumps(result))) is type(result)
        assert str(copy.deepcopy(result)) == str(result)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_workers_of_multiprocessing_read_a_store(tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    store = filled(tmp_path / "s", range(60))
    expected = [read_in_worker(store), read_in_worker(open_source(store))]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map_async(read_in_worker, [store, open_source(store)]).get(60)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_writer_is_not_pickled(tmp_path: Path) -> None:
    with (
        GradientStore.create(tmp_path / "s", dim=DIM) as writer,
        pytest.raises(TypeError, match="cannot be pickled.*GradientStore.create in each process"),
    ):
        pickle.dumps(writer)


# Forks


def in_child(work: object, seconds: float = 20) -> int:
    """Return the status of a forked child that does `work`; a child that hangs is killed and fails."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(seconds))
        try:
            work()  # type: ignore[operator]
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - it must not reach the parent's code
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


@pytest.mark.slow
@NEEDS_FORK
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_a_child_selects_while_and_after_its_parent_does(tmp_path: Path, threads: int | None) -> None:
    store = filled(tmp_path / "s", range(400))
    expected = spice_rs.select(store, 20, threads=threads).indices.tolist()

    def work() -> None:
        assert spice_rs.select(store, 20, threads=threads).indices.tolist() == expected
        store.verify()
        assert len(store.read(np.arange(400))) == 400

    assert in_child(work) == 0
    stop = threading.Event()

    def select() -> None:
        while not stop.is_set():
            spice_rs.select(store, 50, threads=threads)
            store.verify()

    thread = threading.Thread(target=select)
    thread.start()
    try:
        for _ in range(8):
            assert in_child(work) == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
@NEEDS_FORK
def test_a_child_that_is_forked_in_the_middle_of_the_first_read_does_not_hang(tmp_path: Path) -> None:
    n = 300_000  # enough that some children are forked while its columns are copied
    path = tmp_path / "s"
    with GradientStore.create(path, dim=1, dtype="int8", rows_per_shard=1000) as writer:
        writer.append(np.ones((n, 1), np.float32), np.arange(n))
    for attempt in range(0, 40, 40 // some(40, least=5)):
        store = GradientStore(path)
        begun = threading.Event()

        def read(store: GradientStore = store, begun: threading.Event = begun) -> None:
            begun.set()
            store.read([0])
            store.verify()

        thread = threading.Thread(target=read)
        thread.start()
        begun.wait()
        for _ in range(attempt * 300):  # longer each time; less than a sleep can
            pass
        status = in_child(lambda store=store: store.read([1]), 10)
        thread.join()
        assert status == 0, attempt


FIRST = """
import os, signal, sys, threading, time
import numpy as np
import spice_rs
pool = np.random.default_rng(0).standard_normal((300, 64))
thread = threading.Thread(target=lambda: spice_rs.select(pool, 100))
thread.start()
time.sleep(float(sys.argv[1]))
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    spice_rs.select(pool, 10)
    spice_rs.curvature(pool)
    os._exit(0)
status = os.waitpid(pid, 0)[1]
thread.join()
sys.exit(status != 0)
"""


@pytest.mark.slow
@NEEDS_FORK
@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.002, 0.01, 0.05])
def test_a_fork_with_the_first_call_under_way_does_not_hang(delay: float) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", FIRST, str(delay)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


# Appending


def test_rows_are_copied_after_all_checks_alone(tmp_path: Path) -> None:
    n, dim = 50_000, 64
    large = np.zeros((n, dim))  # float64, 25.6 MB: float32 would be a copy
    good = {"rows": large, "index": np.arange(n)}
    bad = (
        {"rows": np.zeros((n, dim + 1))},
        {"rows": np.zeros((dim, n)).T[:, :-1]},
        {"rows": np.zeros((400, 500, dim))},
        {"rows": np.zeros((n, dim), complex)},
        {"index": np.arange(n - 1)},
        {"index": np.zeros(n, int)},
        {"index": [7, *range(1, n)]},
        {"index": np.arange(n) / 2},
        {"num_tokens": np.zeros(3, int)},
        {"num_tokens": np.full(n, 1 << 40)},
        {"loss": np.zeros(5)},
        {"record": np.zeros((2, 2), int)},
    )
    with GradientStore.create(tmp_path / "s", dim=dim) as writer:
        writer.append(large[:1], [7])
        tracemalloc.start()
        try:
            for change in bad:
                given = {**good, "index": np.arange(n, 2 * n), **change}
                for key in ("index", "num_tokens", "record"):  # what numpy makes of lists is no copy of rows
                    given[key] = None if given.get(key) is None else np.asarray(given[key])
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                with pytest.raises(InvalidInputError):
                    writer.append(**given)
                assert tracemalloc.get_traced_memory()[1] - before < 4 << 20, change
        finally:
            tracemalloc.stop()
        assert writer.contains([7, 8, n]).tolist() == [True, False, False]
        writer.append(large[:1], [8])
    assert GradientStore(tmp_path / "s").index.tolist() == [7, 8]


def test_tensors_of_a_wrong_shape_are_not_converted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros((100, DIM + 1), dtype=torch.bfloat16)
    tensor.float = None  # whoever converts it fails
    with GradientStore.create(tmp_path / "s", dim=DIM) as writer:
        with pytest.raises(InvalidInputError, match=r"rows: found shape \(100, 9\)"):
            writer.append(tensor, np.arange(100))
        with pytest.raises(InvalidInputError, match=r"index: found shape \(3,\), expected \(100,\)"):
            writer.append(tensor[:, 1:], np.arange(3))


# What killed processes leave


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


KILLED = """
import os, signal, sys
from pathlib import Path
from spice_rs.atomic import replacing
from spice_rs.temporary import folder_for
if sys.argv[2] == "file":
    with replacing(sys.argv[1]) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
with folder_for("plan", Path(sys.argv[1]).parent) as folder:
    (folder / "part").mkdir()
    (folder / "part" / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, kind: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, path, kind], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="locks as Unix has them")
@pytest.mark.parametrize("name", ["ck", "n" * 250, "ü\n*"])
def test_the_next_of_a_file_removes_what_a_killed_process_left(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"whole")
    user = tmp_path / f".{name[:100]}-mine"
    user.write_text("mine")
    before = names(tmp_path)
    for _ in range(2):
        killed(path, "file")
        assert path.read_bytes() == b"whole"
        assert len(names(tmp_path)) == len(before) + 1
    with replacing(path) as file:
        file.write(b"new")
    assert (names(tmp_path), path.read_bytes(), user.read_text()) == (before, b"new", "mine")


@pytest.mark.skipif(sys.platform == "win32", reason="locks as Unix has them")
def test_what_is_in_use_stays_and_so_does_what_is_not_ours(tmp_path: Path) -> None:
    target = tmp_path / "ck"
    used = [file_beside(target) for _ in range(12)]
    assert len({path for _, path in used}) == len(names(tmp_path)) == 12
    with replacing(target) as file:
        file.write(b"x")
    assert all(path.exists() for _, path in used)
    for descriptor, path in used:
        os.close(descriptor)
        if len(path.name) > 40:  # all short names were in use
            path.unlink()
    first = used[0][1]
    with replacing(target) as file:
        file.write(b"y")
    assert names(tmp_path) == ["ck"]

    # Folders, links and pipes by that name are no files that we have left.
    (tmp_path / "precious").write_text("mine")
    first.symlink_to(tmp_path / "precious")
    os.mkfifo(used[1][1])
    with replacing(target) as file:
        file.write(b"z")
    assert first.is_symlink()
    assert used[1][1].exists()
    assert ((tmp_path / "precious").read_text(), target.read_bytes()) == ("mine", b"z")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="locks as Unix has them")
def test_folders_of_killed_processes_are_removed_by_the_next(tmp_path: Path) -> None:
    killed(tmp_path / "x", "folder")
    killed(tmp_path / "x", "folder")
    assert len(names(tmp_path)) == 1
    with folder_for("plan", tmp_path) as one, folder_for("plan", tmp_path) as two:
        assert one != two
        assert names(tmp_path) == sorted([one.name, two.name])
        assert names(one) == []
    assert names(tmp_path) == []


MERGE = """
import os, signal, sys
from spice_rs import GradientStore
GradientStore.merge([sys.argv[1]], sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="locks as Unix has them")
def test_a_killed_merge_is_cleared_by_the_next_and_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", range(100))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MERGE, store.path, tmp_path / "merged"], env=environment, timeout=60
        )
        assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert len(GradientStore.merge([store.path], tmp_path / "merged")) == 100
    assert names(tmp_path) == ["merged", "s"]
    killed(tmp_path / "ck", "file")
    spice_rs.select(store, 5, checkpoint=tmp_path / "ck")
    assert names(tmp_path) == ["ck", "merged", "s"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks as Unix has them")
def test_a_repair_removes_what_a_killed_extraction_left_in_the_store(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", range(10))
    killed(Path(store.path) / "unfinished.json", "file")
    (left,) = GradientStore(store.path).info()["leftovers"]
    assert left.startswith(".tmp-spice-")
    assert GradientStore.repair(store.path)["removed"] == [left]
    shutil.rmtree(store.path)
