"""How long a sample may be: what configurations say, and how they say that there is no limit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from models import VOCABULARY
from reference import check_against_autograd, make_data, run
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.proxy import limits

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}


def bare(**config):
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(**config)
    return model


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": 0}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": "long"}, None),
        ({"max_position_embeddings": 1e30}, None),
        ({"max_position_embeddings": 10**30}, 10**30),
        ({"max_position_embeddings": 20, "n_positions": 30}, 20),
        ({"max_position_embeddings": -1, "n_positions": 30}, 30),
        ({"n_positions": 30}, 30),
        ({"max_seq_len": 40}, 40),
        ({"max_position_embeddings": 20, "alibi": True}, None),
        ({"max_position_embeddings": 20, "alibi": False, "sliding_window": 4}, 20),
    ],
)
def test_what_configurations_say(config, positions):
    assert limits(bare(**config)) == (None, positions)


def test_a_model_without_a_configuration_of_transformers_has_no_limit():
    assert limits(torch.nn.Linear(2, 2)) == (None, None)
    model = torch.nn.Linear(2, 2)
    model.config = {"max_position_embeddings": 3}
    assert limits(model) == (None, None)


def test_relative_positions_have_no_limit(tmp_path):
    torch.manual_seed(0)
    xlnet = hf.XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=1, n_head=2, d_inner=16)
    assert xlnet.max_position_embeddings == -1
    model = hf.XLNetLMHeadModel(xlnet)
    assert limits(model) == (VOCABULARY, None)
    options = {"target_modules": ["layer_1", "layer_2"]}
    with pytest.raises(InvalidInputError, match=r"layer_1' sees a tensor .*tokens_per_batch=1"):
        run(model, make_data(4), tmp_path / "r", **options)  # (tokens, samples, features)
    data = make_data(4)
    store = run(model, data, tmp_path / "s", tokens_per_batch=1, embeddings=True, **options)
    assert any("word_embedding" in entry["name"] for entry in store.info()["layout"])
    check_against_autograd(model, data, store)
    falcon = hf.FalconForCausalLM(hf.FalconConfig(**SMALL, alibi=True, max_position_embeddings=3))
    assert len(run(falcon, make_data(4), tmp_path / "t")) == 4
    bloom = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2))
    assert limits(bloom) == (VOCABULARY, None)


def test_a_table_of_positions_that_begins_behind_its_padding_is_shorter(tmp_path):
    sizes = {**SMALL, "intermediate_size": 16, "max_position_embeddings": 20}
    config = hf.RobertaConfig(**sizes, pad_token_id=1, is_decoder=True)
    model = hf.RobertaForCausalLM(config)
    assert limits(model) == (VOCABULARY, 18)
    sample = {"input_ids": [2] * 19, "labels": [2] * 19}
    with pytest.raises(
        InvalidInputError, match="row 0: found 19 tokens, expected at most the model's 18 positions"
    ):
        run(model, [sample], tmp_path / "s")
    store = run(model, [sample], tmp_path / "t", max_length=18, min_coverage=0.5)
    assert len(store) == 1


def test_a_model_of_images_and_text_has_the_limit_of_its_text():
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = hf.Gemma3Config(text_config={**TEXT, "max_position_embeddings": 33}, vision_config=vision)
    assert limits(hf.Gemma3ForConditionalGeneration(config)) == (VOCABULARY, 33)
