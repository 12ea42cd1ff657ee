"""Norms with a gate: those of the Mamba-2 family, and whatever else a norm may be called with."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch.nn import functional

import spice_rs
from models import VOCABULARY
from reference import assert_rows_equal, check_against_autograd, make_data, rows_of, run
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.layers import norm_of

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.2,
         "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
ATTENTION = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
MIXER = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
FAMILIES = {
    "Mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8, "expand": 2},
    "Bamba": {**ATTENTION, **MIXER, "attn_layer_indices": [1], "mamba_n_groups": 1},
    "Zamba2": {
        **ATTENTION, "mamba_d_state": 8, "mamba_headdim": 8, "n_mamba_heads": 4, "mamba_ngroups": 2, "chunk_size": 8,
        "num_mem_blocks": 1, "layers_block_type": ["mamba", "hybrid"], "adapter_rank": 4,
    },
    "NemotronH": {
        **ATTENTION, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8,
        "head_dim": 8, "layers_block_type": ["mamba", "attention"],
    },
    "GraniteMoeHybrid": {
        **ATTENTION, **MIXER, "layer_types": ["mamba", "attention"], "mamba_n_groups": 1, "num_local_experts": 4,
        "num_experts_per_tok": 2, "shared_intermediate_size": 16,
    },
    "FalconH1": {
        **ATTENTION, **MIXER, "mamba_d_ssm": 32, "mamba_n_groups": 2, "mamba_rms_norm": True, "head_dim": 8,
        "mamba_norm_before_gate": False,
    },
}  # fmt: skip


def shaken(model):
    """No weight of a norm is 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_gated_norms_of_the_mamba_family_are_exact(family, tmp_path):
    if not hasattr(hf, f"{family}ForCausalLM"):
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(0)
    config = getattr(hf, f"{family}Config")(**{**SIZES, **FAMILIES[family]})
    model, data = shaken(getattr(hf, f"{family}ForCausalLM")(config)), make_data(5)
    options = {"norms": True, "embeddings": True, "min_coverage": 0.8}
    found = spice_rs.doctor(model, data, samples=3, **options)
    assert found.passed, str(found)
    store = run(model, data, tmp_path / "s", **options)
    names = [entry["name"] for entry in store.info()["layout"]]
    assert any(name.endswith(("mixer.norm.weight", "mamba.norm.weight")) for name in names), names
    check_against_autograd(model, data, store)


class Norm(torch.nn.Module):
    """Gated before, after, or by something that is no gate; its weight at 0 or at 1; with a bias perhaps."""

    def __init__(self, how):
        super().__init__()
        self.how, self.eps = how, 1e-6
        self.weight = torch.nn.Parameter(torch.randn(8))
        self.bias = torch.nn.Parameter(torch.randn(8)) if "bias" in how else None

    def forward(self, x, gate=None, residual=None):
        if gate is not None and "before" in self.how:
            x = x * functional.silu(gate)
        normal = functional.layer_norm(x, (8,), eps=self.eps) if self.bias is not None else x * torch.rsqrt(
            x.square().mean(-1, keepdim=True) + self.eps
        )  # fmt: skip
        scale = 1 + self.weight if "one" in self.how else self.weight
        if gate is not None and "square" in self.how:
            scale = scale * self.weight
        if gate is not None and "mixing" in self.how:
            scale = scale + self.weight.roll(1)
        y = normal * scale if self.bias is None else normal * scale + self.bias
        if gate is not None and "after" in self.how:
            y = y * gate.sigmoid()
        if residual is not None and "writing" in self.how:
            residual.add_(1)
        y = y if residual is None else y + residual
        return (y, gate) if gate is not None and "tuple" in self.how else y


class Model(torch.nn.Module):
    def __init__(self, how, call):
        super().__init__()
        torch.manual_seed(0)
        self.call, self.words = call, torch.nn.Embedding(VOCABULARY, 8)
        self.up, self.norm, self.head = torch.nn.Linear(8, 8), Norm(how), torch.nn.Linear(8, VOCABULARY)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        x = self.words(input_ids)
        y = self.call(self.norm, x, self.up(x))
        return hf.modeling_outputs.CausalLMOutput(logits=self.head(y[0] if isinstance(y, tuple) else y))


CALLS = {
    "in order": lambda norm, x, gate: norm(x, gate),
    "by name": lambda norm, x, gate: norm(gate=gate, x=x),
    "residual": lambda norm, x, gate: norm(x, gate=gate, residual=x),
    "twice": lambda norm, x, gate: norm(norm(x), gate) + norm(x=x, gate=None),
}


@pytest.mark.parametrize("how", ["before", "after", "before one", "after bias", "before bias one"])
@pytest.mark.parametrize("call", CALLS)
def test_a_norm_may_be_called_with_more(how, call, tmp_path):
    model, data = Model(how, CALLS[call]).double(), make_data(4)
    assert norm_of(model.norm) is not None
    store = run(model, data, tmp_path / "s", norms=True)
    assert "norm.weight" in [entry["name"] for entry in store.info()["layout"]]
    check_against_autograd(model, data, store, 5e-6)
    projected = [
        rows_of(run(model, data, tmp_path / str(tokens), norms=True, projection="sparse", dim=32, tokens_per_batch=tokens))
        for tokens in (1, 1000)
    ]  # fmt: skip
    assert_rows_equal(*projected, 1e-5)
    assert isinstance(model.norm.weight, torch.nn.Parameter)


@pytest.mark.parametrize("how", ["after square", "after mixing", "after tuple"])
def test_what_does_more_than_scale_is_an_error_by_name(how, tmp_path):
    model, data = Model(how, CALLS["in order"]), make_data(4)
    with pytest.raises(InvalidInputError, match=r"layer 'norm'.*gradient cannot be taken.*'!norm'"):
        run(model, data, tmp_path / "s", norms=True)
    store = run(model, data, tmp_path / "t", target_modules="!norm")
    check_against_autograd(model, data, store)


def test_what_changes_its_arguments_is_an_error_by_name(tmp_path):
    model = Model("before writing", lambda norm, x, gate: norm(x, gate, residual=x * 1))
    with pytest.raises(InvalidInputError, match=r"layer 'norm'.*gradient cannot be taken.*'!norm'"):
        run(model, make_data(4), tmp_path / "s", norms=True)


def test_groups_of_features_are_normalised_apart():
    class Grouped(torch.nn.Module):
        def __init__(self, **groups):
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(12)), 1e-5
            vars(self).update(groups)
            self.size = groups.get("group_size") or 12 // groups.get("n_groups", 1)

        def forward(self, x):
            grouped = x.unflatten(-1, (-1, self.size))
            grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.variance_epsilon)
            return grouped.flatten(-2) * self.weight

    x = torch.randn(2, 3, 12)
    for module in (Grouped(group_size=4), Grouped(n_groups=4), Grouped()):
        torch.testing.assert_close(norm_of(module)(x), module(x).detach())
    unknown = Grouped()
    unknown.size = 4
    assert norm_of(unknown) is None
