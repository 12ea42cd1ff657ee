"""Every kind of layer against autograd, one sample at a time; in float64, so that what is off is the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import (
    BartConfig,
    BartForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models import SIZES, VOCABULARY, make_lora, make_model
from reference import assert_rows_equal, check_against_autograd, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction.arguments import KINDS
from spice_rs.extraction.experts import ExpertsLayer
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.layers import leave_out, norm_of
from spice_rs.extraction.projection import Parameter, make_projection
from spice_rs.extraction.proxy import checkpointed

TIGHT = 5e-6  # the loss and the rows are float32


def shaken(model):
    """The model in float64 with no weight at a special value: norms are not 1, biases not 0."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.double()


def names_in(store):
    return [entry["name"] for entry in store.info()["layout"]]


@pytest.fixture
def data():
    return make_data(5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_linear_layers_are_exact(family, data, tmp_path):
    model = shaken(make_model(family))
    check_against_autograd(model, data, run(model, data, tmp_path / "s", tokens_per_batch=40), TIGHT)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "qwen3", "gemma3"])
def test_norms_and_embeddings_are_exact_on_request(family, data, tmp_path):
    if family == "qwen3":  # norms of single heads
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    elif family == "gemma3":  # 1 + w, and scaled embeddings
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=8))
    else:
        model = make_model(family)
    model = shaken(model)
    store = run(model, data, tmp_path / "s", norms=True, embeddings=True, tokens_per_batch=40)
    tied = isinstance(model, GPT2LMHeadModel | Gemma3ForCausalLM)
    everything = [name for name, _ in model.named_parameters() if tied or not name.startswith("lm_head")]
    assert names_in(store) == everything
    assert store.info()["tracked"]["coverage"] == 1
    check_against_autograd(model, data, store, TIGHT)


def test_norms_and_embeddings_that_are_named_are_tracked_alone(data, tmp_path):
    model = shaken(make_model())
    store = run(model, data, tmp_path / "s", target_modules=["input_layernorm", "embed_tokens"])
    assert names_in(store) == [
        "model.embed_tokens.weight",
        *(f"model.layers.{number}.input_layernorm.weight" for number in range(2)),
    ]
    check_against_autograd(model, data, store, TIGHT)


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"embeddings": True}])
def test_a_head_tied_to_the_embeddings_has_both_parts_of_its_gradient(options, data, tmp_path):
    model = shaken(make_model(tie_word_embeddings=True))
    store = run(model, data, tmp_path / "s", **options)
    assert "model.embed_tokens.weight" in names_in(store)
    check_against_autograd(model, data, store, TIGHT)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
def test_lora_is_exact_with_both_scalings(scaled, trained, data, tmp_path):
    model = make_lora(make_model("qwen2"), trained=trained, use_rslora=scaled, r=8).double()
    store = run(model, data, tmp_path / "s")
    assert any("lora_A" in name for name in names_in(store)) is trained
    check_against_autograd(model, data, store, TIGHT)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("trained", [True, False])
def test_dora_is_exact(trained, family, data, tmp_path):
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "up_proj"]
    model = make_lora(make_model(family), trained=trained, use_dora=True, target_modules=targets)
    model = shaken(model)  # magnitudes that are not the lengths
    model.train()  # its dropout is off all the same
    store = run(model, data, tmp_path / "s", tokens_per_batch=40)
    assert any("lora_magnitude_vector" in name for name in names_in(store))
    assert any("lora_A" in name for name in names_in(store)) is trained
    assert store.info()["tracked"]["coverage"] == 1
    check_against_autograd(model, data, store, TIGHT)


def test_dora_with_frozen_magnitudes_is_exact(data, tmp_path):
    model = make_lora(make_model(), use_dora=True).double()
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.requires_grad_(False)
    store = run(model, data, tmp_path / "s", target_modules=["q_proj", "down_proj"])
    assert len(names_in(store)) == 8
    check_against_autograd(model, data, store, TIGHT)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_fused_experts_are_exact(family, data, tmp_path):
    model = shaken(make_model(family))
    store = run(model, data, tmp_path / "s", tokens_per_batch=40, norms=True)
    assert any(name.endswith("experts.down_proj[3]") for name in names_in(store))
    assert sum(name.endswith(("gate.weight", "router.weight")) for name in names_in(store)) == 2
    # All but one number for each head, which is added to the softmax.
    missed = 0 if family != "gpt_oss" else 2 * SIZES["num_attention_heads"]
    everything = sum(each.numel() for name, each in model.named_parameters() if "embed" not in name)
    everything -= model.lm_head.weight.numel()
    assert store.info()["tracked"]["coverage"] == pytest.approx(1 - missed / everything, abs=1e-6)
    assert not any("forward" in vars(module) for module in model.modules())
    # Other implementations of the experts add up in another order, and some not in float64.
    model.set_experts_implementation("eager")
    check_against_autograd(model, data, store, TIGHT)


def test_experts_are_the_same_in_any_batch_and_projection(data, tmp_path):
    model = make_model("mixtral")
    for kind in ("sparse", "two_sided", "rademacher"):
        rows = [
            rows_of(run(model, data, tmp_path / f"{kind}{n}", projection=kind, dim=64, tokens_per_batch=n))
            for n in (1, 1000)
        ]
        assert_rows_equal(*rows, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_looked_up_rows_are_projected_as_the_whole_table(kind):
    table = Parameter("table", (9, 5))
    generator = torch.Generator().manual_seed(0)
    ids, values = torch.randint(0, 9, (3, 4), generator=generator), torch.randn(3, 4, 5, generator=generator)
    ids[0, 1] = ids[0, 0]  # a token twice
    projection = make_projection(kind, [table], dim=16, seed=2, side=3, nnz=2)
    found, expected = torch.zeros(3, projection.dim), torch.zeros(3, projection.dim)
    projection.add_rows(found, table, ids, values)
    left = torch.nn.functional.one_hot(ids, 9).float()
    reduced = [projection.reduce(table, side, factor) for side, factor in enumerate((left, values))]
    projection.add_outer(expected, table, *reduced)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("asked", ["argument", "model"])
def test_gradient_checkpointing_changes_no_row(asked, family, data, tmp_path, monkeypatch):
    model = shaken(make_model(family))
    plain = run(model, data, tmp_path / "plain", norms=True)
    if asked == "model":
        model.gradient_checkpointing_enable()
        model.train()
    runs = []
    handle = model.get_submodule("model.layers.1.mlp" if family == "llama" else "transformer.h.1.mlp")
    handle.register_forward_pre_hook(lambda *_: runs.append(1))
    monkeypatch.setattr(GradientRun, "try_out", lambda *_: None)
    options = {"gradient_checkpointing": asked == "argument", "norms": True, "tokens_per_batch": 10_000}
    store = run(model, data, tmp_path / "s", **options)
    assert len(runs) == 2  # forth, and again on the way back
    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(*(torch.from_numpy(rows_of(each)) for each in (store, plain)))
    check_against_autograd(model, data, store, TIGHT)


class Checkpointed(torch.nn.Module):
    """A classifier whose middle part is checkpointed."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.first, self.middle, self.last = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        middle = checkpoint(lambda x: self.middle(x).tanh(), self.first(x), use_reentrant=self.reentrant)
        return self.last(middle)


def squares(model, batch):
    x, y = batch
    return (model(x) - y).square().sum(dim=1)


def own_rows(model, items, out, **options):
    return rows_of(run(model, items, out, loss_fn=squares, **options))


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpointing_is_exact_or_an_error_by_name(tmp_path):
    torch.manual_seed(0)
    items = [(torch.randn(6), torch.randn(6)) for _ in range(4)]
    model = Checkpointed(reentrant=False)
    expected = own_rows(model, items, tmp_path / "a")
    model.reentrant = True
    assert (own_rows(model, items, tmp_path / "b") == expected).all()
    # Nothing before it is tracked, so nothing tells the checkpoint that a gradient is wanted.
    with pytest.raises(InvalidInputError, match="'middle' runs without gradients"):
        own_rows(model, items, tmp_path / "c", target_modules=["middle", "last"])


def test_a_part_of_the_model_that_is_never_learned_is_named_as_a_whole(data, tmp_path):
    class Indexed(torch.nn.Module):
        """With an indexer that chooses, as sparse attention has it."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.up = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, 8)
            self.indexer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
            self.head = torch.nn.Linear(8, VOCABULARY)

        def forward(self, input_ids, attention_mask=None):
            x = self.words(input_ids)
            with torch.no_grad():
                chosen = self.indexer(x) > 0
            return self.head(self.up(x) * chosen)

    with pytest.raises(InvalidInputError, match=r"'indexer.0' runs without gradients .*'!indexer'"):
        run(Indexed(), data, tmp_path / "s")
    names = names_in(run(Indexed(), data, tmp_path / "t", target_modules="!indexer"))
    assert "up.weight" in names
    assert not any("indexer" in name for name in names)


def test_an_input_that_changes_in_place_after_the_layer_is_an_error(tmp_path):
    class Spoiling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 6)

        def forward(self, x):
            x = x * 1
            y = self.layer(x)
            x += 1
            return y

    with pytest.raises(InvalidInputError, match="'layer' is changed in place"):
        own_rows(Spoiling(), [(torch.randn(6), torch.randn(6))], tmp_path / "s")


def test_a_parameter_that_one_module_hides_is_not_tracked_anywhere(tmp_path):
    class Hiding(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return x @ self.weight

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.open = torch.nn.Linear(6, 6, bias=False)
            self.hidden = Hiding(self.open.weight)
            self.last = torch.nn.Linear(6, 6)

        def forward(self, x):
            return self.last(self.hidden(self.open(x)))

    items = [(torch.randn(6), torch.randn(6))]
    with pytest.raises(InvalidInputError, match=r"cover 53.8% .*\(open.weight\)"):
        own_rows(Model(), items, tmp_path / "s")


def test_norms_are_found_by_what_they_do():
    class Renamed(torch.nn.LayerNorm):
        pass

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x.tanh() * self.weight

    x = torch.randn(3, 4)
    for module in (Renamed(4), torch.nn.RMSNorm(4), torch.nn.LayerNorm(4, bias=False)):
        torch.testing.assert_close(norm_of(module)(x), module(x).detach())
    for module in (Other(), torch.nn.BatchNorm1d(4), torch.nn.PReLU(4), torch.nn.Linear(4, 4), Gated()):
        assert norm_of(module) is None


class Gated(torch.nn.RMSNorm):
    """Fails without a gate in a way of its own."""

    def __init__(self):
        super().__init__(4)

    def forward(self, x, gate=None):
        return super().forward(x) * gate.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_norm_whose_weight_is_zero_is_the_norm_that_it_is(dtype):
    x = torch.randn(3, 4, dtype=dtype)
    for module in (torch.nn.LayerNorm(4, dtype=dtype), torch.nn.LayerNorm(4, bias=False, dtype=dtype)):
        torch.nn.init.zeros_(module.weight)
        expected = torch.nn.functional.layer_norm(x.to(torch.promote_types(dtype, torch.float32)), (4,))
        torch.testing.assert_close(norm_of(module)(x), expected)


def test_a_norm_whose_epsilon_is_not_known_is_none():
    class Named(torch.nn.Module):
        def __init__(self, **epsilon):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))
            for name, value in epsilon.items():
                setattr(self, name, value)

        def forward(self, x):
            epsilon = next((value for name, value in vars(self).items() if name in ("epsilon", "least")))
            return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)

    x = torch.randn(3, 4) * 1e-3
    for named in (Named(epsilon=1e-5), Named(epsilon=0), Named(bias=False, epsilon=1e-5)):
        with torch.autocast("cpu", torch.bfloat16):
            normalise = norm_of(named)
        torch.testing.assert_close(normalise(x), named(x).detach())
    assert norm_of(Named(least=1e-5)) is None


def test_positions_that_the_batch_shares_without_saying_so_are_an_error_by_name(data, tmp_path):
    class Positions(torch.nn.Module):
        def __init__(self, batch):
            super().__init__()
            torch.manual_seed(0)
            self.batch = batch
            self.words, self.places = torch.nn.Embedding(VOCABULARY, 6), torch.nn.Embedding(64, 6)
            self.head = torch.nn.Linear(6, VOCABULARY)

        def forward(self, input_ids, attention_mask=None):
            places = torch.arange(input_ids.shape[1])
            found = self.places(places[None] if self.batch else places)
            return self.head((self.words(input_ids) + found).tanh())

    expected = rows_of(run(Positions(True), data, tmp_path / "a", embeddings=True))
    with pytest.raises(InvalidInputError, match=r"layer 'places' looks ids of shape .*ids of shape \(1, "):
        run(Positions(False), data, tmp_path / "b", embeddings=True)
    one_by_one = rows_of(run(Positions(False), data, tmp_path / "b", embeddings=True, tokens_per_batch=1))
    assert_rows_equal(one_by_one, expected)


POSITIONS = {
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32, init_std=0.2,
        )
    ),
    "bart": lambda: BartForCausalLM(
        BartConfig(
            vocab_size=VOCABULARY, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
            max_position_embeddings=64, init_std=0.2,
        )
    ),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2
        )
    ),
}  # fmt: skip


MOST = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]


@pytest.mark.parametrize(
    ("model", "options", "left"),
    [
        (make_model, {"target_modules": "!down_proj"}, MOST),
        (make_model, {"target_modules": r"!.*\.mlp\..*"}, MOST[:4]),
        (make_model, {"target_modules": ["!down_proj", "!mlp.up_proj"]}, MOST[:5]),
        (make_model, {"target_modules": ["q_proj", "down_proj", "!down_proj"]}, ["q_proj"]),
        (make_model, {"target_modules": "!down_proj", "lora_rank": 2}, MOST),
        (lambda: make_lora(make_model()), {"target_modules": "!down_proj"}, ["q_proj", "v_proj"]),
    ],
    ids=["name", "pattern", "names", "of others", "fresh", "adapter"],
)
def test_modules_are_left_out_of_what_would_be_tracked(model, options, left, data, tmp_path):
    found = run(model(), data, tmp_path / "s", **options, min_coverage=0.5)
    expected = run(model(), data, tmp_path / "t", **{**options, "target_modules": left}, min_coverage=0.5)
    assert names_in(found) == names_in(expected)
    np.testing.assert_array_equal(rows_of(found), rows_of(expected))


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_a_part_of_a_name_leaves_all_inside_out_and_a_misspelt_one_is_named(options, data, tmp_path):
    store = run(
        make_model(), data, tmp_path / "s", target_modules=["!mlp", "!layers.0"], **options, min_coverage=0.5
    )
    assert names_in(store)
    assert all(".layers.1.self_attn." in name for name in names_in(store))
    with pytest.raises(InvalidInputError, match=r"'!down_porj' leaves no module out; .*down_proj"):
        run(make_model(), data, tmp_path / "t", target_modules=["!mlp", "!down_porj"], **options)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.0.mixer.dt_proj", "!dt_proj"),
        ("base_model.model.b.0.odd.lora_B.default", "!odd"),
        ("base_model.model.b.0.odd.base_layer", "!odd"),
        ("0.1", "!0.1"),
    ],
)
def test_what_to_leave_out_is_proposed_for_all_of_a_kind(name, found):
    assert leave_out(name).endswith(f"target_modules={found!r}")


def test_a_fresh_lora_is_not_put_where_fast_kernels_pass_it_by(data, tmp_path):
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    store = run(MambaForCausalLM(config), data, tmp_path / "s", lora_rank=2)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names_in(store)} == {
        "in_proj",
        "x_proj",
        "dt_proj",
    }


def test_what_is_tied_to_a_module_that_is_left_out_is_left_out_too(data, tmp_path):
    model = make_model(tie_word_embeddings=True)
    assert "embed" in str(names_in(run(model, data, tmp_path / "s", embeddings=True)))
    store = run(model, data, tmp_path / "t", embeddings=True, target_modules="!lm_head")
    assert "embed" not in str(names_in(store))


@pytest.mark.parametrize("family", POSITIONS)
def test_tables_and_products_of_their_own_kind_do_no_harm(family, data, tmp_path):
    torch.manual_seed(0)
    model = POSITIONS[family]()
    used = (
        r".*(self_attn\.\w+|fc\d)" if family == "bart" else None
    )  # it has layers for an encoder's output, too
    store = run(model, data, tmp_path / "s", target_modules=used, min_coverage=0.95)
    check_against_autograd(model, data, store)


def test_factors_that_are_added_to_fused_experts_count_as_missed_and_the_rest_is_exact(data, tmp_path):
    model = make_lora(make_model("mixtral"), target_modules="all-linear", lora_dropout=0.0)
    with pytest.raises(InvalidInputError, match=r"cover .*experts\.(base_layer\.)?lora_A.*min_coverage"):
        run(model, data, tmp_path / "s")
    with pytest.warns(SpiceWarning, match="are left out"):
        store = run(model, data, tmp_path / "s", min_coverage=0.0)
    assert names_in(store)
    assert not any("experts" in name for name in names_in(store))
    check_against_autograd(model, data, store)


def test_a_fresh_lora_leaves_fused_experts_alone(data, tmp_path):
    sizes = {
        **SIZES,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**sizes, first_k_dense_replace=1, n_group=1, topk_group=1))
    kind = model.config.model_type
    store = run(model, data, tmp_path / "s", lora_rank=2)
    assert "model_type" not in vars(model.config)
    assert model.config.model_type == kind
    names = names_in(store)
    assert any("layers.0.mlp.gate_proj" in name for name in names)
    assert not any(".experts." in name for name in names)
    assert np.linalg.norm(rows_of(store), axis=1).min() > 0


def test_adapters_that_cannot_be_learned_are_named(data, tmp_path):
    merged = make_lora(make_model())
    merged.merge_adapter()
    with pytest.raises(InvalidInputError, match="merged into the weight.*unmerge_adapter"):
        run(merged, data, tmp_path / "s")
    frozen = make_lora(make_model()).requires_grad_(False)
    with pytest.raises(InvalidInputError, match="is_trainable=True"):
        run(frozen, data, tmp_path / "s")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_no_row(default, kind, data, tmp_path):
    options = {"projection": kind, "dim": 64, "norms": True, "embeddings": True}
    model = make_model()
    expected = rows_of(run(model, data, tmp_path / "a", **options))
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = rows_of(run(model, data, tmp_path / "b", **options))
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_inference_mode_of_the_caller_changes_no_row(data, tmp_path):
    model = make_model()
    expected = rows_of(run(model, data, tmp_path / "a"))
    with torch.inference_mode():
        found = rows_of(run(model, data, tmp_path / "b"))
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(found, expected)


class Answering(torch.nn.Module):
    """Gives what `answer` makes of the logits."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.model = answer, make_model()

    def forward(self, input_ids, attention_mask):
        return self.answer(self.model(input_ids=input_ids, attention_mask=attention_mask).logits)


def test_a_tuple_that_begins_with_logits_will_do(data, tmp_path):
    plain, tuples = (
        rows_of(run(Answering(answer), data, tmp_path / str(number)))
        for number, answer in enumerate([torch.Tensor.clone, lambda logits: (logits, None)])
    )
    np.testing.assert_array_equal(plain, tuples)


def test_models_that_are_called_or_answer_otherwise_are_named(data, tmp_path):
    class Bare(Answering):
        def forward(self, ids):
            return super().forward(ids, None)

    longer = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    meta = make_model().to("meta")
    cases = [
        (Bare(torch.Tensor.clone), r"Bare.forward: .*input_ids.*Wrap it"),
        (Answering(lambda logits: {"scores": logits}), "found dict returned, expected logits"),
        (longer, "prompt tuning"),
        (meta, "meta device"),
    ]
    for number, (model, says) in enumerate(cases):
        with pytest.raises(InvalidInputError, match=says):
            run(model, data, tmp_path / str(number))


def test_experts_without_a_known_form_make_no_layer():
    from spice_rs.extraction.tracking import track

    model = make_model("mixtral")
    assert sum(isinstance(layer, ExpertsLayer) for layer in track(model, None).layers) == 2
    for layer in model.model.layers:
        layer.mlp.experts.has_post_expert_norm = True
    tracked = track(model, None)
    assert not any(isinstance(layer, ExpertsLayer) for layer in tracked.layers)
    assert "model.layers.0.mlp.experts.down_proj" in tracked.missed
    assert tracked.coverage < 0.3


class Borrowing(torch.nn.Module):
    """Two layers, the second of which is used in the way that `how` says."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.e = how, torch.nn.Embedding(10, 6)
        self.a, self.b = torch.nn.Linear(6, 6), torch.nn.Linear(6, 10)

    def forward(self, ids):
        hidden = self.a(self.e(ids)).tanh()
        if self.how == "never runs":
            return torch.nn.functional.linear(hidden, self.b.weight)
        if self.how == "also elsewhere":
            return self.b(hidden) + (hidden @ self.b.weight.T).tanh()
        if self.how == "tied by hand":
            return hidden @ self.e.weight.T
        # What leaves no gradient behind is no use.
        hidden = hidden.to(self.b.weight.dtype) * self.b.weight.detach().norm() / self.b.weight.shape[0]
        return self.b(hidden.to(self.b.weight.device))


def summed(model, batch):
    ids, targets = batch
    return (
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="none")
        .view(targets.shape)
        .sum(dim=1)
    )


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("never runs", "b.weight"),
        ("also elsewhere", "b.weight"),
        ("tied by hand", "e.weight"),
        ("only read", None),
    ],
)
def test_a_parameter_that_is_used_outside_of_its_layer_is_an_error_by_name(how, name, tmp_path):
    model = Borrowing(how)
    items = [(torch.arange(5) + shift, torch.arange(5)) for shift in range(4)]
    options = {"loss_fn": summed, "embeddings": True, "target_modules": ["a", "b", "e"]}
    if name is None:
        assert len(run(model, items, tmp_path / "s", **options)) == 4
    else:
        with pytest.raises(InvalidInputError, match=f"^{name}: found a use outside of its layer's forward"):
            run(model, items, tmp_path / "s", **options)
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    kept = [each for each in "abe" if name is None or each != name[0]]
    run(model, items, tmp_path / "t", **{**options, "embeddings": False, "target_modules": kept})


def test_checkpointing_puts_a_forward_of_others_back(data, tmp_path):
    model = make_model()
    block, other = model.model.layers[0], model.model.layers[1]
    calls, original = [], block.forward

    def hooked(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = hooked
    run(model, data, tmp_path / "s", gradient_checkpointing=True)
    assert calls
    assert vars(block)["forward"] is hooked
    assert "forward" not in vars(other)

    class Closed:
        """A block that cannot be changed: what came before it is put back."""

        def __setattr__(self, name, value):
            raise KeyboardInterrupt

        def forward(self):
            pass

    with pytest.raises(KeyboardInterrupt), checkpointed([block, other, Closed()], dropout=False):
        pass
    assert vars(block)["forward"] is hooked
    assert "forward" not in vars(other)


def test_checkpointing_that_does_nothing_is_said(tmp_path):
    items = [(torch.arange(5), torch.arange(5))] * 2
    with pytest.warns(
        SpiceWarning, match="gradient_checkpointing: found no block of transformers in Borrowing"
    ):
        run(Borrowing("only read"), items, tmp_path / "s", loss_fn=summed, gradient_checkpointing=True)
