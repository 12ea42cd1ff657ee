"""The doctor passes what is right, on every family of models, and names what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf

import spice_rs
from command import run as command
from models import make_lora, make_model
from spice_rs.data.dataset import IGNORED, Example, Tokeniser
from spice_rs.diagnosis import doctor as diagnosis
from spice_rs.errors import InvalidInputError
from spice_rs.extraction import inputs
from spice_rs.extraction.preflight import tolerance_of
from tiny import WORDS, make_records, make_tokenizer, save_proxy

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}a {{ m['content'] }} b {% else %}{{ m['content'] }} </s>\n"
    "{% endif %}{% endfor %}"
)
FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "mistral", "phi", "gemma", "mixtral"]
NAMES = ["down_proj", "up_proj", "q_proj", "fc1", "c_attn", "c_proj"]


def make(family):
    return make_model(family, vocab_size=len(WORDS), pad_token_id=1, bos_token_id=0, eos_token_id=1)


def results(found):
    return {check.name: check for check in found.checks}


def failed(found):
    return [check.name for check in found.checks if check.passed is False]


@pytest.fixture
def tokenizer():
    return make_tokenizer(pad_token="</s>", chat_template=CHAT)


def doctor(model, data, tokenizer, **options):
    return spice_rs.doctor(model, data, **{"tokenizer": tokenizer, "samples": 5, **options})


@pytest.mark.parametrize("adapter", ["none", "fresh", "trained"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_every_family_passes_with_and_without_lora(family, adapter, tokenizer):
    model, options = make(family), {}
    if adapter == "fresh":
        options["lora_rank"] = 4
    elif adapter == "trained":
        there = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        model = make_lora(model, target_modules=sorted(there.intersection(NAMES)))
    else:
        options.update(norms=True, embeddings=True)
    found = doctor(model, make_records(12), tokenizer, **options)
    assert found.passed, str(found)
    checks = results(found)
    assert checks["pad token"].passed is True  # it is the end token, and is learned
    assert checks["rows by plain autograd"].passed is True
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_float64_is_judged_more_strictly(tokenizer):
    found = doctor(make("llama").double(), make_records(6), tokenizer)
    assert found.passed, str(found)
    assert results(found)["rows by plain autograd"].expected == "≤ 1e-05"


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rows_are_judged_as_where_extract_tries_them_out(family, tokenizer):
    model = make(family).to(torch.bfloat16)
    expected = tolerance_of(model, torch.device("cpu"), None)
    assert expected == {"llama": 0.1, "mixtral": 0.3}[family]
    found = results(doctor(model, make_records(6), tokenizer))
    assert found["rows by plain autograd"].expected == f"≤ {expected:.0e}"


def test_samples_that_mix_are_found(tokenizer):
    class Mixing(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids, attention_mask=None, use_cache=False):
            logits = self.inner(input_ids, attention_mask=attention_mask).logits
            return logits + logits.mean(dim=(0, 1), keepdim=True)

    found = doctor(Mixing(make("llama")), make_records(6), tokenizer)
    assert {"rows in pairs", "rows in one batch of 5"} <= set(failed(found))
    assert "rows again" not in failed(found)


def test_a_weight_that_is_used_behind_the_hooks_is_found(tokenizer):
    class Sneaking(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids, attention_mask=None, use_cache=False):
            weight = self.inner.model.layers[0].mlp.up_proj.weight
            return self.inner(input_ids, attention_mask=attention_mask).logits * weight.sum()

    assert failed(doctor(Sneaking(make("llama")), make_records(6), tokenizer)) == ["rows by plain autograd"]


def test_chance_in_the_forward_is_found(tokenizer):
    model = make("llama")
    model.model.layers[0].register_forward_hook(lambda _, args, out: torch.nn.functional.dropout(out, 0.5))
    assert "rows again" in failed(doctor(model, make_records(6), tokenizer))


def with_labels(monkeypatch, change):
    """The labels of every example, changed."""

    class Changed(Tokeniser):
        def examples(self, records):
            for each in super().examples(records):
                labels = change(each.input_ids, each.labels.copy())
                yield Example(each.index, each.input_ids, labels, 1)

    monkeypatch.setattr(inputs, "Tokeniser", Changed)


def test_masks_that_are_off_are_found(tokenizer, monkeypatch):
    def no_end(ids, labels):
        labels[ids == tokenizer.pad_token_id] = IGNORED  # what a mask of pad ids does
        return labels

    with_labels(monkeypatch, no_end)
    assert failed(doctor(make("llama"), make_records(6), tokenizer)) == [
        "end tokens are learned",
        "pad token",
    ]
    monkeypatch.undo()
    with_labels(monkeypatch, lambda ids, labels: ids)
    assert failed(doctor(make("llama"), make_records(6), tokenizer)) == ["prompts are masked"]
    monkeypatch.undo()

    def late(ids, labels):
        labels[(labels != IGNORED).nonzero()[0][0]] = IGNORED
        return labels

    with_labels(monkeypatch, late)
    assert failed(doctor(make("llama"), make_records(6), tokenizer)) == ["responses are learned"]


def test_coverage_and_records_that_cannot_be_used_are_found(tokenizer):
    records = [*make_records(6), {"instruction": "a"}]
    found = doctor(make("llama"), records, tokenizer, min_coverage=0.999)
    assert failed(found) == ["records that can be used", "coverage"]
    assert "data[6]" in results(found)["records that can be used"].found
    assert not found.passed


def test_own_models_are_checked_too():
    def loss(model, batch):
        return model(batch[0]).square().sum(dim=1)

    torch.manual_seed(0)
    items = [(torch.randn(4),) for _ in range(9)]
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    found = spice_rs.doctor(model, items, loss_fn=loss, min_coverage=0.5)
    assert found.passed, str(found)
    assert results(found)["prompts are masked"].passed is None


def test_own_samples_of_different_shapes_go_one_by_one():
    def loss(model, batch):
        return model(batch).square().sum(dim=(1, 2))

    torch.manual_seed(0)
    items = [torch.randn(length, 8) for length in (2, 5, 3)]
    found = spice_rs.doctor(torch.nn.Linear(8, 3), items, loss_fn=loss, tokens_per_batch=1)
    assert found.passed, str(found)
    assert results(found)["rows in pairs"].passed is None
    assert results(found)["rows by plain autograd"].passed is True


def test_wrong_arguments_are_named(tokenizer):
    with pytest.raises(InvalidInputError, match="samples: found 1, expected a whole number of at least 2"):
        doctor(make("llama"), make_records(3), tokenizer, samples=1)
    for tolerance in (-1.0, float("nan"), "small"):
        with pytest.raises(InvalidInputError, match=f"tolerance: found {tolerance!r}"):
            doctor(make("llama"), make_records(3), tokenizer, tolerance=tolerance)
    exact = results(doctor(make("llama"), make_records(3), tokenizer, tolerance=0.0))
    assert exact["rows by plain autograd"].expected == "≤ 0e+00"
    with pytest.raises(TypeError, match="colour is no argument of extract"):
        doctor(make("llama"), make_records(3), tokenizer, colour=1)


def test_the_command_prints_a_table_and_its_exit_code_is_the_verdict(proxy, tmp_path, capsys, monkeypatch):
    data = tmp_path / "pool.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in make_records(8)), encoding="utf-8")
    arguments = ["doctor", "--model", proxy, "--data", data, "--samples", 4]
    assert command(*arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["check", "found", "expected", "result"]
    assert all(line.split()[-1] in ("pass", "-") for line in table[2:])
    assert command(*arguments, "--min-coverage", 1) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert command(*arguments, "--tolerance", 1e-12) == 1
    assert command(*arguments, "--samples", 1) == 2


def test_a_folder_with_an_adapter_is_a_model(tmp_path):
    """What `peft` saves names its base, and comes back frozen."""
    save_proxy(tmp_path / "base")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    make_lora(base).save_pretrained(tmp_path / "adapter")
    found = spice_rs.doctor(
        str(tmp_path / "adapter"), make_records(6), tokenizer=str(tmp_path / "base"), device="cpu"
    )
    assert found.passed, str(found)
    assert results(found)["coverage"].found == "100.00%"
    assert diagnosis.Diagnosis(()).passed
