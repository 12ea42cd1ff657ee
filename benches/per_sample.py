"""Other ways to the gradients that `extract` computes, of the same batches, for `benches/extraction.py`.

Each takes the model, whose tracked parameters alone require gradients, and the batches, and returns when all are computed.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from spice_rs.data.dataset import Example
from spice_rs.extraction.batching import Batch, collate

VMAP_CELLS = 1 << 28  # gradients that vmap holds at a time: 1 GB in float32

Batches = Sequence[Sequence[Example]]


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 on a GPU, as `extract` has it."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def summed(model: Any, batches: Batches, device: torch.device, *, lean: bool) -> None:
    """A plain forward and backward; `lean` makes logits at the learned positions alone."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for examples in batches:
        batch = collate(examples, device)
        with autocast(device):
            if lean:
                hidden = inner.get_decoder()(**_inputs(batch)).last_hidden_state.flatten(0, 1)
                logits = inner.get_output_embeddings()(hidden.index_select(0, batch.learned.positions))
                targets = batch.learned.targets
            else:
                logits, targets = (
                    model(**_inputs(batch)).logits[:, :-1].flatten(0, 1),
                    batch.labels[:, 1:].flatten(),
                )
        torch.nn.functional.cross_entropy(
            logits.float(), targets, ignore_index=-100, reduction="sum"
        ).backward()
        model.zero_grad(set_to_none=True)


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}


def one_by_one(model: Any, batches: Batches, device: torch.device) -> None:
    """A forward and backward of every sample alone, and its gradient as one vector: what the paper's code does."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    for example in (example for examples in batches for example in examples):
        batch = collate([example], device)
        with autocast(device):
            logits = model(**_inputs(batch)).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float(), batch.labels[0, 1:], reduction="sum")
        torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])


def vmap(model: Any, batches: Batches, device: torch.device) -> None:
    """`torch.func.vmap` over the gradient of one sample, as many samples at a time as 1 GB of gradients allows.

    Padding is left to the causal mask and the labels: a mask of its own is more than transformers' code can be mapped over.
    """
    tracked = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    most = max(1, VMAP_CELLS // sum(each.numel() for each in tracked.values()))

    def loss(parameters: dict[str, torch.Tensor], ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids.unsqueeze(0), "use_cache": False}
        logits = torch.func.functional_call(model, parameters, (), inputs).logits[0, :-1]
        return torch.nn.functional.cross_entropy(
            logits.float(), labels[1:], ignore_index=-100, reduction="sum"
        )

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for examples in batches:
        batch = collate(examples, device)
        for start in range(0, len(examples), most):
            part = slice(start, start + most)
            with autocast(device):
                gradients(tracked, batch.input_ids[part], batch.labels[part])


def bergson(model: Any, batches: Batches, device: torch.device, *, side: int) -> None:
    """bergson's in-memory collector, which projects each module's gradient to side × side.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    base = model.base_model
    tracked = {id(each) for each in model.parameters() if each.requires_grad}
    targets = {
        name for name, module in base.named_modules() if id(getattr(module, "weight", None)) in tracked
    }
    examples = [example for part in batches for example in part]
    data = Dataset.from_dict(
        {
            "input_ids": [example.input_ids.tolist() for example in examples],
            "labels": [example.labels.tolist() for example in examples],
            "length": [example.length for example in examples],
        }
    )
    order = iter(range(len(examples)))
    with _quiet(), tempfile.TemporaryDirectory() as scratch, autocast(device):
        config = IndexConfig(run_path=scratch, projection_dim=side, loss_reduction="sum")
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        collector = InMemoryCollector(
            model=base,
            cfg=config,
            processor=GradientProcessor(projection_dim=side),
            target_modules=targets,
            data=data,
        )
        computer = CollectorComputer(
            model=model,
            data=data,
            collector=collector,
            batches=[[next(order) for _ in part] for part in batches],
            cfg=config,
        )
        computer.run_with_collector_hooks(desc="bench")


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
