"""What newcomers type first, and what they are told."""

from __future__ import annotations

import json

import pytest
import torch

import spice_rs
from command import run
from spice_rs.errors import InvalidInputError, StoreError
from spice_rs.extraction.moments import load_tensors
from spice_rs.extraction.proxy import load_tokenizer


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv", "pool.parquet", "pool.jsonl.gz"])
def test_selecting_from_records_says_to_extract_first(tmp_path, name, capsys):
    path = tmp_path / name
    path.write_text('{"instruction": "a", "response": "b"}\n')
    with pytest.raises(
        InvalidInputError, match="holds records or picks.*Extract them first.*`spice-rs extract`"
    ):
        spice_rs.select(path, 1)
    assert run("select", path, "-k", 1) == 2
    assert "Extract them first" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"index": 3}\n', ' [{"index": 3}]', "[1, 2, 3]\n"])
def test_picks_are_no_saved_selection(tmp_path, text, capsys):
    path = tmp_path / "picks.jsonl"
    path.write_text(text)
    with pytest.raises(StoreError, match="found JSON.*Selection.save.*select again and save it"):
        spice_rs.Selection.load(path)
    assert run("certify", path, tmp_path / "store") == 2
    assert "select --save" in capsys.readouterr().err


def test_a_gguf_file_can_be_named_by_its_path(tmp_path, monkeypatch):
    import transformers

    calls = []

    def load(place, **options):
        calls.append((str(place), options.get("gguf_file")))

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "small.GGUF").write_bytes(b"GGUF")
    for model, given in (
        (tmp_path / "small.GGUF", None),
        ("~/small.GGUF", None),
        ("~/small.GGUF", "small.GGUF"),
        ("~", "small.GGUF"),
        ("owner/model", None),
    ):
        load_tokenizer(model, gguf_file=given, trust_remote_code=False)
    assert calls == [(str(tmp_path), "small.GGUF")] * 4 + [("owner/model", None)]
    with pytest.raises(InvalidInputError, match="found a GGUF file beside gguf_file='other.gguf'"):
        load_tokenizer(tmp_path / "small.GGUF", gguf_file="other.gguf", trust_remote_code=False)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="found a file, expected a model's folder or a .gguf file"):
        load_tokenizer(tmp_path / "model.safetensors", gguf_file=None, trust_remote_code=False)


@pytest.mark.parametrize("version", ["2.5.1+cu121", "2.9.1"])
def test_torchs_own_format_is_not_read_by_a_torch_that_runs_code_of_it(tmp_path, monkeypatch, version):
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pt")
    assert list(load_tensors(tmp_path / "state.pt")) == ["a"]
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        InvalidInputError, match=r"state.pt: found torch .*expected 2.10 or later.*safetensors"
    ):
        load_tensors(tmp_path / "state.pt")


def test_all_public_names_are_listed():
    assert set(spice_rs.__all__) <= set(dir(spice_rs))


def test_several_names_with_exclamation_marks(proxy, tmp_path):
    (tmp_path / "pool.jsonl").write_text(json.dumps({"instruction": "a b", "response": "c d"}) + "\n")
    options = ("--model", proxy, "--data", tmp_path / "pool.jsonl", "--min-coverage", 0)
    out = tmp_path / "store"
    assert run("extract", *options, "--out", out, "--target-modules", "!q_proj,!down_proj") == 0
    assert spice_rs.GradientStore(out).provenance["tracked"]["layers"] == 2 * 5


@pytest.mark.parametrize(("command", "alias"), [("run", "run-schedule"), ("report", "write-report")])
def test_commands_have_the_names_of_their_functions_too(command, alias, capsys):
    helps = []
    for name in (command, alias):
        assert run(name, "--help") == 0
        helps.append(capsys.readouterr().out.split("\n", 1)[1].replace(alias, command))
    assert "--out" in helps[0]
    assert helps[0].split() == helps[1].split()
