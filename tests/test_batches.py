"""Batches of training loops: one sample a row, or refused by name before anything is learned from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

import spice_rs
from reference import make_data
from spice_rs.errors import InvalidInputError
from spice_rs.schedule.batches import check_trainer, samples_of
from test_online import padded
from test_schedule import quiet_lora

PLAIN = torch.nn.Identity()


def whole(rows=3, columns=6, **more):
    """A batch without padding."""
    ids = torch.arange(rows * columns).view(rows, columns) + 1
    return {"input_ids": ids, "labels": ids.clone(), **more}


def same(found, batch):
    """Whether the samples are the rows as they are."""
    expected = samples_of({name: batch[name] for name in ("input_ids", "labels")}, PLAIN)
    assert [each.index for each in found] == [each.index for each in expected]
    assert all((a.input_ids == b.input_ids).all() for a, b in zip(found, expected, strict=True))
    assert all((a.labels == b.labels).all() for a, b in zip(found, expected, strict=True))


ROW = torch.arange(6)
AGAIN = torch.tensor([0, 1, 2, 0, 1, 2])
ONES = torch.ones(3, 6, dtype=torch.int64)
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    "more",
    [
        {"position_ids": ROW.expand(3, 6)},
        {"position_ids": ROW},
        {"position_ids": ROW[None]},
        {"position_ids": ROW.expand(3, 3, 6)},
        {"position_ids": ROW.expand(3, 6) + 2},
        {"position_ids": None},
        {"attention_mask": ONES},
        {"attention_mask": ONES.bool()},
        {"attention_mask": ONES.float()},
        {"attention_mask": ONES.half()},
        {"seq_lengths": [[6], [6], [6]]},
        {"seq_lengths": torch.tensor([6, 6, 6])},
        {"seq_idx": torch.arange(3)[:, None].expand(3, 6)},
        {"segment_ids": ONES},
        {"completion_mask": ONES},
        {"loss_scale": ONES.float()},
        {"loss_weight": torch.ones(3)},
        {"token_type_ids": torch.zeros(3, 6, dtype=torch.int64)},
        {"name": ["a", "b", "c"], "source": torch.arange(3.0)},
        {"weight": torch.ones(3)},
        {"sample_weight": [1.0, 1.0, 1.0]},
        {"token_weights": ONES.float()},
        {"masked": ONES * 0},
        {"mask": ONES},
        {"masks": ONES.bool()},
        {"no_loss": torch.zeros(3, dtype=torch.bool)},
        {"label": torch.ones(3, dtype=torch.bool)},
        {"label": ["news", "law", "news"]},
        {"response_mask": ONES},
        {"special_tokens_mask": torch.eye(3, 6)},
        {"train_perplexity": torch.arange(3.0)},
        {"sample_ids": torch.arange(3)},
        {"position_lengths": [torch.tensor([6])] * 3},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_says_nothing_more_changes_no_sample(more):
    batch = whole(**more)
    same(samples_of(batch, PLAIN), batch)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"position_ids": torch.stack([ROW, AGAIN, ROW])}, r"'position_ids'\]: found 0 after 2 in row 1"),
        ({"position_ids": AGAIN}, r"'position_ids'\]: found 0 after 2 in row 0"),
        ({"position_ids": AGAIN.expand(3, 3, 6)}, r"'position_ids'\]: found 0 after 2"),
        ({"position_ids": torch.tensor([0, 0, 0, 0, 0, 0]).expand(3, 6)}, r"found 0 after 0"),
        ({"seq_lengths": [[3, 3], [6], [6]]}, r"'seq_lengths'\]: found lengths of 4 samples in 3 rows"),
        ({"seq_lengths": torch.tensor([[3, 3], [6, 0], [6, 0]])}, r"found lengths of 4 samples in 3 rows"),
        (
            {"position_lengths": [torch.tensor([3, 3]), torch.tensor([6]), torch.tensor([6])]},
            r"lengths of 4 samples",
        ),
        ({"packed_seq_lengths": [[2, 4], [6], [6]]}, r"'packed_seq_lengths'\]: found lengths of 4 samples"),
        ({"sample_ids": (AGAIN == 0).cumsum(0).expand(3, 6)}, r"'sample_ids'\]: found 2 samples in row 0"),
        ({"doc_ids": [[1, 1, 1, 2, 2, 2]] * 3}, r"'doc_ids'\]: found 2 samples in row 0"),
        ({"cu_seqlens_k": torch.tensor([0, 3, 6])}, r"'cu_seqlens_k'\]: found bounds of 2 samples"),
        ({"seq_idx": (AGAIN == 0).cumsum(0).expand(3, 6)}, r"'seq_idx'\]: found 2 samples in row 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6])}, r"'cu_seq_lens_q'\]: found bounds of 2 samples in 3"),
        ({"cu_seqlens": torch.tensor([[0, 9, 18, -1]])}, r"'cu_seqlens'\]: found bounds of 2 samples"),
        (
            {"attention_mask": torch.tensor([1, 1, 2, 2, 3, 0]).expand(3, 6)},
            r"'attention_mask'\]: found the numbers 1, 2, 3 in row 0, one for each of many samples",
        ),
        ({"attention_mask": torch.ones(3, 1, 6, 6)}, r"'attention_mask'\]: found shape \(3, 1, 6, 6\)"),
        ({"attention_mask": torch.ones(3, 1, 6, 6).bool()}, r"found shape \(3, 1, 6, 6\)"),
        ({"attention_mask": {"full_attention": None}}, r"'attention_mask'\]: found dict"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_many_samples_in_one_row_are_refused_with_the_way_out(more, says):
    with pytest.raises(InvalidInputError, match=says) as caught:
        samples_of(whole(**more), PLAIN)
    assert "packing=False and padding_free=False" in str(caught.value)
    assert "neat_packing" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"attention_mask": torch.log(MASK)}, r"found -inf in row 0, expected 1 where there is a token"),
        ({"attention_mask": MASK * 0.5}, r"found 0.5 in row 0"),
        ({"attention_mask": torch.tensor([1, 0, 1, 1, 1, 1]).expand(3, 6)}, r"0 between tokens in row 0 \(at 1\)"),
        ({"attention_mask": MASK}, r"'labels'\]: found 5 in row 0 at 4, where attention_mask is 0, expected -100"),
        ({"position_ids": torch.ones(2, 6)}, r"'position_ids'\]: found shape \(2, 6\), expected \(3, 6\)"),
        ({"position_ids": [0, 1]}, r"'position_ids'\]: found list"),
        ({"position_ids": ROW.expand(3, 6) + 7}, r"found 7 for the first token of row 0"),
        ({"completion_mask": MASK}, r"'completion_mask'\]: found 0 for a token that is learned by its label"),
        ({"assistant_masks": MASK.tolist()}, r"'assistant_masks'\]: found 0"),
        ({"loss_mask": MASK.bool()}, r"'loss_mask'\]: found 0"),
        ({"loss_scale": ONES * 0.3}, r"'loss_scale'\]: found 0.3"),
        ({"loss_weight": torch.tensor([1.0, 2.0, 1.0])}, r"'loss_weight'\]: found 2"),
        ({"sample_weight": torch.tensor([1.0, 0.0, 1.0])}, r"'sample_weight'\]: found 0 for the sample in row 1"),
        ({"weight": torch.arange(3.0)}, r"'weight'\]: found 0 for the sample in row 0.*weights='weight' given to .*select"),
        ({"weights": [[1.0], [1.0], [0.5]]}, r"'weights'\]: found 0.5 for the sample in row 2.* Remove the column"),
        ({"token_weights": ONES * 0.5}, r"'token_weights'\]: found 0.5 for a token"),
        ({"loss_masks": MASK}, r"'loss_masks'\]: found 0 for a token"),
        ({"train_mask": MASK.tolist()}, r"'train_mask'\]: found 0 for a token"),
        ({"lossMask": MASK.numpy()}, r"'lossMask'\]: found 0 for a token"),
        ({"masked": 1 - MASK}, r"'masked'\]: found 1 for a token that is learned by its label, expected 0"),
        ({"no_loss": torch.tensor([False, False, True])}, r"'no_loss'\]: found 1 for the sample in row 2, expected 0"),
        ({"mask": MASK}, r"'mask'\]: found 0 for a token"),
        ({"response_mask": MASK}, r"'response_mask'\]: found 0 for a token"),
        ({"loss_multiplier": ONES * 0.5}, r"'loss_multiplier'\]: found 0.5 for a token .* expected 1"),
        ({"kto_tag": torch.tensor([True, False, True])}, r"'kto_tag'\]: found 0 for the sample in row 1"),
        ({"is_supervised": torch.tensor([True, False, True])}, r"'is_supervised'\]: found 0 for the sample in row 1"),
        ({"train_detail": ["all", "all", "none"]}, r"'train_detail'\]: found list, expected numbers"),
        ({"loss_mask": torch.ones(3, 5)}, r"'loss_mask'\]: found shape \(3, 5\)"),
        ({"shift_labels": whole()["labels"]}, r"'shift_labels'\]: found something else"),
        ({"token_type_ids": MASK}, r"'token_type_ids'\]: found types other than 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_would_be_left_out_is_refused_by_name(more, says):
    with pytest.raises(InvalidInputError, match=says):
        samples_of(whole(**more), PLAIN)


def test_columns_that_the_model_takes_beside_text_are_refused():
    model = quiet_lora()  # its base takes inputs_embeds; nothing takes "names"
    batch = padded(make_data(4))
    assert len(samples_of({**batch, "names": torch.ones(4, 2)}, model)) == 4
    with pytest.raises(InvalidInputError, match=r"'inputs_embeds'\]: found a tensor that LlamaForCausalLM"):
        samples_of({**batch, "inputs_embeds": torch.ones(4, 2, 32)}, model)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_on_either_side_leaves_the_samples(side):
    items = make_data(5)
    batch = padded(items, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for more in ({}, {"position_ids": positions}, {"position_ids": torch.arange(positions.shape[1])}):
        if more and side == "right" and "position_ids" in more:
            more = {"position_ids": torch.arange(positions.shape[1])}
        found = samples_of({**batch, **more}, PLAIN)
        assert [each.input_ids.tolist() for each in found] == [item["input_ids"] for item in items]
    unmasked = {**batch, "position_ids": positions * batch["attention_mask"]}
    if side == "right":  # TRL's return_position_ids: padding has position 0
        del unmasked["attention_mask"]
        assert len(samples_of(unmasked, PLAIN)) == 5


def test_positions_are_thinned_with_their_rows():
    batch = padded(make_data(6))
    length = batch["input_ids"].shape[1]
    forms = [
        torch.arange(length).expand(6, length),
        torch.arange(length)[None],
        torch.arange(length).expand(3, 6, length),
    ]
    for positions in forms:
        thin = spice_rs.OnlineSelector(quiet_lora(), select_per_window=2, dim=64).thin(
            {**batch, "position_ids": positions}
        )
        width = thin["input_ids"].shape[1]
        assert thin["position_ids"].shape[-1] == width
        assert thin["position_ids"].shape[:-1] == tuple(
            2 if size == 6 else size for size in positions.shape[:-1]
        )


def test_a_window_of_one_row_is_nothing_to_pick_from():
    model = quiet_lora()
    flat = DataCollatorWithFlattening(return_position_ids=False)(make_data(4))
    with pytest.raises(InvalidInputError, match=r"batch: found one row, .*per_device_train_batch_size"):
        spice_rs.OnlineSelector(model, dim=64).choose(flat)
    selector = spice_rs.OnlineSelector(model, select_per_window=2, dim=64)
    selector.choose(padded(make_data(4)))
    assert selector.choose(padded(make_data(1))).tolist() == [0]  # what an epoch ends with


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_seq_idx": True, "return_position_ids": False},
        {"return_flash_attn_kwargs": True, "return_position_ids": False},
    ],
)
def test_flattened_batches_are_refused(options):
    flat = DataCollatorWithFlattening(return_tensors="pt", **options)(make_data(4))
    with pytest.raises(InvalidInputError, match="packing=False and padding_free=False"):
        spice_rs.OnlineSelector(quiet_lora(), dim=64).choose(flat)


@pytest.mark.parametrize("flag", ["packing", "padding_free", "neat_packing", "sample_packing"])
def test_a_trainer_that_packs_is_refused_when_it_is_given(flag, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = Trainer(model=quiet_lora(), args=arguments, train_dataset=make_data(4), data_collator=padded)
    setattr(trainer.args, flag, False)
    spice_rs.select_online(trainer, dim=64)
    object.__setattr__(trainer.args, flag, True)
    with pytest.raises(
        InvalidInputError, match=rf"trainer.args.{flag}: found True, expected one sample a row"
    ):
        spice_rs.select_online(trainer, dim=64)
    trainer.args = SimpleNamespace()
    trainer.data_collator = SimpleNamespace(**{flag: True})
    with pytest.raises(InvalidInputError, match=f"trainer.data_collator.{flag}: found True"):
        check_trainer(trainer)
    trainer.data_collator = DataCollatorWithFlattening()
    with pytest.raises(InvalidInputError, match="found DataCollatorWithFlattening"):
        check_trainer(trainer)


def test_a_data_set_that_was_packed_before_is_refused():
    for column in ("seq_lengths", "packed_seq_lengths", "cu_seqlens"):
        trainer = SimpleNamespace(
            args=SimpleNamespace(), train_dataset=SimpleNamespace(column_names=["input_ids", column])
        )
        with pytest.raises(InvalidInputError, match=rf"trainer.train_dataset: found a column '{column}'"):
            check_trainer(trainer)
    check_trainer(SimpleNamespace(args=SimpleNamespace(), train_dataset=[{"input_ids": [1]}]))


def test_padding_that_no_mask_leaves_out_is_refused():
    model = torch.nn.Identity()
    model.config = SimpleNamespace(pad_token_id=0)
    batch = whole(rows=2)
    assert len(samples_of(batch, model)) == 2
    learned, before, alone = (whole(rows=2) for _ in range(3))
    learned["input_ids"][1, 3:] = learned["labels"][1, 3:] = 0
    before["input_ids"][1, :3], before["labels"][1, :3] = 0, -100
    for wrong, says in (
        (learned, "3 pad tokens .0. at the end, 3 of them learned"),
        (before, "3 pad tokens .0. at the"),
    ):
        with pytest.raises(InvalidInputError, match=f"batch, sample 1: found {says}.*attention_mask"):
            samples_of(wrong, model)
        mask = (wrong["input_ids"] != 0).long()
        masked = {**wrong, "labels": wrong["labels"].masked_fill(mask == 0, -100), "attention_mask": mask}
        assert [each.length for each in samples_of(masked, model)] == [6, 3]
        assert len(samples_of(wrong, PLAIN)) == 2  # nobody knows which token pads
    alone["input_ids"][1], alone["labels"][1] = 0, -100  # a row with nothing to learn is none
    assert [each.index for each in samples_of(alone, model)] == [0]
    learned["labels"][1, 3:] = -100  # behind the sample, and not learned
    assert len(samples_of(learned, model)) == 2
