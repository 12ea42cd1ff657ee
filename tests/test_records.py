"""What records mean: all text that would be learned is read, or refused by name, in every layout."""

from __future__ import annotations

import contextlib
import datetime
import random

import numpy as np
import pytest

from counts import some
from readings import (
    ALPACA,
    BLUE,
    CHAT,
    GPT,
    HUMAN,
    PAIR,
    QA,
    TOKENS,
    USER,
    Picture,
    fingerprint,
    read,
    refusal,
    turns,
)
from spice_rs.data.layouts import FIELDS, is_media, is_metadata
from spice_rs.data.records import load_records, parse_record
from spice_rs.errors import InvalidInputError

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
        "columns=…",
        f"ignore_columns={name!r}",
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
            "'answers': found empty text",
        ),
        ({**ALPACA, "history": ["a", "b"]}, "history"),
        ({**ALPACA, "history": [["a", "b", "c"]]}, "history"),
        ({"conversations": ["q", "r"]}, "who speaks"),
        ({"messages": CHAT, "chat_template": "{{ messages }}"}, "'chat_template'"),
        ({"messages": CHAT, "enable_thinking": False}, "expected it in 'chat_template_kwargs'"),
        ({**PAIR, "completion": ["a", "b"]}, "a list of 2 texts"),
        ({**PAIR, "sample_weight": 0.5}, "'sample_weight': found 0.5"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [BLUE], "non_preferred_output": [BLUE]},
            "preference data",
        ),
    ],
)
def test_relatives_are_refused_by_name(record, word):
    assert any(each in refusal(record) for each in word.split("|"))


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {**QA, "id": 7, "source": None, "score": float("nan")},
        {**ALPACA, "input": ""},
        {"prompt": "", "response": "ü"},
        {**QA, "source": "word " * 100},
        {**QA, "url": "https://example.org/" + "a" * 400},
        {**QA, "answer": " "},
        {**QA, "answer": "\ud800"},
        {**QA, "kto_tag": False},
        {**QA, "image_url": "https://example.org/a.png"},
        {**QA, "history": [["a", "b"]]},
    ],
)
def test_the_short_way_through_plain_records_is_the_long_way(record):
    def outcome(**options):
        try:
            return fingerprint(record, **options)
        except InvalidInputError as error:
            return str(error)

    assert outcome() == outcome(ignore_columns="a column that is not there")


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
        ({"ignore_columns": [7]}, r"ignore_columns: found \[7\]"),
        ({"ignore_columns": ""}, "ignore_columns: found ''"),
        ({"preference": "rejected"}, "preference: found 'rejected'"),
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
    assert parse_record(3, "here", {**PAIR, "hint": "x"}, ignore_columns="hint").index == 3


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
    count = some(4000)
    for _ in range(count):
        record = {
            **draw.choice(bases),
            **{draw.choice(names): draw.choice(values) for _ in range(draw.randint(1, 3))},
        }
        options = draw.choice([{}, {"preference": "chosen"}, {"ignore_columns": draw.choice(names)}])
        with contextlib.suppress(InvalidInputError):
            load_records([record], **options)
            read += 1
    assert count // 40 < read < count - count // 40


@pytest.mark.parametrize("name", ["notes", "response", "tools", "messages", "weight"])
def test_values_nested_too_deeply_are_a_bad_record(name):
    deep: object = "a"
    for _ in range(100_000):
        deep = [deep]
    record = {"prompt": "a", "response": "b", name: deep}
    with pytest.raises(InvalidInputError):
        load_records([record])
    assert len(load_records([{"prompt": "a", "response": "b"}, record], skip_bad=True).bad) == 1


LONG = "The ledger of the harbour lists three boats and their captains. " * 8


@pytest.mark.parametrize(
    "more",
    [
        {"source": LONG},
        {"source": f"{LONG} see http://x.y"},
        {"sources": [LONG]},
        {"sources": [{"title": "a", "text": LONG}]},
        {"metadata": {"context": LONG}},
        {"names": ["Ann", "Bob"]},
        {"keys": ["x1", "y1"]},
    ],
)
def test_texts_are_no_descriptions_whatever_their_name_is(more):
    (name,) = more
    for record in (QA, PAIR, {"messages": CHAT}, {"instruction": "a", "output": "b"}):
        assert f"'{name}'" in refusal({**record, **more})
    marked = {**USER, **more}
    assert f"'{name}'" in refusal({"messages": [marked, BLUE]})


def test_descriptions_are_let_go_and_listed():
    short = {
        "source": "a forum",
        "sources": ["a", "b"],
        "url": "https://x.y/" + "z" * 400,
        "metadata": {"n": "m"},
    }
    assert fingerprint({**QA, **short}) == fingerprint(QA)
    records = load_records([{**QA, **short, "id": 7}, {**PAIR, "lang": "en"}])
    assert records.described == ("id", "lang", "metadata", "source", "sources", "url")
    named = load_records([{**QA, "source": "b"}], columns={"question": "source", "answer": "answer"})
    assert named.described == ()


@pytest.mark.parametrize(
    ("role", "known"),
    [
        ("AI", "assistant"),
        ("assistant ", "assistant"),
        ("Chatbot", "assistant"),
        ("User", "user"),
        ("prompter", "user"),
        ("tool_result", "tool"),
        ("function_response", "tool"),
    ],
)
def test_speakers_are_known_by_any_of_their_names(role, known):
    asked = [USER, BLUE, USER, {"role": role, "content": "b"}, BLUE]
    assert turns({"messages": asked})[3] == (known, "b")


def test_a_speaker_that_nobody_knows_is_refused():
    assert "messages[1].role: found 'gpt-4', expected one of" in refusal(
        {"messages": [USER, {"role": "gpt-4", "content": "b"}, USER, BLUE]}
    )
    assert turns({"messages": [{"role": "developer", "content": "s"}, *CHAT]})[0] == ("developer", "s")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"conversation": CHAT}, "columns={'messages': 'conversation'}"),
        ({"id": 1, "frage": "q", "antwort": "r"}, "columns={'prompt': 'frage', 'response': 'antwort'}"),
        ({"a": "q", "b": "r", "c": "s"}, None),
    ],
)
def test_what_to_type_is_said_where_it_can_be_guessed(record, says):
    message = refusal(record)
    assert "expected the prompt in one of" in message
    assert (says in message) if says else ("columns={" not in message.split("; correct it")[0])
