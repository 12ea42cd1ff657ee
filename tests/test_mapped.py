"""Files that are cut short or written to while they are mapped: an error that names the file, or a line that does."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spice_rs
from spice_rs import CorruptStoreError, GradientStore, StoreError
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import Source, open_source

N, DIM = 4000, 64
KINDS = ("npy", "safetensors", "headerless", "store")
FILES = KINDS[:3]


def loaded(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - it is our own


def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


def written(folder: Path, kind: str) -> tuple[Path, Path, dict]:
    """Return (what is opened, the file with the rows, how it is opened)."""
    if kind == "store":
        with GradientStore.create(folder / "s", dim=DIM, dtype="float32", writer="w") as writer:
            writer.append(rows(), np.arange(N))
        return folder / "s", folder / "s" / "shard-w-000000.safetensors", {}
    if kind == "npy":
        np.save(folder / "g.npy", rows())
        return folder / "g.npy", folder / "g.npy", {}
    if kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"g": rows()}, folder / "g.safetensors")
        return folder / "g.safetensors", folder / "g.safetensors", {}
    rows().tofile(folder / "g.bin")
    return folder / "g.bin", folder / "g.bin", {"dim": DIM, "dtype": "float32"}


WORK: dict[str, Callable[[Source], object]] = {
    "select": lambda source: spice_rs.select(source, 5),
    "certify": lambda source: spice_rs.curvature(source),
    "norms": lambda source: spice_rs.select(source, 5, alpha="auto"),
    "identify": lambda source: spice_rs.store.source._core.fingerprint(source.stored, threads=None),
    "rows": lambda source: RowReader(source).read([N - 1]),
    "analyze": lambda source: list(RowReader(source).blocks()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", sorted(WORK))
def test_a_file_that_was_cut_short_is_an_error_before_a_pass(tmp_path: Path, kind: str, work: str) -> None:
    path, file, options = written(tmp_path, kind)
    source = open_source(path, **options)
    WORK[work](source)
    os.truncate(file, file.stat().st_size // 2)
    time.sleep(0.06)  # lengths are looked at twenty times a second
    with pytest.raises(CorruptStoreError, match=rf"{file}: file size: found \d+ bytes, expected \d+ bytes"):
        WORK[work](source)
    if kind == "store":
        store = source.keep_alive
        for read in (lambda: store.read([N - 1]), lambda: store.read(np.arange(N)), store.verify):
            with pytest.raises(CorruptStoreError, match="file size"):
                read()


@pytest.mark.parametrize("kind", KINDS)
def test_content_that_was_written_to_is_an_error(tmp_path: Path, kind: str) -> None:
    path, file, options = written(tmp_path, kind)
    source = open_source(path, **options)
    WORK["select"](source)
    with open(file, "r+b") as changed:
        changed.seek(-4, os.SEEK_END)
        changed.write(np.float32(123.0).tobytes())
    for work in WORK if kind != "store" else ("select", "certify", "norms", "identify"):
        with pytest.raises(CorruptStoreError, match=str(file)):
            WORK[work](source)
    if kind != "store":
        WORK["select"](open_source(path, **options))  # opened anew it is another file


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_replaced_does_not_matter(tmp_path: Path, kind: str) -> None:
    path, file, options = written(tmp_path, kind)
    source = open_source(path, **options)
    before = WORK["rows"](source)
    (tmp_path / "other").write_bytes(b"something else")
    os.replace(tmp_path / "other", file)
    for work in WORK:
        WORK[work](source)
    np.testing.assert_array_equal(WORK["rows"](source), before)
    file.unlink()
    np.testing.assert_array_equal(WORK["rows"](source), before)
    if kind != "store":
        return
    # So is a shard that was only touched.
    path, file, _ = written(tmp_path / "again", kind) if (tmp_path / "again").mkdir() is None else ()
    source = open_source(path)
    os.utime(file)
    WORK["select"](source)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["content", "length"])
def test_a_file_that_changes_while_it_is_selected_from_is_an_error(
    tmp_path: Path, kind: str, change: str
) -> None:
    path, file, options = written(tmp_path, kind)
    source = open_source(path, **options)
    checkpoint = tmp_path / "ck"
    started, changed = threading.Event(), threading.Event()

    def progress(*_: object) -> None:
        if not started.is_set():
            started.set()
            changed.wait(10)

    def write() -> None:
        started.wait(10)
        with open(file, "r+b") as target:
            if change == "length":  # cut, and as long again before anybody reads there
                size = file.stat().st_size
                target.truncate(size - 4)
                target.truncate(size)
            else:
                target.seek(-4, os.SEEK_END)
                target.write(b"\1\2\3\4")
        changed.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(CorruptStoreError, match=str(file)):
            spice_rs.select(source, 3000, checkpoint=checkpoint, progress=progress)
    finally:
        thread.join()
    assert not checkpoint.exists()  # picks of changed rows are nothing to go on from


SELECT = """
import os, sys, threading, time
FAULTHANDLER
import spice_rs
from spice_rs.store.sources import open_source
path, file, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
source = open_source(path, **options)
spice_rs.select(source, 2)
LATER
def cut():
    time.sleep(float(sys.argv[4]))
    os.truncate(file, 4096)
threading.Thread(target=cut, daemon=True).start()
print("reading", flush=True)
try:
    while True:
        spice_rs.select(source, 400)
except spice_rs.CorruptStoreError as error:
    print("typed", error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.11, 0.3])
def test_a_process_never_ends_without_the_name_of_the_file(tmp_path: Path, kind: str, delay: float) -> None:
    path, file, options = written(tmp_path, kind)
    script = SELECT.replace("FAULTHANDLER", "").replace("LATER", "")
    done = run(script, path, file, options, delay)
    if done.returncode == 0:
        assert "typed" in done.stdout
        assert str(file) in done.stdout
    else:
        assert done.returncode == -7, done.stderr  # SIGBUS, by the system
        assert f"{file}: became shorter while it was read" in done.stderr


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


BUS = """
import ctypes, faulthandler, os, signal, sys
import numpy as np
BEFORE
from spice_rs.store.sources import open_source
path, file, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
source = open_source(path, **options)
AFTER
os.truncate(file, 4096)
if len(source.blocks[0]) if isinstance(source.blocks[0], tuple) else 0:
    print(int(source.blocks[0][0][-1]))  # behind our back
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
@pytest.mark.parametrize("faulthandler", ["", "BEFORE", "AFTER"])
def test_the_signal_goes_on_to_whoever_had_it(tmp_path: Path, faulthandler: str) -> None:
    path, file, options = written(tmp_path, "npy")
    script = BUS.replace(faulthandler or "NOTHING", "faulthandler.enable()")
    script = script.replace("BEFORE\n", "\n").replace("AFTER\n", "\n")
    done = run(script, path, file, options)
    assert done.returncode == -7, done.stderr
    assert done.stderr.count(f"spice-rs: {file}: became shorter while it was read") == 1, done.stderr
    assert ("Fatal Python error: Bus error" in done.stderr) == bool(faulthandler)


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
def test_a_file_is_named_while_its_last_page_is_still_there(tmp_path: Path) -> None:
    """A file that becomes shorter loses its pages one by one, from the front."""
    path, file, options = written(tmp_path, "npy")
    script = """
import ctypes, mmap, sys
from spice_rs.store.sources import open_source
source = open_source(sys.argv[1], **eval(sys.argv[3]))
rows = source.blocks[0][0]
page = (rows.ctypes.data + rows.nbytes // 2) // mmap.PAGESIZE * mmap.PAGESIZE
put = ctypes.CDLL(None, use_errno=True).mmap
put.restype, put.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
fixed = 0x10
with open(sys.argv[4], "rb") as empty:
    assert put(page, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED | fixed, empty.fileno(), 0) == page
print(int(rows[-1]), flush=True)
rows.sum()
"""
    (tmp_path / "empty").touch()
    done = run(script, path, file, options, tmp_path / "empty")
    assert (done.returncode, done.stdout) == (-7, f"{file.read_bytes()[-1]}\n"), done.stderr
    assert done.stderr.count(f"spice-rs: {file}: became shorter while it was read") == 1, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
def test_a_signal_that_is_not_of_our_files_is_none_of_our_business(tmp_path: Path) -> None:
    path, file, options = written(tmp_path, "npy")
    own = tmp_path / "own"
    own.write_bytes(bytes(8192))
    script = """
import mmap, os, signal, sys
from spice_rs.store.sources import open_source
source = open_source(sys.argv[1], **eval(sys.argv[3]))
with open(sys.argv[4], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
if sys.argv[5] == "sent":
    signal.raise_signal(signal.SIGBUS)
os.truncate(sys.argv[4], 0)
mapped[5000]
"""
    for how in ("sent", "fault"):
        own.write_bytes(bytes(8192))
        done = run(script, path, file, options, own, how)
        assert (done.returncode, done.stderr) == (-7, ""), done


def test_maps_of_the_caller_are_looked_at_and_may_be_written_to(tmp_path: Path) -> None:
    _, file, _ = written(tmp_path, "headerless")
    array = np.memmap(file, np.float32, "r+", shape=(N, DIM))
    source = open_source(array)
    array[0, 0] = 5.0
    array.flush()
    WORK["select"](source)
    os.truncate(file, 4096)
    with pytest.raises(CorruptStoreError, match="file size"):
        WORK["select"](source)
    with pytest.raises(StoreError):
        WORK["rows"](source)


@pytest.mark.parametrize("kind", FILES)
def test_a_pickled_source_is_the_same_file_or_an_error(tmp_path: Path, kind: str) -> None:
    path, file, options = written(tmp_path, kind)
    source = open_source(path, **options)
    data = pickle.dumps(source)
    assert len(data) < 1000
    again = loaded(data)
    assert (again.rows, again.dim, again.description) == (source.rows, source.dim, source.description)
    np.testing.assert_array_equal(WORK["rows"](again), WORK["rows"](source))
    time.sleep(0.01)
    os.utime(file)
    with pytest.raises(spice_rs.StoreMismatchError, match=str(file)):
        loaded(data)
    file.unlink()
    with pytest.raises(spice_rs.SpiceError, match=str(file)):
        loaded(data)
