"""Files that someone damaged, cut or made up: each is an error that names it, never a crash, a hang or a wrong row."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from spice_rs.errors import CorruptStoreError, InvalidInputError, StoreError
from spice_rs.store.store import GradientStore
from stores import put, sealed, sealed_schema, shards, split

DIM = 6
DTYPES = ("int8", "float16", "bfloat16", "float32")
NEEDS_PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


def some_rows(n: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)


def open_and_verify(path: Path) -> None:
    GradientStore(path).verify()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small store."""
    path = tmp_path_factory.mktemp("sound")
    with GradientStore.create(path, dim=DIM, provenance={"model": "m"}, writer="w", rows_per_shard=4) as w:
        w.append(
            some_rows(8), np.arange(8), num_tokens=np.ones(8, int), loss=np.ones(8), record=np.arange(-4, 4)
        )
    open_and_verify(path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_changed_byte_before_the_gradients_is_found_when_opened(
    tmp_path: Path, sound: dict[str, bytes]
) -> None:
    name = "shard-w-000000.safetensors"
    header, data = split(put(tmp_path / "s", sound) / name)
    gradients = len(sound[name]) - len(data) + header["gradients"]["data_offsets"][0]
    for position in range(gradients):
        changed = bytearray(sound[name])
        changed[position] ^= 0x10
        put(tmp_path / "s", {name: bytes(changed)})
        with pytest.raises(CorruptStoreError):
            GradientStore(tmp_path / "s")
    changed = bytearray(sound[name])
    changed[gradients] ^= 0x10
    put(tmp_path / "s", {name: bytes(changed)})
    with pytest.raises(CorruptStoreError, match="data_checksum"):
        GradientStore(tmp_path / "s").verify()


def test_a_file_cut_short_anywhere_is_found_when_opened(tmp_path: Path, sound: dict[str, bytes]) -> None:
    for name, content in sound.items():
        for length in {*range(0, len(content), 7), 0, 1, 7, 8, 9, len(content) - 1}:
            with pytest.raises(CorruptStoreError):
                GradientStore(put(tmp_path / "s", sound | {name: content[:length]}))
        with pytest.raises(CorruptStoreError):
            GradientStore(put(tmp_path / "s", sound | {name: content + b"\0"}))


def test_a_file_cut_short_while_it_is_open_is_found(tmp_path: Path, sound: dict[str, bytes]) -> None:
    store = GradientStore(put(tmp_path, sound))
    os.truncate(tmp_path / "shard-w-000001.safetensors", 100)
    with pytest.raises(CorruptStoreError, match="file size"):
        store.verify()


def hostile_headers() -> dict[str, dict]:
    huge = 2**64 - 1
    return {
        "offsets past the end": {
            "gradients": {"dtype": "F16", "shape": [4, DIM], "data_offsets": [96, 10**6]}
        },
        "overlapping": {"norm": {"dtype": "F32", "shape": [4], "data_offsets": [32, 48]}},
        "wrong dtype": {"index": {"dtype": "F64", "shape": [4], "data_offsets": [0, 32]}},
        "unknown dtype": {"gradients": {"dtype": "X", "shape": [4, DIM], "data_offsets": [96, 144]}},
        "wider": {"gradients": {"dtype": "F16", "shape": [4, DIM + 1], "data_offsets": [96, 144]}},
        "overflow": {"gradients": {"dtype": "F16", "shape": [huge, huge], "data_offsets": [96, huge]}},
        "more than 64 bits": {"gradients": {"dtype": "F16", "shape": [2**70, 2], "data_offsets": [96, 144]}},
        "negative": {"gradients": {"dtype": "F16", "shape": [-4, DIM], "data_offsets": [96, 144]}},
        "no list": {"gradients": {"dtype": "F16", "shape": 4, "data_offsets": "all"}},
        "unknown tensor": {"more": {"dtype": "F32", "shape": [0], "data_offsets": [144, 144]}},
        "null": {"scale": None},
    }


@pytest.mark.parametrize("name", hostile_headers())
def test_a_header_that_lies_is_an_error_and_no_crash(
    tmp_path: Path, sound: dict[str, bytes], name: str
) -> None:
    shard = put(tmp_path, sound) / "shard-w-000000.safetensors"
    header, data = split(shard)
    shard.write_bytes(sealed(header, data))
    open_and_verify(tmp_path)
    shard.write_bytes(sealed(header | hostile_headers()[name], data))
    with pytest.raises(CorruptStoreError):
        GradientStore(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 0),
        struct.pack("<Q", 10**6) + b"[" * 10**6,
        struct.pack("<Q", 10**6) + b'{"a":' * 200_000,
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
    ],
    ids=["huge", "large", "empty object", "no header", "nested lists", "nested objects", "zip", "zeros"],
)
def test_a_file_that_is_no_shard_is_an_error_and_no_crash(
    tmp_path: Path, sound: dict[str, bytes], content: bytes
) -> None:
    put(tmp_path, sound | {"shard-x-000000.safetensors": content})
    with pytest.raises(CorruptStoreError):
        GradientStore(tmp_path)


@NEEDS_PIPES
@pytest.mark.parametrize("name", ["shard-x-000000.safetensors", "store.json"])
def test_a_pipe_is_an_error_and_no_hang(tmp_path: Path, sound: dict[str, bytes], name: str) -> None:
    (put(tmp_path, sound) / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CorruptStoreError, match=f"{name}.*regular file"):
        GradientStore(tmp_path)


def test_a_shard_of_another_store_is_found(tmp_path: Path, sound: dict[str, bytes]) -> None:
    with GradientStore.create(tmp_path / "other", dim=DIM, provenance={"model": "another"}) as w:
        w.append(some_rows(1), [100])
    shards(tmp_path / "other")[0].rename(put(tmp_path / "s", sound) / "shard-x-000000.safetensors")
    with pytest.raises(CorruptStoreError, match="schema_id"):
        GradientStore(tmp_path / "s")


def test_wrong_values_under_right_checksums_are_found(tmp_path: Path, sound: dict[str, bytes]) -> None:
    name = "shard-w-000001.safetensors"
    header, data = split(put(tmp_path, sound) / name)
    for tensor, row, value, message in [
        ("gradients", 7, struct.pack("<e", np.nan), r"row 1 of the file \(index 5\), column 1: found NaN"),
        ("gradients", 0, struct.pack("<e", 100), r"norm, row 0 of the file"),
        ("norm", 1, struct.pack("<f", 100), r"norm, row 1 of the file"),
        ("norm", 1, struct.pack("<f", np.nan), "norm, row 1 of the file: found NaN"),
        ("scale", 2, struct.pack("<f", 0), "scale, row 2"),
        ("index", 3, struct.pack("<q", -1), "index, row 3"),
        ("num_tokens", 3, struct.pack("<i", -1), "num_tokens, row 3"),
    ]:
        changed = bytearray(data)
        at = header[tensor]["data_offsets"][0] + row * len(value)
        changed[at : at + len(value)] = value
        (tmp_path / name).write_bytes(sealed(header, bytes(changed)))
        with pytest.raises(CorruptStoreError, match=message):
            open_and_verify(tmp_path)


@pytest.mark.parametrize("name", ["shard-x-000000.safetensors", "store.json"])
def test_links_are_not_followed(tmp_path: Path, sound: dict[str, bytes], name: str) -> None:
    outside = tmp_path / "outside"
    path = put(tmp_path / "s", sound)
    outside.write_bytes(sound["store.json"] if name == "store.json" else b"secret")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(outside)
    with pytest.raises(CorruptStoreError, match="regular file"):
        GradientStore(path)


@NEEDS_PIPES
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "folder"])
def test_a_lock_that_is_no_regular_file_is_refused(
    tmp_path: Path, sound: dict[str, bytes], kind: str
) -> None:
    path, outside = put(tmp_path / "s", sound), tmp_path / "outside"
    lock = path / ".lock"
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(outside)
    if kind == "link":
        outside.write_bytes(b"mine")
    for work in (
        lambda: GradientStore(path).compact(),
        lambda: GradientStore(path).delete([0]),
        lambda: GradientStore.repair(path),
    ):
        with pytest.raises(StoreError, match=r"\.lock.*found no regular file.*Remove it"):
            work()
    assert outside.exists() == (kind == "link")
    open_and_verify(path)


def test_a_link_to_a_shard_of_the_same_store_is_no_second_copy(
    tmp_path: Path, sound: dict[str, bytes]
) -> None:
    path = put(tmp_path / "s", sound)
    (path / "shard-x-000000.safetensors").symlink_to("shard-w-000000.safetensors")
    with pytest.raises(CorruptStoreError, match="regular file"):
        GradientStore(path)
    assert [shard["name"] for shard in GradientStore.repair(path)["damaged"]] == [
        "damaged-shard-x-000000.safetensors"
    ]
    open_and_verify(path)


def regions(name: str, content: bytes) -> dict[str, range]:
    """The parts of a file of a store, which together are the file."""
    if name == "store.json":
        seal = len(content) - 20
        return {"members": range(seal), "seal": range(seal, seal + 16), "end": range(seal + 16, len(content))}
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length]
    seal = 8 + text.index(b"xxh3-64:") + 8
    parts = {
        "length": range(8),
        "before the seal": range(8, seal),
        "seal": range(seal, seal + 16),
        "header": range(seal + 16, 8 + len(text.rstrip())),
        "padding": range(8 + len(text.rstrip()), 8 + length),
    }
    tensors = {key: value for key, value in json.loads(text).items() if key != "__metadata__"}
    for key, tensor in tensors.items():
        parts[key] = range(*(8 + length + offset for offset in tensor["data_offsets"]))
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_changed_byte_and_every_cut_of_every_region_is_found(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "s"
    with GradientStore.create(path, dim=DIM, dtype=dtype, rows_per_shard=2, provenance={"a": [1, {}]}) as w:
        w.append(some_rows(3), [3, 1, 2], num_tokens=[1, 2, 3], loss=[0.5, 0.25, 1])
    # One shard in place of two, so that its header has a list; and another that has none.
    GradientStore(path).compact()
    with GradientStore.create(path, dim=DIM, dtype=dtype, provenance={"a": [1, {}]}) as w:
        w.append(np.zeros((1, DIM), np.float32), [0], num_tokens=[0], loss=[0.0])
    open_and_verify(path)
    rng = np.random.default_rng(0)
    for file in [*shards(path), path / "store.json"]:
        content = file.read_bytes()
        parts = regions(file.name, content)
        assert [at for part in parts.values() for at in part] == list(range(len(content)))
        for part in parts.values():
            # One dtype says it for all: every byte once, and one byte of each part in every way.
            picked = part if dtype == "int8" else sorted({*part[:1], *part[-1:], *rng.choice(part or [0], 4)})
            changes = [(at, int(rng.integers(1, 256))) for at in picked if at in part]
            if dtype == "int8" and part:
                changes += [(int(rng.choice(part)), flip) for flip in range(1, 256)]
            for at, flip in changes:
                changed = bytearray(content)
                changed[at] ^= flip
                file.write_bytes(changed)
                with pytest.raises(CorruptStoreError, match=file.name.replace(".", r"\.")):
                    open_and_verify(path)
        for length in range(0, len(content), 1 if dtype == "int8" else 29):
            file.write_bytes(content[:length])
            with pytest.raises(CorruptStoreError, match=file.name.replace(".", r"\.")):
                GradientStore(path)
        for more in (b"\0", b" ", b"\n", content):
            file.write_bytes(content + more)
            with pytest.raises(CorruptStoreError, match=file.name.replace(".", r"\.")):
                GradientStore(path)
        file.write_bytes(content)
    open_and_verify(path)


def schema_text(**changes: str) -> str:
    """Members of a store.json, with some of them replaced by other JSON."""
    members = {
        "format_version": "1",
        "schema_id": '"' + "0" * 32 + '"',
        "dim": "4",
        "dtype": '"float16"',
        "reduction": "null",
        "provenance": "{}",
        "written_by": '"me"',
    }
    return ",".join(f'"{name}": {value}' for name, value in (members | changes).items())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (schema_text(dim=str(2**32 + 1)), "dim: found 4294967297, expected 1 to 4294967296"),
        (schema_text(dim=str(2**63)), "dim"),
        (schema_text(dim="0"), "dim"),
        (schema_text(dim="-1"), "JSON"),
        (schema_text(dim="1e3"), "JSON"),
        (schema_text(dtype='"float64"'), "dtype"),
        (schema_text(provenance="[]"), "JSON"),
        (schema_text(provenance='{"a":' * 200 + "1" + "}" * 200), "recursion limit"),
        (schema_text(provenance='{"a":' + "[" * 100_000), "JSON"),
        (schema_text(provenance='{"a": [' + "0," * 2**20 + "0]}"), r"JSON: found \d+ values"),
        (schema_text(provenance='{"a": [' + '{"":0},' * 2**20 + "0]}"), r"JSON: found \d+ values"),
        (schema_text(provenance='{"a": "' + "x" * 2**24 + '"}'), "at most 16777216 bytes"),
        (schema_text(provenance='{"a": "\\ud800"}'), "JSON"),
        (schema_text() + ', "dim": 5', "duplicate field"),
        (schema_text() + ', "more": 5', "unknown field"),
        (schema_text(), "schema_id: found 0{32}"),
        (schema_text(schema_id='"../../x"'), "schema_id"),
        ("", "JSON"),
    ],
    ids=lambda value: value[:40] if len(value) < 60 else "",
)
def test_a_schema_that_lies_is_an_error_and_no_crash(tmp_path: Path, members: str, message: str) -> None:
    (tmp_path / "store.json").write_bytes(sealed_schema(members))
    with pytest.raises(CorruptStoreError, match=rf"store\.json.*{message}"):
        GradientStore(tmp_path)


def test_what_a_reader_refuses_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="dim: found 4294967297"):
        GradientStore.create(tmp_path / "s", dim=2**32 + 1)
    with pytest.raises(InvalidInputError, match="provenance"):
        GradientStore.create(tmp_path / "s", dim=2, provenance={"a": [0] * 2**20})
    assert not (tmp_path / "s").exists()
    # Commas and brackets in a string are no values.
    text = ',[{:"\\' * 2**18
    GradientStore.create(tmp_path / "s", dim=2, provenance={"a": text}).close()
    assert GradientStore(tmp_path / "s").provenance["a"] == text


LIMITED = """
import resource, sys
import numpy as np
from spice_rs import CorruptStoreError, GradientStore
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        store = GradientStore(path)
        store.verify()
        assert (len(store), store.dim) == (0, 2**32) and store.read([]).shape == (0, 2**32)
        print("opened", end=" ")
    except CorruptStoreError:
        print("refused", end=" ")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by what Linux calls the address space")
def test_no_memory_is_taken_by_a_number_that_a_file_states(tmp_path: Path, sound: dict[str, bytes]) -> None:
    # Rows of 16 GiB, none of which is there.
    wide = tmp_path / "wide"
    GradientStore.create(wide, dim=2**32).close()
    schema_id = json.loads((wide / "store.json").read_text())["schema_id"]
    header, data = split(put(tmp_path / "lies", sound) / "shard-w-000000.safetensors")
    empty = {
        name: part | {"data_offsets": [0, 0], "shape": [0]} for name, part in header.items() if name[0] != "_"
    }
    empty["gradients"]["shape"] = [0, 2**32]
    metadata = header["__metadata__"] | {"rows": "0", "schema_id": schema_id}
    del metadata["rows_checksum"]  # of no rows
    put(wide, {"shard-w-000000.safetensors": sealed({"__metadata__": metadata} | empty, b"")})
    # Rows and columns that are not in the file, and a header as long as can be stated.
    header["gradients"] |= {"shape": [2**40, DIM], "data_offsets": [96, 96 + 2**41 * DIM]}
    header["__metadata__"]["rows"] = str(2**40)
    put(tmp_path / "lies", {"shard-w-000000.safetensors": sealed(header, data)})
    put(tmp_path / "long", sound | {"shard-w-000000.safetensors": struct.pack("<Q", 2**63) + bytes(100)})
    # In memory, this text would take a gigabyte.
    (tmp_path / "bomb").mkdir()
    text = schema_text(provenance='{"a": [' + '{"":0},' * 2_000_000 + "0]}")
    (tmp_path / "bomb" / "store.json").write_bytes(sealed_schema(text))
    command = [
        sys.executable,
        "-c",
        LIMITED,
        *(str(tmp_path / name) for name in ("wide", "lies", "long", "bomb")),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.stdout.split(), done.stderr) == (["opened", "refused", "refused", "refused"], "")


def test_whatever_reads_all_rows_notices_a_flipped_bit(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    with GradientStore.create(tmp_path / "s", dim=8, dtype="float16", rows_per_shard=15) as writer:
        writer.append(rows, np.arange(40) + 100)
    selection = spice_rs.select(tmp_path / "s", 5)
    shard = sorted((tmp_path / "s").glob("shard-*"))[1]
    contents = bytearray(shard.read_bytes())
    contents[-1] ^= 0x40  # the last cell of its last row becomes a large number
    shard.write_bytes(contents)
    pattern = (
        rf"{shard.name}: rows_checksum, row 14 of the file \(index 129\): found xxh3-64:.*, expected xxh3-64:"
    )
    opened = GradientStore(tmp_path / "s")  # opening reads no gradients
    for call in (
        lambda: spice_rs.select(opened, 5),
        lambda: spice_rs.select(opened, 5, normalize="unit", fisher="diagonal"),
        lambda: spice_rs.select([opened], pool_size=20, select_per_window=2),
        lambda: spice_rs.certify(selection, opened),
        lambda: spice_rs.curvature(opened),
    ):
        with pytest.raises(CorruptStoreError, match=pattern):
            call()
