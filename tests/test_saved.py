"""The file of a selection: what was saved comes back to the bit, and anything else is refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pools
import spice_rs
from counts import cases, some
from spice_rs import (
    CorruptStoreError,
    InvalidInputError,
    Selection,
    SpiceWarning,
    StoreError,
    StoreMismatchError,
)
from spice_rs.selection.picks import pick_lines, write_picks
from spice_rs.selection.saved import SERIES, write_run

ROWS = pools.law("opposed", 60, 6, 2)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A selection and the bytes of its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        selection = spice_rs.select(ROWS, 25, conflict_penalty=0.3)
    file = tmp_path_factory.mktemp("saved") / "sel.safetensors"
    selection.save(file)
    return selection, file.read_bytes()


def assert_equal(a: Selection, b: Selection) -> None:
    for name in SERIES:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right, err_msg=name)
    assert (a.stop_reason, a.log_det, a.signal, a.settings) == (
        b.stop_reason,
        b.log_det,
        b.signal,
        b.settings,
    )


def sealed(contents: bytes) -> bytes:
    """The bytes with the checksum that fits them: a file that someone made on purpose."""
    start = contents.index(b"sha256:") + 7
    blank = contents[:start] + b"0" * 64 + contents[start + 64 :]
    return contents[:start] + hashlib.sha256(blank).hexdigest().encode() + contents[start + 64 :]


@pytest.mark.parametrize(
    "keywords",
    [
        {"k": 60},
        {"k": 1, "fisher": "diagonal"},
        {"early_stop": 0.5, "alpha": 0.1 + 0.2},
        {"pool_size": 10, "select_per_window": 3, "seed": 7},
        {"k": 9, "time_limit": 1e-9},
    ],
    ids=str,
)
def test_a_saved_selection_comes_back_to_the_bit(keywords, tmp_path):
    selection = spice_rs.select(ROWS, **keywords)
    selection.save(tmp_path / "sel")
    loaded = Selection.load(tmp_path / "sel")
    assert_equal(loaded, selection)
    assert_equal(Selection.load(tmp_path / "sel", ROWS), selection)
    assert repr(loaded) == repr(selection)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "sel").read_bytes()
    loaded.gains[:] = 0  # the caller's own


def test_picks_are_written_from_a_loaded_selection(saved, tmp_path):
    selection, contents = saved
    (tmp_path / "sel").write_bytes(contents)
    loaded = Selection.load(tmp_path / "sel")
    assert list(pick_lines(loaded)) == list(pick_lines(selection))
    records = [{"instruction": str(i), "response": str(i)} for i in range(60)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_picks(loaded, tmp_path / "picks.jsonl", tmp_path / "pool.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "picks.jsonl").read_text().splitlines()]
    assert [int(line["instruction"]) for line in lines] == selection.indices.tolist()
    assert_equal(loaded.head(7), selection.head(7))


def test_another_source_is_a_mismatch(saved, tmp_path):
    _, contents = saved
    (tmp_path / "sel").write_bytes(contents)
    other = ROWS.copy()
    other[3, 3] += 1
    for source, says in (
        (other, "has other values than .*sel was selected from .*: the fingerprints differ"),
        (ROWS[1:], f"has {len(ROWS) - 1} rows, .*sel was selected from {len(ROWS)} "),
        (ROWS[:, :5].copy(), f"has 5 columns, .*sel was selected from {ROWS.shape[1]} "),
    ):
        with pytest.raises(StoreMismatchError, match=f"^source: .* {says}.* Give the source"):
            Selection.load(tmp_path / "sel", source)
    swapped = ROWS.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    with pytest.raises(StoreMismatchError, match="fingerprint"):
        Selection.load(tmp_path / "sel", swapped)


def test_every_kind_of_source_is_recognised(tmp_path):
    with spice_rs.GradientStore.create(tmp_path / "store", dim=6, dtype="float32") as writer:
        writer.append(ROWS, index=np.arange(60))
    np.save(tmp_path / "rows.npy", ROWS)
    ROWS.tofile(tmp_path / "rows.bin")
    headerless = {"dim": 6, "dtype": "float32"}
    for source, keywords in (
        (tmp_path / "store", {}),
        (tmp_path / "rows.npy", {}),
        (tmp_path / "rows.bin", headerless),
    ):
        selection = spice_rs.select(source, 5, **keywords)
        selection.save(tmp_path / "sel")
        assert_equal(Selection.load(tmp_path / "sel", source, **keywords), selection)
    assert_equal(Selection.load(tmp_path / "sel", tmp_path / "rows.npy"), selection)


def test_other_programs_read_the_file(saved, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    selection, contents = saved
    tensors = safetensors.load(contents)
    assert sorted(tensors) == sorted([*SERIES, "pick_alike"])
    np.testing.assert_array_equal(tensors.pop("pick_alike"), selection.composition.alike)
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, getattr(selection, name))


def test_the_format_is_the_one_of_version_1(saved):
    """Spelled out by hand, so that a change of the format cannot go unnoticed."""
    selection, contents = saved
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert list(metadata) == ["checksum", "format", "format_version", "run"]
    assert (metadata["format"], metadata["format_version"]) == ("spice-rs selection", "1")
    run = json.loads(metadata["run"])
    assert list(run) == ["settings", "stop_reason", "log_det", "signal", "compared"]
    composition = run["settings"].pop("composition")
    assert composition == {"rows": 60, "tokens": None, "column": None, "labels": None, "alike": True}
    assert run["settings"] == selection.settings
    assert run["compared"] is None
    assert (run["stop_reason"], run["log_det"], run["signal"]) == (
        "budget",
        selection.log_det,
        selection.signal,
    )
    names = ["indices", "gains", "base", "conflict", "scores", "rows_read", "log_dets"]
    names += ["pick_alike", "overruled"]
    assert list(header) == names
    assert [header[name]["dtype"] for name in names] == ["I64", *["F64"] * 4, "I64", "F64", "I64", "BOOL"]
    assert (8 + length) % 8 == 0
    data = contents[8 + length :]
    np.testing.assert_array_equal(np.frombuffer(data, "<i8", 25), selection.indices)
    np.testing.assert_array_equal(np.frombuffer(data, "<f8", 25, 200), selection.gains)
    np.testing.assert_array_equal(np.frombuffer(data, "<i8", 25, 1400), selection.composition.alike)
    np.testing.assert_array_equal(np.frombuffer(data, "?", 25, 1600), selection.overruled)
    assert len(data) == 1625
    assert contents == sealed(contents)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A selection with all that conditions can add, and the bytes of its file."""
    rows = ROWS.copy()
    rows[30:40] = rows[:10]  # twins are near-duplicates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        selection = spice_rs.select(
            rows,
            budget=30,
            costs=1 + np.arange(60) % 2,
            groups=["even", "odd"] * 30,
            group_shares={"odd": (4, None)},
            include=[3],
            max_similarity=0.95,
            conflict_penalty=0.3,
        )
    file = tmp_path_factory.mktemp("saved") / "sel.safetensors"
    selection.save(file)
    return selection, file.read_bytes()


def test_conditions_add_tensors_to_the_format_of_version_1(conditional):
    """Spelled out by hand as well."""
    selection, contents = conditional
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    run = json.loads(header.pop("__metadata__")["run"])
    assert run["compared"] == selection.compared
    assert run["settings"]["groups"]["quotas"] == [["even", 0.0, None], ["odd", 4.0, None]]
    m, s = len(selection), len(selection.near_duplicates)
    assert m > 5
    assert s > 0
    optional = {
        "costs": ("F64", selection.costs),
        "groups": ("I64", np.array([["even", "odd"].index(label) for label in selection.groups])),
        "pick_labels": ("I64", selection.composition.codes),
        "pick_alike": ("I64", selection.composition.alike),
        "duplicate_rows": ("I64", selection.near_duplicates.rows),
        "duplicate_of": ("I64", selection.near_duplicates.of),
        "duplicate_cosines": ("F64", selection.near_duplicates.cosine),
        "duplicate_ranks": ("I64", selection.near_duplicates.rank),
    }
    assert list(header)[7:] == [*optional, "overruled"]
    data, start = contents[8 + length :], 7 * 8 * m
    for name, (dtype, values) in optional.items():
        end = start + 8 * len(values)
        assert header[name] == {"dtype": dtype, "shape": [len(values)], "data_offsets": [start, end]}
        assert data[start:end] == values.tobytes()
        start = end
    assert len(data) == start + m
    assert contents == sealed(contents)


# --- files that are damaged, foreign or made up --------------------------------------------------------------------


@pytest.mark.parametrize("which", ["saved", "conditional"])
def test_every_cut_and_every_flipped_bit_is_found(which, request, tmp_path):
    _, contents = request.getfixturevalue(which)
    file = tmp_path / "sel"
    lengths = [*range(0, len(contents), 7), len(contents) - 1]
    for length in lengths:
        file.write_bytes(contents[:length])
        with pytest.raises(StoreError, match="sel: .*found .*expected") as caught:
            Selection.load(file)
        assert isinstance(caught.value, CorruptStoreError) or length < 48
    file.write_bytes(contents + b"\0")
    with pytest.raises(
        CorruptStoreError, match=f"file size: found {len(contents) + 1} bytes, expected {len(contents)}"
    ):
        Selection.load(file)
    damage = np.random.default_rng(0)
    for place in damage.permutation(len(contents))[: some(len(contents))].tolist():
        altered = bytearray(contents)
        altered[place] ^= 1 << damage.integers(8)
        file.write_bytes(altered)
        with pytest.raises(StoreError, match="sel: .*found .*expected"):
            Selection.load(file)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"format_version":"1"', b'"format_version":"2"', "format_version: found '2', expected '1'"),
        (b'"format":"spice-rs selection"', b'"format":"spice-rs selectiom"', "format 'spice-rs selectiom'"),
        (b'"shape":[25]', b'"shape":[24]', "header: found other tensors"),
        (b'"shape":[25]', b'"shape":[99]', "header: found other tensors"),
        (b'"shape":[25],"data_offsets":[0,200]', b'"shape":[-1],"data_offsets":[0,200]', "indices: found"),
        (b'"dtype":"I64"', b'"dtype":"U64"', "header: found other tensors"),
        (b'"base"', b'"bose"', "header: found other tensors"),
        (b'\\"stop_reason\\": \\"budget\\"', b'\\"stop_reason\\":       null', "stop_reason: found None"),
        (b'\\"rows\\": 60', b'\\"rows\\": 20', "indices: found 25 rows of 20"),
        (b'\\"rows\\": 60', b'\\"rows\\": []', "settings.source.rows: found []"),
        (b'\\"k\\": 25', b'\\"q\\": 25', "settings.k: found none"),
        (b'\\"unfinished\\": null', b'\\"unfinished\\": 1234', "settings.source.unfinished: found 1234"),
        (b'\\"data\\": null', b'\\"data\\": 1234', "settings.source.data: found 1234"),
        (b'"run":"{', b'"run":"[', "run: found"),
    ],
)
def test_a_file_made_up_with_a_fitting_checksum_is_refused(old, new, says, saved, tmp_path):
    _, contents = saved
    assert old in contents
    assert len(old) == len(new)
    (tmp_path / "sel").write_bytes(sealed(contents.replace(old, new, 1)))
    with pytest.raises(StoreError) as caught:
        Selection.load(tmp_path / "sel")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("indices", "first", "indices: found 25 rows of 60, expected different rows"),
        ("gains", np.nan, "gains: found NaN"),
        ("scores", np.inf, "scores: found NaN or infinity"),
        ("rows_read", -1, "rows_read: found numbers from -1"),
        ("log_dets", 5.0, "log_det: found"),
    ],
)
def test_numbers_that_no_run_has_are_refused(name, value, says, saved, tmp_path):
    selection, contents = saved
    start = len(contents) - 1625 + 200 * list(SERIES).index(name)
    values = getattr(selection, name).copy()
    values[-1] = values[0] if value == "first" else value
    (tmp_path / "sel").write_bytes(sealed(contents[:start] + values.tobytes() + contents[start + 200 :]))
    with pytest.raises(CorruptStoreError) as caught:
        Selection.load(tmp_path / "sel")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'\\"max_similarity\\": 0.95', b'\\"max_similarity\\": null', "tensors: found ['indices'"),
        (b'\\"budget\\": 30.0', b'\\"budget\\": null', "settings.budget: found None beside costs"),
        (b'\\"budget\\": 30.0', b'\\"budget\\": true', "settings.budget: found True"),
        (b'[\\"odd\\", 4.0, null]', b'[\\"odd\\", null, 4.0]', "settings.groups: found {"),
        (b', [\\"odd\\", 4.0, null]]', b"]" + b" " * 22, "settings.groups: found {"),
        (b'\\"costed\\": {\\"log_det\\": ', b'\\"costed\\": {\\"log_det\\":-', "compared: found"),
        (b'\\"uncosted\\": {\\"log_det\\": ', b'\\"uncosted\\": {\\"log_deX\\": ', "compared: found"),
        (b'"duplicate_of":{"dtype":"I64","shape":[', b'"duplicate_of":{"dtype":"I64","shape":[0', "JSON"),
        (b'"duplicate_of"', b'"duplicate_on"', "header: found other tensors"),
        (b'"duplicate_rows"', b'"duplicate_rowz"', "header: found other tensors"),
        (b'"costs":{', b'"costz":{', "header: found other tensors"),
    ],
)
def test_conditions_made_up_with_a_fitting_checksum_are_refused(old, new, says, conditional, tmp_path):
    selection, contents = conditional
    assert old in contents
    if selection.compared["kept"] == "uncosted" and b"costed" in old:
        old, new = old.replace(b'"costed', b'"uncosted'), new.replace(b'"costed', b'"uncosted')
    altered = contents.replace(old, new, 1)
    length = int.from_bytes(contents[:8], "little") + len(altered) - len(contents)
    (tmp_path / "sel").write_bytes(sealed(length.to_bytes(8, "little") + altered[8:]))
    with pytest.raises(StoreError) as caught:
        Selection.load(tmp_path / "sel")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("costs", 0.0, "costs: found 0.0, expected costs above 0"),
        ("costs", np.nan, "costs: found NaN"),
        ("groups", 2, "groups: found 2, expected places in 2 quotas"),
        ("groups", -1, "groups: found"),
        ("duplicate_rows", 3, "duplicate_rows: found"),
        ("duplicate_cosines", 1.5, "duplicate_cosines: found"),
        ("duplicate_cosines", np.inf, "duplicate_cosines: found NaN or infinity"),
    ],
)
def test_numbers_of_conditions_that_no_run_has_are_refused(name, value, says, conditional, tmp_path):
    _, contents = conditional
    length = int.from_bytes(contents[:8], "little")
    tensor = json.loads(contents[8 : 8 + length])[name]
    end = 8 + length + tensor["data_offsets"][1]
    cell = np.array(value, "<f8" if tensor["dtype"] == "F64" else "<i8").tobytes()
    (tmp_path / "sel").write_bytes(sealed(contents[: end - 8] + cell + contents[end:]))
    with pytest.raises(CorruptStoreError) as caught:
        Selection.load(tmp_path / "sel")
    assert says in str(caught.value)


@cases(300)
@given(data=st.data())
def test_no_bytes_do_anything_but_load_or_raise_a_store_error(data, saved, tmp_path):
    _, contents = saved
    file = tmp_path / "sel"
    if data.draw(st.booleans()):
        altered = data.draw(st.binary(max_size=200))
    else:
        altered = bytearray(contents)
        for _ in range(data.draw(st.integers(1, 6))):
            place = data.draw(st.integers(0, len(contents) - 1425))
            altered[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
        if b"sha256:" in altered:
            altered = sealed(bytes(altered))
    file.write_bytes(altered)
    with contextlib.suppress(StoreError):
        Selection.load(file)


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":{"checksum":"sha256:' + b"0" * 64 + b'"},"__metadata__":5}',
        b'{"__metadata__":{"checksum":"sha256:'
        + b"0" * 64
        + b'","format":"spice-rs selection","format_version":"1"}}',
        b'{"__metadata__":{"checksum":"sha256:' + b"[" * 100_000,
        b'{"__metadata__":{"checksum":"sha256:","a":' + b"[" * 100_000,
        b'{"__metadata__":{"checksum":"sha256:","a":' + b"9" * 100_000 + b"}}",
    ],
)
def test_strange_headers_are_refused(header, tmp_path):
    (tmp_path / "sel").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(StoreError):
        Selection.load(tmp_path / "sel")


def test_files_of_other_kinds_are_called_so(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "huge").write_bytes((1 << 62).to_bytes(8, "little") + b"{" * 100)
    (tmp_path / "plain.safetensors").write_bytes(
        (56).to_bytes(8, "little") + b'{"__metadata__":{}}'.ljust(56)
    )
    (tmp_path / "empty").write_bytes(b"")
    for name in ("rows.npy", "huge", "plain.safetensors", "empty"):
        with pytest.raises(StoreError, match=f"{name}: file: found .*expected a selection"):
            Selection.load(tmp_path / name)
    for name, found in (("none", "no such file"), (".", "a folder")):
        with pytest.raises(InvalidInputError, match=f"found {found}, expected a saved selection"):
            Selection.load(tmp_path / name)


def test_a_selection_cannot_be_saved_where_no_file_can_lie(saved, tmp_path):
    selection, _ = saved
    for place in (tmp_path, tmp_path / "none" / "sel"):
        with pytest.raises(InvalidInputError, match="expected a place for a file"):
            selection.save(place)


def test_loading_needs_numpy_alone(saved, tmp_path):
    (tmp_path / "sel").write_bytes(saved[1])
    script = """
import sys
before = set(sys.modules)
import spice_rs
spice_rs.Selection.load(sys.argv[1])
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "safetensors", "pickle5", "tqdm"}))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "sel")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_file_that_is_older_than_a_constraint_says_that_nobody_asked_for_it(tmp_path):
    rows = np.random.default_rng(0).standard_normal((60, 5), dtype=np.float32)
    run = spice_rs.select(rows[:50], 8).as_run()
    assert run.settings.pop("target", "absent") is None
    write_run(tmp_path / "old", run)
    old = spice_rs.Selection.load(tmp_path / "old", rows[:50])
    assert old.settings["target"] is None
    assert spice_rs.extend(old, rows).indices.tolist() == spice_rs.select(rows, 8).indices.tolist()
    run.settings.pop("prior")
    write_run(tmp_path / "broken", run)
    with pytest.raises(spice_rs.CorruptStoreError, match=r"settings\.prior: found none"):
        spice_rs.Selection.load(tmp_path / "broken")
