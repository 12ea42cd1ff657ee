"""A model whose lower layers are frozen: what they put out is computed once for each record and kept in a file.

The lower layers stand in for the embedding of the upper ones, so that extraction, training and judging see an ordinary
causal language model of fewer layers, and spend nothing on what cannot change. With causal attention and padding on the
right, a token's state depends on no padding and on no other record: what is kept is what the whole model computes.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer

from spice_rs.data.dataset import Example

PADDING = 0
"""The id by which `spice_rs.extraction.batching.collate` pads."""

TOKENS = 2048
"""Padded tokens of a batch of the lower layers."""


class LowerLayers(torch.nn.Module):
    """Token ids (B, T) → states (B, T, hidden) float32 behind the lower layers, from the file where it has them.

    Args:
        lower: the lower layers with their embedding, and without a norm behind them.
        hidden: columns of a state.
        autocast: multiply in bfloat16.
    """

    def __init__(self, lower: torch.nn.Module, hidden: int, autocast: bool) -> None:
        super().__init__()
        self._lower = [lower.eval()]  # in a list: none of its layers is one of the upper model's
        self._hidden, self._autocast = hidden, autocast
        self._places: dict[bytes, tuple[int, int, int]] = {}  # number, first row, rows
        self._states: np.memmap[Any, Any] | None = None
        self._done: np.memmap[Any, Any] | None = None
        self.computed = 0
        """Records that were computed since, in place of being read."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        host = ids.cpu().numpy()
        found = [self._place(row) for row in host]
        if self._states is None or None in found:
            self.computed += len(host)
            return self.compute(ids)
        states = np.zeros((*host.shape, self._hidden), np.float32)
        for row, (start, length) in enumerate(each for each in found if each is not None):
            length = min(length, host.shape[1])
            states[row, :length] = self._states[start : start + length]
        return torch.from_numpy(states).to(ids.device)

    def _place(self, ids: np.ndarray) -> tuple[int, int] | None:
        """First row and rows of the states that the file has of a record."""
        place = self._places.get(_key(ids))
        return place[1:] if place is not None and self._done is not None and self._done[place[0]] else None

    def compute(self, ids: torch.Tensor) -> torch.Tensor:
        """The states of these ids by the layers themselves."""
        with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=self._autocast):
            states: torch.Tensor = self._lower[0](input_ids=ids, use_cache=False).last_hidden_state
        return states.float()

    def keep(self, examples: Sequence[Example], folder: Path) -> None:
        """Give each of the examples a place in a file in the folder; `ensure` computes what is missing there."""
        longest: dict[bytes, int] = {}
        for example in examples:
            key = _key(np.asarray(example.input_ids))
            longest[key] = max(longest.get(key, 0), len(example.input_ids))
        keys = sorted(longest, key=lambda key: (longest[key], key))
        digest = hashlib.sha256(b"|".join(keys)).hexdigest()[:16]
        starts = np.concatenate([[0], np.cumsum([longest[key] for key in keys])])
        self._places = {key: (place, int(starts[place]), longest[key]) for place, key in enumerate(keys)}
        shape = (int(starts[-1]), self._hidden)
        self._states = _mapped(folder / f"states-{digest}.f32", np.float32, shape)
        self._done = _mapped(folder / f"states-{digest}.done", np.uint8, (len(keys),))

    def ensure(self, examples: Sequence[Example], device: torch.device) -> None:
        """Compute the states of those examples that have a place and no states yet; what is done stays after a kill."""
        assert self._states is not None
        assert self._done is not None
        keys = {_key(np.asarray(example.input_ids)): np.asarray(example.input_ids) for example in examples}
        missing = [key for key in keys if key in self._places and not self._done[self._places[key][0]]]
        missing.sort(key=lambda key: self._places[key][2])
        while missing:
            length = 0
            batch: list[bytes] = []
            for key in missing:
                length = max(length, self._places[key][2])
                if batch and length * (len(batch) + 1) > TOKENS:
                    break
                batch.append(key)
            missing = missing[len(batch) :]
            ids = np.full((len(batch), max(self._places[key][2] for key in batch)), PADDING, np.int64)
            for row, key in enumerate(batch):
                ids[row, : len(keys[key])] = keys[key]
            found = self.compute(torch.from_numpy(ids).to(device)).cpu().numpy()
            for row, key in enumerate(batch):
                _, start, own = self._places[key]
                self._states[start : start + own] = found[row, :own]
            self._states.flush()
            for key in batch:
                self._done[self._places[key][0]] = 1
            self._done.flush()


def _mapped(file: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A mapped file of zeros, or the one that is there."""
    return np.memmap(file, dtype, "r+" if file.is_file() else "w+", shape=shape)


def _key(ids: np.ndarray) -> bytes:
    """What a record is known by: its ids without those at the end that are the padding's."""
    others = np.flatnonzero(ids != PADDING)
    return ids[: int(others[-1]) + 1 if others.size else 0].astype(np.int32).tobytes()


def upper_layers(whole: Any, count: int, *, autocast: bool) -> Any:
    """Turn a model of Llama's kind into its upper layers, with a `LowerLayers` for its embedding.

    Args:
        whole: a causal language model with `model.layers`, `model.embed_tokens` and `lm_head`; it is spent.
        count: layers that stay.
        autocast: multiply in bfloat16; weights are then kept in it, as autocast would make them of float32 each time.
    """
    inner = whole.model
    layers = len(inner.layers)
    if not 0 < count < layers:
        raise ValueError(
            f"upper_layers: found {count}, expected 1 to {layers - 1} of the model's {layers} layers"
        )
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers = 1
    lower = type(inner)(config)
    config.num_hidden_layers = layers - count
    lower.embed_tokens, lower.layers, lower.norm = (
        inner.embed_tokens,
        inner.layers[: layers - count],
        torch.nn.Identity(),
    )
    for layer in lower.layers:
        layer.self_attn.config = lower.config  # which is asked for the kind of attention
    inner.embed_tokens = LowerLayers(lower, whole.config.hidden_size, autocast)
    inner.layers = inner.layers[layers - count :]
    whole.config.num_hidden_layers, whole.config.tie_word_embeddings = count, False
    whole.set_attn_implementation("eager")  # on CPUs the fastest for short records
    whole.lm_head.weight = torch.nn.Parameter(whole.lm_head.weight.detach().clone())
    if autocast:
        for part in (whole, lower):
            for module in part.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(torch.bfloat16)
    lower.requires_grad_(False)
    return whole


def plain_lora(model: torch.nn.Module) -> None:
    """Spare the adapters of a `peft` model the casts and the dropout of nothing; the same products otherwise."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, torch.nn.Linear):
            layer.forward = functools.partial(_with_lora, layer)


def _with_lora(layer: Any, states: torch.Tensor) -> torch.Tensor:
    (name,) = layer.active_adapters
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.bfloat16)  # once for both products
    low = F.linear(F.linear(states, layer.lora_A[name].weight), layer.lora_B[name].weight)
    return F.linear(states, layer.base_layer.weight, layer.base_layer.bias) + low * layer.scaling[name]
