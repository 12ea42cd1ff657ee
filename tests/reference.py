"""Models with per-sample gradients by plain autograd, one backward each: what every fast path must equal."""

from __future__ import annotations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from spice_rs.extraction.extractor import extract

VOCABULARY = 96
FAMILIES = ["llama", "qwen2", "gpt2"]


def make_model(family="llama", seed=0, **options):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "attention_dropout": 0.1,
        "initializer_range": 0.2,
        **options,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        return model
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def make_data(count=6, seed=0):
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        ids = generator.integers(0, VOCABULARY, int(generator.integers(4, 20)))
        labels = np.where(np.arange(len(ids)) < len(ids) // 3, -100, ids)
        data.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return data


def make_lora(model, trained=True, **options):
    torch.manual_seed(1)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    wrapped = get_peft_model(model, LoraConfig(**{**settings, **options}))
    if trained:
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return wrapped


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
