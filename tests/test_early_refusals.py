"""What no data and no model can make right is refused before either is looked at."""

from __future__ import annotations

import pytest

import spice_rs
from command import run
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.extraction import inputs, loading, preparation
from tiny import make_records

WRONG = {
    "dim": [-3, 0, 2.5, True, 1 << 40],
    "projection": ["spars", None],
    "nnz": [0, 5000],
    "side": [0, 1 << 20],
    "seed": [0.5, "0"],
    "dtype": ["float8", "float", None],
    "min_coverage": [-0.1, 1.5, "all"],
    "lora_rank": [0, -4, 1.5],
    "max_length": [0, 1, None],
    "tokens_per_batch": [0, -5],
    "limit": [0, -1],
    "preference": ["chose"],
    "checkpoint_weights": [[1.0]],
    "device": ["abacus"],
}


@pytest.fixture
def untouched(monkeypatch):
    """Neither data nor model may be looked at."""

    def touched(*_, **__):
        pytest.fail("looked at")

    for module, names in (
        (inputs, ("load_records", "load_model", "loaded", "size_of")),
        (loading, ("load_model", "load_tokenizer")),
        (preparation, ("read_text", "read_own")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, touched)


@pytest.mark.parametrize(("name", "value"), [(name, each) for name in WRONG for each in WRONG[name]])
def test_values_are_judged_before_data_and_model(untouched, tmp_path, name, value):
    calls = [
        lambda: spice_rs.extract("model", make_records(2), tmp_path / "s", **{name: value}),
        lambda: spice_rs.plan("model", make_records(2), **{name: value}),
        lambda: spice_rs.doctor("model", make_records(2), **{name: value}),
    ]
    if name not in ("dtype", "checkpoint_weights"):
        calls.append(lambda: spice_rs.run_schedule("model", make_records(2), tmp_path / "r", **{name: value}))
    for call in calls:
        with pytest.raises(InvalidInputError, match=name) as caught:
            call()
        assert "expected" in str(caught.value) or name in ("checkpoint_weights", "device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [("dim", 8), ("dtype", "float32"), ("projection", "two_sided"), ("projection", "none"), ("seed", 5), ("nnz", 2),
     ("max_length", 99), ("completion_only", False)],
)  # fmt: skip
def test_settings_of_the_store_that_is_there_too(untouched, tmp_path, name, value):
    provenance = {
        "projection": {"kind": "sparse", "dim": 16, "seed": 0, "nnz": 1},
        "max_length": 2048,
        "completion_only": True,
    }
    out = tmp_path / "s"
    spice_rs.GradientStore.create(out, dim=16, reduction="sum", provenance=provenance).close()
    for call in (spice_rs.extract, spice_rs.plan):
        with pytest.raises(StoreMismatchError, match=rf"^{name}: found {value!r}, expected .*another folder"):
            call("model", make_records(2), out, **{"dim": 16, name: value})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--dim", -3), "--dim: found -3, expected a whole number of at least 1"),
        (("--dtype", "float8"), "--dtype: found 'float8', expected one of float16, bfloat16, float32; did you mean"),
        (("--lora-rank", 0), "--lora-rank: found 0, expected a whole number of at least 1"),
        (("--min-coverage", 2), "--min-coverage: found 2.0, expected a number from 0 to 1"),
        (("--seed", -1, "--lora-rank", 2), "--seed: found -1"),
        (("--checkpoint-weights", 1), "--checkpoint-weights: found [1.0], expected checkpoints beside them"),
    ],
)  # fmt: skip
def test_the_command_line_says_so_before_the_model_is_there(untouched, tmp_path, capsys, arguments, says):
    data = tmp_path / "d.jsonl"
    data.touch()
    assert run("extract", "--model", "m", "--data", data, "--out", tmp_path / "s", *arguments) == 2
    assert says in capsys.readouterr().err
