"""Arguments of every public function and of every command: numbers of numpy count, and a mistake reads alike everywhere.

The signatures are walked: a new public function with a number, a switch or a word among its parameters fails here until it
stands in `calls`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import spice_rs
from command import run
from models import make_model
from reference import make_data
from spice_rs import InvalidInputError, arguments, cli
from spice_rs.commands import values
from spice_rs.extraction.projection import Parameter, make_projection

pytestmark = pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")

ROWS = np.random.default_rng(0).standard_normal((40, 6), dtype=np.float32)
CLASSES = ("Composition", "GradientStore", "GradientWriter", "NearDuplicates", "OnlineSelector", "Selection")
"""Classes with methods of their own; the others of the package only hold results."""

EXTRACTING = {
    "plan": set(),
    "doctor": set(),
    "run_schedule": {"dtype"},
    "OnlineSelector.__init__": {"dtype", "lora_rank", "max_length", "completion_only", "skip_bad", "preference", "limit",
                                "trust_remote_code"},
}  # fmt: skip
"""What takes further arguments of `extract` → those that it does not take."""


# --- the walk -----------------------------------------------------------------------------------------------------


def public():
    """Name → every function and method that users call."""
    found = {}
    for name in spice_rs.__all__:
        each = getattr(spice_rs, name)
        if inspect.isclass(each):
            if not issubclass(each, BaseException):
                found |= methods(each)
        elif callable(each):
            found[name] = each
    writer = methods(spice_rs.store.writer.GradientWriter)
    del writer["GradientWriter.__init__"]  # `GradientStore.create` makes them
    return found | writer


def methods(kind):
    return {
        f"{kind.__name__}.{name}": each
        for name, each in inspect.getmembers(kind, callable)
        if (not name.startswith("_") or (name == "__init__" and not is_dataclass(kind)))
        and inspect.isroutine(each)
    }


def parameters(function):
    """Parameter → the types that it may have, of those that are judged here."""
    hints = typing.get_type_hints(function, vars(inspect.getmodule(function)) | {"torch": torch})
    found = {}
    for name in inspect.signature(function).parameters:
        kinds = {kind for kind in union(hints.get(name, str)) if judged(kind)}
        if kinds - {type(None)}:
            found[name] = kinds
    return found


def union(hint):
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [each for part in typing.get_args(hint) for each in union(part)]
    return [hint]


def judged(kind):
    return kind in (int, float, bool, type(None)) or typing.get_origin(kind) is typing.Literal


def words_of(kinds):
    return [word for kind in kinds if typing.get_origin(kind) for word in typing.get_args(kind)]


# --- what to call -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Name → (what is called with arguments by name, the least that it needs, valid numbers by name)."""
    folder = tmp_path_factory.mktemp("arguments")
    with spice_rs.GradientStore.create(folder / "store", dim=6, dtype="float32") as writer:
        writer.append(ROWS, np.arange(40))
    picked = spice_rs.select(ROWS, 8, max_similarity=0.9)
    picked.save(folder / "saved")
    ROWS.tofile(folder / "bare")
    bare = {"source": folder / "bare", "dtype": "float32"}
    of_picks = {"selection": picked, "source": ROWS}
    text = {"model": "none/at/all", "data": []}
    several = {"random_sets": 2, "threads": 2, "seed": 3}
    number = iter(range(10**6))

    def new():
        return folder / f"new{next(number)}"

    def created(**given):
        spice_rs.GradientStore.create(new(), **given).close()

    def merged(**given):
        return len(spice_rs.GradientStore.merge([folder / "store"], new(), **given))

    def opened():
        return spice_rs.GradientStore(folder / "store")

    return {
        "select": (spice_rs.select, {"source": ROWS}, {"k": 8, "threads": 2, "hot_rows": 4, "time_limit": 1e6}),
        "extend": (spice_rs.extend, {"selection": spice_rs.select(ROWS[:30], 8), "source": ROWS},
                   {"k": 5, "threads": 1, "hot_rows": 3, "time_limit": 1e6}),
        "log_det": (spice_rs.log_det, {"source": ROWS, "rows": [1, 2]}, {"threads": 2, "alpha": 0.5}),
        "coverage": (spice_rs.coverage,
                     {"selection": spice_rs.select(ROWS[:30], 8), "source": ROWS[:30], "held_out": ROWS[30:]},
                     {"random_sets": 2, "seed": 3}),
        "relevance": (spice_rs.relevance, {"source": ROWS, "target": ROWS[:3] + 1}, {"threads": 2}),
        "agreement": (spice_rs.agreement, {"a": ROWS, "b": ROWS + 1}, {"k": 6, **several}),
        "compare": (spice_rs.compare, {"source": ROWS, "methods": ["spice", "random", "windows"]},
                    {"k": 6, "pool_size": 9, **several}),
        "certify": (spice_rs.certify, of_picks, {"prefixes": 4, "steps": 2, "threads": 2}),
        "curvature": (spice_rs.curvature, {"source": ROWS}, {"alpha": 0.5, "threads": 2}),
        "analyze": (spice_rs.analyze, of_picks, {"steps": 3, "sample": 20, "seed": 3}),
        "explain": (spice_rs.explain, {**of_picks, "rows": [3]}, {}),
        "write_report": (spice_rs.write_report, {**of_picks, "out": folder / "page.html"}, {}),
        "extract": (spice_rs.extract, {**text, "out": folder / "out"}, {}),
        "plan": (spice_rs.plan, text, {}),
        "doctor": (spice_rs.doctor, text, {}),
        "run_schedule": (spice_rs.run_schedule, {**text, "out": folder / "out"}, {}),
        "OnlineSelector.__init__": (spice_rs.OnlineSelector, {"model": None}, {"select_per_window": 3}),
        "GradientStore.__init__": (spice_rs.GradientStore, {"path": folder / "store"}, {"memory_limit": 10**7}),
        "GradientStore.create": (created, {}, {"dim": 6, "rows_per_shard": 5, "bytes_per_shard": 200,
                                               "seconds_per_shard": 1.0}),
        "GradientStore.compact": (lambda **given: opened().compact(**given), {}, {"bytes_per_shard": 200}),
        "GradientStore.merge": (merged, {}, {}),
        "Selection.head": (picked.head, {}, {"k": 3}),
        "Composition.head": (picked.composition.head, {}, {"k": 3}),
        "NearDuplicates.head": (picked.near_duplicates.head, {}, {"k": 3}),
        "Selection.load": (lambda **given: spice_rs.Selection.load(folder / "saved", **given), bare, {"dim": 6}),
        "Selection.to_frame": (picked.to_frame, {}, {}),
        "NearDuplicates.to_frame": (picked.near_duplicates.to_frame, {}, {}),
        "Agreement.to_frame": (spice_rs.agreement(ROWS, ROWS, 3).to_frame, {}, {}),
        "Analysis.to_frame": (spice_rs.analyze(picked, ROWS).to_frame, {}, {}),
        "Certificate.to_frame": (spice_rs.certify(picked, ROWS).to_frame, {}, {}),
        "Comparison.to_frame": (spice_rs.compare(ROWS, 3, ["spice"]).to_frame, {}, {}),
        "Curvature.to_frame": (spice_rs.curvature(ROWS).to_frame, {}, {}),
        "Explanation.to_frame": (spice_rs.explain(picked, ROWS, 3)[0].to_frame, {}, {}),
        "Schedule.to_frame": (None, {}, {}),
    }  # fmt: skip


NUMBERED = {name: found for name, each in public().items() if (found := parameters(each))}
"""Name → parameters that are judged here, of every public function that has any."""

EXTRACTION = {name: kinds for name, kinds in parameters(spice_rs.extract).items() if name != "progress"}


def test_every_public_function_with_a_number_a_switch_or_a_word_is_called_here(calls):
    assert {"select", "GradientStore.create", "Selection.head", "OnlineSelector.__init__"} <= set(NUMBERED)
    assert NUMBERED["select"].keys() >= {"k", "alpha", "budget", "partial", "fisher", "progress", "dim"}
    assert set(calls) == set(NUMBERED)


ANY_SEED = ("extract", "plan", "doctor", "OnlineSelector.__init__")
"""What only hashes its seed, so that every whole number will do, however large."""


def wrong(kinds):
    """Values that a parameter of these types must refuse."""
    whole = int in kinds
    found = ["", object(), b"3", {"a": 1}, np.str_("x"), {3}]
    if whole or float in kinds:
        found += [True, np.True_, np.array(True), [None], np.array([[2]]), float("nan"), np.float32("inf"), 1j,
                  np.timedelta64(3), np.datetime64(3, "s"), torch.tensor(True), "3", "0.5", 10**400]  # fmt: skip
    if whole and float not in kinds:
        found += [
            2.5,
            10.0,
            np.float64(10),
            np.array(2.5),
            Fraction(5, 2),
            -1,
            np.int8(-1),
            1 << 63,
            np.uint64(1 << 63),
        ]
    if bool in kinds:
        found += ["no", "True", 1, 0, np.int64(1), [], [True], np.array([True])]
    if words_of(kinds):
        found += ["nonsense", ["nonsense"], 3 if not {int, float} & kinds else None]
    return [each for each in found if each is not None] + [None] * (type(None) not in kinds)


def refusal(function, given, name, value):
    """The message of a wrong argument, which names it first."""
    with pytest.raises(InvalidInputError) as caught:
        function(**{**given, name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: found "), (name, value, text)
    assert ", expected " in text, text
    assert text.endswith((".", "?")), text
    return text


@pytest.mark.parametrize("called", sorted(NUMBERED))
def test_what_cannot_be_used_is_refused_in_one_shape(called, calls):
    function, least, valid = calls[called]
    if function is None:
        return  # it takes a run; the same method as of all results
    judged_here = dict(NUMBERED[called])
    if called in EXTRACTING:
        left_out = EXTRACTING[called]
        judged_here |= {name: kinds for name, kinds in EXTRACTION.items() if name not in left_out}
    given = {**least, **{name: each for name, each in valid.items() if name in ("k", "dim")}}
    for name, kinds in judged_here.items():
        any_seed = name == "seed" and called in ANY_SEED
        for value in (each for each in wrong(kinds) if not (any_seed and arguments.is_whole(each))):
            sequence = name == "prefixes" and isinstance(value, list | np.ndarray | set)
            if not sequence:
                text = refusal(function, given, name, value)
        if words_of(kinds) and not {int, float} & kinds and bool not in kinds:
            assert all(repr(word) in text for word in words_of(kinds)), text


FORMS = {
    int: [np.int64, np.int32, np.uint16, np.uint64, np.array, torch.tensor, lambda n: np.array(n, np.int16)],
    float: [np.float64, np.float32, np.float16, np.longdouble, np.array, torch.tensor],
}


def as_numpy(value, form):
    """A number in another form, where it has the same value there."""
    maker = FORMS[type(value)][form % len(FORMS[type(value)])] if type(value) in FORMS else np.bool_
    try:
        with np.errstate(over="ignore"):
            made = maker(value)
    except OverflowError:
        return value
    return made if float(made) == value else value


def told(result):
    """All that a result says, as JSON has it: numbers of numpy in it would be an error."""
    settings = getattr(result, "settings", None)
    columns = result.to_dict() if isinstance(result, spice_rs.Selection | spice_rs.Analysis) else {}
    listed = {name: np.asarray(column).tolist() for name, column in columns.items()}
    text = "" if isinstance(result, spice_rs.Comparison) else repr(result)  # which has seconds
    return json.dumps([settings, listed, text])


@pytest.mark.parametrize("form", range(7))
@pytest.mark.parametrize(
    "called", sorted(set(NUMBERED) - set(EXTRACTING) - {"extract", "write_report", "Schedule.to_frame"})
)
def test_numbers_of_numpy_are_taken_like_those_of_python(called, form, calls):
    function, least, valid = calls[called]
    defaults = inspect.signature(public()[called]).parameters
    plain = {
        name: valid.get(name, defaults[name].default)
        for name, kinds in NUMBERED[called].items()
        if kinds & {int, float, bool}
    }
    plain = {name: value for name, value in plain.items() if type(value) in (int, float, bool)}
    plain = {name: float(value) if int not in NUMBERED[called][name] and type(value) is int else value
             for name, value in plain.items()}  # fmt: skip
    other = {name: as_numpy(value, form) for name, value in plain.items()}
    assert told(function(**least, **other)) == told(function(**least, **plain))


def test_every_kind_of_run_takes_numbers_of_numpy():
    rows, ids = ROWS.astype(np.float64), np.arange(40)
    for plain in (
        {"k": 6, "early_stop": 0.25},
        {"k": 6, "method": "epsilon_lazy", "epsilon": 0.25},
        {"k": 6, "method": "stochastic", "epsilon": 0.25, "seed": 7},
        {"pool_size": 10, "select_per_window": 2, "seed": 7},
        {"budget": 5.5, "costs": [1.5] * 40},
        {"budget": 0.25, "costs": [1.5] * 40},
        {"k": 6, "prior": [0.5] * 20 + [0.25] * 20, "prior_weight": 2.0, "max_similarity": 0.75},
        {"k": 6, "groups": ["a", "b"] * 20, "group_shares": {"a": (2, 0.5), "b": (None, 4)}},
        {"k": 6, "include": [3, 4], "exclude": [1, 2], "initial": [0]},
    ):
        expected = spice_rs.select(rows, **plain)
        for form in range(6):

            def in_numpy(value, form=form):
                if isinstance(value, dict):
                    return {name: in_numpy(each) for name, each in value.items()}
                if isinstance(value, list | tuple) and not isinstance(value[0], str):
                    return type(value)(in_numpy(each) for each in value)
                return as_numpy(value, form) if type(value) in (int, float) else value

            found = spice_rs.select(rows, **in_numpy(plain))
            assert told(found) == told(expected)
    for rows_of in (
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda r: np.array(r, np.uint8),
        lambda r: list(map(np.int16, r)),
    ):
        found = spice_rs.select(rows, 6, exclude=rows_of(ids[:9].tolist()))
        assert found.indices.tolist() == spice_rs.select(rows, 6, exclude=range(9)).indices.tolist()


ROW = 3
"""A single one, which only `explain` takes."""


@pytest.mark.parametrize(
    "given",
    [ROW, {1, 2}, "x", [[1], [1, 2]], [1.0], [True, 2], [True], ["1"], [None], [1 << 63], np.array([1 << 63], np.uint64),
     np.zeros((2, 2), int), 2.5, object(), b"1"],
)  # fmt: skip
def test_rows_are_whole_numbers_in_one_dimension(given, calls):
    for name in ("initial", "include", "exclude"):
        assert "whole numbers" in refusal(spice_rs.select, {"source": ROWS, "k": 3}, name, given)
    assert "whole numbers" in refusal(spice_rs.log_det, {"source": ROWS}, "rows", given)
    of_picks = {"selection": calls["Selection.head"][0](3), "source": ROWS}
    if given is not ROW:
        assert "whole numbers" in refusal(spice_rs.explain, of_picks, "rows", given)
    earlier = {"selection": spice_rs.select(ROWS[:30], 3), "source": ROWS}
    assert "whole numbers" in refusal(spice_rs.extend, earlier, "old_rows", given)


def test_truth_values_in_a_list_of_numbers_are_not_counted(tmp_path):
    mixed = [True, *[2] * 39]
    for name, more in (("costs", {"budget": 9}), ("weights", {"k": 3}), ("prior", {"k": 3})):
        assert "for row 0" in refusal(spice_rs.select, {"source": ROWS, **more}, name, mixed)
    with spice_rs.GradientStore.create(tmp_path / "s", dim=6) as writer:
        refusal(writer.append, {"rows": ROWS}, "index", [True, *range(2, 41)])
        refusal(writer.append, {"rows": ROWS, "index": np.arange(40)}, "num_tokens", mixed)
        writer.append(ROWS, np.arange(40))
    store = spice_rs.GradientStore(tmp_path / "s")
    for given in ([True, 2], [1, np.False_], [1.0], [None], "x", {1, 2}, [[1], [1, 2]], [1 << 63]):
        refusal(store.read, {}, "positions", given)
        refusal(store.positions, {}, "index", given)
        refusal(store.delete, {}, "index", given)


def test_what_a_store_is_given_beside_numbers_is_refused_alike(calls, tmp_path):
    create = calls["GradientStore.create"][0]
    for name in ("dtype", "reduction", "writer", "provenance"):
        for given in (3, ["a"], b"x", True, object()):
            refusal(create, {"dim": 3}, name, given)
    for name in ("dtype", "reduction"):
        refusal(create, {"dim": 3}, name, "floot16")
    with spice_rs.GradientStore.create(tmp_path / "s", dim=6) as writer:
        writer.append(ROWS, np.arange(40))
    store = spice_rs.GradientStore(tmp_path / "s")
    merge = {"sources": [tmp_path / "s"], "path": tmp_path / "t"}
    convert = {"path": tmp_path / "t", "dtype": "float32"}
    for function, more in (
        (store.verify, {}),
        (store.compact, {}),
        (store.delete, {"index": [1]}),
        (store.convert, convert),
        (store.export, {"path": tmp_path / "t"}),
        (store.repair, {"path": tmp_path / "s"}),
        (store.merge, merge),
    ):
        for given in (3, True, "yes", [print]):
            refusal(function, more, "progress", given)
    for given in ("float64", 3, None):
        refusal(store.convert, convert, "dtype", given)
    for given in (3, str(tmp_path / "s"), tmp_path / "s", b"s", [3], None):
        refusal(store.merge, merge, "sources", given)
    assert len(store) == 40
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


@pytest.mark.parametrize("given", [3, ["a"], "prompt", {"prompt": 3}, {3: "prompt"}, [("prompt", "a")]])
def test_columns_are_a_mapping_everywhere(given, calls, tmp_path):
    picked, data = calls["Selection.head"][0](3), [{"prompt": "a", "response": "b"}] * 40
    refusal(spice_rs.extract, calls["extract"][1], "columns", given)
    refusal(
        spice_rs.explain, {"selection": picked, "source": ROWS, "rows": [1], "data": data}, "columns", given
    )
    refusal(picked.to_llama_factory, {"folder": tmp_path, "data": data}, "columns", given)


def test_names_are_texts(calls):
    for given in (3, [3], {"a": 1}, b"x"):
        refusal(spice_rs.extract, calls["extract"][1], "ignore_columns", given)
        refusal(spice_rs.extract, calls["extract"][1], "target_modules", given)
        refusal(spice_rs.compare, {"source": ROWS, "k": 3, "methods": ["spice"]}, "scales", given)
    refusal(spice_rs.compare, {"source": ROWS, "k": 3, "methods": ["spice"]}, "scales", ["auto"])


@pytest.mark.parametrize("given", [3, None, "picks", [1, 2], {"k": 3}])
def test_what_is_no_selection_is_refused_as_such(given):
    for function, more in (
        (spice_rs.certify, {}),
        (spice_rs.analyze, {}),
        (spice_rs.extend, {}),
        (spice_rs.explain, {"rows": [1]}),
        (spice_rs.write_report, {"out": "page.html"}),
    ):
        assert "expected a Selection" in refusal(function, {"source": ROWS, **more}, "selection", given)


# --- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", [str, Path, lambda path: str(path).encode()], ids=["str", "Path", "bytes"])
def test_paths_may_be_text_bytes_and_path_objects(form, tmp_path):
    store = form(tmp_path / "store")
    with spice_rs.GradientStore.create(store, dim=6) as writer:
        writer.append(ROWS, np.arange(40))
    assert len(spice_rs.GradientStore(store)) == 40
    spice_rs.GradientStore.merge([store], form(tmp_path / "merged"))
    opened = spice_rs.GradientStore(store)
    opened.convert(form(tmp_path / "converted"), "float32")
    opened.export(form(tmp_path / "rows.npy"), form(tmp_path / "index.npy"))
    spice_rs.GradientStore.repair(store)
    picked = spice_rs.select(store, 4, checkpoint=form(tmp_path / "run"))
    picked.save(form(tmp_path / "saved"))
    assert spice_rs.Selection.load(form(tmp_path / "saved"), form(tmp_path / "store")).indices.tolist() == (
        spice_rs.select(form(tmp_path / "rows.npy"), 4).indices.tolist()
    )
    for kind in ("jsonl", "json", "csv", "parquet"):
        getattr(picked, f"to_{kind}")(form(tmp_path / f"picks.{kind}"))
    picked.to_llama_factory(form(tmp_path / "llama"), [{"prompt": "a", "response": "b"}] * 40)
    spice_rs.write_report(picked, store, form(tmp_path / "page.html"), sweeps=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"store", "merged", "converted", "rows.npy", "index.npy", "run", "saved", "llama", "page.html",
                     "picks.jsonl", "picks.json", "picks.csv", "picks.parquet"}  # fmt: skip


@pytest.mark.parametrize("given", [3, 2.5, ["a"], object(), True, {"a": 1}])
def test_what_is_no_path_is_refused_by_name(given, tmp_path, calls):
    picked = calls["Selection.head"][0](3)
    refusal(spice_rs.GradientStore, {}, "path", given)
    refusal(spice_rs.GradientStore.create, {"dim": 3}, "path", given)
    refusal(picked.save, {}, "path", given)
    refusal(spice_rs.Selection.load, {}, "path", given)
    refusal(picked.to_jsonl, {}, "path", given)
    refusal(picked.to_parquet, {}, "path", given)
    refusal(picked.to_llama_factory, {"data": []}, "folder", given)
    refusal(spice_rs.select, {"source": ROWS, "k": 3}, "checkpoint", given)
    refusal(spice_rs.write_report, {"selection": picked, "source": ROWS}, "out", given)
    for name in ("extract", "run_schedule"):
        refusal(calls[name][0], {**calls[name][1]}, "out", given)
    refusal(spice_rs.plan, calls["plan"][1], "out", given)
    refusal(spice_rs.extract, calls["extract"][1], "cache_dir", given)


# --- extraction, where a call takes seconds -----------------------------------------------------------------------


def numbers_of_numpy(given):
    return {
        name: np.bool_(value) if type(value) is bool else as_numpy(value, 1) for name, value in given.items()
    }


@pytest.mark.slow
def test_an_extraction_takes_numbers_of_numpy(tmp_path):
    model, data = make_model(), make_data(5)
    settings = {"dim": 64, "seed": 5, "min_coverage": 0.5, "max_length": 16, "tokens_per_batch": 40, "limit": 4, "nnz": 2,
                "side": 8, "norms": True, "skip_bad": False, "completion_only": True, "gradient_checkpointing": False,
                "lora_rank": 2, "progress": False}  # fmt: skip
    other = numbers_of_numpy(settings)
    plain = spice_rs.extract(model, data, tmp_path / "a", **settings)
    found = spice_rs.extract(model, data, tmp_path / "b", **other)
    assert found.fingerprint == plain.fingerprint
    assert found.provenance == plain.provenance
    planned = spice_rs.plan(model, data, measure=np.int64(1), processes=np.uint8(1), **other)
    assert (planned.rows, planned.measured) == (4, 1)
    few = {name: each for name, each in other.items() if name != "lora_rank"}
    assert spice_rs.doctor(model, data, samples=np.int16(2), tolerance=np.float32(0.5), **few).checks


@pytest.mark.slow
def test_a_schedule_and_a_selector_take_numbers_of_numpy(tmp_path):
    data = make_data(12)
    numbers = {"pool_size": 4, "select_per_window": 2, "interval": 2, "warmup_steps": 1, "seed": 3, "threads": 1, "dim": 64,
               "alpha": 0.5, "conflict_penalty": 0.25, "early_stop": 0.125, "learning_rate": 0.5, "weight_decay": 0.25,
               "max_grad_norm": 0.5, "lora_rank": 2, "progress": False, "tensorboard": False}  # fmt: skip
    plain = spice_rs.run_schedule(make_model(), data, tmp_path / "a", **numbers)
    found = spice_rs.run_schedule(make_model(), data, tmp_path / "b", **numbers_of_numpy(numbers))
    assert found.indices.tolist() == plain.indices.tolist()
    assert found.settings == plain.settings
    model = make_model()
    length = min(len(item["input_ids"]) for item in data)
    batch = {name: torch.tensor([item[name][:length] for item in data]) for name in ("input_ids", "labels")}
    batch["labels"] = batch["input_ids"]
    few = {"select_per_window": 3, "early_stop": 0.125, "alpha": 0.5, "conflict_penalty": 0.25, "dim": 64}
    chosen = [spice_rs.OnlineSelector(model, **each).choose(batch) for each in (few, numbers_of_numpy(few))]
    assert chosen[0].tolist() == chosen[1].tolist()


@pytest.mark.parametrize("seed", [-1, np.int8(-1), 1 << 70])
def test_projections_hash_any_seed_and_a_fresh_lora_takes_none_below_zero(seed, calls):
    made = make_projection("sparse", [Parameter("a", (4, 3))], dim=8, seed=seed)
    assert type(made.seed) is int
    assert made.seed == seed
    if seed < 0:
        refusal(spice_rs.extract, {**calls["extract"][1], "lora_rank": 2}, "seed", seed)
    refusal(spice_rs.run_schedule, calls["run_schedule"][1], "seed", -1)


# --- the command line ---------------------------------------------------------------------------------------------

LINES = {
    "extract": "--model none/at/all --data empty.jsonl --out out",
    "plan": "--model none/at/all --data empty.jsonl",
    "doctor": "--model none/at/all --data empty.jsonl",
    "run": "--model none/at/all --data empty.jsonl --out out",
    "select": "rows.npy",
    "extend": "saved rows.npy --out picks.jsonl",
    "explain": "saved rows.npy 3",
    "certify": "saved rows.npy",
    "report": "saved rows.npy --out page.html",
    "coverage": "saved rows.npy --held-out held.npy",
    "compare": "rows.npy -k 3",
    "agreement": "rows.npy rows.npy",
    "curvature": "rows.npy",
    "relevance": "rows.npy rows.npy",
    "compact": "store",
    "verify": "store",
    "export": "store rows2.npy",
    "demo": "demo",
}
"""Command → the least that it needs."""


def numbered_options():
    """(command, option, whether it is whole) for every option that reads a number."""
    for name in sorted(cli._parsers([])[1]):
        if name in ("run-schedule", "write-report"):
            continue
        for action in cli._parsers([name])[1][name]._actions:
            kind = action.type
            if not action.option_strings or kind is None:
                continue
            whole, number = kind is values.whole, kind is values.number
            if isinstance(kind, Callable) and getattr(kind, "__qualname__", "").startswith("number_or"):
                number = True
            if whole or number:
                yield name, action.option_strings[0], whole, action.nargs


OPTIONS = list(numbered_options())


def test_every_command_with_a_number_is_called_here():
    assert {name for name, *_ in OPTIONS} == set(LINES)
    assert ("select", "--hot-rows", True, None) in OPTIONS
    assert ("run", "--learning-rate", False, None) in OPTIONS


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(LINES))
def test_commands_refuse_a_number_by_the_name_of_its_option(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    Path("empty.jsonl").touch()  # data that are not there are told before any number
    spice_rs.select(ROWS, 8).save("saved")
    with spice_rs.GradientStore.create("store", dim=6) as writer:
        writer.append(ROWS, np.arange(40))
    capsys.readouterr()
    for name, option, whole, _ in OPTIONS:
        if name != command:
            continue
        seeded = option == "--seed" and name in ANY_SEED
        outside = () if seeded else ("-1", "99999999999999999999")
        for value in ("3.5", "x", *outside) if whole else ("x", "nan", "inf"):
            line = [part for part in LINES[name].split() if option != "-k" or part not in ("-k", "3")]
            more = [] if option in ("-k", "--budget") or name != "select" else ["-k", "3"]
            assert run(name, *line, *more, option, value) == 2, (option, value)
            said = capsys.readouterr().err
            assert said.splitlines()[-1].startswith(f"spice-rs: {option}: found "), (option, value, said)
            assert ", expected " in said


# --- the module itself --------------------------------------------------------------------------------------------


def test_limits_are_told_as_they_are():
    for value, least, most, says in (
        (0, 1, arguments.MOST, "n: found 0, expected a whole number of at least 1. Choose one."),
        (1 << 64, 1, arguments.MOST, f"expected a whole number from 1 to {arguments.MOST}. "),
        (9, 1, 8, "n: found 9, expected a whole number from 1 to 8. Choose one."),
        ("9", 1, 8, "n: found '9', expected a whole number from 1 to 8. Choose one."),
    ):
        with pytest.raises(InvalidInputError) as caught:
            arguments.whole("n", value, least=least, most=most)
        assert says in str(caught.value)
    with pytest.raises(InvalidInputError, match="of at least 1 or None"):
        arguments.whole_or_none("n", 0)
    for limits, says in (
        ({}, "a finite number"),
        ({"above": 0}, "a finite number above 0"),
        ({"least": 0}, "a finite number of at least 0"),
        ({"least": 0, "most": 1}, "a number from 0 to 1"),
        ({"above": 0, "below": 1}, "a number between 0 and 1, both excluded"),
        ({"above": 0, "most": 1}, "a number above 0 and up to 1"),
    ):
        with pytest.raises(InvalidInputError, match=f"x: found nan, expected {says}. Choose one."):
            arguments.real("x", float("nan"), **limits)
        with pytest.raises(InvalidInputError, match=f"x: found nan, expected {says}, or None. Choose one."):
            arguments.real_or_none("x", float("nan"), **limits)
        assert arguments.real_or_none("x", None, **limits) is None


def test_arguments_are_checked_without_torch():
    code = "import sys, spice_rs.extraction.arguments as a; a.checked({'dim': 3}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_counts_as_a_number():
    assert [type(arguments.whole("n", each)) for each in (3, np.int8(3), np.array(3), torch.tensor(3))] == [
        int
    ] * 4
    assert [type(arguments.real("x", each)) for each in (3, 0.5, np.float16(3), Fraction(1, 2))] == [
        float
    ] * 4
    assert arguments.real("x", np.float32(0.1)) == float(np.float32(0.1))
    assert arguments.flag("f", np.True_) is True
    assert arguments.choice("c", np.str_("a"), ("a", None)) == "a"


def test_a_word_that_was_nearly_right_is_named():
    with pytest.raises(InvalidInputError, match="fisher: found 'ful', expected .*[.] Did you mean 'full'[?]"):
        spice_rs.select(ROWS, 3, fisher="ful")


def test_whoever_reads_an_option_reads_whole_numbers_and_numbers():
    for kind, text in ((values.whole, "3.5"), (values.number, "x")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"found {text!r}, expected a"):
            kind(text)
