"""Per-sample gradients by plain autograd, one backward each: what every fast path must equal."""

from __future__ import annotations

import numpy as np
import torch

from models import VOCABULARY
from spice_rs.extraction.extractor import extract


def make_data(count=6, seed=0):
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        ids = generator.integers(0, VOCABULARY, int(generator.integers(4, 20)))
        labels = np.where(np.arange(len(ids)) < len(ids) // 3, -100, ids)
        data.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return data


def rows_of(store):
    """Rows in the order of the data."""
    return store.read(np.argsort(store.index, kind="stable"))


def autograd_rows(model, data, names):
    """One backward per sample of the summed loss: what every fast path must equal."""
    named = dict(model.named_parameters())
    training = model.training
    model.eval()
    rows, losses = [], []
    for item in data:
        logits = model(input_ids=torch.tensor([item["input_ids"]]), use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(item["labels"][1:]), reduction="sum")
        gradients = torch.autograd.grad(loss, [named[name] for name in names])
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).numpy())
        losses.append(loss.item())
    model.train(training)
    return np.stack(rows), np.array(losses)


def run(model, data, out, **options):
    return extract(
        model, data, out, **{"projection": "none", "dtype": "float32", "progress": False, **options}
    )


def assert_rows_equal(found, expected, tolerance=1e-4):
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < tolerance, errors


def check_against_autograd(model, data, store, tolerance=1e-4):
    # The experts of one fused parameter are side by side: together they are the parameter.
    names = list(dict.fromkeys(entry["name"].split("[")[0] for entry in store.info()["layout"]))
    expected, losses = autograd_rows(model, data, names)
    assert_rows_equal(rows_of(store), expected, tolerance)
    order = np.argsort(store.index)
    np.testing.assert_allclose(store.loss[order], losses, rtol=1e-4)
    counts = [sum(label != -100 for label in item["labels"][1:]) for item in data]
    np.testing.assert_array_equal(store.num_tokens[order], counts)
