"""What records mean: all that changes what is learned is used or refused by name, in every layout and every file."""

from __future__ import annotations

import contextlib
import datetime
import json
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from spice_rs.data.layouts import FIELDS, LAYOUTS, is_media, is_metadata
from spice_rs.data.records import Message, chosen_records, dataset_fingerprint, load_records, record_hash
from spice_rs.errors import InvalidInputError

USER = {"role": "user", "content": "Which river?"}
BLUE = {"role": "assistant", "content": "the blue one"}
CHAT = [USER, BLUE]
HUMAN, GPT = {"from": "human", "value": "Which river?"}, {"from": "gpt", "value": "the blue one"}
ALPACA = {"instruction": "And how long?", "output": "nine"}
PAIR = {"prompt": "Which river?", "completion": "the blue one"}
QA = {"question": "Which river?", "answer": "the blue one"}
TOKENS = {"input_ids": [30, 31, 32, 33], "labels": [-100, 31, 32, 33]}


def read(record, **options):
    return load_records([record], **options)[0]


def turns(record, **options):
    return [(turn.role, turn.content) for turn in read(record, **options).messages]


def learned(record, **options):
    return [
        turn.content for turn in read(record, **options).messages if turn.role == "assistant" and turn.learned
    ]


def fingerprint(record, **options):
    return dataset_fingerprint(load_records([record], **options))


def refusal(record, **options):
    with pytest.raises(InvalidInputError) as caught:
        load_records([record], **options)
    assert str(caught.value).startswith("data[0]: ")
    assert "skip_bad=True (--skip-bad)" in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ text that is read


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "q", "context": "c", "response": "r"}, [("user", "q\n\nc"), ("assistant", "r")]),
        ({"question": "q", "context": "c", "answer": "r"}, [("user", "c\n\nq"), ("assistant", "r")]),
        (
            {"question": "q", "context": "c", "answers": {"text": ["r", "r"], "answer_start": [3, 3]}},
            [("user", "c\n\nq"), ("assistant", "r")],
        ),
        (
            {"system_prompt": "s", "question": "q", "response": "r"},
            [("system", "s"), ("user", "q"), ("assistant", "r")],
        ),
        (
            {
                "instruction": "q",
                "input": "i",
                "output": "r",
                "system": "s",
                "history": [["a", "b"], ("c", "d")],
            },
            [
                ("system", "s"),
                *[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
                *[("user", "q\n\ni"), ("assistant", "r")],
            ],
        ),
        (
            {"query": "q", "response": "r", "system": "", "history": []},
            [("user", "q"), ("assistant", "r")],
        ),
        (
            {
                "query": "q",
                "response": "r",
                "history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            },
            [("user", "a"), ("assistant", "b"), ("user", "q"), ("assistant", "r")],
        ),
        ({"prompt": "q", "input": "i", "completion": "r"}, [("user", "q\n\ni"), ("assistant", "r")]),
        (
            {"conversations": [HUMAN, GPT], "system": "s"},
            [("system", "s"), ("user", "Which river?"), ("assistant", "the blue one")],
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, *CHAT], "system": "s "},
            [("system", "s"), ("user", "Which river?"), ("assistant", "the blue one")],
        ),
        ({"conversations": CHAT}, [("user", "Which river?"), ("assistant", "the blue one")]),
        ({"messages": [HUMAN, GPT]}, [("user", "Which river?"), ("assistant", "the blue one")]),
        (
            {"messages": [{"role": "Human", "content": "q"}, {"role": "bot", "content": "r"}]},
            [("user", "q"), ("assistant", "r")],
        ),
        ({"messages": [], "prompt": "q", "response": "r"}, [("user", "q"), ("assistant", "r")]),
        ({"input_ids": [], "prompt": "q", "response": "r"}, [("user", "q"), ("assistant", "r")]),
        ({"instruction": "", "prompt": "q", "response": "r"}, [("user", "q"), ("assistant", "r")]),
        ({"prompt": [USER], "completion": [BLUE]}, [("user", "Which river?"), ("assistant", "the blue one")]),
        ({"prompt": [USER], "completion": "r"}, [("user", "Which river?"), ("assistant", "r")]),
        (
            {"prompt": "q", "completion": [BLUE], "system": "s"},
            [("system", "s"), ("user", "q"), ("assistant", "the blue one")],
        ),
    ],
)
def test_every_text_of_a_known_layout_is_read(record, expected):
    assert turns(record) == expected


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "prompt": " Which river?", "prompt_id": "a7"},
        {"messages": CHAT, "conversations": [HUMAN, GPT]},
        {**ALPACA, "text": "Below is a task.\n\n### Instruction:\nAnd how long?\n\n### Response:\nnine"},
        {**PAIR, "spice": {"rank": 1, "note": "x"}},
        {"query": "q", "response": "r", "original_question": "o", "type": "GSM"},
        {"question": "q", "context": "c", "answer": "r", "title": "T"},
        {"instruction": "q", "context": "", "response": "r", "category": "open_qa"},
        {**QA, "choices": [], "explanation": None, "hint": "  ", "passages": [""]},
        {
            **QA,
            "id": "x",
            "dataSource": "y",
            "Conversation-ID": "z",
            "model_name": "m",
            "created_at": "2020",
            "lang": "de",
        },
        {**QA, "scores": [0.5, 0.25], "difficulty": 3, "verified": True, "embedding": np.ones(3)},
        {**QA, "when": datetime.date(2020, 1, 1), "url": "https://example.org/" + "a" * 400},
        {**QA, "metadata": {"author": "someone", "words": ["a"]}, "correct": "the blue one"},
    ],
)
def test_what_says_nothing_more_is_let_go(record):
    read(record)


@pytest.mark.parametrize(
    "name", ["reference", "hint", "explanation", "reasoning", "rationale", "solution", "document", "notes"]
)
@pytest.mark.parametrize(
    "base", [PAIR, ALPACA, {"messages": CHAT}, {"conversations": [HUMAN, GPT]}, {"text": "a story"}]
)
def test_text_that_nothing_reads_is_refused_with_the_ways_out(base, name):
    message = refusal({**base, name: "three boats"})
    for word in (
        repr(name),
        "--columns",
        f"ignore_columns={name!r} (--ignore-columns {name})",
        "remove or rename",
    ):
        assert word in message
    plain = fingerprint(base)
    assert fingerprint({**base, name: "three boats"}, ignore_columns=name) == plain
    assert fingerprint({**base, name: "three boats"}, ignore_columns=[name, "other"]) == plain
    for nothing in (None, "", " \n", [], {}, [None], float("nan"), 7, True):
        assert fingerprint({**base, name: nothing}) == plain


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({**QA, "choices": ["the red one", "the blue one"]}, "'choices'"),
        ({**QA, "choices": {"label": ["A"], "text": ["the red one"]}}, "'choices'"),
        ({**QA, "passages": np.array(["one", "two"], dtype=object)}, "'passages'"),
        ({**ALPACA, "question": "another"}, "'question'"),
        ({**ALPACA, "response": "another"}, "'output'"),
        ({**ALPACA, "text": "another"}, "'text'"),
        ({"messages": CHAT, "prompt": "another"}, "'prompt'"),
        ({"messages": CHAT, "history": [["a", "b"]]}, "'history'"),
        ({"messages": CHAT, "context": "c"}, "'context'"),
        ({"messages": CHAT, "conversations": [HUMAN, {**GPT, "weight": 0}]}, "'conversations'"),
        ({"messages": CHAT, "is_chosen": ["a"]}, "'is_chosen'"),
        (
            {"messages": CHAT, "conversations": [HUMAN, {"from": "gpt", "value": "another"}]},
            "'conversations'",
        ),
        ({"prompt": [USER], "completion": [BLUE], "context": "c"}, "'context'"),
        ({"text": "a story", "role": "prompter", "message_id": "x", "parent_id": "y"}, "OASST"),
        ({"text": "I like it", "label": "positive"}, "'label'"),
        ({"text": "a story", "system": "s"}, "'system'"),
        ({**QA, "source": "a long story " * 40}, "'source'"),
        (
            {"messages": [{"role": "system", "content": "s"}, *CHAT], "system": "t"},
            "two system turns|different things",
        ),
        (
            {"question": "q", "context": "c", "answers": {"text": ["r", "s"], "answer_start": [1, 2]}},
            "2 different answers",
        ),
        (
            {"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}},
            "'answers' is empty",
        ),
        ({**ALPACA, "history": ["a", "b"]}, "history"),
        ({**ALPACA, "history": [["a", "b", "c"]]}, "history"),
        ({"conversations": ["q", "r"]}, "who speaks"),
        ({"messages": CHAT, "chat_template": "{{ messages }}"}, "'chat_template'"),
        ({"messages": CHAT, "enable_thinking": False}, "expected it in 'chat_template_kwargs'"),
        ({**PAIR, "completion": ["a", "b"]}, "a list of 2 texts"),
        ({**PAIR, "sample_weight": 0.5}, "'sample_weight' is 0.5"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [BLUE], "non_preferred_output": [BLUE]},
            "preference data",
        ),
    ],
)
def test_relatives_are_refused_by_name(record, word):
    assert any(each in refusal(record) for each in word.split("|"))


def test_names_of_metadata():
    for name in (
        "ID",
        "prompt_id",
        "sourceUrl",
        "judge-score",
        "created_at",
        "license",
        "target_language",
        "task",
        "Model",
        "sha256",
    ):
        assert is_metadata(name), name
    for name in (
        *(
            "notes",
            "hint",
            "explanation",
            "reasoning",
            "thought",
            "rationale",
            "solution",
            "context",
            "background",
        ),
        *(
            "document",
            "passage",
            "input",
            "persona",
            "title",
            "summary",
            "code",
            "short_version",
            "image_url",
            "label",
        ),
    ):
        assert not is_metadata(name), name
    assert all(
        map(
            is_media, ("image", "images", "imageUrl", "audio_path", "Videos", "files", "file", "pixel_values")
        )
    )
    assert not any(
        map(is_media, ("image_id", "num_images", "file_path", "file_name", "filename", "imagination"))
    )


# ------------------------------------------------------------------------------------------ columns, ignore_columns


def test_columns_say_what_is_read_and_nothing_else_is_dropped():
    named = {"prompt": "frage", "response": "antwort"}
    record = {"frage": "q", "antwort": "r", "quelle": "k"}
    assert "'quelle'" in refusal(record, columns=named)
    assert turns(record, columns={**named, "context": "quelle"}) == [("user", "q\n\nk"), ("assistant", "r")]
    assert turns(record, columns={**named, "system": "quelle"})[0] == ("system", "k")
    assert turns(record, columns={**named, "input": "quelle"})[0] == ("user", "q\n\nk")
    assert turns(record, columns=named, ignore_columns="quelle") == [("user", "q"), ("assistant", "r")]
    assert turns({**record, "quelle": None}, columns={**named, "system": "quelle"}) == [
        ("user", "q"),
        ("assistant", "r"),
    ]
    early = {**record, "quelle": [["a", "b"]]}
    assert turns(early, columns={**named, "history": "quelle"})[:2] == [("user", "a"), ("assistant", "b")]
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert read({**record, "quelle": tools}, columns={**named, "tools": "quelle"}).tools == tools
    assert "'tools'" in refusal(record, columns={**named, "tools": "quelle"})
    marked = {**record, "quelle": 0}
    assert "not to be learned" in refusal(marked, columns={**named, "weight": "quelle"})
    assert "KTO" in refusal(marked, columns={**named, "label": "quelle"})


@pytest.mark.parametrize(
    ("columns", "record", "word"),
    [
        ({"text": "t", "input": "i"}, {"t": "a", "i": "b"}, "'i' as 'input'"),
        ({"text": "t", "tools": "i"}, {"t": "a", "i": [{"name": "x"}]}, "'i' as 'tools'"),
        ({"messages": "m", "prompt": "p"}, {"m": CHAT, "p": "another"}, "'p' as 'prompt'"),
        ({"messages": "m", "input": "p"}, {"m": CHAT, "p": "another"}, "'p' as 'input'"),
        ({"prompt": "p", "response": "r"}, {"p": "a", "r": "b", "context": "c"}, "'context'"),
        ({"prompt": "p", "response": "r"}, {"p": "a", "r": "b", "train": False}, "not to be learned"),
        ({"prompt": "p", "response": "r"}, {"p": "a", "r": "b", "images": ["x.png"]}, "'images'"),
    ],
)
def test_columns_that_are_not_used_are_refused(columns, record, word):
    assert word in refusal(record, columns=columns)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"columns": {"prompt": "a", "question": "b", "response": "c"}}, "'prompt' and 'question'"),
        ({"columns": {"prompt": "a", "response": "b", "output": "c"}}, "'response' and 'output'"),
        ({"columns": {"prompt": "a"}, "ignore_columns": "a"}, "'a' as the prompt"),
        ({"ignore_columns": [7]}, "ignore_columns: found 7"),
        ({"ignore_columns": ""}, "ignore_columns: found ''"),
        ({"preference": "rejected"}, "preference is 'rejected'"),
    ],
)
def test_arguments_that_contradict_themselves_are_refused(options, word):
    with pytest.raises(InvalidInputError, match=word):
        load_records([PAIR], **options)


def test_ignored_columns_are_as_if_they_were_not_there():
    assert fingerprint({**ALPACA, "system": "s"}, ignore_columns="system") == fingerprint(ALPACA)
    assert fingerprint({**PAIR, "weight": 0.5}, ignore_columns="weight") == fingerprint(PAIR)
    odd = "judge's notes, no-1"
    assert fingerprint({**PAIR, odd: "x"}, ignore_columns=odd) == fingerprint(PAIR)
    marked = {"messages": [USER, {**BLUE, "weight": 0.5, "draft": "x", "thinking": "y", "shot": b"z"}]}
    ignored = ["messages.weight", "messages.draft", "messages.thinking", "messages.shot"]
    assert fingerprint(marked, ignore_columns=ignored) == fingerprint({"messages": CHAT})
    assert next(chosen_records([{**PAIR, "hint": "x"}], {0}, ignore_columns="hint")).index == 0


# ------------------------------------------------------------------------------------------ marks


def two_replies(first=None, second=None, user=None):
    return {
        "messages": [
            {**USER, **(user or {})},
            {"role": "assistant", "content": "the red one", **(first or {})},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "No, the blue one.", **(second or {})},
        ]
    }


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
        (two_replies({"weight": 0.5}), "messages[1].weight is 0.5"),
        (two_replies({"weight": 2}), "messages[1].weight is 2"),
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
        ({**two_replies(), "loss_mask": [0, 0.5, 0, 1]}, "loss_mask[1] is 0.5"),
        ({**PAIR, "weight": 0.5}, "'weight' is 0.5"),
        ({**PAIR, "weight": [0, 1]}, "'weight' is list"),
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
    assert 'preference="chosen" (--preference chosen)' in message
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
    assert learned(record, preference="chosen") == ["yes"]
    assert turns(record, preference="chosen")[:2] == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"chosen": [USER, BLUE], "rejected": [USER, BLUE]}, "are the same"),
        ({"prompt": "another", "chosen": [USER, BLUE], "rejected": [USER, RED]}, "the same prompt"),
        ({"chosen": "the blue one", "rejected": "the red one"}, "expected a prompt"),
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
        *({"messages": CHAT, "label": False}, {**ALPACA, "kto_tag": False}, {**PAIR, "chosen": False}),
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


# ------------------------------------------------------------------------------------------ tokens


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
        ({"attention_mask": [[1, 1, 1, 1]]}, "'attention_mask' is list"),
        ({"attention_mask": "1111"}, "'attention_mask' is str"),
        ({"position_ids": [0, 1, 0, 1]}, "one sample in a row"),
        ({"position_ids": [7, 8, 9, 10]}, "starts at 7"),
        ({"position_ids": [[0, 1, 2, 3]] * 3}, "'position_ids'"),
        ({"cu_seqlens": [0, 2, 4]}, "one sample in a row"),
        ({"cu_seq_lens_q": np.array([0, 2, 4])}, "one sample in a row"),
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


# ------------------------------------------------------------------------------------------ nulls


def calling(arguments, **more):
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call], **more}]}


SHAPES = [
    calling({"place": "harbour"}),
    calling({"unit": "m", "deep": {"a": [1, 2]}}),
    calling({}),
    {
        **calling({"place": "harbour"}),
        "tools": [{"name": "look", "parameters": {"type": "object", "properties": {}}}],
    },
    {
        "messages": CHAT,
        "tools": [{"name": "go", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}],
    },
    {"messages": CHAT, "tools": []},
    {"messages": [{**USER, "name": "Ann"}, {**BLUE, "reasoning_content": "hm"}]},
    two_replies({"weight": 0}),
    {**ALPACA, "system": "s"},
    PAIR,
    {"text": "a story"},
    {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": CHAT, "chat_template_kwargs": {"date": "today"}},
]


def test_the_same_record_is_the_same_in_every_file_alone_and_among_others(tmp_path):
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, load_dataset

    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(shape) + "\n" for shape in SHAPES), encoding="utf-8")
    names = dict.fromkeys(name for shape in SHAPES for name in shape)
    wide = [
        {**names, **shape} for shape in SHAPES
    ]  # pyarrow and datasets take the first record's columns alone
    tables = [pyarrow.Table.from_pylist(part) for part in (wide[:4], wide[4:7], wide[7:])]
    joined = pyarrow.concat_tables(tables, promote_options="permissive")
    pyarrow.parquet.write_table(joined, tmp_path / "joined.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(wide), tmp_path / "a.parquet")
    alone = [Dataset.from_list([shape]) for shape in SHAPES]
    sources = [
        SHAPES,
        lines,
        tmp_path / "a.parquet",
        Dataset.from_list(wide),
        Dataset.from_list(wide).to_pandas().to_dict("records"),
        tmp_path / "joined.parquet",
        load_dataset("json", data_files=str(lines), split="train", cache_dir=str(tmp_path / "cache")),
    ]
    hashes = [[record_hash(record) for record in load_records(source)] for source in sources]
    assert all(each == hashes[0] for each in hashes)
    assert [record_hash(load_records(each)[0]) for each in alone] == hashes[0]
    assert len(set(hashes[0])) == len(SHAPES) - 1  # an empty list of tools is none
    assert len({dataset_fingerprint(load_records(source)) for source in sources}) == 1


def test_maps_of_parquet_are_objects(tmp_path):
    import pyarrow
    import pyarrow.parquet

    call = pyarrow.struct(
        [("name", pyarrow.string()), ("arguments", pyarrow.map_(pyarrow.string(), pyarrow.string()))]
    )
    turn = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", pyarrow.list_(call))]
    )
    given = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "look", "arguments": [("place", "harbour")]}],
    }
    table = pyarrow.Table.from_pylist(
        [{"messages": [USER, given]}], schema=pyarrow.schema([("messages", pyarrow.list_(turn))])
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (record,) = load_records(tmp_path / "a.parquet")
    assert record.messages[1].more["tool_calls"] == [{"name": "look", "arguments": {"place": "harbour"}}]


@pytest.mark.parametrize(
    ("with_nulls", "without"),
    [
        (calling({"place": "harbour", "unit": None}), calling({"place": "harbour"})),
        (calling({"place": None}), calling({})),
        (calling({"deep": {"a": None, "b": [{"c": None, "d": 1}]}}), calling({"deep": {"b": [{"d": 1}]}})),
        (calling({"a": 1}, reasoning_content=None, name=None), calling({"a": 1})),
        (
            {"messages": [{**USER, "tool_calls": None, "weight": None}, {**BLUE, "tool_calls": []}]},
            {"messages": CHAT},
        ),
        ({"messages": CHAT, "tools": None, "system": None}, {"messages": CHAT}),
        (
            {"messages": CHAT, "tools": [{"name": "a", "x": None}]},
            {"messages": CHAT, "tools": [{"name": "a"}]},
        ),
        (
            {"messages": CHAT, "tools": '[{"name": "a", "x": null}]'},
            {"messages": CHAT, "tools": [{"name": "a"}]},
        ),
        ({"messages": CHAT, "chat_template_kwargs": {"a": None}}, {"messages": CHAT}),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Which river?", "image": None}]},
                    BLUE,
                ]
            },
            {"messages": CHAT},
        ),
        (
            {"messages": np.array([{**USER, "name": float("nan")}, BLUE], dtype=object)},
            {"messages": tuple(CHAT)},
        ),
        ({"messages": None, **PAIR}, PAIR),
        ({"input_ids": None, "instruction": float("nan"), **PAIR}, PAIR),
        ({"messages": CHAT, "prompt": np.nan, "label": None, "weight": None}, {"messages": CHAT}),
    ],
)
def test_a_null_says_nothing(with_nulls, without):
    assert fingerprint(with_nulls) == fingerprint(without)


def test_what_is_no_null_of_an_object_stays():
    assert fingerprint(calling({"a": [1, None]})) != fingerprint(calling({"a": [1]}))
    assert fingerprint(calling('{"unit": null}')) != fingerprint(calling("{}"))  # words, as they stand
    assert fingerprint(calling({"a": ""})) != fingerprint(calling({}))
    assert "null in 'prompt'" in refusal({"prompt": None, "response": "r"})
    assert "'content'" in refusal({"messages": [{"role": "user", "content": None}, BLUE]})


# ------------------------------------------------------------------------------------------ images, calls, options


class Picture:
    """As `datasets` decodes an image."""


@pytest.mark.parametrize(
    "more",
    [
        {"images": ["a.png"]},
        {"image": "a.png"},
        {"image": {"bytes": b"\x89PNG", "path": None}},
        {"picture_of_it": Picture()},
        {"shot": Picture()},
        {"shot": [{"bytes": b"x", "path": "a.png"}]},
        {"audio": {"array": np.ones(3), "sampling_rate": 8}},
        {"audios": ["a.wav"]},
        {"videos": ["a.mp4"]},
        {"files": ["a.pdf"]},
        {"image_url": "https://example.org/a.png"},
    ],
)
@pytest.mark.parametrize(
    "base", [{"instruction": "<image>What?", "response": "a mill"}, {"messages": CHAT}, {"text": "<image>"}]
)
def test_what_is_no_text_is_refused(base, more):
    (name,) = more
    assert f"field {name!r} holds" in refusal({**base, **more})
    assert fingerprint({**base, name: None}) == fingerprint({**base, name: []}) == fingerprint(base)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
        {"role": "user", "content": [{"type": "text", "text": "What?", "image": "a.png"}]},
        {"role": "user", "content": "What?", "images": ["a.png"]},
        {"role": "user", "content": "What?", "audio": {"id": "x"}},
        {"from": "human", "value": "What?", "image": "a.png"},
        {"role": "user", "content": "What?", "refusal": "No."},
        {"role": "user", "content": "What?", "draft": "Who?"},
        {"role": "user", "content": "What?", "label": "odd"},
    ],
)
def test_turns_with_more_than_is_read_are_refused(turn):
    assert "messages[0]" in refusal({"messages": [turn, BLUE]})


def test_calls_of_tools_in_other_words_are_the_same():
    call = {"name": "look", "arguments": {"place": "harbour"}}
    wrapped = {"type": "function", "function": call}
    asked = {"role": "user", "content": "Look it up"}
    plain = {
        "messages": [
            asked,
            {"role": "assistant", "content": "", "tool_calls": [wrapped]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "three"},
        ]
    }
    sharegpt = [
        {"from": "human", "value": "Look it up"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "three"},
    ]
    swift = [
        asked,
        {"role": "tool_call", "content": json.dumps([call])},
        {"role": "tool_response", "content": "3"},
        {"role": "assistant", "content": "three"},
    ]
    openai = [
        asked,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "content": "3"},
        {"role": "assistant", "content": "three"},
    ]
    text = [asked, {"role": "assistant", "tool_calls": json.dumps([wrapped])}, *plain["messages"][2:]]
    prints = {
        fingerprint(each)
        for each in (
            plain,
            {"conversations": sharegpt},
            {"messages": swift},
            {"messages": openai},
            {"messages": text},
        )
    }
    assert len(prints) == 1
    described = {"name": "look", "parameters": {"type": "object"}}
    functions = fingerprint({"messages": openai, "functions": [described], "parallel_tool_calls": False})
    assert functions == fingerprint({**plain, "tools": [{"type": "function", "function": described}]})
    both = [
        asked,
        {"role": "assistant", "content": "Let me see."},
        {"role": "tool_call", "content": json.dumps(call)},
    ]
    (turn,) = read({"messages": both}).messages[1:]
    assert turn == Message("assistant", "Let me see.", {"tool_calls": [wrapped]})
    for broken in ("look(harbour)", "[]", "{}", '"look"'):
        assert "expected" in refusal({"conversations": [HUMAN, {"from": "function_call", "value": broken}]})


def test_options_of_the_template_and_tools_go_with_every_conversation():
    record = read(
        {"prompt": [USER], "completion": [BLUE], "chat_template_kwargs": {"enable_thinking": False}}
    )
    assert record.template_options == {"enable_thinking": False}
    assert read({"messages": CHAT, "chat_template_kwargs": '{"a": 1}'}).template_options == {"a": 1}
    assert "chat_template_kwargs" in refusal({"messages": CHAT, "chat_template_kwargs": "now"})
    tools = [{"name": "look"}]
    assert read({"prompt": [USER], "completion": [BLUE], "tools": tools}).tools == tools
    assert read({**PAIR, "tools": tools}).tools == tools


# ------------------------------------------------------------------------------------------ cases, the page, hashes


SHOWING = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% for c in m.tool_calls or [] %}"
    " {{ c['function'] | tojson }}{% endfor %}{{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def test_cases_that_were_dropped_without_a_word(proxy, shared_file, tmp_path):
    """Every pair of the shared cases, as records and as rows of a store."""
    import spice_rs
    from tiny import make_tokenizer

    cases = [
        json.loads(line)
        for line in shared_file("cases/records.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    pool, pairs = [], []
    for case in cases:
        try:
            same = fingerprint(case["a"]) == fingerprint(case["b"])
        except InvalidInputError:
            assert case["relation"] == "differ"
            continue
        assert same == (case["relation"] == "equal"), case["name"]
        if case["name"] != "weight-0":  # tokens of turns that are context: see test_dataset.py
            pairs.append(case)
            pool += [{**case["a"], "number": 1}, {**case["b"], "number": 2}]
    model = AutoModelForCausalLM.from_pretrained(proxy)
    model.resize_token_embeddings(40)
    store = spice_rs.extract(
        model, pool, tmp_path / "s", dim=64, tokenizer=make_tokenizer(chat_template=SHOWING), progress=False
    )
    rows = store.read(np.argsort(store.index)).reshape(len(pairs), 2, -1)
    assert len(pairs) >= 6
    for case, (a, b) in zip(pairs, rows.astype(np.float64), strict=True):
        assert np.allclose(a, b, rtol=1e-2, atol=1e-2) == (case["relation"] == "equal"), case["name"]


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
    for word in ("data[1]", wrong, "attention_mask", "--skip-bad"):
        assert word in str(caught.value)
    assert len(extract("b", pool, skip_bad=True)) == 1
    assert (tmp_path / "b.left-out.jsonl").read_text(encoding="utf-8").count('"padding"') == 1
    # Where rows are padded at all, one pad token is padding too, unless it ends texts.
    single = {"input_ids": [5, 6, 1], "labels": [-100, 6, 1]}
    assert len(extract("c", [*pool, single], skip_bad=True)) == (1 if end == 2 else 2)


def test_columns_are_ignored_and_wanted_sides_learned_by_flags(proxy, tmp_path, capsys):
    import spice_rs
    from command import run

    def extract(name, record, *flags):
        (tmp_path / "pool.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
        given = (
            "--model",
            proxy,
            "--data",
            tmp_path / "pool.jsonl",
            "--out",
            tmp_path / name,
            "--dim",
            8,
            "--no-progress",
        )
        return run("extract", *given, "--dim", 8, "--no-progress", *flags)

    def row(name):
        return spice_rs.GradientStore(tmp_path / name).read(np.array([0]))

    plain = {"prompt": "a b", "response": "c d"}
    assert extract("plain", plain) == 0
    noted = {**plain, "the judge's note": "e f", "draft-2": "g"}
    assert extract("x", noted) == 2
    assert "line 1" in capsys.readouterr().err
    assert extract("noted", noted, "--ignore-columns", "the judge's note,draft-2") == 0
    pair = {"prompt": "a b", "chosen": "c d", "rejected": "e"}
    assert extract("y", pair) == 2
    assert "--preference chosen" in capsys.readouterr().err
    assert extract("pair", pair, "--preference", "chosen") == 0
    for name in ("noted", "pair"):
        np.testing.assert_array_equal(row(name), row("plain"))
    assert extract("z", plain, "--ignore-columns", "a,,b") == 2
    assert extract("z", plain, "--preference", "rejected") == 2


def test_whatever_stands_in_a_field_is_read_or_refused():
    """Random records of all names and odd values: and no other error."""
    names = [
        *FIELDS,
        "weight",
        "masked",
        "mask",
        "train_detail",
        "rejected",
        "images",
        "id",
        "hint",
        "position_ids",
        "cu_seqlens",
    ]
    masked = [{**USER, "mask": 1}, {**BLUE, "mask": 0}]
    values = [
        *(
            None,
            "",
            " ",
            "a b",
            "{}",
            "[",
            "\ud800",
            b"x",
            0,
            1,
            2,
            0.5,
            True,
            False,
            float("nan"),
            np.float32(1),
            np.array(3),
        ),
        *(
            [],
            {},
            [0, 1],
            [True, False],
            [0.5],
            [None],
            ["a"],
            ["a", "b"],
            [["a", None]],
            [[1, 2], [3]],
            [{}],
            [3],
            {"a"},
        ),
        *(
            CHAT,
            [USER],
            masked,
            BLUE,
            [{**BLUE, "tool_calls": "x"}],
            {"text": ["a"]},
            {1: 2},
            range(2),
            Picture(),
        ),
        *(
            np.array(CHAT, dtype=object),
            np.array(["a"]),
            np.array([1, 2]),
            [{"from": "gpt"}],
            datetime.date(2020, 1, 1),
        ),
    ]
    bases = [{}, PAIR, {"messages": CHAT}, {"text": "a story"}, TOKENS]
    draw = random.Random(0)
    read = 0
    for _ in range(4000):
        record = {
            **draw.choice(bases),
            **{draw.choice(names): draw.choice(values) for _ in range(draw.randint(1, 3))},
        }
        options = draw.choice([{}, {"preference": "chosen"}, {"ignore_columns": draw.choice(names)}])
        with contextlib.suppress(InvalidInputError):
            load_records([record], **options)
            read += 1
    assert 100 < read < 3900


def test_stores_of_plain_records_stay_valid():
    """The hash of what was read rightly before stays what it was."""
    plain = load_records([PAIR, {"text": "a story"}, {"messages": CHAT, "tools": [{"name": "a"}]}, TOKENS])
    assert dataset_fingerprint(plain) == "d162cf72baead76a490beebbd987941170f1d1c4de1bdbdf1797117a67ffcc76"
    assert record_hash(plain[0]) == record_hash(load_records([QA, PAIR])[1])
    assert len({record_hash(record) for record in plain}) == 4
    assert 0 <= record_hash(plain[0]) < 1 << 64


EXAMPLES = {
    "Tokenised": {**TOKENS, "attention_mask": [1] * 4, "token_type_ids": [0] * 4, "length": 4, "text": "x"},
    "OpenAI chat": {"messages": CHAT, "tools": [], "system_prompt": "s", "parallel_tool_calls": True},
    "ShareGPT": {"conversations": [HUMAN, GPT], "system": "s", "tools": "[]"},
    "UltraChat": {"messages": CHAT, "prompt": "Which river?"},
    "Alpaca": {
        **ALPACA,
        "input": "i",
        "text": "And how long? i nine",
        "system": "s",
        "history": [["a", "b"]],
    },
    "Dolly": {"instruction": "q", "context": "c", "response": "r", "category": "qa"},
    "OpenOrca": {"id": "x", "system_prompt": "s", "question": "q", "response": "r"},
    "ms-swift": {"system": "s", "query": "q", "response": "r", "history": [["a", "b"]]},
    "MetaMath": {"query": "q", "response": "r", "original_question": "o", "type": "GSM"},
    "SQuAD": {"question": "q", "context": "c", "answers": {"text": ["r"], "answer_start": [0]}, "title": "t"},
    "TRL prompt": {**PAIR, "tools": []},
    "KTO": {**PAIR, "label": True},
    "Preference": {"prompt": "q", "chosen": "r", "rejected": "s"},
    "Several": {"prompt": "q", "completions": ["r", "s"], "scores": [1, 2]},
    "Plain": {"text": "a story"},
    "OASST": {"text": "a story", "role": "prompter", "message_id": "x"},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_page_lists_the_layouts_and_they_are_read_so(layout):
    def cell(names):
        return ", ".join(" or ".join(f"`{each}`" for each in name.split("|")) for name in names) or "–"

    page = (Path(__file__).parents[1] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    named = [cell(names) for names in (layout.told_by, layout.reads)]
    assert (
        " | ".join(
            [f"| {layout.name}", *named, layout.read_as, cell(layout.refuses), f"{cell(layout.ignores)} |"]
        )
        in page
    )
    (example,) = [each for name, each in EXAMPLES.items() if layout.name.startswith(name)]
    assert layout.fits(frozenset(example))
    known = {*layout.reads, *layout.ignores, *layout.refuses}
    assert all(name in known or is_metadata(name) for name in example if name != "text")
    if "refused" in layout.read_as.split(";")[0]:
        refusal(example)
    if layout.reads:
        read(example, preference="chosen" if "preference=" in layout.read_as else None)
    for name in layout.refuses:
        assert name in refusal({**example, name: "x"})
    for name in layout.ignores:
        assert fingerprint({**example, name: None}, preference="chosen") == fingerprint(
            example, preference="chosen"
        ) or (layout.name.startswith("Preference"))
