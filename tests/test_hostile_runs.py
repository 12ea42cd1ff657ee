"""Selections, checkpoints and states altered by somebody who corrects the checksum: every field, with every wrong value.

What is refused is refused by name; what is not means the same, in all that takes a selection.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import constraint_cases
import pools
import spice_rs
from counts import cases
from spice_rs import InvalidInputError, Selection, SpiceError, SpiceWarning, StoreError
from spice_rs.analysis.inputs import BESIDE_DATA
from spice_rs.selection.picks import pick_lines

ROWS = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
START = len(b'01234567{"__metadata__":{"checksum":"sha256:')
SEAL = slice(START, START + 64)
GONE = object()


class Spelled:
    """JSON that no value of Python stands for."""

    def __init__(self, text: str) -> None:
        self.text = text


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 1e308, -0.5, "", "x", "\ud800", "12"),
    *([], [1], [[1]], {}, {"a": 1}, [None], ["a"], GONE),
    *map(
        Spelled, ("1" + "0" * 400, "9" * 5000, "NaN", "Infinity", "1e999", "[" * 50 + "]" * 50, "[" * 100_000)
    ),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        warnings.simplefilter("error", RuntimeWarning)  # numbers that cannot be are not counted with
        yield


def text_of(value: Any) -> str:
    if isinstance(value, Spelled):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {text_of(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    return json.dumps(value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(min(len(value), 2))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield from places(value[key], (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return {} if new is GONE else new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def split(contents: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + length]), contents[8 + length :]


def sealed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = bytearray(len(text).to_bytes(8, "little") + text + data)
    whole[SEAL] = b"0" * 64
    whole[SEAL] = hashlib.sha256(whole).hexdigest().encode()
    return bytes(whole)


def make(kind: str, path: Path) -> None:
    ones = [1.0 + number % 5 for number in range(60)]
    if kind == "plain":
        spice_rs.select(ROWS, 12, conflict_penalty=0.3).save(path)
    elif kind == "windows":
        spice_rs.select(ROWS, pool_size=20, select_per_window=4, seed=1).save(path)
    elif kind == "checkpoint":
        spice_rs.select(ROWS, 12, checkpoint=path)
    else:
        labels = ["ab"[number % 2] for number in range(60)]
        rows = {"initial": [1, 2], "include": [5], "exclude": [7]}
        more = {"max_similarity": 0.6, "weights": ones, "prior": [0.1] * 60, "prior_weight": 0.5}
        spice_rs.select(ROWS, budget=30, costs=ones, groups=labels, **rows, **more).save(path)


def use(path: Path, out: Path) -> None:
    """Do with a selection what people do; where it is refused, it is refused as everything is."""
    selection = Selection.load(path)
    repr(selection), selection.summary(), selection._repr_html_(), selection.belonging
    selection.half_life, selection.epsilon, selection.forced, selection.kept, list(pick_lines(selection))
    selection.save(out)
    Selection.load(out)
    for call in (
        lambda: selection.head(3),
        lambda: spice_rs.extend(selection, ROWS),
        lambda: spice_rs.select(ROWS, 3, initial=selection),
        lambda: spice_rs.certify(selection, ROWS),
        lambda: selection.explain([11], ROWS),
    ):
        try:
            call()
        except SpiceError:
            pass


def tried(variants: Iterator[tuple[str, bytes]], path: Path, work: Any) -> list[str]:
    """What came of each variant that was not refused in a second."""
    wrong = []
    for name, contents in variants:
        path.write_bytes(contents)
        begun = time.monotonic()
        try:
            work(path)
        except SpiceError as error:
            if "found" not in str(error) or len(str(error)) > 2000:
                wrong.append(f"{name}: {str(error)[:200]}")
        except Exception as error:  # noqa: BLE001 - whatever is no error of ours is what is looked for
            wrong.append(f"{name}: {type(error).__name__}: {error}"[:200])
        if time.monotonic() - begun > 2:
            wrong.append(f"{name}: {time.monotonic() - begun:.1f} s")
    return wrong


def altered_texts(contents: bytes) -> Iterator[tuple[str, bytes]]:
    header, data = split(contents)
    run = json.loads(header["__metadata__"]["run"])
    for path in places(run):
        for value in HOSTILE:
            changed = copy.deepcopy(header)
            changed["__metadata__"]["run"] = text_of(replaced(run, path, value))
            shown = value.text[:9] if isinstance(value, Spelled) else "none" if value is GONE else repr(value)
            yield f"{path} = {shown}", sealed(changed, data)


def altered_numbers(contents: bytes) -> Iterator[tuple[str, bytes]]:
    header, data = split(contents)
    values = {
        "I64": [-1, 0, 59, 60, 2**62, -(2**63)],
        "F64": [np.nan, np.inf, -np.inf, -1.0, 1e308, -1e308, 5e-324, 2.0],
        "BOOL": [2, 255],
    }
    forms = {"I64": "<q", "F64": "<d", "BOOL": "B"}
    for name, tensor in header.items():
        if name == "__metadata__" or tensor["shape"] == [0]:
            continue
        first, end = tensor["data_offsets"]
        form = forms[tensor["dtype"]]
        for at in (first, end - struct.calcsize(form)):
            for value in values[tensor["dtype"]]:
                changed = bytearray(data)
                struct.pack_into(form, changed, at, value)
                yield f"{name}: {value}", sealed(header, bytes(changed))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "conditions", "windows"])
def test_no_field_of_a_selection_can_be_made_up(kind: str, tmp_path: Path) -> None:
    file, out = tmp_path / "sel.safetensors", tmp_path / "again.safetensors"
    make(kind, file)
    contents = file.read_bytes()
    use(file, out)
    texts, numbers = altered_texts(contents), altered_numbers(contents)
    assert tried(texts, file, lambda path: use(path, out)) == []
    assert tried(numbers, file, lambda path: use(path, out)) == []


# --- the numbers of the picks, beside the rows that they are of ------------------------------------------------------

ONES = [1.0 + number % 5 for number in range(60)]
LABELS = ["ab"[number % 2] for number in range(60)]
GIVEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "unit": {},
    "diagonal": {},
    "scalar": {},
    "top_k": {},
    "windows": {},
    "prior": {"prior": [0.01 * (number % 7) for number in range(60)]},
    "similarity": {"max_similarity": 0.6},
    "initial": {"initial": [1, 2]},
    "weights": {"weights": ONES},
    "groups": {"groups": LABELS},
    "costs": {"costs": ONES},
    "target": {},
    "store": {},
    "int8": {},
}
"""What each kind of selection is made with, and is given again to be explained."""

READINGS: list[dict[str, Any]] = [
    {},
    {"fisher": "diagonal"},
    {"fisher": "scalar"},
    {"method": "top_k"},
    {"method": "stochastic"},
    {"method": "epsilon_lazy"},
    {"normalize": "unit"},
    {"max_similarity": 0.9},
    {"early_stop": 0.3},
]

NOT_EXPORTED = {"rows_read", "overruled", "pick_labels", "pick_alike", "duplicate_ranks"}
"""What the rows of the picks do not tell, and no file of picks has: how the search went, and how picks are alike."""


def selected(kind: str, folder: Path) -> tuple[Selection, Any]:
    """A selection of a kind, and its source."""
    options: dict[str, Any] = {"conflict_penalty": 0.3, **GIVEN[kind]}
    if kind == "windows":
        return spice_rs.select(ROWS, pool_size=20, select_per_window=4, seed=1), ROWS
    if kind == "costs":
        return spice_rs.select(ROWS, budget=30, **options), ROWS
    if kind == "target":
        wanted = ROWS[:9] + np.float32([3, 0, 0, 0, 0, 0])
        return spice_rs.select(ROWS, 12, target=wanted, **options), ROWS
    if kind in ("store", "int8"):
        provenance = {"dataset": {"rows": 178, "fingerprint": "pool"}}
        stored = {"dtype": "int8" if kind == "int8" else "float16", "reduction": "sum"}
        with spice_rs.GradientStore.create(folder / kind, dim=6, provenance=provenance, **stored) as writer:
            rows = np.arange(60)
            writer.append(ROWS, 3 * rows, num_tokens=1 + rows % 9, record=1000 + rows)
        source = spice_rs.GradientStore(folder / kind)
        amount: dict[str, Any] = {"budget": 50} if kind == "store" else {"k": 12}
        return spice_rs.select(source, **amount, **options), source
    options |= {"unit": {"normalize": "unit"}, "top_k": {"method": "top_k"}}.get(kind, {})
    if kind in ("diagonal", "scalar"):
        options["fisher"] = kind
    return spice_rs.select(ROWS, 12, **options), ROWS


def refusal(work: Callable[[], Any]) -> str | None:
    """What is said where it is refused."""
    try:
        work()
    except StoreError as error:
        return str(error)
    return None


def altered_series(series: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The same numbers in another order, or others that there could be."""
    swapped, one = series.copy(), series.copy()
    unlike = np.flatnonzero(series != series[0])
    if unlike.size:
        swapped[[0, unlike[-1]]] = series[[unlike[-1], 0]]
        one[-2] = series[0] if series[-2] != series[0] else series[unlike[0]]
    yield "two swapped", swapped
    yield "backwards", series[::-1].copy()
    yield "rolled", np.roll(series, 1)
    yield "one replaced", one
    yield "shifted", ~series if series.dtype == bool else series + 1
    yield (
        "scaled",
        series if series.dtype == bool else (series * 2 if series.dtype.kind == "i" else series * 0.99),
    )


@pytest.mark.parametrize("kind", GIVEN)
def test_no_series_of_numbers_can_be_exchanged(kind: str, tmp_path: Path) -> None:
    """Beside a right checksum: what the source and the other numbers contradict is refused wherever both are at hand."""
    selection, source = selected(kind, tmp_path)
    file = tmp_path / "sel.safetensors"
    selection.save(file)
    given = {name: value for name, value in GIVEN[kind].items() if name != "max_similarity"}
    told = {name: value for name, value in given.items() if name in ("weights", "initial")}
    loaded = Selection.load(file, source)
    [kept] = spice_rs.explain(loaded, source, int(selection.indices[0]), **given)
    assert kept.rank == 0
    assert spice_rs.certify(loaded, source, **told).ratio > 0
    header, data = split(file.read_bytes())
    forms = {"I64": "<i8", "F64": "<f8", "BOOL": "?"}
    tried_at_all = 0
    for name, tensor in header.items():
        if name == "__metadata__" or tensor["shape"][0] < 2:
            continue
        first, end = tensor["data_offsets"]
        series = np.frombuffer(data[first:end], forms[tensor["dtype"]])
        for how, changed in altered_series(series):
            if changed.tobytes() == series.tobytes():
                continue
            tried_at_all += 1
            file.write_bytes(sealed(header, data[:first] + changed.tobytes() + data[end:]))
            says = []
            for work in (
                lambda: Selection.load(file, source),
                lambda: spice_rs.explain(Selection.load(file), source, [0], **given),
                lambda: spice_rs.certify(Selection.load(file), source, **told),
                lambda: spice_rs.analyze(Selection.load(file), source, steps=1, **given),
            ):
                says.append(refusal(work))
            where = f"{name}: {how}: {says}"
            assert all(said is None or said.startswith(f"{file}: ") for said in says), where
            if None not in says:
                continue
            # What somebody has given needs to be given again: Replay asks for all of it, the others for some.
            if (name, kind) in (("scores", "prior"), ("groups", "groups"), ("relevance", "target")):
                assert None not in (says[1], says[3]), where
                continue
            assert name in NOT_EXPORTED or name.startswith("target_"), where
            again = Selection.load(file)
            assert list(pick_lines(again)) == list(pick_lines(selection)), where
    assert tried_at_all >= 36


def test_numbers_of_another_pick_are_refused_by_every_command(tmp_path: Path, capsys: Any) -> None:
    """The file, the field, what was found, what was expected and what to do, in a line."""
    from spice_rs.cli import main

    rows, file = tmp_path / "rows.npy", tmp_path / "sel.safetensors"
    np.save(rows, ROWS)
    spice_rs.select(rows, 12).save(file)
    header, data = split(file.read_bytes())
    first, end = header["indices"]["data_offsets"]
    picks = np.frombuffer(data[first:end], "<i8").copy()
    other = int(np.setdiff1d(np.arange(60), picks)[0])
    picks[3] = other
    file.write_bytes(sealed(header, data[:first] + picks.tobytes() + data[end:]))
    for command in (
        ["explain", str(file), str(rows), "7"],
        ["certify", str(file), str(rows)],
        ["report", str(file), str(rows), "--out", str(tmp_path / "page.html")],
        ["extend", str(file), str(rows)],
    ):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        parts = (f"{file}: base[3]: found", "expected", f"row {other}", "select again")
        assert "\n" not in said, said
        assert all(part in said for part in parts), said
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_checkpoint_that_was_made_up_makes_no_other_picks(tmp_path: Path) -> None:
    file = tmp_path / "run"
    make("checkpoint", file)
    contents = file.read_bytes()
    expected = spice_rs.select(ROWS, 20).indices.tolist()

    def go_on(path: Path) -> None:
        copied = tmp_path / "copied"
        shutil.copy(path, copied)
        found = spice_rs.select(ROWS, 20, checkpoint=copied).indices.tolist()
        if found != expected:
            raise AssertionError(found)

    assert tried(altered_texts(contents), file, go_on) == []
    assert tried(altered_numbers(contents), file, go_on) == []
    # The search goes on from the last scores: one that is too small would hide better rows.
    header, data = split(contents)
    for name in ("gains", "base", "conflict", "scores"):
        changed = bytearray(data)
        at = header[name]["data_offsets"][1] - 8
        struct.pack_into("<d", changed, at, 0.999 * struct.unpack_from("<d", data, at)[0] + 1e-3)
        file.write_bytes(sealed(header, bytes(changed)))
        with pytest.raises(SpiceError, match="found"):
            go_on(file)


def test_limits_that_the_picks_exceed_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "sel.safetensors"
    make("conditions", file)
    header, data = split(file.read_bytes())
    run = json.loads(header["__metadata__"]["run"])
    for path, value, says in (
        (("settings", "budget"), 3.0, "costs: found .* in all, expected at most the budget of 3"),
        (("settings", "groups", "quotas"), [["a", 0, 1.0], ["b", 0, None]], r"groups\['a'\]: found"),
    ):
        header["__metadata__"]["run"] = text_of(replaced(run, path, value))
        file.write_bytes(sealed(header, data))
        with pytest.raises(StoreError, match=says):
            Selection.load(file)


# --- the state of a run ------------------------------------------------------------------------------------------


def sealed_state(content: Any) -> bytes:
    """state.json with the checksum that fits it, as far as a value of JSON has one."""
    digest = "0" * 64
    try:
        digest = hashlib.sha256(json.dumps(json.loads(text_of(content)), sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError):
        pass
    return (text_of(content)[:-1] + f', "sha256": "{digest}"}}').encode()


def test_no_field_of_a_state_can_be_made_up(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from spice_rs.schedule.state import RunState

    settings = {"pool_size": 4, "lora": None}
    folder = tmp_path / "state"
    pick = {"index": 3, "rank": 0, "gain": 1.0, "conflict": 0.0, "score": 1.0, "window": 0, "step": 0}
    state = RunState(folder, settings)
    state.advance([pick], loss=0.5, tensors={"weight:a": torch.ones(2)}, metrics=0)
    state.close()
    (tmp_path / "outside.safetensors").write_bytes((folder / "step-1.safetensors").read_bytes())
    content = json.loads((folder / "state.json").read_bytes())
    del content["sha256"]

    def open_state(_: Path) -> None:
        work = tmp_path / "work"
        shutil.copytree(folder, work)
        try:
            opened = RunState(work, settings)
            try:
                assert opened.tensors() is None or set(opened.tensors()) == {"weight:a"}
            finally:
                opened.close()
        finally:
            shutil.rmtree(work)

    def variants() -> Iterator[tuple[str, bytes]]:
        for path in places(content):
            for value in HOSTILE if path else ():
                yield f"{path} = {value!r}"[:60], sealed_state(replaced(content, path, value))

    assert tried(variants(), folder / "state.json", open_state) == []
    digest = content["weights"]["sha256"]
    for name in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "step-1.safetensors/../x",
        "",
        ".",
    ):
        weights = {"file": name, "sha256": digest}
        (folder / "state.json").write_bytes(sealed_state({**content, "weights": weights}))
        with pytest.raises(StoreError, match="state.json: found weights"):
            RunState(folder, settings)
    assert (tmp_path / "outside.safetensors").exists()
    (folder / "state.json").write_bytes(sealed_state(content))
    for name in ("step-1.safetensors", "picks.jsonl", "state.json", ".lock"):
        aside = folder / name
        kept = aside.read_bytes()
        for kind in ("link", "pipe"):
            aside.unlink()
            (tmp_path / "outside").write_bytes(kept)
            if kind == "link":
                aside.symlink_to(tmp_path / "outside")
            else:
                os.mkfifo(aside)
            with pytest.raises(StoreError, match=f"{name}: found a {kind}"):
                opened = RunState(folder, settings)
                try:
                    opened.tensors()
                finally:
                    opened.close()
            assert (tmp_path / "outside").read_bytes() == kept
        aside.unlink()
        aside.write_bytes(kept)


@given(pools.cases(), st.sampled_from(READINGS))
@cases(count=400)
def test_a_selection_that_nobody_altered_is_never_refused(case: pools.Case, how: dict[str, Any]) -> None:
    """Twins, opposite rows, zero rows, huge and tiny norms, k = n: rounding is no alteration."""
    try:
        selection = spice_rs.select(case.rows, case.k, alpha=case.alpha, conflict_penalty=case.penalty, **how)
    except InvalidInputError:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sel.safetensors"
        selection.save(file)
        again = Selection.load(file, case.rows)
    assert again.indices.tolist() == selection.indices.tolist()
    if len(again):
        spice_rs.explain(again, case.rows, 0)
        spice_rs.certify(again, case.rows, steps=0)


@given(constraint_cases.asked())
@cases(count=200)
def test_nor_is_one_under_constraints(asked: constraint_cases.Asked) -> None:
    selection = spice_rs.select(asked.rows, **asked.keywords)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sel.safetensors"
        selection.save(file)
        again = Selection.load(file, asked.rows)
    given = {name: asked.keywords[name] for name in BESIDE_DATA if asked.keywords.get(name) is not None}
    told = {name: given[name] for name in ("initial", "weights") if name in given}
    if len(again):
        spice_rs.explain(again, asked.rows, 0, **given)
        spice_rs.certify(again, asked.rows, steps=0, **told)
