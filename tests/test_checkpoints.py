"""Rows of several checkpoints are those of each, weighted, side by side, and the model comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spice_rs
from command import run as command
from models import make_lora, make_model
from reference import assert_rows_equal, autograd_rows, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.extraction.identity import weight_fingerprint
from test_moments import adam, expected_rows, moments_of
from tiny import make_records, save_proxy


def trained(steps):
    """One LoRA, after so many steps."""
    model = make_lora(make_model(), trained=False)
    adam(model, steps=steps, amsgrad=False)
    return model


def state_of(model):
    """As a file would hold it: copies of what is trained."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def names_in(store):
    names = list(dict.fromkeys(entry["name"] for entry in store.info()["layout"]))
    return list(dict.fromkeys(name.split(":", 1)[-1] for name in names))


def test_rows_of_two_checkpoints_are_side_by_side_by_the_root_of_their_weight(tmp_path):
    models, data = [trained(1), trained(3)], make_data(4)
    model = make_lora(make_model(), trained=False)
    before = weight_fingerprint(model)
    store = run(
        model,
        data,
        tmp_path / "s",
        checkpoints=[state_of(each) for each in models],
        checkpoint_weights=[0.25, 2.0],
        tokens_per_batch=40,
    )
    names = names_in(store)
    assert any("lora_A" in name for name in names)  # the model's own B is zero, theirs are not
    parts = [autograd_rows(each, data, names) for each in models]
    expected = np.concatenate([0.5 * parts[0][0], np.sqrt(2) * parts[1][0]], axis=1)
    assert_rows_equal(rows_of(store), expected)
    order = np.argsort(store.index)
    np.testing.assert_allclose(store.loss[order], (0.25 * parts[0][1] + 2 * parts[1][1]) / 2.25, rtol=1e-4)
    assert [each["weight"] for each in store.info()["checkpoints"]] == [0.25, 2.0]
    assert weight_fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("projection", ["none", "sparse", "two_sided"])
def test_one_checkpoint_gives_the_rows_of_its_own_model(projection, tmp_path):
    other, data = make_model(seed=4), make_data(3)
    options = {"projection": projection, "dim": 64}
    store = run(make_model(), data, tmp_path / "s", checkpoints=[other.state_dict()], **options)
    np.testing.assert_array_equal(rows_of(store), rows_of(run(other, data, tmp_path / "t", **options)))


@pytest.mark.parametrize("projection", ["sparse", "two_sided"])
def test_projected_rows_keep_the_sums_of_inner_products(projection, tmp_path):
    """With as many columns as here the sketch is within a few percent, and no checkpoint leaks into another."""
    data, weights = make_data(5), [1.0, 0.5]
    states = [make_model(seed=4).state_dict(), make_model(seed=5).state_dict()]
    options = {"checkpoints": states, "checkpoint_weights": weights, "target_modules": ["q_proj", "up_proj"]}
    exact = rows_of(run(make_model(), data, tmp_path / "s", **options)).astype(np.float64)
    store = run(make_model(), data, tmp_path / "t", projection=projection, dim=1 << 15, side=32, **options)
    found = rows_of(store).astype(np.float64)
    scale = np.outer(*[np.linalg.norm(exact, axis=1)] * 2)
    assert np.abs((found @ found.T - exact @ exact.T) / scale).max() < 0.1


def test_each_checkpoint_has_its_own_moments(tmp_path):
    models, data = [trained(1), trained(3)], make_data(3)
    optimizers = [adam(each) for each in models]
    states = [state_of(each) for each in models]
    moments = [moments_of(each, optimizer) for each, optimizer in zip(models, optimizers, strict=True)]
    options = {"checkpoints": states, "optimizer": [each.state_dict() for each in optimizers]}
    store = run(make_lora(make_model(), trained=False), data, tmp_path / "s", **options)
    names = names_in(store)
    expected = [
        expected_rows(each, data, names, moment) for each, moment in zip(models, moments, strict=True)
    ]
    assert_rows_equal(rows_of(store), np.concatenate(expected, axis=1))
    with pytest.raises(InvalidInputError, match="1 state, expected 2"):
        run(models[0], data, tmp_path / "t", checkpoints=states, optimizer=optimizers[0])


def test_weights_of_checkpoints_may_be_an_array(tmp_path):
    model, data = make_lora(make_model()), make_data(2)
    checkpoints = [dict(model.state_dict()), dict(model.state_dict())]
    rows = [
        rows_of(run(model, data, tmp_path / str(n), checkpoints=checkpoints, checkpoint_weights=weights))
        for n, weights in enumerate(([0.5, 2.0], np.array([0.5, 2.0]), torch.tensor([0.5, 2.0])))
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_doctor_checks_rows_of_several_checkpoints(checkpointing):
    states = [state_of(trained(1)), state_of(trained(3))]
    model = make_lora(make_model())
    options = {"checkpoints": states, "checkpoint_weights": [1, 3], "samples": 4}
    found = spice_rs.doctor(model, make_data(6), gradient_checkpointing=checkpointing, **options)
    assert found.passed, str(found)


def test_folders_of_adapters_and_files_of_tensors_are_checkpoints(tmp_path):
    save_proxy(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    folders = []
    for steps in (1, 2):
        torch.manual_seed(steps)
        model = make_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(tmp_path / f"checkpoint-{steps}")
        save_file(state_of(model), tmp_path / f"{steps}.safetensors")
        torch.save(state_of(model), tmp_path / f"{steps}.pt")
        folders.append(tmp_path / f"checkpoint-{steps}")
    options = {"tokenizer": str(tmp_path / "base"), "device": "cpu", "checkpoint_weights": (1, 2)}
    stores = [
        run(str(folders[0]), make_records(4), tmp_path / f"s{place}", checkpoints=given, **options)
        for place, given in enumerate(
            [folders, *([tmp_path / f"{steps}{end}" for steps in (1, 2)] for end in (".safetensors", ".pt"))]
        )
    ]
    for store in stores[1:]:
        np.testing.assert_array_equal(rows_of(store), rows_of(stores[0]))
        found, expected = (
            [each["weights"] for each in one.info()["checkpoints"]] for one in (store, stores[0])
        )
        assert found == expected
    arguments = [
        "extract",
        "--model",
        folders[0],
        "--tokenizer",
        tmp_path / "base",
        "--dim",
        64,
        "--device",
        "cpu",
    ]
    arguments += ["--checkpoints", *folders, "--checkpoint-weights", 1, 2]
    data = tmp_path / "pool.jsonl"
    data.write_text('{"instruction": "a b", "response": "c d"}\n')
    assert command(*arguments, "--data", data, "--out", tmp_path / "cli") == 0
    described = spice_rs.GradientStore(tmp_path / "cli").info()["checkpoints"]
    assert [each["id"] for each in described] == ["checkpoint-1", "checkpoint-2"]
    assert [each["weights"] for each in described] == expected


def test_folders_of_whole_models_are_checkpoints(tmp_path):
    save_proxy(tmp_path / "a")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "b")
    options = {"tokenizer": str(tmp_path / "a"), "device": "cpu"}
    data = make_records(3)
    store = run(str(tmp_path / "a"), data, tmp_path / "s", checkpoints=[tmp_path / "b"], **options)
    np.testing.assert_array_equal(rows_of(store), rows_of(run(model, data, tmp_path / "t", **options)))


def test_a_fresh_lora_is_taken_at_every_checkpoint_of_the_base(tmp_path):
    others, data = [make_model(seed=4), make_model(seed=5)], make_data(3)
    options = {"lora_rank": 4, "target_modules": ["q_proj"]}
    store = run(
        make_model(), data, tmp_path / "s", checkpoints=[each.state_dict() for each in others], **options
    )
    expected = [rows_of(run(each, data, tmp_path / str(n), **options)) for n, each in enumerate(others)]
    np.testing.assert_array_equal(rows_of(store), np.concatenate(expected, axis=1))


def test_tied_weights_and_buffers_change_together(tmp_path):
    def loss(model, batch):
        return model(batch[0]).square().sum(dim=1)

    def make(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
        model[2].weight = model[0].weight
        model[1].running_mean += torch.randn(4)
        return model.eval()

    items = [(torch.randn(4),) for _ in range(5)]
    options = {"loss_fn": loss, "min_coverage": 0.5}
    store = run(make(0), items, tmp_path / "s", checkpoints=[make(1).state_dict()], **options)
    expected = run(make(1), items, tmp_path / "t", **options)
    np.testing.assert_array_equal(rows_of(store), rows_of(expected))


def test_a_stopped_run_leaves_the_models_own_weights(tmp_path, monkeypatch):
    from spice_rs.extraction.loss import SummedLoss

    model = make_model()
    before, calls = weight_fingerprint(model), []
    original = SummedLoss.__call__

    def stops(self, *batch):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *batch)

    monkeypatch.setattr(SummedLoss, "__call__", stops)
    states = [make_model(seed=seed).state_dict() for seed in (1, 2)]
    with pytest.raises(KeyboardInterrupt):
        run(model, make_data(3), tmp_path / "s", checkpoints=states)
    assert weight_fingerprint(model) == before


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoints": None},
        {"checkpoints": [make_model(seed=1).state_dict(), make_model(seed=3).state_dict()]},
        {"checkpoints": [make_model(seed=2).state_dict(), make_model(seed=1).state_dict()]},
        {"checkpoint_weights": [1, 2]},
    ],
)
def test_other_checkpoints_do_not_join_a_store(change, tmp_path):
    states = [make_model(seed=seed).state_dict() for seed in (1, 2)]
    settings = {"projection": "sparse", "dim": 32, "checkpoints": states}
    run(make_model(), make_data(3), tmp_path / "s", **settings)
    with pytest.raises(StoreMismatchError):
        run(make_model(), make_data(3), tmp_path / "s", **{**settings, **change})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"checkpoints": []}, "checkpoints: found none"),
        ({"checkpoints": [7]}, r"checkpoints\[0\]: found int"),
        ({"checkpoints": [{}]}, "found no tensors"),
        (
            {"checkpoints": [{"other.weight": torch.ones(2)}]},
            r"1 tensor that the model has not \(other.weight\)",
        ),
        (
            {"checkpoints": [{"model.norm.weight": torch.ones(2)}]},
            r"shape \(2,\), expected the model's \(32,\)",
        ),
        ({"checkpoints": [{"model.norm.weight": 3}]}, "expected tensors by name"),
        (
            {"checkpoints": [{"model.layers.0.mlp.up_proj.weight": torch.ones(48, 32)}]},
            "found no model.layers.0.self_attn.q_proj.weight",
        ),
        ({"checkpoints": ["/no/such/folder"]}, "no such folder"),
        ({"checkpoint_weights": [1]}, "expected checkpoints beside them"),
        ({"checkpoints": [make_model().state_dict()], "checkpoint_weights": [1, 2]}, "expected 1 positive"),
        (
            {"checkpoints": [make_model().state_dict()], "checkpoint_weights": [-1]},
            "expected a list of positive",
        ),
        (
            {"checkpoints": [make_model().state_dict()], "checkpoint_weights": ["x"]},
            "expected a list of positive numbers",
        ),
    ],
)
def test_checkpoints_that_cannot_be_used_are_named(options, word, tmp_path):
    with pytest.raises(InvalidInputError, match=word):
        run(make_model(), make_data(2), tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
