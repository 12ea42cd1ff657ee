"""Every kind of source gives the same picks as the array it holds."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import pools
import spice_rs
from spice_rs import CorruptStoreError, InvalidInputError, StoreError, StoreMismatchError
from spice_rs.store.sources import open_source

ROWS = pools.law("opposed", 60, 8, 3)
EXPECTED = spice_rs.select(ROWS, 20, conflict_penalty=0.5).indices.tolist()


def picks(source, **keywords):
    return spice_rs.select(source, 20, conflict_penalty=0.5, **keywords).indices.tolist()


def test_npy_files(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    assert picks(tmp_path / "rows.npy") == EXPECTED
    assert picks(str(tmp_path / "rows.npy")) == EXPECTED
    assert isinstance(open_source(tmp_path / "rows.npy").keep_alive, np.memmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_members(tmp_path, save):
    save(tmp_path / "one.npz", gradients=ROWS, index=np.arange(60))
    assert picks(tmp_path / "one.npz") == EXPECTED
    save(tmp_path / "two.npz", a=ROWS[:, ::-1], b=ROWS)
    assert picks(f"{tmp_path}/two.npz::b") == EXPECTED
    with pytest.raises(InvalidInputError, match=r"\['a', 'b'\].*two.npz::a"):
        picks(tmp_path / "two.npz")
    with pytest.raises(InvalidInputError, match="no member 'c'"):
        picks(f"{tmp_path}/two.npz::c")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_headerless_files(tmp_path, dtype):
    path = tmp_path / "rows.bin"
    rows = np.memmap(path, dtype=dtype, mode="w+", shape=ROWS.shape)
    rows[:] = ROWS
    rows.flush()
    assert picks(path, dim=8, dtype=dtype) == picks(ROWS.astype(dtype))
    with pytest.raises(InvalidInputError, match="give dim= "):
        picks(path)
    with pytest.raises(InvalidInputError, match="expected a multiple of"):
        picks(path, dim=7, dtype=dtype)
    with pytest.raises(InvalidInputError, match="dtype: found .int8."):
        picks(path, dim=8, dtype="int8")
    with pytest.raises(InvalidInputError, match="dim: found 0"):
        picks(path, dim=0, dtype=dtype)


def test_tensors():
    torch = pytest.importorskip("torch")
    assert picks(torch.tensor(ROWS)) == EXPECTED
    assert picks(torch.tensor(ROWS, requires_grad=True)) == EXPECTED
    halves = torch.tensor(ROWS).to(torch.bfloat16)
    assert picks(halves) == picks(halves.float())
    for tensor, says in [
        (torch.empty(60, 8, device="meta"), "meta"),
        (torch.tensor(ROWS).to_sparse(), "layout"),
        (torch.ones(60, 8, dtype=torch.int32), "int32"),
        (torch.ones(60, 8).to(torch.float8_e4m3fn), "float8"),
        (torch.nn.Linear(8, 8), "Linear"),
    ]:
        with pytest.raises(InvalidInputError, match=says):
            picks(tensor)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stores_in_any_order_of_rows_and_shards(tmp_path, dtype):
    shuffled = np.random.default_rng(0).permutation(60)
    whole = spice_rs.GradientStore.create(tmp_path / "whole", dim=8, dtype=dtype)
    with whole as writer:
        writer.append(ROWS, index=np.arange(60))
    parts = spice_rs.GradientStore.create(tmp_path / "parts", dim=8, dtype=dtype, rows_per_shard=7)
    with parts as writer:
        writer.append(ROWS[shuffled], index=shuffled)
    for keywords in ({}, {"conflict_penalty": 0.5}, {"fisher": "diagonal"}):
        one = spice_rs.select(tmp_path / "whole", 20, **keywords)
        many = spice_rs.select(spice_rs.GradientStore(tmp_path / "parts"), 20, **keywords)
        np.testing.assert_array_equal(one.indices, many.indices)
        np.testing.assert_array_equal(one.scores, many.scores)
    windows = {"pool_size": 25, "select_per_window": 5, "seed": 4}
    np.testing.assert_array_equal(
        spice_rs.select(tmp_path / "whole", **windows).indices,
        spice_rs.select(tmp_path / "parts", **windows).indices,
    )
    if dtype == "float32":
        assert picks(tmp_path / "parts") == EXPECTED


def test_dataset_rows_are_reported_for_stores(tmp_path):
    with spice_rs.GradientStore.create(tmp_path / "s", dim=8, dtype="float32") as writer:
        writer.append(ROWS, index=1000 + 3 * np.arange(60))
    sel = spice_rs.select(tmp_path / "s", 20, conflict_penalty=0.5)
    assert sel.indices.tolist() == [1000 + 3 * i for i in EXPECTED]
    assert spice_rs.log_det(tmp_path / "s", sel.indices) == pytest.approx(sel.log_det)
    with pytest.raises(InvalidInputError, match="found 1001, expected rows of"):
        spice_rs.log_det(tmp_path / "s", [1000, 1001])


def test_sums_become_means_at_selection(tmp_path):
    tokens = np.random.default_rng(1).integers(1, 50, 60).astype(np.int32)
    with spice_rs.GradientStore.create(tmp_path / "s", dim=8, dtype="float32", reduction="sum") as writer:
        writer.append(ROWS * tokens[:, None], index=np.arange(60), num_tokens=tokens)
    by_mean = picks((ROWS * tokens[:, None]).astype(np.float64) / tokens[:, None])
    assert picks(tmp_path / "s") == by_mean
    assert picks(tmp_path / "s", normalize="mean") == by_mean
    assert picks(tmp_path / "s", normalize="sum") == picks(ROWS * tokens[:, None])
    assert picks(tmp_path / "s", normalize="none") == picks(ROWS * tokens[:, None])
    assert picks(tmp_path / "s", normalize="unit") == picks(ROWS * tokens[:, None], normalize="unit")
    settings = spice_rs.select(tmp_path / "s", 5).settings
    assert settings["normalize"] == "mean"
    assert settings["source"]["rows"] == 60


def test_a_row_of_a_store_that_is_not_finite_any_more_is_named_by_its_dataset_row(tmp_path):
    with spice_rs.GradientStore.create(tmp_path / "s", dim=8, dtype="float32") as writer:
        writer.append(ROWS, index=1000 + np.arange(60))
    shard = next((tmp_path / "s").glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()  # the last cell of the last row
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=rf"{shard.name}: rows_checksum, row 59 .*\(index 1059\)"):
        picks(tmp_path / "s")


@pytest.mark.parametrize("suffix", [".pt", ".jsonl"])
def test_files_of_other_kinds_are_not_read_as_numbers(tmp_path, suffix):
    ROWS.tofile(tmp_path / f"rows{suffix}")
    with pytest.raises(InvalidInputError, match=f"found a {suffix} file"):
        picks(tmp_path / f"rows{suffix}", dim=8, dtype="float32")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_arrays_that_are_more_than_rows():
    assert picks(np.asmatrix(ROWS)) == EXPECTED
    with pytest.raises(InvalidInputError, match="masked"):
        picks(np.ma.masked_array(ROWS, mask=ROWS > 0))


def test_fingerprints_follow_the_rows():
    def fingerprint(rows):
        return spice_rs.select(rows, 1, progress=False).settings["source"]["fingerprint"]

    other = ROWS.copy()
    other[5] *= -1
    assert fingerprint(ROWS) == fingerprint(ROWS.copy())
    assert fingerprint(ROWS) != fingerprint(other)
    assert fingerprint(ROWS) != fingerprint(ROWS[::-1])


def test_paths_that_hold_no_rows(tmp_path):
    with pytest.raises(InvalidInputError, match="no such file or folder"):
        picks(tmp_path / "nothing")
    with pytest.raises(StoreError, match="store"):
        picks(tmp_path)
    (tmp_path / "rows.npy").write_bytes(b"no numpy file")
    with pytest.raises(InvalidInputError, match="no readable .npy file"):
        picks(tmp_path / "rows.npy")
    np.save(tmp_path / "objects.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(InvalidInputError, match="elements of object, expected plain numbers"):
        picks(tmp_path / "objects.npy")
    (tmp_path / "rows.npz").write_bytes(b"PK no archive")
    with pytest.raises(InvalidInputError, match="no readable archive"):
        picks(tmp_path / "rows.npz")
    np.save(tmp_path / "cut.npy", ROWS)
    with open(tmp_path / "cut.npy", "r+b") as file:
        file.truncate(500)
    with pytest.raises(InvalidInputError, match="bytes of data, expected"):
        picks(tmp_path / "cut.npy")


def tensors_file(path, tensors, cut=None, **changes):
    """A safetensors file; `changes` go into the description of the first tensor."""
    kinds = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64"}
    header, data = {"__metadata__": {"note": "x"}}, b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kinds[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    header[next(iter(tensors))] |= changes
    text = json.dumps(header).encode()
    path.write_bytes((struct.pack("<Q", len(text)) + text + data)[:cut])
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("padding", [0, 1])
def test_tensors_of_safetensors_files(tmp_path, dtype, padding):
    rows = ROWS.astype(dtype)
    name = "rows" + "s" * padding  # moves the data section, which need not be aligned
    one = tensors_file(tmp_path / "one.safetensors", {name: rows, "index": np.arange(60)})
    assert picks(one) == picks(rows)
    two = tensors_file(tmp_path / "two.safetensors", {"a": rows[:, ::-1], "b": rows})
    assert picks(f"{two}::b") == picks(rows)
    with pytest.raises(InvalidInputError, match=r"\['a', 'b'\].*two.safetensors::a"):
        picks(two)
    with pytest.raises(InvalidInputError, match="no tensor 'c'"):
        picks(f"{two}::c")


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 10**9]},
        {"data_offsets": [-8, 472]},
        {"data_offsets": [480, 0]},
        {"data_offsets": "all"},
        {"shape": [2**40, 2**40]},
        {"shape": [60, 8.0]},
        {"shape": None},
        {"dtype": "F64"},
        {"dtype": "I32"},
        {"shape": [0, 8], "data_offsets": [0, 0]},
        {"cut": 400},
        {"cut": 20},
        {"cut": 3},
    ],
    ids=str,
)
def test_safetensors_files_that_lie_are_refused(tmp_path, changes):
    with pytest.raises(InvalidInputError, match="bad.safetensors.*: found"):
        picks(tensors_file(tmp_path / "bad.safetensors", {"rows": ROWS.astype(np.float32)}, **changes))


def test_several_sources_are_one_pool(tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:20])
    tensors_file(tmp_path / "b.safetensors", {"rows": ROWS[20:35]})
    parts = [tmp_path / "a.npy", f"{tmp_path}/b.safetensors::rows", ROWS[35:]]
    assert picks(parts) == EXPECTED
    assert picks([ROWS]) == EXPECTED
    mixed = [ROWS[:20].astype(np.float32), ROWS[20:].astype(np.float16)]
    assert picks(mixed) == picks(np.concatenate([part.astype(np.float64) for part in mixed]))
    whole = spice_rs.select(ROWS, 20).settings["source"]
    source = spice_rs.select(parts, 20).settings["source"]
    assert (source["rows"], source["dtype"]) == (60, whole["dtype"])
    with pytest.raises(InvalidInputError, match="found 7 columns .* expected 8"):
        picks([ROWS, ROWS[:, :7]])
    with pytest.raises(InvalidInputError, match="empty list"):
        picks([])


def test_several_stores_are_one_pool(tmp_path):
    tokens = np.arange(60) % 9 + 1

    def store(name, index, **options):
        with spice_rs.GradientStore.create(
            tmp_path / name, dim=8, **{"dtype": "float32", "reduction": "sum"} | options
        ) as writer:
            writer.append(ROWS[index], index=index, num_tokens=tokens[index])
        return tmp_path / name

    whole = store("whole", np.arange(60))
    parts = [store(f"part{i}", np.arange(i, 60, 3)) for i in range(3)]
    for normalize in ("auto", "unit", "none"):
        one = spice_rs.select(whole, 20, normalize=normalize)
        for order in (parts, parts[::-1]):
            many = spice_rs.select(order, 20, normalize=normalize)
            np.testing.assert_array_equal(many.indices, one.indices)
            np.testing.assert_array_equal(many.scores, one.scores)
    # Dtypes may differ; models, projections and losses may not.
    assert len(spice_rs.select([parts[0], store("bytes", np.arange(1, 60, 3), dtype="int8")], 20)) == 20
    with pytest.raises(InvalidInputError, match="found row 0 in .*whole and in .*part0"):
        picks([whole, parts[0]])
    # A list in a list, or a pool that is open already, is no other pool.
    one = spice_rs.select(whole, 20)
    for nested in ([parts[0], parts[1:]], [parts[:2], [[parts[2]]]], [open_source(parts[:2]), parts[2]]):
        np.testing.assert_array_equal(spice_rs.select(nested, 20).indices, one.indices)
    with pytest.raises(InvalidInputError, match="found row 0 in .*part0 and in .*part0"):
        picks([parts[0], parts[:2]])
    with pytest.raises(InvalidInputError, match="a store, beside array"):
        picks([parts[:2], ROWS])
    with pytest.raises(StoreMismatchError, match="reduction: found None, expected 'sum'"):
        picks([parts[0], store("plain", np.arange(1, 60, 3), reduction=None)])
    with pytest.raises(StoreMismatchError, match="projection: found 7, expected None"):
        picks([parts[0], store("other", np.arange(1, 60, 3), provenance={"projection": 7})])
    with pytest.raises(InvalidInputError, match="a store, beside array"):
        picks([parts[0], ROWS])


def test_bytes_are_selected_from_as_they_are(tmp_path):
    rows = (ROWS * 10.0 ** np.random.default_rng(0).integers(-8, 9, (60, 1))).astype(np.float32)
    with spice_rs.GradientStore.create(tmp_path / "s", dim=8, dtype="int8", rows_per_shard=7) as writer:
        writer.append(rows, index=np.arange(60))
    read = spice_rs.GradientStore(tmp_path / "s").read(np.arange(60))
    for keywords in ({}, {"fisher": "diagonal"}, {"search": "eager"}, {"threads": 1}):
        stored = spice_rs.select(tmp_path / "s", 20, alpha=1e-12, **keywords)
        plain = spice_rs.select(read, 20, alpha=1e-12, **keywords)
        np.testing.assert_array_equal(stored.indices, plain.indices)
        np.testing.assert_array_equal(stored.scores, plain.scores)
    assert picks(tmp_path / "s", normalize="unit") == picks(read, normalize="unit")
