"""Any torch module whose loss is a sum over samples: an MLP on tabular data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import spice_rs
from models import make_model
from reference import assert_rows_equal, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError

SAMPLES = 40


def make_mlp(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(7, 16),
        torch.nn.LayerNorm(16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(16, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 3),
    )


def make_table(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(SAMPLES, 7, generator=generator), torch.randint(0, 3, (SAMPLES,), generator=generator)
    )


def cross_entropy(model, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")


def autograd(model, table, names, loss_fn=cross_entropy):
    """One backward per sample."""
    named, rows, losses = dict(model.named_parameters()), [], []
    model.eval()
    for x, y in table:
        loss = loss_fn(model, (x[None], y[None])).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [named[n] for n in names])]))
        losses.append(loss.item())
    return torch.stack(rows).double().numpy(), np.array(losses)


@pytest.mark.parametrize("double", [False, True])
def test_rows_of_an_mlp_are_its_gradients(double, tmp_path):
    model, table = make_mlp(), make_table()
    if double:
        model, table = model.double(), TensorDataset(table.tensors[0].double(), table.tensors[1])
    model.train()
    store = run(model, table, tmp_path / "s", loss_fn=cross_entropy, norms=True, tokens_per_batch=16)
    assert model.training
    names = [entry["name"] for entry in store.info()["layout"]]
    assert names == [name for name, _ in model.named_parameters()]
    expected, losses = autograd(model, table, names)
    assert_rows_equal(rows_of(store), expected, 1e-6 if double else 1e-5)
    np.testing.assert_allclose(store.loss[np.argsort(store.index)], losses, rtol=1e-5)
    assert set(store.num_tokens) == {1}
    assert store.info()["tracked"]["coverage"] == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_from_own_data_to_picks(tmp_path):
    store = spice_rs.extract(
        make_mlp(), make_table(), tmp_path / "s", loss_fn=cross_entropy, dim=64, progress=False
    )
    assert (len(store), store.dim) == (SAMPLES, 64)
    assert len(spice_rs.select(store, 5)) == 5


def test_samples_may_be_tuples_or_dicts_of_arrays_and_numbers(tmp_path):
    def by_name(model, batch):
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    model, table = make_mlp(), make_table()
    tuples = run(model, list(table), tmp_path / "a", loss_fn=cross_entropy)
    dicts = [{"x": x.numpy(), "y": int(y)} for x, y in table]
    np.testing.assert_array_equal(
        rows_of(run(model, dicts, tmp_path / "b", loss_fn=by_name)), rows_of(tuples)
    )


def test_fields_may_have_the_names_of_records(tmp_path):
    def loss(net, batch):
        return torch.nn.functional.cross_entropy(net(batch["input"]), batch["labels"], reduction="none")

    def by_ids(model, batch):
        logits = model(batch["input_ids"].float() * batch["attention_mask"])
        return torch.nn.functional.cross_entropy(logits, batch["labels"][:, 0], reduction="none")

    model, table = make_mlp(), make_table()
    expected = rows_of(run(model, table, tmp_path / "a", loss_fn=cross_entropy))
    dicts = [{"input": x, "labels": y} for x, y in table]
    np.testing.assert_array_equal(rows_of(run(model, dicts, tmp_path / "b", loss_fn=loss)), expected)
    ones = torch.ones(7)
    tokens = [{"input_ids": x, "attention_mask": ones, "labels": y.expand(7)} for x, y in table]
    np.testing.assert_array_equal(rows_of(run(model, tokens, tmp_path / "c", loss_fn=by_ids)), expected)


def test_records_of_text_stay_records(tmp_path):
    def loss(outputs, labels):
        assert outputs.shape[:2] == labels.shape
        return outputs.square().sum(dim=(1, 2))

    data = [{**item, "attention_mask": [1] * len(item["labels"])} for item in make_data(3)]
    tensors = [{name: torch.tensor(value) for name, value in item.items()} for item in data]
    rows = [rows_of(run(make_model(), each, tmp_path / "s", loss_fn=loss)) for each in (data, tensors)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    "bad",
    [
        {"input_ids": None, "labels": None},
        {"input_ids": torch.arange(3), "labels": torch.arange(2)},
        {"input_ids": [[1, 2], [3]], "labels": [1, 2]},
        {"text": None},
        {"messages": ()},
    ],
    ids=str,
)
def test_a_bad_first_record_does_not_make_the_others_samples(bad, tmp_path):
    def loss(logits, labels):
        return logits.square().sum(dim=(1, 2))

    with pytest.warns(SpiceWarning, match="1 of 4 records"):
        store = run(make_model(), [bad, *make_data(3)], tmp_path / "s", loss_fn=loss, skip_bad=True)
    assert sorted(store.index) == [1, 2, 3]


def test_a_stopped_run_resumes_and_other_data_or_losses_do_not_join(tmp_path):
    def halved(model, batch):
        return cross_entropy(model, batch) / 2

    model, table = make_mlp(), make_table()
    run(model, table, tmp_path / "s", loss_fn=cross_entropy, limit=11)
    store = run(model, table, tmp_path / "s", loss_fn=cross_entropy)
    assert sorted(store.index) == list(range(SAMPLES))
    for other in (
        {"data": make_table(1), "loss_fn": cross_entropy},
        {"data": table, "loss_fn": halved},
        {"data": table, "loss_fn": cross_entropy, "model": make_mlp(1)},
    ):
        with pytest.raises(StoreMismatchError):
            run(**{"model": model, "out": tmp_path / "s", **other})


def test_a_loss_that_is_reduced_is_refused(tmp_path):
    def mean(model, batch):
        return cross_entropy(model, batch).mean()

    with pytest.raises(InvalidInputError, match="one loss per sample, not reduced"):
        run(make_mlp(), make_table(), tmp_path / "s", loss_fn=mean)


def test_samples_that_are_no_numbers_are_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"data\[0\]\[0\]: found object"):
        run(make_mlp(), [(object(), 1)], tmp_path / "s", loss_fn=cross_entropy)


def test_layers_that_cannot_be_told_apart_lower_the_coverage(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 7)), torch.nn.Conv1d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(20, 3)
    )
    with pytest.raises(InvalidInputError, match=r"cover 79.7% .*\(1.bias, 1.weight\).*min_coverage"):
        run(model, make_table(), tmp_path / "s", loss_fn=cross_entropy)
    with pytest.warns(spice_rs.SpiceWarning, match="cover 79.7%"):
        store = run(model, make_table(), tmp_path / "s", loss_fn=cross_entropy, min_coverage=0.5)
    expected, _ = autograd(model, make_table(), ["3.weight", "3.bias"])
    assert_rows_equal(rows_of(store), expected, 1e-5)


def test_modules_with_samples_in_the_second_place_are_an_error_by_name(tmp_path):
    class SequenceFirst(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(x.transpose(0, 1)).sum(dim=(0, 2))

    # As many samples as places, so that the batch alone would not show which is which.
    with pytest.raises(InvalidInputError, match=r"layer 'inner' sees a tensor of shape \(4, 1, 3\)"):
        run(
            SequenceFirst(),
            list(torch.randn(4, 4, 3)),
            tmp_path / "s",
            loss_fn=per_sample,
            tokens_per_batch=4,
        )


def per_sample(model, batch):
    return model(batch)


def test_samples_that_make_no_batch_are_named(tmp_path):
    data = [torch.randn(7), torch.randn(6)]
    with pytest.raises(InvalidInputError, match=r"data\[0\] and 1 others: found samples that make no batch"):
        run(torch.nn.Linear(7, 2), data, tmp_path / "s", loss_fn=per_sample)


def test_samples_are_recognised_whatever_their_keys_are_and_looked_at_once(tmp_path):
    class Counted(list):
        looks = 0

        def __getitem__(self, place):
            self.looks += 1
            return super().__getitem__(place)

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    keyed = Counted({0: x, 1: y} for x, y in make_table())
    store = run(make_mlp(), keyed, tmp_path / "keyed", loss_fn=loss)
    # For the fingerprint, the row, and the try-out of a few.
    assert keyed.looks < 3 * SAMPLES
    assert "fields" not in store.provenance["dataset"]
    ragged = [
        {"x": x, "y": y, **({"note": 1.0} if row % 2 else {})} for row, (x, y) in enumerate(make_table())
    ]

    def of_fields(model, batch):
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    other = run(make_mlp(), ragged, tmp_path / "ragged", loss_fn=of_fields, tokens_per_batch=1)
    assert len(other) == SAMPLES
    assert len(set(other.record.tolist())) == SAMPLES
