"""Every model that several tests make: random, of a few thousand weights."""

from __future__ import annotations

import torch
import transformers
from peft import LoraConfig, get_peft_model

VOCABULARY = 96

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
    "initializer_range": 0.2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}

FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SIZES),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": VOCABULARY, **GPT2}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**SIZES, "head_dim": 8}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**SIZES, "sliding_window": 8}),
    "phi": ("PhiForCausalLM", "PhiConfig", SIZES),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**SIZES, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**SIZES, "head_dim": 8, "sliding_window": 8}),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", {**SIZES, "pad_token_id": 0, "eos_token_id": 0}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**SIZES, **EXPERTS}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**SIZES, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    # Transposed, with biases, its gate and up weights interleaved.
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**SIZES, **EXPERTS, "head_dim": 8, "sliding_window": 8},
    ),
}
"""The classes in transformers, and the configuration."""

COMMON = ["llama", "qwen2", "gpt2"]
"""Linear layers without biases, with some, and transposed ones."""


def make_model(family="llama", seed=0, **options):
    """A random model; `options` go to its configuration."""
    model_class, config_class, sizes = FAMILIES[family]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**{**sizes, **options}))
    if family == "qwen2":
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model


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
