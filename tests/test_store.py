"""The gradient store: what goes in comes out, what is damaged is found, what is unfinished is not there."""

from __future__ import annotations

import _thread
import gc
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from counts import cases
from spice_rs.errors import CorruptStoreError, InvalidInputError, SpiceError, StoreError, StoreMismatchError
from spice_rs.store.store import GradientStore
from stores import rows_checksum, sealed, shards, split, xxh3

# dtype: (relative error of a cell, absolute error of a cell for each unit of scale)
BOUNDS = {
    "int8": (0.0, 0.50004),
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
    "float32": (0.0, 0.0),
}
DIM = 6


def some_rows(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def fill(path: Path, index: list[int], *, dim: int = DIM, **options: object) -> np.ndarray:
    rows = some_rows(len(index), dim, seed=sum(index))
    with GradientStore.create(path, dim=dim, **options) as w:
        w.append(rows, index)
    return rows


@pytest.mark.parametrize("dtype", BOUNDS)
def test_rows_come_back_within_the_bound_of_the_dtype(tmp_path: Path, dtype: str) -> None:
    rows = np.concatenate(
        [
            some_rows(4),
            some_rows(4) * 1e6,
            some_rows(4) * 1e-9,
            some_rows(2) * 1e37,
            some_rows(2) * 1e-38,
            np.zeros((1, DIM)),
        ]
    ).astype(np.float32)
    n = len(rows)
    index = np.arange(n)[::-1] * 3
    with GradientStore.create(tmp_path / "s", dim=DIM, dtype=dtype, reduction="sum", rows_per_shard=5) as w:
        w.append(rows, index, num_tokens=np.arange(n), loss=np.linspace(0, 1, n))
    store = GradientStore(tmp_path / "s")
    assert len(store) == n
    assert (store.dim, store.dtype, store.reduction) == (DIM, dtype, "sum")
    assert len(shards(tmp_path / "s")) == -(-n // 5)
    np.testing.assert_array_equal(store.index, index)
    assert store.index.dtype == np.int64
    np.testing.assert_array_equal(store.num_tokens, np.arange(n))
    np.testing.assert_array_equal(store.loss, np.linspace(0, 1, n, dtype=np.float32))
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    np.testing.assert_allclose(store.norm, norms, rtol=1e-6, atol=1e-44)

    back = store.read(np.arange(n))
    assert back.dtype == np.float32
    relative, absolute = BOUNDS[dtype]
    scale = store._core.scale.astype(np.float64)[:, None]
    error = np.abs(back.astype(np.float64) - rows)
    assert np.all(error <= relative * np.abs(rows.astype(np.float64)) + absolute * scale + 2.0**-150)
    # Magnitude costs no precision: the same relative error for every row.
    share = 0.51 / 127 * DIM**0.5 if dtype == "int8" else 2 * relative
    lost = np.linalg.norm(back.astype(np.float64) - rows, axis=1)
    # The scale of bytes is a normal number, which bounds them from below.
    assert np.all((lost <= share * norms) | ((norms < 1e-35) & (dtype == "int8")))
    assert not back[-1].any()
    if dtype != "int8":
        np.testing.assert_array_equal(np.log2(scale) % 1, 0)
        # Ordinary rows are stored as they are.
        assert np.all(scale[:4] == 1)
    np.testing.assert_array_equal(store.read([3, 0, 3]), back[[3, 0, 3]])
    assert store.verify() == {
        "shards": -(-n // 5),
        "rows": n,
        "bytes": store.info()["bytes"],
        "superseded": [],
        "leftovers": [],
    }


@cases(60)
@given(
    rows=hnp.arrays(
        np.float16,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(-65504, 65504, width=16),
    )
)
def test_values_of_the_stored_dtype_come_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("s")
    with GradientStore.create(path, dim=rows.shape[1], dtype="float16") as w:
        w.append(rows, np.arange(len(rows)))
    np.testing.assert_array_equal(GradientStore(path).read(np.arange(len(rows))), rows)
    GradientStore(path).verify()


def test_the_safetensors_package_reads_the_same_rows(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    rows = some_rows(3) * np.float32(1e6)
    with GradientStore.create(tmp_path, dim=DIM) as w:
        w.append(rows, [5, 1, 2], num_tokens=[7, 8, 9])
    with safetensors.safe_open(shards(tmp_path)[0], framework="np") as shard:
        assert sorted(shard.keys()) == ["gradients", "index", "norm", "num_tokens", "scale"]
        stored, scale = shard.get_tensor("gradients"), shard.get_tensor("scale")
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(shard.get_tensor("index"), [5, 1, 2])
        np.testing.assert_array_equal(shard.get_tensor("num_tokens"), [7, 8, 9])
        assert shard.metadata()["rows"] == "3"
    np.testing.assert_array_equal(
        GradientStore(tmp_path).read([0, 1, 2]), stored.astype(np.float32) * scale[:, None]
    )


def test_torch_reads_bfloat16_shards(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    rows = torch.randn(3, DIM).to(torch.bfloat16)
    with GradientStore.create(tmp_path, dim=DIM, dtype="bfloat16") as w:
        w.append(rows, torch.arange(3))
    assert torch.equal(load_file(shards(tmp_path)[0])["gradients"], rows)
    np.testing.assert_array_equal(GradientStore(tmp_path).read([0, 1, 2]), rows.float().numpy())


def test_the_files_are_as_the_format_says(tmp_path: Path) -> None:
    rows = np.array([[1.0, -2.0], [0.0, 65536.0]], dtype=np.float32)
    with GradientStore.create(tmp_path, dim=2, provenance={"b": 1, "a": {"z": 0.1}}, writer="w") as w:
        w.append(rows, [4, 9], loss=[0.5, 0.25])
    assert sorted(os.listdir(tmp_path)) == ["shard-w-000000.safetensors", "store.json"]

    text = (tmp_path / "store.json").read_bytes()
    schema = json.loads(text)
    assert list(schema) == [
        "format_version", "schema_id", "dim", "dtype", "reduction", "provenance", "written_by", "checksum",
    ]  # fmt: skip
    assert schema["format_version"] == 1
    assert schema["reduction"] is None
    assert schema["checksum"] == xxh3(text[:-20] + b"0" * 16 + text[-4:])
    content = {key: schema[key] for key in ("format_version", "dim", "dtype", "reduction", "provenance")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert schema["schema_id"] == pytest.importorskip("xxhash").xxh3_128_hexdigest(canonical)

    shard = tmp_path / "shard-w-000000.safetensors"
    header, data = split(shard)
    nonce = header["__metadata__"]["nonce"]
    assert re.fullmatch("[0-9a-f]{16}", nonce)
    assert header == {
        "__metadata__": {
            "header_checksum": header["__metadata__"]["header_checksum"],
            "format_version": "1",
            "schema_id": schema["schema_id"],
            "rows": "2",
            "columns_checksum": xxh3(data[:40]),
            "data_checksum": xxh3(data),
            "rows_checksum": rows_checksum(header, data),
            "nonce": nonce,
            "supersedes": "{}",
        },
        "index": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "scale": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
        "norm": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
        "loss": {"dtype": "F32", "shape": [2], "data_offsets": [32, 40]},
        "gradients": {"dtype": "F16", "shape": [2, 2], "data_offsets": [40, 48]},
    }
    assert (shard.stat().st_size - len(data)) % 64 == 0
    assert data == (
        struct.pack("<2q", 4, 9)
        + struct.pack("<2f", 1, 4)
        + struct.pack("<2f", 5**0.5, 65536)
        + struct.pack("<2f", 0.5, 0.25)
        + struct.pack("<4e", 1, -2, 0, 16384)
    )
    assert shard.read_bytes() == sealed(header, data)


def test_a_store_without_rows_is_a_store(tmp_path: Path) -> None:
    with GradientStore.create(tmp_path, dim=3):
        pass
    store = GradientStore(tmp_path)
    assert len(store) == 0
    assert store.read([]).shape == (0, 3)
    assert store.loss is None
    assert store.num_tokens is None
    assert store.verify() == {"shards": 0, "rows": 0, "bytes": 0, "superseded": [], "leftovers": []}
    # A shard without rows is legal too.
    fill(tmp_path, [1], dim=3)
    header, _ = split(shards(tmp_path)[0])
    header["__metadata__"] |= {"rows": "0", "rows_checksum": "xxh3-64:" + "0" * 16}
    for name, width in ("index", ()), ("scale", ()), ("norm", ()), ("gradients", (3,)):
        header[name] |= {"shape": [0, *width], "data_offsets": [0, 0]}
    (tmp_path / "shard-0-empty.safetensors").write_bytes(sealed(header, b""))
    store = GradientStore(tmp_path)
    assert len(store) == 1
    assert store.verify()["shards"] == 2
    assert store.read([0]).shape == (1, 3)


def test_writers_need_no_coordination(tmp_path: Path) -> None:
    first = GradientStore.create(tmp_path, dim=DIM, rows_per_shard=2)
    second = GradientStore.create(tmp_path, dim=DIM, rows_per_shard=3)
    rows = some_rows(20)
    for row in range(20):
        (first if row % 3 else second).append(rows[row : row + 1], [row])
    first.close()
    second.close()
    store = GradientStore(tmp_path)
    assert sorted(store.index) == list(range(20))
    np.testing.assert_array_equal(
        store.read(np.argsort(store.index)), rows.astype(np.float16).astype(np.float32)
    )


def test_two_writers_of_one_name_keep_all_rows(tmp_path: Path) -> None:
    with (
        GradientStore.create(tmp_path, dim=DIM, writer="w") as a,
        GradientStore.create(tmp_path, dim=DIM, writer="w") as b,
    ):
        a.append(some_rows(2), [0, 1])
        b.append(some_rows(2), [2, 3])
    assert [shard.name for shard in shards(tmp_path)] == [
        "shard-w-000000.safetensors",
        "shard-w-000001.safetensors",
    ]
    assert sorted(GradientStore(tmp_path).index) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dim": 7}, "dim: found 6, expected 7"),
        ({"dtype": "float32"}, 'dtype: found "float16", expected "float32"'),
        ({"reduction": "mean"}, 'reduction: found "sum", expected "mean"'),
        ({"provenance": {"projection": {"seed": 2}}}, "provenance.projection.seed: found 1, expected 2"),
        ({"provenance": {}}, "provenance.projection: found"),
    ],
)
def test_another_schema_is_a_mismatch_that_names_the_field(tmp_path: Path, change: dict, field: str) -> None:
    schema = {"dim": DIM, "reduction": "sum", "provenance": {"projection": {"seed": 1}}}
    with GradientStore.create(tmp_path, **schema) as w:
        w.append(some_rows(1), [0])
    with GradientStore.create(tmp_path, **schema) as w:
        w.append(some_rows(1), [1])
    with pytest.raises(StoreMismatchError, match=field):
        GradientStore.create(tmp_path, **(schema | change))
    assert len(GradientStore(tmp_path)) == 2


def test_a_row_is_in_a_store_once(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1, 2])
    with GradientStore.create(tmp_path, dim=DIM) as w:
        assert w.contains([2, 3]).tolist() == [True, False]
        with pytest.raises(InvalidInputError, match="row 2 a second time"):
            w.append(some_rows(2), [3, 2])
        # Nothing of a refused append is kept.
        assert w.contains([2, 3]).tolist() == [True, False]
        w.append(some_rows(1), [3])
        with pytest.raises(InvalidInputError, match="row 3"):
            w.append(some_rows(1), [3])
    assert sorted(GradientStore(tmp_path).index) == [0, 1, 2, 3]


def test_a_row_that_two_writers_wrote_is_an_error_with_both_shards(tmp_path: Path) -> None:
    with (
        GradientStore.create(tmp_path, dim=DIM, writer="a") as a,
        GradientStore.create(tmp_path, dim=DIM, writer="b") as b,
    ):
        a.append(some_rows(2), [7, 8])
        b.append(some_rows(2), [6, 7])
    with pytest.raises(
        StoreError,
        match=r"index 7: found one row in .*shard-a-000000.* and another in .*shard-b-000000.*--differing",
    ):
        GradientStore(tmp_path)


def test_bad_rows_are_refused_with_their_place(tmp_path: Path) -> None:
    rows = some_rows(3)
    nan, inf, huge = rows.copy(), rows.copy(), rows.astype(np.float64)
    nan[1, 4], inf[2, 0], huge[0, 3] = np.nan, -np.inf, 1e300
    with GradientStore.create(tmp_path, dim=DIM) as w:
        for bad, message in [
            (nan, "row 11, column 4: found NaN"),
            (inf, "row 12, column 0: found -inf"),
            (huge, "row 10, column 3: found inf"),
            (np.full((3, DIM), 3e38), "norm"),
            (rows[:, :4], r"shape \(3, 4\), expected \(m, 6\)"),
            (rows[0], r"shape \(6,\), expected \(m, 6\)"),
            (rows.astype(np.int32), "int32, expected floats"),
            ("rows", "shape"),
            ([[1.0], [1.0, 2.0]], "rows"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                w.append(bad, [10, 11, 12])
        for index, message in [
            ([0, 1], r"index: found shape \(2,\), expected \(3,\)"),
            ([0, -1, 2], "index of row -1"),
            ([0.0, 1.0, 2.0], "float64, expected integers"),
            ([[0, 1, 2]], r"\(1, 3\)"),
            (np.array([0, 1, 2**63], dtype=np.uint64), "index"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                w.append(rows, index)
        for optional, message in [
            ({"num_tokens": [1, 2]}, "num_tokens"),
            ({"num_tokens": [1, -2, 3]}, "num_tokens of row 1"),
            ({"num_tokens": [1, 2, 2**31]}, "num_tokens"),
            ({"loss": [1.0, np.nan, 3.0]}, "loss of row 1"),
            ({"loss": [1, 2, 3]}, "loss"),
            ({"record": [1, 2]}, "record"),
            ({"record": [1.0, 2.0, 3.0]}, "record: found float64"),
            ({"record": np.uint64([1, 2, 2**63])}, "record"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                w.append(rows, [0, 1, 2], **optional)
        w.append(rows[::-1, ::-1], [0, 1, 2])
    np.testing.assert_array_equal(GradientStore(tmp_path).read([0]), rows[2:, ::-1].astype(np.float16))
    with pytest.raises(InvalidInputError, match="closed"):
        w.append(rows, [3, 4, 5])
    w.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"dim": 0},
        {"dim": -1},
        {"dtype": "float64"},
        {"dtype": "uint8"},
        {"reduction": "median"},
        {"provenance": {"x": float("nan")}},
        {"provenance": {"x": object()}},
        {"rows_per_shard": 0},
        {"seconds_per_shard": float("nan")},
        {"seconds_per_shard": -1.0},
        {"writer": ""},
        {"writer": "../x"},
        {"writer": "a/b"},
    ],
    ids=str,
)
def test_bad_settings_are_refused_and_create_nothing(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(InvalidInputError):
        GradientStore.create(tmp_path / "s", **({"dim": DIM} | bad))
    assert not (tmp_path / "s").exists()


def test_positions_out_of_range_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [5, 6])
    store = GradientStore(tmp_path)
    for bad in ([2], [-1], [0.5], [[0]], [True], [2**62]):
        with pytest.raises(InvalidInputError):
            store.read(bad)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_many_rows_are_read_as_single_ones_are(tmp_path: Path, dtype: str) -> None:
    # Enough for several threads and several looks at signals.
    n, dim = 3000, 1500
    rows = some_rows(n, dim)
    with GradientStore.create(tmp_path, dim=dim, dtype=dtype, rows_per_shard=700) as w:
        w.append(rows, np.arange(n))
    store = GradientStore(tmp_path)
    positions = np.random.default_rng(0).integers(0, n, n)
    out = np.full((n, dim), np.nan, np.float32)
    assert store.read(positions, out) is out
    np.testing.assert_array_equal(out, store.read(positions))
    for at in (0, 1, 1499, 1500, 2795, 2796, n - 1):
        np.testing.assert_array_equal(out[at : at + 1], store.read(positions[at : at + 1]))
    positions[-1] = n
    with pytest.raises(InvalidInputError, match=f"positions: found {n}, expected less than {n}"):
        store.read(positions)


def test_an_array_that_rows_cannot_be_read_into_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [5, 6])
    store = GradientStore(tmp_path)
    good = np.full((2, DIM), 7, np.float32)
    fixed = good.copy()
    fixed.flags.writeable = False
    for bad, found in (
        (np.zeros((1, DIM), np.float32), rf"float32 \(1, {DIM}\)"),
        (np.zeros((2, DIM)), "float64"),
        (np.zeros((2, DIM), ">f4"), ">f4"),
        (np.zeros((DIM, 2), np.float32).T, "not C-contiguous"),
        (np.zeros((2, 2 * DIM), np.float32)[:, ::2], "not C-contiguous"),
        (fixed, "read-only"),
    ):
        with pytest.raises(InvalidInputError, match=f"out: found .*{found}"):
            store.read([0, 1], bad)
    with pytest.raises(InvalidInputError, match="out: found list"):
        store.read([0, 1], [[0.0] * DIM] * 2)
    with pytest.raises(InvalidInputError, match="positions"):
        store.read([0, 2], good)
    np.testing.assert_array_equal(store.read([1, 0], good[::1]), store.read([1, 0]))
    assert store.read([], np.empty((0, DIM), np.float32)).shape == (0, DIM)


def test_optional_columns_are_there_for_all_rows_or_absent(tmp_path: Path) -> None:
    with GradientStore.create(tmp_path, dim=DIM) as w:
        w.append(some_rows(1), [0], num_tokens=[3])
        with pytest.raises(InvalidInputError, match="num_tokens: found none, expected values"):
            w.append(some_rows(1), [1])
        with pytest.raises(InvalidInputError, match="loss: found values, expected none"):
            w.append(some_rows(1), [1], num_tokens=[3], loss=[1.0])
    with GradientStore.create(tmp_path, dim=DIM) as w:
        with pytest.raises(InvalidInputError, match="num_tokens: found none"):
            w.append(some_rows(1), [1])
        w.append(some_rows(1), [1], num_tokens=[4], loss=[1.0])
    store = GradientStore(tmp_path)
    np.testing.assert_array_equal(store.num_tokens, [3, 4])
    assert store.loss is None
    assert store.info()["columns"] == ["index", "scale", "norm", "num_tokens"]


def test_hashes_of_records_come_back_and_lie_behind_the_index(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    hashes = [-(1 << 63), (1 << 63) - 1, 0]
    with GradientStore.create(tmp_path, dim=DIM, dtype="int8") as w:
        w.append(some_rows(3), [5, 1, 2], num_tokens=[1, 2, 3], record=hashes)
        with pytest.raises(InvalidInputError, match="record: found none, expected values"):
            w.append(some_rows(1), [7], num_tokens=[1])
    store = GradientStore(tmp_path)
    store.verify()
    assert store.record.dtype == np.int64
    assert store.record.tolist() == hashes
    assert store.info()["columns"] == ["index", "scale", "norm", "num_tokens", "record"]
    with safetensors.safe_open(shards(tmp_path)[0], framework="np") as shard:
        assert shard.get_tensor("record").tolist() == hashes
    with (
        GradientStore.create(tmp_path, dim=DIM, dtype="int8") as w,
        pytest.raises(InvalidInputError, match="record"),
    ):
        w.append(some_rows(1), [7], num_tokens=[1])
    # A store that began without them stays one without.
    with GradientStore.create(tmp_path / "old", dim=DIM) as w:
        w.append(some_rows(1), [0])
    with GradientStore.create(tmp_path / "old", dim=DIM) as w:
        w.append(some_rows(1), [1], record=[3])
    assert GradientStore(tmp_path / "old").record is None


def test_what_is_no_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "file", tmp_path):
        with pytest.raises(StoreError, match=r"store\.json"):
            GradientStore(path)
    with pytest.raises(StoreError):
        GradientStore.create(tmp_path / "file", dim=2)
    fill(tmp_path / "s", [1])
    (tmp_path / "s" / "store.json").unlink()
    with pytest.raises(StoreError, match=r"shards without store\.json"):
        GradientStore.create(tmp_path / "s", dim=DIM)


def test_a_schema_that_was_edited_is_found_under_a_right_checksum(tmp_path: Path) -> None:
    fill(tmp_path, [1], provenance={"seed": 1})
    text = (tmp_path / "store.json").read_bytes().replace(b'"seed": 1', b'"seed": 2')
    digits = xxh3(text[:-20] + b"0" * 16 + text[-4:])[-16:].encode()
    (tmp_path / "store.json").write_bytes(text[:-20] + digits + text[-4:])
    with pytest.raises(CorruptStoreError, match="schema_id"):
        GradientStore(tmp_path)


def test_another_version_is_named(tmp_path: Path) -> None:
    fill(tmp_path, [1])
    shard = shards(tmp_path)[0]
    header, data = split(shard)
    header["__metadata__"]["format_version"] = "2"
    shard.write_bytes(sealed(header, data))
    with pytest.raises(StoreError, match="format_version: found 2, expected 1") as caught:
        GradientStore(tmp_path)
    assert not isinstance(caught.value, CorruptStoreError)


def test_leftovers_are_listed_and_ignored(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2])
    (tmp_path / ".tmp-abc").write_bytes(b"half a shard")
    (tmp_path / "notes.txt").write_text("mine")
    store = GradientStore(tmp_path)
    assert len(store) == 2
    assert store.info()["leftovers"] == [".tmp-abc"]


def test_info_is_json_with_the_provenance_on_top(tmp_path: Path) -> None:
    layout = [{"name": "w", "shape": [2, 3], "offset": 0}]
    fill(tmp_path, [3, 1], provenance={"layout": layout, "dtype": "theirs", "float": 0.1}, reduction="sum")
    store = GradientStore(tmp_path)
    info = json.loads(json.dumps(store.info()))
    assert info["layout"] == layout
    assert (info["dtype"], store.provenance["dtype"]) == ("float16", "theirs")
    assert info["bytes"] == shards(tmp_path)[0].stat().st_size
    expected = {
        "path": str(tmp_path),
        "rows": 2,
        "shards": 1,
        "dim": DIM,
        "reduction": "sum",
        "leftovers": [],
    }
    assert {key: info[key] for key in expected} == expected
    assert info["fingerprint"] == store.fingerprint
    assert repr(store) == f"GradientStore({str(tmp_path)!r}, rows=2, dim=6, dtype='float16', shards=1)"
    assert store.fingerprint in store._repr_html_()


def test_the_fingerprint_follows_the_rows_and_not_the_names(tmp_path: Path) -> None:
    fill(tmp_path / "a", [1, 2], writer="x")
    fill(tmp_path / "b", [1, 2], writer="y")
    fill(tmp_path / "c", [1, 3], writer="x")
    fill(tmp_path / "d", [1, 2], writer="x", reduction="sum")
    a, b, c, d = (GradientStore(tmp_path / name).fingerprint for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_fingerprint_is_that_of_the_rows_however_they_are_stored(tmp_path: Path, dtype: str) -> None:
    rows = some_rows(30)

    def write(name: str, order: np.ndarray, **options: object) -> str:
        with GradientStore.create(tmp_path / name, dim=DIM, dtype=dtype, **options) as w:
            w.append(rows[order], order, num_tokens=order % 3, loss=order / 7)
        return GradientStore(tmp_path / name).fingerprint

    every = np.arange(30)
    expected = write("a", every)
    assert write("b", every[::-1], rows_per_shard=4) == expected
    store = GradientStore(tmp_path / "b")
    store.compact()
    assert store.fingerprint == expected
    assert GradientStore.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m").fingerprint == expected
    assert store.delete([3])["deleted"] == 1
    assert store.fingerprint == write("c", np.delete(every, 3)) != expected
    # Each thing that is known of a row counts.
    others = {store.fingerprint}
    for change in (
        {"num_tokens": [4], "loss": [0.5]},
        {"num_tokens": [3], "loss": [0.25]},
        {"loss": [0.5]},
        {"loss": [0.5], "record": [1]},
        {"loss": [0.5], "record": [2]},
    ):
        name = str(len(others))
        with GradientStore.create(tmp_path / name, dim=DIM, dtype=dtype) as w:
            w.append(rows[:1], [3], **change)
        others.add(GradientStore(tmp_path / name).fingerprint)
    assert len(others) == 6


def test_shards_without_a_checksum_of_rows_are_read_as_before(tmp_path: Path) -> None:
    xxhash = pytest.importorskip("xxhash")
    fill(tmp_path, list(range(8)), rows_per_shard=4)
    checksums = []
    for shard in shards(tmp_path):
        header, data = split(shard)
        del header["__metadata__"]["rows_checksum"]
        shard.write_bytes(sealed(header, data))
        checksums.append(int(split(shard)[0]["__metadata__"]["header_checksum"][8:], 16))
    store = GradientStore(tmp_path)
    store.verify()
    content = store.info()["schema_id"].encode() + struct.pack("<2Q", *sorted(checksums))
    assert store.fingerprint == xxhash.xxh3_128_hexdigest(content)
    store.compact()
    store.verify()
    fill(tmp_path / "new", list(range(8)))
    assert store.fingerprint == GradientStore(tmp_path / "new").fingerprint


def test_a_wrong_checksum_of_rows_is_found(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2])
    shard = shards(tmp_path)[0]
    header, data = split(shard)
    header["__metadata__"]["rows_checksum"] = "xxh3-64:" + "1" * 16
    shard.write_bytes(sealed(header, data))
    with pytest.raises(CorruptStoreError, match="rows_checksum: found xxh3-64:.*, expected xxh3-64:1111"):
        GradientStore(tmp_path).verify()
    header["__metadata__"]["rows_checksum"] = "many"
    shard.write_bytes(sealed(header, data))
    with pytest.raises(CorruptStoreError, match="rows_checksum: found many"):
        GradientStore(tmp_path)


def test_a_memory_limit_is_kept_or_refused_with_numbers(tmp_path: Path) -> None:
    dim, rows = 1 << 14, 1 << 13
    path = hole(tmp_path, rows=rows, dim=dim)  # 256 MiB of gradients
    with pytest.raises(InvalidInputError, match=r"memory_limit: found 1000 bytes, expected at least \d+"):
        GradientStore(path, memory_limit=1000)
    limit = 32 << 20
    store = GradientStore(path, memory_limit=limit)
    with pytest.raises(
        InvalidInputError, match=r"positions: found 8192 rows .* expected at most \d+ at a time"
    ):
        store.read(np.arange(rows))
    most: list[int] = []

    def mapped(*_: int) -> None:
        status = Path("/proc/self/status")
        if status.is_file():
            lines = status.read_text().splitlines()
            pages = [int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem"))]
            most.append(sum(pages) * 1024)

    mapped()
    # The checksum of a hole is not that of its zeros; all of it is read to find out.
    with pytest.raises(CorruptStoreError, match="data_checksum"):
        store.verify(mapped)
    for start in range(0, rows, 256):
        assert not store.read(np.arange(start, start + 256)).any()
        assert not store.read((np.arange(128) * 7919 + start) % rows).any()
        mapped()
    assert not most or max(most) - most[0] <= limit
    # Without a limit, the same work maps the whole store.
    if most:
        before = most[-1]
        most.clear()
        with pytest.raises(CorruptStoreError, match="data_checksum"):
            GradientStore(path).verify(mapped)
        assert max(most) - before > 128 << 20


def test_rows_of_the_dataset_are_looked_up_by_position(tmp_path: Path) -> None:
    index = np.random.default_rng(0).permutation(50) * 3
    rows = some_rows(50)
    with GradientStore.create(tmp_path / "s", dim=DIM, dtype="float32", rows_per_shard=7) as w:
        w.append(rows, index)
    store = GradientStore(tmp_path / "s")
    np.testing.assert_array_equal(store.index[store.positions(index[::-1])], index[::-1])
    np.testing.assert_array_equal(store.read(store.positions([index[4], index[4]])), rows[[4, 4]])
    assert store.positions([]).tolist() == []
    for bad in (1, -3, 10**9):
        with pytest.raises(InvalidInputError, match=f"index: found {bad}, expected rows of"):
            store.positions([0, bad])
    store.delete([0])
    with pytest.raises(InvalidInputError, match="found 0"):
        store.positions([0])
    GradientStore.create(tmp_path / "empty", dim=DIM).close()
    with pytest.raises(InvalidInputError, match="found 5"):
        GradientStore(tmp_path / "empty").positions([5])


def supersede(path: Path, name: str, names: list[str]) -> None:
    """Makes the shard `name` one that replaces these, as they are now."""
    header, data = split(path / name)
    replaced = {old: split(path / old)[0]["__metadata__"]["header_checksum"] for old in names}
    header["__metadata__"]["supersedes"] = json.dumps(replaced)
    (path / name).write_bytes(sealed(header, data))


def test_superseded_shards_do_not_count(tmp_path: Path) -> None:
    a, b, c = (f"shard-{name}-000000.safetensors" for name in "abc")
    writers = [GradientStore.create(tmp_path, dim=DIM, writer=name) for name in "abc"]
    for n, w in enumerate(writers, start=2):
        w.append(some_rows(n), np.arange(n))
        w.close()
    with pytest.raises(StoreError):
        GradientStore(tmp_path)
    supersede(tmp_path, b, [a])
    supersede(tmp_path, c, [b])
    store = GradientStore(tmp_path)
    assert store.index.tolist() == [0, 1, 2, 3]
    assert store.info()["superseded"] == store.verify()["superseded"] == [a, b]
    # A later shard of a superseded name is another shard.
    (tmp_path / a).unlink()
    with GradientStore.create(tmp_path, dim=DIM, writer="a") as w:
        w.append(some_rows(1), [9])
    assert GradientStore(tmp_path).index.tolist() == [9, 0, 1, 2, 3]
    header, data = split(tmp_path / a)
    for outside in ("../" + b, "/etc/passwd", "shard-/../../x.safetensors"):
        header["__metadata__"]["supersedes"] = json.dumps({outside: "xxh3-64:" + "0" * 16})
        (tmp_path / a).write_bytes(sealed(header, data))
        with pytest.raises(CorruptStoreError, match="supersedes"):
            GradientStore(tmp_path)


def hole(path: Path, rows: int, dim: int) -> Path:
    """A store of float16 zeros that takes no space: its gradients are a hole in the file."""
    GradientStore.create(path, dim=dim).close()
    schema_id = json.loads((path / "store.json").read_text())["schema_id"]
    columns = np.arange(rows).tobytes() + np.ones(rows, np.float32).tobytes() + bytes(4 * rows)
    offsets = np.cumsum([0, 8 * rows, 4 * rows, 4 * rows, 2 * rows * dim]).tolist()
    header = {
        "__metadata__": {"header_checksum": "", "format_version": "1", "schema_id": schema_id}
        | {"rows": str(rows), "supersedes": "{}"}
    }
    for at, (name, dtype) in enumerate(
        {"index": "I64", "scale": "F32", "norm": "F32", "gradients": "F16"}.items()
    ):
        shape = [rows, dim] if name == "gradients" else [rows]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets[at : at + 2]}
    shard = path / "shard-hole-000000.safetensors"
    shard.write_bytes(sealed(header, columns))
    try:
        os.truncate(shard, shard.stat().st_size + 2 * rows * dim)
    except OSError:
        pytest.skip("this file system has no holes")
    return path


def test_opening_reads_no_gradients(tmp_path: Path) -> None:
    # 64 GiB: reading them would take longer than this test allows.
    path = hole(tmp_path, rows=1 << 13, dim=1 << 22)
    start = time.perf_counter()
    store = GradientStore(path)
    assert time.perf_counter() - start < 1.0
    assert (len(store), store.dim) == (1 << 13, 1 << 22)
    assert not store.read([4711]).any()


@pytest.mark.parametrize("work", ["verify", "read"])
def test_long_work_can_be_interrupted(tmp_path: Path, work: str) -> None:
    store = GradientStore(hole(tmp_path, rows=1 << 20, dim=1 << 13))
    positions = np.zeros(1 << 17, np.int64)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    start = time.perf_counter()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            store.verify() if work == "verify" else store.read(positions)
    finally:
        timer.cancel()
    assert time.perf_counter() - start < 2.0


def test_of_many_creators_one_decides(tmp_path: Path) -> None:
    def create(seed: int) -> int | None:
        try:
            GradientStore.create(tmp_path / name, dim=2, provenance={"seed": seed}).close()
        except StoreMismatchError:
            return None
        return seed

    for name in map(str, range(20)):
        with ThreadPoolExecutor(8) as pool:
            created = set(pool.map(create, [0, 1, 2, 3] * 4))
        assert GradientStore(tmp_path / name).provenance["seed"] in created
        assert len(created - {None}) == 1
        assert not GradientStore(tmp_path / name).info()["leftovers"]


def test_changing_the_current_folder_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with GradientStore.create("s", dim=DIM) as w:
        monkeypatch.chdir(tmp_path / "other")
        w.append(some_rows(1), [0])
    monkeypatch.chdir(tmp_path)
    store = GradientStore(Path("s"))
    monkeypatch.chdir(tmp_path / "other")
    assert store.verify()["rows"] == 1


WRITER = """
import sys, numpy as np
from spice_rs.store.store import GradientStore
writer = GradientStore.create(sys.argv[1], dim=64, rows_per_shard=16, writer=sys.argv[2])
start = int(sys.argv[3])
for row in range(start, start + 10**6):
    writer.append(np.full((1, 64), row % 1000, dtype=np.float32), [row])
    if row % 16 == 15:
        writer.commit()
        print(row + 1 - start, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_rows_and_all_that_it_had_committed(tmp_path: Path) -> None:
    for attempt, commits in enumerate((2, 6, 10)):
        start = attempt * 16 * 10**5
        command = [sys.executable, "-c", WRITER, str(tmp_path), f"w{attempt}", str(start)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            for _ in range(commits):
                committed = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        store = GradientStore(tmp_path)
        store.verify()
        own = np.sort(store.index[store.index >= start]) - start
        np.testing.assert_array_equal(own, np.arange(len(own)))
        assert len(own) >= committed == 16 * commits
        expected = np.repeat((store.index % 1000)[:, None], 64, axis=1)
        np.testing.assert_array_equal(store.read(np.arange(len(store))), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_appended_rows_survive_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with GradientStore.create(tmp_path, dim=DIM) as w:
            w.append(some_rows(3), [0, 1, 2])
            raise error

    with pytest.raises(error):
        work()
    assert len(GradientStore(tmp_path)) == 3


def becomes(path: Path, rows: int) -> bool:
    """Whether the store gets this number of rows soon, and no other after that."""
    end = time.monotonic() + 10
    while len(GradientStore(path)) != rows and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.02)
    return len(GradientStore(path)) == rows


def test_a_shard_is_committed_when_it_is_full_or_old(tmp_path: Path) -> None:
    with GradientStore.create(tmp_path / "rows", dim=DIM, rows_per_shard=2) as w:
        w.append(some_rows(5), np.arange(5))
        assert becomes(tmp_path / "rows", 4)
        w.commit()
        assert len(GradientStore(tmp_path / "rows")) == 5
        w.commit()
    assert len(shards(tmp_path / "rows")) == 3
    with GradientStore.create(tmp_path / "bytes", dim=DIM, bytes_per_shard=100) as w:
        w.append(some_rows(5), np.arange(5))
        assert becomes(tmp_path / "bytes", 3)
    with GradientStore.create(tmp_path / "age", dim=DIM, seconds_per_shard=0.3) as w:
        w.append(some_rows(5), np.arange(5))
        assert len(GradientStore(tmp_path / "age")) == 0
        # Nobody appends any more, and it is written all the same.
        assert becomes(tmp_path / "age", 5)
    assert len(shards(tmp_path / "age")) == 1


@pytest.mark.parametrize("fsync", [True, False])
def test_rows_that_cannot_be_written_stay_and_the_next_call_says_so(tmp_path: Path, fsync: bool) -> None:
    w = GradientStore.create(tmp_path / "s", dim=DIM, rows_per_shard=3, fsync=fsync)
    w.append(some_rows(2), [0, 1])
    (tmp_path / "s").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="found no way to create a file in it"):
        w.commit()
    # Tries again, in the background; so the call after this one is told.
    w.append(some_rows(3), [2, 3, 4])
    with pytest.raises(StoreError, match="found no way to create a file in it"):
        for row in range(5, 10_000):
            w.append(some_rows(1), [row])
    assert w.contains([0, 4, row]).tolist() == [True, True, False]
    with pytest.raises(StoreError, match="found no way to create a file in it"):
        w.close()
    (tmp_path / "away").rename(tmp_path / "s")
    w.close()
    store = GradientStore(tmp_path / "s")
    assert store.index.tolist() == list(range(row))
    store.verify()


@pytest.mark.slow
def test_a_writer_whose_failure_was_told_writes_nothing_when_it_goes(tmp_path: Path) -> None:
    w = GradientStore.create(tmp_path / "s", dim=DIM)
    w.append(some_rows(2), [0, 1])
    (tmp_path / "s").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="found no way to create a file in it"):
        w.commit()
    (tmp_path / "away").rename(tmp_path / "s")  # there is room again, and the caller begins anew
    with GradientStore.create(tmp_path / "s", dim=DIM) as again:
        again.append(some_rows(2), [0, 1])
    del w
    gc.collect()
    assert len(shards(tmp_path / "s")) == 1
    assert GradientStore(tmp_path / "s").index.tolist() == [0, 1]
    # A failure that nobody was told of is no reason to lose rows.
    w = GradientStore.create(tmp_path / "s", dim=DIM)
    w.append(some_rows(1), [2])
    del w
    gc.collect()
    assert GradientStore(tmp_path / "s").index.tolist() == [0, 1, 2]


def test_a_slow_disk_slows_the_caller_down_and_takes_no_more_memory(tmp_path: Path) -> None:
    w = GradientStore.create(tmp_path / "s", dim=1 << 18, bytes_per_shard=1)
    rows = np.ones((1, 1 << 18), np.float32)
    w.append(rows, [0])
    w.commit()
    (tmp_path / "s").rename(tmp_path / "away")
    # 1 MiB each: 64 of them wait, and the one that cannot be written; then calls only report.
    refused = 0
    for row in range(1, 200):
        try:
            w.append(rows, [row])
        except StoreError:
            refused += 1
    taken = int(w.contains(np.arange(1, 200)).sum())
    assert taken + refused == 199
    assert taken <= 66
    (tmp_path / "away").rename(tmp_path / "s")
    with suppress(StoreError):  # of before, unless an append has told of it already
        w.commit()
    w.close()
    assert len(GradientStore(tmp_path / "s")) == 1 + taken


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_neither_writes_nor_loses_what_its_parent_appended(tmp_path: Path) -> None:
    w = GradientStore.create(tmp_path, dim=DIM)
    w.append(some_rows(2), [0, 1])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            w.append(some_rows(1), [2])
        except InvalidInputError as error:
            code = 0 if "another process" in str(error) else 2
        finally:
            w.__dict__.clear()  # drops the writer
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(GradientStore(tmp_path)) == 0
    w.close()
    assert GradientStore(tmp_path).index.tolist() == [0, 1]


def test_whoever_waits_for_the_disk_can_be_interrupted_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = 4000
    w = GradientStore.create(tmp_path, dim=DIM, rows_per_shard=1, fsync=False)
    w.append(some_rows(rows), np.arange(rows))
    timer = threading.Timer(0.05, _thread.interrupt_main)
    start = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        w.commit()
    assert time.perf_counter() - start < 1.5
    assert w.contains(np.arange(rows)).all()
    w.close()
    assert len(GradientStore(tmp_path)) == rows


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("name", ["commit", "close", "append", "contains"])
def test_a_signals_handler_in_the_middle_of_a_call_is_told_and_the_call_goes_on(
    name: str, tmp_path: Path
) -> None:
    rows = 10_000  # of a shard each: several looks at signals
    w = GradientStore.create(tmp_path, dim=DIM, rows_per_shard=1, fsync=False)
    w.append(some_rows(rows), np.arange(rows))
    calls = {
        "commit": w.commit,
        "close": w.close,
        "append": lambda: w.append(some_rows(1), [rows]),
        "contains": lambda: w.contains([1]),
    }
    told: list[str] = []

    def handle(*_: object) -> None:
        try:
            calls[name]()
        except InvalidInputError as error:
            told.append(str(error))

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
        w.commit()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert any("in the middle of another" in each for each in told)
    w.close()
    assert set(range(rows)) <= set(GradientStore(tmp_path).index.tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_in_the_middle_of_a_call_is_told(tmp_path: Path) -> None:
    rows = 4000
    w = GradientStore.create(tmp_path, dim=DIM, rows_per_shard=1, fsync=False)
    w.append(some_rows(rows), np.arange(rows))
    thread = threading.Thread(target=w.commit)
    thread.start()
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends it if it hangs
        code = 0
        for call in (w.commit, w.close, lambda: w.append(some_rows(1), [rows])):
            try:
                call()
                code = 1
            except InvalidInputError as error:
                code = code if "another process" in str(error) else 2
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    w.close()
    assert GradientStore(tmp_path).index.tolist() == list(range(rows))


def test_verify_reports_progress_and_stops_when_asked(tmp_path: Path) -> None:
    fill(tmp_path, list(range(9)), rows_per_shard=3)
    store = GradientStore(tmp_path)
    seen: list[tuple[int, int]] = []
    store.verify(lambda done, total: seen.append((done, total)))
    assert seen == [(3, 9), (6, 9), (9, 9)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.verify(stop)


def test_every_error_is_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "store.json").mkdir()
    with pytest.raises(SpiceError):
        GradientStore(tmp_path)


def test_tensors_are_accepted_without_importing_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows = torch.randn(4, DIM, requires_grad=True)
    with GradientStore.create(tmp_path, dim=DIM, dtype="float32") as w:
        w.append(
            rows, torch.arange(4), num_tokens=torch.ones(4, dtype=torch.int32), loss=torch.ones(4).double()
        )
        with pytest.raises(InvalidInputError, match="meta"):
            w.append(torch.zeros(1, DIM, device="meta"), [9])
    np.testing.assert_array_equal(GradientStore(tmp_path).read(torch.arange(4)), rows.detach().numpy())


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_bound_holds_for_norms_from_1e_8_to_1e8(tmp_path: Path, dtype: str) -> None:
    norms = 10.0 ** np.linspace(-8, 8, 129)
    rows = some_rows(len(norms), 300).astype(np.float64)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True) * norms[:, None]).astype(np.float32)
    with GradientStore.create(tmp_path, dim=300, dtype=dtype) as w:
        w.append(rows, np.arange(len(rows)))
    store = GradientStore(tmp_path)
    store.verify()
    exact = rows.astype(np.float64)
    error = np.abs(store.read(np.arange(len(rows))) - exact)
    relative, absolute = BOUNDS[dtype]
    scale = store._core.scale.astype(np.float64)[:, None]
    assert np.all(error <= relative * np.abs(exact) + absolute * scale)
    if dtype == "int8":
        largest = np.abs(exact).max(axis=1, keepdims=True)
        assert np.all(scale <= largest / 127 * (1 + 2.0**-15))
        assert np.all(error <= 0.00394 * largest)
