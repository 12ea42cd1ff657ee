"""Bases in 4 and 8 bits: rows at their LoRA equal autograd's, in any batch, and the weights themselves are no targets."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import transformers as hf

import spice_rs
from models import make_lora, make_model
from reference import assert_rows_equal, check_against_autograd, make_data, rows_of, run
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.identity import weight_fingerprint
from spice_rs.extraction.proxy import INFERENCE_UNITS, differentiable

bitsandbytes = pytest.importorskip("bitsandbytes")
has_avx512bf16 = bitsandbytes.functional.has_avx512bf16

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt", "ignore:.*cast from torch.float32 to float16")

CONFIGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    # With a threshold, outliers of one sample decide how the others of its batch are computed.
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("plain")
    make_model("qwen2").save_pretrained(place)
    return place


def load(folder, kind, **options):
    config = hf.BitsAndBytesConfig(**{**CONFIGS[kind], **options})
    model = hf.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt)
    for module in model.modules():
        if hasattr(module, INFERENCE_UNITS):  # as if on a CPU for which weights are repacked
            setattr(module, INFERENCE_UNITS, True)
    return model


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_rows_are_exact_over_a_quantised_base(kind, trained, folder, tmp_path):
    model, data = make_lora(load(folder, kind), trained=trained), make_data(4)
    store = run(model, data, tmp_path / "s", tokens_per_batch=40)
    assert store.info()["tracked"]["coverage"] == 1
    with differentiable(model):
        check_against_autograd(model, data, store, 1e-4 if "nf4" in kind else 1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dora_rows_are_exact_over_a_quantised_base(folder, tmp_path):
    model, data = make_lora(load(folder, "nf4"), use_dora=True), make_data(4)
    store = run(model, data, tmp_path / "s")
    with differentiable(model):
        check_against_autograd(model, data, store)


@pytest.mark.skipif(not has_avx512bf16(), reason="needs a CPU for which bitsandbytes repacks weights")
def test_weights_that_inference_has_repacked_are_put_back(tmp_path):
    make_model("qwen2", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "plain")
    model, data = make_lora(load(tmp_path / "plain", "nf4")), make_data(4)
    weights = [each.weight for each in model.modules() if hasattr(each, INFERENCE_UNITS)]
    model.eval()
    with torch.no_grad():
        model(torch.tensor([data[0]["input_ids"]]))
    assert all(weight.quant_state.packing_format_for_cpu for weight in weights)
    store = run(model, data, tmp_path / "s")
    assert not any(weight.quant_state.packing_format_for_cpu for weight in weights)
    assert all(getattr(each, INFERENCE_UNITS, True) for each in model.modules())
    with differentiable(model):
        check_against_autograd(model, data, store, 1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_fresh_lora_over_a_quantised_base_passes_the_doctor_and_goes_away(kind, folder):
    model = load(folder, kind)
    before, names = weight_fingerprint(model), [name for name, _ in model.named_parameters()]
    found = spice_rs.doctor(model, make_data(6), lora_rank=4, samples=4)
    assert found.passed, str(found)
    assert weight_fingerprint(model) == before
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_weights_themselves_are_refused_with_a_remedy(kind, folder, tmp_path):
    model, data = load(folder, kind), make_data(2)
    with pytest.raises(InvalidInputError, match=r"4 or 8 bits .*lora_rank"):
        run(model, data, tmp_path / "s", target_modules=["q_proj", "k_proj"], min_coverage=0.5)
    with pytest.raises(InvalidInputError, match=r"cover \d\.\d%.*4 or 8 bits .*lora_rank"):
        run(model, data, tmp_path / "s", norms=True)


def test_a_quantised_folder_is_a_model(folder, tmp_path):
    load(folder, "nf4").save_pretrained(tmp_path / "packed")
    data = make_data(3)
    options = {"lora_rank": 4, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = run(str(tmp_path / "packed"), data, tmp_path / "s", **options)
    expected = run(load(folder, "nf4"), data, tmp_path / "t", lora_rank=4)
    assert_rows_equal(rows_of(store), rows_of(expected), 1e-5)
    assert store.info()["model"]["weights"] == expected.info()["model"]["weights"]


def test_scales_are_part_of_the_fingerprint(folder):
    models = [load(folder, "nf4") for _ in range(2)]
    assert weight_fingerprint(models[0]) == weight_fingerprint(models[1])
    state = models[1].model.layers[0].self_attn.q_proj.weight.quant_state
    state.absmax = state.absmax * 2
    assert weight_fingerprint(models[0]) != weight_fingerprint(models[1])
    assert np.isfinite(state.absmax.numpy()).all()


def test_a_schedule_puts_a_fresh_lora_on_a_plain_base_in_4_bits(folder, tmp_path):
    model = load(folder, next(kind for kind in CONFIGS if "4" in str(CONFIGS[kind])))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    options = {"pool_size": 6, "select_per_window": 2, "interval": 1, "dim": 64, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = spice_rs.run_schedule(model, make_data(6), tmp_path / "run", **options)
    assert done.settings["lora"]["rank"] == 16


def test_a_threshold_for_outliers_is_refused_with_the_way_out(folder, tmp_path):
    model, data = make_lora(load(folder, "int8", llm_int8_threshold=6.0)), make_data(4)
    says = r"layer '.*q_proj.*': found llm_int8_threshold=6, expected 0.*llm_int8_threshold=0.0\).*tokens_per_batch=1"
    with pytest.raises(InvalidInputError, match=says):
        run(model, data, tmp_path / "s")
    with pytest.raises(InvalidInputError, match=says):
        spice_rs.OnlineSelector(model, dim=64).choose(
            {name: torch.ones(3, 4, dtype=torch.int64) for name in ("input_ids", "labels")}
        )
    found = {check.name: check for check in spice_rs.doctor(model, data, samples=2).checks}
    assert found["llm_int8_threshold"].passed is False
    store = run(model, data, tmp_path / "t", tokens_per_batch=1)
    with differentiable(model):
        check_against_autograd(model, data, store, 1e-3)
    found = {each.name: each for each in spice_rs.doctor(model, data, samples=2, tokens_per_batch=1).checks}
    assert found["llm_int8_threshold"].passed is None
    assert found["rows in pairs"].found == "one sample at a time"
