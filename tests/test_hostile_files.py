"""Files that lie, never end or unpack to gigabytes: each is a typed error within seconds, never a hang or a traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs.commands.stores import _rows_of
from spice_rs.errors import InvalidInputError, SpiceError
from spice_rs.selection.picks import read_rows

DATA = np.arange(6, dtype="<f4").tobytes()
POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no special files here")


def npy(
    header: str | bytes,
    data: bytes = DATA,
    version: tuple[int, int] = (1, 0),
    length: int | None = None,
) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("latin1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def stated(descr: str = "'<f4'", fortran: str = "False", shape: str = "(2, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


ARRAYS = {
    "bracket": npy("("),
    "indentation": npy("if 1:\n  x\n y"),
    "10^30 rows": npy(stated(shape=f"({10**30}, 3)")),
    "more rows than 64 bits of bytes": npy(stated(shape=f"({2**62}, 4)")),
    "True": npy(stated(shape="(True, 6)")),
    "negative": npy(stated(shape="(-2, -3)")),
    "fractions": npy(stated(shape="(2.0, 3)")),
    "6000 digits": npy(stated(shape="(" + "9" * 6000 + ", 3)")),
    "3000 axes": npy(stated(shape="(" + "1, " * 3000 + "6)")),
    "header of 4 GiB": npy("{}", version=(2, 0), length=2**32 - 1),
    "header of a megabyte": npy(" " * 1_000_000 + stated(), version=(2, 0)),
    "minus signs": npy("-" * 9000 + "1"),
    "brackets": npy("[" * 5000 + "]" * 5000),
    "no UTF-8": npy(b"{'descr': '\xff', 'fortran_order': False, 'shape': (2, 3)}", version=(3, 0)),
    "objects": npy(stated("'|O'")),
    "fields": npy(stated("[('a', '<f4')]")),
    "unknown dtype": npy(stated("'xx'")),
    "dtype of 10^30 bytes": npy(stated(f"'S{10**30}'")),
    "version 9.9": npy(stated(), version=(9, 9)),
    "cut in the header": npy(stated())[:20],
    "too little data": npy(stated(), DATA[:10]),
    "too much data": npy(stated(), DATA * 4),
    "missing key": npy("{'descr': '<f4', 'shape': (2, 3)}"),
    "a set": npy("{1, 2}"),
    "a key that is a list": npy("{[]: 1}"),
    "text of Python 2": npy("{'descr': '<f4L', 'fortran_order': False, 'shape': (2L, 'a\n"),
    "empty": b"",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_lie(name: str, tmp_path: Path) -> None:
    file, archive = tmp_path / "x.npy", tmp_path / "x.npz"
    file.write_bytes(ARRAYS[name])
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("g.npy", ARRAYS[name])
    for call in (
        lambda: spice_rs.select(file, 1),
        lambda: _rows_of(str(file)),
        lambda: spice_rs.select(archive, 1),
        lambda: spice_rs.select(f"{archive}::g", 1),
    ):
        with pytest.raises(InvalidInputError, match=r"x\.np[yz].*: found .*, expected "):
            call()
    assert run("select", file, "-k", 1) == run("delete", tmp_path, "--rows", file) == 2


def test_arrays_that_are_sound(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for array in (rows, np.asfortranarray(rows), rows.astype(">f4")):
        np.save(tmp_path / "x.npy", array)
        assert spice_rs.select(tmp_path / "x.npy", 1).indices.tolist() == [2]
    np.savez(
        tmp_path / "x.npz", g=rows, names=np.array(["a", "b"])
    )  # which are no numbers, and not asked for
    assert spice_rs.select(tmp_path / "x.npz", 1).indices.tolist() == [2]


def zipped(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", how) as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return bytearray(packed.getvalue())


def patched(local: int, central: int, value: bytes) -> bytes:
    """An archive of one array, with other bytes in both of its headers."""
    archive = zipped(("g.npy", npy(stated())))
    for magic, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = archive.index(magic) + offset
        archive[at : at + len(value)] = value
    return bytes(archive)


def wrong_checksum() -> bytes:
    archive = zipped(("g.npy", npy(stated())), how=zipfile.ZIP_STORED)
    archive[archive.index(b"\x93NUMPY") + len(npy(stated())) - 1] ^= 1
    return bytes(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_lie(tmp_path: Path) -> None:
    sound = npy(stated())
    cases = {
        "encrypted": patched(6, 8, b"\1\0"),
        "strongly encrypted": patched(6, 8, b"\x41\0"),
        "unknown method": patched(8, 10, struct.pack("<H", 99)),
        "another method": patched(8, 10, struct.pack("<H", 14)),
        "patched": patched(6, 8, b"\x20\0"),
        "version 25.5": patched(4, 6, b"\xff\0"),
        "size": patched(22, 24, struct.pack("<I", 0xFFFFFFF0)),
        "size in 64 bits": patched(22, 24, struct.pack("<I", 0xFFFFFFFF)),
        "checksum": wrong_checksum(),
        "twice": bytes(zipped(("g.npy", sound), ("g.npy", npy(stated(), DATA[::-1])))),
        "cut": bytes(zipped(("g.npy", sound))[:-10]),
        "begun late": bytes(zipped(("g.npy", sound))[40:]),
        "none": bytes(zipped()),
        "no array": bytes(zipped(("g.npy", b"xx"))),
        "text": b"hello",
    }
    for name, contents in cases.items():
        (tmp_path / "x.npz").write_bytes(contents)
        for path in (tmp_path / "x.npz", f"{tmp_path / 'x.npz'}::g"):
            with pytest.raises(InvalidInputError, match=r"x\.npz.*: found "):
                spice_rs.select(path, 1)
                pytest.fail(name)
    # Names are names: nothing is unpacked to where they say.
    (tmp_path / "x.npz").write_bytes(zipped(("../../g.npy", sound)))
    assert spice_rs.select(f"{tmp_path / 'x.npz'}::../../g", 1).indices.tolist() == [1]


def test_an_archive_that_unpacks_to_more_than_memory_is_not_unpacked(tmp_path: Path) -> None:
    rows = 1 << 40
    header = npy(stated(shape=f"({rows}, 64)"), b"")
    size = len(header) + 256 * rows
    archive = zipped(("g.npy", header))
    # In the central directory: 64-bit sizes in an extra field.
    at = archive.index(b"PK\1\2")
    packed = struct.unpack("<I", archive[at + 20 : at + 24])[0]
    extra = struct.pack("<HHQQ", 1, 16, size, packed)
    archive[at + 20 : at + 28] = b"\xff" * 8
    archive[at + 30 : at + 32] = struct.pack("<H", len(extra))
    archive[at + 51 : at + 51] = extra
    end = archive.index(b"PK\5\6")
    archive[end + 12 : end + 16] = struct.pack("<I", end - at)
    (tmp_path / "x.npz").write_bytes(archive)
    with pytest.raises(InvalidInputError, match=r"GB of memory, expected at most the .* that .* leaves"):
        spice_rs.select(tmp_path / "x.npz", 1)


TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def tensors(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


PLAIN = json.dumps(TENSOR).encode()
HEADERS = {
    "dtype a list": tensors({"g": {**TENSOR, "dtype": []}}),
    "dtype an object": tensors({"g": {**TENSOR, "dtype": {}}}),
    "unknown dtype": tensors({"g": {**TENSOR, "dtype": "X"}}),
    "a name twice": tensors(b'{"g":%s,"g":%s}' % (PLAIN, PLAIN)),
    "a key twice": tensors(b'{"g":{"dtype":"F32","shape":[2,3],"shape":[3,2],"data_offsets":[0,24]}}'),
    "overlap": tensors({"g": TENSOR, "h": TENSOR}),
    "gap": tensors({"g": {**TENSOR, "data_offsets": [4, 28]}}, DATA + b"0000"),
    "more data": tensors({"g": TENSOR}, DATA * 2),
    "less data": tensors({"g": TENSOR}, DATA[:3]),
    "header past the file": tensors({"g": TENSOR}, length=10**6),
    "header of 2^64": tensors({"g": TENSOR}, length=2**64 - 1),
    "header of 17 MiB": tensors(b'{"__metadata__":{"a":"' + b"x" * (17 << 20) + b'"},"g":%s}' % PLAIN),
    "overflow": tensors({"g": {**TENSOR, "shape": [2**62, 2**62]}}),
    "10^400": tensors({"g": {**TENSOR, "shape": [10**400, 3]}}),
    "5000 digits": tensors(b'{"g":{"dtype":"F32","shape":[' + b"9" * 5000 + b',3],"data_offsets":[0,24]}}'),
    "no UTF-8": tensors(b'{"\xff":%s}' % PLAIN),
    "nested lists": tensors(b"[" * 100_000),
    "nested objects": tensors(b'{"a":' * 100_000),
    "true": tensors({"g": {**TENSOR, "shape": [True, 6]}}),
    "negative": tensors({"g": {**TENSOR, "shape": [-2, -3]}}),
    "a text": tensors({"g": "x"}),
    "a list": tensors([1]),
    "metadata a list": tensors({"__metadata__": [], "g": TENSOR}),
    "empty": b"",
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_that_lie(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(HEADERS[name])
    for path in (file, f"{file}::g"):
        with pytest.raises(InvalidInputError, match=r"x\.safetensors.*: found .*, expected "):
            spice_rs.select(path, 1)
    with pytest.raises(SpiceError):  # as rows that were picked
        read_rows(file)


def test_a_path_that_is_there_is_no_member(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    folder = tmp_path / "a::b"
    folder.mkdir()
    np.save(folder / "x::y.npy", rows)
    np.savez(folder / "x.npz", **{"c::d": rows, "e": rows})
    assert spice_rs.select(folder / "x::y.npy", 1).indices.tolist() == [2]
    assert spice_rs.select(f"{folder / 'x.npz'}::c::d", 1).indices.tolist() == [2]
    with pytest.raises(InvalidInputError, match="found the member 'g' of .*expected one of an .npz"):
        spice_rs.select(f"{folder / 'x::y.npy'}::g", 1)


# --- what is no file ---------------------------------------------------------------------------------------------


GUARD = """
import signal, sys
signal.alarm(10)  # which ends the process
from spice_rs.cli import main
for call in sys.stdin.read().split("\\n\\n"):
    print(main(call.split("\\n")), flush=True)
"""


def commands_on(place: str) -> list[list[str]]:
    """Every way in which the command line reads a file."""
    pick = ["select", "g.npy", "-k", "2"]
    return [
        ["select", place, "-k", "2"],
        ["select", place, "-k", "2", "--dim", "4", "--dtype", "float32"],
        [*pick, "--initial", place],
        [*pick, "--exclude", place],
        [*pick, "--data", place],
        [*pick, "--data", "d.jsonl", "--groups", "g", "--group-shares", place],
        ["export-picks", place],
        ["certify", place, "g.npy"],
        ["explain", place, "g.npy", "3"],
        ["report", place, "g.npy", "--out", "report.html"],
        ["extend", place, "g.npy"],
        ["extend", "sel.safetensors", "g.npy", "--old-rows", place],
        ["info", place],
        ["delete", "store", "--rows", place],
        ["curvature", place],
    ]


@pytest.mark.slow
@POSIX
def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    np.save(tmp_path / "g.npy", rows)
    spice_rs.select(rows, 3).save(tmp_path / "sel.safetensors")
    (tmp_path / "d.jsonl").write_text('{"text": "a", "g": "x"}\n' * 20)
    places = []
    for suffix in ("", ".npy", ".npz", ".safetensors", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        places.append(f"pipe{suffix}")
    with socket.socket(socket.AF_UNIX) as listener:
        home = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            listener.bind("socket.jsonl")
        finally:
            os.chdir(home)
    os.symlink("/dev/zero", tmp_path / "zero.jsonl")
    os.symlink("/dev/zero", tmp_path / "zero.npy")
    os.symlink("loop.jsonl", tmp_path / "loop.jsonl")
    places += ["socket.jsonl", "zero.jsonl", "zero.npy", "loop.jsonl", "x" * 300]
    places += ["/proc/self/status"] if sys.platform == "linux" else []
    calls = [
        call for place in places for call in commands_on(place) if place != "pipe" or "--data" not in call
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GUARD],
        input="\n\n".join("\n".join(call) for call in calls),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["2"] * len(calls), done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("spice-rs: warning")]
    assert len(lines) == len(calls)  # one line each
    assert not [
        line for line in lines if "a fault of" in line or ("found" not in line and "no path" not in line)
    ]


@POSIX
def test_folders_with_pipes_are_not_handed_to_libraries(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from spice_rs.extraction.moments import load_tensors
    from spice_rs.extraction.proxy import load_tokenizer

    os.mkfifo(tmp_path / "config.json")
    os.mkfifo(tmp_path / "data.jsonl")
    os.mkfifo(tmp_path / "x.safetensors")
    calls: tuple[Callable[[], object], ...] = (
        lambda: load_tokenizer(tmp_path, gguf_file=None, trust_remote_code=False),
        lambda: load_tensors(tmp_path / "x.safetensors"),
        lambda: spice_rs.select(np.eye(3, dtype=np.float32), 1, data=str(tmp_path), groups="g"),
    )
    for call in calls:
        with pytest.raises(InvalidInputError, match="found a pipe"):
            call()


# --- data --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_data_that_no_reader_likes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    cases = {
        "line.jsonl.gz": gzip.compress(bytes(80 << 20), 1),
        "cut.jsonl.gz": gzip.compress(b'{"g": "a"}\n' * 1000)[:40],
        "bomb.json.gz": gzip.compress(b"[" + b" " * (80 << 20), 9),
        "deep.jsonl": b"[" * 100_000,
        "deep.json": b"[" * 100_000,
        "nul.jsonl": bytes(1000),
        "utf16.jsonl": '{"g": "a"}\n'.encode("utf-16"),
        "digits.jsonl": b'{"g": ' + b"9" * 5000 + b"}\n",
        "bad.parquet": b"PAR1" + b"x" * 100 + b"PAR1",
        "nul.csv": b"a,b\n\0,1\n",
        "quote.csv": b'g\n"x\n',
    }
    for name, contents in cases.items():
        (tmp_path / name).write_bytes(contents)
        for arguments in ({"data": str(tmp_path / name), "groups": "g"}, {"exclude": tmp_path / name}):
            if "exclude" in arguments:
                with pytest.raises(SpiceError, match=name):
                    read_rows(arguments["exclude"])
            else:
                with pytest.raises(SpiceError, match=name):
                    spice_rs.select(np.eye(3, dtype=np.float32), 1, **arguments)


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [240, 250, 255])
def test_names_as_long_as_the_system_takes(length: int, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    np.save(tmp_path / "g.npy", rows)
    name = tmp_path / ("s" * (length - 12) + ".safetensors")
    spice_rs.select(rows, 3, checkpoint=name).save(name)
    assert len(spice_rs.Selection.load(name)) == 3
    out = tmp_path / ("ä" * 100 + "o" * (length - 206) + ".jsonl")
    assert run("select", tmp_path / "g.npy", "-k", 2, "--out", out) == 0
    assert len(out.read_text().splitlines()) == 2
    assert len([*tmp_path.iterdir()]) == 3  # nothing temporary is left


def test_names_that_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.eye(3, dtype=np.float32)
    np.save(tmp_path / "g.npy", rows)
    name = str(tmp_path / ("x" * 300))
    with pytest.raises(InvalidInputError, match="found no place for a file"):
        spice_rs.select(rows, 1, checkpoint=name)
    with pytest.raises(InvalidInputError, match="found no place for a file"):
        spice_rs.select(rows, 1, checkpoint="a\0b")
    capsys.readouterr()
    assert run("select", tmp_path / "g.npy", "-k", 1, "--out", name) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SpiceError):
        spice_rs.GradientStore.create(name, dim=2).close()


# --- threads and faults ------------------------------------------------------------------------------------------


THREADS = """
import sys
import numpy as np, spice_rs
rows = np.random.default_rng(0).standard_normal((100, 8)).astype("f4")
print(spice_rs.select(rows, 3).indices.tolist(), spice_rs.select(rows, 3, threads=4096).indices.tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", ["100000", "1000000000", "0", "-1", "x", ""])
def test_numbers_of_threads_that_nobody_means(count: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
        "RAYON_NUM_THREADS": count,
    }
    command = [sys.executable, "-W", "ignore", "-c", THREADS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
    assert (done.stdout, done.stderr) == ("[29, 37, 27] [29, 37, 27]\n", "")
    rows = np.eye(3, dtype=np.float32)
    for wrong in (0, -1, 100_000, 10**9, "2", True):
        with pytest.raises(InvalidInputError, match="threads: found"):
            spice_rs.select(rows, 1, threads=wrong)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("no 4 GiB"), "memory ran out"),
        (OSError(28, "No space left on device", "f"), "No space left on device"),
        (RecursionError("too deep"), "a fault of spice-rs at"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), "a fault of spice-rs at"),
        (KeyError("k"), "a fault of spice-rs at"),
    ],
)
def test_the_command_line_says_everything_in_one_line(
    error: Exception,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    np.save(tmp_path / "g.npy", np.eye(3, dtype=np.float32))
    monkeypatch.setattr("spice_rs.store.sources.open_source", fail)
    assert run("select", tmp_path / "g.npy", "-k", 1) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    monkeypatch.setenv("SPICE_TRACEBACK", "1")
    if "fault" in says:
        with pytest.raises(type(error)):
            run("select", tmp_path / "g.npy", "-k", 1)
