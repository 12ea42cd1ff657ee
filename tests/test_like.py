"""Extracting as an earlier store was: its settings are taken, and what cannot be repeated is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch

import spice_rs
from command import run
from spice_rs import InvalidInputError, StoreMismatchError
from spice_rs.extraction.like import FILE
from tiny import make_records

DEFAULTS = inspect.signature(spice_rs.extract).parameters
RECORDS = make_records(12)
OTHERS = [{**record, "response": record["response"][::-1] + " a b"} for record in RECORDS[:5]]
SETTINGS: dict[str, Any] = {
    "dim": 32,
    "seed": 5,
    "target_modules": ["q_proj", "down_proj"],
    "min_coverage": 0,
    "max_length": 20,
    "progress": False,
}


@pytest.fixture(scope="module")
def stores(proxy, tmp_path_factory):
    """The folder of a model, and of a store of its gradients."""
    folder = tmp_path_factory.mktemp("like")
    shutil.copytree(proxy, folder / "model")
    spice_rs.extract(folder / "model", RECORDS, folder / "pool", **SETTINGS)
    return folder


def test_the_rows_are_those_of_the_same_settings(stores, tmp_path):
    found = spice_rs.extract(
        None, OTHERS, tmp_path / "target", like=stores / "pool", min_coverage=0, progress=False
    )
    same = spice_rs.extract(stores / "model", OTHERS, tmp_path / "same", **SETTINGS)
    assert (found.read(range(5)) == same.read(range(5))).all()
    assert found.provenance == same.provenance
    assert (found.dtype, found.dim) == (same.dtype, 32)
    picks = spice_rs.select(stores / "pool", 2, target=tmp_path / "target")
    assert picks.target.rows == 5


def test_records_of_the_pool_in_the_target_are_no_candidates(stores, tmp_path):
    spice_rs.extract(
        None, [*OTHERS, RECORDS[3]], tmp_path / "t", like=stores / "pool", min_coverage=0, progress=False
    )
    assert 3 in spice_rs.select(stores / "pool", 1, target=tmp_path / "t").target.overlap


def test_it_can_be_gone_on_with(stores, tmp_path):
    options: dict[str, Any] = {"like": stores / "pool", "min_coverage": 0, "progress": False}
    spice_rs.extract(None, OTHERS, tmp_path / "t", limit=2, **options)
    assert len(spice_rs.extract(None, OTHERS, tmp_path / "t", **options)) == 5
    assert len(spice_rs.extract(stores / "model", OTHERS, tmp_path / "t", **SETTINGS)) == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dim": 64}, "dim: found 64 beside like="),
        ({"seed": 6}, "seed: found 6 beside like="),
        ({"target_modules": "q_proj"}, "target_modules: found 'q_proj' beside like="),
        ({"lora_rank": 2}, "lora_rank: found 2 beside like="),
        ({"projection": "rademacher"}, "projection: found 'rademacher' beside like="),
        ({"max_length": 21}, "max_length: found 21 beside like="),
        ({"dim": DEFAULTS["dim"].default}, "dim: found 4096 beside like="),
        ({"seed": 0}, "seed: found 0 beside like="),
        ({"max_length": 2048}, "max_length: found 2048 beside like="),
    ],
)
def test_other_settings_are_refused(stores, tmp_path, given, said, capsys):
    """Those that are the defaults of `extract` too, where somebody asks for them."""
    with pytest.raises(InvalidInputError, match=f"^{said}"):
        spice_rs.extract(None, OTHERS, tmp_path / "t", like=stores / "pool", **given)
    assert not (tmp_path / "t").exists()
    [[name, value]] = given.items()
    data = tmp_path / "others.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in OTHERS), encoding="utf-8")
    option = [f"--{name.replace('_', '-')}", str(value)]
    assert run("extract", "--like", stores / "pool", "--data", data, "--out", tmp_path / "t", *option) == 2
    assert f"{option[0]}: found " in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_every_other_setting_is_named_and_what_was_not_asked_for_too(stores, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    given = {"dim": 64, "max_length": 99, "chat_template": tmp_path / "t.jinja"}
    with pytest.raises(InvalidInputError) as refused:
        spice_rs.extract(None, OTHERS, tmp_path / "t", like=stores / "pool", **given)
    said = str(refused.value)
    assert "dim: found 64" in said
    assert "max_length: found 99" in said
    assert "the tokenizer's own" in said
    assert "None" not in said


def test_what_is_missing_is_named(stores, tmp_path, capsys):
    found = spice_rs.extract(
        data=OTHERS, out=tmp_path / "t", like=stores / "pool", min_coverage=0, progress=False
    )
    assert len(found) == 5
    for given, said in (
        ({"data": OTHERS, "out": tmp_path / "u"}, "^model: found none, .* Give one, or like="),
        ({"out": tmp_path / "u", "like": stores / "pool"}, "^data: found none"),
        ({"data": OTHERS, "like": stores / "pool"}, "^out: found none"),
        ({"data": OTHERS, "out": tmp_path / "u", "like": tmp_path / "no"}, "^like: .*no"),
    ):
        with pytest.raises(spice_rs.SpiceError, match=said):
            spice_rs.extract(**given)
    data = tmp_path / "two.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in RECORDS[:5]), encoding="utf-8")
    line = ("extract", "--data", data, "--min-coverage", "0", "--like")
    assert run(*line, tmp_path / "no", "--out", tmp_path / "u") == 2
    assert "spice-rs: --like: " in capsys.readouterr().err
    assert run(*line, stores / "pool", "--out", tmp_path / "t") == 2
    said = capsys.readouterr().err
    assert f"spice-rs: --out: {tmp_path / 't'} has rows of other data: " in said
    assert "Give these with --data …, or another folder with --out …" in said


def test_what_nobody_typed_is_that_of_the_store(stores, tmp_path):
    data = tmp_path / "others.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in OTHERS), encoding="utf-8")
    options = ["--min-coverage", "0", "--dim", "32", "--seed", "5"]
    assert run("extract", "--like", stores / "pool", "--data", data, "--out", tmp_path / "t", *options) == 0
    assert spice_rs.GradientStore(tmp_path / "t").provenance["max_length"] == 20


def test_another_model_is_refused(stores, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(stores / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += 1
    model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stores / "model" / name, tmp_path / "other")
    with pytest.raises(StoreMismatchError, match=r"^like: found what differs from .*; other weights\. "):
        spice_rs.extract(
            tmp_path / "other", OTHERS, tmp_path / "t", like=stores / "pool", min_coverage=0, progress=False
        )
    assert not (tmp_path / "t").exists()


def test_a_model_that_is_gone_has_to_be_named(stores, proxy, tmp_path):
    shutil.copytree(stores / "pool", tmp_path / "pool")
    noted = json.loads((tmp_path / "pool" / FILE).read_text())
    noted["model"] = str(tmp_path / "gone")
    (tmp_path / "pool" / FILE).write_text(json.dumps(noted))
    with pytest.raises(InvalidInputError, match=r"model: found none, and that of .* is not at"):
        spice_rs.extract(None, OTHERS, tmp_path / "t", like=tmp_path / "pool")
    options: dict[str, Any] = {"like": tmp_path / "pool", "min_coverage": 0, "progress": False}
    assert len(spice_rs.extract(stores / "model", OTHERS, tmp_path / "t", **options)) == 5


def test_a_store_of_before_needs_the_arguments_that_it_does_not_state(stores, tmp_path):
    shutil.copytree(stores / "pool", tmp_path / "pool")
    (tmp_path / "pool" / FILE).unlink()
    options: dict[str, Any] = {"like": tmp_path / "pool", "min_coverage": 0, "progress": False}
    with pytest.raises(InvalidInputError, match=r"^model: found none, and .* does not say where"):
        spice_rs.extract(None, OTHERS, tmp_path / "t", **options)
    with pytest.raises(StoreMismatchError, match=r"like: .*tracked"):
        spice_rs.extract(stores / "model", OTHERS, tmp_path / "t", **options)
    modules = SETTINGS["target_modules"]
    found = spice_rs.extract(stores / "model", OTHERS, tmp_path / "t", target_modules=modules, **options)
    assert found.provenance["projection"]["seed"] == 5


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model": 1, "asked": {}}', '{"model": null, "asked": {"x": 1}}']
)
def test_a_note_that_cannot_be_read_is_said(stores, tmp_path, text):
    shutil.copytree(stores / "pool", tmp_path / "pool")
    (tmp_path / "pool" / FILE).write_text(text)
    with pytest.raises(InvalidInputError, match=rf"{FILE}: found"):
        spice_rs.extract(None, OTHERS, tmp_path / "t", like=tmp_path / "pool")


def test_values_that_a_note_cannot_have_are_refused(stores, tmp_path):
    shutil.copytree(stores / "pool", tmp_path / "pool")
    noted = json.loads((tmp_path / "pool" / FILE).read_text())
    for name, value in (("lora_rank", "x"), ("norms", 3), ("dtype", "float8"), ("tokenizer", 7)):
        text = json.dumps({**noted, "asked": {**noted["asked"], name: value}})
        (tmp_path / "pool" / FILE).write_text(text)
        with pytest.raises(InvalidInputError):
            spice_rs.extract(None, OTHERS, tmp_path / "t", like=tmp_path / "pool")
        assert not (tmp_path / "t").exists()


def test_checkpoints_have_to_be_given_again(stores, tmp_path):
    options: dict[str, Any] = {**SETTINGS, "checkpoints": [stores / "model"]}
    spice_rs.extract(stores / "model", RECORDS, tmp_path / "pool", **options)
    with pytest.raises(InvalidInputError, match="^checkpoints: found none"):
        spice_rs.extract(None, OTHERS, tmp_path / "t", like=tmp_path / "pool")
    given = {"checkpoints": [stores / "model"], "min_coverage": 0, "progress": False}
    assert len(spice_rs.extract(None, OTHERS, tmp_path / "t", like=tmp_path / "pool", **given)) == 5


def test_a_model_in_memory_has_no_place(stores, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(stores / "model")
    spice_rs.extract(model, RECORDS, tmp_path / "pool", tokenizer=stores / "model", **SETTINGS)
    with pytest.raises(InvalidInputError, match=r"^model: found none, and .* does not say where"):
        spice_rs.extract(None, OTHERS, tmp_path / "t", like=tmp_path / "pool")
    options: dict[str, Any] = {"like": tmp_path / "pool", "min_coverage": 0, "progress": False}
    assert len(spice_rs.extract(model, OTHERS, tmp_path / "t", **options)) == 5


def test_the_command_line_leads_from_pool_and_target_to_picks(stores, tmp_path, capsys):
    for name, records in (("pool", RECORDS), ("target", OTHERS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = ["--out", tmp_path / "target", "--no-progress", "--min-coverage", "0"]
    assert run("extract", "--like", stores / "pool", "--data", tmp_path / "target.jsonl", *common) == 0
    pick = [
        "select",
        stores / "pool",
        "-k",
        "2",
        "--target",
        tmp_path / "target",
        "--out",
        tmp_path / "picks.jsonl",
    ]
    assert run(*pick, "--save", tmp_path / "sel") == 0
    assert "contrast: ‖q‖ =" in capsys.readouterr().err
    assert run("relevance", stores / "pool", tmp_path / "target") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = spice_rs.relevance(stores / "pool", tmp_path / "target")
    assert [line["row"] for line in lines] == list(range(12))
    assert [line["relevance"] for line in lines] == expected.tolist()
    assert run("relevance", stores / "pool", tmp_path / "target", "--out", tmp_path / "r.npy") == 0
    assert (np.load(tmp_path / "r.npy") == expected).all()
    assert run("explain", tmp_path / "sel", stores / "pool", int(np.argmin(expected))) == 0
    assert "points away from the target" in capsys.readouterr().out
    assert run("extract", "--data", tmp_path / "pool.jsonl", "--out", tmp_path / "x") == 2
    assert "found no --model" in capsys.readouterr().err
    groups = ["--target-groups", "id", "--target-data", tmp_path / "target.jsonl"]
    assert run("select", stores / "pool", "-k", "3", "--target", tmp_path / "target", *groups) == 0
