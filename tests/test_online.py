"""Selection inside a Trainer, against the same training by hand: one backward per sample, dense algebra, plain SGD."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import oracle
import spice_rs
from models import make_model
from reference import autograd_rows, make_data
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.identity import weight_fingerprint
from test_schedule import mean_full_gain, quiet_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def padded(items, side="right"):
    """A batch as collators make it."""
    length = max(len(item["input_ids"]) for item in items)

    def rows(values, fill):
        parts = []
        for value in values:
            pad = [fill] * (length - len(value))
            parts.append([*pad, *value] if side == "left" else [*value, *pad])
        return torch.tensor(parts)

    return {
        "input_ids": rows([item["input_ids"] for item in items], 0),
        "attention_mask": rows([[1] * len(item["input_ids"]) for item in items], 0),
        "labels": rows([item["labels"] for item in items], -100),
    }


def naive_picks(model, items, k, penalty):
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    rows, _ = autograd_rows(model, items, names)
    tokens = [sum(label != -100 for label in item["labels"][1:]) for item in items]
    rows = np.linalg.qr((rows.astype(np.float64) / np.array(tokens)[:, None]).T, mode="r").T
    return oracle.greedy(rows, k, mean_full_gain, penalty)[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_thinned_to_the_picks_of_the_definition(side):
    items, model = make_data(14, seed=4), quiet_lora(trained=True)
    batch = {
        **padded(items, side),
        "difficulty": torch.arange(14.0),
        "name": [str(i) for i in range(14)],
        "epoch": 3,
    }
    model.train()
    before, state = weight_fingerprint(model), torch.get_rng_state()
    selector = spice_rs.OnlineSelector(model, select_per_window=4, conflict_penalty=0.5, projection="none")
    thin = selector.thin(batch)
    assert weight_fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(each.grad is None for each in model.parameters())
    picks = naive_picks(model, items, 4, 0.5)
    assert thin["difficulty"].tolist() == picks
    assert thin["name"] == [str(place) for place in picks]
    assert thin["epoch"] == 3
    for row, place in enumerate(picks):
        kept = thin["attention_mask"][row].bool()
        assert thin["input_ids"][row][kept].tolist() == items[place]["input_ids"]
        assert thin["labels"][row][kept].tolist() == items[place]["labels"]
    if side == "right":
        assert thin["input_ids"].shape == (4, max(len(items[place]["input_ids"]) for place in picks))
    assert selector.history[0]["picks"] == 4


def test_samples_without_a_learned_token_are_never_picked():
    items = make_data(6)
    for item in items[:4]:
        item["labels"] = [-100] * len(item["labels"])
    selector = spice_rs.OnlineSelector(quiet_lora(), select_per_window=4, dim=64)
    assert sorted(selector.choose(padded(items)).tolist()) == [4, 5]


def test_a_gradient_that_hooks_would_miss_is_refused_in_the_loop():
    model = make_model()
    projected = model.model.layers[0].self_attn.q_proj
    norm = model.model.norm
    norm.register_forward_hook(
        lambda module, inputs, output: output @ projected.weight[:, : output.shape[-1]]
    )
    selector = spice_rs.OnlineSelector(model, select_per_window=2, dim=64)
    with pytest.raises(InvalidInputError, match="q_proj.weight: found a use outside of its layer's forward"):
        selector.choose(padded(make_data(4)))
    assert all(each.grad is None for each in model.parameters())


def test_a_batch_is_tried_out_once_for_what_is_tracked(monkeypatch):
    tried = []
    try_out = GradientRun.try_out

    def noted(run, samples):
        tried.append(1)
        try_out(run, samples)

    monkeypatch.setattr(GradientRun, "try_out", noted)
    model = make_model()
    selector = spice_rs.OnlineSelector(model, select_per_window=2, dim=64)
    for _ in range(3):
        selector.choose(padded(make_data(4)))
    assert len(tried) == 1
    model.model.layers[0].requires_grad_(False)  # the loop freezes a layer
    for _ in range(2):
        selector.choose(padded(make_data(4)))
    assert len(tried) == 2


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [True, False])
def test_a_trainer_learns_from_the_picks_alone(adapted, tmp_path):
    items = make_data(36, seed=6)
    model = quiet_lora() if adapted else make_model()
    naive = copy.deepcopy(model)
    seen = []

    def collate(samples):
        seen.append(samples)
        return padded(samples)

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=9, gradient_accumulation_steps=2, max_steps=3,
        optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], logging_steps=1,
        save_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=items, data_collator=collate)
    if not adapted:  # what is trained and what is tracked need not be the same
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        naive = copy.deepcopy(model)
    tracked = {} if adapted else {"target_modules": ["down_proj"]}
    selector = spice_rs.select_online(
        trainer, select_per_window=3, conflict_penalty=0.5, projection="none", **tracked
    )
    trainer.train()

    trained = [each for each in naive.parameters() if each.requires_grad]
    naive.eval()
    windows = iter([seen[0], seen[1], seen[2], seen[3], seen[4], seen[5]])
    for _ in range(3):
        chosen = []
        for samples in (next(windows), next(windows)):
            flags = [each.requires_grad for each in naive.parameters()]
            if not adapted:
                for name, each in naive.named_parameters():
                    each.requires_grad_("down_proj" in name)
            chosen += [samples[place] for place in naive_picks(naive, samples, 3, 0.5)]
            for each, flag in zip(naive.parameters(), flags, strict=True):
                each.requires_grad_(flag)
        tokens = sum(label != -100 for item in chosen for label in item["labels"][1:])
        loss = sum(
            torch.nn.functional.cross_entropy(
                naive(input_ids=torch.tensor([item["input_ids"]])).logits[0, :-1],
                torch.tensor(item["labels"][1:]),
                reduction="sum",
            )
            for item in chosen
        )
        for parameter, gradient in zip(trained, torch.autograd.grad(loss / tokens, trained), strict=True):
            parameter.data -= 0.5 * gradient
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)
    assert [each["picks"] for each in selector.history] == [3] * 6
    logged = [each for each in trainer.state.log_history if "spice_picks" in each]
    assert [each["spice_samples"] for each in logged] == [9.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"batch\['labels'\]: found NoneType, expected a tensor \(samples, tokens\)"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, r"batch\['input_ids'\]: found shape \(3,\)"),
        ({"labels": torch.zeros(4, 2, dtype=torch.int64)}, r"batch\['labels'\]: found shape \(4, 2\)"),
        (
            {"attention_mask": torch.ones(4, 1, 3, 3)},
            r"batch\['attention_mask'\]: found shape \(4, 1, 3, 3\)",
        ),
        ({"labels": "masked"}, "batch: found 4 samples without a learned token"),
    ],
)
def test_batches_of_another_kind_are_refused(change, message):
    batch = padded(make_data(4))
    if isinstance(change.get("labels"), str):
        change = {"labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(InvalidInputError, match=message):
        spice_rs.OnlineSelector(quiet_lora(), dim=64).choose({**batch, **change})


def test_what_is_no_trainer_and_what_is_no_argument_is_refused():
    with pytest.raises(InvalidInputError, match=r"trainer: found int, expected a transformers\.Trainer"):
        spice_rs.select_online(3)
    with pytest.raises(InvalidInputError, match="select_per_window: found 0"):
        spice_rs.OnlineSelector(quiet_lora(), select_per_window=0)
    with pytest.raises(TypeError, match="lora_rank is no argument here"):
        spice_rs.OnlineSelector(quiet_lora(), lora_rank=3)


def test_a_trainer_with_another_loss_is_refused_unless_that_is_given(tmp_path):
    def make(loss=None, **more):
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], **more)
        return Trainer(
            model=quiet_lora(),
            args=arguments,
            train_dataset=make_data(4),
            data_collator=padded,
            compute_loss_func=loss,
        )

    def focal(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum()

    spice_rs.select_online(make(), dim=64)
    for trainer, says in (
        (
            make(label_smoothing_factor=0.1),
            r"trainer\.args\.label_smoothing_factor: found 0\.1, expected 0.*loss_fn=…",
        ),
        (make(focal), r"trainer\.compute_loss_func: found focal, expected None.*loss_fn=…"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            spice_rs.select_online(trainer, dim=64)
        spice_rs.select_online(trainer, dim=64, loss_fn=lambda logits, labels: logits.sum((1, 2)))
