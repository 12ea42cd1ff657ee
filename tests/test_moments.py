"""Rows scaled by Adam's second moments equal autograd's, scaled by the formula, wherever the moments come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

import spice_rs
from models import make_lora, make_model
from reference import assert_rows_equal, autograd_rows, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.extraction.naming import plain_name
from spice_rs.extraction.projection import Parameter, make_projection

BETA, EPS, STEPS = 0.95, 1e-6, 3


def losses(model, data):
    for item in data:
        logits = model(input_ids=torch.tensor([item["input_ids"]]), use_cache=False).logits[0, :-1]
        yield torch.nn.functional.cross_entropy(logits, torch.tensor(item["labels"][1:]), reduction="sum")


def adam(model, groups=None, steps=STEPS, **options):
    """An Adam that has taken some steps on other data than the tests'."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups or trained, lr=1e-3, betas=(0.9, BETA), eps=EPS, **options)
    for _, loss in zip(range(steps), losses(model, make_data(steps, seed=9)), strict=False):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def expected_rows(model, data, names, moments):
    """Autograd's rows over √v̂ + ε; moments by name."""
    rows, _ = autograd_rows(model, data, names)
    flat = torch.cat([moments[name].double().flatten() for name in names]).numpy()
    scale = 1 / (np.sqrt(flat / (1 - BETA**STEPS)) + EPS)
    return rows * np.where(flat > 0, scale, 0)


def moments_of(model, optimizer):
    return {
        name: optimizer.state[parameter]["exp_avg_sq"]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def names_in(store):
    return list(dict.fromkeys(entry["name"].split("[")[0] for entry in store.info()["layout"]))


def check(model, data, moments, store, tolerance=1e-4):
    names = names_in(store)
    assert_rows_equal(rows_of(store), expected_rows(model, data, names, moments), tolerance)


def by_index(model, optimizer, folder):
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder  # as a checkpoint's folder


def by_name(model, optimizer, folder):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {f"module.{names[id(parameter)]}": state for parameter, state in optimizer.state.items()}
    groups = [{"params": list(state), "betas": (0.9, BETA), "eps": EPS}]
    torch.save({"state": state, "param_groups": groups}, folder / "optimizer.bin")
    return str(folder / "optimizer.bin")


def itself(model, optimizer, folder):
    return optimizer


def as_dict(model, optimizer, folder):
    return optimizer.state_dict()


@pytest.mark.parametrize("given", [by_index, by_name, itself, as_dict])
def test_lora_rows_are_scaled_wherever_the_moments_are(given, tmp_path):
    model, data = make_lora(make_model()), make_data(4)
    optimizer = adam(model)
    source = given(model, optimizer, tmp_path)
    store = run(model, data, tmp_path / "s", optimizer=source, tokens_per_batch=40)
    check(model, data, moments_of(model, optimizer), store)
    assert store.info()["optimizer"]["kind"] == "adam"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_whole_model_with_trainers_two_groups(tmp_path):
    """Norms and biases come second, so that indices are not in the order of the parameters."""
    model, data = make_model("gpt2"), make_data(4)
    decayed = set(hf.Trainer.get_decay_parameter_names(None, model))
    parts = [
        [parameter for name, parameter in model.named_parameters() if (name in decayed) is wanted]
        for wanted in (True, False)
    ]
    assert all(parts)
    optimizer = adam(model, [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1]}])
    by_index(model, optimizer, tmp_path)
    store = run(model, data, tmp_path / "s", optimizer=tmp_path / "optimizer.pt", norms=True)
    assert names_in(store) == [
        name for name, _ in model.named_parameters() if "wte" not in name and "wpe" not in name
    ]
    check(model, data, moments_of(model, optimizer), store)


def test_names_in_the_groups_go_before_the_order(tmp_path):
    model, data = make_lora(make_model()), make_data(3)
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad][::-1]
    optimizer = adam(model, [each for _, each in trained])
    state = optimizer.state_dict()
    state["param_groups"][0]["param_names"] = [name for name, _ in trained]
    check(
        model,
        data,
        moments_of(model, optimizer),
        run(model, data, tmp_path / "s", optimizer=state),
    )


def test_a_safetensors_file_has_moments_by_name(tmp_path):
    model, data = make_lora(make_model()), make_data(3)
    optimizer = adam(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, state in optimizer.state.items():
        tensors[f"{names[id(parameter)]}.exp_avg_sq"] = state["exp_avg_sq"] / (1 - BETA**STEPS)
    save_file(tensors, tmp_path / "moments.safetensors")  # no step: v̂ itself
    store = run(model, data, tmp_path / "s", optimizer=tmp_path / "moments.safetensors")
    rows, _ = autograd_rows(model, data, names_in(store))
    flat = torch.cat([tensors[f"{name}.exp_avg_sq"].flatten() for name in names_in(store)]).double().numpy()
    assert_rows_equal(rows_of(store), rows * np.where(flat > 0, 1 / (np.sqrt(flat) + 1e-8), 0))


def test_embeddings_experts_and_coordinates_that_were_never_trained(tmp_path):
    model, data = make_model("mixtral", num_hidden_layers=1), make_data(4)
    model.set_experts_implementation("eager")
    optimizer = adam(model)
    with pytest.warns(SpiceWarning, match=r"% of the coordinates .* never trained"):
        store = run(model, data, tmp_path / "s", optimizer=optimizer, embeddings=True)
    moments = moments_of(model, optimizer)
    assert (moments["model.embed_tokens.weight"] == 0).any()
    assert any("experts" in name for name in names_in(store))
    check(model, data, moments, store)


@pytest.mark.parametrize("projection", ["sparse", "two_sided", "rademacher"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")
def test_projected_rows_are_the_projection_of_scaled_ones(projection, adapted, tmp_path, monkeypatch):
    monkeypatch.setattr("spice_rs.extraction.views.CHUNK", 100)  # several blocks
    model = make_lora(make_model("qwen2")) if adapted else make_model("qwen2")
    data, optimizer = make_data(4), adam(model)
    options = {"dim": 24, "seed": 3, "nnz": 2, "side": 4}
    extra = {"optimizer": optimizer, "embeddings": not adapted}
    plain = run(model, data, tmp_path / "plain", **extra)
    store = run(model, data, tmp_path / "s", projection=projection, **extra, **options)
    projector = make_projection(projection, [], **options)
    expected = torch.zeros(len(data), 24)
    for entry in plain.info()["layout"]:
        parameter = Parameter(entry["name"], tuple(entry["shape"]))
        stop = entry["offset"] + parameter.numel
        values = torch.from_numpy(rows_of(plain)[:, entry["offset"] : stop].copy())
        if len(parameter.shape) == 1:
            projector.add_flat(expected, parameter, 0, values)
            continue
        left = values.view(-1, *parameter.shape).transpose(1, 2).contiguous()
        right = torch.eye(parameter.shape[1]).expand(len(data), -1, -1)
        reduced = [projector.reduce(parameter, side, factor) for side, factor in enumerate((left, right))]
        projector.add_outer(expected, parameter, *reduced)
    assert_rows_equal(rows_of(store), expected.numpy())


def test_the_doctor_checks_scaled_rows():
    model = make_lora(make_model())
    found = spice_rs.doctor(model, make_data(6), samples=4, optimizer=adam(model))
    assert found.passed, str(found)


def test_other_moments_do_not_join_a_store(tmp_path):
    model, data = make_lora(make_model()), make_data(3)
    optimizer = adam(model)
    run(model, data, tmp_path / "s", optimizer=optimizer)
    run(model, data, tmp_path / "s", optimizer=optimizer.state_dict())  # the same
    for other in ({}, {"optimizer": adam(model, steps=1)}):
        with pytest.raises(StoreMismatchError):
            run(model, data, tmp_path / "s", **other)


def corrupted(state, **changes):
    return {**state, "state": {key: {**value, **changes} for key, value in state["state"].items()}}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: corrupted(state, exp_avg_sq=None), "exp_avg_sq"),
        (lambda state: corrupted(state, exp_avg_sq=torch.ones(3)), r"shape \(3,\)"),
        (lambda state: {**state, "state": {0: state["state"][0]}}, "no moments of"),
        (lambda state: {**state, "state": {}}, "no moments of"),
        (lambda state: corrupted(state, step=torch.tensor(0.0)), "found step 0"),
        (lambda state: {**state, "param_groups": [{"params": [0, 1]}]}, "1 group of 2"),
        (lambda state: {"model": {}}, "param_groups"),
        (lambda state: {**state, "param_groups": [7]}, "param_groups that cannot be read"),
        (lambda state: {**state, "param_groups": [{"params": 3}]}, "param_groups that cannot be read"),
        (
            lambda state: {**state, "param_groups": [{"params": [0], "betas": 0.9}]},
            "param_groups that cannot be read",
        ),
        (lambda state: {**state, "param_groups": [{"params": [0, 1], "param_names": ["a"]}]}, "1 name of 2"),
        (lambda state: 7, "optimizer: found int"),
        (lambda state: [state, state], "2 states, expected 1"),
        (lambda state: "/no/such/optimizer.pt", "no such file"),
    ],
)
def test_states_that_cannot_be_used_are_named(change, word, tmp_path):
    model = make_lora(make_model())
    state = adam(model).state_dict()
    with pytest.raises(InvalidInputError, match=word):
        run(model, make_data(2), tmp_path / "s", optimizer=change(state))
    assert not (tmp_path / "s").exists()


def test_negative_moments_and_untrained_runs_are_refused(tmp_path):
    model = make_lora(make_model())
    state = adam(model).state_dict()
    for value, word in (
        (-1.0, "negative"),
        (float("nan"), "negative or no numbers"),
        (0.0, "second moments that are all zero"),
    ):
        broken = {
            **state,
            "state": {
                key: {**each, "exp_avg_sq": torch.full_like(each["exp_avg_sq"], value)}
                for key, each in state["state"].items()
            },
        }
        with pytest.raises(InvalidInputError, match=word):
            run(model, make_data(2), tmp_path / "s", optimizer=broken)


def test_files_that_hold_more_than_tensors_are_refused(tmp_path):
    import pickle

    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps({"state": print}, protocol=2))
    with pytest.raises(InvalidInputError, match="cannot be read as tensors"):
        run(make_lora(make_model()), make_data(2), tmp_path / "s", optimizer=tmp_path)
    with pytest.raises(InvalidInputError, match="fresh LoRA"):
        run(make_model(), make_data(2), tmp_path / "s", optimizer={"state": {}}, lora_rank=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="no optimiser's state"):
        run(make_lora(make_model()), make_data(2), tmp_path / "s", optimizer=tmp_path / "empty")


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        ("base_model.model.model.q_proj.lora_A.default.weight", "model.q_proj.lora_A.weight"),
        ("base_model.model.model.q_proj.lora_A.weight", "model.q_proj.lora_A.weight"),
        ("base_model.model.model.q_proj.base_layer.weight", "model.q_proj.weight"),
        ("model.q_proj.lora_magnitude_vector.default.weight", "model.q_proj.lora_magnitude_vector"),
        ("base_model.model.model.q_proj.lora_magnitude_vector", "model.q_proj.lora_magnitude_vector"),
    ],
)
def test_names_mean_the_same_in_every_wrapping(given, plain):
    assert plain_name(given) == plain
