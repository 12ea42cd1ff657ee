"""The interleaved schedule against a loop in plain torch and numpy, against kills, and against bad input."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import oracle
import schedule_killer
import spice_rs
from command import run
from counts import some
from models import make_lora, make_model
from reference import autograd_rows, make_data
from spice_rs.errors import CorruptStoreError, InvalidInputError, SpiceWarning, StoreError, StoreMismatchError
from spice_rs.extraction.identity import weight_fingerprint
from tiny import make_records

pytestmark = pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Models of a few thousand weights: threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


OPTIONS = {
    "pool_size": 12,
    "select_per_window": 3,
    "learning_rate": 0.05,
    "progress": False,
    "tensorboard": False,
}


def quiet_lora(trained=False, **options):
    """A model with a LoRA and without dropout: in training it does what it does at rest."""
    model = make_lora(make_model(), trained=trained, lora_dropout=0.0, **options)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def mean_full_gain(rows, picked):
    """Δ from the definition, by a solve of I + F."""
    matrix = np.eye(rows.shape[1]) + rows[picked].T @ rows[picked]
    return np.log1p(np.einsum("nd,nd->n", rows, np.linalg.solve(matrix, rows.T).T))


def naive_loop(model, data, *, pool_size, select_per_window, interval, penalty, rate, warmup, seed=0):
    """The schedule from its definition: one backward per sample, dense algebra, one batch of one sample at a time."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.0)
    order = np.random.default_rng(seed).permutation(len(data))
    windows = [order[start : start + pool_size] for start in range(0, len(data), pool_size)]
    picks, since, losses = [], [], []
    for number, window in enumerate(windows):
        rows, _ = autograd_rows(model, [data[row] for row in sorted(window)], list(trained))
        tokens = [sum(label != -100 for label in data[row]["labels"][1:]) for row in sorted(window)]
        k = min(select_per_window, len(window))
        rows = rows.astype(np.float64) / np.array(tokens)[:, None]
        # Inner products decide alone; a triangle has them all, in few columns.
        rows = np.linalg.qr(rows.T, mode="r").T
        chosen, _ = oracle.greedy(rows, k, mean_full_gain, penalty)
        new = [sorted(window)[place] for place in chosen]
        picks += new
        since += new
        last = number + 1 == len(windows)
        if interval is not None and (last or (number + 1) % interval == 0):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (len(losses) + 1) / warmup)
            optimizer.zero_grad()
            summed, count = 0.0, 0
            for row in since:
                item = data[row]
                logits = model(input_ids=torch.tensor([item["input_ids"]]), use_cache=False).logits[0, :-1]
                summed = summed + torch.nn.functional.cross_entropy(
                    logits, torch.tensor(item["labels"][1:]), reduction="sum"
                )
                count += sum(label != -100 for label in item["labels"][1:])
            (summed / count).backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            losses.append(float(summed.detach()) / count)
            since = []
    return picks, losses, trained


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize(
    ("trained", "interval", "rate"), [(False, 1, 0.05), (True, 2, 0.3), (False, None, 0.05)]
)
def test_the_loop_is_the_one_of_its_definition(trained, interval, rate, tmp_path):
    data = make_data(43, seed=3)  # three windows and one of seven
    model = quiet_lora(trained)
    naive = copy.deepcopy(model)
    options = {
        **OPTIONS,
        "projection": "none",
        "conflict_penalty": 0.5,
        "learning_rate": rate,
        "warmup_steps": 2,
    }
    found = spice_rs.run_schedule(model, data, tmp_path / "run", interval=interval, **options)
    static = spice_rs.run_schedule(quiet_lora(trained), data, tmp_path / "static", interval=None, **options)
    assert (found.indices.tolist() == static.indices.tolist()) == (interval is None)  # what it learns matters
    naive.eval()
    picks, losses, weights = naive_loop(
        naive, data, pool_size=12, select_per_window=3, interval=interval, penalty=0.5, rate=rate, warmup=2
    )
    assert found.indices.tolist() == picks
    assert found.windows.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    np.testing.assert_allclose(found.step_losses, losses, rtol=1e-4)
    assert len(losses) == {1: 4, 2: 2, None: 0}[interval]
    assert found.model is model
    for name, parameter in model.named_parameters():
        if name in weights:
            torch.testing.assert_close(parameter, weights[name], rtol=1e-3, atol=1e-4)


def test_without_training_the_picks_are_those_of_select_in_windows(tmp_path):
    data = make_data(300, seed=1)
    options = {"dim": 48, "seed": 5}
    found = spice_rs.run_schedule(
        quiet_lora(), data, tmp_path / "run", pool_size=128, select_per_window=13, interval=None, early_stop=0.3,
        progress=False, tensorboard=False, **options,
    )  # fmt: skip
    store = spice_rs.extract(
        quiet_lora(), data, tmp_path / "store", dtype="float32", progress=False, **options
    )
    static = spice_rs.select(store, pool_size=128, select_per_window=13, early_stop=0.3, seed=5)
    assert found.indices.tolist() == static.indices.tolist()
    np.testing.assert_allclose(found.gains, static.gains, rtol=1e-4)
    np.testing.assert_allclose(found.scores, static.scores, rtol=1e-3, atol=1e-5)
    assert not found.steps.any()
    assert len(found.step_losses) == 0


def test_samples_of_all_lengths_and_batches_give_one_step(tmp_path):
    """Microbatches add up to the step of one batch."""
    results = []
    for tokens in (20, 4000):
        model = quiet_lora(trained=True)
        out = tmp_path / str(tokens)
        found = spice_rs.run_schedule(
            model, make_data(30), out, interval=1, tokens_per_batch=tokens, dim=64, **OPTIONS
        )
        results.append((found, {name: each for name, each in model.named_parameters() if each.requires_grad}))
    (a, first), (b, second) = results
    assert a.indices.tolist() == b.indices.tolist()
    np.testing.assert_allclose(a.step_losses, b.step_losses, rtol=1e-5)
    for name, parameter in first.items():
        torch.testing.assert_close(parameter, second[name], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs, calls = [], []
    for checkpointing in (False, True):
        model, out = make_lora(make_model(), trained=True), tmp_path / str(checkpointing)  # with dropout
        block = model.base_model.model.model.layers[0].self_attn
        block.register_forward_hook(lambda module, *_: calls.append(module.training))
        found = spice_rs.run_schedule(
            model, make_data(30), out, interval=1, dim=64, gradient_checkpointing=checkpointing, **OPTIONS
        )
        runs.append((found.indices.tolist(), weight_fingerprint(model), calls.count(True)))
    assert runs[0][:2] == runs[1][:2]
    assert runs[1][2] == 3 * runs[0][2]  # a second forward in each of the second run's


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_microbatches(tmp_path, monkeypatch):
    from spice_rs.extraction.batching import TextTask

    whole = quiet_lora(trained=True)
    spice_rs.run_schedule(whole, make_data(30), tmp_path / "whole", interval=1, dim=64, **OPTIONS)
    losses, failed = TextTask.losses, []

    def short(self, samples, length, device):
        if len(samples) > 2:
            failed.append(len(samples))
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return losses(self, samples, length, device)

    monkeypatch.setattr(TextTask, "losses", short)
    model = quiet_lora(trained=True)
    spice_rs.run_schedule(model, make_data(30), tmp_path / "short", interval=1, dim=64, **OPTIONS)
    assert failed
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------- kills and disk


def folder_of(path):
    """Everything that two equal runs have in common: picks, weights, state but for seconds and offsets."""
    state = json.loads((path / "state/state.json").read_text())
    for name in ("metrics", "sha256"):
        del state[name]
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        del line["seconds"]
    files = sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())
    weights = [path / name for name in files if name.endswith(".safetensors")]
    return files, state, metrics, (path / "picks.jsonl").read_bytes(), [each.read_bytes() for each in weights]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_killed_run_ends_as_one_that_nothing_disturbed(tmp_path):
    kills = some(60)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, schedule_killer.__file__, str(tmp_path), str(kills), "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills // 2  # the machine may be too busy to kill it in time
    whole, killed = folder_of(tmp_path / "whole"), folder_of(tmp_path / "killed")
    assert killed == whole
    assert [name for name in whole[0] if not name.startswith("adapter/")] == [
        "metrics.jsonl",
        "picks.jsonl",
        "state/.lock",
        "state/picks.jsonl",
        "state/state.json",
        "state/step-3.safetensors",
    ]


@pytest.mark.slow
def test_an_interrupted_run_leaves_the_model_as_it_was_and_goes_on(tmp_path, monkeypatch):
    from spice_rs.schedule.training import ProxyTraining

    data, options = make_data(40), {"interval": 1, "dim": 64, **OPTIONS}
    whole = spice_rs.run_schedule(make_model(), data, tmp_path / "whole", **options)
    step, model = ProxyTraining.step, make_model()
    before, flags = weight_fingerprint(model), [each.requires_grad for each in model.parameters()]

    def interrupted(self, task, samples, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, task, samples, number)

    monkeypatch.setattr(ProxyTraining, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spice_rs.run_schedule(model, data, tmp_path / "run", **options)
    assert weight_fingerprint(model) == before
    assert [each.requires_grad for each in model.parameters()] == flags
    adapted = make_lora(make_model(), trained=True)
    before = weight_fingerprint(adapted)
    with pytest.raises(KeyboardInterrupt):
        spice_rs.run_schedule(adapted, data, tmp_path / "adapted", **options)
    assert weight_fingerprint(adapted) == before

    monkeypatch.setattr(ProxyTraining, "step", step)
    found = spice_rs.run_schedule(model, data, tmp_path / "run", **options)
    assert found.indices.tolist() == whole.indices.tolist()
    assert weight_fingerprint(found.model) == weight_fingerprint(whole.model)
    again = spice_rs.run_schedule(make_model(), data, tmp_path / "run", **options)  # nothing is left to do
    assert again.indices.tolist() == whole.indices.tolist()
    assert weight_fingerprint(again.model) == weight_fingerprint(whole.model)


def test_what_a_run_leaves_behind(proxy, tmp_path):
    records = make_records(30)
    out = tmp_path / "run"
    found = spice_rs.run_schedule(str(proxy), records, out, interval=2, dim=64, lora_rank=4, **OPTIONS)
    lines = [json.loads(line) for line in (out / "picks.jsonl").read_text("utf-8").splitlines()]
    numbers = [line.pop("spice") for line in lines]
    assert lines == [records[row] for row in found.indices]
    assert [each["index"] for each in numbers] == found.indices.tolist()
    assert [each["rank"] for each in numbers] == list(range(9))
    assert [each["window"] for each in numbers] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [each["step"] for each in numbers] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["window"]) for line in metrics] == [
        ("window", 1),
        ("window", 2),
        ("step", 2),
        ("window", 3),
        ("step", 3),
    ]
    assert [line["samples"] for line in metrics] == [12, 12, 6, 6, 3]
    np.testing.assert_array_equal(
        [line["loss"] for line in metrics if line["kind"] == "step"], found.step_losses
    )
    assert repr(found) == "Schedule(9 of 30 rows, 3 windows, 2 steps, loss {:.3g} → {:.3g})".format(
        *found.step_losses
    )

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(proxy), out / "adapter")
    ids = torch.tensor([[2, 3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, found.model.eval()(ids).logits)


def test_trainable_parts_that_are_no_adapter_are_trained_and_saved(tmp_path):
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("1.mlp" in name)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    spice_rs.run_schedule(model, make_data(24), tmp_path / "run", interval=1, dim=64, **OPTIONS)
    saved = load_file(tmp_path / "run/adapter/trained.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("1.mlp" not in name)
        if "1.mlp" in name:
            assert torch.equal(saved[name], parameter)
    assert len(saved) == 3


def test_a_folder_in_use_is_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "run/state").mkdir(parents=True)
    with open(tmp_path / "run/state/.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="found another process at work on this run"):
            spice_rs.run_schedule(make_model(), make_data(20), tmp_path / "run", **OPTIONS)
    spice_rs.run_schedule(make_model(), make_data(20), tmp_path / "run", **OPTIONS)


def test_the_metrics_go_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {**OPTIONS, "tensorboard": True}
    found = spice_rs.run_schedule(
        make_model(), make_data(30), tmp_path / "run", interval=1, dim=64, **options
    )
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    np.testing.assert_allclose(
        [each.value for each in events.Scalars("step/loss")], found.step_losses, rtol=1e-6
    )
    assert [each.step for each in events.Scalars("window/loss")] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_size": 0}, "pool_size: found 0, expected a whole number of at least 1"),
        ({"select_per_window": 13}, "select_per_window: found 13, expected a number from 1 to 12"),
        ({"interval": 1.5}, "interval: found 1.5, expected a whole number of at least 1 or None"),
        ({"warmup_steps": -1}, "warmup_steps: found -1"),
        ({"learning_rate": 0}, "learning_rate: found 0, expected a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: found nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: found -1.0"),
        ({"alpha": -1.0}, "alpha"),
        ({"early_stop": 1.5}, "early_stop"),
        ({"normalize": "odd"}, "normalize: found 'odd'"),
        ({"seed": -1}, "seed: found -1"),
        ({"seed": 1 << 63}, "seed: found 9223372036854775808"),
        ({"fisher": "odd"}, "fisher"),
        ({"lora_rank": 4}, "lora_rank was given for a model that has an adapter"),
        ({"tensorboard": True}, "tensorboard is wanted and not installed"),
    ],
)
def test_bad_arguments_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=message):
        spice_rs.run_schedule(
            make_lora(make_model()), make_data(20), tmp_path / "run", **{**OPTIONS, **options}
        )


def test_arguments_that_mean_nothing_here_are_refused(tmp_path):
    for name in ("dtype", "optimizer", "checkpoints", "checkpoint_weights"):
        with pytest.raises(TypeError, match=f"{name} is no argument of run_schedule"):
            spice_rs.run_schedule(make_model(), make_data(20), tmp_path / "run", **{name: None})
    with pytest.raises(TypeError, match="dimension is no argument"):
        spice_rs.run_schedule(make_model(), make_data(20), tmp_path / "run", dimension=3)


def test_training_that_diverges_is_said_and_not_kept(tmp_path):
    model = quiet_lora(trained=True)
    with torch.no_grad():
        next(each for each in model.parameters() if each.requires_grad).fill_(1e25)
    with pytest.raises(InvalidInputError):
        spice_rs.run_schedule(model, make_data(20), tmp_path / "run", interval=1, dim=64, **OPTIONS)


def test_a_record_that_has_the_key_of_the_picks_is_refused_at_once(proxy, tmp_path):
    records = [{**record, "spice": 1} for record in make_records(20)]
    with pytest.raises(InvalidInputError, match="found a key 'spice' in record 0"):
        spice_rs.run_schedule(str(proxy), records, tmp_path / "run", **OPTIONS)


def test_another_run_in_the_folder_is_refused_by_name(tmp_path):
    data, out = make_data(24), tmp_path / "run"
    options = {"interval": 1, "dim": 64, **OPTIONS}
    spice_rs.run_schedule(make_model(), data, out, **options)
    for change, name in (
        ({"interval": 2}, "interval: found 1, expected 2"),
        ({"learning_rate": 0.01}, "learning_rate: found 0.05, expected 0.01"),
        ({"dim": 32}, "projection"),
        ({"lora_rank": 8}, "lora"),
    ):
        with pytest.raises(StoreMismatchError, match=name):
            spice_rs.run_schedule(make_model(), data, out, **{**options, **change})
    with pytest.raises(StoreMismatchError, match="weights"):
        spice_rs.run_schedule(make_model(seed=1), data, out, **options)
    with pytest.raises(StoreMismatchError, match="dataset"):
        spice_rs.run_schedule(make_model(), make_data(24, seed=9), out, **options)
    spice_rs.run_schedule(make_model(), data, out, **options)


@pytest.mark.slow
def test_damage_is_found(tmp_path):
    data, out = make_data(24), tmp_path / "run"
    options = {"interval": 1, "dim": 64, **OPTIONS}
    spice_rs.run_schedule(make_model(), data, out, **options)
    for path in sorted((out / "state").glob("[!.]*")):
        whole = path.read_bytes()
        for place in np.linspace(0, len(whole) - 2, 4).astype(int):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(StoreError, match=path.name):
                spice_rs.run_schedule(make_model(), data, out, **options)
            path.write_bytes(whole[:place])
            with pytest.raises(StoreError, match=path.name):
                spice_rs.run_schedule(make_model(), data, out, **options)
        path.write_bytes(whole)
    (out / "state/state.json").rename(out / "state/aside")
    (out / "state/state.json").write_text('{"format": "spice-rs schedule", "version": 2}')
    with pytest.raises(StoreError, match="found version 2, expected 1"):
        spice_rs.run_schedule(make_model(), data, out, **options)
    (out / "state/aside").rename(out / "state/state.json")
    (out / "state/picks.jsonl").unlink()
    with pytest.raises(CorruptStoreError, match=r"picks.jsonl: found 0 bytes"):
        spice_rs.run_schedule(make_model(), data, out, **options)


# ------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_the_command_is_the_function(proxy, tmp_path, capsys):
    records = make_records(30)
    data = tmp_path / "pool.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {
        "pool_size": 12,
        "select_per_window": 3,
        "interval": 1,
        "dim": 64,
        "lora_rank": 4,
        "learning_rate": 0.05,
    }
    flags = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]
    command = ["run", "--model", proxy, "--data", data, "--out", tmp_path / "a", "--no-progress", *flags]
    assert run(*command) == 0
    assert "picks.jsonl has 9 lines" in capsys.readouterr().out
    found = spice_rs.run_schedule(str(proxy), records, tmp_path / "b", progress=False, **options)
    picks = [
        json.loads(line)["spice"]["index"] for line in (tmp_path / "a/picks.jsonl").read_text().splitlines()
    ]
    assert picks == found.indices.tolist()
    assert run(*command, "--checkpoints", proxy) == 2
    assert "--checkpoints: no such option" in capsys.readouterr().err
    assert run(*command, "--conflict-penalty", 0.3) == 2
    assert "--conflict-penalty: found 0.1, expected 0.3" in capsys.readouterr().err


def test_what_most_windows_had_to_warn_of_is_said_once(tmp_path):
    with pytest.warns(SpiceWarning) as caught:
        spice_rs.run_schedule(quiet_lora(), make_data(30), tmp_path / "run", interval=None, dim=64, conflict_penalty=1e-9,
                              **OPTIONS)  # fmt: skip
    texts = [str(each.message) for each in caught if each.category is SpiceWarning]
    assert sum("conflict_penalty=1e-09 changed none" in text for text in texts) == 1
    assert texts[-1].startswith("in 3 of 3 windows, as in the first of them: ")


@pytest.mark.parametrize("name", ["adapter", "metrics.jsonl", "picks.jsonl"])
def test_files_of_somebody_else_are_not_replaced(name, tmp_path):
    if name == "adapter":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidInputError, match=f"{name}: found what a run would replace"):
        spice_rs.run_schedule(make_model(), make_data(20), tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_kill_while_weights_are_saved_leaves_the_old_ones(tmp_path, monkeypatch):
    model, out = quiet_lora(trained=True), tmp_path / "run"
    data = make_data(24)
    spice_rs.run_schedule(model, data, out, dim=64, **OPTIONS)
    kept = (out / "adapter/adapter_model.safetensors").read_bytes()
    original = Path.rename

    def killed(self, target):
        if self.name == ".adapter-new":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        spice_rs.run_schedule(quiet_lora(trained=True), data, out, dim=64, **OPTIONS)
    whole = [path for path in out.iterdir() if path.name.startswith((".adapter", "adapter"))]
    assert {(path / "adapter_model.safetensors").read_bytes() for path in whole} == {kept}
    monkeypatch.undo()
    spice_rs.run_schedule(quiet_lora(trained=True), data, out, dim=64, **OPTIONS)
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == kept
    assert not any(path.name.startswith(".adapter") for path in out.iterdir())
