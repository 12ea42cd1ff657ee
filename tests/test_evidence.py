"""`benches/evidence`: upper layers above kept states are the whole model, and a matrix goes on where it stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft")
sys.path.append(str(Path(__file__).parents[1] / "benches" / "evidence"))

from peft import LoraConfig, get_peft_model

import evidence
from scenes import make_scene
from tiny import make_records, save_proxy
from training import MODULES, Trainer

SETTINGS = {
    "max_length": 32,
    "batch": 4,
    "micro_batch": 2,
    "learning_rate": 0.01,
    "autocast": False,
    "exact_rows": 0,
}
UPPER = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return [str(save_proxy(tmp_path_factory.mktemp("model"))), None]


def trainer(model, **changes):
    return Trainer({**SETTINGS, "model": model, **changes})


def losses(one, records):
    _, _, found = one.judge(one.base, {"all": records})
    return np.array(found["all"])


def test_upper_layers_above_kept_states_are_the_whole_model(model, tmp_path):
    records = make_records(12)
    whole, upper = trainer(model), trainer(model, upper_layers=UPPER)
    layers = len(whole.base.model.layers)
    upper.keep_states(records, tmp_path)
    assert np.allclose(losses(upper, records), losses(whole, records), atol=1e-5)
    below = upper.base.model.embed_tokens
    assert len(upper.base.model.layers) == UPPER < layers
    assert below.computed == 0  # all were read
    assert np.allclose(losses(upper, make_records(14)[12:]), losses(whole, make_records(14)[12:]), atol=1e-5)
    assert below.computed == 2  # and these the file has not


def test_kept_states_are_read_by_the_next_process(model, tmp_path):
    records = make_records(12)
    first = trainer(model, upper_layers=UPPER)
    first.keep_states(records, tmp_path)
    expected = losses(first, records)
    (file,) = tmp_path.glob("*.f32")
    states = np.fromfile(file, np.float32)
    second = trainer(model, upper_layers=UPPER)
    second.keep_states(records, tmp_path)
    doubled = np.memmap(file, np.float32, "r+")
    doubled[:] = 2 * states  # what is read is what lies there
    doubled.flush()
    assert not np.allclose(losses(second, records), expected)
    doubled[:] = states
    doubled.flush()
    assert np.allclose(losses(second, records), expected)


def test_training_upper_layers_is_training_the_whole_model_with_adapters_there_alone(model, tmp_path):
    records, held_out = make_records(20)[:12], make_records(20)[12:]
    upper = trainer(model, upper_layers=UPPER)
    upper.keep_states(make_records(20), tmp_path)
    found = upper.train(records, {"all": held_out}, seed=3, length={"steps": 2})

    class Whole(Trainer):
        def adapted(self, seed):
            torch.manual_seed(seed)
            layers = len(self.base.model.layers)
            config = LoraConfig(
                r=16,
                lora_alpha=32,
                lora_dropout=0.0,
                target_modules=list(MODULES),
                layers_to_transform=list(range(layers - UPPER, layers)),
                task_type="CAUSAL_LM",
            )
            return get_peft_model(self.base, config)

    whole = Whole({**SETTINGS, "model": model})
    expected = whole.train(records, {"all": held_out}, seed=3, length={"steps": 2})
    untrained = whole.train(records, {"all": held_out}, seed=3, length={"steps": 0})
    assert np.allclose(found.losses["all"], expected.losses["all"], atol=1e-4)
    assert not np.allclose(found.losses["all"], untrained.losses["all"], atol=1e-2)


@pytest.mark.parametrize("rows", [3, 7, 100])
def test_equal_steps_and_epochs_show_each_record_as_often(model, rows):
    batches = trainer(model).batches(rows, 0, {"steps": 4, "epochs": 2})
    assert len(batches) == 4
    assert np.array_equal(np.bincount(np.concatenate(batches)), np.full(rows, 2))


CONFIG = {
    **SETTINGS,
    "upper_layers": UPPER,
    "pool_rows": 40,
    "most_characters": 900,
    "k": 6,
    "seed": 0,
    "seeds": 2,
    "held_out_rows": 5,
    "trusted_rows": {"a": 8, "b": 8},
    "extraction": {"lora_rank": 4, "dim": 64, "max_length": 32},
    "scenes": ["rare", "duplicates", "noisy"],
    "rare": {"a": 0.2},
    "unseen": "a",
    "targets": {name: {"a": 4} for name in ("rare", "duplicates", "noisy")},
    "trained": {"noisy": ["random"], "duplicates": []},
    "lengths": {"steps": {"steps": 2, "epochs": 1}},
    "methods": {
        "random": {"kind": "random"},
        "target": {"kind": "target", "equal_tokens": True},
        "cosine": {"kind": "less", "equal_tokens": True},
        "unit": {"normalize": "unit", "shares": True, "equal_tokens": True, "seeds": 1},
        "less": {"kind": "less", "proxy": "warm", "seeds": 1, "scenes": ["duplicates"]},
        "later": {"of_tomorrow": 1},
    },
}


def write_pool(folder):
    records = [{**each, "source": "ab"[row % 2]} for row, each in enumerate(make_records(200))]
    (folder / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return records


def test_scenes_share_no_record_with_those_that_judge(tmp_path):
    records = [{**each, "row": row} for row, each in enumerate(write_pool(tmp_path))]
    for name in ("rare", "duplicates", "noisy", "unseen", "mixture"):
        scene = make_scene(name, records, CONFIG, seed=1)
        rows = {each["row"] for each in scene.pool}
        judges = {each["row"] for found in scene.held_out.values() for each in found}
        trusted = {each["row"] for found in scene.trusted.values() for each in found}
        assert len(rows | judges | trusted) == len(rows) + len(judges) + len(trusted), name
        damaged = [each for each in scene.pool if each.get("damage")]
        assert len(damaged) == (8 if name == "noisy" else 0)
    rare = make_scene("rare", records, CONFIG)
    copies = make_scene("duplicates", records, CONFIG)
    assert sum(each["source"] == "a" for each in copies.pool) == 3 * sum(
        each["source"] == "a" for each in rare.pool
    )


@pytest.mark.slow
def test_a_matrix_goes_on_where_it_stopped(model, tmp_path, monkeypatch, capsys):
    write_pool(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model": model}))
    work = tmp_path / "work"
    command = [
        "evidence.py",
        str(tmp_path / "config.json"),
        "--work",
        str(work),
        "--pool",
        str(tmp_path / "pool.jsonl"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    evidence.main()
    text = capsys.readouterr().out
    assert "missing: later: spice_rs.select has no of_tomorrow" in text
    assert "damaged %" in text
    assert "difference from random rows" in text
    runs = {file.name: file.stat().st_mtime_ns for file in (work / "runs").glob("*.json")}
    # rare: untrained, unit once, three others twice; noisy: untrained, and random twice; duplicates: untrained.
    assert len(runs) == 8 + 3 + 1
    picks = {file.name: file.stat().st_mtime_ns for file in (work / "picks").glob("*.json")}
    assert len(picks) == 3 * 7 + 1
    gone = work / "runs" / "rare_target_steps_1.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    evidence.main()
    again = json.loads(gone.read_text())
    assert again["nll"] == pytest.approx(before["nll"], abs=1e-6)
    after = {file.name: file.stat().st_mtime_ns for file in (work / "runs").glob("*.json")}
    assert {name for name in runs if after[name] != runs[name]} == {gone.name}
    assert {file.name: file.stat().st_mtime_ns for file in (work / "picks").glob("*.json")} == picks
    rows = [
        json.loads(line)
        for line in (work / "picks" / "duplicates_target_picks_0.json").read_text().splitlines()
    ]
    assert rows[0]["unique"] == len(rows[0]["picks"])  # the log det takes no copies


def test_picks_of_another_pool_are_refused(model, tmp_path, monkeypatch):
    write_pool(tmp_path)
    methods = {"random": {"kind": "random", "seeds": 1, "scenes": ["rare"]}}
    config = {**CONFIG, "model": model, "methods": methods, "scenes": ["rare"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["evidence.py", "config.json", "--work", "work", "--pool", "pool.jsonl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*command, "--picks-only"])
    evidence.main()
    (tmp_path / "config.json").write_text(json.dumps({**config, "seed": 1}))
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="picks of another pool"):
        evidence.main()
