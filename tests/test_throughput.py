"""What keeps a GPU busy: batches by tokens, no waiting inside them, memory that runs out, copies to the host."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spice_rs
from models import make_lora, make_model
from reference import assert_rows_equal, make_data, rows_of, run
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.extraction.batching import collate, longest_first, take_batch
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.gradients import GradientRun
from spice_rs.extraction.loss import SummedLoss
from spice_rs.extraction.preparation import Settings, preparing
from spice_rs.extraction.projection import Projection
from spice_rs.extraction.transfer import HostCopy, to_device
from spice_rs.store.store import GradientStore

CPU = torch.device("cpu")

# What makes the host wait for a GPU: it needs a value, or a size that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique", "is_nonzero", "equal")


class Waits(TorchDispatchMode):
    """Lists the operations that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name.startswith(WAITS) or (name.startswith("index") and self._masks(args)):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))

    @staticmethod
    def _masks(args):
        lists = [each for each in args if isinstance(each, list | tuple)]
        return any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool for part in lists for each in part
        )


def waits(model, data, **options):
    """The operations in one batch, and those in making its tensors on the host left out."""
    with preparing(model, data, Settings.of(options, extract)) as ready:
        computed = ready.run()
        samples = longest_first(ready.inputs.samples)
        batch = collate(samples, CPU)
        with computed.capture.attached():
            computed.compute(samples)
            mode = Waits()
            with computed.capture.batch(len(samples), samples[0].length, CPU), torch.enable_grad(), mode:
                tensors = (batch.input_ids, batch.attention_mask, batch.labels, batch.learned)
                ready.task.loss(*tensors).sum().backward()
    return mode.found


def test_waiting_is_seen():
    with Waits() as mode:
        values = torch.arange(4.0)
        values[values > 1]
        values.max().item()
        values.unique()
    assert len(mode.found) >= 3


@pytest.mark.parametrize("projection", ["sparse", "two_sided", "rademacher", "none"])
def test_nothing_waits_for_the_device_inside_a_module(projection):
    counts = []
    for layers in (1, 2):
        model = make_model()
        del model.model.layers[layers:]
        counts.append(waits(model, make_data(4), projection=projection, dim=32, norms=True))
    assert counts[0] == counts[1]  # what the model itself asks of its mask, whatever its depth
    assert len(counts[0]) <= 4


def test_adapters_and_embeddings_do_not_wait_either():
    plain = waits(make_model(), make_data(4), projection="sparse", dim=32)
    assert waits(make_lora(make_model()), make_data(4), projection="sparse", dim=32) == plain
    for projection in ("sparse", "none"):
        options = {"projection": projection, "dim": 32, "embeddings": True}
        assert waits(make_model(), make_data(4), **options) == plain


def test_batches_fill_the_budget_longest_first():
    with preparing(make_model(), make_data(40), Settings.of({}, extract)) as ready:
        samples = longest_first(ready.inputs.samples)
    lengths = [sample.length for sample in samples]
    assert lengths == sorted(lengths, reverse=True)
    start = 0
    while start < len(samples):
        batch = take_batch(samples, start, 60, 256)
        after = samples[start + len(batch)] if start + len(batch) < len(samples) else None
        assert len(batch) == 1 or len(batch) * batch[0].length <= 60
        assert after is None or (len(batch) + 1) * batch[0].length > 60  # one more would not have fit
        start += len(batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "message", ["CUDA out of memory", "DefaultCPUAllocator: not enough memory", "CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_memory_that_runs_out_on_the_way_back_leaves_no_trace(message, tmp_path, monkeypatch):
    model, data = make_model(), make_data(8)
    whole = run(model, data, tmp_path / "whole", projection="sparse", dim=32)
    original, calls = Projection.add_outer, []

    def limited(self, rows, *rest):
        calls.append(len(rows))
        if len(rows) > 3 and calls.count(len(rows)) > 5:  # some layers of the batch have been added by then
            raise RuntimeError(message)
        original(self, rows, *rest)

    monkeypatch.setattr(Projection, "add_outer", limited)
    store = run(model, data, tmp_path / "s", projection="sparse", dim=32)
    assert max(calls) == 8
    assert calls[-1] <= 3
    assert_rows_equal(rows_of(store), rows_of(whole), 1e-5)


def test_batches_that_were_complete_are_written_when_a_run_is_stopped(tmp_path, monkeypatch):
    original, calls = SummedLoss.__call__, []
    monkeypatch.setattr(GradientRun, "try_out", lambda *_: None)

    def stops(self, *batch):
        calls.append(len(batch[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *batch)

    monkeypatch.setattr(SummedLoss, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        run(make_model(), make_data(10), tmp_path / "s", tokens_per_batch=40)
    assert len(GradientStore(tmp_path / "s")) == sum(calls[:2])


def test_a_row_that_cannot_be_stored_does_not_take_others_with_it(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = float("nan")
    data = [
        {"input_ids": [1, 95, 3, 4], "labels": [1, 2, 3, 4]},
        *({"input_ids": [1, 2, 3], "labels": [1, 2, 3]},) * 2,
    ]
    with pytest.raises(InvalidInputError, match="row 0"):
        run(model, data, tmp_path / "s", tokens_per_batch=4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_copies_arrive_as_they_were_sent(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    values = torch.arange(12.0).view(3, 4)
    there = to_device(values, torch.device(device))
    assert there.device.type == device
    rows, losses = HostCopy(there, there.sum(dim=1)).wait()
    assert rows.device == losses.device == CPU
    np.testing.assert_array_equal(rows.numpy(), values.numpy())
    np.testing.assert_array_equal(losses.numpy(), values.sum(dim=1).numpy())
    if device == "cpu":
        assert rows.data_ptr() == values.data_ptr()  # nothing is copied


@pytest.mark.parametrize("adapted", [False, True])
def test_autocast_gives_the_same_rows_roughly(adapted, tmp_path):
    """Weights in float32 and activations in bfloat16, as on a GPU."""
    model, data = make_lora(make_model()) if adapted else make_model(), make_data(5)
    options = {"projection": "sparse", "dim": 64, "norms": not adapted, "embeddings": not adapted}
    exact = rows_of(run(model, data, tmp_path / "exact", **options))
    with torch.autocast("cpu", torch.bfloat16):
        rough = rows_of(run(model, data, tmp_path / "rough", **options))
    assert not np.array_equal(rough, exact)
    assert_rows_equal(rough, exact, 0.1)


@pytest.mark.parametrize("projection", ["sparse", "two_sided", "rademacher", "none"])
def test_a_gpu_gives_the_rows_of_a_cpu_roughly(projection, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model, data = make_model("qwen2"), make_data(20)
    options = {"projection": projection, "dim": 64, "tokens_per_batch": 60}
    rows = [
        rows_of(run(model, data, tmp_path / device, device=device, **options)) for device in ("cpu", "cuda")
    ]
    assert_rows_equal(rows[1], rows[0], 0.1)


def test_products_in_bfloat16_are_asked_for_and_recorded(tmp_path):
    model, data = make_lora(make_model()), make_data(8)
    exact = run(model, data, tmp_path / "exact", tokens_per_batch=40)
    half = run(model, data, tmp_path / "half", tokens_per_batch=40, autocast=True)
    assert "autocast" not in exact.info()
    assert half.info()["autocast"] is True
    lengths = np.linalg.norm(rows_of(exact), axis=1)
    errors = np.linalg.norm(rows_of(half) - rows_of(exact), axis=1) / lengths
    assert 1e-4 < errors.max() < 0.05, errors
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with pytest.raises(StoreMismatchError, match="autocast"):
        run(model, data, tmp_path / "half", tokens_per_batch=40)
    found = spice_rs.doctor(model, data, samples=4, autocast=True)
    assert found.passed, str(found)


def test_autocast_of_the_caller_can_be_turned_off_and_the_default_may_be_said(tmp_path):
    model, data = make_model(), make_data(6)
    exact = run(model, data, tmp_path / "s", limit=3)
    store = run(model, data, tmp_path / "s", autocast=False)  # the same store goes on
    assert len(store) == 6
    assert "autocast" not in exact.info()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(model, data, tmp_path / "inside", autocast=False)
    torch.testing.assert_close(*(torch.from_numpy(rows_of(each)) for each in (inside, store)))
