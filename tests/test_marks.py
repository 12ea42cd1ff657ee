"""Marks of what is learned, and preference data: followed, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from readings import (
    ALPACA,
    BLUE,
    CHAT,
    GPT,
    HUMAN,
    PAIR,
    TOKENS,
    USER,
    fingerprint,
    learned,
    refusal,
    turns,
    two_replies,
)
from spice_rs.data.records import load_records


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"weight": np.float32(0)},
        {"weight": "0"},
        {"train": False},
        {"training": False},
        {"trainable": False},
        {"loss": False},
        {"loss_mask": 0},
        {"Weight": 0},
        {"trainOnTurn": False},
        {"learned": False},
        {"masked": True},
        {"ignore": 1},
        {"train": "false"},
    ],
)
def test_a_turn_marked_as_not_to_be_learned_is_context(mark):
    plain = two_replies()
    record = two_replies(mark)
    assert learned(record) == ["No, the blue one."]
    assert turns(record) == turns(plain)
    assert fingerprint(record) != fingerprint(plain)
    (name,) = mark
    other = "false" if name in ("masked", "ignore") else "true"
    assert fingerprint(two_replies({name: other}, {name: None})) == fingerprint(plain)
    everything = two_replies(mark, mark)
    assert "nothing" in refusal(everything) or "marked as not to be learned" in refusal(everything)
    assert load_records([everything, PAIR], skip_bad=True).bad[0].reason == "nothing to learn"
    shared = {"conversations": [HUMAN, {**GPT, **mark}, HUMAN, {"from": "gpt", "value": "yes"}]}
    assert learned(shared) == ["yes"]


def test_marks_of_slimorca_and_of_other_turns():
    record = {
        "conversations": [
            {"from": "system", "value": "s", "weight": None},
            {**HUMAN, "weight": 0.0},
            {**GPT, "weight": 1.0},
        ]
    }
    plain = {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT]}
    assert fingerprint(record) == fingerprint(plain)
    assert fingerprint(two_replies(user={"masked": False})) == fingerprint(two_replies())


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (two_replies({"weight": 0.5}), "messages[1].weight: found 0.5"),
        (two_replies({"weight": 2}), "messages[1].weight: found 2"),
        (two_replies({"loss_scale": [1, 0]}), "messages[1].loss_scale"),
        (two_replies({"train": "perhaps"}), "messages[1].train"),
        (
            two_replies({"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}),
            "parts of a turn",
        ),
        (two_replies({"weight": 0, "train": True}), "'train'"),
        (two_replies(user={"train": True}), "turn of the user"),
        (two_replies(user={"masked": False, "train": True}), "turn of the user"),
        (two_replies({"use_for_training": False}), "messages[1].use_for_training is bool False"),
        (two_replies({"is_mask_token": True}), "messages[1].is_mask_token is bool True"),
        ({**PAIR, "include_in_loss": False}, "'include_in_loss' is bool False"),
        ({**two_replies(), "turns_trained_on_loss": [True, False]}, "'turns_trained_on_loss'"),
        (two_replies({"mask": 1}), "'mask' may mean"),
        ({**two_replies(), "loss_mask": [0, 1, 0]}, "has 3 marks"),
        ({**two_replies(), "loss_mask": [0, 0.5, 0, 1]}, "loss_mask[1]: found 0.5"),
        ({**PAIR, "weight": 0.5}, "weights='weight' to select"),
        ({**PAIR, "weight": [0, 1]}, "'weight': found list"),
        ({**PAIR, "mask": "User"}, "'mask'"),
    ],
)
def test_marks_that_cannot_be_followed_are_refused(record, word):
    assert word in refusal(record)


@pytest.mark.parametrize("values", [[0, 0, 0, 1], [0, 1], [False, True], np.array([0, 0, 0, 1])])
@pytest.mark.parametrize("name", ["loss_mask", "weight", "train"])
def test_marks_by_turn(name, values):
    assert learned({**two_replies(), name: values}) == ["No, the blue one."]
    assert fingerprint({**two_replies(), name: [1, 1]}) == fingerprint(two_replies())


def test_masks_whose_sense_the_other_turns_tell():
    assert learned({**two_replies(), "mask": [0, 0, 0, 1]}) == ["No, the blue one."]
    assert learned({**two_replies(), "masks": [1, 1, 1, 0]}) == ["No, the blue one."]
    assert "may mean" in refusal({**two_replies(), "mask": [0, 1]})


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"masked": True}, {"learn": 0}]
)
@pytest.mark.parametrize("base", [PAIR, ALPACA, {"messages": CHAT}, {"text": "a story"}, TOKENS])
def test_a_record_marked_as_not_to_be_learned_is_left_out(base, mark):
    assert "not to be learned" in refusal({**base, **mark})
    bad = load_records([{**base, **mark}, PAIR], skip_bad=True).bad
    assert [(each.row, each.reason) for each in bad] == [(0, "nothing to learn")]
    other = {name: not value if isinstance(value, bool) else 1 for name, value in mark.items()}
    assert fingerprint({**base, **other}) == fingerprint(base)


def test_a_prompt_of_turns_is_context():
    earlier = {"role": "assistant", "content": "earlier"}
    record = {"prompt": [USER, earlier, USER], "completion": [BLUE]}
    assert learned(record) == ["the blue one"]
    assert len(turns(record)) == 4


# ------------------------------------------------------------------------------------------ preferences

RED = {"role": "assistant", "content": "the red one"}
PREFERENCES = [
    ({"prompt": "Which river?", "chosen": "the blue one", "rejected": "the red one"}, {}),
    ({"prompt": [USER], "chosen": [BLUE], "rejected": [RED]}, {}),
    ({"chosen": [USER, BLUE], "rejected": [USER, RED]}, {}),
    ({"prompt": "Which river?", "chosen": [USER, BLUE], "rejected": [USER, RED]}, {}),
    (
        {
            **{"prompt": "Which river?", "prompt_id": "x", "score_chosen": 8.0, "score_rejected": 2.0},
            **{"chosen": [USER, BLUE], "rejected": [USER, RED], "messages": [USER, BLUE]},
        },
        {},
    ),
    ({"question": "Which river?", "chosen": "the blue one", "rejected": "the red one"}, {"system": "s"}),
    ({"instruction": "Which river?", "chosen": "the blue one", "rejected": "the red one"}, {"system": "s"}),
    (
        {
            "conversations": [HUMAN],
            "chosen": {"from": "gpt", "value": "the blue one"},
            "rejected": {"from": "gpt", "value": "the red one"},
        },
        {"system": "s"},
    ),
    ({"messages": [USER, BLUE], "rejected_response": "the red one"}, {}),
    (
        {"query": "Which river?", "response": "the blue one", "rejected_response": "the red one"},
        {"system": "s"},
    ),
    (
        {
            "chosen": "\n\nHuman: Which river?\n\nAssistant: the blue one",
            "rejected": "\n\nHuman: Which river?\n\nAssistant: the red one",
        },
        {},
    ),
    (
        {"prompt": "Which river?", "responses": ["the red one", "the blue one"], "scores": [1, 2.5]},
        {"system": "s"},
    ),
]


@pytest.mark.parametrize(("record", "more"), PREFERENCES)
def test_preference_data_are_refused_or_their_wanted_side_is_learned(record, more):
    message = refusal({**record, **more})
    assert 'preference="chosen"' in message
    head = [("system", "s")] if more else []
    expected = [*head, ("user", "Which river?"), ("assistant", "the blue one")]
    assert turns({**record, **more}, preference="chosen") == expected
    assert learned({**record, **more}, preference="chosen") == ["the blue one"]


def test_what_both_sides_share_is_context():
    shared = [USER, {"role": "assistant", "content": "earlier"}, {"role": "user", "content": "Sure?"}]
    record = {"chosen": [*shared, BLUE], "rejected": [*shared, RED]}
    assert learned(record, preference="chosen") == ["the blue one"]
    assert len(turns(record, preference="chosen")) == 4
    record = {"messages": [*shared, BLUE], "rejected_response": "the red one"}
    assert learned(record, preference="chosen") == ["the blue one"]
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    record = {"chosen": text + "yes", "rejected": text + "no"}
    assert turns({**record, "system": "s"}, preference="chosen")[:2] == [("system", "s"), ("user", "a")]
    assert learned(record, preference="chosen") == ["yes"]
    assert turns(record, preference="chosen")[:2] == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"chosen": [USER, BLUE], "rejected": [USER, BLUE]}, "are the same"),
        ({"prompt": "another", "chosen": [USER, BLUE], "rejected": [USER, RED]}, "the same prompt"),
        ({"chosen": "the blue one", "rejected": "the red one"}, "expected a prompt"),
        ({"system": "s", "chosen": "the blue one", "rejected": "the red one"}, "expected a prompt"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [2, 2]}, "more than once"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [2]}, "as many numbers"),
        ({"prompt": "q", "completions": ["a", "b"]}, "'completions'"),
        ({"messages": [*CHAT, USER], "rejected_response": "x"}, "does not end"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "rationale": "because"}, "'rationale'"),
    ],
)
def test_preference_data_that_tell_no_wanted_side(record, word):
    assert word in refusal(record, preference="chosen")


@pytest.mark.parametrize("preference", [None, "chosen"])
@pytest.mark.parametrize(
    "record",
    [
        *(
            {**PAIR, "label": False},
            {**PAIR, "label": 0},
            {**PAIR, "label": np.bool_(False)},
            {**PAIR, "is_chosen": False},
        ),
        *(
            {"messages": CHAT, "label": False},
            {**ALPACA, "kto_tag": False},
            {**PAIR, "chosen": False},
        ),
        {**PAIR, "rejected": True},
    ],
)
def test_an_unwanted_reply_is_never_learned(record, preference):
    assert "not wanted (KTO)" in refusal(record, preference=preference)
    bad = load_records([record, PAIR], preference=preference, skip_bad=True).bad
    assert [each.reason for each in bad] == ["unwanted reply"]
    wanted = {name: value if isinstance(value, str | list) else not value for name, value in record.items()}
    plain = {name: value for name, value in record.items() if isinstance(value, str | list)}
    assert fingerprint(wanted, preference=preference) == fingerprint(plain)


@pytest.mark.parametrize("name", ["label", "kto_tag", "desirable"])
def test_an_unwanted_reply_may_be_marked_in_words(name):
    assert "not wanted (KTO)" in refusal({**PAIR, name: " False"})
    assert "not wanted (KTO)" in refusal({**PAIR, name: -1})
