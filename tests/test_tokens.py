"""Records that are tokenised already: one sample in a row, its padding never learned."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from readings import (
    CHAT,
    TOKENS,
    fingerprint,
    read,
    refusal,
)
from spice_rs.errors import InvalidInputError


def tokens(**fields):
    return read({**TOKENS, **fields}).tokens.tolist()


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_mask": [1, 1, 1, 1]},
        {"attention_mask": [True, True, True, True]},
        {"attention_mask": [1.0, 1.0, 1.0, 1.0]},
        {"attention_mask": np.ones(4, np.int8), "position_ids": [0, 1, 2, 3]},
        {"attention_mask": [2, 2, 2, 2]},
        {"input_ids": np.array([30, 31, 32, 33]), "labels": (-100, 31, 32, 33)},
        {
            "input_ids": [3, 3, 30, 31, 32, 33],
            "labels": [-100] * 3 + [31, 32, 33],
            "attention_mask": [0, 0, 1, 1, 1, 1],
        },
        {
            "input_ids": [30, 31, 32, 33, 3],
            "labels": [-100, 31, 32, 33, 3],
            "attention_mask": [1, 1, 1, 1, 0],
        },
        {
            **{"input_ids": [3, 30, 31, 32, 33, 3], "labels": [-100, -100, 31, 32, 33, -100]},
            **{"attention_mask": [0, 1, 1, 1, 1, 0], "position_ids": [1, 0, 1, 2, 3, 1]},
        },
        {
            "input_ids": [3, 30, 31, 32, 33],
            "labels": [-100, -100, 31, 32, 33],
            "attention_mask": [0, 1, 1, 1, 1],
            "position_ids": [0, 1, 2, 3, 4],
        },
        {"completion_mask": [0, 1, 1, 1]},
        {"labels": None, "completion_mask": [0, 1, 1, 1]},
        {"labels": None, "assistant_masks": [False, True, True, True], "completion_mask": [0, 1, 1, 1]},
        {"labels": None, "loss_mask": [0, 1.0, 1, 1]},
        {"cu_seqlens": [0, 4], "seq_lengths": [4], "seq_idx": [0, 0, 0, 0]},
        {"token_type_ids": [0, 0, 0, 0], "special_tokens_mask": [1, 0, 0, 0], "length": 4, "num_tokens": [4]},
        {"prompt": "Which river?", "messages": CHAT, "text": "x", "id": "a"},
        {"weight": 1},
    ],
)
def test_one_sample_in_tokens(fields):
    assert tokens(**fields) == [[30, 31, 32, 33], [-100, 31, 32, 33]]
    assert fingerprint({**TOKENS, **fields}) == fingerprint(TOKENS)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"attention_mask": [1, 0, 1, 1]}, "position 1"),
        ({"attention_mask": [0, 0, 0, 0]}, "0 everywhere"),
        ({"attention_mask": [1, 1, 1]}, "3 values of 'attention_mask'"),
        ({"attention_mask": [1, 1, 2, 2]}, "several samples"),
        ({"attention_mask": [1, 0.5, 1, 1]}, "other values than 0 and 1"),
        ({"attention_mask": [[1, 1, 1, 1]]}, "'attention_mask': found list"),
        ({"attention_mask": "1111"}, "'attention_mask': found str"),
        ({"position_ids": [0, 1, 0, 1]}, "one sample in a row"),
        ({"position_ids": [7, 8, 9, 10]}, "starts at 7"),
        ({"position_ids": [[0, 1, 2, 3]] * 3}, "'position_ids'"),
        ({"cu_seqlens": [0, 2, 4]}, "one sample in a row"),
        ({"cu_seq_lens_q": np.array([0, 2, 4])}, "one sample in a row"),
        ({"cu_seqlens_k": [0, 2, 4]}, "one sample in a row"),
        ({"packed_seq_lengths": [2, 2]}, "one sample in a row"),
        ({"sequence_lens": [2, 2]}, "one sample in a row"),
        ({"seq_lengths": [2, 2]}, "one sample in a row"),
        ({"seq_idx": [0, 0, 1, 1]}, "one sample in a row"),
        ({"completion_mask": [0, 0, 1, 1]}, "'labels' and 'completion_mask' differ at position 1"),
        (
            {"labels": None, "completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 1]},
            "differ at position 1",
        ),
        ({"loss_mask": [0, 0.5, 1, 1]}, "a token is learned or not"),
        ({"token_type_ids": [0, 0, 1, 1]}, "'token_type_ids'"),
        ({"rejected_input_ids": [1, 2]}, "'rejected_input_ids'"),
        ({"teacher_logits": [[0.5, 0.5]] * 4}, "'teacher_logits'"),
        ({"pixel_values": np.ones((3, 4))}, "'pixel_values'"),
        ({"rationale": "because"}, "'rationale'"),
        ({"labels": [31, 32, 33, -100]}, "the next tokens"),
        ({"input_ids": [True, 31, 32, 33]}, "expected a non-empty list of integers"),
        ({"input_ids": [30.0, 31.0, 32.0, 33.0]}, "expected a non-empty list of integers"),
        ({"input_ids": [[30, 31, 32, 33]]}, "expected a non-empty list of integers"),
        ({"label": False}, "KTO"),
    ],
)
def test_tokens_that_are_no_sample_are_refused(fields, word):
    assert word in refusal({**TOKENS, **fields})


def test_tensors_are_rows_of_tokens():
    import torch

    given = {name: torch.tensor(value) for name, value in TOKENS.items()}
    assert fingerprint({**given, "attention_mask": torch.ones(4, dtype=torch.bool)}) == fingerprint(TOKENS)
    assert "'input_ids'" in refusal({**given, "input_ids": torch.ones(4)})


@pytest.mark.parametrize(
    ("end", "tokens", "wrong"),
    [
        (2, ([5, 6, 7, 1, 1], [-100, 6, 7, 1, 1]), "2 pad tokens (1) at the end, 2 of them learned"),
        (2, ([5, 6, 7, 1, 1], [-100, 6, 7, -100, -100]), None),
        (1, ([5, 6, 7, 1], [-100, 6, 7, 1]), None),
        (1, ([5, 6, 7, 1, 1], [-100, 6, 7, 1, -100]), None),
        (1, ([5, 6, 7, 1, 1], [-100, 6, 7, 1, 1]), "2 pad tokens"),
        (2, ([1, 1, 5, 6, 7], [-100, -100, -100, 6, 7]), "2 pad tokens (1) at the start"),
        (2, ([1, 5, 6, 7], [-100, -100, 6, 7]), None),
        (2, ([1, 1, 1], [1, 1, 1]), "pad tokens (1) alone"),
    ],
)
def test_padding_is_never_learned(proxy, tmp_path, end, tokens, wrong):
    import spice_rs

    model = AutoModelForCausalLM.from_pretrained(proxy)
    model.config.pad_token_id, model.config.eos_token_id = 1, end
    good = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    pool = [good, dict(zip(("input_ids", "labels"), tokens, strict=True))]

    def extract(name, data, **options):
        return spice_rs.extract(model, data, tmp_path / name, dim=8, progress=False, **options)

    if wrong is None:
        assert len(extract("a", pool)) == 2
        return
    with pytest.raises(InvalidInputError) as caught:
        extract("a", pool)
    for word in ("data[1]", wrong, "attention_mask", "skip_bad"):
        assert word in str(caught.value)
    assert len(extract("b", pool, skip_bad=True)) == 1
    assert (tmp_path / "b.left-out.jsonl").read_text(encoding="utf-8").count('"padding"') == 1
    # Where rows are padded at all, one pad token is padding too, unless it ends texts.
    single = {"input_ids": [5, 6, 1], "labels": [-100, 6, 1]}
    assert len(extract("c", [*pool, single], skip_bad=True)) == (1 if end == 2 else 2)
