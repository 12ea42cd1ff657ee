"""Modules that multiply by matrices of their own, against autograd; what is used in another way is missed or an error."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from reference import assert_rows_equal, rows_of, run
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.tracking import track

HIDDEN, EXPERTS = 6, 4


class Router(torch.nn.Module):
    """As in transformers: tokens side by side, logits in another dtype, a choice, and a tuple for all of it."""

    def __init__(self, dtype=torch.float32, bias=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.randn(EXPERTS, dtype=dtype)) if bias else None
        self.register_buffer("shift", torch.zeros(EXPERTS))

    def forward(self, x):
        x = x.reshape(-1, HIDDEN)
        bias = None if self.bias is None else self.bias.to(torch.float64)
        logits = functional.linear(x.type(torch.float64), self.weight.type(torch.float64), bias)
        scores, chosen = torch.topk(logits.softmax(-1) + self.shift, 2)
        return logits, scores.to(x.dtype), chosen


class Mixture(torch.nn.Module):
    def __init__(self, router):
        super().__init__()
        self.router, self.first = router, torch.nn.Linear(HIDDEN, HIDDEN)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(EXPERTS))

    def forward(self, x):
        x = self.first(x).tanh()
        _, scores, chosen = self.router(x)
        every = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, E, hidden)
        picked = every.gather(1, chosen[..., None].expand(-1, -1, HIDDEN))
        return (picked * scores[..., None]).sum(dim=1)


def squares(model, batch):
    return model(batch).square().sum(dim=1)


def items(count=4):
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(count, HIDDEN, generator=generator))


def check(model, data, out, **options):
    store = run(model, data, out, loss_fn=squares, tokens_per_batch=3, **options)
    names = [entry["name"] for entry in store.info()["layout"]]
    named, rows = dict(model.named_parameters()), []
    for each in data:
        gradients = torch.autograd.grad(squares(model, each[None]).sum(), [named[name] for name in names])
        rows.append(torch.cat([gradient.flatten().float() for gradient in gradients]))
    assert_rows_equal(rows_of(store), torch.stack(rows).numpy(), 1e-5)
    return names


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_routers_are_exact_whatever_they_cast_and_give(dtype, bias, tmp_path):
    torch.manual_seed(0)
    model = Mixture(Router(dtype, bias)).to(dtype)
    model.train()
    names = check(model, [each.to(dtype) for each in items()], tmp_path / "s")
    assert names == [name for name, _ in model.named_parameters()]
    assert "forward" not in vars(model.router)
    assert model.router.training


def test_linear_layers_that_give_something_else_are_exact(tmp_path):
    class Scores(torch.nn.Linear):
        def forward(self, x):
            logits = super().forward(x.reshape(-1, HIDDEN))
            return (logits, *torch.topk(logits.sigmoid(), 2))

    torch.manual_seed(0)
    names = check(Mixture(Scores(HIDDEN, EXPERTS)), items(), tmp_path / "s")
    assert {"router.weight", "router.bias"} <= set(names)


class Other(torch.nn.Module):
    """A matrix in a product, and once more where `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.weight = torch.nn.Parameter(torch.randn(HIDDEN, HIDDEN))
        self.bias = torch.nn.Parameter(torch.randn(HIDDEN))

    def forward(self, x):
        if self.how == "penalty":
            return functional.linear(x, self.weight, self.bias) + self.weight.square().sum()
        if self.how == "bias outside":
            return functional.linear(x, self.weight) * self.bias
        if self.how == "large inputs" and x.abs().max() > 100:
            return functional.linear(x, self.weight, self.bias) * self.weight.sum()
        if self.how == "twice":
            x = functional.linear(x, self.weight, self.bias).tanh()
        return functional.linear(x, self.weight, self.bias)


def other(how):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(HIDDEN, HIDDEN), Other(how))


@pytest.mark.parametrize(
    ("how", "missed"),
    [
        ("penalty", ["1.bias", "1.weight"]),
        ("bias outside", ["1.bias"]),
        ("twice", []),
        ("large inputs", []),
    ],
)
def test_only_what_products_alone_see_is_tracked(how, missed, tmp_path):
    model = other(how)
    assert track(model, None).missed == missed
    names = check(model, items(), tmp_path / "s", min_coverage=0)
    assert set(names) == {name for name, _ in model.named_parameters()} - set(missed)


def test_a_use_that_shows_in_the_data_alone_is_an_error_by_name(tmp_path):
    with pytest.raises(InvalidInputError, match="layer '1' uses its weight outside of linear layers"):
        run(other("large inputs"), [1e4 * each for each in items()], tmp_path / "s", loss_fn=squares)


def test_a_projection_that_never_runs_as_a_layer_is_missed():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.MultiheadAttention(8, 2))
    assert track(model, None).missed == [
        "1.in_proj_bias",
        "1.in_proj_weight",
        "1.out_proj.bias",
        "1.out_proj.weight",
    ]


def test_trying_a_module_changes_nothing():
    class Counting(Router):
        def forward(self, x):
            self.shift += 1
            return super().forward(x * torch.rand_like(x))

    model = Mixture(Counting())
    before = torch.random.get_rng_state()
    assert track(model, None).missed == []
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.router.shift.any()
