"""What is tried out before the first row: gradients that are not autograd's, and rows that depend on their batch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import spice_rs
from models import VOCABULARY, make_lora, make_model
from reference import assert_rows_equal, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.extraction import preflight
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.hooks import GradientCapture
from spice_rs.extraction.own_data import OwnSample
from spice_rs.extraction.preflight import _twice, tolerance_of, worth_pairing, worth_trying
from spice_rs.extraction.projection import NoProjection

CPU = torch.device("cpu")


class Text(torch.nn.Module):
    """Embeddings, whatever `middle` makes of them, a head."""

    def __init__(self, middle=None, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(VOCABULARY, 8)
        self.middle = middle or torch.nn.Linear(8, 8)
        self.last = head or torch.nn.Linear(8, VOCABULARY)

    def forward(self, input_ids, attention_mask=None):
        return self.last(self.middle(self.words(input_ids)).tanh())


def doubled(model):
    """A layer that is no more what its class says, as a library may leave it behind."""
    layer = model.model.layers[0].mlp.up_proj
    layer.forward = lambda x: 2 * torch.nn.functional.linear(x, layer.weight)
    return model


def test_a_layer_that_does_something_else_is_an_error_by_name(tmp_path):
    with pytest.raises(
        InvalidInputError,
        match=r"layer 'model.layers.0.mlp.up_proj' \(Linear\): found a gradient that is off by 5.0e-01 of its length in row"
        r" \d+, expected that of plain autograd, within 1e-03.*doctor.*target_modules='!up_proj'",
    ):
        run(doubled(make_model()), make_data(6), tmp_path / "s")
    store = run(
        doubled(make_model()), make_data(6), tmp_path / "t", target_modules="!up_proj", min_coverage=0.5
    )
    assert len(store) == 6


def test_one_of_many_that_others_have_changed_is_a_kind_of_its_own(tmp_path):
    model = make_model()
    layer = model.model.layers[1].mlp.up_proj  # the one of the first block is right
    layer.forward = lambda x: 2 * torch.nn.functional.linear(x, layer.weight)
    with pytest.raises(InvalidInputError, match=r"layer 'model.layers.1.mlp.up_proj' \(Linear\)"):
        run(model, make_data(6), tmp_path / "s")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_found_in_any_precision(dtype, tmp_path):
    with pytest.raises(InvalidInputError, match=r"mlp.up_proj.*within (1e-05|1e-01)"):
        run(doubled(make_model()).to(dtype), make_data(6), tmp_path / "s")


def test_what_a_norm_is_told_behind_its_forward_is_found(tmp_path):
    class Norm(torch.nn.RMSNorm):
        gate = 1.0

        def forward(self, x):
            return super().forward(x) * self.gate

    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up = Norm(8), torch.nn.Linear(8, 8)

        def forward(self, x):
            self.norm.gate = self.up(x).sigmoid()
            return self.norm(x)

    with pytest.raises(InvalidInputError, match=r"layer 'middle.norm' \(Norm\).*'!norm'"):
        run(Text(Gated()), make_data(6), tmp_path / "s", norms=True)
    assert not (tmp_path / "s").exists()  # so that the way out leads to the same place
    assert len(run(Text(Gated()), make_data(6), tmp_path / "s", norms=True, target_modules="!norm")) == 6


def test_hooks_of_others_change_no_row(tmp_path):
    model, data = make_model(), make_data(6)
    norm = model.model.layers[0].input_layernorm
    norm.register_forward_hook(lambda module, args, output: 3 * output)
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    found = spice_rs.doctor(model, data, norms=True, samples=4)
    assert found.passed, str(found)
    assert len(run(model, data, tmp_path / "s", norms=True)) == 6


class Mean(torch.nn.Module):
    """Adds the mean of all positions before, or of all there are, padding included."""

    def __init__(self, over):
        super().__init__()
        self.over, self.linear = over, torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x + x.mean(dim=self.over, keepdim=True))


@pytest.mark.parametrize("over", [1, (0, 1), 0])
def test_rows_that_depend_on_their_batch_are_refused_with_the_way_out(over, tmp_path):
    model, data = Text(Mean(over)), make_data(8)
    with pytest.raises(
        InvalidInputError,
        match=r"row \d+: found a gradient that is off by .* of its length in one batch with row \d+, padded from \d+ to \d+"
        r" tokens.*does not heed attention_mask.*tokens_per_batch=1",
    ):
        run(model, data, tmp_path / "s")
    one, again = (
        run(model, data[:end], tmp_path / str(end), tokens_per_batch=1) for end in (8, 3)
    )  # each as if it were alone
    torch.testing.assert_close(rows_of(one)[:3], rows_of(again))
    found = spice_rs.doctor(model, data, tokens_per_batch=1)
    assert found.passed, str(found)


def test_samples_of_one_length_that_mix_are_found_too(tmp_path):
    data = [{"input_ids": list(range(n, n + 9)), "labels": list(range(n, n + 9))} for n in range(5)]
    with pytest.raises(InvalidInputError, match=r"in one batch with row \d, expected the same as alone"):
        run(Text(Mean(0)), data, tmp_path / "s")
    # Never padded, and so right.
    assert len(run(Text(Mean(1)), data, tmp_path / "t")) == 5


def test_a_loss_that_divides_by_the_batch_is_refused(tmp_path):
    def own(model, batch):
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y, reduction="none") / len(y)

    torch.manual_seed(0)
    items = [(torch.randn(6), 1) for _ in range(5)]
    with pytest.raises(InvalidInputError, match="the model or loss_fn mixes samples"):
        run(torch.nn.Linear(6, 3), items, tmp_path / "s", loss_fn=own)
    assert len(run(torch.nn.Linear(6, 3), items, tmp_path / "t", loss_fn=own, tokens_per_batch=1)) == 5

    def text(logits, labels):
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
        )
        return losses.sum(dim=1) / (labels != -100).sum()

    with pytest.raises(InvalidInputError, match="the model or loss_fn mixes samples"):
        run(make_model(), make_data(6), tmp_path / "u", loss_fn=text)


def test_a_loss_that_counts_padding_is_said(tmp_path):
    def counting(logits, labels):
        return logits.square().mean(dim=2).sum(dim=1)

    with pytest.warns(SpiceWarning, match="loss_fn counts padded positions, whose labels are -100"):
        run(make_model(), make_data(6), tmp_path / "s", loss_fn=counting)


@pytest.mark.parametrize("kind", ["llama", "lora", "fresh", "mixtral", "checkpointed"])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_right_passes_without_a_word(kind, autocast, tmp_path):
    model = make_model("mixtral" if kind == "mixtral" else "llama")
    model = make_lora(model, trained=kind == "lora") if kind in ("lora", "fresh") else model
    options = {"norms": True, "embeddings": True} if kind in ("llama", "mixtral") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpiceWarning)
        store = run(
            model, make_data(6), tmp_path / "s",
            autocast=autocast, gradient_checkpointing=kind == "checkpointed", **options,
        )  # fmt: skip
    assert len(store) == 6
    assert all(each.grad is None and each.requires_grad == (kind not in ("lora", "fresh") or "lora_" in name)
               for name, each in model.named_parameters())  # fmt: skip


def test_nothing_is_tried_where_nothing_is_missing(tmp_path, monkeypatch):
    tried = []
    original = GradientRun.try_out

    def noted(run, samples):
        tried.append(len(samples))
        original(run, samples)

    monkeypatch.setattr(GradientRun, "try_out", noted)
    for count in (4, 6, 6):
        run(make_model(), make_data(6), tmp_path / "s", limit=count)
    assert tried == [4, 2]


def test_gradients_are_tried_at_the_first_checkpoint(tmp_path, monkeypatch):
    model = make_model()
    first, second = ({n: p + shift for n, p in model.state_dict().items()} for shift in (0.25, 0.5))
    seen = []
    original = preflight.Preflight.check_gradients

    def noted(self, task, samples):
        seen.append(float(task.network.model.norm.weight[0]))
        original(self, task, samples)

    monkeypatch.setattr(preflight.Preflight, "check_gradients", noted)
    from safetensors.torch import save_file

    for name, state in (("first", first), ("second", second)):
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / f"{name}.safetensors")
    places = [str(tmp_path / f"{name}.safetensors") for name in ("first", "second")]
    run(model, make_data(5), tmp_path / "s", checkpoints=places, norms=True)
    assert seen == [1.25]


UNTRIED = "could not be held against plain autograd"
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


def untried(call):
    """What is said of rows that were not tried out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if UNTRIED in str(each.message)]


@pytest.mark.slow
@pytest.mark.parametrize("error", [*NO_MEMORY, NotImplementedError("no gradient by packed weights")])
@pytest.mark.parametrize("where", ["the strays", "the rows", "autograd", "the batch"])
def test_what_cannot_be_tried_out_is_said_once(where, error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    if isinstance(error, NotImplementedError) and where != "autograd":
        pytest.skip("is an error of the run")
    owner, name = {
        "the strays": (GradientRun, "_look_for_strays"),
        "the rows": (preflight.Preflight, "_rows"),
        "autograd": (preflight, "plain_gradients"),
        "the batch": (preflight.Preflight, "_mixing"),
    }[where]
    assert untried(lambda: run(make_model(), make_data(6), tmp_path / "well")) == []
    monkeypatch.setattr(owner, name, fail)
    (said,) = untried(lambda: run(make_model(), make_data(6), tmp_path / "s"))
    assert f"autograd: {type(error).__name__}: {error}; run `spice-rs doctor`" in said
    found, expected = (spice_rs.GradientStore(tmp_path / name) for name in ("s", "well"))
    assert_rows_equal(rows_of(found), rows_of(expected))


def test_batches_are_tried_where_autograd_gives_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("packed")

    monkeypatch.setattr(preflight, "plain_gradients", fail)
    with pytest.raises(InvalidInputError, match="the model mixes samples"):
        run(Text(Mean(0)), make_data(6), tmp_path / "s")


def test_a_loss_that_takes_no_single_sample_is_not_tried_without_a_word(tmp_path):
    data = [{"x": torch.full((4,), float(i))} for i in range(6)]

    def loss(model, batch):
        if len(batch["x"]) == 1:
            raise ValueError("one alone")
        return model(batch["x"])[:, 0]

    def squeezed(model, batch):
        return model(batch["x"]).squeeze()

    for fn, says in ((loss, "ValueError: one alone"), (squeezed, r"shape () for one sample alone")):
        (said,) = untried(
            lambda fn=fn: spice_rs.extract(
                torch.nn.Linear(4, 1), data, tmp_path / fn.__name__, loss_fn=fn, dim=8, progress=False
            )
        )
        assert says in said


@pytest.mark.parametrize("most", [1, 1500])
def test_few_coordinates_are_compared_at_a_time(most, tmp_path, monkeypatch):
    seen = []
    original = GradientCapture.batch

    def noted(self, *shape):
        if isinstance(self.projection, NoProjection):  # which the run itself does not use
            seen.append((len(self.projection.layout), self.projection.dim))
        return original(self, *shape)

    monkeypatch.setattr(GradientCapture, "batch", noted)
    monkeypatch.setattr(preflight, "MOST", most)
    run(make_model(), make_data(6), tmp_path / "s", projection="sparse", dim=64)
    assert len(seen) > 3
    assert all(size <= most or layers == 1 for layers, size in seen)
    with pytest.raises(InvalidInputError, match=r"layer 'model.layers.0.mlp.up_proj'.*off by 5.0e-01"):
        run(doubled(make_model()), make_data(6), tmp_path / "t")


def test_what_is_off_for_one_sample_alone_is_no_fault():
    looked = []

    def look(thing):
        looked.append(thing)
        return thing if thing < 0 else None

    assert _twice([-1, 2, 3], look) is None
    assert _twice([-1, 2, -3], look) == (-1, -1)
    assert _twice([-1], look) == (-1, -1)
    assert _twice([], look) is None
    looked.clear()
    assert _twice([1, -2, -3], look) is None
    assert looked == [1]


class Sized:
    def __init__(self, index, length, num_tokens=9):
        self.index, self.length, self.num_tokens = index, length, num_tokens

    def __repr__(self):
        return str(self.length)


def test_samples_to_try_are_short_but_not_empty():
    def lengths(*values):
        return [Sized(index, length) for index, length in enumerate(values)]

    assert str(worth_trying(lengths(900, 400, 30, 20, 5, 2))) == "[20, 30, 400]"
    assert str(worth_trying(lengths(9, 8, 5, 2))) == "[8, 9]"
    assert str(worth_trying([Sized(0, 30, 2), Sized(1, 20, 1)])) == "[30]"
    assert worth_trying([OwnSample(0), OwnSample(1)]) == [OwnSample(0), OwnSample(1)]
    a = lengths(900, 400, 30, 25, 20, 5)
    assert worth_pairing([[each] for each in a]) == []
    # 900 tokens are more than a batch of the run has.
    assert str(worth_pairing([a[:1], a[1:]])) == "[(20, 30), (25, 400), (30, 400)]"
    assert str(worth_pairing([a[:1], a[1:2], a[2:]])) == "[(20, 30), (25, 30), (25, 30)]"
    same = lengths(7, 7, 7, 6)
    assert str(worth_pairing([same[:3], same[3:]])) == "[(7, 7)]"


def test_tolerances_go_by_the_coarsest_numbers():
    model = make_model()
    assert tolerance_of(model, CPU, None) == 1e-3
    assert tolerance_of(model, CPU, True) == 0.1
    model.lm_head.to(torch.bfloat16)
    assert tolerance_of(model, CPU, None) == 0.1
    assert tolerance_of(make_model().double(), CPU, None) == 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert tolerance_of(make_model(), CPU, None) == 0.1
        assert tolerance_of(make_model(), CPU, False) == 1e-3
    mixture = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    assert tolerance_of(mixture, CPU, None) == 1e-3
    assert tolerance_of(mixture, CPU, True) == 0.3  # tokens may go to another expert
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert tolerance_of(make_model(), CPU, None) == 0.1
    finally:
        torch.set_float32_matmul_precision(before)


def test_routed_experts_can_be_told_apart_one_sample_at_a_time(tmp_path):
    class Routed(torch.nn.Module):
        """Each expert sees its own tokens alone."""

        def __init__(self):
            super().__init__()
            self.gate = torch.nn.Linear(8, 3)
            self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            flat = x.flatten(0, -2)
            scores, chosen = self.gate(flat).softmax(-1).max(dim=-1)
            result = torch.zeros_like(flat)
            for number, expert in enumerate(self.experts):
                here = chosen == number
                result[here] = expert(flat[here]) * scores[here, None]
            return result.view(x.shape)

    model, data = Text(Routed()), make_data(5)
    with pytest.raises(InvalidInputError, match=r"'middle.experts.\d' sees a tensor .*tokens_per_batch=1"):
        run(model, data, tmp_path / "s")
    store = run(model, data, tmp_path / "t", tokens_per_batch=1)
    names = [entry["name"] for entry in store.info()["layout"]]
    assert_rows_equal(rows_of(store), plain_rows(model, data, names))


def plain_rows(model, data, names):
    rows = []
    for item in data:
        ids = torch.tensor([item["input_ids"]])
        loss = torch.nn.functional.cross_entropy(
            model(ids)[0, :-1], torch.tensor(item["labels"][1:]), reduction="sum"
        )
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        rows.append(torch.cat([each.flatten() for each in gradients]).numpy())
    return np.stack(rows)


def test_cpm_ant_does_not_heed_its_mask(tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "CpmAntForCausalLM"):
        pytest.skip("this transformers has no CPM-Ant")
    torch.manual_seed(0)
    config = transformers.CpmAntConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=2, dim_head=8, dim_ff=24, num_hidden_layers=1,
        prompt_types=4, prompt_length=3, segment_types=8,
    )  # fmt: skip
    model, data = transformers.CpmAntForCausalLM(config), make_data(6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    options = {"min_coverage": 0.5}
    with pytest.raises(InvalidInputError, match="does not heed attention_mask.*tokens_per_batch=1"):
        run(model, data, tmp_path / "s", **options)
    assert len(run(model, data, tmp_path / "s", tokens_per_batch=1, **options)) == 6
    with pytest.raises(InvalidInputError, match="does not heed attention_mask"):
        batch = {
            name: torch.ones(4, 9, dtype=torch.int64) for name in ("input_ids", "labels", "attention_mask")
        }
        batch["attention_mask"][0, 4:] = 0
        batch["labels"][0, 4:] = -100
        spice_rs.OnlineSelector(model, dim=64, **options).choose(batch)
